//! Records of flows that user space takes away.
//!
//! Never writes a record but by compare-and-swap, as packets do.

use std::collections::BTreeSet;

use lb_core::transit::forgotten;
use xdp_prog::abi::{BackendIndex, FlowWord};

use super::{Balancer, DatapathError};

impl Balancer {
    /// Forgets all UDP flows that are recorded at these backends. Looks at every record: some 10 ms for 2M of them.
    pub(super) fn forget_datagrams(&self, backends: &[BackendIndex]) -> Result<(), DatapathError> {
        let backends: BTreeSet<u16> = backends.iter().map(|backend| backend.0).collect();
        for bucket in 0..self.flows.entries() {
            for way in (0..self.flows.words()).step_by(2) {
                let mut word = self.flows.load(bucket, way)?;
                while let Some(swept) = forgotten(FlowWord(word), &backends) {
                    match self.flows.swap(bucket, way, word, swept.0)? {
                        Ok(()) => break,
                        // A packet was faster: it has renewed the record, or given its place to another flow.
                        Err(now) => word = now,
                    }
                }
            }
        }
        Ok(())
    }
}
