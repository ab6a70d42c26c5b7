//! A cluster as a test has it: the double, or the one of `KUBECONFIG`, with namespaces and addresses of the test's own.
//!
//! Never leaves anything behind in a real cluster but the custom resource definitions.

use std::{
    fs::File,
    future::Future,
    time::{Duration, Instant},
};

use apiserver::ApiServer;
use k8s_openapi::{
    api::core::v1::{Namespace, Node, Service},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use operator_api::{AddressClaim, AddressPool, VipTable};
use serde_json::{Value, json};
use vipline_operator::{
    index::Settings,
    run::{Operator, Options},
};

use crate::lb_node::{LbNodeScript, ScriptedLbNode};

/// Label of all that is made in a real cluster, with the test's id.
const LABEL: &str = "vipline.dev/e2e";
/// Field manager of what tests apply.
const MANAGER: &str = "vipline-e2e";

/// A cluster. It is cleaned up when this is dropped, also by a panic.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    config: Config,
    /// `None`: a real one.
    pub(crate) double: Option<ApiServer>,
    /// Tells this test's things from those of others.
    id: String,
    /// The operator's namespace.
    pub(crate) own: String,
    /// The Services' namespace.
    pub(crate) namespace: String,
    /// The class that is ours.
    pub(crate) class: String,
    /// Third byte of the test's addresses, and a bit of the second.
    slot: u16,
    /// One test at a time in a real cluster: claims and pools are the whole cluster's.
    _turn: Option<File>,
}

impl Cluster {
    /// The double; with `KUBECONFIG` set, the cluster that it names.
    pub(crate) async fn connect() -> Self {
        let real = std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
        let turn = real.then(|| {
            let path = std::env::temp_dir().join("vipline-e2e.lock");
            let file = File::create(path).unwrap();
            file.lock().unwrap();
            file
        });
        let double = (!real).then(ApiServer::start);
        let mut config = match &double {
            Some(double) => Config::new(double.url().parse().unwrap()),
            None => Config::infer().await.unwrap(),
        };
        // Fails only where one was installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
        config.default_retry = false;
        let client = Client::try_from(config.clone()).unwrap();
        let id = format!("{:08x}", fastrand::u32(..));
        let mut cluster = Self {
            client,
            config,
            double,
            own: format!("e2e-{id}-own"),
            namespace: format!("e2e-{id}"),
            class: format!("e2e.vipline.dev/{id}"),
            id,
            slot: 0,
            _turn: turn,
        };
        cluster.prepare().await;
        cluster
    }

    /// Connects, and starts an operator and an LB node.
    pub(crate) async fn running() -> (Self, (Operator, ScriptedLbNode)) {
        let cluster = Self::connect().await;
        let running = (cluster.operator(|_| {}), cluster.lb_node("lb1"));
        (cluster, running)
    }

    /// As [`Self::running`], with the pool `main` of 16 addresses of each family.
    pub(crate) async fn served() -> (Self, (Operator, ScriptedLbNode)) {
        let (cluster, running) = Self::running().await;
        cluster
            .pool("main", &[cluster.range4(1, 16), cluster.range6(1, 16)], json!({}))
            .await;
        (cluster, running)
    }

    async fn prepare(&mut self) {
        if self.is_real() {
            self.define().await;
            // externalIPs have no class, and pools are the whole cluster's: a Vipline that is there would serve some of ours.
            self.until("no Vipline has addresses in this cluster: use another one", || async {
                self.claims()
                    .list(&ListParams::default())
                    .await
                    .unwrap()
                    .items
                    .is_empty()
            })
            .await;
        } else {
            for number in 1..=3 {
                self.node(&format!("w{number}"), &format!("10.0.0.{number}")).await;
            }
        }
        self.slot = self.free_slot().await;
        for name in [&self.own, &self.namespace] {
            self.make_namespace(name, json!({})).await;
        }
    }

    async fn define(&self) {
        let definitions = Api::<CustomResourceDefinition>::all(self.client.clone());
        for definition in operator_api::crds() {
            let apply = PatchParams::apply(MANAGER).force();
            let name = definition.name_any();
            definitions
                .patch(&name, &apply, &Patch::Apply(&definition))
                .await
                .unwrap();
            self.until(&format!("{name} is established"), || async {
                let status = definitions.get(&name).await.unwrap().status;
                let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
                conditions
                    .iter()
                    .any(|condition| condition.type_ == "Established" && condition.status == "True")
            })
            .await;
        }
    }

