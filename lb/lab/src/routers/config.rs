//! What a router shall be, whichever daemon it is. Never the daemon's own words: each daemon's file renders them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

/// The daemons there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouterKind {
    /// BIRD 2: one process.
    Bird,
    /// FRR: zebra, bgpd and bfdd.
    Frr,
    /// GoBGP: no BFD, and nothing in the kernel's table.
    Gobgp,
}

impl RouterKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bird, Self::Frr, Self::Gobgp];
}

impl fmt::Display for RouterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bird => "BIRD",
            Self::Frr => "FRR",
            Self::Gobgp => "GoBGP",
        })
    }
}

/// IPv4 or IPv6 unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 unicast.
    V4,
    /// IPv6 unicast.
    V6,
}

impl Family {
    pub(super) fn holds(self, prefix: &IpNet) -> bool {
        matches!((self, prefix), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }

    /// `ipv4` or `ipv6`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// A router's whole configuration.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Its own autonomous system.
    pub asn: u32,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
    /// Whom it speaks BGP with.
    pub neighbours: Vec<Neighbour>,
    /// What it announces to all of them.
    pub inject: Vec<Injected>,
    /// Whom it has a BFD session with that no BGP session asks for.
    pub bfd_peers: Vec<BfdPeer>,
}

impl RouterConfig {
    /// A router with no neighbours.
    #[must_use]
    pub fn new(asn: u32, router_id: Ipv4Addr) -> Self {
        Self {
            asn,
            router_id,
            neighbours: Vec::new(),
            inject: Vec::new(),
            bfd_peers: Vec::new(),
        }
    }

    /// With one neighbour more.
    #[must_use]
    pub fn neighbour(mut self, neighbour: Neighbour) -> Self {
        self.neighbours.push(neighbour);
        self
    }

    /// With one prefix more that it announces to all its neighbours.
    #[must_use]
    pub fn inject(mut self, prefix: Injected) -> Self {
        self.inject.push(prefix);
        self
    }

    /// With one BFD session more, without BGP.
    #[must_use]
    pub fn bfd_peer(mut self, peer: BfdPeer) -> Self {
        self.bfd_peers.push(peer);
        self
    }
}

/// A BGP neighbour. Timers are short: a router tries again after a second.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// The interface, for a link-local address.
    pub interface: Option<String>,
    /// Its autonomous system.
    pub asn: u32,
    /// The router's own address in this session; without it, what its routes choose.
    pub local: Option<IpAddr>,
    /// TCP MD5; one word.
    pub password: Option<String>,
    /// Up to how many hops away it is; `None`: on the same link.
    pub multihop: Option<u8>,
    /// Whether the router waits to be connected to.
    pub passive: bool,
    /// What the session carries.
    pub families: Vec<Family>,
    /// Whether the router keeps the neighbour's routes while that restarts gracefully (RFC 4724, the receiving side).
    pub graceful_restart: bool,
    /// BFD for this session.
    pub bfd: Option<BfdTimers>,
    /// IPv4 prefixes with IPv6 next hops (RFC 8950). GoBGP offers it by itself, and only to neighbours with an IPv6 address.
    pub extended_next_hop: bool,
    /// The hold time offered, in seconds.
    pub hold_time: u16,
}

impl Neighbour {
    /// A neighbour on the same link, that the router connects to, with both families, without password, graceful restart and BFD.
    #[must_use]
    pub fn new(address: IpAddr, asn: u32) -> Self {
        Self {
            address,
            interface: None,
            asn,
            local: None,
            password: None,
            multihop: None,
            passive: false,
            families: vec![Family::V4, Family::V6],
            graceful_restart: false,
            bfd: None,
            extended_next_hop: false,
            hold_time: 90,
        }
    }
}

/// A BFD session that no BGP session asks for.
#[derive(Clone, Debug)]
pub struct BfdPeer {
    /// The peer's address.
    pub address: IpAddr,
    /// The router's own address.
    pub local: IpAddr,
    /// The interface towards the peer. `None`: the session is a multihop one.
    pub interface: Option<String>,
    /// Its timers.
    pub timers: BfdTimers,
}

/// BFD's timers, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BfdTimers {
    /// Desired between two packets sent.
    pub min_tx_ms: u32,
    /// Required between two packets received.
    pub min_rx_ms: u32,
    /// How many may be missing.
    pub multiplier: u8,
}

/// A prefix that the router announces.
#[derive(Clone, Debug)]
pub struct Injected {
    /// The prefix.
    pub prefix: IpNet,
    /// Standard communities.
    pub communities: Vec<(u16, u16)>,
    /// Large communities.
    pub large_communities: Vec<(u32, u32, u32)>,
    /// The multi-exit discriminator.
    pub med: Option<u32>,
    /// The next hop; without it, the router itself. (Only GoBGP needs it, for IPv6.)
    pub next_hop: Option<IpAddr>,
}

impl Injected {
    /// A prefix without attributes of its own.
    #[must_use]
    pub fn new(prefix: IpNet) -> Self {
        Self {
            prefix,
            communities: Vec::new(),
            large_communities: Vec::new(),
            med: None,
            next_hop: None,
        }
    }
}
