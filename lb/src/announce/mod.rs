//! Making VIP addresses reachable. Never decides who owns one.
//!
//! | module | what it is |
//! |---|---|
//! | [`bgp`] | telling routers, by BGP |
//! | `groups` | [`Groups`]: hearing neighbour solicitations |

pub mod bgp;
mod groups;

pub use groups::Groups;
