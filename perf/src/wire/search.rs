//! The highest rate without loss, by halving (RFC 2544, section 26.1). Never sends: it says what to try next.

/// How one trial went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All came, but for what is tolerated.
    Clean,
    Lossy,
    /// The generator did not send as fast as it was asked to, or the sink lost packets itself: this says nothing of the device.
    TooFast,
}

/// What bounds the rate that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// Above it, packets were lost.
    Loss,
    /// Above it, generator or sink could not follow: the device may.
    Harness,
    /// It was not to be more.
    Asked,
}

/// A search under way.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    /// Highest rate that was clean.
    clean: f64,
    /// Lowest rate that was not.
    dirty: f64,
    next: f64,
    resolution: f64,
    bound: Bound,
}

impl Search {
    /// From `most` downwards, to `resolution` (a fraction of `most`).
    pub(crate) fn new(most: f64, resolution: f64) -> Self {
        Self {
            clean: 0.0,
            dirty: f64::INFINITY,
            next: most,
            resolution: most * resolution,
            bound: Bound::Asked,
        }
    }

    /// The rate to try, or `None`: found.
    pub(crate) fn next(&self) -> Option<f64> {
        (self.dirty - self.clean > self.resolution && self.next > self.clean).then_some(self.next)
    }

    /// How the trial at [`next`](Self::next) went.
    pub(crate) fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Clean => {
                self.clean = self.next;
            }
            Outcome::Lossy => {
                (self.dirty, self.bound) = (self.next, Bound::Loss);
            }
            Outcome::TooFast => {
                (self.dirty, self.bound) = (self.next, Bound::Harness);
            }
        }
        self.next = if self.dirty.is_finite() {
            f64::midpoint(self.clean, self.dirty)
        } else {
            self.clean
        };
    }

    /// The rate that was found; 0: loss at every rate that was tried.
    pub(crate) fn found(&self) -> (f64, Bound) {
        (self.clean, self.bound)
    }

    /// Trials that are left at most, for an estimate.
    pub(crate) fn left(&self) -> u32 {
        if self.next().is_none() {
            return 0;
        }
        let width = if self.dirty.is_finite() { self.dirty } else { self.next } - self.clean;
        (width / self.resolution).log2().ceil().max(0.0) as u32 + u32::from(self.dirty.is_infinite())
    }
}

#[cfg(test)]
mod tests {
    use super::{Bound, Outcome, Search};

    fn search(most: f64, resolution: f64, device: f64, generator: f64) -> (f64, Bound, u32) {
        let mut search = Search::new(most, resolution);
        let mut trials = 0;
        let estimate = search.left();
        while let Some(rate) = search.next() {
            trials += 1;
            search.note(if rate > generator {
                Outcome::TooFast
            } else if rate > device {
                Outcome::Lossy
            } else {
                Outcome::Clean
            });
        }
        assert!(trials <= estimate, "{trials} of {estimate}");
        let (rate, bound) = search.found();
        (rate, bound, trials)
    }

    #[test]
    fn what_a_device_takes_is_found_to_the_resolution() {
        let (rate, bound, trials) = search(1_000_000.0, 0.01, 423_000.0, f64::INFINITY);
        assert!((413_000.0..=423_000.0).contains(&rate), "{rate}");
        assert_eq!(bound, Bound::Loss);
        assert!(trials <= 8, "{trials}");
    }

    #[test]
    fn a_device_that_takes_all_takes_one_trial_and_is_not_said_to_be_the_bound() {
        assert_eq!(
            search(1_000_000.0, 0.01, 2e6, f64::INFINITY),
            (1_000_000.0, Bound::Asked, 1)
        );
    }

    #[test]
    fn a_generator_that_is_slower_is_said_to_be_the_bound() {
        let (rate, bound, _) = search(1_000_000.0, 0.01, 2e6, 600_000.0);
        assert!((590_000.0..=600_000.0).contains(&rate), "{rate}");
        assert_eq!(bound, Bound::Harness);
    }

    #[test]
    fn a_device_that_loses_always_ends_at_nothing() {
        let (rate, bound, _) = search(1_000_000.0, 0.05, 0.0, f64::INFINITY);
        assert_eq!((rate, bound), (0.0, Bound::Loss));
    }
}
