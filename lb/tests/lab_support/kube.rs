//! A cluster in a lab: an API server's double that every node reaches, and tables put by hand, as the operator would.

use std::{collections::BTreeMap, fs, net::TcpListener, path::Path};

use anyhow::{Context as _, Result};
use apiserver::{ApiServer, Endpoint};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use lab::{Node, Topology};
use serde_json::{Value, json};

use super::{Daemon, SEED};

/// The operator's namespace.
pub(crate) const NAMESPACE: &str = "vipline-system";
/// `printf %s SEED | sha256sum | cut -c1-16`
pub(crate) const FINGERPRINT: &str = "a355bde1648196a5";

/// The double, with a way to it from each node.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    /// By node.
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
}

impl Cluster {
    /// Reached from these nodes; there is only the namespace.
    pub(crate) fn empty<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Result<Self> {
        let server = ApiServer::start();
        create(
            &server,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        );
        let mut endpoints = BTreeMap::new();
        for node in nodes {
            let listener = node.ns().run(|| Ok(TcpListener::bind("127.0.0.1:0")?))?;
            endpoints.insert(node.name().to_owned(), server.listen(listener));
        }
        Ok(Self { server, endpoints })
    }

    /// With the seed, a set of all workers, and a tunnel from all LB nodes to the lab's VIPs.
    pub(crate) fn start(topology: &Topology) -> Result<Self> {
        let cluster = Self::empty(topology.lbs().iter().chain(topology.workers()))?;
        cluster.put_seed(SEED)?;
        cluster.put_workers(topology, FINGERPRINT);
        let interfaces = topology.lbs().iter().flat_map(Node::ifaces);
        let sources = interfaces.flat_map(|iface| [format!("{}/32", iface.v4), format!("{}/128", iface.v6)]);
        cluster.put(
            "TunnelConfig",
            "default",
            json!({
                "sources": sources.collect::<Vec<_>>(),
                "vipPrefixes": ["203.0.113.0/24", "2001:db8:f00d::/64"],
            }),
        );
        Ok(cluster)
    }

    pub(crate) fn put_seed(&self, seed: &str) -> Result<()> {
        let secret = Secret {
            data: Some(BTreeMap::from([(
                "seed".to_owned(),
                ByteString(seed.as_bytes().to_vec()),
            )])),
            ..Secret::default()
        };
        let mut object = serde_json::to_value(secret)?;
        object["metadata"] = json!({"name": "vipline-flow-seed", "namespace": NAMESPACE});
        self.server
            .apply(object, "test")
            .map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        Ok(())
    }

    /// All workers in one chunk.
    pub(crate) fn put_workers(&self, topology: &Topology, fingerprint: &str) {
        let node = |node: &Node| json!({"name": node.name(), "ipv4": node.addr_v4().to_string(), "ipv6": node.addr_v6().to_string()});
        let nodes: Vec<Value> = topology.workers().iter().map(node).collect();
        let spec = json!({
            "set": "workers", "chunk": 0, "chunks": 1, "epoch": 1, "tableSlots": 1024,
            "seedFingerprint": fingerprint, "nodes": nodes,
        });
        self.put("NodeSet", "workers-0", spec);
    }

