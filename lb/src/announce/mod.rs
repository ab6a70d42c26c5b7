//! Making VIP addresses reachable. Never decides who owns one.
//!
//! | module | what it is |
//! |---|---|
//! | [`bfd`] | whether peers still answer, told within milliseconds |
//! | [`bgp`] | telling routers, by BGP |
//! | `groups` | [`Groups`]: hearing neighbour solicitations |

pub mod bfd;
pub mod bgp;
mod groups;

pub use groups::Groups;
