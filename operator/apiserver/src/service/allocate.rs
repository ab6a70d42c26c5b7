//! Cluster IPs, their families, node ports.
//!
//! Never gives out what is taken; nothing is taken before the Service is stored.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{
    allocates_node_ports, drop_spec, has_selector, is_headless, needs_cluster_ip, needs_health_check_port, node_port,
    ports, text,
};
use crate::failure::{Cause, Failure};
use crate::store::State;

/// What kind of cluster it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Services have IPv4 addresses only.
    Ipv4,
    /// IPv4 first, and IPv6.
    Dual,
}

/// Cluster IPs and node ports in use.
#[derive(Debug)]
pub(crate) struct Allocations {
    pub(crate) cluster: Cluster,
    cluster_ips: BTreeSet<IpAddr>,
    node_ports: BTreeSet<u64>,
    /// The next number to try once the range is used up.
    beyond: u64,
}

impl Allocations {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            cluster_ips: BTreeSet::new(),
            node_ports: BTreeSet::new(),
            beyond: LAST_NODE_PORT + 1,
        }
    }

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

fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    let ips = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// Numbers, whatever the protocol: a number belongs to one Service.
fn node_ports(service: &Value) -> BTreeSet<u64> {
    let health = service["spec"]["healthCheckNodePort"]
        .as_u64()
        .filter(|port| *port != 0);
    ports(service).iter().filter_map(node_port).chain(health).collect()
}

const FIRST_NODE_PORT: u64 = 30_000;
const LAST_NODE_PORT: u64 = 32_767;

fn refuse(service: &Value, cause: Cause) -> Failure {
    Failure::invalid(
        "",
        "Service",
        service["metadata"]["name"].as_str().unwrap_or(""),
        &[cause],
    )
}

pub(crate) fn allocate(state: &mut State, live: Option<&Value>, service: &mut Value) -> Result<(), Failure> {
    if needs_cluster_ip(service) {
        normalize(live, service);
        families(state.allocations.cluster, live, service)?;
        addresses(state, live, service)?;
    }
    node_port_numbers(state, live, service)
}

/// `clusterIP` is the first of `clusterIPs`.
fn normalize(live: Option<&Value>, service: &mut Value) {
    let one = text(service, "clusterIP").to_owned();
    let first = service["spec"]["clusterIPs"][0].as_str().unwrap_or("").to_owned();
    let one_changed = live.is_none_or(|live| text(live, "clusterIP") != one);
    match (one.is_empty(), first.is_empty()) {
        (false, true) => service["spec"]["clusterIPs"] = json!([one]),
        (true, false) => service["spec"]["clusterIP"] = first.into(),
        (false, false) if one != first && one_changed && live.is_some() => {
            // An old client that knows only `clusterIP`.
            service["spec"]["clusterIPs"] = json!([one]);
        }
        (false, false) | (true, true) => {}
    }
}

