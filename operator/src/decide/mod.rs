//! The next write for a subject, from the index alone.
//!
//! Never remembers anything: each step is decided from what the API server holds, so that an operator that was killed between
//! two writes, or two that both believe they lead, end in the same state.
//!
//! | file | what it is |
//! |---|---|
//! | `action` | the words: writes, Events, what to do now |
//! | `service` | birth and change of a Service, as one list of steps |
//! | `leave` | its death: on deletion, on leaving `LoadBalancer`, when it is let go |
//! | `table`, `status`, `conditions`, `standing` | what is to be written into VipTable and Service |
//! | `notes` | Events |
//! | `announcing` | the statuses of BgpPeers and Announcements |
//! | `cluster` | seed, node sets, tunnel, pools, orphans |

mod action;
mod announcing;
mod cluster;
mod conditions;
mod leave;
mod notes;
mod service;
mod standing;
mod status;
mod table;
#[cfg(test)]
mod tests;

pub use action::{About, Action, Next, Note};
pub use cluster::tunnel_fault;
use jiff::Timestamp;

use crate::{Subject, index::Index};

/// Seconds until somebody looks again while not everything has been listed.
const UNTIL_LISTED: u32 = 1;

/// The next write for `subject`; `now` is what conditions get as their time of transition. Nothing before every kind was listed.
pub fn next(index: &Index, subject: &Subject, now: Timestamp) -> Next {
    if !index.is_complete() {
        return Next::Wait(UNTIL_LISTED);
    }
    match subject {
        Subject::Seed => cluster::seed(index),
        Subject::NodeSets => cluster::node_sets(index),
        Subject::Tunnel => cluster::tunnel(index),
        Subject::Service(key) => service::next(index, key, now),
        Subject::Pool(name) => cluster::pool(index, name, now),
        Subject::Peer(name) => announcing::peer(index, name, now),
        Subject::Announcement(name) => announcing::announcement(index, name, now),
        Subject::Orphans => cluster::orphans(index),
    }
}

/// A write without Events.
fn quietly(action: Action) -> Next {
    Next::Do(Box::new(action), Vec::new())
}

impl From<crate::ipam::ClaimWrite> for Action {
    fn from(write: crate::ipam::ClaimWrite) -> Self {
        use crate::ipam::ClaimWrite;
        match write {
            ClaimWrite::Create(claim) => Self::CreateClaim(claim),
            ClaimWrite::Replace(claim) => Self::ReplaceClaim(claim),
            ClaimWrite::Delete {
                name,
                uid,
                resource_version,
            } => Self::DeleteClaim {
                name,
                uid,
                resource_version,
            },
        }
    }
}
