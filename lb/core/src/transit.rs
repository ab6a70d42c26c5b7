//! How a slot's word changes while old flows live: user space's half of the rules that the packet path follows
//! ([`xdp_prog::balance::transit`]).
//!
//! Never knows a clock or a table: a slot and what happens to it, at a time that the caller says. `lb/core/tests/transit` holds
//! both halves together against random histories of one slot, and shows that the rules that look simpler break flows.

use std::collections::BTreeSet;

use xdp_prog::abi::{Activity, FlowLives, FlowState, FlowWord, SlotWord};

/// How long flows may be silent, and how long a transit may last, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest silence of a TCP flow that is kept.
    pub tcp_idle: u32,
    /// Longest silence of a UDP flow that is kept; also how long the learning window is open.
    pub udp_idle: u32,
    /// Longest transit of a slot: whatever still lives elsewhere than at `cur` then is given up.
    pub transit_max: u32,
}

impl Timeouts {
    /// Longest that a record can live.
    pub fn longest(&self) -> u32 {
        self.tcp_idle.max(self.udp_idle) + FlowLives::UNIT
    }
}

/// When what a slot is in began, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Began {
    /// The transit.
    pub transit: u32,
    /// The learning window of UDP, or the time after it.
    pub window: u32,
}

/// What stands in place of the record of a UDP flow that lives at one of these backends, once it is forgotten; `None`: it is none such.
/// Nobody's, and long expired; not 0, which would say that its place was never used.
pub fn forgotten(record: FlowWord, backends: &BTreeSet<u16>) -> Option<FlowWord> {
    /// Ticks (three days): longer than any record lives, and far from wrapping.
    const LONG_AGO: u32 = 1 << 20;
    let is_meant = record.state() == FlowState::Datagram as u64 && backends.contains(&record.backend());
    is_meant.then(|| FlowWord::new(0, 0, FlowState::Swept, (record.0 as u32).wrapping_sub(LONG_AGO)))
}

/// A slot and what is known of its past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// As packets see it.
    pub word: SlotWord,
    /// As packets left it.
    pub activity: Activity,
    /// When what it is in began.
    pub began: Began,
}

impl Slot {
    /// A slot of which nothing lives elsewhere than at `cur`.
    pub const fn steady(cur: u16) -> Self {
        Self {
            word: SlotWord::steady(cur),
            activity: Activity::new(0, 0),
            began: Began { transit: 0, window: 0 },
        }
    }

    /// Whether flows may live elsewhere than at `cur`.
    pub const fn is_in_transit(&self) -> bool {
        self.word.has(SlotWord::TCP | SlotWord::UDP)
    }

    /// The slot when new flows go to `cur`, at once or as before. `is_dead` says of a backend that nothing lives there any more, which
    /// is not the same as unhealthy; position 0 is no backend.
    #[must_use]
    pub fn changed(self, cur: u16, is_dead: impl Fn(u16) -> bool, now: u32) -> Self {
        self.moved(cur, &is_dead, &is_dead, now)
    }

    /// As [`Self::changed`], where `is_left` says of a backend that UDP flows do not stay there: it is dead, or it is unhealthy.
    #[must_use]
    pub fn moved(self, cur: u16, is_dead: impl Fn(u16) -> bool, is_left: impl Fn(u16) -> bool, now: u32) -> Self {
        let word = changed(self.word, cur, is_dead, is_left);
        let Self {
            mut activity,
            mut began,
            ..
        } = self;
        if cur != self.word.cur() {
            // What went to the old `cur` was not noted: its flows may have been silent for as long as any.
            activity = Activity::new(now, now);
        }
        if !self.is_in_transit() {
            began.transit = now;
        }
        if word.has(SlotWord::LEARNING) != self.word.has(SlotWord::LEARNING) {
            began.window = now;
        }
        Self { word, activity, began }
    }

    /// The slot when records say of flows that they live anywhere, and nobody places new ones any more but the slot: it is in transit
    /// until what is not at `cur` is silent.
    #[must_use]
    pub fn scattered(mut self, now: u32) -> Self {
        if !self.is_in_transit() {
            self.began = Began {
                transit: now,
                window: now,
            };
        }
        self.activity = Activity::new(now, now);
        self.word = SlotWord(self.word.0 | SlotWord::TCP | SlotWord::UDP);
        self
    }

    /// A slot that was [changed](Self::changed) just now, as whoever saw it change at `then` has it by now: of what packets noted
    /// nothing is known, so it is taken that they went elsewhere until now.
    #[must_use]
    pub fn as_of(mut self, then: u32, now: u32, timeouts: &Timeouts) -> Self {
        if !self.is_in_transit() {
            return self;
        }
        if now.wrapping_sub(then) >= timeouts.transit_max {
            return Self::steady(self.word.cur());
        }
        self.began.transit = then;
        if self.word.has(SlotWord::LEARNING) {
            self.began.window = then;
        }
        self.aged(now, timeouts)
    }

