//! Announcements and BgpPeers: which addresses, which LB nodes and which peers they are for.
//!
//! Never leaves a selector to an LB node: what is selected is written down, in VipTables and in the statuses of both, and an LB
//! node goes by that. Never empties a list of LB nodes because none is heard of: then the last one stays.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt as _};
use operator_api::{
    Announcement, BgpPeer, LABEL_DRAIN, LABEL_HOSTNAME, LbNode, MAX_ADDRESS_ANNOUNCEMENTS, MAX_ANNOUNCEMENT_PEERS,
    MAX_ANNOUNCING_NODES, Origin, excludes,
};

use super::{Index, lb_nodes::Life, store::Key};
use crate::{ServiceKey, ipam::parse_selector};

/// An LB node leaves lists when its Lease has been over for so long.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);
/// Most peers of an LB node.
const MAX_PEERS: usize = 64;

type Labels = BTreeMap<String, String>;

/// What a selector that may be absent, or make no sense, picks.
#[derive(Debug)]
pub(super) enum Picks {
    All,
    By(Selector),
    /// It makes no sense, and picks nothing.
    Nothing(String),
}

impl Picks {
    fn of(selector: Option<&LabelSelector>) -> Self {
        match selector.map(parse_selector) {
            None => Self::All,
            Some(Ok(selector)) => Self::By(selector),
            Some(Err(fault)) => Self::Nothing(fault),
        }
    }

    fn picks(&self, labels: &Labels) -> bool {
        match self {
            Self::All => true,
            Self::By(selector) => selector.matches(labels),
            Self::Nothing(_) => false,
        }
    }

    fn fault(&self) -> Option<&str> {
        match self {
            Self::All | Self::By(_) => None,
            Self::Nothing(fault) => Some(fault),
        }
    }
}

/// By name, or by labels; everything where neither is said.
#[derive(Debug)]
struct Named {
    names: BTreeSet<String>,
    by: Picks,
    is_open: bool,
}

impl Named {
    fn of(names: &[String], selector: Option<&LabelSelector>) -> Self {
        Self {
            names: names.iter().cloned().collect(),
            by: Picks::of(selector),
            is_open: names.is_empty() && selector.is_none(),
        }
    }

    fn picks(&self, name: &str, labels: &Labels) -> bool {
        let by_labels = match self.by {
            // Names alone: all others are out.
            Picks::All => false,
            Picks::By(_) | Picks::Nothing(_) => self.by.picks(labels),
        };
        self.is_open || self.names.contains(name) || by_labels
    }
}

/// A [`BgpPeer`], parsed.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) object: BgpPeer,
    nodes: Picks,
}

impl Peer {
    pub(super) fn parse(object: BgpPeer) -> Self {
        let nodes = Picks::of(object.spec.node_selector.as_ref());
        Self { object, nodes }
    }
}

/// An [`Announcement`], parsed.
#[derive(Debug)]
pub(super) struct Announced {
    pub(super) object: Announcement,
    pools: Named,
    services: Picks,
    nodes: Picks,
    peers: Named,
}

impl Announced {
    pub(super) fn parse(object: Announcement) -> Self {
        let spec = &object.spec;
        let none = operator_api::BgpAnnouncement::default();
        let bgp = spec.bgp.as_ref().unwrap_or(&none);
        Self {
            pools: Named::of(&spec.pools, spec.pool_selector.as_ref()),
            services: Picks::of(spec.service_selector.as_ref()),
            nodes: Picks::of(spec.node_selector.as_ref()),
            peers: Named::of(&bgp.peers, bgp.peer_selector.as_ref()),
            object,
        }
    }

    /// Whether VipTables may name it: LB nodes go by its status, and would find none.
    fn is_told(&self) -> bool {
        self.object.status.is_some()
    }

    /// Whether it selects the same addresses as another version of it.
    pub(super) fn selects_as(&self, other: &Self) -> bool {
        let (one, other_spec) = (&self.object.spec, &other.object.spec);
        one.pools == other_spec.pools
            && one.pool_selector == other_spec.pool_selector
            && one.service_selector == other_spec.service_selector
            && self.is_told() == other.is_told()
    }
}

