//! Token buckets on jiffies, one per CPU and VIP: no helper call, no lock, no state shared between CPUs.

/// One packet in a bucket's unit.
pub const TOKEN: u64 = 1 << 16;
/// Longest silence that is credited, in jiffies; keeps the product below 2^60 for rates up to 16 million packets per jiffy.
const LONGEST: u64 = 1 << 20;

/// Takes a token. `rate` is per jiffy, `burst` the most that a bucket holds, both in 1/65,536 packet. `tokens` and `jiffy` are the
/// bucket's state, all-zero at first, which counts as full.
#[inline(always)]
pub fn take(tokens: &mut u64, jiffy: &mut u64, rate: u64, burst: u64, now: u64) -> bool {
    let mut elapsed = now.wrapping_sub(*jiffy);
    if elapsed > LONGEST {
        elapsed = LONGEST;
    }
    let mut level = *tokens + elapsed * rate;
    if *jiffy == 0 || level > burst {
        level = burst;
    }
    *jiffy = now;
    let enough = level >= TOKEN;
    *tokens = if enough { level - TOKEN } else { level };
    enough
}

#[cfg(test)]
mod tests {
    use super::{TOKEN, take};

    #[test]
    fn burst_then_rate() {
        let (mut tokens, mut jiffy) = (0, 0);
        let mut admitted = |now, rate, burst| {
            (0..100)
                .filter(|_| take(&mut tokens, &mut jiffy, rate, burst, now))
                .count()
        };
        assert_eq!(admitted(1_000, 2 * TOKEN, 10 * TOKEN), 10, "a fresh bucket is full");
        assert_eq!(admitted(1_000, 2 * TOKEN, 10 * TOKEN), 0);
        assert_eq!(admitted(1_003, 2 * TOKEN, 10 * TOKEN), 6);
        assert_eq!(
            admitted(9_000, 2 * TOKEN, 10 * TOKEN),
            10,
            "silence saves up no more than the burst"
        );
    }

    #[test]
    fn slow_rates_add_up_over_jiffies() {
        let (mut tokens, mut jiffy) = (0, 0);
        assert!(take(&mut tokens, &mut jiffy, TOKEN / 4, TOKEN, 1));
        let admitted = (2..402)
            .filter(|&now| take(&mut tokens, &mut jiffy, TOKEN / 4, TOKEN, now))
            .count();
        assert_eq!(admitted, 100);
    }
}
