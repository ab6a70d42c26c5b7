//! The flow table, swept: records of flows that are over make room, are counted down, and are told apart from new ones for ever.
//!
//! Never touches a record that lives, and never waits: it takes a part of the table at a time. What a packet claims meanwhile is the
//! packet's: both change a record by compare-and-swap, and who changed it counts it.

use lb_core::sweep::{Look, look};
use xdp_prog::abi::{FLOW_WAYS, FlowLives, FlowWord};

use super::{Balancer, DatapathError};

/// How far the sweep of a flow table has come, and what it has seen.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The next bucket.
    next: u32,
    /// Living flows by backend, in the buckets before that.
    seen: Vec<u32>,
    /// The same of the whole table, when it was swept last.
    last: Option<Vec<u32>>,
}

impl Sweep {
    /// Sweeps one of `parts` of the table; `now` in ticks.
    ///
    /// # Errors
    ///
    /// Never, for the table that it began with.
    pub fn step(&mut self, balancer: &Balancer, parts: u32, now: u32, lives: FlowLives) -> Result<(), DatapathError> {
        let buckets = balancer.flows.entries();
        self.seen.resize(balancer.backends.entries() as usize, 0);
        let end = self.next.saturating_add(buckets.div_ceil(parts.max(1))).min(buckets);
        for bucket in self.next..end {
            for way in 0..FLOW_WAYS as u32 {
                self.record(balancer, bucket, 2 * way, now, lives)?;
            }
        }
        self.next = end;
        if end == buckets {
            self.next = 0;
            self.last = Some(std::mem::take(&mut self.seen));
        }
        Ok(())
    }

    /// Whether living flows were seen at a backend, or may have been before the table was swept for the first time.
    pub fn names(&self, backend: u16) -> bool {
        let at = |seen: &[u32]| seen.get(usize::from(backend)).is_some_and(|flows| *flows > 0);
        self.last.as_deref().is_none_or(at) || at(&self.seen)
    }

    /// Living flows that are recorded, as of the last time; `None` before the first.
    pub fn flows(&self) -> Option<u64> {
        let last = self.last.as_ref()?;
        Some(last.iter().copied().map(u64::from).sum())
    }

    fn record(
        &mut self,
        balancer: &Balancer,
        bucket: u32,
        word: u32,
        now: u32,
        lives: FlowLives,
    ) -> Result<(), DatapathError> {
        let record = FlowWord(balancer.flows.load(bucket, word)?);
        match look(record, now, lives) {
            Look::Free | Look::Client => {}
            Look::Flow(backend) => {
                if let Some(seen) = self.seen.get_mut(usize::from(backend)) {
                    *seen += 1;
                }
            }
            Look::Over(swept) => {
                let is_ours = balancer.flows.replace(bucket, word, record.0, swept.0)?;
                if is_ours && record.counts() != 0 && balancer.open_flows.entries() > 1 {
                    balancer.open_flows.add(u32::from(record.backend()), 0, u64::MAX)?;
                }
            }
        }
        Ok(())
    }
}
