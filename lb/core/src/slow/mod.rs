//! The slow path: what becomes of the packets that the fast path leaves alone. Never does IO and never reads a clock: frames and
//! tables in, frames and events out, time as an argument.
//!
//! | module | what it is |
//! |---|---|
//! | [`Kind`], [`Outcome`] | kinds of work; what became of a packet |
//! | [`Packet`], [`Link`] | a frame, taken apart |
//! | [`Input`], [`Output`] | what goes in and what comes out |
//! | [`Book`] | what is known of VIP addresses beside the tables |
//! | [`Decide`], [`way`] | the fast path's own decision, asked for the plain packet of a flow |
//! | [`Engine`] | one worker: from a packet to its handler |
//! | [`Common`], [`Bounds`] | what workers share; how much they may do and hold |
//! | `neighbour`, `duplicate`, `echo`, `steer`, `reject`, `too_big`, `split`, `fragments`, `hold` | the handlers |
//! | `answer`, `icmp` | packets of this node's own: IP header, ICMP messages |

mod announce;
mod answer;
mod book;
mod bounds;
mod bucket;
mod common;
mod duplicate;
mod echo;
mod engine;
mod forward;
mod fragments;
mod hold;
mod icmp;
mod kind;
mod neighbour;
mod outcome;
mod output;
mod packet;
mod reject;
mod split;
mod steer;
mod too_big;

pub use book::{Address, Book};
pub use bounds::{Budgets, FragmentBounds, HoldBounds};
pub use common::{Bounds, Common, SOURCE_BUCKETS};
pub use duplicate::{claimed, question};
pub use engine::{Engine, EngineSettings, Tables};
pub use forward::{FlowKey, Way, outer_len, way};
pub use fragments::MAX_FRAGMENTS;
pub use kind::Kind;
pub use neighbour::{announcement, solicited_node};
pub use outcome::{End, Outcome};
pub use output::{Counts, Decide, Event, Input, Output, Passed, Sent, To};
pub use packet::{Fragment, Link, MAX_EXTENSION_HEADERS, MAX_TAGS, Packet};
