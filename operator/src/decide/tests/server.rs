//! An API server in a few hundred lines of memory, and LB nodes that do what they are told.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Service, ServiceStatus},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
};
use operator_api::{
    AddressClaim, AddressPool, Announcement, Announcing, Backends, BgpPeer, LB_LEASE_PREFIX, LbNode, LbNodeStatus,
    NodeSet, Programmed, SEED_KEY, SEED_SECRET, TunnelConfig, VipTable,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{ServiceKey, decide::Action, index::Object};

pub(super) const NAMESPACE: &str = "vipline-system";
pub(super) const CLASS: &str = "vipline.dev/xdp";

/// An object from JSON.
pub(super) fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// What is in a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    version: u64,
    pub(super) now: i64,
    pub(super) services: BTreeMap<ServiceKey, Service>,
    /// Finalizers and annotations, and conditions, that our applies own; and whether they own the ingress.
    pub(super) owned: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>, bool)>,
    pub(super) claims: BTreeMap<String, AddressClaim>,
    pub(super) tables: BTreeMap<String, VipTable>,
    pub(super) sets: BTreeMap<String, NodeSet>,
    pub(super) tunnel: Option<TunnelConfig>,
    pub(super) pools: BTreeMap<String, AddressPool>,
    pub(super) lb_nodes: BTreeMap<String, LbNode>,
    pub(super) leases: BTreeMap<String, Lease>,
    pub(super) peers: BTreeMap<String, BgpPeer>,
    pub(super) announcements: BTreeMap<String, Announcement>,
    /// What LB nodes say that they announce, by name.
    pub(super) announcing: BTreeMap<String, Announcing>,
    /// How far the clocks of LB nodes are behind, in seconds.
    pub(super) lb_clock_behind: i64,
    /// LB nodes that program nothing: they live, and their maps stay as they are.
    pub(super) stuck: BTreeSet<String>,
    /// Everything that a watch would say, in order.
    pub(super) log: Vec<(bool, Object)>,
}

