//! What a session is made of before it begins: configuration and names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How one peer is spoken to. Where it is reached is its transport's; what it is told is [`super::Announce`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Our ASN, 1 to 4294967295.
    pub local_asn: u32,
    /// The peer's: it is asked for, and another is refused.
    pub peer_asn: u32,
    /// What is announced there.
    pub families: Families,
    /// Without a message for so long the peer is gone; 3 or more. The smaller one of both sides holds.
    pub hold_s: u16,
    /// Pause between attempts to connect, less up to a quarter by chance (RFC 4271 10).
    pub connect_retry_s: u16,
    /// Whether the peer connects, and this side only listens.
    pub passive: bool,
    /// Next hop of IPv4 routes instead of our address on the session.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// As [`Self::next_hop_v4`], of IPv6.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// For how long the peer keeps our routes when the session ends without a word (RFC 4724), 1 to 4095; `None`: not at all.
    pub restart_time_s: Option<u16>,
}

impl PeerConfig {
    /// Whether the peer is of another AS.
    pub const fn is_ebgp(&self) -> bool {
        self.local_asn != self.peer_asn
    }
}

/// Address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// IPv4 unicast.
    pub v4: bool,
    /// IPv6 unicast.
    pub v6: bool,
}

impl Families {
    /// Whether an address is of one of them.
    pub const fn include(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// A connection of a session. Numbers of [`Origin::Ours`] are chosen by the session, of [`Origin::Theirs`] by who accepts; none is
/// used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId {
    /// Who connected.
    pub origin: Origin,
    /// Which one.
    pub number: u32,
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// This side.
    Ours,
    /// The peer.
    Theirs,
}

/// This node's addresses on a connection: next hops of what is announced over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    /// The session's own address, or one of the interface that has it.
    pub v4: Option<Ipv4Addr>,
    /// As [`Self::v4`]; not a link-local one.
    pub v6: Option<Ipv6Addr>,
}
