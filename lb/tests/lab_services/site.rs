//! A whole cluster in a lab: API server's double, the operator, LB nodes, worker agents, pods, and a stand-in for kube-proxy that
//! knows a VIP only from the status it reads.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use lab::{Node, Server, Topology};
use operator_api::{LOAD_BALANCER_CLASS, TAINT_LB_NODE};
use serde_json::{Value, json};
use vipline_operator::{
    index::Settings,
    run::{Operator, Options},
};

use crate::{
    kube_proxies::KubeProxies,
    lab_support::{Cluster, Daemon, NAMESPACE, eventually},
};

/// Where the Services of the tests are.
pub(crate) const SHOP: &str = "shop";
/// Port of the servers in the pods.
pub(crate) const SERVER_PORT: u16 = 8080;

/// Everything at work. Fields drop in this order: daemons first, namespaces last.
pub(crate) struct Site {
    pub(crate) operator: Option<Operator>,
    _proxies: KubeProxies,
    pub(crate) lbs: Vec<Daemon>,
    pub(crate) nodes: Vec<Daemon>,
    _servers: Vec<Server>,
    pub(crate) cluster: Cluster,
    pub(crate) topology: Topology,
}

/// An endpoint, as an EndpointSlice has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) node: &'a Node,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
}

impl<'a> Pod<'a> {
    /// Ready, of this node.
    pub(crate) fn ready(node: &'a Node) -> Self {
        Self {
            node,
            ready: true,
            terminating: false,
        }
    }
}

impl Site {
    /// Starts everything, with a pool of 203.0.113.10-40 and 2001:db8:f00d::10-40, and no Service. kube-proxy on each node learns of
    /// anything after up to `proxy_delay`.
    pub(crate) fn start(topology: Topology, proxy_delay: Duration) -> Result<Self> {
        Self::start_with(topology, proxy_delay, true)
    }

    /// As [`Self::start`], without kube-proxy on LB nodes unless `proxies_on_lbs`.
    pub(crate) fn start_with(topology: Topology, proxy_delay: Duration, proxies_on_lbs: bool) -> Result<Self> {
        let lbs = topology.lbs().len();
        Self::start_some(topology, proxy_delay, proxies_on_lbs, lbs, "")
    }

