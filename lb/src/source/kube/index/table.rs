//! One VipTable, from what the API server has to what can be served.
//!
//! Never trusts it: the API server's rules may be older than this build, or gone. What is wrong is an error of this table alone.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use lb_core::{
    bgp::Names,
    config::{NotUnicast, not_unicast},
    desired::{Protocol, VipKey},
    health::{Check, Checks, WhenNone},
    maglev,
    ranges::RangeSet,
    schedule::{MAX_AFFINITY_S, Scheduler},
};
use operator_api::{AddressFamily, Backends, ForwardingMode, HealthCheck, LocalNode, LocalTransit, VipTableSpec};

use crate::source::kube::announce::AddressNames;

/// Why a table is not served as it should be. Displays as the reason in `LbNode.status.programmed.failing`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It does not have the shape of a VipTable: a mode or a scheduler of a later version, for one.
    #[error("cannot be read by this version: {why}")]
    Unreadable {
        /// What the reader says.
        why: Arc<str>,
    },
    /// Neither addresses nor ports, or one of them missing.
    #[error("has no {what}")]
    Nothing {
        /// Of what.
        what: &'static str,
    },
    /// Not an address.
    #[error("`{text}` is not an IP address")]
    NotAnAddress {
        /// What stands there, cut short.
        text: String,
    },
    /// Not an ordinary unicast address.
    #[error("{address} is {why}")]
    NotUnicast {
        /// The address.
        address: IpAddr,
        /// What it is.
        why: NotUnicast,
    },
    /// Port 0.
    #[error("port 0 is no port")]
    PortZero,
    /// A forwarding mode of the design that does not work yet.
    #[error("forwarding mode {mode:?} is not served by this version")]
    Mode {
        /// Which.
        mode: ForwardingMode,
    },
    /// Not a network.
    #[error("`{text}` is not a network in CIDR notation")]
    NotANetwork {
        /// What stands there, cut short.
        text: String,
    },
    /// A list of source ranges that lets nobody in.
    #[error("an empty list of source ranges would let nobody in")]
    NoSources,
    /// More ranges than the program's search can take.
    #[error("{ranges} separate source ranges are more than fit one list")]
    TooManyRanges {
        /// Ranges after merging.
        ranges: usize,
    },
    /// Not a table size.
    #[error("{slots} slots: must be a power of two, 256 to 65536")]
    Slots {
        /// As published.
        slots: u32,
    },
    /// Fewer slots than members.
    #[error("{slots} slots are too few for {members} nodes")]
    TooFewSlots {
        /// As published.
        slots: usize,
        /// Members with a weight.
        members: usize,
    },
    /// A set that is not there, or never was complete.
    #[error("node set `{set}` is not there, or not complete yet")]
    NoSet {
        /// Its name.
        set: Arc<str>,
    },
    /// Another table has one of its VIPs.
    #[error("{vip} belongs to table {owner}, which is older")]
    Taken {
        /// The VIP.
        vip: VipKey,
        /// Whose it is.
        owner: Arc<str>,
    },
    /// A VIP address that is a node's.
    #[error("{address} is the address of a node")]
    IsNode {
        /// The address.
        address: IpAddr,
    },
    /// A VIP address that is an outer source of this LB node.
    #[error("{address} is an outer source of this LB node (`encap`)")]
    IsSource {
        /// The address.
        address: IpAddr,
    },
    /// No room in the maps.
    #[error("no room: `capacity.{key}` of this LB node is {capacity}")]
    NoRoom {
        /// The key to raise.
        key: &'static str,
        /// Its value.
        capacity: u32,
    },
    /// The planner found no room for it.
    #[error("{why}")]
    Refused {
        /// What it said.
        why: Arc<str>,
    },
}

impl TableError {
    /// Whether it may be gone when other tables take less room.
    pub(super) fn is_want_of_room(&self) -> bool {
        matches!(self, Self::NoRoom { .. } | Self::Refused { .. })
    }
}

/// A table that says something sensible by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) keys: BTreeSet<VipKey>,
    pub(super) addresses: BTreeSet<IpAddr>,
    /// By what each is announced; `None`: by default.
    pub(super) announced: AddressNames,
    /// Sorted; `None`: everybody.
    pub(super) sources: Option<(Arc<[IpNet]>, Arc<RangeSet>)>,
    pub(super) scheduler: Scheduler,
    /// How long a client stays with its backend, in seconds.
    pub(super) affinity_timeout_s: Option<u32>,
    /// How one learns which nodes serve it.
    pub(super) checks: Option<Arc<Checks>>,
    pub(super) to: To,
}

/// Where flows go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// All nodes of a set, but for VIPs of these families nobody.
    All {
        set: Arc<str>,
        unserved: Vec<AddressFamily>,
    },
    /// Some nodes of a set.
    Some {
        set: Arc<str>,
        slots: usize,
        nodes: Vec<LocalNode>,
        transit: Option<LocalTransit>,
    },
}

/// Longest piece of foreign text in an error.
const QUOTED: usize = 64;

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).filter(|c| !c.is_control()).collect()
}

