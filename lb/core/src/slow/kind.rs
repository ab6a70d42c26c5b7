//! What kinds of work the slow path has. Each has a budget of its own, so that a flood of one kind sheds that kind only.

use xdp_prog::verdict::Verdict;

/// A kind of slow-path work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// ARP requests and neighbour solicitations for VIP addresses.
    Neighbour,
    /// ICMP and ICMPv6 echo requests to a VIP address, and other ICMP that is no error.
    Echo,
    /// ICMP and ICMPv6 errors about flows of a VIP.
    IcmpError,
    /// Packets too big for the way to their backend.
    TooBig,
    /// Fragments.
    Fragment,
    /// IPv4 options, IPv6 extension headers, more than two VLAN tags.
    Unusual,
    /// Packets whose backend's next hop is not known.
    NextHop,
    /// What nobody serves: answered with a reset or an unreachable.
    Reject,
}

impl Kind {
    /// All kinds, by their number.
    pub const ALL: [Self; 8] = [
        Self::Neighbour,
        Self::Echo,
        Self::IcmpError,
        Self::TooBig,
        Self::Fragment,
        Self::Unusual,
        Self::NextHop,
        Self::Reject,
    ];

    /// Key in the configuration, label in output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Neighbour => "neighbour",
            Self::Echo => "echo",
            Self::IcmpError => "icmp_error",
            Self::TooBig => "too_big",
            Self::Fragment => "fragment",
            Self::Unusual => "unusual",
            Self::NextHop => "next_hop",
            Self::Reject => "reject",
        }
    }

    /// The kinds that packets with this verdict of the fast path may turn out to be; none for what is not for the slow path.
    pub const fn of(verdict: Verdict) -> &'static [Self] {
        match verdict {
            Verdict::SlowNeighbour => &[Self::Neighbour],
            Verdict::SlowIcmp => &[Self::Echo, Self::IcmpError],
            Verdict::SlowTooBig => &[Self::TooBig],
            Verdict::SlowFragment => &[Self::Fragment],
            Verdict::SlowIpOptions | Verdict::SlowVlanTags => &[Self::Unusual],
            // A fragment or ICMP may stand behind them.
            Verdict::SlowExtensionHeader => &[Self::Unusual],
            Verdict::SlowNextHop => &[Self::NextHop],
            Verdict::SlowProtocol | Verdict::SlowUnservedPort | Verdict::SlowNoBackend => &[Self::Reject],
            Verdict::ForwardTx
            | Verdict::ForwardRedirect
            | Verdict::ForwardLocal
            | Verdict::PassNotIp
            | Verdict::PassUnparsed
            | Verdict::PassNotVip
            | Verdict::PassNotTunnel
            | Verdict::PassOwnAddress
            | Verdict::PassDecapsulated
            | Verdict::PassForeignTunnel
            | Verdict::DropMalformed
            | Verdict::DropMartian
            | Verdict::DropSourceIsVip
            | Verdict::DropSourceDenied
            | Verdict::DropSourceNotAllowed
            | Verdict::DropPacketLimit
            | Verdict::DropSynLimit
            | Verdict::DropTunnelNotVip
            | Verdict::DropTunnelSource
            | Verdict::DropTunnelMalformed
            | Verdict::DropTunnelTtl
            | Verdict::DropTunnelEcn
            | Verdict::DropNoSlowPath
            | Verdict::DropSlowBudget
            | Verdict::DropInternal => &[],
        }
    }
}
