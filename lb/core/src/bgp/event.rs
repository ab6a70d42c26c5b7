//! What a session is told, and what it says.

use std::net::IpAddr;

use super::{ConnectionId, LocalAddresses, Notification, TransportError};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The session is wanted.
    Start,
    /// It is not.
    Stop(StopReason),
    /// A connection is there: one that was asked for, or one that the peer made.
    TransportUp {
        /// Which.
        connection: ConnectionId,
        /// This node's addresses on it.
        local: LocalAddresses,
        /// The peer's.
        remote: IpAddr,
    },
    /// A connection that was asked for cannot be made, or one that was there broke.
    TransportFailed {
        /// Which.
        connection: ConnectionId,
        /// Why.
        why: TransportError,
    },
    /// Bytes came.
    Bytes {
        /// On which connection.
        connection: ConnectionId,
        /// At most what one read brings.
        bytes: &'a [u8],
    },
    /// The peer closed a connection.
    Closed {
        /// Which.
        connection: ConnectionId,
    },
    /// [`super::Session::deadline`] has come, or is thought to have.
    Timer,
    /// BFD says that the peer is gone: its session ends, and there is none until [`Event::LivenessBack`].
    LivenessLost,
    /// BFD says that the peer is back, or says nothing of it any more.
    LivenessBack,
}

/// Why a session is not wanted any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// This node stops: the peer forgets its routes, and shows its operator these words (RFC 9003).
    Shutdown(String),
    /// The peer stands in the configuration no more.
    Removed,
    /// The peer's configuration changed, and another session begins.
    Changed,
    /// This node's daemon restarts and packets are forwarded meanwhile: nothing is said, and a peer that knows graceful restart keeps
    /// the routes (RFC 4724 4.2).
    Restart,
}

impl StopReason {
    pub(super) fn notification(&self) -> Option<Notification> {
        match self {
            Self::Shutdown(words) => Some(Notification::cease(2, words)),
            Self::Removed => Some(Notification::cease(3, "")),
            Self::Changed => Some(Notification::cease(6, "")),
            Self::Restart => None,
        }
    }
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect, and say what comes of it.
    Connect {
        /// Its name from now on.
        connection: ConnectionId,
    },
    /// Send bytes.
    Send {
        /// Where.
        connection: ConnectionId,
        /// One message or more.
        bytes: Vec<u8>,
    },
    /// Close a connection once everything is sent, or give up an attempt. Nothing more is said of it.
    Close {
        /// Which.
        connection: ConnectionId,
    },
}
