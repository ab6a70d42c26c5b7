//! What is told of an LB node that gives its VIP addresses away.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// An LB node that is being drained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDrainView {
    /// `last_choice`, `withdrawn` or `left`.
    pub phase: String,
    /// Seconds since it began.
    pub seconds: u64,
    /// Seconds until it counts as left although packets still come; 0 when that is over. Absent: never.
    pub deadline_s: Option<u64>,
    /// VIP packets that it still forwards, in a second.
    pub packets_per_second: u64,
    /// Whether it is over: it can be stopped.
    pub left: bool,
    /// Whether nothing comes any more.
    pub quiet: bool,
    /// VIP addresses that nobody answers for instead, as far as this node knows.
    #[serde(default)]
    pub unowned: Vec<IpAddr>,
}