    /// Applies an object of ours; its resource version.
    pub(crate) fn put(&self, kind: &str, name: &str, mut spec: Value) -> u64 {
        if let ("VipTable", Some((namespace, service))) = (kind, name.split_once('.')) {
            // A table goes by the name of its Service.
            spec["service"] = json!({"namespace": namespace, "name": service, "uid": "0"});
        }
        let object = json!({
            "apiVersion": "vipline.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        });
        let applied = self.server.apply(object, "vipline-operator");
        let applied = applied.unwrap_or_else(|failure| panic!("{kind} {name}: {failure:?}"));
        let version = applied["metadata"]["resourceVersion"].as_str();
        version
            .and_then(|version| version.parse().ok())
            .expect("a resource version")
    }

    /// A table of one address with TCP and UDP on one port.
    pub(crate) fn put_table(&self, name: &str, address: &str, port: u16, backends: &Value) -> u64 {
        let mut spec = table(address, port);
        spec["backends"] = backends.clone();
        self.put("VipTable", name, spec)
    }

    pub(crate) fn delete_table(&self, name: &str) {
        let deleted = self.server.delete("viptables", NAMESPACE, name);
        deleted.unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
    }

    /// Starts a role on a node that is told by this cluster, and does not wait.
    pub(crate) fn spawn(&self, role: &'static str, node: &Node) -> Result<Daemon> {
        let interfaces: Vec<&str> = node.ifaces().iter().map(|iface| iface.name.as_str()).collect();
        let file = format!("interfaces: [{}]\n", interfaces.join(", "));
        self.spawn_with(role, node, &file)
    }

    /// Starts an LB node with its interfaces and these lines in its file.
    pub(crate) fn spawn_lb(&self, node: &Node, lines: &str) -> Result<Daemon> {
        let interfaces: Vec<&str> = node.ifaces().iter().map(|iface| iface.name.as_str()).collect();
        self.spawn_with(
            "run",
            node,
            &format!("interfaces: [{}]\n{lines}", interfaces.join(", ")),
        )
    }

    /// As [`Self::spawn`], with these lines in its file.
    pub(crate) fn spawn_with(&self, role: &'static str, node: &Node, lines: &str) -> Result<Daemon> {
        Self::spawn_by(role, node, lines, &self.endpoint(node).kubeconfig(None))
    }

    /// As [`Self::spawn_with`], by this way to the API server.
    pub(crate) fn spawn_by(role: &'static str, node: &Node, lines: &str, way: &str) -> Result<Daemon> {
        let args = |directory: &Path| {
            let kubeconfig = directory.join("kubeconfig");
            fs::write(&kubeconfig, way)?;
            let text = |path: &Path| path.to_str().map(ToOwned::to_owned).context("UTF-8");
            Ok(vec![
                "--kube".to_owned(),
                format!("--kubeconfig={}", text(&kubeconfig)?),
                format!("--node-name={}", node.name()),
                format!("--cache={}", text(&directory.join("cache/kube.json"))?),
            ])
        };
        Daemon::spawn_with(
            role,
            node,
            |socket| format!("control_socket: {}\n{lines}", socket.display()),
            args,
        )
    }

    /// The way from a node.
    pub(crate) fn endpoint(&self, node: &Node) -> &Endpoint {
        self.endpoints.get(node.name()).expect("a node of this cluster")
    }

    /// What an LB node says of itself.
    pub(crate) fn lb_node(&self, name: &str) -> Option<Value> {
        self.server.read("lbnodes", NAMESPACE, name)
    }

    /// Its `status.programmed.tables`, as a number.
    pub(crate) fn programmed(&self, name: &str) -> u64 {
        let node = self.lb_node(name).unwrap_or_default();
        let tables = node["status"]["programmed"]["tables"].as_str().map(ToOwned::to_owned);
        tables.and_then(|tables| tables.parse().ok()).unwrap_or(0)
    }

    /// Status and reason of its condition `Ready`: `False MassDropHeld`.
    pub(crate) fn ready(&self, name: &str) -> String {
        let node = self.lb_node(name).unwrap_or_default();
        let condition = &node["status"]["conditions"][0];
        let word = |key: &str| condition[key].as_str().unwrap_or("-").to_owned();
        format!("{} {}", word("status"), word("reason"))
    }
}

fn create(server: &ApiServer, object: Value) {
    let created = server.create(object.clone());
    created.unwrap_or_else(|failure| panic!("{object}: {failure:?}"));
}

/// A table's spec, to all workers.
pub(crate) fn table(address: &str, port: u16) -> Value {
    json!({
        "addresses": [{"address": address, "pool": "pool", "use": "LoadBalancer"}],
        "ports": [{"protocol": "TCP", "port": port}, {"protocol": "UDP", "port": port}],
        "mode": "DsrIpip", "scheduler": "Maglev",
        "backends": {"nodeSet": {"name": "workers"}},
    })
}
