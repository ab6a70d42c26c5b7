//! Virtual reassembly: all fragments of a datagram go where its first goes. Never puts a datagram together.

use super::{FlowKey, FragmentBounds, Outcome, Packet};

/// What a datagram is, once its first fragment is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Datagram {
    /// Part of a flow.
    Flow(FlowKey),
    /// An echo request.
    Echo,
    /// Nothing that is forwarded or answered.
    Other,
}

/// What to do with a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Treat it as its datagram, and then those that waited for it, in the order they came.
    Go { datagram: Datagram, released: Vec<Vec<u8>> },
    /// It waits for the first.
    Held,
    /// Drop it, and as many that were held.
    Drop { outcome: Outcome, released: usize },
}

/// The datagrams that are being watched.
#[derive(Debug)]
pub(super) struct Fragments {}

impl Fragments {
    pub(super) fn new(_bounds: FragmentBounds) -> Self {
        Self {}
    }

    /// Takes in a fragment.
    pub(super) fn arrive(&mut self, _now_ns: u64, _packet: &Packet<'_>) -> Arrival {
        Arrival::Held
    }

    /// Forgets what is too old; how many held frames were dropped.
    pub(super) fn expire(&mut self, _now_ns: u64) -> usize {
        0
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        None
    }
}
