//! What routers say, in one form for all of them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

/// RFC 4271 §8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionState {
    /// Not trying, or between two tries.
    Idle,
    /// Connecting.
    Connect,
    /// Waiting to be connected to.
    Active,
    /// The OPEN is sent.
    OpenSent,
    /// The neighbour's OPEN is in.
    OpenConfirm,
    /// UPDATEs flow.
    Established,
}

/// A BGP session, as the router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its state.
    pub state: SessionState,
    /// Why it last went down, in the daemon's own words. GoBGP does not say.
    pub last_error: Option<String>,
}

/// One path to a prefix, as the router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The prefix.
    pub prefix: IpNet,
    /// The neighbour it came from.
    pub from: Option<IpAddr>,
    /// Whether the router prefers it, alone or as the first of several.
    pub best: bool,
    /// Whether it is kept only because its neighbour restarts gracefully. BIRD does not say.
    pub stale: bool,
    /// Next hops: of IPv6 prefixes there may be a global and a link-local one.
    pub next_hops: BTreeSet<IpAddr>,
    /// Autonomous systems, nearest first.
    pub as_path: Vec<u32>,
    /// Standard communities.
    pub communities: BTreeSet<(u16, u16)>,
    /// Large communities.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// Local preference, as received or as the router set it. GoBGP shows only what was received.
    pub local_pref: Option<u32>,
    /// Multi-exit discriminator.
    pub med: Option<u32>,
}

/// RFC 5880 §6.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BfdState {
    /// Switched off.
    AdminDown,
    /// Down.
    Down,
    /// The peer is heard, and does not hear us yet.
    Init,
    /// Up.
    Up,
}

/// A BFD session, as the router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdSession {
    /// Its state.
    pub state: BfdState,
    /// What the router sends by now, in milliseconds between two packets.
    pub interval_ms: u32,
    /// Why the peer's session last went down, in the daemon's own words. BIRD does not say.
    pub remote_diagnostic: Option<String>,
}
