//! Making VIP addresses reachable. Never decides who owns one.
//!
//! | module | what it is |
//! |---|---|
//! | `groups` | [`Groups`]: hearing neighbour solicitations |

mod groups;

pub use groups::Groups;
