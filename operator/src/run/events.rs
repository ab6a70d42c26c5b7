//! Kubernetes Events.
//!
//! Never fails and never delays a reconcile: the queue is bounded, and what does not fit or is refused is counted.
//!
//! `kube::runtime::events::Recorder` takes two Events with one reason and different words for the same and sends the first one's
//! words again; ours are about addresses, and the words are what matters. It also walks its whole memory at each Event.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use operator_api::{AddressPool, FIELD_MANAGER, TUNNEL_CONFIG, TunnelConfig};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::metrics::Metrics;
use crate::decide::{About, Note};

/// Events that wait to be sent.
const QUEUE: usize = 4096;
/// Events that are remembered, to be counted up when they come again: about 500 B each.
const REMEMBERED: usize = 4096;
/// An Event that comes again within this time is counted up; later it is a new one.
const SERIES: Duration = Duration::from_secs(360);
/// Longest a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest note that the API server takes.
const NOTE_BYTES: usize = 1024;

/// Hands Events to the sender.
#[derive(Clone)]
pub(super) struct Events {
    queue: mpsc::Sender<Note>,
}

/// Sends them, one after another.
pub(super) struct Sender {
    client: Client,
    instance: String,
    queue: mpsc::Receiver<Note>,
    sent: BTreeMap<Key, Sent>,
    /// Keys by the time they were last sent: the oldest is forgotten first.
    ages: BTreeSet<(Instant, Key)>,
}

/// What makes two Events the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    uid: String,
    reason: &'static str,
    message: String,
}

struct Sent {
    name: String,
    count: i32,
    last: Instant,
}

impl Events {
    /// A queue and its sender. `instance` is this operator's identity.
    pub(super) fn new(client: Client, instance: &str) -> (Self, Sender) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let sender = Sender {
            client,
            instance: instance.to_owned(),
            queue: receiver,
            sent: BTreeMap::new(),
            ages: BTreeSet::new(),
        };
        (Self { queue }, sender)
    }

    pub(super) fn send(&self, note: Note, metrics: &Metrics) {
        if self.queue.try_send(note).is_err() {
            metrics.event_dropped();
        }
    }
}

impl Sender {
    /// Until all [`Events`] are gone.
    pub(super) async fn run(mut self, room: Arc<super::room::Room>) {
        while let Some(note) = self.queue.recv().await {
            match timeout(REQUEST_TIMEOUT, self.publish(&note)).await {
                Ok(Ok(())) => room.metrics.event_sent(),
                Ok(Err(error)) => {
                    room.metrics.event_dropped();
                    tracing::debug!(reason = note.reason, %error, "event not sent");
                }
                Err(_) => room.metrics.event_dropped(),
            }
        }
    }

    async fn publish(&mut self, note: &Note) -> Result<(), kube::Error> {
        let regarding = reference(&note.about);
        // Events about what has no namespace stand in `default`.
        let namespace = regarding.namespace.as_deref().unwrap_or("default").to_owned();
        let events = Api::<Event>::namespaced(self.client.clone(), &namespace);
        let key = Key {
            uid: regarding.uid.clone().unwrap_or_default(),
            reason: note.reason,
            message: note.message.clone(),
        };
        let now = Instant::now();
        if let Some(sent) = self.sent.get_mut(&key)
            && now < sent.last + SERIES
        {
            let series = EventSeries {
                count: sent.count.saturating_add(1),
                last_observed_time: MicroTime(Timestamp::now()),
            };
            let patch = Patch::Merge(json!({"series": series}));
            self.ages.remove(&(sent.last, key.clone()));
            (sent.count, sent.last) = (series.count, now);
            let name = sent.name.clone();
            self.ages.insert((now, key.clone()));
            match events.patch(&name, &PatchParams::default(), &patch).await {
                // It has been deleted, by its age perhaps: a new one.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                answer => return answer.map(drop),
            }
        }
        let event = self.event(note, regarding, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        events.create(&PostParams::default(), &event).await?;
        self.remember(key, name, now);
        Ok(())
    }

    fn event(&self, note: &Note, regarding: ObjectReference, namespace: &str) -> Event {
        let now = Timestamp::now();
        let object = regarding.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            reason: Some(note.reason.to_owned()),
            note: Some(cut(&note.message).to_owned()),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            event_time: Some(MicroTime(now)),
            regarding: Some(regarding),
            reporting_controller: Some(FIELD_MANAGER.to_owned()),
            // At most 128 bytes.
            reporting_instance: Some(self.instance.chars().take(120).collect()),
            ..Event::default()
        }
    }

    fn remember(&mut self, key: Key, name: String, now: Instant) {
        if let Some(old) = self.sent.remove(&key) {
            self.ages.remove(&(old.last, key.clone()));
        }
        if self.sent.len() >= REMEMBERED
            && let Some((_, oldest)) = self.ages.pop_first()
        {
            self.sent.remove(&oldest);
        }
        self.ages.insert((now, key.clone()));
        let sent = Sent {
            name,
            count: 1,
            last: now,
        };
        self.sent.insert(key, sent);
    }
}

fn reference(about: &About) -> ObjectReference {
    match about {
        About::Service { service, uid } => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
        About::Pool { name, uid } => ObjectReference {
            api_version: Some(AddressPool::api_version(&()).into_owned()),
            kind: Some(AddressPool::kind(&()).into_owned()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
        About::Tunnel { namespace, uid } => ObjectReference {
            api_version: Some(TunnelConfig::api_version(&()).into_owned()),
            kind: Some(TunnelConfig::kind(&()).into_owned()),
            namespace: Some(namespace.clone()),
            name: Some(TUNNEL_CONFIG.to_owned()),
            uid: Some(uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        },
    }
}

/// As much of a message as an Event takes.
fn cut(message: &str) -> &str {
    let end = (0..=message.len().min(NOTE_BYTES))
        .rev()
        .find(|end| message.is_char_boundary(*end));
    &message[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_between_characters() {
        let message = "é".repeat(2000);
        let cut = cut(&message);
        assert_eq!(cut.len(), NOTE_BYTES);
        assert!(message.starts_with(cut));
        assert_eq!(super::cut("short"), "short");
    }
}
