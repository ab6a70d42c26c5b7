//! A scripted LB node: it says that it lives and that it has programmed whatever it sees.
//!
//! Never has maps, and never says more than a real one would: it reads VipTables by watch, and reports the highest
//! resourceVersion that it has seen.

use std::{pin::pin, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    core::ObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use operator_api::{LB_FIELD_MANAGER, LB_LEASE_PREFIX, LbNode, VipTable};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

/// A scripted LB node; it dies with this, and its Lease then runs out.
pub(crate) struct ScriptedLbNode {
    _tasks: JoinSet<()>,
    announcing: watch::Sender<Value>,
}

/// How one is to be.
pub(crate) struct LbNodeScript {
    /// Its name.
    pub(crate) name: String,
    /// The operator's namespace.
    pub(crate) namespace: String,
    /// The outer source of what it sends.
    pub(crate) source: String,
    /// How long its Lease holds, in seconds.
    pub(crate) lease_seconds: i32,
}

impl ScriptedLbNode {
    /// Starts it.
    pub(crate) fn start(client: &Client, script: LbNodeScript) -> Self {
        let mut tasks = JoinSet::new();
        let (announcing, said) = watch::channel(Value::Null);
        tasks.spawn(report(
            client.clone(),
            script.namespace.clone(),
            script.name.clone(),
            said,
        ));
        tasks.spawn(live(client.clone(), script));
        Self {
            _tasks: tasks,
            announcing,
        }
    }

    /// From now on it says that it announces this: `status.announcing`. At first it says nothing of it, as one of an earlier version.
    pub(crate) fn says(&self, announcing: Value) {
        self.announcing.send_replace(announcing);
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(LB_FIELD_MANAGER).force()
}

async fn make(nodes: &Api<LbNode>, name: &str, source: &str) -> Result<LbNode, kube::Error> {
    let node = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "LbNode",
        "metadata": {"name": name}, "spec": {"tunnelSources": [source]},
    });
    nodes.patch(name, &apply(), &Patch::Apply(&node)).await
}

async fn live(client: Client, script: LbNodeScript) {
    let nodes = Api::<LbNode>::namespaced(client.clone(), &script.namespace);
    let leases = Api::<Lease>::namespaced(client, &script.namespace);
    let lease_name = format!("{LB_LEASE_PREFIX}{}", script.name);
    let seconds = u64::try_from(script.lease_seconds).unwrap();
    loop {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(lease_name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(script.name.clone()),
                lease_duration_seconds: Some(script.lease_seconds),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let renewed = leases.patch(&lease_name, &apply(), &Patch::Apply(&lease)).await.is_ok()
            && make(&nodes, &script.name, &script.source).await.is_ok();
        let pause = if renewed { seconds * 250 } else { 200 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn report(client: Client, namespace: String, name: String, mut announcing: watch::Receiver<Value>) {
    let nodes = Api::<LbNode>::namespaced(client.clone(), &namespace);
    let tables = Api::<VipTable>::namespaced(client, &namespace);
    let mut events = pin!(watcher(tables, watcher::Config::default()).default_backoff());
    let mut seen: u64 = 0;
    let mut said = (0, Value::Null);
    loop {
        let mut next = tokio::select! {
            next = events.next() => next,
            changed = announcing.changed() => {
                if changed.is_err() {
                    return;
                }
                None
            }
        };
        // What has come meanwhile is said in one write.
        while let Some(event) = next {
            if let Ok(watcher::Event::Apply(table) | watcher::Event::InitApply(table) | watcher::Event::Delete(table)) =
                event
            {
                let version = table.resource_version().and_then(|version| version.parse().ok());
                seen = seen.max(version.unwrap_or_default());
            }
            next = events.next().now_or_never().flatten();
        }
        loop {
            let now = (seen, announcing.borrow_and_update().clone());
            if said == now {
                break;
            }
            let mut status = json!({
                "apiVersion": "vipline.dev/v1alpha1", "kind": "LbNode", "metadata": {"name": name},
                "status": {"version": "scripted", "programmed": {"tables": seen.to_string(), "vips": 1}},
            });
            if !now.1.is_null() {
                status["status"]["announcing"] = now.1.clone();
            }
            match nodes.patch_status(&name, &apply(), &Patch::Apply(&status)).await {
                Ok(_) => said = now,
                // Its object may not be there yet.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}
