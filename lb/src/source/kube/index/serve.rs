//! From what tables want to what is served: who owns which VIP, what there is room for, and what stays where that fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::{
    desired::{BackendId, BackendSet, Base, Member, Vip, VipKey, keeps_datagrams},
    ranges::RangeSet,
};
use operator_api::LocalNode;

use super::{
    Index, Version,
    nodes::{Family, Nodes},
    room::Keyed,
    table::{TableError, To},
};

impl Index {
    /// Brings tables to what can be served of them, and those that this concerns.
    pub(super) fn resolve(&mut self, mut dirty: BTreeSet<Arc<str>>) {
        // Claims of a table only shrink here, so this ends.
        while !dirty.is_empty() {
            let mut turn: Vec<(i64, Arc<str>)> = Vec::with_capacity(dirty.len());
            for name in std::mem::take(&mut dirty) {
                if let Some(entry) = self.tables.get(&name) {
                    turn.push((entry.created, name));
                }
            }
            // The oldest has the first word where there is not room for all.
            turn.sort_unstable();
            for (_, name) in turn {
                let before = self.tables.get(&name).map(|entry| entry.claims.clone());
                self.settle(&name);
                let shrunk = before.is_some_and(|before| {
                    let wanted = self.tables.get(&name).map(|entry| {
                        let newest = entry.newest.as_ref().ok();
                        let keys = newest.map(|version| version.parsed.keys.iter());
                        keys.into_iter()
                            .flatten()
                            .chain(&entry.served)
                            .copied()
                            .collect::<BTreeSet<_>>()
                    });
                    wanted.is_some_and(|wanted| wanted != before)
                });
                if shrunk {
                    let mut others = self.disclaim(&name);
                    others.extend(self.claim(&name));
                    others.remove(&name);
                    dirty.extend(others);
                }
            }
        }
    }

    /// Serves the newest version of a table, or what was served last.
    fn settle(&mut self, name: &Arc<str>) {
        let Some(entry) = self.tables.get(name) else {
            return;
        };
        let newest = match (&entry.newest, &entry.refused) {
            (Ok(version), Some((revision, why))) if version.revision == *revision => Err(why.clone()),
            (Ok(version), _) => Ok(version.clone()),
            (Err(why), _) => Err(why.clone()),
        };
        let good = entry.good.clone().or_else(|| entry.serving.clone());
        let why = match newest.and_then(|version| self.serve(name, &version, true)) {
            Ok(()) => None,
            Err(why) => {
                let kept = good.and_then(|good| self.serve(name, &good, false).ok());
                if kept.is_none() {
                    self.give_way(name);
                }
                Some(why)
            }
        };
        if self.failing.get(name) != why.as_ref() {
            let failing = Arc::make_mut(&mut self.failing);
            match why {
                Some(why) => failing.insert(Arc::clone(name), why),
                None => failing.remove(name),
            };
            // Who reads of it must not think that it is programmed.
            self.sequence += 1;
        }
    }

