//! Schedulers: how the backend of a new flow is chosen, and the order in which members take turns.
//!
//! Never chooses: the packet path does ([`xdp_prog::balance::schedule`]), by what stands here.

use std::{cmp::Reverse, collections::BinaryHeap, fmt};

use xdp_prog::abi::{MAX_TURNS, Method};

use crate::maglev;

/// Most seconds of [`crate::desired::Vip::affinity_timeout_s`], and what Kubernetes has for its `timeoutSeconds`.
pub const MAX_AFFINITY_S: u32 = 86_400;
/// Its default, likewise: three hours.
pub const AFFINITY_S: u32 = 10_800;

/// How the backend of a new flow is chosen: IPVS's nine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    /// By a hash of the whole flow, without state.
    #[default]
    Maglev,
    /// By a hash of the client's address, without state.
    SourceHash,
    /// By a hash of the VIP address: one backend takes all, and another one when it goes.
    DestinationHash,
    /// In turns.
    RoundRobin,
    /// In turns, as many for each as its weight says.
    WeightedRoundRobin,
    /// Who has the fewest open flows.
    LeastConnections,
    /// Who has the fewest open flows for its weight.
    WeightedLeastConnections,
    /// Who would have the fewest open flows for its weight with the new one.
    ShortestExpectedDelay,
    /// Who has none; where all have some, as [`Self::ShortestExpectedDelay`].
    NeverQueue,
}

impl Scheduler {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Maglev,
        Self::SourceHash,
        Self::DestinationHash,
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnections,
        Self::WeightedLeastConnections,
        Self::ShortestExpectedDelay,
        Self::NeverQueue,
    ];
    /// Their names.
    pub const NAMES: [&str; 9] = ["mh", "sh", "dh", "rr", "wrr", "lc", "wlc", "sed", "nq"];

    /// As configuration and output write it, and IPVS.
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The scheduler of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheduler| scheduler.name() == name)
    }

    /// How the packet path chooses.
    pub const fn method(self) -> Method {
        match self {
            Self::Maglev | Self::SourceHash | Self::DestinationHash => Method::Slot,
            Self::RoundRobin | Self::WeightedRoundRobin => Method::Turn,
            Self::LeastConnections | Self::WeightedLeastConnections => Method::Least,
            Self::ShortestExpectedDelay => Method::Expected,
            Self::NeverQueue => Method::Idle,
        }
    }

    /// Whether weights count for more than whether they are 0. Tables of slots are always weighted.
    pub const fn is_weighted(self) -> bool {
        match self {
            Self::RoundRobin | Self::LeastConnections => false,
            Self::Maglev
            | Self::SourceHash
            | Self::DestinationHash
            | Self::WeightedRoundRobin
            | Self::WeightedLeastConnections
            | Self::ShortestExpectedDelay
            | Self::NeverQueue => true,
        }
    }

    /// Whether where a flow went says nothing of where it would go again, so that each is recorded.
    pub const fn keeps_state(self) -> bool {
        !matches!(self.method(), Method::Slot)
    }

    /// Whether open flows are counted to choose by them.
    pub const fn counts(self) -> bool {
        matches!(self.method(), Method::Least | Method::Expected | Method::Idle)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A round of turns: for each the position of who has it. As many for each of `weights` as it says, divided by what all have in common;
/// rounded to shares of [`MAX_TURNS`] where that would be longer. Spread evenly: the turns of weight `w` of `sum` are `sum / w` apart, to
/// within one turn or two. Empty where nobody has a weight.
pub fn turns(weights: &[u16]) -> Vec<u16> {
    let common = weights.iter().fold(0, |common, weight| gcd(common, u32::from(*weight)));
    let shares: Vec<u32> = match common {
        0 => return Vec::new(),
        common => weights.iter().map(|weight| u32::from(*weight) / common).collect(),
    };
    let sum: u64 = shares.iter().copied().map(u64::from).sum();
    let shares = if sum > MAX_TURNS as u64 {
        // More takers than turns get one each, as slots are shared.
        let takers = weights.iter().filter(|weight| **weight > 0).count();
        maglev::quotas(weights, MAX_TURNS.max(takers))
    } else {
        shares
    };
    let sum: u32 = shares.iter().sum();
    // Who is furthest behind is next: the turn number k of a share is due at (2k + 1) / (2 share) of the round (Webster). Compared as
    // fractions of 2^32, in which no two dues of different shares of at most 65,535 fall together unless they are equal.
    let due = |taken: u32, share: u32| (u64::from(2 * taken + 1) << 32) / u64::from(share);
    let mut waiting: BinaryHeap<Reverse<(u64, u16, u32)>> = shares
        .iter()
        .zip(0..)
        .filter(|(share, _)| **share > 0)
        .map(|(share, position)| Reverse((due(0, *share), position, 0)))
        .collect();
    let mut turns = Vec::with_capacity(sum as usize);
    while let Some(Reverse((_, position, taken))) = waiting.pop() {
        turns.push(position);
        let share = shares[usize::from(position)];
        if taken + 1 < share {
            waiting.push(Reverse((due(taken + 1, share), position, taken + 1)));
        }
    }
    turns
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MAX_TURNS, Scheduler, turns};

    #[test]
    fn names_lead_to_their_schedulers() {
        for scheduler in Scheduler::ALL {
            assert_eq!(Scheduler::named(scheduler.name()), Some(scheduler));
        }
        assert_eq!(Scheduler::named("lblc"), None);
    }

    #[test]
    fn equal_weights_take_turns_in_order() {
        assert_eq!(turns(&[7, 7, 0, 7]), [0, 1, 3]);
        assert_eq!(turns(&[0, 0]), Vec::<u16>::new());
        assert_eq!(turns(&[1, 3]), [1, 0, 1, 1]);
    }

    proptest! {
        /// Shares are exact over a round, and no prefix of a round strays from them by more than two turns.
        #[test]
        fn turns_are_even(weights in proptest::collection::vec(0_u16..40, 1..30)) {
            let turns = turns(&weights);
            let sum: u64 = weights.iter().copied().map(u64::from).sum();
            prop_assert_eq!(turns.is_empty(), sum == 0);
            let mut taken = vec![0_u64; weights.len()];
            for (passed, position) in (1_u64..).zip(&turns) {
                taken[usize::from(*position)] += 1;
                for (taken, weight) in taken.iter().zip(&weights) {
                    let exact = (passed * u64::from(*weight)) as f64 / sum as f64;
                    prop_assert!((*taken as f64 - exact).abs() < 2.0, "{taken} of {exact} after {passed}");
                }
            }
            for (taken, weight) in taken.iter().zip(&weights) {
                prop_assert_eq!(taken * sum, u64::from(*weight) * turns.len() as u64);
            }
        }

        /// Where a round would be too long, a share is off by less than one turn of the longest round, and nobody is left out.
        #[test]
        fn long_rounds_are_rounded(weights in proptest::collection::vec(1_u16..=u16::MAX, 2..60)) {
            let turns = turns(&weights);
            prop_assert!(turns.len() <= MAX_TURNS);
            let sum: f64 = weights.iter().copied().map(f64::from).sum();
            for (position, weight) in (0..).zip(&weights) {
                let taken = turns.iter().filter(|turn| **turn == position).count() as f64;
                let exact = f64::from(*weight) / sum * turns.len() as f64;
                prop_assert!(taken >= 1.0 && (taken - exact).abs() < 2.0, "{taken} of {exact}");
            }
        }
    }
}
