//! Why a session is not up, and what to do about it.

use std::net::Ipv4Addr;

use thiserror::Error;

use super::Notification;

/// What ended a session, or kept it from beginning.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// There is no connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A connection ended without a NOTIFICATION.
    #[error("the peer closed the connection without a word")]
    Closed,
    /// The peer connected and sent no OPEN in time.
    #[error("the peer said nothing after the connection was made")]
    Silent,
    /// An established peer fell silent.
    #[error("nothing was heard of the peer for the hold time")]
    HoldTimer,
    /// Another AS than was configured.
    #[error("the peer is of AS {found}, and AS {expected} is configured")]
    WrongAsn {
        /// Configured here.
        expected: u32,
        /// In its OPEN.
        found: u32,
    },
    /// An iBGP peer with our identifier.
    #[error("the peer has this node's router id, {router_id}")]
    SameIdentifier {
        /// Of both.
        router_id: Ipv4Addr,
    },
    /// Nothing could be announced.
    #[error("the peer speaks none of the address families that are configured")]
    NoCommonFamily,
    /// What the peer sent broke the protocol, and it was told so.
    #[error("the peer broke the protocol and was told: {0}")]
    Protocol(Notification),
    /// The peer sent a NOTIFICATION.
    #[error("the peer ended the session: {0}")]
    Peer(Notification),
    /// BFD lost the peer.
    #[error("BFD lost the peer")]
    Liveness,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TransportError {
    /// `ECONNREFUSED`.
    #[error("the peer refused the connection")]
    Refused,
    /// Nothing came back.
    #[error("the peer does not answer")]
    NoAnswer,
    /// `EHOSTUNREACH`, `ENETUNREACH`.
    #[error("there is no way to the peer")]
    Unreachable,
    /// The source address cannot be bound.
    #[error("the source address is not one of this node's")]
    Source,
    /// The password's file cannot be used.
    #[error("the password file cannot be read")]
    Password,
    /// `ECONNRESET` and what else ends a connection.
    #[error("the connection broke")]
    Broken,
    /// The peer reads nothing (RFC 9687).
    #[error("the peer stopped reading")]
    Stalled,
    /// Anything else the kernel says.
    #[error("the connection could not be made (errno {errno})")]
    Other {
        /// As the kernel numbers it.
        errno: i32,
    },
}

impl SessionError {
    /// A label of metrics: as many values as there are kinds, not as there are peers' words.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Transport(TransportError::Refused) => "refused",
            Self::Transport(TransportError::NoAnswer) => "no_answer",
            Self::Transport(TransportError::Unreachable) => "unreachable",
            Self::Transport(TransportError::Source) => "source_address",
            Self::Transport(TransportError::Password) => "password_file",
            Self::Transport(TransportError::Broken) => "broken",
            Self::Transport(TransportError::Stalled) => "stalled",
            Self::Transport(TransportError::Other { .. }) => "other",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::HoldTimer => "hold_timer",
            Self::WrongAsn { .. } => "wrong_asn",
            Self::SameIdentifier { .. } => "same_router_id",
            Self::NoCommonFamily => "no_common_family",
            Self::Protocol(_) => "protocol",
            Self::Peer(_) => "notification",
            Self::Liveness => "bfd",
        }
    }

    /// What to do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Transport(TransportError::Refused) => {
                "see that a BGP daemon runs there, on this port, and that it lists this node's address as a neighbour"
            }
            Self::Transport(TransportError::NoAnswer) => {
                "see that the address is right and no firewall is in between; with a password, that both sides have the same one"
            }
            Self::Transport(TransportError::Unreachable) => "see that this node has a route to the peer's address",
            Self::Transport(TransportError::Source) => "put an address of this node under `source`, or leave it out",
            Self::Transport(TransportError::Password) => {
                "see that the file under `password_file` is there, readable, and has 1 to 80 bytes in one line"
            }
            Self::Transport(TransportError::Broken) | Self::Closed => {
                "see the peer's log: it may not list this node's address or AS, or expect more hops or a password"
            }
            Self::Transport(TransportError::Stalled) | Self::Silent | Self::HoldTimer => {
                "see whether the peer is overloaded, and whether packets are lost on the way"
            }
            Self::Transport(TransportError::Other { .. }) => "see the number in errno(3)",
            Self::WrongAsn { .. } => "put the peer's AS under `asn`, or mend the peer",
            Self::SameIdentifier { .. } => "give each its own `router_id`",
            Self::NoCommonFamily => "activate the address family at the peer, or take it out of `families`",
            Self::Protocol(_) => "see the peer's version; if it is right, this is a fault of vipline: report it",
            Self::Peer(notification) => match (notification.code, notification.subcode) {
                (2, 2) => "the peer expects another AS of this node: see `local_asn` here and `remote-as` there",
                (2, 3) => "give this node another `router_id`",
                (2, 7) => "activate the same address families on both sides",
                (6, 1) => "raise the peer's limit of prefixes, or announce fewer: see `aggregation_length_v4`",
                (6, 2) => "somebody shut the session down at the peer",
                (6, 3) => "the peer no longer lists this node as a neighbour",
                (4, 0) => "packets are lost on the way, or this node is overloaded",
                _ => "see the peer's log",
            },
            Self::Liveness => "see whether the peer is alive, and its BFD session",
        }
    }
}
