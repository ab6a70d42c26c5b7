//! Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::failure::{Cause, Failure};
use crate::store::State;

/// Cluster IPs and node ports in use.
#[derive(Debug, Default)]
pub(crate) struct Allocations {
    cluster_ips: BTreeSet<IpAddr>,
    node_ports: BTreeSet<(String, u16)>,
}

impl Allocations {
    pub(crate) fn take(&mut self, service: &Value) {
        self.cluster_ips.extend(cluster_ips(service));
        self.node_ports.extend(node_ports(service));
    }

    pub(crate) fn release(&mut self, service: &Value) {
        for ip in cluster_ips(service) {
            self.cluster_ips.remove(&ip);
        }
        for port in node_ports(service) {
            self.node_ports.remove(&port);
        }
    }
}

fn cluster_ips(service: &Value) -> impl Iterator<Item = IpAddr> {
    let ips = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip.as_str()?.parse().ok())
}

fn node_ports(service: &Value) -> Vec<(String, u16)> {
    let number = |value: &Value| {
        value
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
    };
    let mut taken = Vec::new();
    for port in service["spec"]["ports"].as_array().into_iter().flatten() {
        if let Some(node_port) = number(&port["nodePort"]) {
            taken.push((port["protocol"].as_str().unwrap_or("TCP").to_owned(), node_port));
        }
    }
    if let Some(port) = number(&service["spec"]["healthCheckNodePort"]) {
        taken.push(("TCP".into(), port));
    }
    taken
}

pub(crate) fn default(service: &mut Value) {
    if service["status"]["loadBalancer"].is_null() {
        service["status"]["loadBalancer"] = json!({});
    }
}

pub(crate) fn prepare(_state: &mut State, _live: Option<&Value>, _service: &mut Value) -> Result<(), Failure> {
    Ok(())
}

pub(crate) fn validate(_state: &State, _live: Option<&Value>, _service: &Value, _causes: &mut Vec<Cause>) {}
