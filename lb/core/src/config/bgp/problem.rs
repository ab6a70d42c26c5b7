//! What can be wrong under `bgp`.

use std::net::IpAddr;

use thiserror::Error;

use super::{super::words::Quoted, MAX_BGP_PEERS};
use crate::bgp::MAX_COMMUNITIES;

/// What is wrong with a peer, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BgpProblem {
    /// More peers than there may be.
    #[error("{count} peers, at most {MAX_BGP_PEERS}; a route reflector spreads routes to more")]
    TooManyPeers {
        /// As configured.
        count: usize,
    },
    /// The same address twice: an accepted connection is known by it.
    #[error("{address} is already {first}; one address is one peer")]
    DuplicatePeer {
        /// The address.
        address: IpAddr,
        /// Path of the first.
        first: String,
    },
    /// The same name twice.
    #[error("{name} is already {first}; a name is one peer's")]
    DuplicateName {
        /// The name.
        name: Quoted,
        /// Path of the first.
        first: String,
    },
    /// A peer that nobody would hear.
    #[error("needs `bgp.listen_port`: nobody hears the peer connect otherwise")]
    PassiveUnheard,
    /// Not a community.
    #[error("{value} is not a community, as \"65000:100\" in quotes, or graceful-shutdown, no-export, no-advertise")]
    NotACommunity {
        /// As written.
        value: Quoted,
    },
    /// Not a large community.
    #[error("{value} is not a large community, as \"65000:1:2\" in quotes")]
    NotALargeCommunity {
        /// As written.
        value: Quoted,
    },
    /// More communities than a message has room for.
    #[error("{count} communities, at most {MAX_COMMUNITIES}")]
    TooManyCommunities {
        /// As configured.
        count: usize,
    },
    /// `local_pref` across ASes.
    #[error("has a meaning within an AS only, and this peer is of another; use `med` or `communities`, or remove it")]
    PreferenceOfOthers,
    /// `prepend` within an AS.
    #[error("has a meaning between ASes only, and this peer is of ours; use `local_pref`, or remove it")]
    PrependOfOurs,
    /// `multihop` within an AS.
    #[error("iBGP peers may be any number of hops away; remove it, or say with `ttl_security` how far at most")]
    MultihopOfOurs,
}
