//! A cluster on the double: an operator, scripted LB nodes, and what tests ask of them.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use apiserver::ApiServer;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Namespace, Node, Service},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use operator_api::{AddressClaim, AddressPool, LB_FIELD_MANAGER, LbNode, VipTable};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use vipline_operator::{
    index::Settings,
    run::{Operator, Options},
};

/// The operator's namespace.
pub(crate) const OWN: &str = "vipline-system";

/// A cluster.
pub(crate) struct Stage {
    pub(crate) server: ApiServer,
    pub(crate) client: Client,
}

/// A scripted LB node; it dies with this.
pub(crate) struct ScriptedLbNode {
    task: JoinHandle<()>,
}

impl Drop for ScriptedLbNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stage {
    /// With three nodes and the pool 203.0.113.0/24 and 2001:db8::/112.
    pub(crate) async fn new() -> Self {
        let stage = Self::empty().await;
        for number in 1..=3 {
            stage.node(&format!("w{number}"), &format!("10.0.0.{number}")).await;
        }
        stage
            .create(&pool(
                "main",
                json!({"addresses": ["203.0.113.0/24", "2001:db8::/112"]}),
            ))
            .await;
        stage
    }

    /// With namespaces and definitions only.
    pub(crate) async fn empty() -> Self {
        let server = ApiServer::start();
        let client = Client::try_from(config(&server)).unwrap();
        let stage = Self { server, client };
        for name in [OWN, "default"] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            let namespaces = Api::<Namespace>::all(stage.client.clone());
            // The double may have it already.
            drop(namespaces.create(&PostParams::default(), &namespace).await);
        }
        stage
    }

    pub(crate) async fn node(&self, name: &str, address: &str) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let nodes = Api::<Node>::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap();
        // A real API server takes the status by its own subresource only.
        nodes
            .patch_status(
                name,
                &PatchParams::default(),
                &Patch::Merge(json!({"status": node.status})),
            )
            .await
            .unwrap();
    }

    /// Creates an object of any cluster-scoped or namespaced kind that has its namespace in it.
    pub(crate) async fn create<K>(&self, object: &K)
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        Api::<K>::all(self.client.clone())
            .create(&PostParams::default(), object)
            .await
            .unwrap();
    }

    pub(crate) fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) fn tables(&self) -> Api<VipTable> {
        Api::namespaced(self.client.clone(), OWN)
    }

    pub(crate) fn claims(&self) -> Api<AddressClaim> {
        Api::all(self.client.clone())
    }

    pub(crate) fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), OWN)
    }

    /// A Service of ours in `default`, with changes to its spec.
    pub(crate) async fn service(&self, name: &str, spec: Value) {
        self.services()
            .create(&PostParams::default(), &service(name, spec))
            .await
            .unwrap();
    }

    pub(crate) async fn delete_service(&self, name: &str) {
        self.services().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Addresses in a Service's status.
    pub(crate) async fn addresses(&self, name: &str) -> Vec<String> {
        let service = self.services().get_opt(name).await.ok().flatten();
        let ingress = service
            .and_then(|service| service.status)
            .and_then(|status| status.load_balancer)
            .and_then(|balancer| balancer.ingress);
        ingress.into_iter().flatten().filter_map(|ingress| ingress.ip).collect()
    }

    /// Until a Service has an address.
    pub(crate) async fn served(&self, name: &str) {
        eventually(&format!("{name} has an address"), || async {
            !self.addresses(name).await.is_empty()
        })
        .await;
    }

    /// Starts an operator.
    pub(crate) fn operator(&self, change: impl FnOnce(&mut Options)) -> Operator {
        let mut options = Options::new(settings());
        change(&mut options);
        Operator::start(config(&self.server), options).unwrap()
    }

    /// Starts an LB node that programs at once whatever it sees.
    pub(crate) fn lb_node(&self, name: &str, source: &str) -> ScriptedLbNode {
        let (client, name, source) = (self.client.clone(), name.to_owned(), source.to_owned());
        ScriptedLbNode {
            task: tokio::spawn(lb_node(client, name, source)),
        }
    }

    /// Until nothing is written any more for `quiet`.
    pub(crate) async fn settled(&self, quiet: Duration) {
        let mut last = self.writes();
        let mut since = Instant::now();
        let start = Instant::now();
        while since.elapsed() < quiet {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "it writes for ever: {:?}",
                self.server.writes().all()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            if self.writes() != last {
                last = self.writes();
                since = Instant::now();
            }
        }
    }

    /// Writes so far, without Events, Leases and what LB nodes say.
    pub(crate) fn writes(&self) -> u64 {
        let counts = self.server.writes().all();
        let counted = counts
            .iter()
            .filter(|(asked, _)| !matches!(asked.resource.as_str(), "events" | "leases" | "lbnodes"));
        counted.map(|(_, count)| count).sum()
    }
}

