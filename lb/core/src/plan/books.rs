//! Who has which position in which map.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

use xdp_prog::abi::{BackendIndex, VipIndex, setting};

use super::{
    schedules::{Scheduled, Schedules},
    sets::RangeSets,
    tables::{Hold, Lookup, SetKey, Table},
    transit::Prior,
    write::MapId,
};
use crate::{
    config::Capacity,
    desired::{BackendId, BackendSet, Limits, VipKey},
    health::Unfit,
    match_table::Place,
    ranges::RangeSet,
    schedule::Scheduler,
};

/// Everything that the planner remembers beside the image.
#[derive(Clone, Debug)]
pub(super) struct Books {
    pub(super) vips: BTreeMap<VipKey, VipState>,
    /// VIP addresses with an address entry, and whether this node uses them itself.
    pub(super) addresses: BTreeMap<IpAddr, bool>,
    pub(super) backends: BTreeMap<BackendId, BackendState>,
    pub(super) backend_ids: BTreeMap<BackendIndex, BackendId>,
    pub(super) vip_indexes: Indexes,
    pub(super) backend_indexes: Indexes,
    pub(super) lookup: Lookup,
    pub(super) range_sets: RangeSets,
    pub(super) schedules: Schedules,
    pub(super) settings: [Option<Arc<RangeSet>>; setting::COUNT as usize],
    /// Least slots of a VIP's table, from before this planner's maps.
    pub(super) grown: Arc<BTreeMap<VipKey, usize>>,
    /// Slots of VIPs that the maps before these had in transit.
    pub(super) prior: Arc<BTreeMap<VipKey, Prior>>,
    /// VIPs whose change of backends waits for room.
    pub(super) waiting: BTreeSet<VipKey>,
    /// Members that took no new flows in the last plan.
    pub(super) unfit: BTreeSet<Unfit>,
    /// Backends at which no VIP kept UDP flows in the last plan.
    pub(super) without_datagrams: BTreeSet<BackendId>,
    /// See [`super::draft::Draft`].
    pub(super) lines_in_use: BTreeSet<BackendIndex>,
    /// What an interrupted plan left that is nobody's: the next plan clears it.
    pub(super) leftovers: Leftovers,
    /// What undoes the changes of `vips` and `addresses` since the last [`Books::commit`]: those are too many to be copied for each
    /// plan.
    undo: Vec<Undo>,
}

/// See [`Books::leftovers`].
#[derive(Clone, Debug, Default)]
pub(super) struct Leftovers {
    /// Second copies of entries, and the word that clears each.
    pub(super) ways: Vec<(MapId, Place, u32)>,
    /// Words of options that no VIP has.
    pub(super) options: Vec<(VipIndex, Range<u32>)>,
}

#[derive(Clone, Debug)]
enum Undo {
    Vip(VipKey, Option<Box<VipState>>),
    Address(IpAddr, Option<bool>),
}

#[derive(Clone, Debug)]
pub(super) struct VipState {
    pub(super) index: VipIndex,
    pub(super) set: SetKey,
    /// The set as it was last desired; equal to the other, and mostly the same one.
    pub(super) desired_set: Arc<BackendSet>,
    pub(super) table: Table,
    /// Most slots that its table has had: tables only grow while the daemon runs.
    pub(super) most_slots: usize,
    pub(super) limits: Limits,
    pub(super) allowed_sources: Option<Arc<[ipnet::IpNet]>>,
    pub(super) range_set: Option<Arc<RangeSet>>,
    pub(super) clamp_mss: bool,
    /// The client's address alone chooses the slot.
    pub(super) client_affinity: bool,
    pub(super) scheduler: Scheduler,
    pub(super) affinity_timeout_s: Option<u32>,
    pub(super) each_datagram: bool,
    pub(super) scheduled: Option<Scheduled>,
    pub(super) keeps_datagrams: bool,
}

