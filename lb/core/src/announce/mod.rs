//! Which VIP addresses this node makes reachable, by whom they are answered for on a segment, and why.
//!
//! Never speaks a protocol: how an address is announced is [`slow`](crate::slow)'s (ARP, neighbour discovery) and the routing
//! speaker's.
//!
//! | module | what it is |
//! |---|---|
//! | `claim` | [`Claims`]: whether an address is free, before it is answered for |
//! | `decide` | [`decide()`]: one decision with its reason per VIP address |
//! | `group` | [`Group`]: which of several LB nodes on one segment owns an address |
//! | `mac` | [`Mac`]: a host on a segment |
//! | `served` | [`Served`]: which addresses need no question first |
//! | `told` | [`Told`]: what a cluster says of that |
//! | `leave` | [`Leave`]: how a node gives all of them away |

mod claim;
mod decide;
mod group;
mod leave;
mod mac;
mod served;
mod told;

pub use claim::{ASK_AGAIN, Claim, Claims, QUESTION_EVERY, QUESTIONS};
pub use decide::{Facts, NodeState, Reason, WhenNone, decide};
pub use group::{Group, Member, START_PATIENCE, YIELD, owner};
pub use leave::{LAST_CHOICE, Leave, Phase, QUIET};
pub use mac::Mac;
pub use served::Served;
pub use told::{Other, Selected, Told};
