//! What all workers of a node share: budgets, what each source has had, and the fragments of datagrams that may arrive on
//! several queues. Never reads a clock. Budgets are taken without locks.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use xdp_prog::hash;

use super::{
    Budgets, FragmentBounds, HoldBounds, Kind,
    bucket::{Bucket, Pace},
    fragments::Fragments,
};
use crate::desired::Rate;

/// Buckets of sources: 64 KiB. Sources that fall into one bucket share it: with `n` other sources at a time, one shares with
/// probability `1 - (1 - 1/8192)^n`, which is 1% with 100 and 11% with 1,000.
pub const SOURCE_BUCKETS: usize = 8192;

/// How much the slow path may do and hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// By kind of work.
    pub budgets: Budgets,
    /// Answers to one source, a second; 0: none.
    pub replies_per_source: u32,
    /// Virtual reassembly.
    pub fragments: FragmentBounds,
    /// Frames that wait for next hops, of each worker.
    pub hold: HoldBounds,
}

/// What all workers of a node share.
#[derive(Debug)]
pub struct Common {
    bounds: Bounds,
    /// By kind.
    kinds: [(Pace, Bucket); Kind::ALL.len()],
    per_source: Pace,
    /// [`SOURCE_BUCKETS`] of them.
    sources: Box<[Bucket]>,
    seed: [u64; 4],
    fragments: Mutex<Fragments>,
}

impl Common {
    /// With full budgets. `secret` is this start's own: it keeps others from choosing which sources share a budget.
    pub fn new(bounds: Bounds, secret: u64) -> Self {
        let per_source = Rate {
            per_second: bounds.replies_per_source,
            burst: bounds.replies_per_source,
        };
        let first = hash::mix(secret);
        Self {
            bounds,
            kinds: Kind::ALL.map(|kind| (bounds.budgets[kind].into(), Bucket::default())),
            per_source: per_source.into(),
            sources: (0..SOURCE_BUCKETS).map(|_| Bucket::default()).collect(),
            seed: [first, secret, !first, first.rotate_left(32) ^ secret],
            fragments: Mutex::new(Fragments::new(bounds.fragments)),
        }
    }

    /// How much the slow path may do and hold.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Takes a token of a kind's budget; whether there was one.
    pub fn take(&self, kind: Kind, now_ns: u64) -> bool {
        let (pace, bucket) = &self.kinds[kind as usize];
        bucket.take(*pace, now_ns)
    }

    /// Takes a token for an answer to this source, an IPv4 address or a /64 of IPv6; whether there was one.
    pub fn take_for(&self, source: IpAddr, now_ns: u64) -> bool {
        let words = match source {
            IpAddr::V4(source) => [source.to_bits().into(), 4],
            // Whoever has an address of a /64 has as many as it likes.
            IpAddr::V6(source) => [(source.to_bits() >> 64) as u64, 6],
        };
        let hash = hash::flow_v6(&self.seed, words, [0, 0], 0, 0);
        let bucket = self.sources.get((hash >> 32) as usize % SOURCE_BUCKETS);
        bucket.is_some_and(|bucket| bucket.take(self.per_source, now_ns))
    }

    /// Datagrams whose fragments are being watched, and bytes that are held for them.
    pub fn watched(&self) -> (usize, u64) {
        self.fragments().watched()
    }

    /// The most memory that all this takes, in bytes.
    pub fn memory_bound(&self) -> u64 {
        self.bounds.fragments.memory_bound() + (SOURCE_BUCKETS * size_of::<Bucket>()) as u64
    }

    pub(super) fn fragments(&self) -> MutexGuard<'_, Fragments> {
        self.fragments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr};

    use super::{Bounds, Common};
    use crate::{
        desired::Rate,
        slow::{Budgets, Kind},
    };

    fn common(replies_per_source: u32, secret: u64) -> Common {
        let budgets = Budgets::new(|kind| Rate {
            per_second: 10,
            burst: kind as u32 + 1,
        });
        let bounds = Bounds {
            budgets,
            replies_per_source,
            ..Bounds::default()
        };
        Common::new(bounds, secret)
    }

    fn answers(common: &Common, source: impl Into<IpAddr>, tries: usize) -> usize {
        let source = source.into();
        (0..tries).filter(|_| common.take_for(source, 1)).count()
    }

    #[test]
    fn a_flood_of_one_kind_takes_nothing_of_the_others() {
        let common = common(1, 7);
        for flooded in Kind::ALL {
            let got = (0..100).filter(|_| common.take(flooded, 1)).count();
            assert_eq!(got, flooded as usize + 1, "{flooded:?}: its burst and no more");
        }
    }

    #[test]
    fn each_source_has_answers_of_its_own() {
        let common = common(5, 7);
        assert_eq!(answers(&common, [192, 0, 2, 1], 100), 5);
        assert_eq!(answers(&common, [192, 0, 2, 2], 100), 5);
    }

    #[test]
    fn addresses_of_one_64_share_their_answers() {
        let common = common(5, 7);
        let host = |subnet: u16, host: u16| [0x2001, 0xdb8, 0, subnet, 0, 0, 0, host];
        assert_eq!(answers(&common, host(1, 1), 3) + answers(&common, host(1, 2), 100), 5);
        assert_eq!(answers(&common, host(2, 1), 100), 5);
    }

    #[test]
    fn no_answers_at_all_are_none() {
        assert_eq!(answers(&common(0, 7), [192, 0, 2, 1], 10), 0);
    }

    /// Sources that get an answer when each asks once and every bucket has one: how many buckets they fall into.
    fn buckets(secret: u64, sources: u32) -> BTreeSet<u32> {
        let common = common(1, secret);
        (0..sources)
            .filter(|source| answers(&common, source.to_be_bytes(), 1) == 1)
            .collect()
    }

    #[test]
    fn sources_spread_over_the_buckets_and_the_secret_says_which_share() {
        // 1,000 sources in 8,192 buckets: 942 buckets are expected, with a deviation of 7.
        let (one, other) = (buckets(1, 1000), buckets(2, 1000));
        for buckets in [&one, &other] {
            assert!((900..=980).contains(&buckets.len()), "{}", buckets.len());
        }
        assert_ne!(one, other);
    }
}
