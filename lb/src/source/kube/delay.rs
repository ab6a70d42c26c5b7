//! How long changes take from the API server's word to the maps.
//!
//! Never keeps single values: a histogram whose bounds grow by a fifth, so that what it says is right to a fifth.

use std::time::Duration;

/// Upper bound of the first bucket, in µs.
const FIRST_US: f64 = 100.0;
/// From a bound to the next.
const STEP: f64 = 1.2;
/// The last bucket has no bound: 100 µs × 1.2^89 is 18 minutes.
const BUCKETS: usize = 90;
/// Upper bounds of the coarse buckets, in seconds: those of metrics. The goal, 50 ms, is one of them.
pub const BOUNDS_S: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// A histogram of delays, in fine and in coarse buckets; 850 bytes.
#[derive(Clone, Debug)]
pub struct Delays {
    counts: [u64; BUCKETS],
    /// One more than there are bounds.
    coarse: [u64; BOUNDS_S.len() + 1],
    total: u64,
    sum: Duration,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            coarse: [0; BOUNDS_S.len() + 1],
            total: 0,
            sum: Duration::ZERO,
        }
    }
}

impl Delays {
    /// Counts one.
    pub fn count(&mut self, delay: Duration) {
        let us = delay.as_secs_f64() * 1e6;
        let bucket = if us <= FIRST_US {
            0
        } else {
            (us / FIRST_US).log(STEP).ceil() as usize
        };
        if let Some(count) = self.counts.get_mut(bucket.min(BUCKETS - 1)) {
            *count += 1;
            self.total += 1;
        }
        let seconds = delay.as_secs_f64();
        if let Some(count) = self.coarse.get_mut(BOUNDS_S.partition_point(|bound| *bound < seconds)) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(delay);
    }

    /// Upper bounds in seconds with how many delays lie in each bucket alone; the last has none.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS_S.iter().copied().chain([f64::INFINITY]);
        bounds.zip(self.coarse.iter().copied())
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The bound under which this share (0 to 1) of delays lies; `None` while there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        (self.total > 0).then(|| Duration::from_secs_f64(FIRST_US * STEP.powi(bucket as i32) / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Delays;

    #[test]
    fn quantiles_are_right_to_a_fifth() {
        let mut delays = Delays::default();
        assert_eq!(delays.quantile(0.5), None);
        for ms in 1..=1000 {
            delays.count(Duration::from_millis(ms));
        }
        for (share, ms) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0), (0.001, 1.0)] {
            let said = delays.quantile(share).unwrap().as_secs_f64() * 1000.0;
            assert!((ms * 0.999..=ms * 1.2).contains(&said), "{share}: {said} is not {ms}");
        }
        delays.count(Duration::ZERO);
        delays.count(Duration::from_secs(1 << 40));
        assert_eq!(delays.total(), 1002);
    }

    #[test]
    fn coarse_buckets_take_what_is_at_their_bound_and_the_last_everything_else() {
        let mut delays = Delays::default();
        for us in [0, 1_000, 1_001, 50_000, 50_001, 60_000_000, 60_000_001] {
            delays.count(Duration::from_micros(us));
        }
        delays.count(Duration::MAX);
        let counted: Vec<(f64, u64)> = delays.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            counted,
            [
                (0.001, 2),
                (0.0025, 1),
                (0.05, 1),
                (0.1, 1),
                (60.0, 1),
                (f64::INFINITY, 2)
            ]
        );
        assert_eq!(delays.sum(), Duration::MAX, "never more than there is");
    }
}
