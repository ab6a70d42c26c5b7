//! EndpointSlices: which nodes have eligible endpoints of a Service, and how many.
//!
//! Never counts an endpoint twice, though slices may overlap while they are rewritten, and never one without a node. A node of
//! which nobody has heard counts as well: LB nodes look its address up in the node set.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use operator_api::{AddressFamily, LocalNode, MAX_LOCAL_NODES};

use super::node_set::table_slots;
use crate::{ServiceKey, ipam::Family};

/// Label of a slice that names its Service.
const LABEL_SERVICE: &str = "kubernetes.io/service-name";
/// Longest name of a node.
const MAX_NODE_NAME: usize = 253;

/// How an endpoint stands (KEP-1669), from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// Nothing is sent there.
    Out,
    /// Serving and terminating: for when no endpoint is ready.
    Last,
    /// Ready; what `publishNotReadyAddresses` asks for is in that.
    Ready,
}

/// An endpoint, as far as it counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Counted {
    state: State,
    address: IpAddr,
    target: Option<Box<str>>,
    node: Option<Box<str>>,
}

/// A slice, as far as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    family: Family,
    endpoints: Vec<Counted>,
}

impl Slice {
    /// `None`: it is of no Service, or of names in DNS.
    pub(super) fn parse(slice: &EndpointSlice) -> Option<(ServiceKey, Self)> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = ServiceKey {
            namespace: slice.metadata.namespace.clone()?,
            name: labels.get(LABEL_SERVICE).filter(|name| !name.is_empty())?.clone(),
        };
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return None,
        };
        let endpoints = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| Counted::parse(endpoint, family));
        let mut endpoints: Vec<Counted> = endpoints.collect();
        endpoints.sort_unstable();
        Some((service, Self { family, endpoints }))
    }
}

impl Counted {
    /// `None`: it has no address of the family, or is out. Of several addresses only the first means anything.
    fn parse(endpoint: &Endpoint, family: Family) -> Option<Self> {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
        let terminating = conditions
            .and_then(|conditions| conditions.terminating)
            .unwrap_or(false);
        let state = match (ready, serving && terminating) {
            (true, _) => State::Ready,
            (false, true) => State::Last,
            (false, false) => State::Out,
        };
        let address = endpoint.addresses.first()?.parse().ok()?;
        let target = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref());
        let node = endpoint.node_name.as_deref();
        let named = |node: &&str| !node.is_empty() && node.len() <= MAX_NODE_NAME;
        (Family::of(address) == family).then(|| Self {
            state,
            address,
            target: target.filter(|uid| !uid.is_empty()).map(Box::from),
            node: node.filter(named).map(Box::from),
        })
    }
}

/// Where the endpoints of a Service are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Located {
    /// Nodes with eligible endpoints, by name, at most [`MAX_LOCAL_NODES`].
    pub(super) nodes: Vec<LocalNode>,
    /// Those of a family are all terminating.
    pub(super) terminating: bool,
    /// Whether there is an eligible one of IPv4, on whichever node or none.
    pub(super) ipv4: bool,
    /// The same of IPv6.
    pub(super) ipv6: bool,
}

impl Located {
    /// Families without an eligible endpoint.
    pub(super) fn unserved(&self) -> Vec<AddressFamily> {
        let families = [(self.ipv4, AddressFamily::IPv4), (self.ipv6, AddressFamily::IPv6)];
        let unserved = families.into_iter().filter(|(served, _)| !served);
        unserved.map(|(_, family)| family).collect()
    }
}

/// How a new count differs from the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changes {
    /// In anything: what counts for policy Local.
    pub(super) any: bool,
    /// In which families are served at all: what counts for policy Cluster.
    pub(super) served: bool,
}

/// Slices of a Service, and what they come to.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    slices: BTreeMap<String, Slice>,
    located: Located,
}

impl Endpoints {
    /// Puts a slice in the place of its earlier version. Returns whether it says anything else.
    pub(super) fn put(&mut self, name: &str, slice: Slice) -> bool {
        if self.slices.get(name) == Some(&slice) {
            return false;
        }
        self.slices.insert(name.to_owned(), slice);
        true
    }

    /// Takes a slice out.
    pub(super) fn remove(&mut self, name: &str) {
        self.slices.remove(name);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    pub(super) fn located(&self) -> &Located {
        &self.located
    }

    /// Counts anew, after slices have changed. Returns how the result differs.
    pub(super) fn locate(&mut self) -> Changes {
        let located = locate(self.slices.values());
        let changes = Changes {
            any: located != self.located,
            served: located.unserved() != self.located.unserved(),
        };
        self.located = located;
        changes
    }
}

/// Per family, in the whole cluster: those that are ready; where none is, those that serve and terminate.
fn locate<'a>(slices: impl Iterator<Item = &'a Slice>) -> Located {
    let mut families: BTreeMap<Family, Vec<&Counted>> = BTreeMap::new();
    for slice in slices {
        families.entry(slice.family).or_default().extend(&slice.endpoints);
    }
    let mut nodes: BTreeMap<&str, LocalNode> = BTreeMap::new();
    let (mut terminating, mut served) = (false, std::collections::BTreeSet::new());
    for (family, mut endpoints) in families {
        once_each(&mut endpoints);
        let ready = endpoints.first().is_some_and(|best| best.state == State::Ready);
        let eligible = if ready { State::Ready } else { State::Last };
        let mut eligible = endpoints
            .iter()
            .filter(|endpoint| endpoint.state == eligible)
            .peekable();
        terminating |= !ready && eligible.peek().is_some();
        served.extend(eligible.peek().map(|_| family));
        for name in eligible.filter_map(|endpoint| endpoint.node.as_deref()) {
            let node = nodes.entry(name).or_insert_with(|| LocalNode {
                name: name.to_owned(),
                ipv4: 0,
                ipv6: 0,
            });
            let count = match family {
                Family::V4 => &mut node.ipv4,
                Family::V6 => &mut node.ipv6,
            };
            *count = count.saturating_add(1);
        }
    }
    let nodes = nodes.into_values().take(MAX_LOCAL_NODES).collect();
    Located {
        nodes,
        terminating,
        ipv4: served.contains(&Family::V4),
        ipv6: served.contains(&Family::V6),
    }
}

/// Leaves of those with the same target or the same address only the best, best first: while slices are rewritten, an endpoint
/// may stand in two of them.
fn once_each(endpoints: &mut Vec<&Counted>) {
    endpoints.sort_unstable_by(|one, other| other.cmp(one));
    let mut targets = std::collections::BTreeSet::new();
    let mut addresses = std::collections::BTreeSet::new();
    endpoints.retain(|endpoint| {
        let seen = addresses.contains(&endpoint.address)
            || endpoint
                .target
                .as_deref()
                .is_some_and(|target| targets.contains(target));
        addresses.insert(endpoint.address);
        targets.extend(endpoint.target.as_deref());
        !seen
    });
}

/// Slots of the lookup table of a Service with so many nodes, which had so many.
pub(super) fn local_table_slots(nodes: usize, had: Option<u32>) -> u32 {
    table_slots(nodes).max(had.unwrap_or(0))
}
