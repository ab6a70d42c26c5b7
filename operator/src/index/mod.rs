//! All that is watched, as a plain struct: apply, delete, reset; and what it asks for.
//!
//! Never writes and never waits. The same objects in any order give the same answers.

mod lb_nodes;
mod seed;
mod service;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
pub use lb_nodes::Coverage;
pub use seed::Seed;
pub use service::{Deprecation, Refusal, RefusedPort, Serve, Wanted, Why};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Secret, Service},
    discovery::v1::EndpointSlice,
};
use operator_api::{
    AddressClaim, AddressPool, Backends, HealthCheck, Holder, LbNode, NodeSet, TunnelConfig, TunnelConfigSpec, VipTable,
};

use crate::{ServiceKey, Subject};

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

/// Something of ours whose Service is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Orphan<'a> {
    /// A table.
    Table(&'a VipTable),
    /// A holder of a claim.
    Holder(&'a AddressClaim, &'a Holder),
}

/// Why there is no tunnel configuration to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelFault {
    /// More outer sources than a TunnelConfig holds.
    #[error("{0} outer sources of LB nodes are more than the 1024 that a TunnelConfig holds")]
    TooManySources(usize),
    /// More blocks than a TunnelConfig holds.
    #[error("{0} blocks of VIP addresses are more than the 4096 that a TunnelConfig holds")]
    TooManyPrefixes(usize),
}

/// Everything that is watched.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    services: BTreeMap<ServiceKey, Service>,
    tables: BTreeMap<String, VipTable>,
    tunnel: Option<TunnelConfig>,
}

impl Index {
    /// Without any object.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            services: BTreeMap::new(),
            tables: BTreeMap::new(),
            tunnel: None,
        }
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

    /// Whether each kind was [reset](Self::reset) at least once: nothing may be decided before.
    pub fn is_complete(&self) -> bool {
        false
    }

    /// A Service, without its managedFields.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// All Services, ours or not.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// What a Service asks of us.
    pub fn wanted(&self, _key: &ServiceKey) -> Wanted {
        Wanted::Foreign
    }

    /// Where the flows of a Service may go, and how nodes are probed for it.
    pub fn backends(&self, _serve: &Serve) -> (Backends, Option<HealthCheck>) {
        (
            Backends::NodeSet {
                name: operator_api::WORKERS.to_owned(),
            },
            None,
        )
    }

    /// The table of a Service, whichever life of the Service it is of.
    pub fn table(&self, key: &ServiceKey) -> Option<&VipTable> {
        self.tables.get(&VipTable::name_of(&key.namespace, &key.name))
    }

    /// All tables, by name.
    pub fn tables(&self) -> impl Iterator<Item = &VipTable> {
        self.tables.values()
    }

    /// Tables and holders whose Service is gone: no Service of that name, or one with another uid.
    pub fn orphans(&self) -> impl Iterator<Item = Orphan<'_>> {
        std::iter::empty()
    }

    /// The next chunk of the worker set to write; `None`: all is as it should be, or there is no seed yet.
    pub fn next_node_set(&self) -> Option<NodeSet> {
        None
    }

    /// How many nodes are eligible: none is `UnAvailableLoadBalancer`.
    pub fn eligible_nodes(&self) -> usize {
        0
    }

    /// The tunnel configuration that there is.
    pub fn tunnel(&self) -> Option<&TunnelConfig> {
        self.tunnel.as_ref()
    }

    /// The tunnel configuration that there should be.
    pub fn wanted_tunnel(&self) -> Result<TunnelConfigSpec, TunnelFault> {
        Ok(TunnelConfigSpec::default())
    }

    /// On which of the live LB nodes a table is in the maps.
    pub fn programmed(&self, _table: &VipTable, _now: Timestamp) -> Coverage {
        Coverage::default()
    }

    /// When the next of the Leases that are fresh at `now` runs out, unless it is renewed.
    pub fn next_lease_expiry(&self, _now: Timestamp) -> Option<Timestamp> {
        None
    }

    /// The next Services with a table after one, in order and from the start again, at most `most`: for looking at them bit by
    /// bit when LB nodes come and go.
    pub fn refresh(&self, _after: Option<&ServiceKey>, _most: usize) -> Vec<ServiceKey> {
        Vec::new()
    }

    /// How it stands with the seed.
    pub fn seed(&self) -> Seed {
        Seed::Missing
    }
}
