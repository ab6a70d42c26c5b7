//! The operator: `LoadBalancer` and `externalIPs` Services become VIP tables, and get their addresses.
//!
//! Never talks to a node and never depends on the data plane: the custom resources are the contract between the two.
//!
//! | room | what it is | IO |
//! |---|---|---|
//! | [`ipam`] | pools, claims, and who gets which address | none |
//! | [`index`] | all that is watched, as a plain struct, and what it asks for: backends, node sets, tunnel | none |
//! | [`decide`] | the next write for a [`Subject`], from the index alone | none |
//! | [`run`] | watches, queue, writes, events, election, metrics, command line | all |
//!
//! # Architecture Invariant
//!
//! The first three rooms read no clock and know no client: what they say is a function of the objects and `now`. Killing the
//! operator between any two writes loses nothing: the next one goes on from what the API server has.

#![forbid(unsafe_code)]

pub mod decide;
pub mod index;
pub mod ipam;
pub mod run;

use std::fmt;

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is reconciled, one at a time: the key of the work queue. In the order in which a fresh operator must do them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The flow-hash seed: made once, before the first node set.
    Seed,
    /// All chunks of the worker set.
    NodeSets,
    /// What worker nodes accept.
    Tunnel,
    /// An Announcement's status, by its name: tables name only those that have one.
    Announcement(String),
    /// A Service: claims, table, status, finalizer.
    Service(ServiceKey),
    /// A pool's status, by its name.
    Pool(String),
    /// A BgpPeer's status, by its name.
    Peer(String),
    /// Claims and tables whose Service is gone or no longer ours.
    Orphans,
}
