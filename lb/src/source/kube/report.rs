//! What this node says of itself: its LbNode and its Lease.
//!
//! Never more than one write of the LbNode a second, never more than 16 kB, and never anything else.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, OwnerReference, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use operator_api::{
    CONDITION_READY, FailingTable, LB_FIELD_MANAGER, LB_LEASE_PREFIX, LbNode, LbNodeStatus, MAX_FAILING_TABLES,
    Programmed,
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{watch::say_client, wish::Wish};

/// Least time between two writes of the LbNode.
const GAP: Duration = Duration::from_secs(1);
/// How often the Lease is renewed, and for how long it holds.
const RENEW: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// What did not change is written again this often: somebody may have deleted it.
const AGAIN: Duration = Duration::from_secs(60);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest reason of a failing table, in bytes.
const MAX_WHY: usize = 256;
/// Most bytes of the list of failing tables, so that all of the LbNode stays within its bound.
const MAX_FAILING_BYTES: usize = 6 << 10;
/// Longest message of a condition, in bytes.
const MAX_MESSAGE: usize = 1024;

/// What is to be said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Say {
    /// Outer sources, as CIDR blocks.
    pub(super) sources: Vec<String>,
    /// What is in the maps.
    pub(super) programmed: Programmed,
    /// Which published transits are over here.
    pub(super) transits: operator_api::Transits,
    /// What it announces; `None`: nothing is known of that yet.
    pub(super) announcing: Option<operator_api::Announcing>,
    /// `None`: it serves what it was told; else a reason in UpperCamelCase.
    pub(super) trouble: Option<&'static str>,
    /// For people.
    pub(super) message: String,
}

/// The bounded list of failing tables, in order of their names.
pub(super) fn failing<'a>(tables: impl Iterator<Item = (&'a Arc<str>, String)>) -> Vec<FailingTable> {
    let mut bytes = 0;
    let entries = tables.take(MAX_FAILING_TABLES).map(|(name, why)| FailingTable {
        name: cut(name, 253),
        why: cut(&why, MAX_WHY),
    });
    let fits = |entry: &FailingTable| {
        // As JSON, escapes included.
        bytes += serde_json::to_string(entry).map_or(0, |text| text.len() + 1);
        bytes <= MAX_FAILING_BYTES
    };
    entries.take_while(fits).collect()
}

/// The beginning of a text, in bytes at most; never a part of a character.
pub(super) fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

/// The Node that this one is, where it is one: LbNode and Lease go when it goes.
#[derive(Clone, Debug, PartialEq)]
enum Machine {
    /// Not looked up yet, or it may not be: neither has an owner.
    Unknown,
    /// It is none: a machine outside of the cluster.
    Outside,
    /// It is one.
    Is(OwnerReference),
    /// It was one. Nothing is said until it is one again: what was said is to go, and not to come back.
    Gone,
}

impl Machine {
    /// After the API server was asked: the Node's uid, if there is one.
    fn now(&self, name: &str, uid: Option<String>) -> Self {
        match (uid, self) {
            (Some(uid), _) => Self::Is(OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid,
                ..OwnerReference::default()
            }),
            (None, Self::Is(_) | Self::Gone) => Self::Gone,
            (None, Self::Unknown | Self::Outside) => Self::Outside,
        }
    }

    /// Owners of what is written.
    fn owners(&self) -> Vec<&OwnerReference> {
        match self {
            Self::Is(owner) => vec![owner],
            Self::Unknown | Self::Outside | Self::Gone => Vec::new(),
        }
    }
}

/// What of the LbNode was written, and how it stood then.
#[derive(Default)]
struct Said {
    /// Its spec, with the machine that owns it.
    spec: Option<(Vec<String>, Machine)>,
    status: Option<Say>,
}

