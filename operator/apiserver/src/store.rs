//! Objects, their history and the one counter of revisions.
//!
//! Never judges what is written: it numbers, remembers a bounded past, and tells what changed since.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use hyper::body::Bytes;
use serde_json::Value;

use crate::failure::Failure;
use crate::resource::Registry;
use crate::service::{Allocations, Cluster};

/// Namespace (empty: cluster-scoped) and name.
pub(crate) type Key = (String, String);

/// An object as written once; never changed, only replaced.
pub(crate) struct Stored {
    pub(crate) value: Value,
    pub(crate) revision: u64,
    json: OnceLock<Bytes>,
}

impl Stored {
    /// An object that is not in the store: of a dry run.
    pub(crate) fn apart(value: Value, revision: u64) -> Self {
        Self {
            value,
            revision,
            json: OnceLock::new(),
        }
    }

    /// As JSON, made once for all who ask.
    pub(crate) fn json(&self) -> Bytes {
        self.json.get_or_init(|| Bytes::from(self.value.to_string())).clone()
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    /// It came to be.
    Added,
    /// It was written.
    Modified,
    /// It is gone.
    Deleted,
}

/// One change of one object.
pub(crate) struct Change {
    pub(crate) kind: ChangeKind,
    pub(crate) key: Key,
    pub(crate) revision: u64,
    /// The object after the change; of a deletion: as it was last, with the revision of its deletion.
    pub(crate) object: Arc<Stored>,
    /// The object before.
    pub(crate) previous: Option<Arc<Stored>>,
}

/// Objects of one kind.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) objects: BTreeMap<Key, Arc<Stored>>,
    history: VecDeque<Arc<Change>>,
    /// Changes up to this revision are forgotten.
    compacted: u64,
}

impl Table {
    /// Changes after `revision`, oldest first.
    ///
    /// # Errors
    /// 410 when some of them are forgotten.
    pub(crate) fn since(&self, revision: u64) -> Result<impl Iterator<Item = &Arc<Change>>, Failure> {
        if revision < self.compacted {
            return Err(Failure::expired(format!(
                "too old resource version: {revision} ({})",
                self.compacted
            )));
        }
        let from = self.history.partition_point(|change| change.revision <= revision);
        Ok(self.history.range(from..))
    }

