//! Next hops: how packets reach every backend now. Never does IO and never reads a clock: [`Resolver`] is told what the
//! kernel says ([`Event`]) and when (`now`, a monotonic time since any epoch), and returns what to ask of it ([`Command`]).
//!
//! | file | what it decides |
//! |---|---|
//! | `resolver` | which routes to look up again, and when; what the view says |
//! | `links` | whether packets may leave by an interface: its port, VLAN tags, MAC address, MTU |
//! | `neighbours` | which neighbour entries to create, keep fresh and let go; which MAC address counts |
//! | `event` | the vocabulary shared with the driver |
//! | `unresolved` | why a backend has no next hop |
//!
//! **The kernel decides, we ask.** Routes are not interpreted: each backend's address is looked up in the kernel's FIB, so
//! policy routing, multipath and path MTU are what they are for the kernel's own packets.
//!
//! **Neighbours are kept by the kernel.** XDP traffic does not touch neighbour entries, so the kernel would let them go
//! stale. Those in use are made *managed* (`NTF_EXT_MANAGED`, Linux 5.16): the kernel re-probes them itself and never collects
//! them as garbage. Probing from here instead would need a timer per entry and forget all of them in a crash.

mod event;
mod links;
mod neighbours;
mod resolver;
#[cfg(test)]
mod tests;
mod unresolved;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub use event::{
    Address, Command, Event, Keeper, Link, Neighbour, NeighbourState, RouteAnswer, RouteRefusal, Snapshot, Vlan,
};
use ipnet::{Ipv4Net, Ipv6Net};
pub use neighbours::{DELETION, HURRY_GAP, KEEP_AGAIN, LINGER, SOLICIT_AGAIN, SOLICITS_PER_STEP};
pub use resolver::{LOOKUPS_PER_STEP, PASS_GAP, Resolver};
pub use unresolved::Unresolved;

use crate::desired::{BackendId, NextHops};

/// What an operator configures of next hops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Names of the interfaces that packets may leave by; the position of one is its port. At most `MAX_PORTS` (64).
    pub interfaces: Vec<Arc<str>>,
    /// Outer source addresses.
    pub sources: Sources,
}

/// Outer source address by family of the backend; `None`: what the kernel would use for packets of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// For IPv4 backends.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6 backends.
    pub v6: Option<Ipv6Addr>,
}

impl Sources {
    /// `encap.source: node`, with what the operator overrides.
    pub const fn node(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Self {
        Self { v4, v6 }
    }

    /// `encap.source: prefix`: the first address of each prefix. The program fills in the low bits.
    pub fn prefix(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Self {
        Self {
            v4: v4.map(|net| net.network()),
            v6: v6.map(|net| net.network()),
        }
    }

    /// The configured source for packets to `destination`.
    fn fixed_for(&self, destination: IpAddr) -> Option<IpAddr> {
        match destination {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

/// What is known of next hops at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHopView {
    /// Next hop of every backend.
    pub next_hops: NextHops,
    /// Why: an entry for every backend whose next hop is `Unresolved`, and for no other.
    pub unresolved: BTreeMap<BackendId, Unresolved>,
    /// Addresses of this node, without loopback and link-local ones: for `Desired::own_addresses` and `Tunnel::locals`.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Configured interfaces that are down, have no carrier, or are not there.
    pub down: BTreeSet<Arc<str>>,
    /// The kernel has answered for every backend at least once. Neighbours may still be missing.
    pub complete: bool,
}
