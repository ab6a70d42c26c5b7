//! The cluster that is measured: pool, nodes, Services and their EndpointSlices, all from their numbers.
//!
//! Never random: the same numbers are the same cluster.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use operator_api::{DEFAULT_NAMESPACE, LOAD_BALANCER_CLASS};
use serde_json::{Value, json};

/// Namespace of the Services.
pub(crate) const SERVICES_NAMESPACE: &str = "default";
/// Name of the pool; its addresses are [`POOL`].
const POOL_NAME: &str = "perf";
/// More than enough for all.
const POOL: &str = "10.64.0.0/14";
/// Port of every Service.
pub(crate) const PORT: u16 = 80;
/// Nodes that the endpoints of a Service are on.
const ENDPOINT_NODES: u32 = 3;

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// Services, of one TCP port each.
    pub(crate) services: u32,
    /// The first so many of them have policy Local, and backends of their own therefore; all others share the node set.
    pub(crate) local: u32,
    /// Worker nodes.
    pub(crate) nodes: u32,
}

impl World {
    /// What there is before Services: namespace, pool, nodes.
    pub(crate) fn ground(&self) -> Vec<Value> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": DEFAULT_NAMESPACE}});
        let pool = json!({
            "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": POOL_NAME},
            "spec": {"addresses": [POOL]},
        });
        [namespace, pool].into_iter().chain((0..self.nodes).map(node)).collect()
    }

    /// Names of Services, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        (0..self.services).map(name)
    }

    /// A Service and its EndpointSlice.
    pub(crate) fn service(&self, number: u32) -> [Value; 2] {
        let policy = if number < self.local { "Local" } else { "Cluster" };
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name(number), "namespace": SERVICES_NAMESPACE},
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": LOAD_BALANCER_CLASS, "allocateLoadBalancerNodePorts": false,
                "externalTrafficPolicy": policy, "selector": {"app": name(number)},
                "ports": [{"name": "http", "port": PORT, "targetPort": 8080, "protocol": "TCP"}],
            },
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": slice_name(number), "namespace": SERVICES_NAMESPACE,
                "labels": {"kubernetes.io/service-name": name(number)},
            },
            "addressType": "IPv4",
            "endpoints": self.endpoints(number, 0),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        });
        [service, slice]
    }

    /// The endpoints of a Service after its `turn`-th change: with each, one pod goes from one node to the next.
    pub(crate) fn endpoints(&self, number: u32, turn: u32) -> Value {
        let endpoint = |node: u32| {
            let [a, b] = (node as u16).to_be_bytes();
            let pod = Ipv4Addr::new(10, 128 | a, b, (number % 250) as u8 + 1);
            json!({
                "addresses": [pod.to_string()], "nodeName": node_name(node),
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        self.places(number, turn).into_iter().map(endpoint).collect()
    }

    /// Addresses of the nodes that the endpoints are on.
    pub(crate) fn destinations(&self, number: u32, turn: u32) -> BTreeSet<Ipv4Addr> {
        self.places(number, turn).into_iter().map(node_address).collect()
    }

    fn places(&self, number: u32, turn: u32) -> BTreeSet<u32> {
        let first = number.wrapping_mul(7).wrapping_add(turn);
        (0..ENDPOINT_NODES)
            .map(|step| first.wrapping_add(step) % self.nodes.max(1))
            .collect()
    }
}

/// A worker node.
pub(crate) fn node(number: u32) -> Value {
    let address = node_address(number).to_string();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(number), "labels": {"topology.kubernetes.io/zone": format!("zone-{}", number % 3)}},
        "spec": {},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": node_name(number)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// Its name.
pub(crate) fn node_name(number: u32) -> String {
    format!("worker-{number:04}")
}

/// Its `InternalIP`.
pub(crate) fn node_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 32, 0, 10)) + number)
}

/// A Service's name.
pub(crate) fn name(number: u32) -> String {
    format!("web-{number:05}")
}

/// The name of its EndpointSlice.
pub(crate) fn slice_name(number: u32) -> String {
    format!("web-{number:05}-abcde")
}

/// The VIP of a Service in its status, once it has one.
pub(crate) fn vip(service: &Value) -> Option<SocketAddrV4> {
    let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str()?;
    Some(SocketAddrV4::new(address.parse().ok()?, PORT))
}

#[cfg(test)]
mod tests {
    use super::World;

    const WORLD: World = World {
        services: 50,
        local: 10,
        nodes: 7,
    };

    #[test]
    fn every_change_of_a_service_is_seen_by_its_destinations() {
        for number in 0..WORLD.local {
            for turn in 0..20 {
                let (now, next) = (WORLD.destinations(number, turn), WORLD.destinations(number, turn + 1));
                assert_eq!(now.len(), 3);
                assert_ne!(now, next, "change {turn} of {number}");
                let endpoints = WORLD.endpoints(number, turn);
                assert_eq!(endpoints.as_array().unwrap().len(), 3);
            }
        }
    }

    #[test]
    fn the_first_services_are_local() {
        let policy = |number| WORLD.service(number)[0]["spec"]["externalTrafficPolicy"].clone();
        assert_eq!((policy(9), policy(10)), ("Local".into(), "Cluster".into()));
        assert_eq!(WORLD.names().count(), 50);
    }
}
