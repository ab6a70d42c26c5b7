//! Ports of a Service: which are served, and which are not.
//!
//! Never serves a port twice, and never drops one without a word.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ServiceSpec;
use operator_api::{ANNOTATION_FORWARDING_MODE, ForwardingMode, MAX_VIP_PORTS, Protocol, VipPort};

use super::wanted::{Refusal, RefusedPort};

/// Longest name of a port that a table can hold.
const MAX_PORT_NAME: usize = 63;

pub(super) struct Ports {
    pub(super) served: Vec<VipPort>,
    pub(super) refused: Vec<RefusedPort>,
}

/// Sorts them out.
pub(super) fn ports(spec: &ServiceSpec, mode: ForwardingMode, refusals: &mut Vec<Refusal>) -> Ports {
    let all = spec.ports.as_deref().unwrap_or_default();
    let mut served = BTreeMap::new();
    let mut refused = BTreeSet::new();
    for (index, entry) in all.iter().take(MAX_VIP_PORTS).enumerate() {
        let Some(port) = number(entry.port) else {
            let field = format!("spec.ports[{index}].port");
            refusals.push(Refusal::bad(&field, &entry.port.to_string(), "not in 1..=65535"));
            continue;
        };
        let protocol = match entry.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(other) => {
                let protocol = other.chars().take(16).collect();
                refused.insert(RefusedPort { port, protocol });
                continue;
            }
        };
        served.entry((protocol, port)).or_insert_with(|| VipPort {
            protocol,
            port,
            node_port: entry.node_port.and_then(number),
            name: entry
                .name
                .clone()
                .filter(|name| !name.is_empty() && name.len() <= MAX_PORT_NAME),
        });
    }
    let served: Vec<VipPort> = served.into_values().collect();
    let refused: Vec<RefusedPort> = refused.into_iter().collect();
    if all.len() > MAX_VIP_PORTS {
        refusals.push(Refusal::TooMany {
            field: "spec.ports".to_owned(),
            count: all.len(),
            most: MAX_VIP_PORTS,
        });
    }
    if all.is_empty() {
        refusals.push(Refusal::NoPorts);
    } else if served.is_empty() && !refused.is_empty() {
        let protocols: BTreeSet<&str> = refused.iter().map(|port| port.protocol.as_str()).collect();
        refusals.push(Refusal::NoServedPort(Vec::from_iter(protocols).join(", ")));
    }
    if mode == ForwardingMode::NodePortNat
        && let Some(port) = served.iter().find(|port| port.node_port.is_none())
    {
        refusals.push(Refusal::NoNodePort {
            field: ANNOTATION_FORWARDING_MODE.to_owned(),
            port: port.port,
            protocol: match port.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
            },
        });
    }
    Ports { served, refused }
}

/// A port number; 0 means none.
pub(super) fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}
