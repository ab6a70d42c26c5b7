//! Nodes: which may be backends, and under which addresses.
//!
//! Never drops a node for being NotReady or cordoned (KEP-3458): health checks are for that, and they let connections end.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use operator_api::{
    ANNOTATION_DRAIN_DEADLINE, LABEL_DRAIN, LABEL_EXCLUDE_NODE, NodeEntry, TAINT_LB_NODE, TAINT_TO_BE_DELETED, excludes,
};

/// Label with a node's zone.
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Longest name of a node.
const MAX_NODE_NAME: usize = 253;
/// Longest name of a zone.
const MAX_ZONE: usize = 63;

/// A node, as far as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// As it stands in a node set; `None`: it is excluded, has no address, is being deleted, or only balances load.
    entry: Option<NodeEntry>,
    /// The autoscaler is about to delete it.
    leaving: bool,
    /// The label keeps it out.
    excluded: bool,
    /// When what lives there is given up, by the annotation; only where it is excluded.
    deadline: Option<Timestamp>,
    /// By which the LB node of its name is selected.
    labels: BTreeMap<String, String>,
}

impl Candidate {
    pub(super) fn parse(node: &Node) -> Self {
        let taints = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default();
        let tainted = |key| taints.iter().any(|taint| taint.key == key);
        let excluded = is_excluded(node);
        let included = node.metadata.deletion_timestamp.is_none() && !excluded && !tainted(TAINT_LB_NODE);
        Self {
            entry: if included { entry(node) } else { None },
            leaving: tainted(TAINT_TO_BE_DELETED),
            excluded,
            deadline: deadline(node).filter(|_| excluded),
            labels: node.metadata.labels.clone().unwrap_or_default(),
        }
    }

    /// As a backend, if it may be one.
    pub(super) fn eligible(&self) -> Option<&NodeEntry> {
        self.entry.as_ref().filter(|_| !self.leaving)
    }

    /// Its labels.
    pub(super) fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Whether the LB node of its name is to be drained.
    pub(super) fn is_drained(&self) -> bool {
        self.leaving || self.labels.get(LABEL_DRAIN).is_some_and(|value| excludes(value))
    }

    /// When what lives there is given up, though nothing new goes there.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    /// Whether the set is to be looked at. That a node will be deleted is no reason: its connections may end, and it goes with
    /// the next change (KEP-3458).
    pub(super) fn is_news_after(&self, old: Option<&Self>) -> bool {
        match old {
            Some(old) => {
                let stays = self.entry.is_some() && old.leaving && !self.leaving;
                old.entry != self.entry || old.deadline != self.deadline || stays
            }
            None => self.entry.is_some() || self.deadline.is_some(),
        }
    }

    /// Whether the set is to be looked at when it is deleted: it was in it, or connections may live there still.
    pub(super) fn may_have_connections(&self) -> bool {
        self.entry.is_some() || self.excluded
    }
}

/// One that is no time is none.
fn deadline(node: &Node) -> Option<Timestamp> {
    let annotations = node.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION_DRAIN_DEADLINE)?.trim().parse().ok()
}

fn is_excluded(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(LABEL_EXCLUDE_NODE));
    label.is_some_and(|value| excludes(value))
}

fn entry(node: &Node) -> Option<NodeEntry> {
    let name = node
        .metadata
        .name
        .clone()
        .filter(|name| !name.is_empty() && name.len() <= MAX_NODE_NAME)?;
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref())
        .unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    let mut parsed = internal
        .filter_map(|address| address.address.parse().ok())
        .filter(|address| is_host(*address));
    let (mut ipv4, mut ipv6) = (None, None);
    for address in parsed.by_ref() {
        let first = if address.is_ipv4() { &mut ipv4 } else { &mut ipv6 };
        first.get_or_insert_with(|| address.to_string());
    }
    if ipv4.is_none() && ipv6.is_none() {
        return None;
    }
    let labels = node.metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get(LABEL_ZONE)).cloned();
    let zone = zone.filter(|zone| !zone.is_empty() && zone.len() <= MAX_ZONE);
    Some(NodeEntry { name, ipv4, ipv6, zone })
}

/// Whether a tunnel can end there: it is some host's, and reachable beyond one link.
fn is_host(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !special
        && match address {
            IpAddr::V4(address) => !address.is_link_local() && !address.is_broadcast(),
            IpAddr::V6(address) => !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none(),
        }
}
