//! From outcomes to a state: so many in a row, and no change of health faster than the damping.
//!
//! Never changes by the mere passing of time: every change is drawn from an outcome that has just come, so that probes that are not
//! made, for whatever reason, change nothing.

use std::time::Duration;

use super::{Health, check::Timing, outcome::Failure};

/// Most doublings of the damping before a backend that keeps falling may come back: 16 times.
pub const MAX_STRIKES: u8 = 4;
/// A backend that has been healthy for so many times the damping has no strikes any more.
pub const FORGIVEN_AFTER: u32 = 10;

/// What is known of one check of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// No success yet, and not enough failures.
    Unknown,
    /// It serves.
    Healthy,
    /// It does not.
    Unhealthy,
    /// It has been silent for so long that its connections are lost.
    Dead,
}

impl State {
    /// What that means for flows.
    pub const fn health(self) -> Health {
        match self {
            Self::Unknown | Self::Healthy => Health::Eligible,
            Self::Unhealthy => Health::Unhealthy,
            Self::Dead => Health::Dead,
        }
    }

    /// The worst of a backend's checks is what it is: larger is worse.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Healthy => 0,
            Self::Unknown => 1,
            Self::Unhealthy => 2,
            Self::Dead => 3,
        }
    }

    /// All of them, from the best on.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Unknown, Self::Unhealthy, Self::Dead];

    /// As output writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Dead => "dead",
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: State,
    /// From now on.
    pub to: State,
}

impl Change {
    /// Whether flows are concerned.
    pub fn is_of_health(self) -> bool {
        self.from.health() != self.to.health()
    }
}

/// The state of one check of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fsm {
    state: State,
    /// When it became so.
    since: Duration,
    born: Duration,
    /// When its health last changed.
    changed: Option<Duration>,
    /// When it last became healthy again.
    recovered: Option<Duration>,
    /// In a row.
    successes: u16,
    /// In a row.
    failures: u16,
    /// The first failure of those in a row that were silence.
    silent_since: Option<Duration>,
    /// Falls that came soon after a recovery.
    strikes: u8,
    last_failure: Option<Failure>,
}

impl Fsm {
    /// Nothing is known of it.
    pub const fn new(now: Duration) -> Self {
        Self {
            state: State::Unknown,
            since: now,
            born: now,
            changed: None,
            recovered: None,
            successes: 0,
            failures: 0,
            silent_since: None,
            strikes: 0,
            last_failure: None,
        }
    }

    /// What is known.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Since when.
    pub const fn since(&self) -> Duration {
        self.since
    }

    /// Why the last probe that failed did, unless so many succeeded since that it does not matter.
    pub const fn last_failure(&self) -> Option<Failure> {
        self.last_failure
    }

    /// Failures in a row.
    pub const fn failures(&self) -> u16 {
        self.failures
    }

    /// A probe succeeded or failed.
    pub fn step(&mut self, result: Result<(), Failure>, now: Duration, timing: &Timing) -> Option<Change> {
        match result {
            Ok(()) => {
                self.successes = self.successes.saturating_add(1);
                self.failures = 0;
                self.silent_since = None;
            }
            Err(failure) => {
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
                self.silent_since = failure.is_silence().then(|| self.silent_since.unwrap_or(now));
                self.last_failure = Some(failure);
            }
        }
        let (from, to) = (self.state, self.drawn(now, timing));
        if from == to || !self.may_become(to, now, timing) {
            return None;
        }
        let change = Change { from, to };
        if change.is_of_health() {
            self.count_strikes(to, now, timing);
            self.changed = Some(now);
        }
        if to == State::Healthy {
            self.last_failure = None;
        }
        self.state = to;
        self.since = now;
        Some(change)
    }

    /// The state that the outcomes speak for.
    fn drawn(&self, now: Duration, timing: &Timing) -> State {
        let confirmed = self.failures > 0 && self.last_failure.is_some_and(Failure::is_confirmed);
        let starts = now.saturating_sub(self.born) < ms(timing.startup_ms);
        let fallen = self.failures >= timing.fall.max(1);
        match self.state {
            State::Unknown if self.successes > 0 => State::Healthy,
            State::Unknown | State::Healthy | State::Unhealthy if confirmed => State::Dead,
            State::Unknown if fallen && !starts => State::Unhealthy,
            State::Healthy if fallen => State::Unhealthy,
            State::Unhealthy | State::Dead if self.successes >= timing.rise.max(1) => State::Healthy,
            State::Unhealthy if self.silent_for(now) >= Some(ms(timing.dead_after_ms)) => State::Dead,
            same @ (State::Unknown | State::Healthy | State::Unhealthy | State::Dead) => same,
        }
    }

    /// How long it has been both unhealthy and silent.
    fn silent_for(&self, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(self.silent_since?.max(self.since)))
    }

    /// Whether enough time has passed since the last change of health.
    fn may_become(&self, to: State, now: Duration, timing: &Timing) -> bool {
        let Some(changed) = self.changed.filter(|_| to.health() != self.state.health()) else {
            return true;
        };
        let strikes = match to.health() {
            Health::Eligible => self.strikes,
            Health::Unhealthy | Health::Dead => 0,
        };
        now.saturating_sub(changed) >= ms(timing.damping_ms) * (1 << strikes)
    }

    /// Who falls again soon after coming back waits longer the next time.
    fn count_strikes(&mut self, to: State, now: Duration, timing: &Timing) {
        match (self.state.health(), to.health()) {
            (Health::Eligible, Health::Unhealthy | Health::Dead) => {
                let soon = ms(timing.damping_ms) * FORGIVEN_AFTER;
                let again = self.recovered.is_some_and(|then| now.saturating_sub(then) < soon);
                self.strikes = if again { (self.strikes + 1).min(MAX_STRIKES) } else { 0 };
            }
            (Health::Unhealthy | Health::Dead, Health::Eligible) => self.recovered = Some(now),
            (Health::Eligible, Health::Eligible)
            | (Health::Unhealthy | Health::Dead, Health::Unhealthy | Health::Dead) => {}
        }
    }
}

fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}
