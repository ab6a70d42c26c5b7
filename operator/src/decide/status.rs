//! `status.loadBalancer` of a Service.
//!
//! Never names an address in another order than that of the Service's families, and never differs from what is there only in
//! what an API server fills in.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, PortStatus, Service, ServiceStatus};
use operator_api::{Protocol, Use};

use crate::{index::Serve, ipam::Assignment};

/// `ingress[].ports[].error` of a port whose protocol is not served.
const PORT_ERROR: &str = "MixedProtocolNotSupported";

/// What a Service's status names now.
pub(super) fn ingress(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|status| status.ingress.as_deref()).unwrap_or_default()
}

/// The addresses in it.
pub(super) fn addresses(ingress: &[LoadBalancerIngress]) -> BTreeSet<IpAddr> {
    ingress.iter().filter_map(address).collect()
}

fn address(ingress: &LoadBalancerIngress) -> Option<IpAddr> {
    ingress.ip.as_deref()?.parse().ok()
}

/// What it shall name for these assignments. Where a port is not served, every port has an entry.
pub(super) fn wanted(serve: &Serve, assignments: &[Assignment]) -> Vec<LoadBalancerIngress> {
    let ports = ports(serve);
    let balanced = assignments
        .iter()
        .filter(|assignment| assignment.used_as == Use::LoadBalancer);
    balanced
        .map(|assignment| LoadBalancerIngress {
            ip: Some(assignment.address.to_string()),
            ip_mode: Some(serve.ip_mode.to_owned()),
            hostname: None,
            ports: ports.clone(),
        })
        .collect()
}

fn ports(serve: &Serve) -> Option<Vec<PortStatus>> {
    if serve.refused_ports.is_empty() {
        return None;
    }
    let served = serve.ports.iter().map(|port| PortStatus {
        port: port.port.into(),
        protocol: match port.protocol {
            Protocol::Tcp => "TCP".to_owned(),
            Protocol::Udp => "UDP".to_owned(),
        },
        error: None,
    });
    let refused = serve.refused_ports.iter().map(|port| PortStatus {
        port: port.port.into(),
        protocol: port.protocol.clone(),
        error: Some(PORT_ERROR.to_owned()),
    });
    let mut ports: Vec<PortStatus> = served.chain(refused).collect();
    ports.sort_by(|one, other| (one.port, &one.protocol).cmp(&(other.port, &other.protocol)));
    Some(ports)
}

/// Whether both mean the same: an API server that knows `ipMode` fills it in, one that does not drops it.
pub(super) fn is_same(one: &[LoadBalancerIngress], other: &[LoadBalancerIngress]) -> bool {
    let same = |one: &LoadBalancerIngress, other: &LoadBalancerIngress| {
        let mode = |ingress: &LoadBalancerIngress| ingress.ip_mode.clone().unwrap_or_else(|| "VIP".to_owned());
        let hostname = |ingress: &LoadBalancerIngress| ingress.hostname.clone().unwrap_or_default();
        let no_ports: &[PortStatus] = &[];
        address(one) == address(other)
            && address(one).is_some()
            && mode(one) == mode(other)
            && hostname(one) == hostname(other)
            && one.ports.as_deref().unwrap_or(no_ports) == other.ports.as_deref().unwrap_or(no_ports)
    };
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
}

/// As the body of an apply; `None`: it names nothing.
pub(super) fn body(ingress: Vec<LoadBalancerIngress>) -> Option<ServiceStatus> {
    (!ingress.is_empty()).then_some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress) }),
        conditions: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(ip: &str, mode: Option<&str>) -> LoadBalancerIngress {
        LoadBalancerIngress {
            ip: Some(ip.to_owned()),
            ip_mode: mode.map(str::to_owned),
            ..LoadBalancerIngress::default()
        }
    }

    #[test]
    fn what_an_api_server_fills_in_is_no_difference() {
        let with = [named("2001:db8::1", Some("VIP"))];
        assert!(is_same(&with, &[named("2001:db8:0::1", None)]));
        assert!(!is_same(&with, &[named("2001:db8::1", Some("Proxy"))]));
        assert!(!is_same(&with, &[]));
        let both = [named("203.0.113.1", None), named("2001:db8::1", None)];
        let reversed = [both[1].clone(), both[0].clone()];
        assert!(!is_same(&both, &reversed), "the order counts");
        assert!(!is_same(
            &[LoadBalancerIngress::default()],
            &[LoadBalancerIngress::default()]
        ));
    }
}