pub(super) fn parse(spec: &VipTableSpec) -> Result<Parsed, TableError> {
    match spec.mode {
        ForwardingMode::DsrIpip => {}
        mode @ (ForwardingMode::DsrGue | ForwardingMode::DsrL2 | ForwardingMode::NodePortNat) => {
            return Err(TableError::Mode { mode });
        }
    }
    let mut addresses = BTreeSet::new();
    let mut announced = AddressNames::new();
    for address in &spec.addresses {
        let Some(ip) = address.ip() else {
            let text = quoted(&address.address);
            return Err(TableError::NotAnAddress { text });
        };
        if let Some(why) = not_unicast(ip) {
            return Err(TableError::NotUnicast { address: ip, why });
        }
        addresses.insert(ip);
        let names = address.announcements.as_ref();
        let names = names.map(|names| Names::new(names.iter().map(|name| Arc::from(name.as_str())).collect()));
        announced.insert(ip, names);
    }
    let mut keys = BTreeSet::new();
    for port in &spec.ports {
        if port.port == 0 {
            return Err(TableError::PortZero);
        }
        let protocol = match port.protocol {
            operator_api::Protocol::Tcp => Protocol::Tcp,
            operator_api::Protocol::Udp => Protocol::Udp,
        };
        keys.extend(addresses.iter().map(|address| VipKey {
            address: *address,
            protocol,
            port: port.port,
        }));
    }
    if keys.is_empty() {
        let what = if addresses.is_empty() { "address" } else { "port" };
        return Err(TableError::Nothing { what });
    }
    let to = match &spec.backends {
        Backends::NodeSet { name, unserved } => To::All {
            set: name.as_str().into(),
            unserved: unserved.clone(),
        },
        Backends::Local {
            set,
            table_slots,
            nodes,
            transit,
        } => To::Some {
            set: set.as_str().into(),
            slots: slots(*table_slots)?,
            nodes: nodes.clone(),
            transit: transit.clone(),
        },
    };
    Ok(Parsed {
        keys,
        addresses,
        announced,
        sources: spec.source_ranges.as_deref().map(sources).transpose()?,
        scheduler: scheduler(spec.scheduler),
        affinity_timeout_s: spec
            .affinity
            .map(|affinity| affinity.client_ip_timeout_seconds.clamp(1, MAX_AFFINITY_S)),
        checks: spec.health_check.map(|check| Arc::new(checks(check))),
        to,
    })
}

fn scheduler(wanted: operator_api::Scheduler) -> Scheduler {
    match wanted {
        operator_api::Scheduler::Maglev => Scheduler::Maglev,
        operator_api::Scheduler::SourceHash => Scheduler::SourceHash,
        operator_api::Scheduler::DestinationHash => Scheduler::DestinationHash,
        operator_api::Scheduler::RoundRobin => Scheduler::RoundRobin,
        operator_api::Scheduler::WeightedRoundRobin => Scheduler::WeightedRoundRobin,
        operator_api::Scheduler::LeastConnections => Scheduler::LeastConnections,
        operator_api::Scheduler::WeightedLeastConnections => Scheduler::WeightedLeastConnections,
        operator_api::Scheduler::ShortestExpectedDelay => Scheduler::ShortestExpectedDelay,
        operator_api::Scheduler::NeverQueue => Scheduler::NeverQueue,
    }
}

/// What is asked of nodes. While all endpoints of a Service terminate, its own port says 503 everywhere and it is served all the same
/// (KEP-1669): then nobody is asked for it.
fn checks(check: HealthCheck) -> Checks {
    let port = match check {
        HealthCheck::ServicePort { ignored: true, .. } => None,
        HealthCheck::ServicePort { port, ignored: false } | HealthCheck::KubeProxy { port } => Some(port),
    };
    Checks {
        // A port that nodes do not have, because something else than kube-proxy is there, must not take a Service down.
        when_none: WhenNone::UseAll,
        ..Checks::new(port.map(Check::kube).into_iter().chain([Check::tunnel()]))
    }
}

/// A table size as published.
pub(super) fn slots(slots: u32) -> Result<usize, TableError> {
    let size = usize::try_from(slots).unwrap_or(0);
    if maglev::is_table_size(size) {
        Ok(size)
    } else {
        Err(TableError::Slots { slots })
    }
}

fn sources(texts: &[String]) -> Result<(Arc<[IpNet]>, Arc<RangeSet>), TableError> {
    let mut networks = networks(texts)?;
    networks.sort_unstable();
    networks.dedup();
    let ranges = RangeSet::from_cidrs(&networks);
    if networks.is_empty() || ranges.is_empty() {
        Err(TableError::NoSources)
    } else if !ranges.fits() {
        Err(TableError::TooManyRanges { ranges: ranges.len() })
    } else {
        Ok((networks.into(), Arc::new(ranges)))
    }
}

/// Networks, or addresses as networks of one; host bits do not count, as the API server takes them.
pub(super) fn networks(texts: &[String]) -> Result<Vec<IpNet>, TableError> {
    let network = |text: &String| {
        let trimmed = text.trim();
        let network = trimmed.parse().or_else(|_| trimmed.parse::<IpAddr>().map(IpNet::from));
        let network: Result<IpNet, TableError> = network.map_err(|_| TableError::NotANetwork { text: quoted(text) });
        network.map(|network| network.trunc())
    };
    texts.iter().map(network).collect()
}