    /// Puts a version of a table into the VIPs. `whole`: all of it or nothing; else without what is another's.
    fn serve(&mut self, name: &Arc<str>, version: &Version, whole: bool) -> Result<(), TableError> {
        let parsed = Arc::clone(&version.parsed);
        let mut keys = BTreeSet::new();
        for key in &parsed.keys {
            match self.taken(key, name) {
                None => {
                    keys.insert(*key);
                }
                Some(owner) if whole => {
                    let owner = Arc::clone(owner);
                    return Err(TableError::Taken { vip: *key, owner });
                }
                Some(_) => {}
            }
        }
        for address in &parsed.addresses {
            if self.node_addresses.contains(address) {
                return Err(TableError::IsNode { address: *address });
            }
            if self.own.sources.iter().any(|source| source.contains(address)) {
                return Err(TableError::IsSource { address: *address });
            }
        }
        let new = keys.iter().filter(|key| !self.vips.contains_key(*key)).count();
        if self.vips.len() + new > self.own.capacity.vips as usize {
            return Err(TableError::NoRoom {
                key: "vips",
                capacity: self.own.capacity.vips,
            });
        }
        let families: BTreeSet<Family> = parsed.addresses.iter().map(|address| Family::of(*address)).collect();
        let mut sets: BTreeMap<Family, Keyed> = BTreeMap::new();
        let mut room = Ok(());
        for family in families {
            match self.set_of(&parsed.to, family) {
                Ok(set) => {
                    sets.insert(family, set);
                }
                Err(why) => {
                    room = Err(why);
                    break;
                }
            }
        }
        let ranges = parsed.sources.as_ref().map(|(_, ranges)| Arc::clone(ranges));
        let had_ranges = room.is_ok()
            && match &ranges {
                Some(ranges) => {
                    room = self.room.acquire_ranges(ranges);
                    room.is_ok()
                }
                None => false,
            };
        if let Err(why) = room {
            sets.values().for_each(|set| self.room.release_set(set));
            if had_ranges && let Some(ranges) = &ranges {
                self.room.release_ranges(ranges);
            }
            return Err(why);
        }
        let bases: BTreeMap<Family, Arc<Base>> = sets
            .keys()
            .filter_map(|family| Some((*family, self.base_of(name, &parsed.to, *family)?)))
            .collect();
        let vip = |key: &VipKey| -> Option<Vip> {
            let family = Family::of(key.address);
            let mut vip = Vip::new(Arc::clone(&sets.get(&family)?.set));
            vip.base = bases.get(&family).cloned();
            vip.allowed_sources = parsed.sources.as_ref().map(|(networks, _)| Arc::clone(networks));
            // A node that keeps no flow records serves what it can without: a client by its hash, others by their slot.
            if self.own.keeps_records || !parsed.scheduler.keeps_state() {
                vip.scheduler = parsed.scheduler;
            }
            if self.own.keeps_records {
                vip.affinity_timeout_s = parsed.affinity_timeout_s;
            } else {
                vip.client_affinity = parsed.affinity_timeout_s.is_some();
            }
            // In the window after a change, datagrams go where flows lived before. A node that has left a Local Service has nobody
            // to take them, and so has a family without endpoints.
            let somebody = match &parsed.to {
                To::All { unserved, .. } => unserved
                    .iter()
                    .all(|other| Family::from(*other) != Family::of(key.address)),
                To::Some { .. } => false,
            };
            let is_recorded = vip.scheduler.counts() || vip.affinity_timeout_s.is_some();
            vip.each_datagram = !is_recorded && !keeps_datagrams(key.port);
            vip.keeps_datagrams = somebody && keeps_datagrams(key.port);
            vip.checks.clone_from(&parsed.checks);
            Some(vip)
        };
        let served: BTreeMap<VipKey, Vip> = keys.iter().filter_map(|key| Some((*key, vip(key)?))).collect();
        self.replace(name, version, served, sets.into_values().collect(), ranges);
        Ok(())
    }

    /// Puts a table's VIPs in the place of those that it had.
    fn replace(
        &mut self,
        name: &Arc<str>,
        version: &Version,
        served: BTreeMap<VipKey, Vip>,
        sets: Vec<Keyed>,
        ranges: Option<Arc<RangeSet>>,
    ) {
        let Some(entry) = self.tables.get_mut(name) else {
            return;
        };
        let before = std::mem::take(&mut entry.served);
        let old_sets = std::mem::replace(&mut entry.sets, sets);
        let old_ranges = std::mem::replace(&mut entry.ranges, ranges);
        entry.served = served.keys().copied().collect();
        let announced = entry.serving.as_ref().map(|serving| &serving.parsed.announced);
        let mut changed = announced != Some(&version.parsed.announced);
        entry.serving = Some(version.clone());
        for key in before.difference(&entry.served) {
            if self.holders.get(key) == Some(name) {
                self.holders.remove(key);
                self.vips.remove(key);
                changed = true;
            }
        }
        for (key, vip) in served {
            self.holders.insert(key, Arc::clone(name));
            if !self.vips.get(&key).is_some_and(|known| is_same(known, &vip)) {
                self.vips.insert(key, vip);
                changed = true;
            }
        }
        old_sets.iter().for_each(|set| self.room.release_set(set));
        if let Some(ranges) = &old_ranges {
            self.room.release_ranges(ranges);
        }
        let unconfirmed = match &entry.good {
            Some(good) => good.revision != version.revision,
            None => true,
        };
        if changed {
            self.sequence += 1;
        }
        if changed || unconfirmed {
            entry.since = self.sequence;
            self.unconfirmed.insert(Arc::clone(name));
        }
    }

