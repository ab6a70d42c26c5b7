//! Fault points: the operator dies at a write that a test names.
//!
//! Never does anything unless [`super::Options::fault`] asks for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Where the operator stops, as if it were killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// At which of its writes, from 1. Events and the leader's Lease do not count.
    pub write: u64,
    /// On which side of it.
    pub side: Side,
}

/// On which side of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The API server never hears of the write.
    Before,
    /// The API server has done it; its answer is lost.
    After,
}

/// Counts writes up to the fault.
#[derive(Debug, Default)]
pub(super) struct Fault {
    plan: Option<FaultPlan>,
    writes: AtomicU64,
}

impl Fault {
    pub(super) fn new(plan: Option<FaultPlan>) -> Self {
        Self {
            plan,
            writes: AtomicU64::new(0),
        }
    }

    /// One more write is due: the side on which it kills. A dead operator writes no more: all later ones die before.
    pub(super) fn next_write(&self) -> Option<Side> {
        let plan = self.plan?;
        let number = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        match number.cmp(&plan.write) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(plan.side),
            std::cmp::Ordering::Greater => Some(Side::Before),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_write_and_all_after_it_kill() {
        let plan = FaultPlan {
            write: 2,
            side: Side::After,
        };
        let fault = Fault::new(Some(plan));
        let sides: Vec<_> = (0..4).map(|_| fault.next_write()).collect();
        assert_eq!(sides, [None, Some(Side::After), Some(Side::Before), Some(Side::Before)]);
    }
}