/// LB nodes, or peers, that are selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Their names, sorted; of LB nodes only those that live, or the last that did.
    pub names: Vec<String>,
    /// How many there are, before lists are cut.
    pub count: usize,
    /// What is wrong: a reason in UpperCamelCase, and words.
    pub fault: Option<(&'static str, String)>,
}

/// How it stands with a peer's sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// LB nodes with which one is established.
    pub established: usize,
    /// LB nodes that are to have one.
    pub of: usize,
}

impl Index {
    /// A BgpPeer, by name.
    pub fn peer(&self, name: &str) -> Option<&BgpPeer> {
        self.peers.by_key(&self.own(name)).map(|peer| &peer.object)
    }

    /// All BgpPeers.
    pub fn peers(&self) -> impl Iterator<Item = &BgpPeer> {
        self.peers.iter().map(|(_, peer)| &peer.object)
    }

    /// An Announcement, by name.
    pub fn announcement(&self, name: &str) -> Option<&Announcement> {
        self.announcements.by_key(&self.own(name)).map(|found| &found.object)
    }

    /// All Announcements.
    pub fn announcements(&self) -> impl Iterator<Item = &Announcement> {
        self.announcements.iter().map(|(_, found)| &found.object)
    }

    /// Names of the Announcements that an address of a pool has for a Service; `None`: none names the pool. One that has no status
    /// yet does not count.
    pub fn announcements_of(&self, pool: &str, service: &ServiceKey) -> Option<Vec<String>> {
        static NONE: Labels = BTreeMap::new();
        let labels = |labels: Option<&'_ Labels>| labels.cloned().unwrap_or_default();
        let told = self.announcements.iter().filter(|(_, found)| found.is_told());
        let mut told = told.peekable();
        told.peek()?;
        let of_pool = self.pools.by_name(pool).map(crate::ipam::Pool::object);
        let of_pool = labels(of_pool.and_then(|pool| pool.metadata.labels.as_ref()));
        let of_service = self.services.by_key(service);
        let of_service = of_service.and_then(|it| it.metadata.labels.as_ref()).unwrap_or(&NONE);
        let mut names_pool = told.filter(|(_, found)| found.pools.picks(pool, &of_pool)).peekable();
        names_pool.peek()?;
        let selects = names_pool.filter(|(_, found)| found.services.picks(of_service));
        let names = selects.map(|(key, _)| key.name.clone());
        Some(names.take(MAX_ADDRESS_ANNOUNCEMENTS).collect())
    }

    /// Labels by which an LB node is selected.
    fn labels_of_lb_node(&self, key: &Key, node: &LbNode) -> Labels {
        let machine = Key {
            namespace: String::new(),
            name: key.name.clone(),
        };
        let machine = self.nodes.by_key(&machine).map(super::Candidate::labels);
        let mut labels = machine.cloned().unwrap_or_default();
        labels.extend(node.metadata.labels.clone().unwrap_or_default());
        labels
            .entry(LABEL_HOSTNAME.to_owned())
            .or_insert_with(|| key.name.clone());
        labels
    }

    /// Whether an LB node lives, or did a minute ago.
    fn is_about(&self, lb_node: &str) -> bool {
        let lease = format!("{}{lb_node}", operator_api::LB_LEASE_PREFIX);
        let pulse = self.leases.by_key(&self.own(&lease)).copied().flatten();
        let then = self.now.saturating_sub(PATIENCE).unwrap_or(self.now);
        pulse.is_some_and(|pulse| pulse.at(self.now) != Life::Dead || pulse.at(then) != Life::Dead)
    }

