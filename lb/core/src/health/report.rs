//! What is shown of probes. Never formats anything.

use std::time::Duration;

use super::{State, outcome::Failure};

/// One check of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// What is asked, as [`super::Check`] displays; of the neighbour `neighbour`.
    pub check: String,
    /// What came of it.
    pub state: State,
    /// For how long.
    pub for_how_long: Duration,
    /// Why the last probe failed, while that matters.
    pub last_failure: Option<Failure>,
    /// Failures in a row.
    pub failures: u16,
}

/// All checks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Checks of backends: each is probed by itself.
    pub checks: usize,
    /// Those that are not probed, because there are more than [`super::MAX_TARGETS`].
    pub unprobed: usize,
    /// Probes in flight.
    pub flying: usize,
    /// How long a probe waits for its turn, at the moment: more than a moment, and there is more to do than the rate allows.
    pub late: Duration,
    /// Changes of health since the start: of eligible to unhealthy, say.
    pub changes: u64,
}
