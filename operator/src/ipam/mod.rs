//! Who gets which address: pools, claims, and the decision between them.
//!
//! Never writes a claim: an [`Assignment`] says which creation or change of a claim must succeed before its address is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use operator_api::{ServiceRef, TransportPort, Use};

/// Address families, in no order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What a Service asks of the pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub service: ServiceRef,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Labels of its namespace.
    pub namespace_labels: BTreeMap<String, String>,
    /// Its ports: those of Services that share an address must differ.
    pub ports: BTreeSet<TransportPort>,
    /// Families of load balancer addresses, in the order of `spec.ipFamilies`; empty: no load balancer address is asked for
    /// (externalIPs only).
    pub families: Vec<Family>,
    /// Whether all of `families` must be had (`RequireDualStack`, or `SingleStack` with its one); else one is enough
    /// (`PreferDualStack`).
    pub require_all: bool,
    /// Load balancer addresses asked for by name; at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Pool asked for by name.
    pub pool: Option<String>,
    /// Sharing key.
    pub sharing_key: Option<String>,
    /// Load balancer addresses that the Service has in its status: kept where a pool covers them and nobody else holds them.
    pub current: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external: Vec<IpAddr>,
}

/// An address for a Service, and what must be done to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The address.
    pub address: IpAddr,
    /// Its pool.
    pub pool: String,
    /// What the Service uses it for.
    pub used_as: Use,
}
