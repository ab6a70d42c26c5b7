//! Transit memory at its bound: what waits until transits end.
//!
//! Never lets a change of a set break flows for want of room: the VIP stays with the set that it has. Never keeps what is about anything
//! else waiting, nor deaths: those change slots where they stand.

use xdp_prog::abi::SEGMENT_UNITS;

use super::{
    Planner, Planning,
    books::VipState,
    error::PlanError,
    tables::{Hold, SetKey, Table},
};
use crate::desired::{Vip, VipKey};

impl Planner {
    /// VIPs whose change of backends waits for room. Plan again in time: transits end.
    pub fn waiting(&self) -> usize {
        self.books.waiting.len()
    }
}

impl Planning<'_> {
    /// Whether a wide table may take this room: what is left must do for the plain tables that wide ones become at their end.
    pub(super) fn has_room_for(&self, wide: Table) -> bool {
        let lookup = &self.books.lookup;
        let own = wide.units();
        let all = lookup.wide.keys().map(|table| table.units()).sum::<u32>() + own;
        let segments = lookup.max_segments().saturating_sub(self.draft.image().segments());
        let free = lookup.free_units() + segments * SEGMENT_UNITS as u32;
        free >= own + all / Table::WIDE_TO_PLAIN
    }

    /// The table and the set that a VIP goes by from now on; it counts as one user more. Where there is no room to keep its flows, it
    /// stays with those that it has.
    pub(super) fn next_table_or_wait(
        &mut self,
        key: VipKey,
        vip: &Vip,
        before: &VipState,
        set: SetKey,
    ) -> Result<(Table, SetKey, bool), PlanError> {
        match self.next_table(key, vip, before, &set) {
            Ok(table) => Ok((table, set, false)),
            Err(PlanError::SlotMemoryFull { .. }) if before.table.is_wide || self.is_kept(&key, vip) => {
                let dead = self.moment.dead;
                let has_dead = |set: &SetKey| set.set.members.iter().any(|member| dead.contains(&member.backend));
                if set != before.set && has_dead(&before.set) {
                    // New flows must not go on to the dead: those that live elsewhere than the table says break, and no others.
                    let table = self.acquire_table(key, &set)?;
                    return Ok((table, set, false));
                }
                match before.hold() {
                    Hold::Set(set) => drop(self.acquire_table(key, &set)?),
                    Hold::Wide(table) => self.books.lookup.use_table(table),
                }
                self.books.waiting.insert(key);
                Ok((before.table, before.set.clone(), true))
            }
            Err(error) => Err(error),
        }
    }
}
