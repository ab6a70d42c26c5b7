//! What many measurements come down to. Never hides a bad run: the spread stands beside every median.

use serde::{Deserialize, Serialize};

/// Median and spread of many runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Number of runs.
    pub(crate) runs: usize,
    /// Median.
    pub(crate) median: f64,
    /// Tenth percentile.
    pub(crate) p10: f64,
    /// Ninetieth percentile.
    pub(crate) p90: f64,
}

impl Summary {
    /// Of these values; `None` where there are none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            runs: sorted.len(),
            median: quantile(&sorted, 0.5)?,
            p10: quantile(&sorted, 0.1)?,
            p90: quantile(&sorted, 0.9)?,
        })
    }
}

/// Positions of the runs of a floor that were not disturbed: at most a tenth over its tenth percentile, but at least half of all.
/// What is known of a floor does not depend on what is measured over it, so this does not flatter.
pub(crate) fn quiet(floor: &[f64]) -> Vec<usize> {
    let mut sorted = floor.to_vec();
    sorted.sort_by(f64::total_cmp);
    let usual = quantile(&sorted, 0.1).unwrap_or_default() * 1.1;
    let half = quantile(&sorted, 0.5).unwrap_or_default();
    (0..floor.len()).filter(|&at| floor[at] <= usual.max(half)).collect()
}

/// Between the two nearest ranks of a sorted list, in proportion.
fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let position = fraction * sorted.len().checked_sub(1)? as f64;
    let below = sorted.get(position.floor() as usize)?;
    let above = sorted.get(position.ceil() as usize)?;
    Some(below + (above - below) * position.fract())
}

/// `count` draws from 1, 2, … `ranks` with probability ~ 1/rank, as numbers from 0; the same for the same seed.
pub(crate) fn zipf(ranks: u32, count: usize, seed: u64) -> Vec<u32> {
    let mut cumulative = Vec::with_capacity(ranks as usize);
    let mut sum = 0.0;
    for rank in 1..=ranks {
        sum += 1.0 / f64::from(rank);
        cumulative.push(sum);
    }
    let mut state = seed | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let point = (state >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        cumulative.partition_point(|&at| at <= point).min(ranks as usize - 1) as u32
    };
    (0..count).map(|_| draw()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Summary, quiet, zipf};

    #[test]
    fn median_and_spread_of_an_odd_and_an_even_number_of_runs() {
        let odd = Summary::of(&[3.0, 1.0, 2.0, 5.0, 4.0]).unwrap();
        assert_eq!((odd.runs, odd.median), (5, 3.0));
        assert!((odd.p10 - 1.4).abs() < 1e-9 && (odd.p90 - 4.6).abs() < 1e-9, "{odd:?}");
        assert_eq!(Summary::of(&[1.0, 2.0, 10.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[7.0]).unwrap().p90, 7.0);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_bad_run_moves_the_spread_and_not_the_median() {
        let mut runs = vec![20.0; 8];
        runs.push(2_000.0);
        let summary = Summary::of(&runs).unwrap();
        assert_eq!(summary.median, 20.0);
        assert!(summary.p90 > 20.0);
    }

    #[test]
    fn disturbed_runs_are_left_out_but_never_more_than_half() {
        assert_eq!(quiet(&[45.0, 44.0, 61.0, 46.0, 45.0, 70.0]), [0, 1, 3, 4]);
        assert_eq!(quiet(&[45.0, 60.0, 61.0, 62.0, 63.0]), [0, 1, 2]);
        assert_eq!(quiet(&[45.0]), [0]);
        assert_eq!(quiet(&[]), [0; 0]);
    }

    #[test]
    fn zipf_draws_follow_one_over_rank() {
        let draws = zipf(1 << 16, 1 << 15, 7);
        let of = |rank| draws.iter().filter(|&&draw| draw == rank).count() as f64;
        // H(65,536) is 11.67, so rank 1 gets 8.6 % of all.
        assert!((of(0) / draws.len() as f64 - 0.0857).abs() < 0.01, "{}", of(0));
        assert!((of(0) / of(1) - 2.0).abs() < 0.3, "{} {}", of(0), of(1));
        assert!(draws.iter().all(|&draw| draw < 1 << 16));
        assert_eq!(draws, zipf(1 << 16, 1 << 15, 7));
    }
}
