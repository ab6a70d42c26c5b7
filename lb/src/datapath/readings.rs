//! A loaded program's counters for who reads them on a thread of its own.
//!
//! Never writes. The maps live as long as somebody reads them: a program that was replaced is read to the end, and then gone.

use std::sync::Arc;

use xdp_prog::{
    abi::{FlowCounts, SlowState, Traffic},
    verdict::Verdict,
};

use super::{Counters, DatapathError, Passed, budgets::sheds, counters::Shares};

/// The counters of a loaded program, to be read. Five descriptors.
pub struct Readings {
    verdicts: Shares<u64>,
    vips: Shares<Traffic>,
    backends: Shares<Traffic>,
    slow: Shares<SlowState>,
    flows: Shares<FlowCounts>,
    passed: Arc<Passed>,
}

impl Counters {
    /// The same counters, for another thread.
    ///
    /// # Errors
    ///
    /// When there are no further descriptors.
    pub fn readings(&self) -> Result<Readings, DatapathError> {
        Ok(Readings {
            verdicts: self.verdicts.0.shares()?,
            vips: self.vips.shares()?,
            backends: self.backends.shares()?,
            slow: self.slow.shares()?,
            flows: self.flows.shares()?,
            passed: Arc::clone(&self.passed),
        })
    }
}

impl Readings {
    /// As [`Counters::of_verdicts`].
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_verdicts(&self) -> Result<Vec<(Verdict, u64)>, DatapathError> {
        let counts = Verdict::ALL.iter().copied().zip(self.verdicts.sums(all())?).collect();
        Ok(self.passed.with_verdicts(counts))
    }

    /// As [`Counters::of_sheds`].
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_sheds(&self) -> Result<Vec<(Verdict, u64)>, DatapathError> {
        Ok(self.passed.with_sheds(sheds(self.slow.sums(all())?)))
    }

    /// As [`Counters::of_vips`].
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_vips(&self, count: u32) -> Result<Vec<Traffic>, DatapathError> {
        Ok(self.passed.with_vips(self.vips.sums(count)?))
    }

    /// As [`Counters::of_backends`].
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_backends(&self, count: u32) -> Result<Vec<Traffic>, DatapathError> {
        Ok(self.passed.with_backends(self.backends.sums(count)?))
    }

    /// What found no room in the program's own flow table.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_flows(&self) -> Result<FlowCounts, DatapathError> {
        Ok(self.flows.sums(1)?.first().copied().unwrap_or_default())
    }
}

/// What found no room in a flow table, by what it is.
pub fn unrecorded(counts: FlowCounts) -> [(&'static str, u64); 4] {
    let FlowCounts {
        syns,
        datagrams,
        scheduled,
        clients,
    } = counts;
    [
        ("syns", syns),
        ("datagrams", datagrams),
        ("scheduled", scheduled),
        ("clients", clients),
    ]
}

/// Of verdicts.
fn all() -> u32 {
    u32::try_from(Verdict::ALL.len()).unwrap_or(u32::MAX)
}
