//! Which probe is due next. Never gives out more than [`MAX_PROBES_PER_SECOND`], whatever there is to do: where that is too much,
//! every interval grows, because what has waited longest goes first.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use xdp_prog::hash;

/// Most probes in any second, of all checks together.
pub const MAX_PROBES_PER_SECOND: u32 = 2000;
/// Least time between two probes: 1,953 a second …
const GAP: Duration = Duration::from_micros(512);
/// … and what may be made up for when whoever asks comes late: 20 probes more.
const SLACK: Duration = Duration::from_millis(10);
/// An interval varies by a part in so many, either way.
const JITTER: u64 = 10;

/// Probes by when they are due. About 150 bytes each.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// This node's own: LB nodes do not probe in step.
    seed: u64,
    turns: BTreeMap<u64, Turn>,
    /// Those that are not in flight.
    due: BTreeSet<(Duration, u64)>,
    /// When the next may go, however much is due.
    slot: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    interval: Duration,
    round: u64,
    due: Duration,
}

/// A probe whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which.
    pub id: u64,
    /// Its how-manieth, from 0.
    pub round: u64,
    /// How long it has waited since it was due.
    pub late: Duration,
}

impl Schedule {
    /// Nothing to do yet.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Takes a probe in; its first turn is within an interval, so that those that come together do not stay together.
    pub fn add(&mut self, id: u64, interval: Duration, now: Duration) {
        let due = now + part(interval, self.random(id, u64::MAX));
        let turn = Turn {
            interval,
            round: 0,
            due,
        };
        self.remove(id);
        self.turns.insert(id, turn);
        self.due.insert((due, id));
    }

    /// Takes a probe out, in flight or not.
    pub fn remove(&mut self, id: u64) {
        if let Some(turn) = self.turns.remove(&id) {
            self.due.remove(&(turn.due, id));
        }
    }

    /// When [`Self::take`] has something next.
    pub fn next(&self) -> Option<Duration> {
        self.due.first().map(|(due, _)| (*due).max(self.slot))
    }

    /// The next probe, if there is one due and the rate allows it. It is in flight until [`Self::put_back`].
    pub fn take(&mut self, now: Duration) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        let (due, id) = self.due.pop_first()?;
        self.slot = self.slot.max(now.saturating_sub(SLACK)) + GAP;
        let (seed, turn) = (self.seed, self.turns.get_mut(&id)?);
        let round = turn.round;
        turn.round += 1;
        let shortest = turn.interval - turn.interval / JITTER as u32;
        turn.due = now + shortest + part(turn.interval * 2 / JITTER as u32, random(seed, id, round));
        Some(Due {
            id,
            round,
            late: now.saturating_sub(due),
        })
    }

    /// A probe is no longer in flight: it has its next turn an interval after it was taken, and not before `now`.
    pub fn put_back(&mut self, id: u64, now: Duration) {
        if let Some(turn) = self.turns.get_mut(&id) {
            turn.due = turn.due.max(now);
            self.due.insert((turn.due, id));
        }
    }

    /// A number that depends on nothing but this node's seed, the probe and the round.
    pub fn random(&self, id: u64, round: u64) -> u64 {
        random(self.seed, id, round)
    }
}

fn random(seed: u64, id: u64, round: u64) -> u64 {
    hash::mix(hash::mix(hash::mix(seed ^ id) ^ round) >> 1)
}

/// A part of `whole`, by a random number.
fn part(whole: Duration, random: u64) -> Duration {
    let nanos = (whole.as_nanos() * u128::from(random >> 32)) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs it for a while with instant answers; when each probe was taken.
    fn run(schedule: &mut Schedule, from: Duration, until: Duration, step: Duration) -> Vec<(Duration, Due)> {
        let (mut taken, mut now) = (Vec::new(), from);
        while now < until {
            while let Some(due) = schedule.take(now) {
                taken.push((now, due));
                schedule.put_back(due.id, now);
            }
            now += step;
        }
        taken
    }

    #[test]
    fn a_probe_comes_back_after_its_interval_more_or_less_a_tenth() {
        let mut schedule = Schedule::new(7);
        schedule.add(1, SECOND, Duration::ZERO);
        let taken = run(&mut schedule, Duration::ZERO, 200 * SECOND, Duration::from_millis(1));
        let gaps: Vec<_> = taken.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
        assert!(taken[0].0 < SECOND);
        assert!(
            *least >= Duration::from_millis(900) && *most <= Duration::from_millis(1102),
            "{least:?} {most:?}"
        );
        assert!(
            *most - *least > Duration::from_millis(150),
            "they do vary: {least:?} {most:?}"
        );
        assert!((190..=210).contains(&gaps.len()), "{}", gaps.len());
    }

    #[test]
    fn probes_that_are_taken_in_together_do_not_stay_together_and_the_same_seed_gives_the_same_times() {
        let times = |seed| {
            let mut schedule = Schedule::new(seed);
            (0..500).for_each(|id| schedule.add(id, 5 * SECOND, Duration::ZERO));
            run(&mut schedule, Duration::ZERO, 20 * SECOND, Duration::from_millis(1))
        };
        let mut per_second = [0; 20];
        times(1)
            .iter()
            .for_each(|(at, _)| per_second[at.as_secs() as usize] += 1);
        assert!(
            per_second.iter().all(|count| (60..=140).contains(count)),
            "{per_second:?}"
        );
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
    }

    #[test]
    fn in_no_second_are_there_more_than_the_bound_and_all_are_late_alike() {
        for step in [
            Duration::from_micros(50),
            Duration::from_millis(3),
            Duration::from_millis(40),
        ] {
            let mut schedule = Schedule::new(3);
            (0..8000).for_each(|id| schedule.add(id, SECOND, Duration::ZERO));
            let taken = run(&mut schedule, Duration::ZERO, 30 * SECOND, step);
            let bound = MAX_PROBES_PER_SECOND as usize;
            for pair in taken.windows(bound + 1) {
                assert!(pair[bound].0 - pair[0].0 >= SECOND, "more than {bound} within a second");
            }
            let mut rounds = vec![0u32; 8000];
            taken.iter().for_each(|(_, due)| rounds[due.id as usize] += 1);
            let (least, most) = (rounds.iter().min().unwrap(), rounds.iter().max().unwrap());
            assert!(most - least <= 2, "{least} to {most} turns at steps of {step:?}");
        }
    }

    #[test]
    fn what_is_in_flight_has_no_turn_and_what_is_taken_out_none_ever() {
        let mut schedule = Schedule::new(0);
        schedule.add(1, SECOND, Duration::ZERO);
        schedule.add(2, SECOND, Duration::ZERO);
        let first = schedule.take(SECOND).unwrap();
        let second = schedule.take(SECOND).unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!((schedule.next(), schedule.take(100 * SECOND)), (None, None));
        schedule.remove(second.id);
        schedule.put_back(second.id, 100 * SECOND);
        schedule.put_back(first.id, 100 * SECOND);
        assert_eq!(schedule.next(), Some(100 * SECOND), "long overdue: at once");
        assert_eq!(
            schedule.take(100 * SECOND).map(|due| (due.id, due.round)),
            Some((first.id, 1))
        );
        schedule.remove(first.id);
        assert_eq!(schedule.next(), None);
    }
}
