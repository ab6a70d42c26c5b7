//! Frames that wait for a next hop.

use xdp_prog::abi::BackendIndex;

use super::{FlowKey, HoldBounds, Kind, Outcome};

/// A frame that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) kind: Kind,
    pub(super) flow: FlowKey,
    pub(super) frame: Vec<u8>,
    pub(super) since_ns: u64,
}

impl Held {
    pub(super) fn deadline_ns(&self, bounds: HoldBounds) -> u64 {
        self.since_ns.saturating_add(u64::from(bounds.timeout_ms) * 1_000_000)
    }
}

/// All that wait at one worker.
#[derive(Debug, Default)]
pub(super) struct Hold {
    held: Vec<(BackendIndex, Held)>,
}

impl Hold {
    /// Keeps a frame; whether it is the first of its backend.
    pub(super) fn put(&mut self, _bounds: HoldBounds, backend: BackendIndex, held: Held) -> Result<bool, Outcome> {
        self.held.push((backend, held));
        Ok(true)
    }

    /// Lets all go, oldest first.
    pub(super) fn take_all(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
            .into_iter()
            .map(|(_, held)| held)
            .collect()
    }

    /// When the oldest has waited long enough.
    pub(super) fn deadline(&self, _bounds: HoldBounds) -> Option<u64> {
        None
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}