pub(super) struct Reporter {
    nodes: Api<LbNode>,
    leases: Api<Lease>,
    machines: Api<Node>,
    name: Arc<str>,
    machine: Machine,
    /// Status of the condition that was said last, and since when.
    ready: Option<(bool, Timestamp)>,
    said: Said,
    /// What was complained of last.
    complained: Option<String>,
    /// What the cluster wants of this node.
    wishes: watch::Sender<Wish>,
}

impl Reporter {
    pub(super) fn new(client: &Client, namespace: &str, name: Arc<str>, wishes: watch::Sender<Wish>) -> Self {
        Self {
            nodes: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client.clone(), namespace),
            machines: Api::all(client.clone()),
            name,
            machine: Machine::Unknown,
            ready: None,
            said: Said::default(),
            complained: None,
            wishes,
        }
    }

    /// Says it until nobody has anything to say any more.
    pub(super) async fn run(mut self, mut says: watch::Receiver<Say>) {
        let mut tick = interval(GAP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lease_due = Instant::now();
        let mut again = Instant::now() + AGAIN;
        loop {
            tick.tick().await;
            if says.has_changed().is_err() {
                return;
            }
            let now = Instant::now();
            if now >= lease_due {
                let renewed = self.renew().await;
                lease_due = now + if renewed.is_ok() { RENEW } else { GAP * 2 };
                self.complain("the Lease", renewed);
            }
            if self.machine == Machine::Gone {
                continue;
            }
            if now >= again {
                self.said = Said::default();
                again = now + AGAIN;
            }
            let say = says.borrow_and_update().clone();
            let told = self.tell(say).await;
            self.complain("the LbNode", told);
        }
    }

    /// Writes what is new of the LbNode: its spec, or else its status. Each is a write, and there is one a second.
    async fn tell(&mut self, say: Say) -> Result<(), String> {
        let spec = (say.sources.clone(), self.machine.clone());
        if self.said.spec.as_ref() != Some(&spec) {
            self.tell_spec(&spec.0).await?;
            self.said.spec = Some(spec);
        } else if self.said.status.as_ref() != Some(&say) {
            let told = self.tell_status(&say).await;
            // It may have failed because there is no such object any more.
            self.said = match told {
                Ok(()) => Said {
                    spec: Some(spec),
                    status: Some(say),
                },
                Err(_) => Said::default(),
            };
            told?;
        }
        Ok(())
    }

    async fn tell_spec(&self, sources: &[String]) -> Result<(), String> {
        let mut object = self.object(json!({"spec": {"tunnelSources": sources}}));
        object["metadata"]["ownerReferences"] = json!(self.machine.owners());
        ask(self.nodes.patch(&self.name, &params(), &Patch::Apply(object))).await
    }

    async fn tell_status(&mut self, say: &Say) -> Result<(), String> {
        let ready = say.trouble.is_none();
        let since = match self.ready {
            Some((before, since)) if before == ready => since,
            Some(_) | None => Timestamp::now(),
        };
        let status = LbNodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            programmed: say.programmed.clone(),
            transits: Some(say.transits.clone()),
            announcing: say.announcing.clone(),
            conditions: vec![Condition {
                type_: CONDITION_READY.to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                reason: say.trouble.unwrap_or("Serves").to_owned(),
                message: cut(&say.message, MAX_MESSAGE),
                last_transition_time: Time(since),
                observed_generation: None,
            }],
        };
        let object = self.object(json!({"status": status}));
        ask(self.nodes.patch_status(&self.name, &params(), &Patch::Apply(object))).await?;
        self.ready = Some((ready, since));
        Ok(())
    }

    fn object(&self, mut part: serde_json::Value) -> serde_json::Value {
        if let Some(object) = part.as_object_mut() {
            object.insert("apiVersion".to_owned(), json!("vipline.dev/v1alpha1"));
            object.insert("kind".to_owned(), json!("LbNode"));
            object.insert("metadata".to_owned(), json!({"name": &*self.name}));
        }
        part
    }

    async fn renew(&mut self) -> Result<(), String> {
        // A Node that is made anew is another one, and what has the old one as its owner goes. Whoever may not look has none.
        if let Ok(Ok(node)) = timeout(PATIENCE, self.machines.get_opt(&self.name)).await {
            self.look_for_wishes(node.as_ref()).await;
            self.machine = self.machine.now(&self.name, node.and_then(|node| node.metadata.uid));
        }
        if self.machine == Machine::Gone {
            return Err(format!(
                "there is no Node {} any more: this one reports nothing",
                self.name
            ));
        }
        let name = format!("{LB_LEASE_PREFIX}{}", self.name);
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "ownerReferences": self.machine.owners()},
            "spec": {
                "holderIdentity": &*self.name,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": MicroTime(Timestamp::now()),
            },
        });
        ask(self.leases.patch(&name, &params(), &Patch::Apply(lease))).await
    }

    /// Looks at its own two objects. What cannot be read changes nothing.
    async fn look_for_wishes(&self, node: Option<&Node>) {
        let Ok(Ok(said)) = timeout(PATIENCE, self.nodes.get_metadata_opt(&self.name)).await else {
            return;
        };
        let wish = Wish::of(said.as_ref().map(|said| &said.metadata), node);
        self.wishes
            .send_if_modified(|before| std::mem::replace(before, wish) != wish);
    }

    /// Says what goes wrong when it begins and when it is another, not each time.
    fn complain(&mut self, what: &str, result: Result<(), String>) {
        match result {
            Ok(()) => {
                if self.complained.as_ref().is_some_and(|before| before.starts_with(what)) {
                    tracing::info!("{what} can be written again");
                    self.complained = None;
                }
            }
            Err(why) => {
                let text = format!("{what} cannot be written: {why}");
                if self.complained.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                    self.complained = Some(text);
                }
            }
        }
    }
}

