//! What a node decapsulates.
//!
//! Never opens up by omission: to accept tunnelled packets from anyone, or for any destination, takes a key that says so.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{address, problem::Problem, read::At};
use crate::desired::Tunnel;

/// Every address of both families.
pub(super) fn everything() -> Vec<IpNet> {
    vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
}

/// `tunnel` of an LB node's file.
pub(super) fn tunnel(at: &At<'_>) -> Option<Tunnel> {
    at.fields(|fields| {
        let sources = fields
            .required("sources")
            .and_then(|at| some_networks(&at, "list the other LB nodes' addresses"));
        let vip_prefixes = fields
            .required("vip_prefixes")
            .and_then(|at| some_networks(&at, "list the networks that VIPs come from"));
        let denied_inner_sources = fields.or("denied_inner_sources", Vec::new(), |at| address::networks(&at));
        Some(Tunnel {
            sources: sources?,
            vip_prefixes: vip_prefixes?,
            locals: Default::default(),
            denied_inner_sources: denied_inner_sources?,
        })
    })
}

/// `tunnel` of an LB node's file for `--kube`: nothing is decapsulated until the cluster says what.
pub(super) fn own_tunnel(at: &At<'_>) -> Option<Tunnel> {
    at.fields(|fields| {
        fields.refuse(&[("sources", "TunnelConfig"), ("vip_prefixes", "TunnelConfig")]);
        let denied_inner_sources = fields.or("denied_inner_sources", Vec::new(), |at| address::networks(&at));
        Some(Tunnel {
            denied_inner_sources: denied_inner_sources?,
            ..Tunnel::default()
        })
    })
}

/// At least one network, none of which is a whole family.
fn some_networks(at: &At<'_>, hint: &'static str) -> Option<Vec<IpNet>> {
    let networks = address::networks_but_not_all(at, "")?;
    if networks.is_empty() {
        at.fail(Problem::EmptyList { hint })
    } else {
        Some(networks)
    }
}