fn family_of(ip: &str) -> Option<&'static str> {
    match ip.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn families(cluster: Cluster, live: Option<&Value>, service: &mut Value) -> Result<(), Failure> {
    let headless = is_headless(service);
    let policy = text(service, "ipFamilyPolicy").to_owned();
    let mut wanted: Vec<String> = strings(&service["spec"]["ipFamilies"]);
    let addresses = strings(&service["spec"]["clusterIPs"]);
    if policy == "SingleStack" {
        // Going back to one family takes the second one along, where the client left it as it was.
        let before = |field: &str| live.is_some_and(|live| live["spec"][field] == service["spec"][field]);
        let was_dual = live.is_some_and(|live| text(live, "ipFamilyPolicy") != "SingleStack");
        if was_dual && wanted.len() == 2 && before("ipFamilies") {
            wanted.truncate(1);
        }
        if was_dual && addresses.len() == 2 && before("clusterIPs") {
            service["spec"]["clusterIPs"] = json!([addresses[0]]);
        }
    }
    let addresses = strings(&service["spec"]["clusterIPs"]);
    for (i, ip) in addresses.iter().enumerate() {
        if let (Some(family), true) = (family_of(ip), wanted.len() == i) {
            wanted.push(family.to_owned());
        }
    }
    let policy = if !policy.is_empty() {
        policy
    } else if wanted.len() == 2 || headless && !has_selector(service) && live.is_none() && wanted.is_empty() {
        "RequireDualStack".to_owned()
    } else {
        "SingleStack".to_owned()
    };
    let unbound = headless && !has_selector(service);
    if cluster == Cluster::Ipv4 && !unbound {
        if policy == "RequireDualStack" {
            let detail = "this cluster is not configured for dual-stack services";
            return Err(refuse(
                service,
                Cause::invalid("spec.ipFamilyPolicy", &policy.into(), detail),
            ));
        }
        if let Some(i) = wanted.iter().position(|family| family == "IPv6") {
            let cause = Cause::invalid(
                format!("spec.ipFamilies[{i}]"),
                &"IPv6".into(),
                "not configured on this cluster",
            );
            return Err(refuse(service, cause));
        }
    }
    if wanted.is_empty() {
        wanted.push("IPv4".into());
    }
    if wanted.len() == 1 && policy != "SingleStack" && (cluster == Cluster::Dual || unbound) {
        wanted.push(if wanted[0] == "IPv4" {
            "IPv6".into()
        } else {
            "IPv4".into()
        });
    }
    service["spec"]["ipFamilyPolicy"] = policy.into();
    service["spec"]["ipFamilies"] = wanted.into();
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn addresses(state: &mut State, live: Option<&Value>, service: &mut Value) -> Result<(), Failure> {
    if is_headless(service) {
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    let mut ips = strings(&service["spec"]["clusterIPs"]);
    let own = live.map(cluster_ips).unwrap_or_default();
    for ip in &ips {
        let Ok(parsed) = ip.parse::<IpAddr>() else { continue };
        if own.contains(&parsed) {
            continue;
        }
        let in_range = match parsed {
            IpAddr::V4(ip) => ip.octets()[0] == 10 && ip.octets()[1] & 0xf0 == 96,
            IpAddr::V6(ip) => ip.segments()[..7] == [0xfd00, 0x10, 0x96, 0, 0, 0, 0],
        };
        let detail = if !in_range {
            let range = if parsed.is_ipv4() {
                "10.96.0.0/12"
            } else {
                "fd00:10:96::/112"
            };
            format!(
                "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"
            )
        } else if state.allocations.cluster_ips.contains(&parsed) {
            format!("failed to allocate IP {ip}: provided IP is already allocated")
        } else {
            continue;
        };
        return Err(refuse(service, Cause::invalid("spec.clusterIPs", &json!(ips), detail)));
    }
    let families = strings(&service["spec"]["ipFamilies"]);
    for family in families.iter().skip(ips.len()) {
        ips.push(free_address(state, family == "IPv6").to_string());
    }
    service["spec"]["clusterIP"] = ips.first().cloned().unwrap_or_default().into();
    service["spec"]["clusterIPs"] = ips.into();
    Ok(())
}

fn free_address(state: &mut State, v6: bool) -> IpAddr {
    loop {
        let [.., a, b] = state.number().to_be_bytes();
        let ip = if v6 {
            IpAddr::V6(Ipv6Addr::new(
                0xfd00,
                0x10,
                0x96,
                0,
                0,
                0,
                0,
                u16::from_be_bytes([a, b]),
            ))
        } else {
            IpAddr::V4(Ipv4Addr::new(
                10,
                96 + (a & 15),
                b,
                1 + (state.number().to_be_bytes()[7] % 250),
            ))
        };
        if !state.allocations.cluster_ips.contains(&ip) {
            return ip;
        }
    }
}

fn node_port_numbers(state: &mut State, live: Option<&Value>, service: &mut Value) -> Result<(), Failure> {
    let own = live.map(node_ports).unwrap_or_default();
    let count = ports(service).len();
    let mut used: Vec<(u64, String, u64)> = Vec::new();
    for i in 0..count {
        let port = &service["spec"]["ports"][i];
        let protocol = port["protocol"].as_str().unwrap_or("").to_owned();
        let number = port["port"].as_u64().unwrap_or(0);
        if let Some(asked) = node_port(port) {
            let shared = used.iter().any(|(_, _, taken)| *taken == asked);
            if !own.contains(&asked) && !shared {
                check_node_port(state, service, &format!("spec.ports[{i}].nodePort"), asked)?;
            }
            used.push((number, protocol, asked));
            continue;
        }
        if !allocates_node_ports(service) {
            continue;
        }
        // The same port of another protocol has the same node port.
        let same = used
            .iter()
            .find(|(port, other, _)| *port == number && *other != protocol)
            .map(|(_, _, port)| *port);
        let asked: Vec<u64> = ports(service).iter().filter_map(node_port).collect();
        let given = match same {
            Some(same) => same,
            None => free_node_port(state, &asked),
        };
        service["spec"]["ports"][i]["nodePort"] = given.into();
        used.push((number, protocol, given));
    }
    if needs_health_check_port(service) {
        let taken: Vec<u64> = used.iter().map(|(_, _, port)| *port).collect();
        match service["spec"]["healthCheckNodePort"]
            .as_u64()
            .filter(|port| *port != 0)
        {
            Some(asked) if own.contains(&asked) => {}
            Some(asked) => check_node_port(state, service, "spec.healthCheckNodePort", asked)?,
            None => service["spec"]["healthCheckNodePort"] = free_node_port(state, &taken).into(),
        }
    } else if service["spec"]["healthCheckNodePort"].is_null() {
        drop_spec(service, "healthCheckNodePort");
    }
    Ok(())
}

fn check_node_port(state: &State, service: &Value, field: &str, asked: u64) -> Result<(), Failure> {
    let detail = if !(FIRST_NODE_PORT..=LAST_NODE_PORT).contains(&asked) {
        "provided port is not in the valid range. The range of valid ports is 30000-32767"
    } else if state.allocations.node_ports.contains(&asked) {
        "provided port is already allocated"
    } else {
        return Ok(());
    };
    Err(refuse(service, Cause::invalid(field, &asked.into(), detail)))
}

/// A free number. All 2,768 taken: a number beyond the range, which a real server would refuse; perf has more Services than
/// that.
fn free_node_port(state: &mut State, avoid: &[u64]) -> u64 {
    let size = LAST_NODE_PORT - FIRST_NODE_PORT + 1;
    let start = state.number() % size;
    let free = |port: &u64| !state.allocations.node_ports.contains(port) && !avoid.contains(port);
    if state.allocations.node_ports.len() < 2_700 {
        let mut in_range = (0..size).map(|i| FIRST_NODE_PORT + (start + i) % size);
        if let Some(port) = in_range.find(free) {
            return port;
        }
    }
    loop {
        let allocations = &mut state.allocations;
        let port = allocations.beyond;
        allocations.beyond = if port == 65_535 { 1024 } else { port + 1 };
        if !allocations.node_ports.contains(&port) && !avoid.contains(&port) {
            return port;
        }
    }
}
