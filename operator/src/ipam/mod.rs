//! Who gets which address: pools, claims, and the decision between them.
//!
//! Never writes a claim: an [`Outcome`] says which creation or change of a claim must succeed before its address is used.
//!
//! | file | what it is |
//! |---|---|
//! | `range`, `runs` | ranges and sets of addresses, without looking at each address |
//! | `pool`, `pools`, `status` | what may be handed out, what of it overlaps, and what is said of it |
//! | `claims` | who has what |
//! | `share` | who may use an address together with whom |
//! | `assign`, `load_balancer`, `named`, `external` | the decision: kept, adopted, chosen; named; external |
//! | `problem` | why not |
//!
//! # Rules
//!
//! - A Service keeps what it holds as long as its request allows: no edit of a pool ever moves an address.
//! - An address has one holder; more only by the same sharing key, or as external IP in one namespace; and then no port is
//!   with two of them. The traffic policy does not matter: LB nodes tell Services apart by port.
//! - What another installation of Vipline has claimed is taken, whatever keys say.
//! - Ports are put into a claim before a table names them, and taken out after none does any more.

mod assign;
mod claims;
mod external;
mod load_balancer;
mod named;
mod pool;
mod pools;
mod problem;
mod range;
mod runs;
mod share;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

pub use assign::{Outcome, Surplus, assign};
pub use claims::{Claim, ClaimWrite, Claims, Owner, address_of_name, key_of};
use operator_api::{ServiceRef, TransportPort, Use};
pub(crate) use pool::parse_selector;
pub use pool::{Pool, PoolFault};
pub use pools::Pools;
pub use problem::{MAX_HOLDERS, MAX_SHARING_KEY, Problem};
pub use range::{Range, RangeFault, special};

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

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
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
    /// Ports that are served: those of Services that share an address must differ. At least one, at most
    /// [`operator_api::MAX_VIP_PORTS`]: else nothing is claimed.
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
    /// Sharing key; an empty one is none.
    pub sharing_key: Option<String>,
    /// Load balancer addresses that the Service has in its status: kept where a pool covers them and nobody else holds them.
    pub current: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external: Vec<IpAddr>,
}

/// An address for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The address.
    pub address: IpAddr,
    /// Its pool.
    pub pool: String,
    /// What the Service uses it for.
    pub used_as: Use,
}
