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

/// A histogram of delays; 720 bytes.
#[derive(Clone, Debug)]
pub struct Delays {
    counts: [u64; BUCKETS],
    total: u64,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
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
}
