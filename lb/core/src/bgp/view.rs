//! What is shown of a session.

use std::{net::Ipv4Addr, time::Duration};

use super::{ConnectionId, SessionError};

/// Where a session stands (RFC 4271 8.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Told to rest.
    Idle,
    /// Waiting for an answer to a connection attempt.
    Connect,
    /// Waiting for the peer, or for the next attempt.
    Active,
    /// Connected; waiting for the peer's OPEN.
    OpenSent,
    /// Agreed; waiting for the peer to agree.
    OpenConfirm,
    /// Up.
    Established,
}

impl State {
    /// As BGP has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Connect => "Connect",
            Self::Active => "Active",
            Self::OpenSent => "OpenSent",
            Self::OpenConfirm => "OpenConfirm",
            Self::Established => "Established",
        }
    }
}

/// What the peer said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its router id.
    pub router_id: Ipv4Addr,
    /// The hold time of both, in seconds; 0: none.
    pub hold_s: u64,
    /// Whether it keeps routes across a restart of ours.
    pub graceful_restart: bool,
}

/// Everything that is counted of a session, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages sent, of any kind.
    pub sent: u64,
    /// Messages received, of any kind.
    pub received: u64,
    /// UPDATEs sent.
    pub updates_sent: u64,
    /// UPDATEs received.
    pub updates_received: u64,
    /// Routes that the peer announced, and that were ignored.
    pub routes_ignored: u64,
    /// UPDATEs that were malformed and passed over (RFC 7606).
    pub malformed: u64,
    /// ROUTE-REFRESHes answered.
    pub refreshes: u64,
    /// How often the session came up.
    pub established: u64,
    /// How often an established session ended without being told to.
    pub flaps: u64,
}

/// A session as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Where it stands.
    pub state: State,
    /// Whether it waits for BFD to find the peer again.
    pub is_held: bool,
    /// Since when it is up, or down, or rests.
    pub since: Duration,
    /// The connection it is established on.
    pub connection: Option<ConnectionId>,
    /// Where it is established: what the peer said of itself.
    pub remote: Option<Remote>,
    /// Routes that the peer knows.
    pub announced: usize,
    /// Routes that it should know and cannot be told: the family was not agreed on, or there is no next hop.
    pub withheld: usize,
    /// What was counted.
    pub counters: Counters,
    /// What went wrong last, and when; it stays when the session comes up.
    pub last_error: Option<(Duration, SessionError)>,
}