    /// All objects as they were at `revision`.
    pub(crate) fn at(&self, revision: u64) -> Result<BTreeMap<Key, Arc<Stored>>, Failure> {
        let mut objects = self.objects.clone();
        let newer: Vec<&Arc<Change>> = self.since(revision)?.collect();
        for change in newer.into_iter().rev() {
            match &change.previous {
                Some(previous) => objects.insert(change.key.clone(), Arc::clone(previous)),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    fn remember(&mut self, change: Change, limit: usize) {
        self.history.push_back(Arc::new(change));
        while self.history.len() > limit {
            if let Some(forgotten) = self.history.pop_front() {
                self.compacted = forgotten.revision;
            }
        }
    }
}

/// Everything there is.
pub(crate) struct State {
    pub(crate) registry: Registry,
    pub(crate) tables: BTreeMap<String, Table>,
    /// Of the last write to anything.
    pub(crate) revision: u64,
    /// Cluster IPs and node ports in use.
    pub(crate) allocations: Allocations,
    /// uid -> table and key.
    pub(crate) by_uid: BTreeMap<String, (String, Key)>,
    /// uid of an owner -> its dependents.
    pub(crate) dependents: BTreeMap<String, BTreeSet<(String, Key)>>,
    /// Objects whose owner is gone, or never was: the collector looks at them.
    pub(crate) suspects: BTreeSet<(String, Key)>,
    /// Objects that are marked as deleted.
    pub(crate) marked: BTreeSet<(String, Key)>,
    /// Changes remembered for each kind.
    history_limit: usize,
    /// Everything before this is forgotten, of all tables; also of those that come to be later.
    compacted: u64,
    serial: u64,
}

impl State {
    pub(crate) fn new(registry: Registry, history_limit: usize, cluster: Cluster) -> Self {
        Self {
            registry,
            tables: BTreeMap::new(),
            revision: 1,
            allocations: Allocations::new(cluster),
            by_uid: BTreeMap::new(),
            dependents: BTreeMap::new(),
            suspects: BTreeSet::new(),
            marked: BTreeSet::new(),
            history_limit,
            compacted: 0,
            serial: 0,
        }
    }

    pub(crate) fn table(&mut self, name: &str) -> &mut Table {
        let compacted = self.compacted;
        if !self.tables.contains_key(name) {
            self.tables.insert(
                name.to_owned(),
                Table {
                    compacted,
                    ..Table::default()
                },
            );
        }
        self.tables.entry(name.to_owned()).or_default()
    }

    pub(crate) fn find(&self, table: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.tables
            .get(table)
            .and_then(|table| table.objects.get(&key))
            .cloned()
    }

    /// Forgets all history: whoever watches from an older revision must list again.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        for table in self.tables.values_mut() {
            table.history.clear();
            table.compacted = self.compacted;
        }
    }

    /// A number that looks random and differs each time.
    pub(crate) fn number(&mut self) -> u64 {
        // splitmix64
        self.serial = self.serial.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.serial;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A uid that no object had before.
    pub(crate) fn uid(&mut self) -> String {
        let (a, b) = (self.number(), self.number());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xfff,
            0x8000 | ((b >> 48) & 0x3fff),
            b & 0xffff_ffff_ffff
        )
    }

    /// Writes an object, with the next revision in it.
    pub(crate) fn put(&mut self, table: &str, key: Key, mut value: Value) -> Arc<Stored> {
        let previous = self.take_out(table, &key);
        self.revision += 1;
        let revision = self.revision;
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        let stored = Arc::new(Stored {
            value,
            revision,
            json: OnceLock::new(),
        });
        self.link(table, &key, &stored.value);
        let limit = self.history_limit;
        let kind = if previous.is_some() {
            ChangeKind::Modified
        } else {
            ChangeKind::Added
        };
        let rows = self.table(table);
        rows.objects.insert(key.clone(), Arc::clone(&stored));
        rows.remember(
            Change {
                kind,
                key,
                revision,
                object: Arc::clone(&stored),
                previous,
            },
            limit,
        );
        stored
    }

    /// Removes an object; the answer is as it was last, with the revision of its deletion. `last`: what it became in the very
    /// write that removes it.
    pub(crate) fn remove(&mut self, table: &str, key: &Key, last: Option<Value>) -> Option<Arc<Stored>> {
        let previous = self.take_out(table, key)?;
        self.table(table).objects.remove(key);
        if let Some(dependents) = previous.value["metadata"]["uid"]
            .as_str()
            .and_then(|uid| self.dependents.get(uid))
        {
            self.suspects.extend(dependents.iter().cloned());
        }
        self.revision += 1;
        let revision = self.revision;
        let mut value = last.unwrap_or_else(|| previous.value.clone());
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        let object = Arc::new(Stored {
            value,
            revision,
            json: OnceLock::new(),
        });
        let limit = self.history_limit;
        let change = Change {
            kind: ChangeKind::Deleted,
            key: key.clone(),
            revision,
            object: Arc::clone(&object),
            previous: Some(previous),
        };
        self.table(table).remember(change, limit);
        Some(object)
    }

    fn take_out(&mut self, table: &str, key: &Key) -> Option<Arc<Stored>> {
        let previous = self.tables.get(table)?.objects.get(key).cloned()?;
        if let Some(uid) = previous.value["metadata"]["uid"].as_str() {
            self.by_uid.remove(uid);
        }
        for owner in owners(&previous.value) {
            if let Some(dependents) = self.dependents.get_mut(owner) {
                dependents.remove(&(table.to_owned(), key.clone()));
                if dependents.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
        if !previous.value["metadata"]["deletionTimestamp"].is_null() {
            self.marked.remove(&(table.to_owned(), key.clone()));
        }
        if table == "services" {
            self.allocations.release(&previous.value);
        }
        Some(previous)
    }

    fn link(&mut self, table: &str, key: &Key, value: &Value) {
        if let Some(uid) = value["metadata"]["uid"].as_str() {
            self.by_uid.insert(uid.to_owned(), (table.to_owned(), key.clone()));
        }
        for owner in owners(value) {
            self.dependents
                .entry(owner.to_owned())
                .or_default()
                .insert((table.to_owned(), key.clone()));
            if !self.by_uid.contains_key(owner) {
                self.suspects.insert((table.to_owned(), key.clone()));
            }
        }
        if !value["metadata"]["deletionTimestamp"].is_null() {
            self.marked.insert((table.to_owned(), key.clone()));
        }
        if table == "services" {
            self.allocations.take(value);
        }
    }
}

/// uids of an object's owners.
pub(crate) fn owners(value: &Value) -> impl Iterator<Item = &str> {
    let references = value["metadata"]["ownerReferences"].as_array();
    references
        .into_iter()
        .flatten()
        .filter_map(|owner| owner["uid"].as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        ("a".into(), name.into())
    }

    #[test]
    fn the_past_is_read_back_until_it_is_forgotten() {
        let mut state = State::new(Registry::default(), 3, Cluster::Dual);
        let first = state.put("t", key("x"), json!({"metadata": {}, "n": 1})).revision;
        let second = state.put("t", key("x"), json!({"metadata": {}, "n": 2})).revision;
        state.put("t", key("y"), json!({"metadata": {}}));
        state.remove("t", &key("x"), None);
        let then = state.table("t").at(second).unwrap();
        assert_eq!(then.len(), 1);
        assert_eq!(then[&key("x")].value["n"], 2);
        assert_eq!(state.table("t").since(first).unwrap().count(), 3);
        state.put("t", key("z"), json!({"metadata": {}}));
        let Err(refused) = state.table("t").since(first).map(Iterator::count) else {
            panic!("not forgotten")
        };
        assert_eq!((refused.code, refused.reason), (410, "Expired"));
    }

    #[test]
    fn a_deletion_has_a_revision_of_its_own() {
        let mut state = State::new(Registry::default(), 10, Cluster::Dual);
        let put = state.put("t", key("x"), json!({"metadata": {}})).revision;
        let gone = state.remove("t", &key("x"), None).unwrap();
        assert_eq!(gone.value["metadata"]["resourceVersion"], (put + 1).to_string());
        assert!(state.remove("t", &key("x"), None).is_none());
    }
}
