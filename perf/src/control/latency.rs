//! From an EndpointSlice that is written to the table that shows it, on one clock.
//!
//! Never lets one change wait for another: changes are sent at a pace, whatever became of those before, and each is timed from just
//! before its request is sent, so a stall counts for all that were due in it.

use serde::{Deserialize, Serialize};

/// Upper bounds of the histogram's buckets, in ms.
const BOUNDS_MS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0, 75.0, 100.0, 250.0, 1000.0];

/// How long changes took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Changes that were seen in the maps.
    pub(crate) seen: usize,
    /// Changes that were not, within the time that was given them.
    pub(crate) lost: usize,
    /// Median, in ms; this and those below of the changes that were seen.
    pub(crate) p50_ms: f64,
    /// 90th percentile.
    pub(crate) p90_ms: f64,
    /// 99th percentile.
    pub(crate) p99_ms: f64,
    /// The slowest.
    pub(crate) max_ms: f64,
    /// How many took at most so long, and longer than the row before.
    pub(crate) histogram: Vec<Bucket>,
}

/// A bucket of a histogram.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// Upper bound in ms; `None`: longer than all.
    pub(crate) at_most_ms: Option<f64>,
    /// Changes.
    pub(crate) count: usize,
}

impl Latency {
    /// Of these times in ms.
    pub(crate) fn of(times_ms: &[f64], lost: usize) -> Self {
        let mut sorted = times_ms.to_vec();
        sorted.sort_by(f64::total_cmp);
        // The smallest value that so many do not exceed: never between two, so that a p99 is a change that happened.
        let rank = |fraction: f64| {
            let position = (fraction * sorted.len() as f64).ceil() as usize;
            sorted.get(position.saturating_sub(1)).copied().unwrap_or_default()
        };
        let mut below = 0;
        let bounds = BOUNDS_MS.into_iter().map(Some).chain([None]);
        let histogram = bounds.map(|bound| {
            let up_to = bound.map_or(sorted.len(), |bound| sorted.partition_point(|time| *time <= bound));
            let count = up_to - below;
            below = up_to;
            Bucket {
                at_most_ms: bound,
                count,
            }
        });
        Self {
            seen: sorted.len(),
            lost,
            p50_ms: rank(0.5),
            p90_ms: rank(0.9),
            p99_ms: rank(0.99),
            max_ms: rank(1.0),
            histogram: histogram.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Latency;

    #[test]
    fn percentiles_are_changes_that_happened_and_every_change_is_in_one_bucket() {
        let times: Vec<f64> = (1..=200).map(f64::from).collect();
        let latency = Latency::of(&times, 3);
        assert_eq!((latency.p50_ms, latency.p90_ms), (100.0, 180.0));
        assert_eq!((latency.p99_ms, latency.max_ms), (198.0, 200.0));
        assert_eq!((latency.seen, latency.lost), (200, 3));
        assert_eq!(latency.histogram.iter().map(|bucket| bucket.count).sum::<usize>(), 200);
        let of = |bound| {
            latency
                .histogram
                .iter()
                .find(|bucket| bucket.at_most_ms == bound)
                .unwrap()
                .count
        };
        assert_eq!(
            (of(Some(1.0)), of(Some(2.0)), of(Some(250.0)), of(None)),
            (1, 1, 100, 0)
        );
    }

    #[test]
    fn one_slow_change_in_fifty_is_the_p99() {
        let mut times = vec![5.0; 49];
        times.push(2_000.0);
        let latency = Latency::of(&times, 0);
        assert_eq!((latency.p50_ms, latency.p99_ms), (5.0, 2_000.0));
        assert_eq!(latency.histogram.last().unwrap().count, 1);
        assert_eq!(Latency::of(&[], 0).max_ms, 0.0);
    }
}
