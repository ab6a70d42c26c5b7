//! What the fast path hands to the slow path, at most, of each verdict.
//!
//! Never measures: what was shed is in [`Counters`].

use xdp_prog::{
    abi::SlowState,
    verdict::{Fate, Verdict},
};

use super::{Balancer, Counters, DatapathError};

/// Words of a `SlowBudget`, in the order of its fields.
const RATE: u32 = 0;
const BURST: u32 = 1;

impl Balancer {
    /// Sets what the slow path takes of a verdict on each CPU: `rate` packets per jiffy, `burst` saved up at most, both in
    /// 1/65,536 packet ([`xdp_prog::limit::TOKEN`]). A burst of 0 means no limit, which is what holds until this is called; a burst
    /// below one packet takes nothing. Live, and in two stores: for a moment the new rate meets the old burst.
    ///
    /// # Errors
    ///
    /// Never: every verdict has a place.
    pub fn set_budget(&self, verdict: Verdict, rate: u64, burst: u64) -> Result<(), DatapathError> {
        self.slow_budgets.store(verdict as u32, RATE, rate)?;
        self.slow_budgets.store(verdict as u32, BURST, burst)
    }
}

impl Counters {
    /// Packets shed for want of a budget, by the verdict that they would have had: all verdicts for the slow path, in the order of
    /// the counters. Their sum is what [`Verdict::DropSlowBudget`] counts.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn shed(&self) -> Result<Vec<(Verdict, u64)>, DatapathError> {
        let count = u32::try_from(Verdict::ALL.len()).unwrap_or(u32::MAX);
        Ok(sheds(self.slow.sums(count)?))
    }
}

/// Of all verdicts' states, the sheds of those for the slow path.
pub(super) fn sheds(states: Vec<SlowState>) -> Vec<(Verdict, u64)> {
    let all = Verdict::ALL.iter().copied().zip(states);
    all.filter(|(verdict, _)| verdict.fate() == Fate::Slow)
        .map(|(verdict, state)| (verdict, state.shed))
        .collect()
}
