//! Who may take new flows of VIPs with a scheduler: candidates and turns in slot memory, shared by VIPs of a set.
//!
//! Never read by packets of other VIPs. What stands there never changes while somebody uses it: a VIP whose set or scheduler changes
//! goes over to another place by one store of its options.

use std::collections::BTreeMap;

use xdp_prog::{
    abi::{Candidate, Method, SLOTS_PER_WORD, Schedule, TableUnit, UNIT_SLOTS},
    hash,
};

use super::{
    Planning,
    error::PlanError,
    tables::{SetKey, pack},
    write::MapId,
};
use crate::{
    desired::{Protocol, Vip, VipKey},
    schedule::{Scheduler, turns},
};

/// Words in a unit of slot memory.
const UNIT_WORDS: usize = UNIT_SLOTS / SLOTS_PER_WORD;

/// By what a VIP has its candidates. Schedulers of one method without turns have them in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    set: SetKey,
    has_turns: bool,
    is_weighted: bool,
}

/// Where candidates stand.
#[derive(Clone, Copy, Debug)]
struct Place {
    unit: TableUnit,
    units_log2: u32,
    candidates: usize,
    turns: usize,
    /// VIPs that use it.
    users: u32,
}

/// All places.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedules {
    places: BTreeMap<Rule, Place>,
}

/// What a VIP with a scheduler has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scheduled {
    pub(super) rule: Rule,
    pub(super) word: Schedule,
    /// Its clients' affinity, in ticks; 0: none.
    pub(super) affinity: u64,
}

impl Planning<'_> {
    /// What the options of a VIP shall say, if it has a scheduler; it counts as a user from here on.
    pub(super) fn acquire_schedule(
        &mut self,
        key: VipKey,
        vip: &Vip,
        set: &SetKey,
    ) -> Result<Option<Scheduled>, PlanError> {
        if !vip.is_scheduled() {
            return Ok(None);
        }
        let method = vip.scheduler.method();
        let rule = Rule {
            set: set.clone(),
            has_turns: method == Method::Turn,
            is_weighted: vip.scheduler.is_weighted(),
        };
        let place = match self.books.schedules.places.get_mut(&rule) {
            Some(place) => {
                place.users += 1;
                *place
            }
            None => {
                let place = self.write_schedule(key, &rule)?;
                self.books.schedules.places.insert(rule.clone(), place);
                place
            }
        };
        let is_each = vip.each_datagram && key.protocol == Protocol::Udp;
        let flags = if is_each { Schedule::EACH } else { 0 };
        Ok(Some(Scheduled {
            rule,
            word: Schedule::new(method, place.unit, place.candidates, place.turns, flags),
            affinity: vip.affinity_timeout_s.map_or(0, |seconds| self.ticks(seconds)),
        }))
    }

    /// One VIP less uses it. The caller has waited for a grace period, unless there is another user.
    pub(super) fn release_schedule(&mut self, rule: &Rule) {
        let Some(place) = self.books.schedules.places.get_mut(rule) else {
            return;
        };
        place.users -= 1;
        if place.users == 0 {
            let Place { unit, units_log2, .. } = *place;
            self.books.schedules.places.remove(rule);
            self.books.lookup.release_units(unit, units_log2);
        }
    }

    fn write_schedule(&mut self, key: VipKey, rule: &Rule) -> Result<Place, PlanError> {
        let members = rule.set.set.members.iter().filter(|member| member.weight > 0);
        let mut candidates: Vec<Candidate> = members
            .filter_map(|member| {
                let backend = self.books.backends.get(&member.backend)?;
                Some(Candidate::new(
                    backend.index.0,
                    if rule.is_weighted { member.weight } else { 1 },
                ))
            })
            .collect();
        candidates.sort_unstable_by_key(|candidate| candidate.backend());
        let mut words: Vec<u64> = candidates.iter().map(|candidate| candidate.0).collect();
        let mut round = Vec::new();
        if rule.has_turns {
            let weights: Vec<u16> = candidates.iter().map(|candidate| candidate.weight() as u16).collect();
            let turns = turns(&weights).into_iter();
            round.extend(turns.map(|position| candidates[usize::from(position)].backend()));
            let turns = round.len();
            round.resize(turns.next_multiple_of(SLOTS_PER_WORD), 0);
            words.extend(pack(&round));
            round.truncate(turns);
        }
        let units_log2 = words
            .len()
            .div_ceil(UNIT_WORDS)
            .max(1)
            .next_power_of_two()
            .trailing_zeros();
        let unit = self.place_units(key, units_log2, words.len())?;
        let (segment, word) = unit.place();
        self.draft.fill(MapId::LookupTables, segment, word, words.into());
        Ok(Place {
            unit,
            units_log2,
            candidates: candidates.len(),
            turns: round.len(),
            users: 1,
        })
    }

    /// Seconds in ticks, rounded up.
    fn ticks(&self, seconds: u32) -> u64 {
        (u64::from(seconds) * u64::from(self.hz)).div_ceil(1 << self.tick_shift)
    }

    /// The one slot of all flows of a VIP whose backend its address chooses.
    pub(super) fn only_slot(&self, key: &VipKey, vip: &Vip, slots: usize) -> Option<usize> {
        (vip.scheduler == Scheduler::DestinationHash).then(|| {
            let hash = match key.address {
                std::net::IpAddr::V4(address) => hash::client_v4(&self.seed, u32::from_ne_bytes(address.octets())),
                std::net::IpAddr::V6(address) => {
                    let bits = address.to_bits();
                    hash::client_v6(&self.seed, [((bits >> 64) as u64).to_be(), (bits as u64).to_be()])
                }
            };
            (hash >> (64 - slots.trailing_zeros())) as usize
        })
    }
}
