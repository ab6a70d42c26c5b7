//! A stand-in for the kube-proxies of a cluster: each node's rules follow Services and EndpointSlices after a delay of its own, and
//! a VIP is known only from the status.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;
use apiserver::ApiServer;
use lab::{KubeProxy, Node, Policy, Proto, ServiceRule, Topology};
use serde_json::Value;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(40);

/// All kube-proxies; they stop when this is dropped, and their rules stay.
pub(crate) struct KubeProxies {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// One node's.
struct Proxy {
    node: Node,
    seen: Vec<ServiceRule>,
    due: Option<Instant>,
    random: u64,
}

impl KubeProxies {
    /// On all nodes; on LB nodes only where `on_lbs`.
    pub(crate) fn start(server: &ApiServer, topology: &Topology, delay: Duration, on_lbs: bool) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let lbs = topology.lbs().iter().filter(|_| on_lbs);
        let nodes = topology.workers().iter().chain(lbs);
        let mut proxies: Vec<Proxy> = nodes
            .zip(1..)
            .map(|(node, number)| Proxy {
                node: node.clone(),
                seen: Vec::new(),
                due: None,
                random: u64::from(std::process::id()).wrapping_mul(0x9e37_79b9) ^ number,
            })
            .collect();
        for proxy in &proxies {
            KubeProxy::program(&proxy.node, &[])?;
        }
        let (server, told) = (server.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let services = server.list("services");
                let slices = server.list("endpointslices.discovery.k8s.io");
                for proxy in &mut proxies {
                    proxy.look(&services, &slices, delay)?;
                }
                std::thread::sleep(LOOK_EVERY);
            }
            Ok(())
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for KubeProxies {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            assert!(
                std::thread::panicking(),
                "the stand-in for kube-proxy stopped: {error:#}"
            );
        }
    }
}

impl Proxy {
    fn look(&mut self, services: &[Value], slices: &[Value], delay: Duration) -> Result<()> {
        let rules = rules(self.node.name(), services, slices);
        if rules != self.seen {
            self.seen = rules;
            // One that is under way already keeps its time and takes the newest rules, as the real one does.
            self.due.get_or_insert_with(|| {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                Instant::now() + delay.mul_f64((self.random >> 33) as f64 / f64::from(1_u32 << 31))
            });
        }
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            KubeProxy::program(&self.node, &self.seen)?;
        }
        Ok(())
    }
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn rules(node: &str, services: &[Value], slices: &[Value]) -> Vec<ServiceRule> {
    let mut rules = Vec::new();
    for service in services {
        let (metadata, spec) = (&service["metadata"], &service["spec"]);
        let ingress = list(&service["status"]["loadBalancer"]["ingress"]);
        let ingress = ingress.iter().filter(|ingress| word(ingress, "ipMode") != "Proxy");
        let addresses = ingress.map(|ingress| word(ingress, "ip"));
        let external = list(&spec["externalIPs"]).iter().filter_map(Value::as_str);
        let addresses: Vec<IpAddr> = addresses.chain(external).filter_map(|text| text.parse().ok()).collect();
        let policy = match word(spec, "externalTrafficPolicy") {
            "Local" => Policy::Local,
            _ => Policy::Cluster,
        };
        let own: Vec<&Value> = slices
            .iter()
            .filter(|slice| {
                let of = &slice["metadata"];
                word(of, "namespace") == word(metadata, "namespace")
                    && word(&of["labels"], "kubernetes.io/service-name") == word(metadata, "name")
            })
            .collect();
        for address in addresses {
            for port in list(&spec["ports"]) {
                let number = port["port"].as_u64().and_then(|port| u16::try_from(port).ok());
                let Some(number) = number else { continue };
                let endpoints = endpoints(&own, address, word(port, "name"));
                let local = endpoints.iter().filter(|(of, _)| of == node);
                rules.push(ServiceRule {
                    vip: SocketAddr::new(address, number),
                    proto: if word(port, "protocol") == "UDP" {
                        Proto::Udp
                    } else {
                        Proto::Tcp
                    },
                    policy,
                    affinity: word(spec, "sessionAffinity") == "ClientIP",
                    local: local.map(|(_, at)| *at).collect(),
                    endpoints: endpoints.iter().map(|(_, at)| *at).collect(),
                });
            }
        }
    }
    rules.sort();
    rules
}

/// Endpoints of a port, of the VIP's family: those that are ready; if none is, those that serve and terminate. With their nodes.
fn endpoints(slices: &[&Value], vip: IpAddr, port: &str) -> Vec<(String, SocketAddr)> {
    let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut by_rank: BTreeMap<u8, Vec<(String, SocketAddr)>> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| word(slice, "addressType") == family) {
        let target = list(&slice["ports"]).iter().find(|target| word(target, "name") == port);
        let target = target.and_then(|target| u16::try_from(target["port"].as_u64()?).ok());
        let Some(target) = target else { continue };
        for endpoint in list(&slice["endpoints"]) {
            let says = |key: &str| endpoint["conditions"][key].as_bool().unwrap_or(false);
            let rank = match (says("ready"), says("serving") && says("terminating")) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => continue,
            };
            let addresses = list(&endpoint["addresses"]).iter().filter_map(Value::as_str);
            for address in addresses.filter_map(|text| text.parse().ok()) {
                let at = SocketAddr::new(address, target);
                by_rank
                    .entry(rank)
                    .or_default()
                    .push((word(endpoint, "nodeName").to_owned(), at));
            }
        }
    }
    let mut best = by_rank.into_values().next().unwrap_or_default();
    best.sort();
    best
}
