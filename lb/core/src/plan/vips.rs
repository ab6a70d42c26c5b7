//! VIPs: their tables, options and match entries.

use std::{collections::BTreeMap, net::IpAddr, ops::Range, sync::Arc};

use xdp_prog::{
    abi::{MIN_TABLE_SLOTS, SetRef, TableUnit, VipIndex, VipMeta, VipOptions},
    limit::TOKEN,
};

use super::{
    Planning,
    books::VipState,
    entries::EntryKey,
    error::{PlanError, RangesOf},
    tables::{SetKey, Table, compare_unfit},
    write::{MapId, Write},
};
use crate::{
    desired::{Limits, Rate, Vip, VipKey},
    health::Unfit,
    maglev::base_slot,
    ranges::RangeSet,
};

/// A rate as the program counts: tokens a jiffy and most tokens, both in 1/65,536 packet. `hz` is jiffies a second. A rate that
/// rounds to nothing is the least there is, since 0 says *no limit*.
pub fn rates(rate: Option<Rate>, hz: u32) -> (u64, u64) {
    match rate {
        None => (0, 0),
        Some(Rate { per_second, burst }) => {
            let per_jiffy = u64::from(per_second) * TOKEN / u64::from(hz.max(1));
            (per_jiffy.max(1), u64::from(burst.max(1)) * TOKEN)
        }
    }
}

fn has_limits(limits: &Limits) -> bool {
    limits.packets.is_some() || limits.syns.is_some()
}

