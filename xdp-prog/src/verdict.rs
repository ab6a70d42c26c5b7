//! What may be decided for a packet, and why: exactly one verdict per packet, one counter each.
//!
//! The discriminant is the position in `COUNTERS`. They stand in the order of their fates, because the program compares; a new
//! one goes to the end of its fate's and moves `ABI_VERSION`.

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// Sent to a backend.
    Forward,
    /// Handed to this node's kernel.
    Pass,
    /// Given to the slow path; dropped where there is none.
    Slow,
    /// Dropped.
    Drop,
}

impl Fate {
    /// Label in output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Slow => "slow",
            Self::Drop => "drop",
        }
    }
}

macro_rules! verdicts {
    ($($(#[doc = $doc:literal])+ $name:ident = $fate:ident $reason:literal,)+) => {
        /// What was decided for a packet, and why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Verdict {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Verdict {
            /// All verdicts, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The verdict with this position in `COUNTERS`.
            #[inline(always)]
            pub const fn from_counter(position: u32) -> Option<Self> {
                if (position as usize) < Self::ALL.len() { Some(Self::ALL[position as usize]) } else { None }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn fate(self) -> Fate {
                match self { $(Self::$name => Fate::$fate,)+ }
            }

            /// The reason: label in output and metrics.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)+ }
            }

            /// What it means, for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

verdicts! {
    /// Encapsulated and sent back out of the interface it came from.
    ForwardTx = Forward "tx",
    /// Encapsulated and sent out of another interface.
    ForwardRedirect = Forward "redirect",
    /// The backend is this node: handed to its kernel as it came.
    ForwardLocal = Forward "local",
    /// Not IPv4 or IPv6 (ARP, for one).
    PassNotIp = Pass "not_ip",
    /// Too short or too garbled to say whether it is for a VIP.
    PassUnparsed = Pass "unparsed",
    /// Not for a VIP address.
    PassNotVip = Pass "not_vip",
    /// Not a tunnel packet for this node.
    PassNotTunnel = Pass "not_tunnel",
    /// For a VIP address that this node uses itself, and a port that no VIP claims.
    PassOwnAddress = Pass "own_address",
    /// A tunnel packet for this node, decapsulated and handed to its kernel.
    PassDecapsulated = Pass "decapsulated",
    /// A tunnel packet for this node whose outer source is no known LB node.
    PassForeignTunnel = Pass "foreign_tunnel",
    /// A fragment for a VIP address.
    SlowFragment = Slow "fragment",
    /// IPv4 options on a packet for a VIP address.
    SlowIpOptions = Slow "ip_options",
    /// IPv6 extension headers on a packet for a VIP address.
    SlowExtensionHeader = Slow "extension_header",
    /// ICMP or ICMPv6 for a VIP address.
    SlowIcmp = Slow "icmp",
    /// Another transport protocol for a VIP address.
    SlowProtocol = Slow "protocol",
    /// A VIP address, but no VIP on this protocol and port.
    SlowUnservedPort = Slow "unserved_port",
    /// The VIP has no backend that takes flows.
    SlowNoBackend = Slow "no_backend",
    /// The backend's next hop is not known.
    SlowNextHop = Slow "next_hop",
    /// Too big for the way to the backend once encapsulated.
    SlowTooBig = Slow "too_big",
    /// Asks for the link-layer address of a VIP address (ARP, IPv6 neighbour discovery).
    SlowNeighbour = Slow "neighbour",
    /// More than two VLAN tags on a packet for a VIP address.
    SlowVlanTags = Slow "vlan_tags",
    /// For a VIP address, and the headers contradict each other or the frame.
    DropMalformed = Drop "malformed",
    /// The source cannot be a host on the network.
    DropMartian = Drop "martian",
    /// The source is the VIP address itself.
    DropSourceIsVip = Drop "source_is_vip",
    /// The source is on the node's deny-list.
    DropSourceDenied = Drop "source_denied",
    /// The source is not in the VIP's source ranges.
    DropSourceNotAllowed = Drop "source_not_allowed",
    /// Over the VIP's packet limit.
    DropPacketLimit = Drop "packet_limit",
    /// Over the VIP's SYN limit.
    DropSynLimit = Drop "syn_limit",
    /// A tunnel packet whose inner destination is in no VIP prefix.
    DropTunnelNotVip = Drop "tunnel_not_vip",
    /// A tunnel packet whose inner source is a martian, a node, a pod or a Service.
    DropTunnelSource = Drop "tunnel_source",
    /// A tunnel packet whose inner packet contradicts itself or the outer one.
    DropTunnelMalformed = Drop "tunnel_malformed",
    /// A tunnel packet whose inner TTL or hop limit ran out.
    DropTunnelTtl = Drop "tunnel_ttl",
    /// A tunnel packet marked as congested around an inner packet that cannot carry the mark (RFC 6040, 4.2).
    DropTunnelEcn = Drop "tunnel_ecn",
    /// The slow path has no socket for the packet's queue.
    DropNoSlowPath = Drop "no_slow_path",
    /// Over what the slow path takes of this reason per CPU.
    DropSlowBudget = Drop "slow_budget",
    /// Tables contradict each other or the driver refused: never expected.
    DropInternal = Drop "internal",
}

const _: () = assert!(Verdict::ALL.len() <= crate::abi::MAX_VERDICTS);

impl Verdict {
    /// The first whose fate is [`Fate::Slow`]; all before it are forwarded or passed.
    pub const FIRST_SLOW: Self = Self::SlowFragment;
    /// The first whose fate is [`Fate::Drop`]; all after it are, too.
    pub const FIRST_DROP: Self = Self::DropMalformed;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Fate, Verdict};

    #[test]
    fn verdicts_stand_in_the_order_of_their_fates() {
        for verdict in Verdict::ALL {
            let fate = if *verdict >= Verdict::FIRST_DROP {
                Fate::Drop
            } else if *verdict >= Verdict::FIRST_SLOW {
                Fate::Slow
            } else if *verdict > Verdict::ForwardLocal {
                Fate::Pass
            } else {
                Fate::Forward
            };
            assert_eq!(
                verdict.fate(),
                fate,
                "{verdict:?}: new verdicts go to the end of their fate's"
            );
        }
    }

    #[test]
    fn every_verdict_has_its_own_label_and_counter() {
        let reasons: BTreeSet<_> = Verdict::ALL.iter().map(|v| v.reason()).collect();
        assert_eq!(reasons.len(), Verdict::ALL.len());
        for (position, verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*verdict as usize, position);
            assert!(verdict.describe().ends_with('.') && !verdict.describe().starts_with(' '));
        }
    }
}
