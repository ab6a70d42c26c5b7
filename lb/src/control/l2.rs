//! What is said of VIP addresses: whether they are announced, and whose they are on this node's segments.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A group of LB nodes that share addresses of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// This node's name in it.
    pub name: String,
    /// Addresses that this node answers for.
    pub owned: usize,
    /// Addresses of the group.
    pub addresses: usize,
    /// This node has just started, or is cut off, and answers for nothing yet.
    pub waits: bool,
    /// All others.
    pub others: Vec<MemberView>,
}

/// Another member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: IpAddr,
    /// Whether it is heard.
    pub heard: bool,
}

/// A VIP address that another host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InUseView {
    /// Which.
    pub address: IpAddr,
    /// The host's MAC address.
    pub mac: String,
}

/// What becomes of a VIP address in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncedView {
    /// It is announced.
    pub announced: bool,
    /// `serves`, `stays_without_backend`; or `not_programmed`, `no_way`, `draining`, `in_use`, `other`, `waits`, `no_backend`.
    pub reason: String,
    /// The same, for people.
    pub why: String,
}
