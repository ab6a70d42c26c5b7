//! What tables use together: backend sets and source ranges, each counted once, and whether there is room for more.
//!
//! Never counts what nobody uses: the maps of an LB node have room for so much and no more.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    sync::Arc,
};

use lb_core::{
    config::Capacity,
    desired::{Backend, BackendId, BackendSet},
    ranges::RangeSet,
};

use super::table::TableError;

/// A set, compared by a digest first: those with thousands of members mostly differ in one.
#[derive(Clone, Debug)]
pub(super) struct Keyed {
    digest: u64,
    pub(super) set: Arc<BackendSet>,
}

impl Keyed {
    pub(super) fn new(set: BackendSet) -> Self {
        // The hasher of `new` has no random keys; the digest never leaves the process.
        let mut hasher = DefaultHasher::new();
        set.hash(&mut hasher);
        Self {
            digest: hasher.finish(),
            set: Arc::new(set),
        }
    }
}

impl Ord for Keyed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.digest.cmp(&other.digest).then_with(|| {
            if Arc::ptr_eq(&self.set, &other.set) {
                Ordering::Equal
            } else {
                self.set.cmp(&other.set)
            }
        })
    }
}

impl PartialOrd for Keyed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Keyed {}

#[derive(Clone, Debug)]
pub(super) struct Room {
    capacity: Capacity,
    sets: BTreeMap<Keyed, usize>,
    /// Every backend of a set in use, and how many sets name it.
    backends: BTreeMap<BackendId, (Backend, usize)>,
    ranges: BTreeMap<Arc<RangeSet>, usize>,
    ranges_in_use: usize,
}

impl Room {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            sets: BTreeMap::new(),
            backends: BTreeMap::new(),
            ranges: BTreeMap::new(),
            ranges_in_use: 0,
        }
    }

    pub(super) fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// Every backend of a set in use.
    pub(super) fn backends(&self) -> BTreeMap<BackendId, Backend> {
        let backends = self.backends.iter();
        backends
            .map(|(id, (backend, _))| (id.clone(), backend.clone()))
            .collect()
    }

    pub(super) fn backend_count(&self) -> usize {
        self.backends.len()
    }

    /// One user more of a set; the one that is known, where one is equal. `address` gives the address of a member.
    pub(super) fn acquire_set(
        &mut self,
        keyed: Keyed,
        address: impl Fn(&BackendId) -> Option<IpAddr>,
    ) -> Result<Keyed, TableError> {
        if let Some(users) = self.sets.get_mut(&keyed) {
            *users += 1;
            let known = self.sets.get_key_value(&keyed).map(|(known, _)| known.clone());
            return Ok(known.unwrap_or(keyed));
        }
        let set = &keyed.set;
        let is_new = |id: &&BackendId| !self.backends.contains_key(*id);
        let new = set.members.iter().map(|member| &member.backend).filter(is_new).count();
        if self.backends.len() + new > self.capacity.backends as usize {
            return Err(TableError::NoRoom {
                key: "backends",
                capacity: self.capacity.backends,
            });
        }
        for member in &set.members {
            // A member without an address is in no complete set: the caller has none such.
            let Some(address) = address(&member.backend) else {
                continue;
            };
            let entry = self.backends.entry(member.backend.clone());
            entry.or_insert((Backend { address }, 0)).1 += 1;
        }
        self.sets.insert(keyed.clone(), 1);
        Ok(keyed)
    }

    pub(super) fn release_set(&mut self, keyed: &Keyed) {
        let Some(users) = self.sets.get_mut(keyed) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        self.sets.remove(keyed);
        for member in &keyed.set.members {
            if let Some((_, sets)) = self.backends.get_mut(&member.backend) {
                *sets -= 1;
                if *sets == 0 {
                    self.backends.remove(&member.backend);
                }
            }
        }
    }

    /// Brings the addresses of backends in use to what node sets say now; whether any changed.
    pub(super) fn readdress<'a>(&mut self, addresses: impl Iterator<Item = &'a (BackendId, IpAddr)>) -> bool {
        let mut changed = false;
        for (id, address) in addresses {
            if let Some((backend, _)) = self.backends.get_mut(id)
                && backend.address != *address
            {
                backend.address = *address;
                changed = true;
            }
        }
        changed
    }

    pub(super) fn acquire_ranges(&mut self, set: &Arc<RangeSet>) -> Result<(), TableError> {
        if let Some(users) = self.ranges.get_mut(set) {
            *users += 1;
            return Ok(());
        }
        let needed = self.ranges_in_use + set.padded_len();
        if needed > self.capacity.ranges as usize {
            return Err(TableError::NoRoom {
                key: "ranges",
                capacity: self.capacity.ranges,
            });
        }
        self.ranges_in_use = needed;
        self.ranges.insert(Arc::clone(set), 1);
        Ok(())
    }

    pub(super) fn release_ranges(&mut self, set: &Arc<RangeSet>) {
        let Some(users) = self.ranges.get_mut(set) else { return };
        *users -= 1;
        if *users == 0 {
            self.ranges.remove(set);
            self.ranges_in_use -= set.padded_len();
        }
    }
}
