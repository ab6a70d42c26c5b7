//! All that is watched, as a plain struct: apply, delete, reset; and what it asks for.
//!
//! Never writes and never waits. The same objects in any order give the same answers.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Secret, Service},
    discovery::v1::EndpointSlice,
};
use operator_api::{AddressClaim, AddressPool, LbNode, NodeSet, TunnelConfig, VipTable};

use crate::Subject;

/// An object of a kind that is watched.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Service of any type and class.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A node.
    Node(Node),
    /// A namespace: its labels count.
    Namespace(Namespace),
    /// A pool.
    Pool(AddressPool),
    /// A claim.
    Claim(AddressClaim),
    /// A table.
    Table(VipTable),
    /// A chunk of a node set.
    NodeSet(NodeSet),
    /// The tunnel configuration.
    Tunnel(TunnelConfig),
    /// An LB node.
    LbNode(LbNode),
    /// A Lease of the operator's namespace: an LB node's liveness.
    Lease(Lease),
    /// The seed's Secret; others of the namespace are not watched.
    Seed(Secret),
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "as the variants of Object")]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    Namespace,
    Pool,
    Claim,
    Table,
    NodeSet,
    Tunnel,
    LbNode,
    Lease,
    Seed,
}

/// What the operator was told on its command line, as far as decisions need it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Namespace of the operator and its objects.
    pub namespace: String,
    /// `spec.loadBalancerClass` of Services that are ours.
    pub class: String,
    /// Take Services without a class, too.
    pub default_class: bool,
    /// Take Services without a class whose labels fit, whatever `default_class` says.
    pub service_selector: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
}

/// Everything that is watched.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
}

impl Index {
    /// Without any object.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// What the operator was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Puts an object in the place of its earlier version; one that is not newer than what is known (by `resourceVersion`, of the same
    /// uid) changes nothing. Returns what has to be looked at.
    pub fn apply(&mut self, _object: Object) -> BTreeSet<Subject> {
        BTreeSet::new()
    }

    /// Takes an object out.
    pub fn delete(&mut self, _object: Object) -> BTreeSet<Subject> {
        BTreeSet::new()
    }

    /// Puts a whole list in the place of all that is known of a kind: what is not in it is gone.
    pub fn reset(&mut self, _kind: Kind, _objects: Vec<Object>) -> BTreeSet<Subject> {
        BTreeSet::new()
    }
}
