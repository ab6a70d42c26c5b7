//! What became of a packet on the slow path: exactly one outcome for every packet that is not held, one counter each by kind of work.

/// What an [`Outcome`] amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Answered by this node.
    Answered,
    /// Sent to its backend.
    Forwarded,
    /// Dropped.
    Dropped,
}

impl End {
    /// Label in output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Forwarded => "forwarded",
            Self::Dropped => "dropped",
        }
    }
}

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $name:ident = $end:ident $reason:literal,)+) => {
        /// What became of a packet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Outcome {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Outcome {
            /// All outcomes, by their number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What it amounts to.
            pub const fn end(self) -> End {
                match self { $(Self::$name => End::$end,)+ }
            }

            /// Label in output and metrics.
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

outcomes! {
    /// Told who has the VIP address, by ARP.
    ArpReply = Answered "arp_reply",
    /// Told who has the VIP address, by a neighbour advertisement.
    NeighbourAdvertisement = Answered "neighbour_advertisement",
    /// Echo reply.
    EchoReply = Answered "echo_reply",
    /// TCP reset.
    Reset = Answered "reset",
    /// ICMP port, protocol or host unreachable.
    Unreachable = Answered "unreachable",
    /// ICMP fragmentation needed, or packet too big.
    TooBig = Answered "too_big",
    /// Sent to the backend of its flow.
    Forwarded = Forwarded "forwarded",
    /// Sent to the backend of its flow in several fragments.
    Split = Forwarded "split",
    /// An ICMP error, sent to the backend of the flow that it is about.
    Steered = Forwarded "steered",
    /// The backend is this node: handed to its kernel.
    Local = Forwarded "local",
    /// This node does not own the VIP address on the network.
    NotOwner = Dropped "not_owner",
    /// An echo request while no VIP of the address has a healthy backend that can be reached.
    Unhealthy = Dropped "unhealthy",
    /// Over the budget of its kind of work.
    OverBudget = Dropped "over_budget",
    /// Over the answers that one source gets.
    OverSourceLimit = Dropped "over_source_limit",
    /// The headers contradict each other or the frame.
    Malformed = Dropped "malformed",
    /// An IPv4 source route, or an IPv6 routing header with segments left.
    SourceRoute = Dropped "source_route",
    /// Too many extension headers, or one that cannot be looked behind.
    HeaderChain = Dropped "header_chain",
    /// Would be answered, and must not: a reset, an ICMP error, or a source that is no single host (RFC 1122 3.2.2).
    Unanswerable = Dropped "unanswerable",
    /// ICMP that a VIP address does not answer.
    IcmpIgnored = Dropped "icmp_ignored",
    /// An ICMP error whose quoted packet is not of a VIP, or too short to say.
    QuoteUnknown = Dropped "quote_unknown",
    /// A fragment that overlaps another, or belongs to a datagram that had one (RFC 5722).
    FragmentOverlap = Dropped "fragment_overlap",
    /// A fragment that came twice.
    FragmentDuplicate = Dropped "fragment_duplicate",
    /// A first fragment without the whole transport header (RFC 1858, RFC 7112).
    FragmentTiny = Dropped "fragment_tiny",
    /// A fragment whose first never came.
    FragmentTimeout = Dropped "fragment_timeout",
    /// A fragment that found no room.
    FragmentRoom = Dropped "fragment_room",
    /// No room to hold it until the next hop is known.
    HoldRoom = Dropped "hold_room",
    /// The next hop did not become known in time.
    HoldTimeout = Dropped "hold_timeout",
    /// The way to the backend cannot carry what IPv6 must be able to send (RFC 8200, 5).
    MtuTooSmall = Dropped "mtu_too_small",
    /// Not for a VIP address any more.
    NotVip = Dropped "not_vip",
    /// The balancer's rules drop it; counted by verdict, too.
    Refused = Dropped "refused",
    /// The fast path gave no reason that belongs here.
    NoReason = Dropped "no_reason",
    /// A question for a VIP address from a host that uses one of this node's itself (RFC 5227, 2.4).
    AddressConflict = Dropped "address_conflict",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Outcome;

    #[test]
    fn every_outcome_has_its_own_label_and_number() {
        let labels: BTreeSet<_> = Outcome::ALL
            .iter()
            .map(|outcome| (outcome.end(), outcome.reason()))
            .collect();
        assert_eq!(labels.len(), Outcome::ALL.len());
        for (number, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, number);
            assert!(outcome.describe().ends_with('.') && !outcome.describe().starts_with(' '));
        }
    }
}