    /// Takes from the VIPs what has become another's; the rest of what the table has there stays.
    fn give_way(&mut self, name: &Arc<str>) {
        let Some(entry) = self.tables.get(name) else {
            return;
        };
        let lost: Vec<VipKey> = entry
            .served
            .iter()
            .copied()
            .filter(|key| self.taken(key, name).is_some())
            .collect();
        let without = entry.good.is_none() && entry.serving.is_none();
        if without {
            return self.withdraw(name);
        }
        if let Some(entry) = self.tables.get_mut(name) {
            for key in &lost {
                entry.served.remove(key);
            }
        }
        for key in lost {
            if self.holders.get(&key) == Some(name) {
                self.holders.remove(&key);
                self.vips.remove(&key);
                self.sequence += 1;
            }
        }
    }

    /// Takes all that a table has out of the VIPs.
    pub(super) fn withdraw(&mut self, name: &Arc<str>) {
        let Some(entry) = self.tables.get_mut(name) else {
            return;
        };
        entry.serving = None;
        let sets = std::mem::take(&mut entry.sets);
        let ranges = entry.ranges.take();
        for key in std::mem::take(&mut entry.served) {
            if self.holders.get(&key) == Some(name) {
                self.holders.remove(&key);
                self.vips.remove(&key);
                self.sequence += 1;
            }
        }
        sets.iter().for_each(|set| self.room.release_set(set));
        if let Some(ranges) = &ranges {
            self.room.release_ranges(ranges);
        }
    }

    /// The backends for VIPs of a family, counted as used.
    fn set_of(&mut self, to: &To, family: Family) -> Result<Keyed, TableError> {
        let missing = |set: &Arc<str>| TableError::NoSet { set: Arc::clone(set) };
        let (nodes, set) = match to {
            To::All { set, unserved } => {
                let nodes = self.node_sets.get(set).ok_or_else(|| missing(set))?;
                let nobody = unserved.iter().any(|unserved| Family::from(*unserved) == family);
                let set = if nobody {
                    Keyed::new(BackendSet {
                        members: Vec::new(),
                        table_slots: None,
                    })
                } else {
                    nodes.all(family).clone()
                };
                (nodes, set)
            }
            To::Some {
                set,
                slots,
                nodes: local,
                transit: _,
            } => {
                let nodes = self.node_sets.get(set).ok_or_else(|| missing(set))?;
                (nodes, Keyed::new(some_of(nodes, local, *slots, family)?))
            }
        };
        let address = |id: &BackendId| {
            let name = id.0.rsplit_once('/').map_or(&*id.0, |(name, _)| name);
            let node = nodes.nodes.get(name)?;
            node.addresses()
                .find(|(other, _)| other == id)
                .map(|(_, address)| *address)
        };
        self.room.acquire_set(set, address)
    }
}

/// The nodes of a set that a table names, with their weights. One that is not in the set takes nothing, and the others do.
fn some_of(nodes: &Nodes, local: &[LocalNode], slots: usize, family: Family) -> Result<BackendSet, TableError> {
    let member = |node: &LocalNode| {
        let weight = match family {
            Family::V4 => node.ipv4,
            Family::V6 => node.ipv6,
        };
        let backend = nodes.nodes.get(&*node.name)?.backend(family)?.clone();
        (weight > 0).then_some(Member { backend, weight })
    };
    let mut members: Vec<Member> = local.iter().filter_map(member).collect();
    members.sort_unstable();
    members.dedup_by(|a, b| a.backend == b.backend);
    if members.len() > slots {
        return Err(TableError::TooFewSlots {
            slots,
            members: members.len(),
        });
    }
    Ok(BackendSet {
        members,
        table_slots: Some(slots),
    })
}

/// Whether two VIPs are the same; equal sets are one allocation, which saves looking into thousands of members.
fn is_same(a: &Vip, b: &Vip) -> bool {
    let Vip {
        set,
        base,
        limits,
        allowed_sources,
        too_big,
        clamp_mss,
        client_affinity,
        scheduler,
        affinity_timeout_s,
        each_datagram,
        keeps_datagrams,
        checks,
    } = a;
    Arc::ptr_eq(set, &b.set)
        && *base == b.base
        && *limits == b.limits
        && *allowed_sources == b.allowed_sources
        && *too_big == b.too_big
        && *clamp_mss == b.clamp_mss
        && *client_affinity == b.client_affinity
        && *scheduler == b.scheduler
        && *affinity_timeout_s == b.affinity_timeout_s
        && *each_datagram == b.each_datagram
        && *keeps_datagrams == b.keeps_datagrams
        && *checks == b.checks
}
