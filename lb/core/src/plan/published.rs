//! Transits that are published for all LB nodes: where a VIP begins that is new to these maps, and who waits for the end.
//!
//! Never overrules slots that these maps have: what is published is for who has none. Never believes it further than it makes sense:
//! what cannot be a table says nothing.

use std::{collections::BTreeSet, sync::Arc};

use xdp_prog::abi::{BackendIndex, tick_shift};

use super::{
    Planner, Planning,
    books::BackendState,
    error::PlanError,
    tables::{SetKey, Table},
    transit::{Before, Origin},
    write::Write,
};
use crate::{
    desired::{Base, Desired, Vip, VipKey},
    maglev,
    transit::Slot,
};

impl Planner {
    /// Whose published transits some flow may still go by: since its idle timeout, something went elsewhere than where new flows go.
    pub fn lively_transits<'a>(&self, desired: &'a Desired) -> BTreeSet<&'a Arc<str>> {
        let lively = desired.vips.iter().filter_map(|(key, vip)| {
            let base = vip.base.as_ref()?;
            let wide = self.books.lookup.wide.get(&self.books.vips.get(key)?.table)?;
            (!wide.is_quiet).then_some(&base.of)
        });
        lively.collect()
    }
}

impl Planning<'_> {
    /// Wide tables that somebody else ends.
    pub(super) fn published_tables(&self) -> BTreeSet<Table> {
        if self.books.lookup.wide.is_empty() {
            return BTreeSet::new();
        }
        let published = self.desired.vips.iter().filter(|(_, vip)| vip.base.is_some());
        let states = published.filter_map(|(key, _)| self.books.vips.get(key));
        let tables = states.map(|state| state.table).filter(|table| table.is_wide);
        tables.collect()
    }

    /// Gives lines to backends at which only flows that began earlier live, where a VIP is new that may have such. Who does not fit, or
    /// is not known, has no flows: they break, and nothing else does.
    pub(super) fn admit_departed(&mut self) {
        let is_new = |(key, vip): (&VipKey, &Vip)| vip.base.is_some() && !self.books.vips.contains_key(key);
        if self.desired.departed.is_empty() || !self.keeps_flows || !self.desired.vips.iter().any(is_new) {
            return;
        }
        for (id, backend) in &self.desired.departed {
            if self.books.backends.contains_key(id) || self.desired.backends.contains_key(id) {
                continue;
            }
            let rest = self.moment.timeouts.longest();
            let Some(index) = self.books.backend_indexes.take(self.moment.now, rest) else {
                return;
            };
            let index = BackendIndex(index as u16);
            self.draft.zero(Write::ZeroBackendCounter(index));
            let state = BackendState {
                index,
                address: backend.address,
                has_departed: true,
            };
            self.books.backends.insert(id.clone(), state);
            self.books.backend_ids.insert(index, id.clone());
            self.summary.backends_added += 1;
        }
    }

    /// The wide table by which flows of a VIP go on that is new to these maps and not to others; `None` where nothing that is published
    /// says that one is needed.
    pub(super) fn published_table(&mut self, key: VipKey, vip: &Vip, set: &SetKey) -> Result<Option<Table>, PlanError> {
        let Some(base) = vip.base.as_ref().filter(|_| self.is_kept(&key, vip)) else {
            return Ok(None);
        };
        let Some(slots) = self.slots_of_base(&key, vip, base) else {
            return Ok(None);
        };
        let before = Before {
            slots: slots.iter().copied().map(Slot::steady).collect(),
            past: BTreeSet::new(),
            since: Some(self.tick_of(base.since_s)),
        };
        let origin = Origin::Published(Arc::as_ptr(base).addr());
        self.moved((origin, set.clone()), key, |_| before)
    }

    /// The backends of the slots of the table before; `None`: that was none.
    fn slots_of_base(&mut self, key: &VipKey, vip: &Vip, base: &Base) -> Option<Arc<[u16]>> {
        let slots = base.set.table_slots?;
        let members = &base.set.members;
        let is_sorted = members.windows(2).all(|pair| pair[0].backend < pair[1].backend);
        let takers = members.iter().filter(|member| member.weight > 0).count();
        let makes_sense = maglev::is_table_size(slots) && is_sorted && takers <= slots;
        let only = self.only_slot(key, vip, slots);
        makes_sense.then(|| self.set_slots(&SetKey::new(base.set.clone(), None, slots, only)))
    }

    /// The tick of a time by the other clock; one that is to come is now.
    fn tick_of(&self, unix_s: u64) -> u32 {
        let age_s = self.moment.unix_s.saturating_sub(unix_s);
        let ticks = age_s.saturating_mul(self.hz.into()) >> tick_shift(self.hz);
        // Older than the longest transit is over, however much older.
        let longest = u64::from(self.moment.timeouts.transit_max);
        self.moment.now.wrapping_sub(ticks.min(longest) as u32)
    }
}
