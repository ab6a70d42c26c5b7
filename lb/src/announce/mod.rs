//! Making VIP addresses reachable.
//!
//! | module | what it is |
//! |---|---|
//! | `groups` | [`Groups`]: hearing neighbour solicitations |
//! | `l2` | [`L2`]: whose the addresses on this node's segments are |

mod groups;
mod l2;

pub use groups::Groups;
pub use l2::{InUse, L2};
