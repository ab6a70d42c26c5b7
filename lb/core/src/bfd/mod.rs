//! Bidirectional forwarding detection (RFC 5880, 5881, 5883): whether a peer's packets still arrive, told within milliseconds.
//!
//! Never does IO and never reads a clock: [`Sessions`] is told what arrived and what time it is, and says what to send and what has
//! changed. Asynchronous mode, without echo and without authentication. Demand mode is never asked for; a peer that asks for it gets
//! no periodic packets, as the RFC demands. Never panics, whatever bytes arrive in whatever order.
//!
//! | file | what it decides |
//! |---|---|
//! | `packet` | what the 24 bytes mean, and which are no packet |
//! | `reason` | why one was discarded: a counter each |
//! | `session` | one peer: states, timers, polls |
//! | `sessions` | all peers: whose packet it is, who is new and who is no more |
//!
//! Time is a `Duration` since any start, the same for all calls.

mod packet;
mod random;
mod reason;
mod session;
mod sessions;

pub use packet::{Diagnostic, PACKET_BYTES, Packet, State};
pub use reason::Discard;
pub use session::{Action, Cause, Event, Session, SessionView, Timers};
pub use sessions::{Arrival, MAX_SESSIONS, Output, Peer, PeerView, Reach, Sessions, Wanted};

/// Destination port of single-hop sessions (RFC 5881 §4).
pub const SINGLE_HOP_PORT: u16 = 3784;
/// Destination port of multihop sessions (RFC 5883 §5).
pub const MULTIHOP_PORT: u16 = 4784;
/// Source ports, the same for all packets of a session (RFC 5881 §4).
pub const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
/// Time to live, or hop limit, of every packet sent (RFC 5881 §5).
pub const SENT_TTL: u8 = 255;