impl Planning<'_> {
    /// Takes away the VIPs and address entries that are not wanted any more, and waits until no packet uses them.
    pub(super) fn remove_vips(&mut self, addresses: &BTreeMap<IpAddr, bool>) {
        let gone: Vec<IpAddr> = self
            .books
            .addresses
            .keys()
            .filter(|address| !addresses.contains_key(*address))
            .copied()
            .collect();
        // First the address: what no VIP port claims goes to the kernel again before the VIPs' ports do.
        for address in gone {
            self.books.set_address(address, None);
            self.entries.remove(&mut self.draft, EntryKey::address(address));
        }
        let gone: Vec<VipKey> = self
            .books
            .vips
            .keys()
            .filter(|key| !self.desired.vips.contains_key(*key))
            .copied()
            .collect();
        for key in gone {
            let Some(state) = self.books.set_vip(key, None) else {
                continue;
            };
            self.entries.remove(&mut self.draft, EntryKey::vip(&key));
            self.leaving.tables.push(state.hold());
            self.leaving
                .schedules
                .extend(state.scheduled.map(|scheduled| scheduled.rule));
            self.leaving.options.push((state.index, OPTIONS));
            self.leaving.range_sets.extend(state.range_set);
            self.leaving.vips.push(state.index);
            self.summary.vips_removed += 1;
        }
        self.reclaim();
    }

    /// Finds places for all new entries and makes room for them.
    pub(super) fn place_entries(&mut self) -> Result<(), PlanError> {
        for vip in self.desired.vips.keys() {
            let full = |full| PlanError::MatchTableFull { vip: *vip, full };
            if !self.books.vips.contains_key(vip) {
                self.entries.insert(&mut self.draft, EntryKey::vip(vip)).map_err(full)?;
            }
            if !self.books.addresses.contains_key(&vip.address) {
                self.books.set_address(vip.address, Some(false));
                self.new_addresses.push(vip.address);
                self.entries
                    .insert(&mut self.draft, EntryKey::address(vip.address))
                    .map_err(full)?;
            }
        }
        self.draft.clear_copied();
        Ok(())
    }

    /// Adds and retargets VIPs, each complete before the next.
    pub(super) fn plan_vips(&mut self) -> Result<(), PlanError> {
        let desired = self.desired;
        for (key, vip) in &desired.vips {
            match self.books.vips.get(key) {
                None => self.add_vip(*key, vip)?,
                // While backends leave, every set must be looked at: one may still name them.
                Some(state)
                    if self.leaving.backends.is_empty()
                        && is_same(state, vip, self.laid.of(vip))
                        && !self.books.lookup.is_over(state.table) => {}
                Some(state) => {
                    let state = state.clone();
                    self.change_vip(*key, vip, state)?;
                }
            }
        }
        Ok(())
    }

    /// Publishes address entries, after the VIPs that they complete.
    pub(super) fn plan_addresses(&mut self, addresses: &BTreeMap<IpAddr, bool>) {
        let new = std::mem::take(&mut self.new_addresses);
        let changed = addresses
            .iter()
            .filter(|(address, own)| self.books.addresses.get(*address) != Some(*own));
        let mut changed: Vec<(IpAddr, bool)> = changed.map(|(address, own)| (*address, *own)).collect();
        changed.extend(
            new.into_iter()
                .map(|address| (address, addresses.get(&address) == Some(&true))),
        );
        for (address, own) in changed {
            let flags = if own { VipMeta::OWN_ADDRESS } else { 0 };
            let meta = VipMeta::new(VipIndex(0), TableUnit(0), MIN_TABLE_SLOTS, flags);
            self.entries.publish(&mut self.draft, EntryKey::address(address), meta);
            self.books.set_address(address, Some(own));
        }
    }

    fn add_vip(&mut self, key: VipKey, vip: &Vip) -> Result<(), PlanError> {
        let capacity = self.capacity.vips;
        let index = self
            .books
            .vip_indexes
            .take(self.moment.now, 0)
            .ok_or(PlanError::TooManyVips { vip: key, capacity })?;
        let index = VipIndex(index);
        self.draft.zero(Write::ZeroVipCounter(index));
        if has_limits(&vip.limits) {
            self.draft.zero(Write::ZeroLimits(index));
        }
        let grown = self.books.grown.get(&key).copied().unwrap_or_default();
        let set = self.set_key(key, vip, grown)?;
        let moved = match self.carried_table(key, vip, &set)? {
            Some(table) => Some(table),
            None => match self.published_table(key, vip, &set) {
                // Of flows that it has never seen nothing can be kept then; the others go on.
                Err(PlanError::SlotMemoryFull { .. }) => None,
                published => published?,
            },
        };
        let table = match moved {
            Some(table) => table,
            None => self.acquire_table(key, &set)?,
        };
        let scheduled = self.acquire_schedule(key, vip, &set)?;
        let (range_set, allowed) = self.allowed_sources(key, vip)?;
        let state = VipState {
            index,
            set,
            desired_set: vip.set.clone(),
            table,
            most_slots: table.slots,
            limits: vip.limits,
            allowed_sources: vip.allowed_sources.clone(),
            range_set,
            clamp_mss: vip.clamp_mss,
            client_affinity: vip.hashes_client(),
            scheduler: vip.scheduler,
            affinity_timeout_s: vip.affinity_timeout_s,
            each_datagram: vip.each_datagram,
            scheduled,
            keeps_datagrams: vip.keeps_datagrams,
        };
        self.write_options(index, &vip.limits, allowed);
        self.write_schedule_options(&state);
        self.entries
            .publish(&mut self.draft, EntryKey::vip(&key), meta_of(&state));
        self.books.set_vip(key, Some(state));
        self.summary.vips_added += 1;
        Ok(())
    }

    fn change_vip(&mut self, key: VipKey, vip: &Vip, before: VipState) -> Result<(), PlanError> {
        let set = self.set_key(key, vip, before.most_slots)?;
        let (table, set, waits) = self.next_table_or_wait(key, vip, &before, set)?;
        let desired_set = if waits { &before.desired_set } else { &vip.set };
        let scheduled = self.acquire_schedule(key, vip, &set)?;
        let mut after = VipState {
            table,
            desired_set: desired_set.clone(),
            most_slots: before.most_slots.max(table.slots),
            limits: vip.limits,
            clamp_mss: vip.clamp_mss,
            client_affinity: vip.hashes_client(),
            scheduler: vip.scheduler,
            affinity_timeout_s: vip.affinity_timeout_s,
            each_datagram: vip.each_datagram,
            scheduled,
            keeps_datagrams: vip.keeps_datagrams,
            set,
            ..before.clone()
        };
        if after.hold() == before.hold() {
            // It counts as two users now, so this frees nothing.
            self.books.lookup.let_go(&before.hold());
        } else {
            self.leaving.tables.push(before.hold());
        }
        let mut allowed = None;
        if vip.allowed_sources != before.allowed_sources {
            let (range_set, reference) = self.allowed_sources(key, vip)?;
            self.leaving.range_sets.extend(before.range_set.clone());
            after.allowed_sources = vip.allowed_sources.clone();
            after.range_set = range_set;
            allowed = Some(reference);
        }
        let (had, has) = (
            meta_of(&before).has(VipMeta::OPTIONS),
            meta_of(&after).has(VipMeta::OPTIONS),
        );
        if has {
            let current = self
                .draft
                .image()
                .load(MapId::VipOptions, before.index.0, ALLOWED_SOURCES);
            if has_limits(&vip.limits) && !has_limits(&before.limits) {
                self.draft.zero(Write::ZeroLimits(before.index));
            }
            self.write_options(before.index, &vip.limits, allowed.unwrap_or(SetRef(current)));
        } else if had {
            self.leaving.options.push((before.index, LIMITS));
        }
        self.write_schedule_options(&after);
        self.leave_schedule(&before, &after);
        if meta_of(&before) != meta_of(&after) {
            self.entries
                .publish(&mut self.draft, EntryKey::vip(&key), meta_of(&after));
        }
        if before.table != table {
            self.summary.vips_retargeted += 1;
            self.count_moved_slots(before.table, table);
        }
        self.books.set_vip(key, Some(after));
        Ok(())
    }

    /// The table that a VIP's flows go by from now on; it counts as one user more.
    pub(super) fn next_table(
        &mut self,
        key: VipKey,
        vip: &Vip,
        before: &VipState,
        set: &SetKey,
    ) -> Result<Table, PlanError> {
        let was = before.table;
        if self.is_kept(&key, vip)
            && before.scheduled.is_some()
            && !vip.is_scheduled()
            && let Some(table) = self.scattered_table(key, before, set)?
        {
            return Ok(table);
        }
        if self.is_kept(&key, vip) && (was.is_wide || *set != before.set) {
            if *set == before.set && !self.books.lookup.is_over(was) {
                self.books.lookup.use_table(was);
                return Ok(was);
            }
            if let Some(table) = self.move_table(key, before, set)? {
                return Ok(table);
            }
        }
        self.acquire_table(key, set)
    }

    fn allowed_sources(&mut self, key: VipKey, vip: &Vip) -> Result<(Option<Arc<RangeSet>>, SetRef), PlanError> {
        match &vip.allowed_sources {
            None => Ok((None, SetRef::ABSENT)),
            Some(cidrs) => {
                let (set, reference) = self.acquire_ranges(RangesOf::Vip(key), RangeSet::from_cidrs(cidrs))?;
                Ok((Some(set), reference))
            }
        }
    }

    /// Each word stands alone, but a limit must never meet the burst of none: a burst comes before its rate, and stays when the
    /// rate goes, for packets that have read the rate already.
    fn write_options(&mut self, index: VipIndex, limits: &Limits, allowed: SetRef) {
        let mut store = |word, value| self.draft.store(MapId::VipOptions, index.0, word, value);
        for (word, rate) in [(PACKET_RATE, limits.packets), (SYN_RATE, limits.syns)] {
            let (rate, burst) = rates(rate, self.hz);
            if rate != 0 {
                store(word + 1, burst);
            }
            store(word, rate);
        }
        store(ALLOWED_SOURCES, allowed.0);
    }

    /// The words that schedulers have. The schedule comes whole, in one store; a VIP that has had none is published afterwards.
    fn write_schedule_options(&mut self, state: &VipState) {
        let Some(scheduled) = &state.scheduled else {
            return;
        };
        for (word, value) in [(AFFINITY, scheduled.affinity), (SCHEDULE, scheduled.word.0)] {
            self.draft.store(MapId::VipOptions, state.index.0, word, value);
        }
    }

    /// Gives up what a VIP had of a scheduler, when nobody can be reading it any more.
    fn leave_schedule(&mut self, before: &VipState, after: &VipState) {
        let Some(was) = &before.scheduled else {
            return;
        };
        match &after.scheduled {
            // It counts as two users now, so this frees nothing.
            Some(is) if is.rule == was.rule => self.release_schedule(&was.rule),
            Some(_) => self.leaving.schedules.push(was.rule.clone()),
            None => {
                self.leaving.schedules.push(was.rule.clone());
                self.leaving.options.push((before.index, SCHEDULES));
            }
        }
    }

    fn count_moved_slots(&mut self, before: Table, after: Table) {
        if !self.retargets.insert((before, after)) {
            return;
        }
        let (old, new) = (self.draft.image().targets(before), self.draft.image().targets(after));
        let scale = before.slots.max(after.slots);
        let at = |table: &[u16], slot| table.get(base_slot(slot, scale, table.len())).copied();
        self.summary.slots_moved += (0..scale).filter(|slot| at(&old, *slot) != at(&new, *slot)).count();
    }
}

