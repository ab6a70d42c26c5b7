//! What the tables should say: the meeting point of every source (file, Kubernetes) and the planner.
//!
//! Never holds positions in maps; those are the planner's. Ordered collections only, so that the same desired state gives the
//! same tables on every LB node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{health::Checks, schedule::Scheduler};

/// Identity of a backend: its name, which survives reordering, restarts and a change of address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub Arc<str>);

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Transport protocols that a VIP may have. The discriminant is the IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// As configuration and output write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey {
    /// VIP address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port, host order, never 0.
    pub port: u16,
}

impl fmt::Display for VipKey {
    /// `tcp 203.0.113.10:80`, `udp [2001:db8::1]:53`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.protocol,
            std::net::SocketAddr::new(self.address, self.port)
        )
    }
}

/// Where flows may be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address of the outer header's destination.
    pub address: IpAddr,
}

/// A backend's part in a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Which backend.
    pub backend: BackendId,
    /// Share of new flows relative to the other members; 0 takes none.
    pub weight: u16,
}

/// Backends that share a lookup table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendSet {
    /// Sorted by backend, each at most once.
    pub members: Vec<Member>,
    /// Slots of the lookup table as published with the set; `None`: by the number of members (64–128 each, 256 to 65,536).
    pub table_slots: Option<usize>,
}

/// Where flows lived before changes of a set that are not over, as it is published for all LB nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Base {
    /// Members before the first of those changes. Nobody need know all of them any more.
    pub set: Arc<BackendSet>,
    /// Who publishes it, by name.
    pub of: Arc<str>,
    /// When the first of those changes was: seconds since 1970.
    pub since_s: u64,
}

/// Rate limits, each per CPU that receives packets. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Packets.
    pub packets: Option<Rate>,
    /// TCP SYNs without ACK.
    pub syns: Option<Rate>,
}

/// A token bucket's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Packets per second, at least 1.
    pub per_second: u32,
    /// Packets that may come at once after silence, at least 1.
    pub burst: u32,
}

/// What becomes of an IPv4 packet that is too big for the way to its backend once encapsulated and that may be fragmented (no DF).
/// Whatever may not be, IPv6 included, is always answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TooBig {
    /// Sent in fragments, each encapsulated on its own.
    #[default]
    Fragment,
    /// Answered with ICMP fragmentation-needed and dropped, as if it had DF.
    Answer,
}

/// One VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Where its flows go. Equal sets share a table whether or not they are the same allocation.
    pub set: Arc<BackendSet>,
    /// Where its flows lived before changes that are not over, where that is published: who has no slots of its own for the VIP goes
    /// on from there, and nobody ends its transit before it is gone.
    pub base: Option<Arc<Base>>,
    /// Rate limits.
    pub limits: Limits,
    /// Sources that may use it; `None`: all. Sorted, as configured.
    pub allowed_sources: Option<Arc<[IpNet]>>,
    /// What becomes of packets that are too big once encapsulated.
    pub too_big: TooBig,
    /// Lower the MSS of SYNs to what fits the way to the backend. Only of TCP VIPs.
    pub clamp_mss: bool,
    /// All flows of a client's address go to one backend, whatever their ports; VIPs with equal sets agree. A client's new
    /// flows move with its slot when the set changes, and there is no timeout.
    pub client_affinity: bool,
    /// How the backend of a new flow is chosen.
    pub scheduler: Scheduler,
    /// How long, in seconds, a client's new flows to this VIP go where its last ones went, while that takes new flows; 1 to
    /// [`crate::schedule::MAX_AFFINITY_S`]. `None`: they go where the scheduler says.
    pub affinity_timeout_s: Option<u32>,
    /// Each datagram is a flow of its own to the scheduler, and nothing of it is recorded. Only of UDP VIPs whose scheduler does not
    /// count flows, without [`Self::affinity_timeout_s`].
    pub each_datagram: bool,
    /// UDP flows stay with their backend while it lives, as TCP connections always do. Off where a datagram is a question of its own:
    /// DNS.
    pub keeps_datagrams: bool,
    /// How this node learns whether backends serve; `None`: not at all. Decides nothing about tables: those are the desired state's, and
    /// health is laid on them ([`crate::health::Overlay`]).
    pub checks: Option<Arc<Checks>>,
}

