//! Who may take new flows of VIPs with a scheduler: candidates and turns in slot memory, shared by VIPs of a set.
//!
//! Never read by packets of other VIPs. What stands there never changes while somebody uses it: a VIP whose set or scheduler changes
//! goes over to another place by one store of its options.

use std::collections::BTreeMap;

use xdp_prog::{
    abi::{Candidate, Method, SLOTS_PER_WORD, Schedule, TableUnit, UNIT_SLOTS, VipMeta},
    hash,
};

use super::{
    Image, Planner, Planning,
    adopt::{AdoptError, nobody},
    books::{BackendState, Books},
    error::PlanError,
    tables::{SetKey, pack},
    vips::{AFFINITY, SCHEDULE},
    write::MapId,
};
use crate::{
    desired::{BackendId, Protocol, Vip, VipKey},
    health::Health,
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
        let rule = Rule::of(vip, set);
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
        Ok(Some(Scheduled {
            rule,
            word: word_of(key, vip, place.unit, (place.candidates, place.turns)),
            affinity: affinity_of(vip, self.hz, self.tick_shift),
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
        let content = Content::of(rule, &self.books.backends);
        let units_log2 = units_log2(content.words.len());
        let unit = self.place_units(key, units_log2, content.words.len())?;
        let (segment, word) = unit.place();
        self.draft
            .fill(MapId::LookupTables, segment, word, content.words.into());
        Ok(Place {
            unit,
            units_log2,
            candidates: content.candidates,
            turns: content.turns,
            users: 1,
        })
    }

    /// See [`only_slot`].
    pub(super) fn only_slot(&self, key: &VipKey, vip: &Vip, slots: usize) -> Option<usize> {
        only_slot(&self.seed, key, vip, slots)
    }
}

/// The one slot of all flows of a VIP whose backend its address chooses.
pub(super) fn only_slot(seed: &[u64; 4], key: &VipKey, vip: &Vip, slots: usize) -> Option<usize> {
    (vip.scheduler == Scheduler::DestinationHash).then(|| {
        let hash = match key.address {
            std::net::IpAddr::V4(address) => hash::client_v4(seed, u32::from_ne_bytes(address.octets())),
            std::net::IpAddr::V6(address) => {
                let bits = address.to_bits();
                hash::client_v6(seed, [((bits >> 64) as u64).to_be(), (bits as u64).to_be()])
            }
        };
        (hash >> (64 - slots.trailing_zeros())) as usize
    })
}

impl Rule {
    fn of(vip: &Vip, set: &SetKey) -> Self {
        Self {
            set: set.clone(),
            has_turns: vip.scheduler.method() == Method::Turn,
            is_weighted: vip.scheduler.is_weighted(),
        }
    }
}

/// What stands at a place: candidates, then turns.
struct Content {
    words: Vec<u64>,
    candidates: usize,
    turns: usize,
}

impl Content {
    fn of(rule: &Rule, backends: &BTreeMap<BackendId, BackendState>) -> Self {
        let members = rule.set.set.members.iter().filter(|member| member.weight > 0);
        let members = members.filter(|member| rule.set.health(&member.backend) == Health::Eligible);
        let mut candidates: Vec<Candidate> = members
            .filter_map(|member| {
                let weight = if rule.is_weighted { member.weight } else { 1 };
                Some(Candidate::new(backends.get(&member.backend)?.index.0, weight))
            })
            .collect();
        candidates.sort_unstable_by_key(|candidate| candidate.backend());
        let mut words: Vec<u64> = candidates.iter().map(|candidate| candidate.0).collect();
        let mut count = 0;
        if rule.has_turns {
            let weights: Vec<u16> = candidates.iter().map(|candidate| candidate.weight() as u16).collect();
            let turns = turns(&weights).into_iter();
            let mut round: Vec<u16> = turns
                .map(|position| candidates[usize::from(position)].backend())
                .collect();
            count = round.len();
            round.resize(count.next_multiple_of(SLOTS_PER_WORD), 0);
            words.extend(pack(&round));
        }
        Self {
            words,
            candidates: candidates.len(),
            turns: count,
        }
    }
}

fn word_of(key: VipKey, vip: &Vip, unit: TableUnit, (candidates, turns): (usize, usize)) -> Schedule {
    let is_each = vip.each_datagram && key.protocol == Protocol::Udp;
    let flags = if is_each { Schedule::EACH } else { 0 };
    Schedule::new(vip.scheduler.method(), unit, candidates, turns, flags)
}

/// In ticks, rounded up; 0: none.
fn affinity_of(vip: &Vip, hz: u32, tick_shift: u32) -> u64 {
    let ticks = |seconds| (u64::from(seconds) * u64::from(hz)).div_ceil(1 << tick_shift);
    vip.affinity_timeout_s.map_or(0, ticks)
}

/// Units of slot memory that so many words take, as a power of two.
fn units_log2(words: usize) -> u32 {
    words.div_ceil(UNIT_WORDS).max(1).next_power_of_two().trailing_zeros()
}

impl Planner {
    /// What a VIP has of a scheduler, and whether that is what is wanted. Otherwise the next plan gives it what is; flows stay with
    /// whoever has them.
    pub(super) fn adopt_schedule(
        &mut self,
        meta: VipMeta,
        key: VipKey,
        wanted: Option<(&Vip, &SetKey)>,
    ) -> Result<(Option<Scheduled>, bool), AdoptError> {
        if !meta.has(VipMeta::SCHEDULED) {
            return Ok((None, true));
        }
        let index = meta.vip().0;
        let word = |word| self.image.load(MapId::VipOptions, index, word);
        let (schedule, affinity) = (Schedule(word(SCHEDULE)), word(AFFINITY));
        let unit = schedule.unit().0;
        let clock = (&self.image, self.hz, self.config.tick_shift as u32);
        let nobody = nobody("schedule", unit, 0);
        let found = self
            .books
            .find_schedule((schedule, affinity), (key, wanted), nobody, clock);
        let (scheduled, is_wanted) = found.ok_or(AdoptError::Schedule { unit })?;
        Ok((Some(scheduled), is_wanted))
    }
}

impl Books {
    /// Takes in candidates that a VIP's options name and nobody remembers; one VIP uses them. They are those of `wanted`, the VIP and
    /// its set, if they are what would be written for it (true), else those of `nobody`'s set. `None` where they overlap something
    /// else or lie outside of slot memory.
    pub(super) fn find_schedule(
        &mut self,
        (word, affinity): (Schedule, u64),
        (key, wanted): (VipKey, Option<(&Vip, &SetKey)>),
        nobody: SetKey,
        (image, hz, tick_shift): (&Image, u32, u32),
    ) -> Option<(Scheduled, bool)> {
        let (candidates, turns) = (word.candidates() as usize, word.turns() as usize);
        let words = candidates + turns.div_ceil(SLOTS_PER_WORD);
        let wanted = wanted.filter(|(vip, _)| vip.is_scheduled()).and_then(|(vip, set)| {
            let rule = Rule::of(vip, set);
            let content = Content::of(&rule, &self.backends);
            let (segment, first) = word.unit().place();
            let found = image.words(MapId::LookupTables, segment);
            let found = found.get(first as usize..first as usize + words)?;
            let is_same = word == word_of(key, vip, word.unit(), (content.candidates, content.turns))
                && affinity == affinity_of(vip, hz, tick_shift)
                && found == content.words;
            is_same.then_some(rule)
        });
        let is_wanted = wanted.is_some();
        // VIPs that share a place share its rule, whoever was found first; and a rule has one place.
        let places = &self.schedules.places;
        let here = places.iter().find(|(_, place)| place.unit == word.unit());
        let here = here.map(|(rule, _)| rule.clone());
        let wanted = wanted.filter(|rule| !places.contains_key(rule));
        let rule = here.or(wanted).unwrap_or(Rule {
            set: nobody,
            has_turns: turns > 0,
            is_weighted: false,
        });
        let units_log2 = units_log2(words);
        match self.schedules.places.get_mut(&rule) {
            Some(place) if (place.units_log2, place.candidates, place.turns) == (units_log2, candidates, turns) => {
                place.users += 1;
            }
            Some(_) => return None,
            None => {
                let unit = word.unit();
                if !self.lookup.units.take_at(unit.0, units_log2) {
                    return None;
                }
                let place = Place {
                    unit,
                    units_log2,
                    candidates,
                    turns,
                    users: 1,
                };
                self.schedules.places.insert(rule.clone(), place);
            }
        }
        Some((Scheduled { rule, word, affinity }, is_wanted))
    }
}