    async fn node(&self, name: &str, address: &str) {
        let status = json!({
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap();
        let nodes = Api::<Node>::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let status = Patch::Merge(json!({"status": status}));
        nodes
            .patch_status(name, &PatchParams::default(), &status)
            .await
            .unwrap();
    }

    /// A /24 of 198.18.0.0/15 (RFC 2544: nobody's) that no pool has.
    async fn free_slot(&self) -> u16 {
        let pools = self.pools().list(&ListParams::default()).await.unwrap().items;
        let taken: Vec<String> = pools.into_iter().flat_map(|pool| pool.spec.addresses).collect();
        loop {
            let slot = fastrand::u16(..512);
            let network = prefix4(slot);
            if !taken.iter().any(|addresses| addresses.starts_with(&network)) {
                return slot;
            }
        }
    }

    /// Whether this is not the double.
    pub(crate) fn is_real(&self) -> bool {
        self.double.is_none()
    }

    /// How long anything may take.
    fn patience(&self) -> Duration {
        Duration::from_secs(if self.is_real() { 60 } else { 20 })
    }

    /// Waits for something.
    pub(crate) async fn until<F>(&self, what: &str, mut look: impl FnMut() -> F)
    where
        F: Future<Output = bool>,
    {
        let start = Instant::now();
        while !look().await {
            if start.elapsed() > self.patience() {
                self.tell().await;
                panic!("not in {:?}: {what}", self.patience());
            }
            tokio::time::sleep(Duration::from_millis(if self.is_real() { 200 } else { 20 })).await;
        }
    }

    /// Holds that something stays so for a while.
    pub(crate) async fn stays<F>(&self, what: &str, mut look: impl FnMut() -> F)
    where
        F: Future<Output = bool>,
    {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(if self.is_real() { 5000 } else { 1200 }) {
            if !look().await {
                self.tell().await;
                panic!("it changed: {what}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What there is, for whoever reads why a test failed.
    async fn tell(&self) {
        for service in self.services().list(&ListParams::default()).await.unwrap().items {
            let status = serde_json::to_string(&service.status).unwrap();
            eprintln!("Service {}: {:?} {status}", service.name_any(), service.finalizers());
        }
        for claim in self.claims().list(&ListParams::default()).await.unwrap().items {
            eprintln!("claim {}", serde_json::to_string(&claim.spec).unwrap());
        }
        for table in self.tables().list(&ListParams::default()).await.unwrap().items {
            eprintln!("table {}", serde_json::to_string(&table.spec).unwrap());
        }
        for pool in self.pools().list(&ListParams::default()).await.unwrap().items {
            eprintln!(
                "pool {} {} {}",
                pool.name_any(),
                serde_json::to_string(&pool.spec).unwrap(),
                serde_json::to_string(&pool.status).unwrap()
            );
        }
    }

    /// Starts an operator.
    pub(crate) fn operator(&self, change: impl FnOnce(&mut Options)) -> Operator {
        let mut options = Options::new(Settings {
            namespace: self.own.clone(),
            class: self.class.clone(),
            default_class: false,
            service_selector: None,
        });
        change(&mut options);
        Operator::start(self.config.clone(), options).unwrap()
    }

    /// Starts an LB node.
    pub(crate) fn lb_node(&self, name: &str) -> ScriptedLbNode {
        self.lb_node_with_lease(name, 40)
    }

    /// Starts an LB node whose Lease holds so many seconds.
    pub(crate) fn lb_node_with_lease(&self, name: &str, lease_seconds: i32) -> ScriptedLbNode {
        self.script(&self.own, name, lease_seconds)
    }

    /// Starts an LB node of another installation.
    pub(crate) fn lb_node_in(&self, namespace: &str, name: &str) -> ScriptedLbNode {
        self.script(namespace, name, 40)
    }

    fn script(&self, namespace: &str, name: &str, lease_seconds: i32) -> ScriptedLbNode {
        let script = LbNodeScript {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            source: "192.0.2.1/32".to_owned(),
            lease_seconds,
        };
        ScriptedLbNode::start(&self.client, script)
    }

    /// Makes one more namespace, and says how it is called.
    pub(crate) async fn another_namespace(&self, suffix: &str, labels: Value) -> String {
        let name = format!("{}-{suffix}", self.namespace);
        self.make_namespace(&name, labels).await;
        name
    }

    async fn make_namespace(&self, name: &str, mut labels: Value) {
        labels[LABEL] = json!(self.id);
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap();
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    }

    /// One of the test's IPv4 addresses: 0 to 255.
    pub(crate) fn ip4(&self, host: u8) -> String {
        format!("{}{host}", prefix4(self.slot))
    }

    /// One of the test's IPv6 addresses.
    pub(crate) fn ip6(&self, host: u8) -> String {
        format!("2001:2:0:{:x}::{host:x}", self.slot + 1)
    }

    /// A range of the test's IPv4 addresses.
    pub(crate) fn range4(&self, first: u8, last: u8) -> String {
        format!("{}-{}", self.ip4(first), self.ip4(last))
    }

    /// A range of the test's IPv6 addresses.
    pub(crate) fn range6(&self, first: u8, last: u8) -> String {
        format!("{}-{}", self.ip6(first), self.ip6(last))
    }

    /// What one of the test's pools is called in the cluster.
    pub(crate) fn pool_name(&self, name: &str) -> String {
        format!("e2e-{}-{name}", self.id)
    }

    /// Makes a pool, for the test's namespace unless `spec` says otherwise.
    pub(crate) async fn pool(&self, name: &str, addresses: &[String], spec: Value) {
        self.try_pool(name, addresses, spec).await.unwrap();
    }

    /// As [`Self::pool`], where the API server may refuse it.
    pub(crate) async fn try_pool(
        &self,
        name: &str,
        addresses: &[String],
        changes: Value,
    ) -> Result<AddressPool, kube::Error> {
        let mut spec = json!({"addresses": addresses, "namespaces": [self.namespace]});
        for (key, value) in changes.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let pool: AddressPool = serde_json::from_value(json!({
            "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool",
            "metadata": {"name": self.pool_name(name), "labels": {LABEL: self.id}}, "spec": spec,
        }))
        .unwrap();
        self.pools().create(&PostParams::default(), &pool).await
    }

    /// The API of pools.
    pub(crate) fn pools(&self) -> Api<AddressPool> {
        Api::all(self.client.clone())
    }

    /// The API of claims.
    pub(crate) fn claims(&self) -> Api<AddressClaim> {
        Api::all(self.client.clone())
    }

    /// The API of Services in the test's namespace.
    pub(crate) fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The API of tables.
    pub(crate) fn tables(&self) -> Api<VipTable> {
        Api::namespaced(self.client.clone(), &self.own)
    }

    /// A Service of ours as it is to be: `changes` are of its spec, `metadata` of its metadata.
    pub(crate) fn service_with(&self, name: &str, metadata: Value, changes: Value) -> Service {
        let mut metadata = metadata;
        metadata["name"] = json!(name);
        let mut spec = json!({
            "type": "LoadBalancer",
            "loadBalancerClass": self.class,
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    /// Makes a Service of ours.
    pub(crate) async fn service(&self, name: &str, changes: Value) {
        self.annotated(name, json!({}), changes).await;
    }

    /// Makes a Service of ours with annotations.
    pub(crate) async fn annotated(&self, name: &str, annotations: Value, changes: Value) {
        let service = self.service_with(name, json!({"annotations": annotations}), changes);
        self.services().create(&PostParams::default(), &service).await.unwrap();
    }

    /// Merges a patch into a Service.
    pub(crate) async fn patch(&self, name: &str, patch: Value) {
        self.services()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// Deletes a Service, without waiting for it to be gone.
    pub(crate) async fn delete(&self, name: &str) {
        self.services().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Removes all of the test's from a real cluster; finalizers first: nobody is there any more who would take them out.
    async fn clean_up(client: Client, id: &str) -> Result<(), kube::Error> {
        let labelled = ListParams::default().labels(&format!("{LABEL}={id}"));
        let namespaces = Api::<Namespace>::all(client.clone());
        let claims = Api::<AddressClaim>::all(client.clone());
        let mut names = Vec::new();
        for namespace in namespaces.list(&labelled).await?.items {
            let name = namespace.name_any();
            let services = Api::<Service>::namespaced(client.clone(), &name);
            for service in services.list(&ListParams::default()).await?.items {
                let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                let service = service.name_any();
                services.patch(&service, &PatchParams::default(), &bare).await?;
            }
            namespaces.delete(&name, &DeleteParams::default()).await?;
            names.push(name);
        }
        for claim in claims.list(&ListParams::default()).await?.items {
            let mut holders = claim.spec.holders.iter();
            if holders.all(|holder| names.contains(&holder.service.namespace)) {
                claims.delete(&claim.name_any(), &DeleteParams::default()).await?;
            }
        }
        let pools = Api::<AddressPool>::all(client);
        pools.delete_collection(&DeleteParams::default(), &labelled).await?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.is_real() {
            return;
        }
        let (config, id) = (self.config.clone(), self.id.clone());
        // The test's runtime may be stopping.
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let client = Client::try_from(config).unwrap();
                Self::clean_up(client, &id).await
            })
        });
        match cleaner.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("what is labelled {LABEL}={} was not all removed: {error}", self.id),
            Err(_) => eprintln!("what is labelled {LABEL}={} was not all removed", self.id),
        }
    }
}

fn prefix4(slot: u16) -> String {
    format!("198.{}.{}.", 18 + slot / 256, slot % 256)
}
