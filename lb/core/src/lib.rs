//! Everything that Vipline's LB node decides, and nothing that does IO: no sockets, no maps, no clock.
//!
//! | module | what it decides |
//! |---|---|
//! | [`announce`] | which VIP addresses this node announces, and which of several LB nodes answers for one |
//! | [`bfd`] | whether a peer still answers, told within milliseconds |
//! | [`bgp`] | what a BGP session says and does |
//! | [`config`] | what the files of both roles say, with every error at once; what a live reload may change |
//! | [`desired`] | the state that every source asks for and the planner reaches |
//! | [`explain`] | where a flow would go, from the tables as they are |
//! | [`health`] | which backends serve, by probing them, and what that does to lookup tables |
//! | [`maglev`] | which backend each slot of a lookup table names |
//! | [`nexthop`] | how packets reach each backend, from what the kernel says of routes and neighbours |
//! | [`match_table`] | where the entries of a match table stand |
//! | [`nexthop_line`] | the line that the program reads, from a next hop |
//! | [`plan`] | the order of writes from one state of the maps to the next |
//! | [`ranges`] | CIDR lists as the sorted, disjoint ranges that the program searches |
//! | [`slots`] | who owns which part of slot memory |
//! | [`transit`] | how a slot changes while old flows live |
//! | [`slow`] | what becomes of the packets that the fast path leaves alone |

#![forbid(unsafe_code)]

pub mod announce;
pub mod bfd;
pub mod bgp;
pub mod config;
pub mod desired;
pub mod drain;
pub mod explain;
pub mod health;
pub mod maglev;
pub mod match_table;
pub mod nexthop;
pub mod nexthop_line;
pub mod plan;
pub mod ranges;
pub mod schedule;
pub mod slots;
pub mod slow;
pub mod sweep;
pub mod transit;
pub mod worker;
