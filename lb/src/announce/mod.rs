//! Making VIP addresses reachable.
//!
//! | module | what it is |
//! |---|---|
//! | [`bfd`] | whether peers still answer, told within milliseconds |
//! | [`bgp`] | telling routers, by BGP |
//! | `groups` | [`Groups`]: hearing neighbour solicitations |
//! | `l2` | [`L2`]: whose the addresses on this node's segments are |

pub mod bfd;
pub mod bgp;
mod groups;
mod l2;

pub use groups::Groups;
pub use l2::{Before, InUse, L2};