    /// Whether an LB node is to be drained, and says that it gives everything away.
    fn is_drained(&self, lb_node: &str) -> bool {
        let key = self.own(lb_node);
        let Some(node) = self.lb_nodes.by_key(&key) else {
            return false;
        };
        let machine = Key {
            namespace: String::new(),
            name: lb_node.to_owned(),
        };
        let by_label = node.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_DRAIN));
        let is_asked = by_label.is_some_and(|value| excludes(value))
            || self.nodes.by_key(&machine).is_some_and(super::Candidate::is_drained);
        is_asked && self.voice(lb_node).is_some_and(|voice| voice.is_draining)
    }

    /// LB nodes that are selected and live; where none does, those of the last list.
    fn live(&self, picks: &Picks, last: &[String]) -> Selected {
        if let Some(fault) = picks.fault() {
            let fault = Some(("SelectorInvalid", format!("spec.nodeSelector: {fault}")));
            return Selected {
                fault,
                ..Selected::default()
            };
        }
        let all = self.lb_nodes.iter();
        let selected: Vec<&str> = all
            .filter(|(key, node)| picks.picks(&self.labels_of_lb_node(key, node)))
            .map(|(key, _)| key.name.as_str())
            .collect();
        let mut names: Vec<&str> = selected.iter().copied().filter(|name| self.is_about(name)).collect();
        if names.is_empty() {
            let of_last = selected.iter().copied().filter(|name| last.iter().any(|it| it == name));
            names = of_last.collect();
        }
        let fault = if selected.is_empty() {
            Some((
                "NoLbNode",
                "it is for no LB node: none is there that spec.nodeSelector selects".to_owned(),
            ))
        } else {
            None
        };
        Selected {
            count: names.len(),
            names: names.into_iter().map(str::to_owned).collect(),
            fault,
        }
    }

    /// LB nodes that a peer is for.
    pub fn nodes_of_peer(&self, name: &str) -> Selected {
        let Some(peer) = self.peers.by_key(&self.own(name)) else {
            return Selected::default();
        };
        let last = peer.object.status.as_ref().map(|status| status.nodes.clone());
        let mut selected = self.live(&peer.nodes, &last.unwrap_or_default());
        let mut refused: BTreeMap<(&'static str, String), Vec<String>> = BTreeMap::new();
        selected.names.retain(|node| match self.refusal(name, peer, node) {
            Some(why) => {
                refused.entry(why).or_default().push(node.clone());
                false
            }
            None => true,
        });
        selected.count = selected.names.len();
        selected.names.truncate(MAX_ANNOUNCING_NODES);
        if let Some(((reason, why), nodes)) = refused.into_iter().next() {
            selected.fault = Some((reason, format!("{why}; not on {}", some(&nodes))));
        }
        selected
    }

    /// Why an LB node cannot have a peer beside those of lower names.
    fn refusal(&self, name: &str, peer: &Peer, node: &str) -> Option<(&'static str, String)> {
        let key = self.own(node);
        let labels = self.labels_of_lb_node(&key, self.lb_nodes.by_key(&key)?);
        let before = self.peers.iter().take_while(|(other, _)| other.name.as_str() < name);
        let mut before = before.filter(|(_, other)| other.nodes.picks(&labels)).peekable();
        let spec = &peer.object.spec;
        if let Some((first, other)) = before.peek() {
            let other = &other.object.spec;
            if other.local_asn != spec.local_asn {
                return Some((
                    "LocalAsnDiffers",
                    format!("localAsn differs from that of peer {}", first.name),
                ));
            }
            if other.graceful_restart != spec.graceful_restart {
                let why = format!("gracefulRestart differs from that of peer {}", first.name);
                return Some(("GracefulRestartDiffers", why));
            }
        }
        let mut count = 0;
        for (other, parsed) in before {
            count += 1;
            if parsed.object.spec.address == spec.address {
                return Some(("AddressTaken", format!("peer {} has the same address", other.name)));
            }
        }
        (count >= MAX_PEERS).then(|| ("TooManyPeers", format!("an LB node has at most {MAX_PEERS} peers")))
    }

    /// How it stands with the sessions of a peer on these LB nodes.
    pub fn sessions(&self, peer: &str, nodes: &[String]) -> Sessions {
        let mut sessions = Sessions::default();
        for bgp in nodes
            .iter()
            .map(|node| self.voice(node).and_then(|voice| voice.bgp.as_ref()))
        {
            if bgp.is_some_and(|bgp| bgp.origin == Origin::File) {
                continue;
            }
            sessions.of += 1;
            sessions.established += usize::from(bgp.is_some_and(|bgp| bgp.peers.contains(peer)));
        }
        sessions
    }

    /// LB nodes that an Announcement is for.
    pub fn nodes_of_announcement(&self, name: &str) -> Selected {
        let Some(found) = self.announcements.by_key(&self.own(name)) else {
            return Selected::default();
        };
        let last = found.object.status.as_ref().map(|status| status.nodes.clone());
        let mut selected = self.live(&found.nodes, &last.unwrap_or_default());
        if !selected.names.iter().all(|node| self.is_drained(node)) {
            selected.names.retain(|node| !self.is_drained(node));
        }
        selected.count = selected.names.len();
        selected.names.truncate(MAX_ANNOUNCING_NODES);
        selected
    }

    /// Peers that an Announcement tells.
    pub fn peers_of_announcement(&self, name: &str) -> Selected {
        let found = self.announcements.by_key(&self.own(name));
        let Some(found) = found.filter(|found| found.object.spec.bgp.is_some()) else {
            return Selected::default();
        };
        let none = Labels::new();
        let picked = self.peers.iter().filter(|(key, peer)| {
            let labels = peer.object.metadata.labels.as_ref().unwrap_or(&none);
            found.peers.picks(&key.name, labels)
        });
        let mut names: Vec<String> = picked.map(|(key, _)| key.name.clone()).collect();
        let missing = found.peers.names.iter().find(|name| self.peer(name).is_none());
        let fault = if let Some(missing) = missing {
            Some(("PeerMissing", format!("there is no BgpPeer {missing}")))
        } else if let Some(fault) = found.peers.by.fault() {
            Some(("SelectorInvalid", format!("spec.bgp.peerSelector: {fault}")))
        } else if names.is_empty() {
            Some(("NoPeer", "there is no BgpPeer that it tells".to_owned()))
        } else {
            None
        };
        let count = names.len();
        names.truncate(MAX_ANNOUNCEMENT_PEERS);
        Selected { names, count, fault }
    }

    /// What is wrong with the pools and Services that an Announcement selects.
    pub fn selection_fault(&self, name: &str) -> Option<(&'static str, String)> {
        let found = self.announcements.by_key(&self.own(name))?;
        if let Some(missing) = found.pools.names.iter().find(|pool| self.pools.by_name(pool).is_none()) {
            return Some(("PoolMissing", format!("there is no AddressPool {missing}")));
        }
        let faults = [("poolSelector", &found.pools.by), ("serviceSelector", &found.services)];
        faults.into_iter().find_map(|(field, picks)| {
            let fault = picks.fault()?;
            Some(("SelectorInvalid", format!("spec.{field}: {fault}")))
        })
    }

    /// Services whose tables another selection may change.
    pub(super) fn all_ours(&self) -> impl Iterator<Item = crate::Subject> {
        self.ours.iter().cloned().map(crate::Subject::Service)
    }

    /// All BgpPeers and Announcements.
    pub(super) fn all_announcing(&self) -> impl Iterator<Item = crate::Subject> {
        let peers = self.peers.iter().map(|(key, _)| crate::Subject::Peer(key.name.clone()));
        let announcements = self.announcements.iter();
        peers.chain(announcements.map(|(key, _)| crate::Subject::Announcement(key.name.clone())))
    }

    /// Whether an Announcement selects pools by their labels.
    pub(super) fn selects_pools_by_labels(&self) -> bool {
        let mut all = self.announcements.iter();
        all.any(|(_, found)| found.object.spec.pool_selector.is_some())
    }
}

/// The first names of a list, in words.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{shown} and {more} more"),
        Some(_) | None => shown,
    }
}