// Positions of words in `VipOptions`.
pub(super) const PACKET_RATE: u32 = 0;
pub(super) const SYN_RATE: u32 = 2;
pub(super) const ALLOWED_SOURCES: u32 = 4;
pub(super) const SCHEDULE: u32 = 5;
pub(super) const AFFINITY: u32 = 6;
/// Words that may be other than 0, and whose they are: under [`VipMeta::OPTIONS`], and under [`VipMeta::SCHEDULED`].
pub(super) const OPTIONS: Range<u32> = LIMITS.start..SCHEDULES.end;
pub(super) const LIMITS: Range<u32> = PACKET_RATE..SCHEDULE;
pub(super) const SCHEDULES: Range<u32> = SCHEDULE..AFFINITY + 1;
const _: () = assert!(
    std::mem::offset_of!(VipOptions, packet_rate) == 8 * PACKET_RATE as usize
        && std::mem::offset_of!(VipOptions, packet_burst) == 8 * (PACKET_RATE as usize + 1)
        && std::mem::offset_of!(VipOptions, syn_rate) == 8 * SYN_RATE as usize
        && std::mem::offset_of!(VipOptions, syn_burst) == 8 * (SYN_RATE as usize + 1)
        && std::mem::offset_of!(VipOptions, allowed_sources) == 8 * ALLOWED_SOURCES as usize
        && std::mem::offset_of!(VipOptions, schedule) == 8 * SCHEDULE as usize
        && std::mem::offset_of!(VipOptions, affinity) == 8 * AFFINITY as usize
);