    /// The slot as [`Self::aged`] has it, but for the end by silence, which is for somebody else to say.
    #[must_use]
    pub fn aged_but_for_silence(self, now: u32, timeouts: &Timeouts) -> Self {
        let aged = self.aged(now, timeouts);
        if now.wrapping_sub(self.began.transit) >= timeouts.transit_max {
            return aged;
        }
        let flags = aged.word.flags() | self.word.flags() & (SlotWord::TCP | SlotWord::UDP);
        let word = SlotWord::new(aged.word.cur(), self.word.base(), aged.word.udp_base(), flags);
        Self { word, ..aged }
    }

    /// The slot as time and silence have it; the same while there is nothing to end.
    #[must_use]
    pub fn aged(self, now: u32, timeouts: &Timeouts) -> Self {
        let word = aged(self.word, self.activity, self.began, now, timeouts);
        let mut began = self.began;
        if self.word.has(SlotWord::LEARNING) && !word.has(SlotWord::LEARNING) {
            began.window = now;
        }
        Self { word, began, ..self }
    }
}

/// The word of [`Slot::moved`].
fn changed(slot: SlotWord, cur: u16, is_dead: impl Fn(u16) -> bool, is_left: impl Fn(u16) -> bool) -> SlotWord {
    let gone = |backend| backend == 0 || is_dead(backend);
    let left = |backend| backend == 0 || is_left(backend);
    let before = slot.cur();
    let mut flags = slot.flags();
    // TCP: only `cur` moves; what has no record stays where it was before the first change, not before the last one.
    let mut base = slot.base();
    if cur != before && !(flags & SlotWord::TCP == 0 && gone(base)) {
        flags |= SlotWord::TCP;
    }
    if gone(base) || flags & SlotWord::TCP == 0 {
        base = cur;
    }
    // UDP has no SYN: each change after a window opens another, in which the flows that live say so.
    let mut udp_base = slot.udp_base();
    if flags & SlotWord::LEARNING == 0 {
        udp_base = before;
        if cur != before && !left(before) {
            flags |= SlotWord::UDP | SlotWord::LEARNING;
        }
    }
    if left(udp_base) || flags & SlotWord::LEARNING == 0 {
        flags &= !SlotWord::LEARNING;
        udp_base = cur;
    }
    SlotWord::new(cur, base, udp_base, flags)
}

/// Ticks from `tick` to `now`; none for a tick that is still to come: packets note the time while `now` is being used, and a plan
/// takes longer than the rest of a tick.
pub(crate) fn elapsed(now: u32, tick: u32) -> u32 {
    now.wrapping_sub(tick).cast_signed().max(0).cast_unsigned()
}

/// The word of [`Slot::aged`].
fn aged(slot: SlotWord, activity: Activity, began: Began, now: u32, timeouts: &Timeouts) -> SlotWord {
    let since = |tick| elapsed(now, tick);
    let cur = slot.cur();
    let (mut base, mut udp_base, mut flags) = (slot.base(), slot.udp_base(), slot.flags());
    let overdue = since(began.transit) >= timeouts.transit_max;
    if flags & SlotWord::TCP != 0 && (overdue || since(activity.tcp()) > timeouts.tcp_idle) {
        flags &= !SlotWord::TCP;
        base = cur;
    }
    // One look closes the window, a later one ends the transit: in between, who was recorded after `activity` was read is noted.
    if flags & SlotWord::LEARNING != 0 {
        if overdue || since(began.window) > timeouts.udp_idle {
            flags &= !SlotWord::LEARNING;
            udp_base = cur;
        }
    } else if flags & SlotWord::UDP != 0
        && since(began.window) >= 2
        && (overdue || since(activity.udp()) > timeouts.udp_idle)
    {
        flags &= !SlotWord::UDP;
    }
    SlotWord::new(cur, base, udp_base, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        tcp_idle: 100,
        udp_idle: 20,
        transit_max: 1_000,
    };

    #[test]
    fn a_packet_that_is_a_tick_ahead_of_the_planner_ends_nothing() {
        for now in [50_u32, u32::MAX, 0] {
            let slot = Slot::steady(1).changed(2, |_| false, now.wrapping_sub(30));
            for ahead in [0, 1, 2] {
                let tick = now.wrapping_add(ahead);
                let noted = Slot {
                    activity: Activity::new(tick, tick),
                    ..slot
                };
                let aged = noted.aged(now, &TIMEOUTS);
                assert!(aged.word.has(SlotWord::TCP) && aged.word.base() == 1, "{now} {ahead}");
                assert!(
                    aged.aged(now.wrapping_add(2), &TIMEOUTS).word.has(SlotWord::UDP),
                    "{now} {ahead}"
                );
            }
            let silent = Slot {
                activity: Activity::new(now.wrapping_sub(101), now),
                ..slot
            };
            assert!(!silent.aged(now, &TIMEOUTS).word.has(SlotWord::TCP), "the control");
        }
    }
}
