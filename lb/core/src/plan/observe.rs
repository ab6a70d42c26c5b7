//! What the planner knows, for whoever shows it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use xdp_prog::abi::{Activity, BackendIndex, BackendLine, SlotWord, VipIndex};

use super::{
    Planner, Table,
    books::VipState,
    transit::{backends_named, words},
};
use crate::{
    desired::{BackendId, BackendSet, VipKey},
    health::Unfit,
    schedule::Scheduler,
    transit::elapsed,
};

/// A VIP and its table.
#[derive(Clone, Copy, Debug)]
pub struct VipInfo<'a> {
    /// What clients dial.
    pub key: VipKey,
    /// Its position in `VIP_COUNTERS`, `VIP_OPTIONS` and `LIMITS`.
    pub index: VipIndex,
    /// Its lookup table.
    pub table: Table,
    /// VIPs that share the table, itself included.
    pub shared_by: usize,
    /// Where its flows go.
    pub set: &'a Arc<BackendSet>,
    /// Who of the set takes none of its new flows, for all that is known of their health.
    pub unfit: Option<&'a Unfit>,
    /// A client's address alone chooses the slot.
    pub client_affinity: bool,
    /// How the backend of a new flow is chosen.
    pub scheduler: Scheduler,
    /// How long a client's new flows go where its last ones went, in seconds.
    pub affinity_timeout_s: Option<u32>,
}

/// A backend and its line.
#[derive(Clone, Copy, Debug)]
pub struct BackendInfo<'a> {
    /// Who it is.
    pub id: &'a BackendId,
    /// Its position in `BACKENDS` and `BACKEND_COUNTERS`.
    pub index: BackendIndex,
    /// Where it is.
    pub address: IpAddr,
    /// It is in no set any more, and kept for the flows that may live there.
    pub has_departed: bool,
    /// How it is reached.
    pub line: BackendLine,
}

/// What may still live at a backend although new flows go elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Slots whose flows of before go there.
    pub slots: usize,
    /// Of them, those of which a packet has gone elsewhere than to the new backend lately.
    pub active: usize,
    /// Ticks since the last such packet; `None`: none has been seen.
    pub silent: Option<u32>,
    /// A table sends something there, or a record may.
    pub is_named: bool,
}

impl Planner {
    /// What may still live where, from all tables, by position: `activity` reads what packets noted, and `lately` is how many ticks
    /// before `now` that is.
    pub fn remains(
        &self,
        activity: impl Fn(Table, usize) -> Activity,
        (now, lately): (u32, u32),
    ) -> BTreeMap<BackendIndex, Remains> {
        let named = backends_named(&self.books.lookup, &self.image).into_iter();
        let mut all: BTreeMap<BackendIndex, Remains> = named
            .map(|backend| {
                let remains = Remains {
                    is_named: true,
                    ..Remains::default()
                };
                (backend, remains)
            })
            .collect();
        for (table, wide) in &self.books.lookup.wide {
            for (slot, word) in words(&self.image, *table).into_iter().map(SlotWord).enumerate() {
                let of = |flag, backend| (word.has(flag) && backend != word.cur()).then_some(backend);
                let base = of(SlotWord::TCP, word.base());
                let udp_base = of(SlotWord::LEARNING, word.udp_base()).filter(|backend| Some(*backend) != base);
                for backend in [base, udp_base].into_iter().flatten() {
                    let noted = activity(*table, slot);
                    // When a slot enters transit it is written as if a packet had come: that is none.
                    let began = wide.began_at(slot);
                    let seen = [noted.tcp(), noted.udp()].into_iter().filter(|tick| *tick != began);
                    let silent = seen.map(|tick| elapsed(now, tick)).min();
                    let remains = all.entry(BackendIndex(backend)).or_default();
                    remains.slots += 1;
                    remains.active += usize::from(silent.is_some_and(|silent| silent <= lately));
                    remains.silent = [remains.silent, silent].into_iter().flatten().min();
                }
            }
        }
        all
    }

