//! All that is watched, as a plain struct: apply, delete, reset; and what it asks for.
//!
//! Never writes and never waits. The same objects in any order give the same answers.
//!
//! | file | what it is |
//! |---|---|
//! | `object`, `store`, `kinds` | what is watched, each object in its newest version |
//! | `events` | what an event changes, and what has to be looked at for it |
//! | `service`, `annotations`, `ports`, `source_ranges` | the Service contract; `wanted` has its words |
//! | `marks` | what of ours is on a Service |
//! | `endpoints` | which nodes have endpoints of a Service |
//! | `nodes`, `node_set` | which nodes are backends, and the next chunk of their set |
//! | `transits` | what is published of who the backends were, and until when |
//! | `leaving` | nodes that are drained until a time, or not in the cluster any more |
//! | `waiting` | which Services wait for an address, or for LB nodes |
//! | `announcing`, `voices` | what is to be announced by whom, and what LB nodes say that they announce |
//! | `tunnel`, `lb_nodes`, `seed` | what workers accept; who has programmed what; what flows are hashed with |

mod annotations;
mod announcing;
mod endpoints;
mod events;
mod kinds;
mod lb_nodes;
mod leaving;
pub(crate) mod marks;
mod node_set;
mod nodes;
mod object;
mod ports;
mod seed;
mod service;
mod source_ranges;
mod store;
#[cfg(test)]
mod tests;
mod transits;
mod tunnel;
mod voices;
mod waiting;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use announcing::{Announced, Peer};
pub use announcing::{Selected, Sessions};
use endpoints::{Endpoints, local_table_slots};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::core::Selector;
pub use lb_nodes::Coverage;
use lb_nodes::{Life, Pulse, Says, says};
use nodes::Candidate;
pub use object::{Kind, Object, Settings};
use operator_api::{
    AddressClaim, AddressFamily, Backends, HealthCheck, Holder, LbNode, NodeSet, SEED_SECRET, ServiceRef,
    TUNNEL_CONFIG, TunnelConfig, TunnelConfigSpec, VipTable, WORKERS,
};
pub use seed::{Seed, fingerprint};
use store::{Key, Store};
pub use tunnel::TunnelFault;
pub use voices::Aired;
use voices::Voice;
use waiting::Wish;
pub use wanted::{Deprecation, Refusal, RefusedPort, Serve, Wanted, Why};

use crate::{
    ServiceKey,
    ipam::{Claim, Claims, Owner, Pools, address_of_name},
};

/// Where kube-proxy says how it is (KEP-3836).
const KUBE_PROXY_HEALTH_PORT: u16 = 10_256;

/// Something of ours whose Service is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Orphan<'a> {
    /// A table: there is no Service of its name.
    Table(&'a VipTable),
    /// A holder of a claim: there is no Service of its name, or it has another uid.
    Holder(&'a AddressClaim, &'a Holder),
}

/// Everything that is watched.
#[derive(Debug)]
pub struct Index {
    settings: Settings,
    selector: Option<Selector>,
    services: Store<Service>,
    /// The Service that a slice is of.
    slices: Store<Option<ServiceKey>>,
    endpoints: BTreeMap<ServiceKey, Endpoints>,
    nodes: Store<Candidate>,
    /// How many of `nodes` are eligible.
    eligible: usize,
    /// Labels.
    namespaces: Store<BTreeMap<String, String>>,
    pools: Pools,
    pool_versions: Store<()>,
    claims: Claims,
    claim_versions: Store<()>,
    tables: Store<VipTable>,
    node_sets: Store<NodeSet>,
    tunnels: Store<TunnelConfig>,
    lb_nodes: Store<LbNode>,
    leases: Store<Option<Pulse>>,
    /// What LB nodes say that they announce, by their names; those that say nothing of it are not in it.
    voices: BTreeMap<String, Voice>,
    peers: Store<Peer>,
    announcements: Store<Announced>,
    seeds: Store<seed::Found>,
    /// Services that are not [`Wanted::Foreign`].
    ours: BTreeSet<ServiceKey>,
    /// Services that lack an address.
    waiting: BTreeMap<ServiceKey, Wish>,
    /// Services with a table of which clients cannot know yet, until an LB node has it.
    unpublished: BTreeSet<ServiceKey>,
    /// A first list is being taken in while others are missing: what Services wait for is noted when the last of them has come.
    is_filling: bool,
    /// Since when tables have the addresses that they have.
    addressed: BTreeMap<Key, Timestamp>,
    /// What time it is.
    now: Timestamp,
    /// Objects that were left out because they are none that an API server can have.
    ignored: u64,
}

