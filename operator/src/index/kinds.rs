//! The stores by kind: what is the same for all of them, spelt out.
//!
//! Never says what a change means: `events` does.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Index, Kind,
    nodes::Candidate,
    store::{Key, Stamp},
};

/// What was taken out.
pub(super) enum Gone {
    Nothing,
    Service(Key),
    EndpointSlice(Key, Option<Key>),
    Node(Candidate),
    Namespace(Key, BTreeMap<String, String>),
    Pool(Key),
    Claim(Key),
    Table(Key),
    NodeSet,
    Tunnel,
    LbNode(Key),
    Lease,
    Peer,
    Announcement,
    Seed,
}

/// The stores by kind.
impl Index {
    pub(super) fn takes(&self, kind: Kind, key: &Key, stamp: &Stamp) -> bool {
        match kind {
            Kind::Service => self.services.takes(key, stamp),
            Kind::EndpointSlice => self.slices.takes(key, stamp),
            Kind::Node => self.nodes.takes(key, stamp),
            Kind::Namespace => self.namespaces.takes(key, stamp),
            Kind::Pool => self.pool_versions.takes(key, stamp),
            Kind::Claim => self.claim_versions.takes(key, stamp),
            Kind::Table => self.tables.takes(key, stamp),
            Kind::NodeSet => self.node_sets.takes(key, stamp),
            Kind::Tunnel => self.tunnels.takes(key, stamp),
            Kind::LbNode => self.lb_nodes.takes(key, stamp),
            Kind::Lease => self.leases.takes(key, stamp),
            Kind::Peer => self.peers.takes(key, stamp),
            Kind::Announcement => self.announcements.takes(key, stamp),
            Kind::Seed => self.seeds.takes(key, stamp),
        }
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices.len(),
            Kind::Node => self.nodes.len(),
            Kind::Namespace => self.namespaces.len(),
            Kind::Pool => self.pool_versions.len(),
            Kind::Claim => self.claim_versions.len(),
            Kind::Table => self.tables.len(),
            Kind::NodeSet => self.node_sets.len(),
            Kind::Tunnel => self.tunnels.len(),
            Kind::LbNode => self.lb_nodes.len(),
            Kind::Lease => self.leases.len(),
            Kind::Peer => self.peers.len(),
            Kind::Announcement => self.announcements.len(),
            Kind::Seed => self.seeds.len(),
        }
    }

    pub(super) fn is_listed(&self, kind: Kind) -> bool {
        match kind {
            Kind::Service => self.services.is_listed(),
            Kind::EndpointSlice => self.slices.is_listed(),
            Kind::Node => self.nodes.is_listed(),
            Kind::Namespace => self.namespaces.is_listed(),
            Kind::Pool => self.pool_versions.is_listed(),
            Kind::Claim => self.claim_versions.is_listed(),
            Kind::Table => self.tables.is_listed(),
            Kind::NodeSet => self.node_sets.is_listed(),
            Kind::Tunnel => self.tunnels.is_listed(),
            Kind::LbNode => self.lb_nodes.is_listed(),
            Kind::Lease => self.leases.is_listed(),
            Kind::Peer => self.peers.is_listed(),
            Kind::Announcement => self.announcements.is_listed(),
            Kind::Seed => self.seeds.is_listed(),
        }
    }

    pub(super) fn take(&mut self, kind: Kind, key: &Key, stamp: Stamp) -> Gone {
        let key_of = |_: &()| key.clone();
        let gone = match kind {
            Kind::Service => self.services.delete(key, stamp).map(|_| Gone::Service(key.clone())),
            Kind::EndpointSlice => self
                .slices
                .delete(key, stamp)
                .map(|service| Gone::EndpointSlice(key.clone(), service)),
            Kind::Node => self.nodes.delete(key, stamp).map(Gone::Node),
            Kind::Namespace => self
                .namespaces
                .delete(key, stamp)
                .map(|labels| Gone::Namespace(key.clone(), labels)),
            Kind::Pool => self
                .pool_versions
                .delete(key, stamp)
                .as_ref()
                .map(key_of)
                .map(Gone::Pool),
            Kind::Claim => self
                .claim_versions
                .delete(key, stamp)
                .as_ref()
                .map(key_of)
                .map(Gone::Claim),
            Kind::Table => self.tables.delete(key, stamp).map(|_| Gone::Table(key.clone())),
            Kind::NodeSet => self.node_sets.delete(key, stamp).map(|_| Gone::NodeSet),
            Kind::Tunnel => self.tunnels.delete(key, stamp).map(|_| Gone::Tunnel),
            Kind::LbNode => self.lb_nodes.delete(key, stamp).map(|_| Gone::LbNode(key.clone())),
            Kind::Lease => self.leases.delete(key, stamp).map(|_| Gone::Lease),
            Kind::Peer => self.peers.delete(key, stamp).map(|_| Gone::Peer),
            Kind::Announcement => {
                let gone = self.announcements.delete(key, stamp);
                gone.map(|_| Gone::Announcement)
            }
            Kind::Seed => self.seeds.delete(key, stamp).map(|_| Gone::Seed),
        };
        gone.unwrap_or(Gone::Nothing)
    }

    pub(super) fn forget_deletion(&mut self, kind: Kind, stamp: &Stamp) {
        match kind {
            Kind::Service => self.services.forget_deletion(stamp),
            Kind::EndpointSlice => self.slices.forget_deletion(stamp),
            Kind::Node => self.nodes.forget_deletion(stamp),
            Kind::Namespace => self.namespaces.forget_deletion(stamp),
            Kind::Pool => self.pool_versions.forget_deletion(stamp),
            Kind::Claim => self.claim_versions.forget_deletion(stamp),
            Kind::Table => self.tables.forget_deletion(stamp),
            Kind::NodeSet => self.node_sets.forget_deletion(stamp),
            Kind::Tunnel => self.tunnels.forget_deletion(stamp),
            Kind::LbNode => self.lb_nodes.forget_deletion(stamp),
            Kind::Lease => self.leases.forget_deletion(stamp),
            Kind::Peer => self.peers.forget_deletion(stamp),
            Kind::Announcement => self.announcements.forget_deletion(stamp),
            Kind::Seed => self.seeds.forget_deletion(stamp),
        }
    }

    pub(super) fn keep(&mut self, kind: Kind, listed: &BTreeSet<Key>) -> Vec<Gone> {
        fn each<V>(gone: Vec<(Key, V)>, what: impl Fn((Key, V)) -> Gone) -> Vec<Gone> {
            gone.into_iter().map(what).collect()
        }
        match kind {
            Kind::Service => each(self.services.keep(listed), |(key, _)| Gone::Service(key)),
            Kind::EndpointSlice => each(self.slices.keep(listed), |(key, service)| {
                Gone::EndpointSlice(key, service)
            }),
            Kind::Node => each(self.nodes.keep(listed), |(_, candidate)| Gone::Node(candidate)),
            Kind::Namespace => each(self.namespaces.keep(listed), |(key, labels)| {
                Gone::Namespace(key, labels)
            }),
            Kind::Pool => each(self.pool_versions.keep(listed), |(key, ())| Gone::Pool(key)),
            Kind::Claim => each(self.claim_versions.keep(listed), |(key, ())| Gone::Claim(key)),
            Kind::Table => each(self.tables.keep(listed), |(key, _)| Gone::Table(key)),
            Kind::NodeSet => each(self.node_sets.keep(listed), |_| Gone::NodeSet),
            Kind::Tunnel => each(self.tunnels.keep(listed), |_| Gone::Tunnel),
            Kind::LbNode => each(self.lb_nodes.keep(listed), |(key, _)| Gone::LbNode(key)),
            Kind::Lease => each(self.leases.keep(listed), |_| Gone::Lease),
            Kind::Peer => each(self.peers.keep(listed), |_| Gone::Peer),
            Kind::Announcement => each(self.announcements.keep(listed), |_| Gone::Announcement),
            Kind::Seed => each(self.seeds.keep(listed), |_| Gone::Seed),
        }
    }
}