    /// All VIPs, in order.
    pub fn vips(&self) -> impl Iterator<Item = VipInfo<'_>> {
        let sharing = self.books.lookup.sharing();
        self.books.vips.iter().map(move |(key, state)| {
            let shared_by = sharing.get(&state.table).copied().unwrap_or_default();
            info(*key, state, shared_by)
        })
    }

    /// One VIP.
    pub fn vip(&self, key: &VipKey) -> Option<VipInfo<'_>> {
        let state = self.books.vips.get(key)?;
        Some(info(*key, state, self.books.lookup.shared_by(state.table)))
    }

    /// The VIP at a position. Looks through all of them.
    pub fn vip_at(&self, index: VipIndex) -> Option<VipKey> {
        self.books
            .vips
            .iter()
            .find(|(_, state)| state.index == index)
            .map(|(key, _)| *key)
    }

    /// All backends, in order.
    pub fn backends(&self) -> impl Iterator<Item = BackendInfo<'_>> {
        self.books.backends.iter().map(|(id, state)| BackendInfo {
            id,
            index: state.index,
            address: state.address,
            has_departed: state.has_departed,
            line: self.image.line(u32::from(state.index.0)),
        })
    }

    /// A backend's position.
    pub fn backend_index(&self, id: &BackendId) -> Option<BackendIndex> {
        self.books.backends.get(id).map(|state| state.index)
    }

    /// The backend at a position.
    pub fn backend_at(&self, index: BackendIndex) -> Option<&BackendId> {
        self.books.backend_ids.get(&index)
    }

    /// Slots of a table by the backend that takes their new flows, as they stand in the image.
    pub fn shares(&self, table: Table) -> BTreeMap<BackendId, usize> {
        let mut counts = BTreeMap::<u16, usize>::new();
        for slot in self.image.targets(table) {
            *counts.entry(slot).or_default() += 1;
        }
        counts
            .into_iter()
            .filter_map(|(index, slots)| Some((self.backend_at(BackendIndex(index))?.clone(), slots)))
            .collect()
    }

    /// Whether a VIP's flows may live elsewhere than its set says, or a change waits for room: plan again in time, so that it ends.
    pub fn is_in_transit(&self) -> bool {
        !self.books.lookup.wide.is_empty() || !self.books.waiting.is_empty()
    }

    /// Whether a VIP's flows are recorded always: they may live at whoever was in its set.
    pub fn is_scheduled(&self) -> bool {
        self.books.vips.values().any(|vip| vip.scheduled.is_some())
    }

    /// Whether there are backends that nothing desired names any more.
    pub fn has_departed(&self) -> bool {
        self.books.backends.values().any(|backend| backend.has_departed)
    }

    /// Distinct lookup tables in use.
    pub fn tables(&self) -> usize {
        self.books.lookup.tables()
    }

    /// Positions, units of slot memory and ranges in use, and match entries, for who wants to see that nothing leaks.
    pub fn usage(&self) -> Usage {
        Usage {
            vips: self.books.vip_indexes.in_use(0),
            backends: self.books.backend_indexes.in_use(1),
            entries: self.entries.len(),
            table_units: self.books.lookup.units_in_use(),
            segments: self.image.segments(),
            ranges: self.books.range_sets.in_use(),
        }
    }
}

/// What is in use of what the maps were made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// VIPs.
    pub vips: usize,
    /// Backends.
    pub backends: usize,
    /// Match entries of both families, those of VIP addresses included.
    pub entries: usize,
    /// Units of slot memory, the empty table's included.
    pub table_units: u32,
    /// Segments of slot memory that there are.
    pub segments: u32,
    /// Ranges, padding included.
    pub ranges: u32,
}

fn info(key: VipKey, state: &VipState, shared_by: usize) -> VipInfo<'_> {
    VipInfo {
        key,
        index: state.index,
        table: state.table,
        shared_by,
        set: &state.set.set,
        unfit: state.set.unfit.as_ref(),
        client_affinity: state.client_affinity,
        scheduler: state.scheduler,
        affinity_timeout_s: state.affinity_timeout_s,
    }
}
