//! Who has which position in which map.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use xdp_prog::abi::{BackendIndex, VipIndex, setting};

use super::{
    sets::RangeSets,
    tables::{Lookup, SetKey, Table},
};
use crate::{
    config::Capacity,
    desired::{BackendId, BackendSet, Limits, VipKey},
    ranges::RangeSet,
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
    pub(super) settings: [Option<Arc<RangeSet>>; setting::COUNT as usize],
    /// Least slots of a VIP's table, from before this planner's maps.
    pub(super) grown: Arc<BTreeMap<VipKey, usize>>,
    /// See [`super::draft::Draft`].
    pub(super) lines_in_use: BTreeSet<BackendIndex>,
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
    pub(super) client_affinity: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BackendState {
    pub(super) index: BackendIndex,
    pub(super) address: IpAddr,
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
            settings: Default::default(),
            grown: Arc::default(),
            lines_in_use: BTreeSet::new(),
        }
    }
}

/// Positions to give out. What was freed longest ago is given again first, and only when no position is fresh: whoever looks at a
/// counter late still sees it under the old owner's position.
#[derive(Clone, Debug)]
pub(super) struct Indexes {
    fresh: u32,
    end: u32,
    freed: VecDeque<u32>,
}

impl Indexes {
    fn new(first: u32, end: u32) -> Self {
        Self {
            fresh: first,
            end,
            freed: VecDeque::new(),
        }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if self.fresh < self.end {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.freed.pop_front()
    }

    pub(super) fn release(&mut self, index: u32) {
        self.freed.push_back(index);
    }

    /// Positions that have an owner.
    pub(super) fn in_use(&self, first: u32) -> usize {
        (self.fresh - first) as usize - self.freed.len()
    }
}