/// Faults are counted by request: a client that retries of itself would hide some.
pub(crate) fn config(server: &ApiServer) -> Config {
    let mut config = Config::new(server.url().parse().unwrap());
    config.default_retry = false;
    config
}

pub(crate) fn settings() -> Settings {
    Settings {
        namespace: OWN.to_owned(),
        class: operator_api::LOAD_BALANCER_CLASS.to_owned(),
        default_class: false,
        service_selector: None,
    }
}

pub(crate) fn pool(name: &str, spec: Value) -> AddressPool {
    serde_json::from_value(json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

pub(crate) fn service(name: &str, changes: Value) -> Service {
    let mut spec = json!({
        "type": "LoadBalancer",
        "loadBalancerClass": operator_api::LOAD_BALANCER_CLASS,
        "selector": {"app": name},
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
    });
    for (key, value) in changes.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})).unwrap()
}

/// Waits for something at most 20 s.
pub(crate) async fn eventually<F>(what: &str, mut look: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let start = Instant::now();
    while !look().await {
        assert!(start.elapsed() < Duration::from_secs(20), "not in 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn lb_node(client: Client, name: String, source: String) {
    let nodes = Api::<LbNode>::namespaced(client.clone(), OWN);
    let leases = Api::<Lease>::namespaced(client.clone(), OWN);
    let tables = Api::<VipTable>::namespaced(client, OWN);
    let apply = PatchParams::apply(LB_FIELD_MANAGER).force();
    let mut said: Option<u64> = None;
    let mut renewed: Option<Instant> = None;
    loop {
        let start = Instant::now();
        if renewed.is_none_or(|when| when.elapsed() > Duration::from_secs(5)) {
            let lease = Lease {
                metadata: kube::core::ObjectMeta {
                    name: Some(format!("{}{name}", operator_api::LB_LEASE_PREFIX)),
                    ..Default::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(name.clone()),
                    lease_duration_seconds: Some(40),
                    renew_time: Some(MicroTime(Timestamp::now())),
                    ..LeaseSpec::default()
                }),
            };
            let node = json!({
                "apiVersion": "vipline.dev/v1alpha1", "kind": "LbNode",
                "metadata": {"name": name}, "spec": {"tunnelSources": [source]},
            });
            let lease_name = lease.name_any();
            let lease = leases.patch(&lease_name, &apply, &Patch::Apply(&lease)).await;
            let node = nodes.patch(&name, &apply, &Patch::Apply(&node)).await;
            if lease.is_ok() && node.is_ok() {
                renewed = Some(Instant::now());
            }
        }
        if let Ok(list) = tables.list(&ListParams::default()).await {
            let version = list.metadata.resource_version.unwrap_or_default();
            let newest = list.items.iter().filter_map(|table| table.resource_version());
            let newest = newest.filter_map(|version| version.parse::<u64>().ok()).max();
            if newest > said {
                let status = json!({
                    "apiVersion": "vipline.dev/v1alpha1", "kind": "LbNode", "metadata": {"name": name},
                    "status": {"version": "scripted", "programmed": {"tables": version, "vips": list.items.len()}},
                });
                if nodes.patch_status(&name, &apply, &Patch::Apply(&status)).await.is_ok() {
                    said = newest;
                }
            }
        }
        // A list of 10,000 tables is not asked for all the time; but on a busy machine it goes on living.
        let pause = (10 * start.elapsed()).clamp(Duration::from_millis(20), Duration::from_secs(2));
        tokio::time::sleep(pause).await;
    }
}
