//! A cluster as a source: VipTables, NodeSets and the TunnelConfig of the operator's namespace.
//!
//! Never changes a table because the API server is away, forbids or does not find: what was said last holds. Never decides about
//! packets, and never writes a VipTable or a NodeSet.
//!
//! | file | what it is | IO |
//! |---|---|---|
//! | `announce` | what is watched of announcing, and what it asks of this node | none |
//! | `announcing` | what is said of announcing, within its bounds | none |
//! | `object` | one object, as far as it is read | none |
//! | `index` | all that is watched, and what it asks of the maps | none |
//! | `guard` | a list that drops too much is not believed at once | none |
//! | `seed` | which flow-hash seed is used, and which is refused | none |
//! | `delay` | how long changes take | none |
//! | `cache` | what was said last, on disk | the file |
//! | `client` | the way to the API server | the API server |
//! | `drain` | a node's exclusion, by a person's word | the API server |
//! | `wish` | what the cluster wants of this node itself | none |
//! | `watch` | lists and changes of one kind | the API server |
//! | `transits` | which published transits are over here | none |
//! | `report` | this node's LbNode and Lease | the API server |
//! | `agent` | the LB node's thread: all of it together | by the others |
//! | `worker` | the worker node's thread | by the others |

pub mod agent;
pub mod announce;
mod announcing;
pub mod cache;
mod client;
pub mod delay;
mod drain;
pub mod guard;
pub mod index;
pub mod object;
mod report;
pub mod seed;
mod transits;
mod watch;
mod wish;
pub mod worker;

pub use client::{ConnectError, KubeSettings};
pub use drain::{ExcludeError, Outcome, Wish, exclude};
pub use wish::Wish as NodeWish;
