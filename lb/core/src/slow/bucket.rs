//! A token bucket that many threads take from at once. Never waits and never reads a clock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::desired::Rate;

const SECOND_NS: u64 = 1_000_000_000;

/// What a bucket brings: the generic cell rate algorithm (ITU-T I.371), which needs one number per bucket.
///
/// A token comes every `interval_ns`, rounded up: never more than the rate, and less by at most the interval's last nanosecond
/// (under 1% at 10 million a second, 0.1% at a million).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// `None`: no tokens at all.
    interval_ns: Option<u64>,
    /// How far ahead of time tokens may be taken.
    tolerance_ns: u64,
}

impl From<Rate> for Pace {
    fn from(rate: Rate) -> Self {
        let interval_ns = (rate.burst > 0 && rate.per_second > 0).then(|| SECOND_NS.div_ceil(rate.per_second.into()));
        // Both are below 2^32 and 2^30.
        let tolerance_ns = u64::from(rate.burst.saturating_sub(1)) * interval_ns.unwrap_or_default();
        Self {
            interval_ns,
            tolerance_ns,
        }
    }
}

/// When the next token is due if they are taken as they come; full at first. 8 bytes.
#[derive(Debug, Default)]
pub(super) struct Bucket(AtomicU64);

impl Bucket {
    /// Takes a token. A clock that stands still or goes back brings none.
    pub(super) fn take(&self, pace: Pace, now_ns: u64) -> bool {
        let Some(interval_ns) = pace.interval_ns else {
            return false;
        };
        let latest_ns = now_ns.saturating_add(pace.tolerance_ns);
        // One number guards nothing else: its own order is enough.
        let taken = self.0.fetch_update(Relaxed, Relaxed, |due_ns| {
            if due_ns > latest_ns {
                return None;
            }
            due_ns.max(now_ns).checked_add(interval_ns)
        });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Bucket, Pace, SECOND_NS};
    use crate::desired::Rate;

    fn pace(per_second: u32, burst: u32) -> Pace {
        Pace::from(Rate { per_second, burst })
    }

    fn taken(bucket: &Bucket, pace: Pace, now_ns: u64, tries: u64) -> u64 {
        (0..tries).filter(|_| bucket.take(pace, now_ns)).count() as u64
    }

    #[test]
    fn a_full_bucket_brings_its_burst_and_then_its_rate() {
        let (bucket, pace) = (Bucket::default(), pace(1000, 10));
        assert_eq!(taken(&bucket, pace, 0, 100), 10);
        assert_eq!(taken(&bucket, pace, 999_999, 100), 0, "not yet due");
        for millisecond in 1..=50 {
            assert_eq!(
                taken(&bucket, pace, millisecond * 1_000_000, 100),
                1,
                "{millisecond} ms"
            );
        }
        assert_eq!(
            taken(&bucket, pace, 60 * SECOND_NS, 100),
            10,
            "no more than the burst after silence"
        );
    }

    #[test]
    fn a_rate_of_nothing_brings_nothing() {
        for pace in [pace(0, 10), pace(10, 0), pace(0, 0)] {
            assert_eq!(taken(&Bucket::default(), pace, SECOND_NS, 10), 0);
        }
    }

    #[test]
    fn the_end_of_time_brings_nothing_for_ever() {
        let (bucket, pace) = (Bucket::default(), pace(1, u32::MAX));
        assert!(taken(&bucket, pace, u64::MAX - 2 * SECOND_NS, 100) <= 2);
        assert_eq!(taken(&bucket, pace, u64::MAX, 100), 0);
    }

    proptest! {
        #[test]
        fn no_span_brings_more_than_a_burst_and_the_rate_or_much_less(
            per_second in 1..=10_000_000u32,
            burst in 1..2000u32,
            start_ns in prop_oneof![Just(0), 0..u64::MAX / 2],
            steps in proptest::collection::vec((0..3_000_000u64, 1..50u64), 1..200),
        ) {
            let (bucket, pace) = (Bucket::default(), pace(per_second, burst));
            let (mut now_ns, mut count, mut hungry) = (start_ns, 0, true);
            for (dt_ns, tries) in steps {
                now_ns += dt_ns;
                let got = taken(&bucket, pace, now_ns, tries);
                hungry &= got < tries;
                count += got;
                let elapsed = u128::from(now_ns - start_ns) * u128::from(per_second) / u128::from(SECOND_NS);
                prop_assert!(u128::from(count) <= u128::from(burst) + elapsed);
                if hungry && burst >= 2 {
                    // Whoever takes all there is gets what the rate says, but for the rounding; gaps longer than the burst
                    // lasts lose tokens, so that only those shorter are held against it.
                    let lasts = u64::from(burst - 1) * SECOND_NS.div_ceil(per_second.into());
                    if dt_ns > lasts {
                        hungry = false;
                    } else {
                        let least = u128::from(now_ns - start_ns) / u128::from(SECOND_NS.div_ceil(per_second.into()));
                        prop_assert!(u128::from(count) + 1 >= least);
                    }
                }
            }
        }

        #[test]
        fn a_clock_that_stands_or_goes_back_brings_nothing(
            burst in 1..100u32,
            start_ns in 0..u64::MAX / 2,
            back in proptest::collection::vec(any::<u64>(), 1..200),
        ) {
            let (bucket, pace) = (Bucket::default(), pace(1000, burst));
            prop_assert_eq!(taken(&bucket, pace, start_ns, 200), u64::from(burst));
            for back in back {
                prop_assert_eq!(taken(&bucket, pace, start_ns.saturating_sub(back), 3), 0);
            }
        }
    }
}