/// Port at which a datagram is a question of its own, so that its flow is nothing to keep: DNS.
const DNS_PORT: u16 = 53;

/// [`Vip::keeps_datagrams`] of a port unless somebody says otherwise.
pub const fn keeps_datagrams(port: u16) -> bool {
    port != DNS_PORT
}

impl Vip {
    /// A VIP without options.
    pub fn new(set: Arc<BackendSet>) -> Self {
        Self {
            set,
            base: None,
            limits: Limits::default(),
            allowed_sources: None,
            too_big: TooBig::default(),
            clamp_mss: false,
            client_affinity: false,
            scheduler: Scheduler::default(),
            affinity_timeout_s: None,
            each_datagram: false,
            keeps_datagrams: true,
            checks: None,
        }
    }

    /// Whether the client's address alone chooses the slot.
    pub const fn hashes_client(&self) -> bool {
        self.client_affinity || self.affinity_timeout_s.is_some() || matches!(self.scheduler, Scheduler::SourceHash)
    }

    /// Whether flows are recorded always, and not only while backends change.
    pub const fn is_scheduled(&self) -> bool {
        self.scheduler.keeps_state() || self.affinity_timeout_s.is_some()
    }
}

/// What a node decapsulates, see the design's "Worker nodes".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer sources: the LB nodes.
    pub sources: Vec<IpNet>,
    /// Inner destinations: the VIP prefixes.
    pub vip_prefixes: Vec<IpNet>,
    /// Outer destinations: this node's own addresses.
    pub locals: BTreeSet<IpAddr>,
    /// Inner sources that are dropped: node, pod and Service networks.
    pub denied_inner_sources: Vec<IpNet>,
}

/// Everything that the maps of an LB node should say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// VIPs.
    pub vips: BTreeMap<VipKey, Vip>,
    /// Every backend that a set names.
    pub backends: BTreeMap<BackendId, Backend>,
    /// Backends that only a [`Base`] names, where somebody knows their address still.
    pub departed: BTreeMap<BackendId, Backend>,
    /// Backends that are in no set any more and of which the source knows that they are no more: nothing lives there, unless they
    /// answer all the same.
    pub gone: BTreeSet<BackendId>,
    /// Sources whose packets to any VIP are dropped.
    pub denied_sources: Vec<IpNet>,
    /// Addresses that this node uses itself: where one is a VIP address too, unserved ports pass to the kernel.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Set when this LB node is itself a worker node.
    pub tunnel: Option<Tunnel>,
}

/// How packets reach a backend now: resolved by netlink, never by the packet path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// No route, no neighbour entry yet, or the neighbour failed.
    Unresolved,
    /// The backend is this node.
    Local,
    /// Send there.
    Via(Via),
}

/// A resolved next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// Egress interface index.
    pub ifindex: u32,
    /// Position of that interface in `PORTS`.
    pub port: u8,
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// Outer source address, of the backend's family; with `encap.source: prefix`, the prefix's first address.
    pub source: IpAddr,
    /// MTU of the way, in bytes of IP packet.
    pub mtu: u16,
    /// VLAN tags to send with, outermost first; `None`: those the packet came with.
    pub tags: Option<VlanTags>,
}

/// Explicit VLAN tags of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VlanTags {
    /// Send untagged.
    Untagged,
    /// One 802.1Q tag: TCI.
    One(u16),
    /// Two tags: TCI of the outer, TCI of the inner, and whether the outer is 802.1ad.
    Two {
        /// Outer TCI.
        outer: u16,
        /// Inner TCI.
        inner: u16,
        /// The outer tag's ethertype is 0x88a8.
        ad: bool,
    },
}

/// Next hop of every backend; one that is missing counts as unresolved.
pub type NextHops = BTreeMap<BackendId, NextHop>;