/// Families of a Service's addresses that nobody serves.
fn unserved_of(serve: &Serve, located: &endpoints::Located) -> Vec<AddressFamily> {
    let request = &serve.request;
    let external = request.external.iter().copied().map(crate::ipam::Family::of);
    let mut unserved = located.unserved();
    unserved.retain(|unserved| {
        let family = match unserved {
            AddressFamily::IPv4 => crate::ipam::Family::V4,
            AddressFamily::IPv6 => crate::ipam::Family::V6,
        };
        request.families.contains(&family) || external.clone().any(|external| external == family)
    });
    unserved
}

impl Index {
    /// Without any object.
    pub fn new(settings: Settings) -> Self {
        let selector = settings
            .service_selector
            .clone()
            .and_then(|selector| Selector::try_from(selector).ok());
        Self {
            selector,
            services: Store::default(),
            slices: Store::default(),
            endpoints: BTreeMap::new(),
            nodes: Store::default(),
            eligible: 0,
            namespaces: Store::default(),
            pools: Pools::default(),
            pool_versions: Store::default(),
            claims: Claims::of(settings.installation()),
            claim_versions: Store::default(),
            tables: Store::default(),
            node_sets: Store::default(),
            tunnels: Store::default(),
            lb_nodes: Store::default(),
            leases: Store::default(),
            voices: BTreeMap::new(),
            peers: Store::default(),
            announcements: Store::default(),
            seeds: Store::default(),
            ours: BTreeSet::new(),
            waiting: BTreeMap::new(),
            unpublished: BTreeSet::new(),
            is_filling: false,
            addressed: BTreeMap::new(),
            now: Timestamp::UNIX_EPOCH,
            ignored: 0,
            settings,
        }
    }

    /// What time it is, by a clock of this machine that is never set: what is heard from now on is heard now, and ages are counted
    /// from what was heard. No other machine's clock is believed.
    pub fn tick(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// What the operator was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether each kind was [reset](Self::reset) at least once: nothing may be decided before.
    pub fn is_complete(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.is_listed(kind))
    }

