//! Making VIP addresses reachable. Never decides who owns one.
//!
//! | module | what it is |
//! |---|---|
//! | [`bfd`] | whether peers still answer, told within milliseconds |
//! | `groups` | [`Groups`]: hearing neighbour solicitations |

pub mod bfd;
mod groups;

pub use groups::Groups;