pub(super) fn meta_of(state: &VipState) -> VipMeta {
    let options = has_limits(&state.limits) || state.range_set.is_some();
    let flag = |on, flag| if on { flag } else { 0 };
    let flags = flag(options, VipMeta::OPTIONS)
        | flag(state.clamp_mss, VipMeta::CLAMP_MSS)
        | flag(state.client_affinity, VipMeta::CLIENT_AFFINITY)
        | flag(state.table.is_wide, VipMeta::TRANSIT)
        | flag(state.scheduled.is_some(), VipMeta::SCHEDULED)
        | flag(state.table.is_wide || state.scheduled.is_some(), VipMeta::RECORDS);
    VipMeta::new(state.index, state.table.unit, state.table.slots, flags)
}

/// Whether nothing about a VIP can have changed, seen without looking into its set.
fn is_same(state: &VipState, vip: &Vip, unfit: Option<&Unfit>) -> bool {
    Arc::ptr_eq(&state.desired_set, &vip.set)
        && compare_unfit(state.set.unfit.as_ref(), unfit).is_eq()
        && state.limits == vip.limits
        && state.allowed_sources == vip.allowed_sources
        && state.clamp_mss == vip.clamp_mss
        && state.client_affinity == vip.hashes_client()
        && state.scheduler == vip.scheduler
        && state.affinity_timeout_s == vip.affinity_timeout_s
        && state.each_datagram == vip.each_datagram
        && state.keeps_datagrams == vip.keeps_datagrams
}
