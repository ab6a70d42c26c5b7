//! What watches, workers and the HTTP server share.
//!
//! Never waits for anything: the index is locked for as long as one look or one change takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::core::ObjectMeta;
use tokio::{sync::watch, time::Instant};

use super::{
    metrics::Metrics,
    queue::Queue,
    state::{self, State},
    write::Effect,
};
use crate::{
    ServiceKey, Subject,
    decide::{self, Action, Next},
    index::{Index, Kind, Object, Settings},
    ipam,
};

/// Services that are counted while the index is locked once.
const BITE: usize = 250;

/// Namespace (empty where there is none) and name.
pub(super) type Name = (String, String);

/// The shared state.
pub(super) struct Room {
    inner: Mutex<Inner>,
    /// When it was made, by both clocks.
    started: (Timestamp, Instant),
    pub(super) queue: Queue,
    pub(super) metrics: Metrics,
    listed: watch::Sender<BTreeSet<Kind>>,
    /// When the first change of EndpointSlices came that a Service's table has not followed yet.
    endpoint_changes: Mutex<BTreeMap<ServiceKey, Instant>>,
}

struct Inner {
    index: Index,
    /// For kinds that are being listed again: what was written meanwhile and a list may not have.
    journal: BTreeMap<Kind, BTreeMap<Name, Object>>,
}

impl Inner {
    /// What an action has deleted, as it was.
    fn deleted(&self, action: &Action) -> Option<Object> {
        match action {
            Action::DeleteTable { name, uid, .. } => {
                let (namespace, service) = name.split_once('.')?;
                let key = ServiceKey {
                    namespace: namespace.to_owned(),
                    name: service.to_owned(),
                };
                let table = self.index.table(&key)?;
                (table.metadata.uid.as_ref() == Some(uid)).then(|| Object::Table(table.clone()))
            }
            Action::DeleteClaim { name, uid, .. } => {
                let claim = self.index.claims().by_address(ipam::address_of_name(name)?)?.object();
                (claim.metadata.uid.as_ref() == Some(uid)).then(|| Object::Claim(claim.clone()))
            }
            // There are few of them, and the watch says it soon.
            Action::DeleteNodeSet { .. } => None,
            Action::ApplyServiceMeta { .. }
            | Action::ReplaceServiceMeta { .. }
            | Action::ApplyServiceStatus { .. }
            | Action::ReplaceServiceStatus { .. }
            | Action::CreateClaim(_)
            | Action::ReplaceClaim(_)
            | Action::ApplyTable(_)
            | Action::ApplyNodeSet(_)
            | Action::ApplyTunnel(_)
            | Action::CreateSeed
            | Action::ApplyPoolStatus { .. }
            | Action::ApplyPeerStatus { .. }
            | Action::ApplyAnnouncementStatus { .. } => None,
        }
    }
}