    /// As [`Self::start_with`], with the first so many LB nodes only, and these lines in their files.
    pub(crate) fn start_some(
        topology: Topology,
        proxy_delay: Duration,
        proxies_on_lbs: bool,
        lbs: usize,
        lines: &str,
    ) -> Result<Self> {
        let pods = topology.workers().iter().chain(topology.lbs());
        let pods = pods.filter_map(|node| Some((node, node.pod().ok()?)));
        let servers = pods.map(|(node, pod)| Server::start(pod.ns(), node.name(), SERVER_PORT));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        let cluster = Cluster::empty(topology.lbs().iter().chain(topology.workers()))?;
        for node in topology.workers().iter().chain(topology.lbs()) {
            put(&cluster, node_object(node))?;
        }
        put(
            &cluster,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP}}),
        )?;
        put(
            &cluster,
            json!({
                "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "public"},
                "spec": {"addresses": ["203.0.113.10-203.0.113.40", "2001:db8:f00d::10-2001:db8:f00d::40"]},
            }),
        )?;
        let operator = Some(operator(&cluster)?);
        let nodes = topology.workers().iter().map(|worker| cluster.spawn("node", worker));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let lbs = topology.lbs().iter().take(lbs);
        let lbs = lbs.map(|lb| cluster.spawn_lb(lb, lines));
        let lbs = lbs.collect::<Result<Vec<_>>>()?;
        let proxies = KubeProxies::start(&cluster.server, &topology, proxy_delay, proxies_on_lbs)?;
        let mut site = Self {
            operator,
            _proxies: proxies,
            lbs,
            nodes,
            _servers: servers,
            cluster,
            topology,
        };
        site.lbs.iter_mut().try_for_each(Daemon::ready)?;
        site.nodes.iter_mut().try_for_each(Daemon::ready)?;
        Ok(site)
    }

    /// Stops the operator as SIGKILL does.
    pub(crate) fn kill_operator(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.kill();
        }
    }

    /// Starts an operator in the place of the one that was killed.
    pub(crate) fn start_operator(&mut self) -> Result<()> {
        self.operator = Some(operator(&self.cluster)?);
        Ok(())
    }

    /// Creates a Service of our class with these ports, `(protocol, port)`, and whatever else `spec` says.
    pub(crate) fn create_service(&self, name: &str, ports: &[(&str, u16)], spec: Value) -> Result<()> {
        let port = |(protocol, port): &(&str, u16)| {
            let name = format!("{}-{port}", protocol.to_lowercase());
            json!({"name": name, "protocol": protocol, "port": port, "targetPort": SERVER_PORT})
        };
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": SHOP},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": LOAD_BALANCER_CLASS,
                "selector": {"app": name}, "ports": ports.iter().map(port).collect::<Vec<_>>(),
            },
        });
        merge(&mut object["spec"], spec);
        put(&self.cluster, object)
    }

    /// Merges into a Service.
    pub(crate) fn change_service(&self, name: &str, patch: Value) -> Result<()> {
        let merged = self.cluster.server.merge("services", SHOP, name, "", patch);
        merged.map(drop).map_err(|failure| anyhow!("{name}: {failure:?}"))
    }

    pub(crate) fn delete_service(&self, name: &str) -> Result<()> {
        let deleted = self.cluster.server.delete("services", SHOP, name);
        deleted.map(drop).map_err(|failure| anyhow!("{name}: {failure:?}"))
    }

    pub(crate) fn service(&self, name: &str) -> Option<Value> {
        self.cluster.server.read("services", SHOP, name)
    }

    /// Writes the slices of a Service, one of each family: what its pods are from now on.
    pub(crate) fn set_pods(&self, service: &str, ports: &[(&str, u16)], pods: &[Pod<'_>]) -> Result<()> {
        let named = pods.iter().map(|pod| (*pod, Some(pod.node.name())));
        self.set_endpoints(service, ports, &named.collect::<Vec<_>>())
    }

    /// As [`Self::set_pods`], as somebody writes them by hand: without node names.
    pub(crate) fn set_endpoints_by_hand(&self, service: &str, ports: &[(&str, u16)], pods: &[Pod<'_>]) -> Result<()> {
        let unnamed = pods.iter().map(|pod| (*pod, None));
        self.set_endpoints(service, ports, &unnamed.collect::<Vec<_>>())
    }

    fn set_endpoints(&self, service: &str, ports: &[(&str, u16)], pods: &[(Pod<'_>, Option<&str>)]) -> Result<()> {
        for (family, suffix) in [("IPv4", "v4"), ("IPv6", "v6")] {
            let endpoint = |(pod, node): &(Pod<'_>, Option<&str>)| {
                let place = pod.node.pod()?;
                let address: IpAddr = if family == "IPv4" {
                    place.addr_v4().into()
                } else {
                    place.addr_v6().into()
                };
                let mut endpoint = json!({
                    "addresses": [address.to_string()],
                    "conditions": {"ready": pod.ready, "serving": pod.ready || pod.terminating, "terminating": pod.terminating},
                });
                if let Some(node) = node {
                    endpoint["nodeName"] = json!(node);
                }
                Ok(endpoint)
            };
            let port = |(protocol, port): &(&str, u16)| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                json!({"name": name, "protocol": protocol, "port": SERVER_PORT})
            };
            put(
                &self.cluster,
                json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                    "metadata": {
                        "name": format!("{service}-{suffix}"), "namespace": SHOP,
                        "labels": {"kubernetes.io/service-name": service},
                    },
                    "endpoints": pods.iter().map(endpoint).collect::<Result<Vec<_>>>()?,
                    "ports": ports.iter().map(port).collect::<Vec<_>>(),
                }),
            )?;
        }
        Ok(())
    }

    /// Addresses in a Service's status, in its order.
    pub(crate) fn ingress(&self, name: &str) -> Vec<IpAddr> {
        let service = self.service(name).unwrap_or_default();
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned();
        let ingress = ingress.unwrap_or_default();
        let addresses = ingress
            .iter()
            .filter_map(|ingress| ingress["ip"].as_str()?.parse().ok());
        addresses.collect()
    }

    /// Waits until a Service has so many addresses.
    pub(crate) fn wait_for_addresses(&self, name: &str, count: usize) -> Result<Vec<IpAddr>> {
        let what = format!("{name} has {count} addresses");
        eventually(&what, || Ok(self.ingress(name).len() == count)).with_context(|| self.describe(name))?;
        Ok(self.ingress(name))
    }

    /// What there is to know of a Service when something is not as it should be.
    pub(crate) fn describe(&self, name: &str) -> String {
        let table = self
            .cluster
            .server
            .read("viptables", NAMESPACE, &format!("{SHOP}.{name}"));
        let log = self.lbs.first().and_then(|lb| lb.log().ok());
        format!(
            "{:#}\n{:#}\n{}",
            self.service(name).unwrap_or_default(),
            table.unwrap_or_default(),
            log.unwrap_or_default()
        )
    }

    /// Reasons of the Events about a Service, each once.
    pub(crate) fn events(&self, name: &str) -> BTreeMap<String, String> {
        let events = ["events", "events.events.k8s.io"].map(|resource| self.cluster.server.list(resource));
        let events = events.iter().flatten().filter(|event| {
            let about = [&event["regarding"], &event["involvedObject"]];
            about.iter().any(|about| about["name"].as_str() == Some(name))
        });
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = |event: &Value| {
            let note = [&event["note"], &event["message"]].map(word).concat();
            (word(&event["reason"]), note)
        };
        events.map(told).collect()
    }
}

fn operator(cluster: &Cluster) -> Result<Operator> {
    let settings = Settings {
        namespace: NAMESPACE.to_owned(),
        class: LOAD_BALANCER_CLASS.to_owned(),
        ..Settings::default()
    };
    let config = kube::Config::new(cluster.server.url().parse()?);
    Ok(Operator::start(config, Options::new(settings))?)
}

fn node_object(node: &Node) -> Value {
    let is_lb = node.name().starts_with("lb-");
    let taints = if is_lb && node.pod().is_err() {
        json!([{"key": TAINT_LB_NODE, "effect": "NoSchedule"}])
    } else {
        json!([])
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name()},
        "spec": {"taints": taints},
        "status": {"addresses": [
            {"type": "InternalIP", "address": node.addr_v4().to_string()},
            {"type": "InternalIP", "address": node.addr_v6().to_string()},
        ]},
    })
}

/// Creates an object, or changes the one that there is; its status, too.
pub(crate) fn put(cluster: &Cluster, object: Value) -> Result<()> {
    let applied = cluster.server.apply(object.clone(), "test");
    let applied = applied.map_err(|failure| anyhow!("{object}: {failure:?}"))?;
    if let Some(status) = object.get("status") {
        let mut with_status = applied;
        with_status["status"] = status.clone();
        let updated = cluster.server.update_status(with_status);
        updated.map_err(|failure| anyhow!("{object}: {failure:?}"))?;
    }
    Ok(())
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