fn params() -> PatchParams {
    PatchParams::apply(LB_FIELD_MANAGER).force()
}

async fn ask<T>(request: impl Future<Output = kube::Result<T>>) -> Result<(), String> {
    match timeout(PATIENCE, request).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(say_client(&error)),
        Err(_) => Err(format!("no answer for {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use operator_api::{MAX_ANNOUNCING_BYTES, MAX_FAILING_TABLES, MAX_LB_NODE_BYTES};

    use super::{MAX_WHY, Machine, cut, failing};

    #[test]
    fn who_was_a_node_says_nothing_until_it_is_one_again() {
        let uid = |uid: &str| Some(uid.to_owned());
        let owner = |machine: &Machine| machine.owners().first().map(|owner| owner.uid.clone());
        let outside = Machine::Unknown.now("lb-1", None);
        assert_eq!((&outside, owner(&outside)), (&Machine::Outside, None));
        let node = outside.now("lb-1", uid("a"));
        assert_eq!(owner(&node), uid("a"));
        let gone = node.now("lb-1", None).now("lb-1", None);
        assert_eq!((&gone, owner(&gone)), (&Machine::Gone, None));
        assert_eq!(
            owner(&gone.now("lb-1", uid("b"))),
            uid("b"),
            "of the same name, another one"
        );
    }

    #[test]
    fn what_is_said_of_failing_tables_stays_within_bounds() {
        for (name, why) in [
            ("n".repeat(253), "ü\"\n".repeat(500)),
            ("n".repeat(900), "w".repeat(900)),
        ] {
            let names: Vec<Arc<str>> = (0..5000).map(|n| format!("{n}{name}").into()).collect();
            let said = failing(names.iter().map(|name| (name, why.clone())));
            assert!((1..=MAX_FAILING_TABLES).contains(&said.len()), "{}", said.len());
            assert!(
                said.iter()
                    .all(|table| table.why.len() <= MAX_WHY && table.name.len() <= 253)
            );
            assert!(serde_json::to_string(&said).unwrap().len() < MAX_LB_NODE_BYTES - MAX_ANNOUNCING_BYTES - 3000);
        }
        assert_eq!(cut("aü", 2), "a");
        assert_eq!(cut("aü", 3), "aü");
    }
}