impl Room {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            inner: Mutex::new(Inner {
                index: Index::new(settings),
                journal: BTreeMap::new(),
            }),
            started: (Timestamp::now(), Instant::now()),
            queue: Queue::default(),
            metrics: Metrics::new(),
            listed: watch::Sender::new(BTreeSet::new()),
            endpoint_changes: Mutex::new(BTreeMap::new()),
        }
    }

    /// The next write for a subject.
    pub(super) fn decide(&self, subject: &Subject, now: Timestamp) -> Next {
        decide::next(&self.lock().index, subject, now)
    }

    /// The next write for a subject, which is going to be done: an address that it claims is not chosen for another Service until
    /// the [`Reservation`] is gone.
    pub(super) fn decide_to_write(self: &Arc<Self>, subject: &Subject, now: Timestamp) -> (Next, Option<Reservation>) {
        let mut inner = self.lock();
        let next = decide::next(&inner.index, subject, now);
        let address = match &next {
            Next::Do(action, _) => match &**action {
                Action::CreateClaim(claim) => claim.spec.address.parse().ok(),
                Action::ApplyServiceMeta { .. }
                | Action::ReplaceServiceMeta { .. }
                | Action::ApplyServiceStatus { .. }
                | Action::ReplaceServiceStatus { .. }
                | Action::ReplaceClaim(_)
                | Action::DeleteClaim { .. }
                | Action::ApplyTable(_)
                | Action::DeleteTable { .. }
                | Action::ApplyNodeSet(_)
                | Action::DeleteNodeSet { .. }
                | Action::ApplyTunnel(_)
                | Action::CreateSeed
                | Action::ApplyPoolStatus { .. }
                | Action::ApplyPeerStatus { .. }
                | Action::ApplyAnnouncementStatus { .. } => None,
            },
            Next::Done | Next::Wait(_) | Next::Retry => None,
        };
        let reservation = address.map(|address| {
            inner.index.claims_mut().reserve(address);
            Reservation {
                room: self.clone(),
                address,
            }
        });
        (next, reservation)
    }

    /// Something read from the index.
    pub(super) fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.lock().index)
    }

    /// The watch says that an object is there or has changed.
    pub(super) fn apply(&self, object: Object) {
        self.metrics.stands(&object);
        let is_slice = matches!(object, Object::EndpointSlice(_));
        let dirty = self.lock().index.apply(object);
        self.changed(is_slice, dirty);
    }

    /// The watch says that an object is gone.
    pub(super) fn delete(&self, object: Object) {
        self.metrics.gone(&object);
        let is_slice = matches!(object, Object::EndpointSlice(_));
        let dirty = self.lock().index.delete(object);
        self.changed(is_slice, dirty);
    }

    /// The answer to a write, known at once: the next look sees it.
    pub(super) fn written(&self, action: &Action, effect: Effect) {
        let dirty = {
            let mut inner = self.lock();
            match effect {
                Effect::Is(object) => {
                    let (kind, name) = identify(&object);
                    if let Some(journal) = inner.journal.get_mut(&kind) {
                        journal.insert(name, (*object).clone());
                    }
                    inner.index.apply(*object)
                }
                Effect::Gone(object) => {
                    let (kind, name) = identify(&object);
                    if let Some(journal) = inner.journal.get_mut(&kind) {
                        journal.remove(&name);
                    }
                    inner.index.delete(*object)
                }
                Effect::Deleted => match inner.deleted(action) {
                    Some(object) => {
                        let (kind, name) = identify(&object);
                        if let Some(journal) = inner.journal.get_mut(&kind) {
                            journal.remove(&name);
                        }
                        inner.index.delete(object)
                    }
                    None => BTreeSet::new(),
                },
            }
        };
        self.queue.add(dirty);
    }

    /// A list of this kind has begun: writes from now on may be missing in it.
    pub(super) fn listing(&self, kind: Kind) {
        self.lock().journal.insert(kind, BTreeMap::new());
    }

    /// What was written while the kind was listed and is not in the list.
    pub(super) fn missing(&self, kind: Kind, list: &[Object]) -> Vec<Name> {
        let written: Vec<Name> = {
            let inner = self.lock();
            let journal = inner.journal.get(&kind).into_iter().flatten();
            journal.map(|(name, _)| name.clone()).collect()
        };
        if written.is_empty() {
            return written;
        }
        let listed: BTreeSet<Name> = list.iter().map(|object| identify(object).1).collect();
        written.into_iter().filter(|name| !listed.contains(name)).collect()
    }

    /// The whole list of a kind. `checked` are names whose absence or presence in it is certain, although they were written
    /// meanwhile.
    pub(super) fn reset(&self, kind: Kind, objects: Vec<Object>, checked: &[Name]) {
        self.metrics.none_of(kind);
        for object in &objects {
            self.metrics.stands(object);
        }
        let dirty = {
            let mut inner = self.lock();
            let mut dirty = inner.index.reset(kind, objects);
            for (name, object) in inner.journal.remove(&kind).unwrap_or_default() {
                if !checked.contains(&name) {
                    dirty.extend(inner.index.apply(object));
                }
            }
            dirty
        };
        self.queue.add(dirty);
        self.listed.send_if_modified(|listed| listed.insert(kind));
    }

    /// Whether every kind has been listed once.
    pub(super) fn is_open(&self) -> bool {
        self.listed.borrow().len() == Kind::ALL.len()
    }

    /// Until every kind has been listed once: nothing is decided before.
    pub(super) async fn opened(&self) {
        let mut listed = self.listed.subscribe();
        // The sender lives as long as `self`.
        drop(listed.wait_for(|listed| listed.len() == Kind::ALL.len()).await);
    }

    /// Kinds that have not been listed yet.
    pub(super) fn unlisted(&self) -> Vec<Kind> {
        let listed = self.listed.borrow();
        Kind::ALL.into_iter().filter(|kind| !listed.contains(kind)).collect()
    }

    /// How many Services stand how. The index is let go between bites: a scrape holds nobody up.
    pub(super) fn count_services(&self) -> BTreeMap<State, usize> {
        let mut counts: BTreeMap<_, _> = State::ALL.into_iter().map(|state| (state, 0)).collect();
        let keys: Vec<ServiceKey> = self.read(|index| index.services().cloned().collect());
        for bite in keys.chunks(BITE) {
            self.read(|index| {
                for (state, _) in bite.iter().filter_map(|key| state::of(index, key)) {
                    *counts.entry(state).or_default() += 1;
                }
            });
        }
        counts
    }

    fn changed(&self, is_slice: bool, dirty: BTreeSet<Subject>) {
        if is_slice {
            let now = Instant::now();
            for subject in &dirty {
                if let Subject::Service(service) = subject {
                    lock(&self.endpoint_changes).entry(service.clone()).or_insert(now);
                }
            }
        }
        self.queue.add(dirty);
    }

    /// A Service's table has been written, or needs no write: how long the first change of its EndpointSlices waited for that.
    pub(super) fn endpoints_followed(&self, service: &ServiceKey) -> Option<Duration> {
        lock(&self.endpoint_changes)
            .remove(service)
            .map(|since| since.elapsed())
    }

    /// The index, told what time it is: by a clock that nobody sets.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = lock(&self.inner);
        let (wall, steady) = self.started;
        let elapsed = SignedDuration::try_from(steady.elapsed()).unwrap_or(SignedDuration::MAX);
        inner.index.tick(wall.saturating_add(elapsed).unwrap_or(Timestamp::MAX));
        inner
    }
}

