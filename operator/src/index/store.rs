//! Objects of one kind by their key, each in its newest version.
//!
//! Never goes back: neither an older version of an object nor one of an earlier life of its name takes its place, and what was
//! deleted does not come back because an answer was late.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ServiceKey;

/// Most deleted objects that are remembered, so that a late answer does not bring them back: far more than writes are under way.
/// About 100 B each.
const MAX_GONE: usize = 4_096;

/// Namespace and name of any object; the namespace is empty where it has none.
pub(super) type Key = ServiceKey;

/// A `resourceVersion`, where it is a number: those of one resource can be compared (KEP-5504).
pub(super) fn version_of(resource_version: Option<&str>) -> Option<u128> {
    resource_version?.parse().ok()
}

/// Which life of an object, which version, and since when it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    uid: String,
    version: Option<u128>,
    seen: Timestamp,
}

impl Stamp {
    pub(super) fn of(metadata: &ObjectMeta, now: Timestamp) -> Self {
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            version: version_of(metadata.resource_version.as_deref()),
            seen: now,
        }
    }

    /// Of the same object or of another with the same name: versions can be compared either way.
    fn is_newer_than(&self, other: Option<u128>) -> bool {
        other.zip(self.version).is_none_or(|(other, version)| version > other)
    }
}

/// Objects of a kind, or what is needed of them.
#[derive(Debug)]
pub(super) struct Store<V> {
    held: BTreeMap<Key, (Stamp, V)>,
    gone: BTreeMap<String, Option<u128>>,
    gone_in_order: VecDeque<String>,
    /// It was reset at least once.
    listed: bool,
}

impl<V> Default for Store<V> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
            gone: BTreeMap::new(),
            gone_in_order: VecDeque::new(),
            listed: false,
        }
    }
}

impl<V> Store<V> {
    /// Whether an object would be taken: it is newer than what is known, or one of the two has no comparable version.
    pub(super) fn takes(&self, key: &Key, stamp: &Stamp) -> bool {
        let deleted = self.gone.get(&stamp.uid);
        let known = self.held.get(key);
        deleted.is_none_or(|deleted| stamp.is_newer_than(*deleted))
            && known.is_none_or(|(known, _)| stamp.is_newer_than(known.version))
    }

    /// Puts an object in the place of its earlier version, whatever that was; returns it.
    pub(super) fn put(&mut self, key: Key, mut stamp: Stamp, value: V) -> Option<V> {
        match self.held.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert((stamp, value));
                None
            }
            Entry::Occupied(mut known) => {
                if known.get().0.uid == stamp.uid {
                    stamp.seen = known.get().0.seen;
                }
                Some(known.insert((stamp, value)).1)
            }
        }
    }

    /// Takes an object out that was deleted, and returns it. `None`: it was not there, or there is another life of its name.
    pub(super) fn delete(&mut self, key: &Key, stamp: Stamp) -> Option<V> {
        let known = self.held.get(key).map(|(known, _)| known.uid.as_str());
        let same = known.is_some_and(|known| stamp.uid.is_empty() || known.is_empty() || known == stamp.uid);
        self.remember(stamp);
        if same {
            self.held.remove(key).map(|(_, old)| old)
        } else {
            None
        }
    }

    /// A list has an object: whatever was heard of its deletion, it is there.
    pub(super) fn forget_deletion(&mut self, stamp: &Stamp) {
        self.gone.remove(&stamp.uid);
    }

    /// Takes out what a list of all does not have.
    pub(super) fn keep(&mut self, listed: &BTreeSet<Key>) -> Vec<(Key, V)> {
        self.listed = true;
        let gone = self.held.extract_if(.., |key, _| !listed.contains(key));
        gone.map(|(key, (_, old))| (key, old)).collect()
    }

    /// Whether there was a list of all.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn by_key(&self, key: &Key) -> Option<&V> {
        self.held.get(key).map(|(_, value)| value)
    }

    /// The version of an object, where it has one that can be compared.
    pub(super) fn version(&self, key: &Key) -> Option<u128> {
        self.held.get(key)?.0.version
    }

    /// Since when this life of an object is known.
    pub(super) fn seen(&self, key: &Key) -> Option<Timestamp> {
        self.held.get(key).map(|(stamp, _)| stamp.seen)
    }

    /// All, in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &V)> {
        self.held.iter().map(|(key, (_, value))| (key, value))
    }

    fn remember(&mut self, stamp: Stamp) {
        if stamp.uid.is_empty() {
            return;
        }
        if self.gone.insert(stamp.uid.clone(), stamp.version).is_none() {
            self.gone_in_order.push_back(stamp.uid);
        }
        while self.gone_in_order.len() > MAX_GONE {
            if let Some(oldest) = self.gone_in_order.pop_front() {
                self.gone.remove(&oldest);
            }
        }
    }
}
