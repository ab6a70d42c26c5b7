//! Why an address cannot be had, in words that say what to do.
//!
//! Never a fault of ours: each names an object that people can change.

use std::net::IpAddr;

use operator_api::{MAX_VIP_PORTS, Protocol, TransportPort};
use thiserror::Error;

use super::Family;
use crate::ServiceKey;

/// Most holders of an address.
pub const MAX_HOLDERS: usize = 512;
/// Longest sharing key, in bytes.
pub const MAX_SHARING_KEY: usize = 253;

/// A reason for an `AllocationFailed`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Problem {
    /// The pool asked for is not there.
    #[error("pool {pool} does not exist: create it, or name another")]
    PoolMissing {
        /// Its name.
        pool: String,
    },
    /// The pool has a fault and hands nothing out.
    #[error("pool {pool} hands nothing out until it is corrected: {fault}")]
    PoolInvalid {
        /// Its name.
        pool: String,
        /// What is wrong with it.
        fault: String,
    },
    /// The pool overlaps with an earlier one and hands nothing out.
    #[error("pool {pool} hands nothing out because it overlaps with pool {with}: take the overlap out of one of them")]
    PoolConflict {
        /// Its name.
        pool: String,
        /// The earlier one.
        with: String,
    },
    /// The pool is for other namespaces.
    #[error("pool {pool} is not for namespace {namespace}: see its namespaces and namespaceSelector")]
    PoolNotForNamespace {
        /// Its name.
        pool: String,
        /// The Service's namespace.
        namespace: String,
    },
    /// The pool is for Services with other labels.
    #[error("pool {pool} is not for Services with these labels: see its serviceSelector")]
    PoolNotForLabels {
        /// Its name.
        pool: String,
    },
    /// The pool asked for has no address of the family at all.
    #[error("pool {pool} has no {family} addresses: add some, or name another")]
    PoolLacksFamily {
        /// Its name.
        pool: String,
        /// Which.
        family: Family,
    },
    /// All pools that fit are full.
    #[error("no {family} address is free in {}: add addresses or delete Services", list(.pools))]
    Exhausted {
        /// Which.
        family: Family,
        /// The pools, in the order in which they were tried.
        pools: Vec<String>,
    },
    /// No pool that fits has addresses of the family.
    #[error("no pool gives {family} addresses to this Service by itself: create one, or name a pool or an address")]
    NoPool {
        /// Which.
        family: Family,
    },
    /// Somebody else has the address.
    #[error("{address} is taken by Service {by}: name another, or give both the same sharing key")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: ServiceKey,
    },
    /// An earlier Service of the same name has it; it is being released.
    #[error("{address} is still held by the deleted Service {by} of the same name: it is released first")]
    FormerLife {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: ServiceKey,
    },
    /// The one who has it shares it by another key.
    #[error("{address} is shared by another key than this Service's: its holder is Service {by}")]
    KeyDiffers {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: ServiceKey,
    },
    /// The one who has it is in another namespace.
    #[error("{address} is held by Service {by} of another namespace: pool {pool} has no shareAcrossNamespaces")]
    OtherNamespace {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: ServiceKey,
        /// Its pool.
        pool: String,
    },
    /// The one who has it uses one of the ports.
    #[error("{address} cannot be shared with Service {by}: both have port {}/{}", .port.port, protocol(.port.protocol))]
    PortsCollide {
        /// The address.
        address: IpAddr,
        /// Who has it.
        by: ServiceKey,
        /// The first such port.
        port: TransportPort,
    },
    /// Another installation of Vipline has it.
    #[error("{address} is held by the installation {installation}{}: name another, or have it given back there", for_whom(.by))]
    OtherInstallation {
        /// The address.
        address: IpAddr,
        /// Namespace and Lease of its operator.
        installation: String,
        /// Its first holder.
        by: Option<ServiceKey>,
    },
    /// It has as many holders as it can have.
    #[error("{address} is shared by {MAX_HOLDERS} Services already")]
    Full {
        /// The address.
        address: IpAddr,
    },
    /// Its claim was not written by us.
    #[error("AddressClaim {claim} does not say who has {address}: delete it if nobody does")]
    ClaimUnreadable {
        /// The address.
        address: IpAddr,
        /// Name of the claim.
        claim: String,
    },
    /// No pool has the address.
    #[error("{address} is in no pool: add it to one, or name another")]
    NotInAnyPool {
        /// The address.
        address: IpAddr,
    },
    /// It is in another pool than the one asked for.
    #[error("{address} is not in pool {pool}, which the Service names as well")]
    NotInPool {
        /// The address.
        address: IpAddr,
        /// The pool asked for.
        pool: String,
    },
    /// No Service can have it.
    #[error("{address} is {what}: it cannot be load balanced")]
    Special {
        /// The address.
        address: IpAddr,
        /// What it is.
        what: &'static str,
    },
    /// Its pool leaves out such addresses.
    #[error("{address} ends in .0 or .255, which pool {pool} leaves out (avoidBuggyIPs)")]
    Avoided {
        /// The address.
        address: IpAddr,
        /// Its pool.
        pool: String,
    },
    /// The Service has no such family.
    #[error("{address} is {family}, which is not in the Service's ipFamilies")]
    FamilyNotAsked {
        /// The address.
        address: IpAddr,
        /// Its family.
        family: Family,
    },
    /// Another address of its family is asked for, too.
    #[error("{address} is a second address of its family: a Service has at most one of each")]
    SecondOfFamily {
        /// The address.
        address: IpAddr,
    },
    /// Its pool is not for external IPs.
    #[error("external IP {address} is not allowed: pool {pool} has no externalIPs")]
    ExternalNotAllowed {
        /// The address.
        address: IpAddr,
        /// Its pool.
        pool: String,
    },
    /// It has no port that can be served.
    #[error("the Service has no port that can be served")]
    NoPorts,
    /// It has too many ports.
    #[error("the Service has {0} ports: {MAX_VIP_PORTS} can be served")]
    TooManyPorts(usize),
    /// The sharing key is too long.
    #[error("the sharing key has {0} bytes: {MAX_SHARING_KEY} are allowed; the Service shares nothing")]
    KeyTooLong(usize),
    /// The policy requires both families, and these cannot be had.
    #[error(
        "ipFamilyPolicy requires both families, and {family} cannot be had: see the other reasons, or use PreferDualStack"
    )]
    FamilyRequired {
        /// Which.
        family: Family,
    },
}

fn for_whom(by: &Option<ServiceKey>) -> String {
    by.as_ref().map(|by| format!(" for Service {by}")).unwrap_or_default()
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

/// At most three names.
fn list(pools: &[String]) -> String {
    match pools {
        [pool] => format!("pool {pool}"),
        [first, second, third, _, ..] => format!("{} pools ({first}, {second}, {third}, …)", pools.len()),
        few => format!("pools {}", few.join(", ")),
    }
}