    /// Objects that were left out: without a name, in a namespace where they mean nothing, or a claim of no address.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// A Service, without its managedFields and without kubectl's copy of it.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.by_key(key)
    }

    /// All Services, ours or not.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.iter().map(|(key, _)| key)
    }

    /// Services that are not [`Wanted::Foreign`].
    pub fn ours(&self) -> impl Iterator<Item = &ServiceKey> {
        self.ours.iter()
    }

    /// What a Service asks of us.
    pub fn wanted(&self, key: &ServiceKey) -> Wanted {
        let Some(service) = self.services.by_key(key) else {
            return Wanted::Foreign;
        };
        let labels = service.metadata.labels.as_ref();
        let fits = |selector: &Selector| {
            let none = BTreeMap::new();
            kube::core::SelectorExt::matches(selector, labels.unwrap_or(&none))
        };
        let has_traces = self.table(key).is_some() || self.claims.marks(key);
        let around = service::Around {
            class: &self.settings.class,
            selected: self.settings.default_class || self.selector.as_ref().is_some_and(fits),
            has_traces,
            of_others: !has_traces && self.claims.is_of_others(key),
            is_held: self.claims.is_of_others(key) || self.claims.of_service(key).next().is_some(),
            namespace_labels: self.labels_of(&key.namespace),
        };
        service::wanted(service, &around)
    }

    /// Where the flows of a Service may go, and how nodes are probed for it.
    pub fn backends(&self, serve: &Serve) -> (Backends, Option<HealthCheck>) {
        let key = crate::ipam::key_of(&serve.service);
        let endpoints = self.endpoints.get(&key);
        let located = endpoints.map(Endpoints::located).cloned().unwrap_or_default();
        let check = match serve.health_check_node_port {
            Some(port) => HealthCheck::ServicePort {
                port,
                ignored: located.terminating,
            },
            None => HealthCheck::KubeProxy {
                port: KUBE_PROXY_HEALTH_PORT,
            },
        };
        let backends = if serve.local {
            let table = self.table(&key).filter(|table| table.spec.service == serve.service);
            let had = table.and_then(|table| match &table.spec.backends {
                Backends::Local { table_slots, .. } => Some(*table_slots),
                Backends::NodeSet { .. } => None,
            });
            let table_slots = local_table_slots(located.nodes.len(), had);
            let transit = table.and_then(|table| {
                let is_over = self.is_table_over(table);
                transits::of_table(table, &located.nodes, table_slots, is_over, self.now)
            });
            Backends::Local {
                set: WORKERS.to_owned(),
                table_slots,
                nodes: located.nodes,
                transit,
            }
        } else {
            Backends::NodeSet {
                name: WORKERS.to_owned(),
                unserved: unserved_of(serve, &located),
            }
        };
        (backends, serve.probed.then_some(check))
    }

    /// The table of a Service, whichever life of the Service it is of.
    pub fn table(&self, key: &ServiceKey) -> Option<&VipTable> {
        self.tables
            .by_key(&self.own(&VipTable::name_of(&key.namespace, &key.name)))
    }

    /// All tables, by name.
    pub fn tables(&self) -> impl Iterator<Item = &VipTable> {
        self.tables.iter().map(|(_, table)| table)
    }

    /// All pools.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// All claims.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// All claims, to reserve addresses for writes that are under way.
    pub fn claims_mut(&mut self) -> &mut Claims {
        &mut self.claims
    }

    /// Tables and holders whose Service is gone.
    pub fn orphans(&self) -> impl Iterator<Item = Orphan<'_>> {
        let tables = self.tables.iter().filter(|(key, _)| {
            let service = events::service_of_table(&key.name);
            service.is_none_or(|service| self.services.by_key(&service).is_none())
        });
        let claims = self.claims.iter().filter(|claim| claim.owner() != Owner::Others);
        let holders = claims.flat_map(|claim| {
            let dead = claim.holders().filter(|holder| !self.lives(&holder.service));
            dead.map(|holder| Orphan::Holder(claim.object(), holder))
        });
        tables.map(|(_, table)| Orphan::Table(table)).chain(holders)
    }

    /// The next chunk of the worker set to write; `None`: all is as it should be, or there is no seed yet that it could pin.
    pub fn next_node_set(&self) -> Option<NodeSet> {
        let seed = self.seed();
        let nodes = self.nodes.iter().map(|(key, node)| (key.name.as_str(), node)).collect();
        let time = (self.is_set_over(WORKERS), self.now);
        node_set::next(
            &self.settings.namespace,
            &self.chunks(),
            &nodes,
            seed.fingerprint()?,
            time,
        )
    }

    /// Whether something is published of the worker set's transit, which is to be taken out when it is over.
    pub fn is_node_set_in_transit(&self) -> bool {
        self.chunks().into_values().any(|chunk| chunk.transit.is_some())
    }

    /// How many nodes are eligible: none is `UnAvailableLoadBalancer`.
    pub fn eligible_nodes(&self) -> usize {
        self.eligible
    }

    /// The tunnel configuration that there is.
    pub fn tunnel(&self) -> Option<&TunnelConfig> {
        self.tunnels.by_key(&self.own(TUNNEL_CONFIG))
    }

    /// The tunnel configuration that there should be.
    ///
    /// # Errors
    /// It would be larger than an object can be: the one that there is stays.
    pub fn wanted_tunnel(&self) -> Result<TunnelConfigSpec, TunnelFault> {
        tunnel::wanted(self.lb_nodes(), &self.pools.prefixes(&self.claims), self.tunnel())
    }

    /// All LB nodes, by name, live or not.
    pub fn lb_nodes(&self) -> impl Iterator<Item = &LbNode> {
        self.lb_nodes.iter().map(|(_, node)| node)
    }

    /// On which of the live LB nodes a table is in the maps.
    pub fn programmed(&self, table: &VipTable) -> Coverage {
        let name = table.metadata.name.as_deref().unwrap_or_default();
        let version = store::version_of(table.metadata.resource_version.as_deref());
        let published = self.is_published(table);
        let mut coverage = Coverage::default();
        for (key, node) in self.lb_nodes.iter() {
            match self.life(&key.name) {
                Life::Alive => coverage.of += 1,
                Life::Unsure => {
                    coverage.unsure += 1;
                    continue;
                }
                Life::Dead => continue,
            }
            match says(node, name, version, published) {
                Says::On => coverage.on += 1,
                Says::NotYet => {}
                Says::Failing(why) => coverage.failing.push((key.name.clone(), why.to_owned())),
            }
        }
        coverage
    }

    fn life(&self, lb_node: &str) -> Life {
        let lease = format!("{}{lb_node}", operator_api::LB_LEASE_PREFIX);
        let pulse = self.leases.by_key(&self.own(&lease)).copied().flatten();
        pulse.map_or(Life::Dead, |pulse| pulse.at(self.now))
    }

    /// For how long a table has had the addresses that it has, as far as this operator knows.
    pub fn addressed_for(&self, table: &VipTable) -> SignedDuration {
        let key = self.own(table.metadata.name.as_deref().unwrap_or_default());
        self.since(self.addressed.get(&key).copied())
    }

    /// For how long an orphan has been known to this operator, be it as none.
    pub fn known_for(&self, orphan: Orphan<'_>) -> SignedDuration {
        let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
        self.since(match orphan {
            Orphan::Table(table) => self.tables.seen(&self.own(&name(&table.metadata))),
            Orphan::Holder(claim, _) => self.claim_versions.seen(&Key {
                namespace: String::new(),
                name: name(&claim.metadata),
            }),
        })
    }

    fn since(&self, then: Option<Timestamp>) -> SignedDuration {
        then.map_or(SignedDuration::ZERO, |then| self.now.duration_since(then))
    }

    /// The next Services with a table after one, in the order of their tables' names and from the start again, at most `most`:
    /// to look at all of them bit by bit when LB nodes come and go.
    pub fn refresh(&self, after: Option<&ServiceKey>, most: usize) -> Vec<ServiceKey> {
        let keys = || self.tables.iter().map(|(key, _)| key);
        let last = after.map(|after| self.own(&VipTable::name_of(&after.namespace, &after.name)));
        let is_later = |key: &&Key| last.as_ref().is_none_or(|last| *key > last);
        let later = keys().filter(is_later);
        let others = keys().filter(|key| !is_later(key));
        let services = later
            .chain(others)
            .filter_map(|key| events::service_of_table(&key.name));
        services.take(most).collect()
    }

    /// How it stands with the seed.
    pub fn seed(&self) -> Seed {
        seed::seed(self.seeds.by_key(&self.own(SEED_SECRET)), self.pinned())
    }

    /// What node sets say of the seed.
    fn pinned(&self) -> Option<&str> {
        self.chunks()
            .into_values()
            .next()
            .map(|chunk| chunk.seed_fingerprint.as_str())
    }

    fn chunks(&self) -> BTreeMap<u32, &operator_api::NodeSetSpec> {
        node_set::chunks(self.node_sets.iter().map(|(_, chunk)| chunk))
    }

    fn claim_of_name(&self, name: &str) -> Option<&Claim> {
        self.claims.by_address(address_of_name(name)?)
    }

    /// Whether this life of a Service is there.
    fn lives(&self, service: &ServiceRef) -> bool {
        let there = self.services.by_key(&crate::ipam::key_of(service));
        there.is_some_and(|there| there.metadata.uid.as_deref() == Some(&service.uid))
    }

    fn labels_of(&self, namespace: &str) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let key = Key {
            namespace: String::new(),
            name: namespace.to_owned(),
        };
        self.namespaces.by_key(&key).unwrap_or(&NONE)
    }

    /// The key of an object of the operator's namespace.
    fn own(&self, name: &str) -> Key {
        Key {
            namespace: self.settings.namespace.clone(),
            name: name.to_owned(),
        }
    }
}
