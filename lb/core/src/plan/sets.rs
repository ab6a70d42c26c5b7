//! Range sets in `RANGES`, shared by content, and the settings that name them.

use std::{collections::BTreeMap, sync::Arc};

use xdp_prog::abi::{MAX_SET_LOG2, Range, SetRef, setting};

use super::{
    Planning,
    error::{PlanError, RangesOf},
    write::MapId,
};
use crate::{desired::Desired, ranges::RangeSet, slots::Blocks};

/// Which range sets there are, and who uses them.
#[derive(Clone, Debug)]
pub(super) struct RangeSets {
    /// Where each set begins, and its users.
    pub(super) sets: BTreeMap<Arc<RangeSet>, (u32, u32)>,
    pub(super) blocks: Blocks,
}

impl RangeSets {
    pub(super) fn new(capacity: u32) -> Self {
        let mut blocks = Blocks::new(MAX_SET_LOG2);
        blocks.grow(capacity);
        Self {
            sets: BTreeMap::new(),
            blocks,
        }
    }

    /// One user less. The caller has waited for a grace period.
    pub(super) fn release(&mut self, set: &Arc<RangeSet>) {
        let Some((offset, users)) = self.sets.get_mut(set) else {
            return;
        };
        let offset = *offset;
        *users -= 1;
        if *users == 0 {
            self.sets.remove(set);
            self.blocks.release(offset, set.padded_log2());
        }
    }

    pub(super) fn in_use(&self) -> u32 {
        self.blocks.len() - self.blocks.free()
    }
}

impl Planning<'_> {
    /// Where a set stands, written if it is new; the caller counts as a user from here on.
    pub(super) fn acquire_ranges(&mut self, of: RangesOf, set: RangeSet) -> Result<(Arc<RangeSet>, SetRef), PlanError> {
        let set = Arc::new(set);
        if !set.fits() {
            return Err(PlanError::TooManyRanges { of, ranges: set.len() });
        }
        let log2 = set.padded_log2();
        if let Some((offset, users)) = self.books.range_sets.sets.get_mut(&set) {
            *users += 1;
            return Ok((set, SetRef::new(*offset, log2)));
        }
        let offset = loop {
            match self.books.range_sets.blocks.take(log2) {
                Some(offset) => break offset,
                None if self.reclaim() => {}
                None => {
                    let capacity = self.books.range_sets.blocks.len();
                    return Err(PlanError::RangesFull {
                        of,
                        ranges: set.padded_len(),
                        capacity,
                    });
                }
            }
        };
        let words = |range: Range| [range.first_high, range.first_low, range.last_high, range.last_low];
        let values = set.padded().into_iter().flat_map(words).collect();
        self.draft.fill(MapId::Ranges, offset, 0, values);
        self.books.range_sets.sets.insert(set.clone(), (offset, 1));
        Ok((set, SetRef::new(offset, log2)))
    }

    /// Brings the settings of the whole node to what is desired.
    pub(super) fn plan_settings(&mut self, desired: &Desired) -> Result<(), PlanError> {
        let tunnel = desired.tunnel.as_ref();
        let denied = (!desired.denied_sources.is_empty()).then(|| RangeSet::from_cidrs(&desired.denied_sources));
        let mut wanted = [
            (setting::DENIED_SOURCES, denied),
            (
                setting::TUNNEL_DENIED,
                tunnel.map(|tunnel| RangeSet::from_cidrs(&tunnel.denied_inner_sources)),
            ),
            (
                setting::TUNNEL_SOURCES,
                tunnel.map(|tunnel| RangeSet::from_cidrs(&tunnel.sources)),
            ),
            (
                setting::TUNNEL_VIPS,
                tunnel.map(|tunnel| RangeSet::from_cidrs(&tunnel.vip_prefixes)),
            ),
            // Without this one nothing is decapsulated: last when the tunnel comes, first when it goes.
            (
                setting::TUNNEL_LOCALS,
                tunnel.map(|tunnel| RangeSet::from_addresses(tunnel.locals.iter().copied())),
            ),
        ];
        if tunnel.is_none() {
            wanted.reverse();
        }
        for (index, set) in wanted {
            self.plan_setting(index, set)?;
        }
        Ok(())
    }

    fn plan_setting(&mut self, index: u32, wanted: Option<RangeSet>) -> Result<(), PlanError> {
        let current = self.books.settings[index as usize].clone();
        if current.as_deref() == wanted.as_ref() {
            return Ok(());
        }
        let (set, reference) = match wanted {
            Some(set) => {
                let (set, reference) = self.acquire_ranges(RangesOf::Setting(index), set)?;
                (Some(set), reference)
            }
            None => (None, SetRef::ABSENT),
        };
        self.draft.store(MapId::Settings, index, 0, reference.0);
        self.books.settings[index as usize] = set;
        self.leaving.range_sets.extend(current);
        self.summary.settings_changed += 1;
        Ok(())
    }
}