/// An address whose claim is being created.
pub(super) struct Reservation {
    room: Arc<Room>,
    address: IpAddr,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.lock().index.claims_mut().unreserve(self.address);
    }
}

/// A panic while a lock was held has been counted where it happened; the data is replaced field by field and stays whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kind and name of an object.
pub(super) fn identify(object: &Object) -> (Kind, Name) {
    let (kind, metadata) = match object {
        Object::Service(it) => (Kind::Service, &it.metadata),
        Object::EndpointSlice(it) => (Kind::EndpointSlice, &it.metadata),
        Object::Node(it) => (Kind::Node, &it.metadata),
        Object::Namespace(it) => (Kind::Namespace, &it.metadata),
        Object::Pool(it) => (Kind::Pool, &it.metadata),
        Object::Claim(it) => (Kind::Claim, &it.metadata),
        Object::Table(it) => (Kind::Table, &it.metadata),
        Object::NodeSet(it) => (Kind::NodeSet, &it.metadata),
        Object::Tunnel(it) => (Kind::Tunnel, &it.metadata),
        Object::LbNode(it) => (Kind::LbNode, &it.metadata),
        Object::Lease(it) => (Kind::Lease, &it.metadata),
        Object::Peer(it) => (Kind::Peer, &it.metadata),
        Object::Announcement(it) => (Kind::Announcement, &it.metadata),
        Object::Seed(it) => (Kind::Seed, &it.metadata),
    };
    (kind, name_of(metadata))
}

/// Namespace and name from metadata.
pub(super) fn name_of(metadata: &ObjectMeta) -> Name {
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use operator_api::AddressClaim;

    use super::*;

    fn claim(address: &str, version: &str) -> AddressClaim {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressClaim",
            "metadata": {"name": address, "uid": address, "resourceVersion": version},
            "spec": {"address": address, "pool": "main", "holders": []},
        }))
        .unwrap()
    }

    fn claims(room: &Room) -> Vec<String> {
        room.read(|index| index.claims().iter().map(|claim| claim.address().to_string()).collect())
    }

    fn write(room: &Room, claim: AddressClaim) {
        let effect = Effect::Is(Box::new(Object::Claim(claim.clone())));
        room.written(&Action::CreateClaim(claim), effect);
    }

    #[test]
    fn what_was_written_while_a_list_was_read_is_not_lost_with_it() {
        let room = Room::new(Settings::default());
        room.listing(Kind::Claim);
        write(&room, claim("203.0.113.2", "20"));
        // The list is older than the write.
        room.reset(Kind::Claim, vec![Object::Claim(claim("203.0.113.1", "10"))], &[]);
        assert_eq!(claims(&room), ["203.0.113.1", "203.0.113.2"]);

        // The next list is younger than that write, and others have deleted it.
        room.listing(Kind::Claim);
        room.reset(Kind::Claim, vec![Object::Claim(claim("203.0.113.1", "10"))], &[]);
        assert_eq!(claims(&room), ["203.0.113.1"]);
    }

    #[test]
    fn what_was_asked_for_and_is_gone_does_not_come_back() {
        let room = Room::new(Settings::default());
        room.listing(Kind::Claim);
        write(&room, claim("203.0.113.2", "20"));
        let missing = room.missing(Kind::Claim, &[]);
        assert_eq!(missing, [(String::new(), "203.0.113.2".to_owned())]);
        room.reset(Kind::Claim, Vec::new(), &missing);
        assert_eq!(claims(&room), Vec::<String>::new());
    }

    #[test]
    fn a_deleted_claim_is_gone_at_once() {
        let room = Room::new(Settings::default());
        room.apply(Object::Claim(claim("203.0.113.2", "20")));
        let action = Action::DeleteClaim {
            name: "203.0.113.2".into(),
            uid: "203.0.113.2".into(),
            resource_version: "20".into(),
        };
        room.written(&action, Effect::Deleted);
        assert_eq!(claims(&room), Vec::<String>::new());
    }

    #[test]
    fn the_gate_opens_with_the_last_kind() {
        let room = Room::new(Settings::default());
        for kind in Kind::ALL {
            assert!(!room.is_open(), "before {kind:?}");
            room.reset(kind, Vec::new(), &[]);
        }
        assert!(room.is_open());
        assert!(room.unlisted().is_empty());
    }
}
