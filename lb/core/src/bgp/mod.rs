//! An announce-only BGP-4 speaker (RFC 4271): it tells routers which addresses to send here, and keeps none of what they tell.
//!
//! Never opens a socket, reads a clock or keeps a received route; never panics, whatever the bytes. Time is an argument: a
//! [`Duration`](std::time::Duration) since some start that the caller chose.
//!
//! | module | what it is |
//! |---|---|
//! | [`Session`] | one peer: connections, timers, the states of RFC 4271 8, collisions of 6.8 |
//! | [`Event`], [`Action`] | what a session is told, and what it says |
//! | `connection` | one connection of it: what was said and agreed |
//! | `framing` | bytes to messages: marker, length, kind |
//! | `message` | messages to bytes |
//! | `open` | the peer's OPEN, and what two of them agree on |
//! | `received` | a peer's UPDATE, read as RFC 7606 says, counted and forgotten |
//! | `notification` | NOTIFICATION, and its words |
//! | [`Attributes`], [`Community`], [`LargeCommunity`] | what goes with a route |
//! | [`Announce`] | from addresses to routes: aggregation |
//! | `rib` | Adj-RIB-Out: what the peer was told, and the messages from there to what it should know |
//! | [`SessionError`] | why a session is not up, and what to do |
//!
//! Values of capabilities and path attributes are read and written by netgauze-bgp-pkt. Where they begin and end is read here: that
//! crate fails a whole message where RFC 7606 and RFC 5492 ask to go on with the rest of it.

mod announce;
mod attributes;
mod connection;
mod error;
mod event;
mod framing;
mod message;
mod notification;
mod open;
mod peer;
mod received;
mod rib;
mod session;
mod view;

pub use announce::{Announce, Announces, Names};
pub use attributes::{
    Attributes, Community, GRACEFUL_SHUTDOWN, LargeCommunity, MAX_COMMUNITIES, MAX_PREPEND, NotACommunity,
};
pub use error::{SessionError, TransportError};
pub use event::{Action, Event, StopReason};
pub use message::MAX_MESSAGE_BYTES;
pub use notification::Notification;
pub use peer::{ConnectionId, Families, LocalAddresses, Origin, PeerConfig};
pub use session::Session;
pub use view::{Counters, Remote, SessionView, State};