impl Server {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + self.now).unwrap()
    }

    fn stamp(&mut self, metadata: &mut ObjectMeta) {
        self.version += 1;
        metadata.resource_version = Some(self.version.to_string());
        if metadata.uid.is_none() {
            metadata.uid = Some(format!("uid-{}", self.version));
        }
        if metadata.creation_timestamp.is_none() {
            metadata.creation_timestamp = Some(Time(self.now()));
        }
    }

    fn say(&mut self, is_there: bool, object: Object) {
        self.log.push((is_there, object));
    }

    pub(super) fn pool(&mut self, name: &str, spec: Value) {
        let old = self.pools.get(name).cloned();
        let mut pool: AddressPool = object(json!({"metadata": {"name": name}, "spec": spec}));
        if let Some(old) = old {
            pool.metadata = old.metadata;
            pool.status = old.status;
        }
        pool.metadata.generation = Some(pool.metadata.generation.unwrap_or(0) + 1);
        self.put_pool(pool);
    }

    fn put_pool(&mut self, mut pool: AddressPool) {
        self.stamp(&mut pool.metadata);
        self.pools.insert(pool.metadata.name.clone().unwrap(), pool.clone());
        self.say(true, Object::Pool(pool));
    }

    /// Creates a BgpPeer, or puts another spec into it.
    pub(super) fn peer(&mut self, name: &str, labels: Value, spec: Value) {
        let mut peer: BgpPeer = object(json!({
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": spec,
        }));
        if let Some(old) = self.peers.get(name) {
            let labels = peer.metadata.labels.take();
            peer.metadata = ObjectMeta {
                labels,
                ..old.metadata.clone()
            };
            peer.status = old.status.clone();
        }
        peer.metadata.generation = Some(peer.metadata.generation.unwrap_or(0) + 1);
        self.put_peer(peer);
    }

    fn put_peer(&mut self, mut peer: BgpPeer) {
        self.stamp(&mut peer.metadata);
        self.peers.insert(peer.metadata.name.clone().unwrap(), peer.clone());
        self.say(true, Object::Peer(peer));
    }

    /// Creates an Announcement, or puts another spec into it.
    pub(super) fn announcement(&mut self, name: &str, spec: Value) {
        let mut announcement: Announcement =
            object(json!({"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}));
        if let Some(old) = self.announcements.get(name) {
            announcement.metadata = old.metadata.clone();
            announcement.status = old.status.clone();
        }
        announcement.metadata.generation = Some(announcement.metadata.generation.unwrap_or(0) + 1);
        self.put_announcement(announcement);
    }

    fn put_announcement(&mut self, mut announcement: Announcement) {
        self.stamp(&mut announcement.metadata);
        let name = announcement.metadata.name.clone().unwrap();
        self.announcements.insert(name, announcement.clone());
        self.say(true, Object::Announcement(announcement));
    }

    pub(super) fn delete_announcement(&mut self, name: &str) {
        let mut gone = self.announcements.remove(name).unwrap();
        self.stamp(&mut gone.metadata);
        self.say(false, Object::Announcement(gone));
    }

    /// What an LB node says from now on.
    pub(super) fn says(&mut self, lb_node: &str, announcing: Value) {
        self.announcing.insert(lb_node.to_owned(), object(announcing));
    }

    /// An LB node has these labels from now on.
    pub(super) fn label_lb_node(&mut self, name: &str, labels: Value) {
        let mut node = self.lb_nodes[name].clone();
        node.metadata.labels = object(labels);
        self.put_lb_node(node);
    }

    /// Time goes by, and an LB node is not heard.
    pub(super) fn later_without(&mut self, seconds: i64, dead: &[&str]) {
        self.now += seconds;
        for name in self.lb_nodes.clone().into_keys() {
            if !dead.contains(&name.as_str()) {
                self.breathe(&name);
            }
        }
    }

    /// Creates a Service, or puts another spec into it.
    pub(super) fn service(&mut self, name: &str, annotations: Value, spec: Value) {
        let key = key(name);
        let mut service: Service = object(json!({
            "metadata": {"name": name, "namespace": "default", "annotations": annotations}, "spec": spec, "status": {},
        }));
        if let Some(old) = self.services.get(&key) {
            let asked = service.metadata.annotations.take().unwrap_or_default();
            service.metadata = old.metadata.clone();
            let mut all = old.metadata.annotations.clone().unwrap_or_default();
            all.retain(|name, _| name.contains("ip-allocated-from-pool"));
            all.extend(asked);
            service.metadata.annotations = Some(all);
            service.status = old.status.clone();
        }
        self.put_service(service);
    }

    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut Service)) {
        let mut service = self.services[&key(name)].clone();
        change(&mut service);
        self.put_service(service);
    }

    fn put_service(&mut self, mut service: Service) {
        let key = key(service.metadata.name.as_deref().unwrap());
        // An API server wipes what the type does not have.
        if service.spec.as_ref().unwrap().type_.as_deref() != Some("LoadBalancer")
            && let Some(status) = &mut service.status
        {
            status.load_balancer = None;
        }
        let metadata = &service.metadata;
        if metadata.deletion_timestamp.is_some() && metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            self.stamp(&mut service.metadata);
            self.services.remove(&key);
            self.say(false, Object::Service(service));
            return;
        }
        self.stamp(&mut service.metadata);
        self.services.insert(key, service.clone());
        self.say(true, Object::Service(service));
    }

    pub(super) fn delete_service(&mut self, name: &str) {
        let now = self.now();
        if self.services.contains_key(&key(name)) {
            self.change(name, |service| service.metadata.deletion_timestamp = Some(Time(now)));
        }
    }

    /// Somebody takes the finalizers out by hand.
    pub(super) fn force_delete_service(&mut self, name: &str) {
        self.change(name, |service| service.metadata.finalizers = None);
        self.delete_service(name);
    }

    pub(super) fn node(&mut self, name: &str, address: &str) {
        self.labelled_node(name, address, json!({}));
    }

    pub(super) fn labelled_node(&mut self, name: &str, address: &str, labels: Value) {
        let mut node: k8s_openapi::api::core::v1::Node = object(json!({
            "metadata": {"name": name, "labels": labels}, "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }));
        self.stamp(&mut node.metadata);
        self.say(true, Object::Node(node));
    }

    pub(super) fn endpoints(&mut self, service: &str, nodes: &[&str]) {
        let endpoints: Vec<Value> = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| json!({"addresses": [format!("10.0.0.{}", index + 1)], "nodeName": node}))
            .collect();
        let mut slice: k8s_openapi::api::discovery::v1::EndpointSlice = object(json!({
            "metadata": {"name": format!("{service}-1"), "namespace": "default",
                         "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints,
        }));
        self.stamp(&mut slice.metadata);
        self.say(true, Object::EndpointSlice(slice));
    }

    /// An LB node joins.
    pub(super) fn lb_node(&mut self, name: &str) {
        let node = object(json!({
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"tunnelSources": ["192.0.2.1/32"]},
        }));
        self.put_lb_node(node);
        self.breathe(name);
    }

    fn put_lb_node(&mut self, mut node: LbNode) {
        self.stamp(&mut node.metadata);
        self.lb_nodes.insert(node.metadata.name.clone().unwrap(), node.clone());
        self.say(true, Object::LbNode(node));
    }

    fn breathe(&mut self, name: &str) {
        let theirs = Timestamp::from_second(self.now().as_second() - self.lb_clock_behind).unwrap();
        let mut lease = Lease {
            metadata: ObjectMeta {
                name: Some(format!("{LB_LEASE_PREFIX}{name}")),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                lease_duration_seconds: Some(40),
                renew_time: Some(MicroTime(theirs)),
                ..LeaseSpec::default()
            }),
        };
        self.stamp(&mut lease.metadata);
        self.leases.insert(name.to_owned(), lease.clone());
        self.say(true, Object::Lease(lease));
    }

    /// LB nodes write their maps, report and renew their Leases. Returns whether one had something new.
    pub(super) fn program(&mut self) -> bool {
        let newest = self
            .tables
            .values()
            .filter_map(|table| table.metadata.resource_version.as_ref()?.parse::<u64>().ok());
        let newest = newest.max().map(|version| version.to_string()).unwrap_or_default();
        let mut news = false;
        for (name, mut node) in self.lb_nodes.clone() {
            let told = LbNodeStatus {
                programmed: Programmed {
                    tables: newest.clone(),
                    ..node.status.clone().unwrap_or_default().programmed
                },
                announcing: self.announcing.get(&name).cloned(),
                ..LbNodeStatus::default()
            };
            if node.status.as_ref() != Some(&told) && !newest.is_empty() && !self.stuck.contains(&name) {
                node.status = Some(told);
                self.put_lb_node(node);
                news = true;
            }
            self.breathe(&name);
        }
        news
    }

    /// An LB node says that it cannot program a table.
    pub(super) fn fail_on(&mut self, lb_node: &str, service: &str) {
        let mut node = self.lb_nodes[lb_node].clone();
        let mut status = node.status.clone().unwrap_or_default();
        status.programmed.failing_count = 1;
        status.programmed.failing = vec![operator_api::FailingTable {
            name: VipTable::name_of("default", service),
            why: "no room".to_owned(),
        }];
        node.status = Some(status);
        self.put_lb_node(node);
    }

    pub(super) fn lose_lb_nodes(&mut self) {
        self.lb_nodes.clear();
        self.now += 100;
    }

    /// Time goes by, and LB nodes live on.
    pub(super) fn later(&mut self, seconds: i64) {
        self.now += seconds;
        for name in self.lb_nodes.clone().into_keys() {
            self.breathe(&name);
        }
    }

    /// Somebody else's claim.
    pub(super) fn squat(&mut self, address: &str) {
        let claim = object(json!({
            "metadata": {"name": address},
            "spec": {"address": address, "pool": "public", "holders": [{
                "service": {"namespace": "default", "name": "squatter", "uid": "uid-squatter"},
                "use": "LoadBalancer", "ports": [{"protocol": "TCP", "port": 80}],
            }]},
        }));
        self.put_claim(claim);
    }

    /// Claims are as versions wrote them that did not say whose they are.
    pub(super) fn forget_installations(&mut self) {
        for mut claim in self.claims.clone().into_values() {
            claim.spec.installation = None;
            self.put_claim(claim);
        }
    }

    fn put_claim(&mut self, mut claim: AddressClaim) {
        self.stamp(&mut claim.metadata);
        self.claims.insert(claim.metadata.name.clone().unwrap(), claim.clone());
        self.say(true, Object::Claim(claim));
    }

    /// Does a write as an API server would. `Err`: 409 or 404.
    pub(super) fn write(&mut self, action: &Action) -> Result<(), &'static str> {
        match action {
            Action::ApplyServiceMeta {
                service,
                uid,
                finalizers,
                annotations,
            } => {
                let mut object = self.services.get(service).cloned().ok_or("gone")?;
                if object.metadata.uid.as_ref() != Some(uid) {
                    return Err("another uid");
                }
                let before = object.clone();
                let owned = self.owned.entry(uid.clone()).or_default();
                let mut all = object.metadata.finalizers.take().unwrap_or_default();
                all.retain(|name| !owned.0.contains(name));
                all.extend(finalizers.iter().map(|name| (*name).to_owned()));
                all.sort();
                all.dedup();
                let mut notes = object.metadata.annotations.take().unwrap_or_default();
                notes.retain(|name, _| !owned.0.contains(name));
                notes.extend(
                    annotations
                        .iter()
                        .map(|(name, value)| ((*name).to_owned(), value.clone())),
                );
                owned.0 = finalizers
                    .iter()
                    .chain(annotations.keys())
                    .map(|name| (*name).to_owned())
                    .collect();
                object.metadata.finalizers = Some(all);
                object.metadata.annotations = Some(notes);
                if before != object {
                    self.put_service(object);
                }
            }
            Action::ReplaceServiceMeta {
                service,
                resource_version,
                finalizers,
                without_annotations,
            } => {
                let mut object = self.versioned(service, resource_version)?;
                object.metadata.finalizers = Some(finalizers.clone());
                let annotations = object.metadata.annotations.get_or_insert_default();
                annotations.retain(|name, _| !without_annotations.contains(&name.as_str()));
                self.put_service(object);
            }
            Action::ApplyServiceStatus {
                service,
                uid,
                ingress,
                conditions,
            } => {
                let mut object = self.services.get(service).cloned().ok_or("gone")?;
                if object.metadata.uid.as_ref() != Some(uid) {
                    return Err("another uid");
                }
                let before = object.clone();
                let owned = self.owned.entry(uid.clone()).or_default();
                let status = object.status.get_or_insert_default();
                if let Some(ServiceStatus { load_balancer, .. }) = ingress {
                    status.load_balancer = load_balancer.clone();
                } else if owned.2 {
                    status.load_balancer = None;
                }
                owned.2 = ingress.is_some();
                let all = status.conditions.get_or_insert_default();
                let names: BTreeSet<String> = conditions.iter().map(|condition| condition.type_.clone()).collect();
                all.retain(|condition| !owned.1.contains(&condition.type_) && !names.contains(&condition.type_));
                all.extend(conditions.iter().cloned());
                owned.1 = names;
                if before != object {
                    self.put_service(object);
                }
            }
            Action::ReplaceServiceStatus {
                service,
                resource_version,
                clear_ingress,
                conditions,
            } => {
                let mut object = self.versioned(service, resource_version)?;
                let status = object.status.get_or_insert_default();
                status.conditions = Some(conditions.clone());
                if *clear_ingress {
                    status.load_balancer = None;
                }
                self.put_service(object);
            }
            Action::CreateClaim(claim) => {
                if self.claims.contains_key(claim.metadata.name.as_deref().unwrap()) {
                    return Err("taken");
                }
                self.put_claim(claim.clone());
            }
            Action::ReplaceClaim(claim) => {
                let old = self.claims.get(claim.metadata.name.as_deref().unwrap()).ok_or("gone")?;
                if old.metadata.resource_version != claim.metadata.resource_version {
                    return Err("somebody was faster");
                }
                self.put_claim(claim.clone());
            }
            Action::DeleteClaim {
                name,
                uid,
                resource_version,
            } => {
                let old = self.claims.get(name).cloned().ok_or("gone")?;
                check(&old.metadata, uid, resource_version)?;
                self.claims.remove(name);
                self.say(false, Object::Claim(old));
            }
            Action::ApplyTable(table) => {
                let mut table = table.clone();
                let name = table.metadata.name.clone().unwrap();
                if let Some(old) = self.tables.get(&name) {
                    let bound = table.metadata.resource_version.is_some();
                    if bound && table.metadata.resource_version != old.metadata.resource_version {
                        return Err("somebody was faster");
                    }
                    // As the rules of the definition have it.
                    assert_eq!(table.spec.service, old.spec.service, "a table stays with its Service");
                    if let (Backends::Local { table_slots, .. }, Backends::Local { table_slots: had, .. }) =
                        (&table.spec.backends, &old.spec.backends)
                    {
                        assert!(table_slots >= had, "lookup tables only grow");
                    }
                    table.metadata = old.metadata.clone();
                } else if table.metadata.resource_version.is_some() {
                    return Err("gone");
                }
                self.stamp(&mut table.metadata);
                self.tables.insert(name, table.clone());
                self.say(true, Object::Table(table));
            }
            Action::DeleteTable {
                name,
                uid,
                resource_version,
            } => {
                let old = self.tables.get(name).cloned().ok_or("gone")?;
                check(&old.metadata, uid, resource_version)?;
                self.tables.remove(name);
                self.say(false, Object::Table(old));
            }
            Action::ApplyNodeSet(set) => {
                let mut set = set.clone();
                if let Some(old) = self.sets.get(set.metadata.name.as_deref().unwrap()) {
                    set.metadata = old.metadata.clone();
                }
                self.stamp(&mut set.metadata);
                self.sets.insert(set.metadata.name.clone().unwrap(), set.clone());
                self.say(true, Object::NodeSet(set));
            }
            Action::DeleteNodeSet { name } => {
                let old = self.sets.remove(name).ok_or("gone")?;
                self.say(false, Object::NodeSet(old));
            }
            Action::ApplyTunnel(tunnel) => {
                let mut tunnel = tunnel.clone();
                if let Some(old) = &self.tunnel {
                    tunnel.metadata = old.metadata.clone();
                }
                self.stamp(&mut tunnel.metadata);
                self.tunnel = Some(tunnel.clone());
                self.say(true, Object::Tunnel(tunnel));
            }
            Action::CreateSeed => {
                let mut secret: k8s_openapi::api::core::v1::Secret = object(json!({
                    "metadata": {"name": SEED_SECRET, "namespace": NAMESPACE}, "stringData": {SEED_KEY: "5a".repeat(32)},
                }));
                self.stamp(&mut secret.metadata);
                self.say(true, Object::Seed(secret));
            }
            Action::ApplyPoolStatus { name, status } => {
                let mut pool = self.pools.get(name).cloned().ok_or("gone")?;
                pool.status = Some(status.clone());
                self.put_pool(pool);
            }
            Action::ApplyPeerStatus { name, status } => {
                let mut peer = self.peers.get(name).cloned().ok_or("gone")?;
                peer.status = Some(status.clone());
                self.put_peer(peer);
            }
            Action::ApplyAnnouncementStatus { name, status } => {
                let mut announcement = self.announcements.get(name).cloned().ok_or("gone")?;
                announcement.status = Some(status.clone());
                self.put_announcement(announcement);
            }
        }
        Ok(())
    }

    fn versioned(&self, service: &ServiceKey, version: &str) -> Result<Service, &'static str> {
        let object = self.services.get(service).cloned().ok_or("gone")?;
        let same = object.metadata.resource_version.as_deref() == Some(version);
        same.then_some(object).ok_or("somebody was faster")
    }
}

fn check(metadata: &ObjectMeta, uid: &str, version: &str) -> Result<(), &'static str> {
    let same = metadata.uid.as_deref() == Some(uid) && metadata.resource_version.as_deref() == Some(version);
    same.then_some(()).ok_or("another by now")
}

pub(super) fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}