impl VipState {
    /// By what it has its table.
    pub(super) fn hold(&self) -> Hold {
        if self.table.is_wide {
            Hold::Wide(self.table)
        } else {
            Hold::Set(self.set.clone())
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BackendState {
    pub(super) index: BackendIndex,
    pub(super) address: IpAddr,
    /// Nothing desired names it any more; flows may still live there.
    pub(super) has_departed: bool,
}

impl Books {
    pub(super) fn new(capacity: &Capacity) -> Self {
        Self {
            vips: BTreeMap::new(),
            addresses: BTreeMap::new(),
            backends: BTreeMap::new(),
            backend_ids: BTreeMap::new(),
            vip_indexes: Indexes::new(0, capacity.vips),
            // Index 0 is *no backend*.
            backend_indexes: Indexes::new(1, capacity.backend_lines()),
            lookup: Lookup::new(capacity.table_segments),
            range_sets: RangeSets::new(capacity.ranges),
            schedules: Schedules::default(),
            settings: Default::default(),
            grown: Arc::default(),
            prior: Arc::default(),
            waiting: BTreeSet::new(),
            unfit: BTreeSet::new(),
            without_datagrams: BTreeSet::new(),
            lines_in_use: BTreeSet::new(),
            leftovers: Leftovers::default(),
            undo: Vec::new(),
        }
    }

    /// Puts a VIP's state in place, or takes it away; what was there.
    pub(super) fn set_vip(&mut self, key: VipKey, state: Option<VipState>) -> Option<VipState> {
        let before = match state {
            Some(state) => self.vips.insert(key, state),
            None => self.vips.remove(&key),
        };
        self.undo.push(Undo::Vip(key, before.clone().map(Box::new)));
        before
    }

    /// As [`Self::set_vip`], for an address.
    pub(super) fn set_address(&mut self, address: IpAddr, own: Option<bool>) {
        let before = match own {
            Some(own) => self.addresses.insert(address, own),
            None => self.addresses.remove(&address),
        };
        self.undo.push(Undo::Address(address, before));
    }

    /// A copy of all but the VIPs and their addresses, for [`Self::roll_back`].
    pub(super) fn rest(&mut self) -> Self {
        let vips = std::mem::take(&mut self.vips);
        let addresses = std::mem::take(&mut self.addresses);
        let rest = self.clone();
        (self.vips, self.addresses) = (vips, addresses);
        rest
    }

    /// Forgets what could be undone.
    pub(super) fn commit(&mut self) {
        self.undo.clear();
    }

    /// Goes back to what was when `rest` was copied.
    pub(super) fn roll_back(&mut self, rest: Self) {
        let mut vips = std::mem::take(&mut self.vips);
        let mut addresses = std::mem::take(&mut self.addresses);
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            match step {
                Undo::Vip(key, Some(state)) => drop(vips.insert(key, *state)),
                Undo::Vip(key, None) => drop(vips.remove(&key)),
                Undo::Address(address, Some(own)) => drop(addresses.insert(address, own)),
                Undo::Address(address, None) => drop(addresses.remove(&address)),
            }
        }
        *self = Self {
            vips,
            addresses,
            ..rest
        };
    }
}

/// Positions to give out. What was freed longest ago is given again first, and only when no position is fresh: whoever looks at a
/// counter late still sees it under the old owner's position.
#[derive(Clone, Debug)]
pub(super) struct Indexes {
    fresh: u32,
    end: u32,
    /// With the tick in which each was freed; `None`: before these books.
    freed: VecDeque<(u32, Option<u32>)>,
}

impl Indexes {
    fn new(first: u32, end: u32) -> Self {
        Self {
            fresh: first,
            end,
            freed: VecDeque::new(),
        }
    }

    /// From now on there are so many, none of them given out beyond.
    pub(super) fn end_at(&mut self, end: u32) {
        self.end = end;
        self.fresh = self.fresh.min(end);
        self.freed.retain(|(index, _)| *index < end);
    }

    /// With these positions given out. Who had the others, and when, is not known any more; a record that names one of them is of a
    /// flow whose backend is gone.
    pub(super) fn with(first: u32, end: u32, taken: &BTreeSet<u32>) -> Self {
        let fresh = taken.last().map_or(first, |last| last + 1);
        let freed = (first..fresh).filter(|index| !taken.contains(index));
        Self {
            fresh,
            end,
            freed: freed.map(|index| (index, None)).collect(),
        }
    }

    /// A position that nobody has had for `rest` ticks.
    pub(super) fn take(&mut self, now: u32, rest: u32) -> Option<u32> {
        if self.fresh < self.end {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        let (_, freed) = self.freed.front()?;
        if freed.is_some_and(|freed| now.wrapping_sub(freed) < rest) {
            return None;
        }
        self.freed.pop_front().map(|(index, _)| index)
    }

    pub(super) fn release(&mut self, index: u32, now: u32) {
        self.freed.push_back((index, Some(now)));
    }

    /// Positions that have an owner.
    pub(super) fn in_use(&self, first: u32) -> usize {
        (self.fresh - first) as usize - self.freed.len()
    }
}
