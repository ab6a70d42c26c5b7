//! What a Service asks of us: the Kubernetes Service contract, field by field.
//!
//! Never looks at which addresses are free or which nodes are there: what is wanted follows from the Service, its namespace's
//! labels, what the operator was told, and whether there are traces of ours.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use operator_api::{
    Affinity, FINALIZER, FINALIZER_EXTERNAL_IPS, ForwardingMode, PREFIX, ServiceRef, TransportPort, VipPort,
};

use super::{
    annotations::{self, Asked},
    marks::is_annotated,
    ports::{Ports, number, ports},
    source_ranges::source_ranges,
    wanted::{Deprecation, Refusal, Serve, Wanted, Why},
};
use crate::ipam::{self, Family};

/// Most refusals that are told of one Service: it is not served for the first, either.
const MAX_REFUSALS: usize = 16;
/// Most addresses that are read from a status.
const MAX_CURRENT: usize = 64;
/// `spec.externalIPs` that a table has room for, beside two load balancer addresses.
const MAX_EXTERNAL_IPS: usize = 62;
/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

/// What decides beside the Service itself.
pub(super) struct Around<'a> {
    /// The class that is ours.
    pub(super) class: &'a str,
    /// The Service is one of those without a class that we take.
    pub(super) selected: bool,
    /// There is a table or a claim of ours for it.
    pub(super) has_traces: bool,
    /// There is none, and another installation has a claim for it.
    pub(super) of_others: bool,
    /// There is a claim for it, whoever's.
    pub(super) is_held: bool,
    /// Labels of its namespace.
    pub(super) namespace_labels: &'a BTreeMap<String, String>,
}

/// Whether a Service itself shows that it was ours.
pub(super) fn has_marks(service: &Service) -> bool {
    let conditioned = || {
        let status = service.status.as_ref();
        let mut conditions = status
            .and_then(|status| status.conditions.as_ref())
            .into_iter()
            .flatten();
        conditions.any(|condition| condition.type_.starts_with(PREFIX))
    };
    has_finalizer(service, FINALIZER_EXTERNAL_IPS) || is_annotated(service) || conditioned()
}

fn has_finalizer(service: &Service, name: &str) -> bool {
    let finalizers = service.metadata.finalizers.as_deref().unwrap_or_default();
    finalizers.iter().any(|finalizer| finalizer == name)
}

/// What a Service asks of us.
pub(super) fn wanted(service: &Service, around: &Around<'_>) -> Wanted {
    let (Some(spec), Some(reference)) = (&service.spec, reference(service)) else {
        return Wanted::Foreign;
    };
    // What is written on it is theirs; a class of ours says that they will let it go.
    if around.of_others && spec.load_balancer_class.as_deref() != Some(around.class) {
        return Wanted::Foreign;
    }
    let cleaned_up = |why| {
        if around.has_traces || has_marks(service) {
            Wanted::Nothing(why)
        } else {
            Wanted::Foreign
        }
    };
    let deleted = service.metadata.deletion_timestamp.is_some();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let external = spec
        .external_ips
        .as_ref()
        .is_some_and(|addresses| !addresses.is_empty());
    match spec.type_.as_deref() {
        Some("LoadBalancer") => match spec.load_balancer_class.as_deref() {
            // Marks alone may be of another installation, whose class this is. It takes them itself, unless all that is left to do
            // is to let the Service go.
            Some(class) if class != around.class && !around.has_traces && (around.is_held || !deleted) => {
                Wanted::Foreign
            }
            Some(class) if class != around.class => cleaned_up(Why::OtherClass),
            None if !around.selected => cleaned_up(Why::LetGo),
            Some(_) | None if deleted => Wanted::Nothing(Why::Deleted),
            Some(_) | None if headless => Wanted::Nothing(Why::Headless),
            Some(_) | None => Wanted::Serve(Box::new(serve(service, spec, reference, true, around))),
        },
        // What asks for addresses and can have none is told so.
        Some("ExternalName") if external && !deleted => Wanted::Nothing(Why::ExternalName),
        Some("ExternalName") => cleaned_up(if deleted { Why::Deleted } else { Why::ExternalName }),
        // ClusterIP, NodePort, and what a later Kubernetes may have.
        Some(_) | None if deleted => cleaned_up(Why::Deleted),
        Some(_) | None if !external => cleaned_up(Why::NotLoadBalancer),
        Some(_) | None if headless => Wanted::Nothing(Why::Headless),
        Some(_) | None => Wanted::Serve(Box::new(serve(service, spec, reference, false, around))),
    }
}

/// `None`: an object without a name or uid, which no API server has.
fn reference(service: &Service) -> Option<ServiceRef> {
    let metadata = &service.metadata;
    Some(ServiceRef {
        namespace: metadata.namespace.clone().filter(|namespace| !namespace.is_empty())?,
        name: metadata.name.clone().filter(|name| !name.is_empty())?,
        uid: metadata.uid.clone().filter(|uid| !uid.is_empty())?,
    })
}

fn serve(
    service: &Service,
    spec: &ServiceSpec,
    reference: ServiceRef,
    load_balancer: bool,
    around: &Around<'_>,
) -> Serve {
    let mut refusals = Vec::new();
    let mut deprecations = Vec::new();
    let families = if load_balancer { families(spec) } else { Vec::new() };
    let asked = annotations::read(service, load_balancer, &families, &mut refusals);
    let Ports { served, refused } = ports(spec, asked.mode, &mut refusals);
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let request = ipam::Request {
        service: reference.clone(),
        labels: service.metadata.labels.clone().unwrap_or_default(),
        namespace_labels: around.namespace_labels.clone(),
        ports: served.iter().map(transport).collect(),
        addresses: requested(spec, &asked, &families, &mut refusals, &mut deprecations),
        families,
        require_all: spec.ip_family_policy.as_deref() != Some("PreferDualStack"),
        pool: asked.pool,
        sharing_key: asked.sharing_key,
        current: if load_balancer { current(service) } else { Vec::new() },
        external: external(spec, &mut refusals),
    };
    let affinity = affinity(spec, &mut refusals);
    let source_ranges = if load_balancer {
        source_ranges(service, &mut refusals)
    } else {
        None
    };
    refusals.truncate(MAX_REFUSALS);
    Serve {
        service: reference,
        request,
        ports: served,
        refused_ports: refused,
        mode: asked.mode,
        scheduler: asked.scheduler,
        affinity,
        source_ranges,
        local,
        health_check_node_port: if load_balancer && local {
            spec.health_check_node_port.and_then(number)
        } else {
            None
        },
        probed: !asked.no_health_check,
        ip_mode: match asked.mode {
            ForwardingMode::DsrIpip | ForwardingMode::DsrGue | ForwardingMode::DsrL2 => "VIP",
            ForwardingMode::NodePortNat => "Proxy",
        },
        finalizer: if load_balancer {
            FINALIZER
        } else {
            FINALIZER_EXTERNAL_IPS
        },
        refusals,
        deprecations,
    }
}

/// In the order of `spec.ipFamilies`; where that is absent, of its cluster IPs.
fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        });
    let of_cluster_ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let of_cluster_ips = of_cluster_ips.filter_map(|address| address.parse().ok().map(Family::of));
    let mut families = Vec::new();
    for family in named {
        if !families.contains(&family) {
            families.push(family);
        }
    }
    if families.is_empty() {
        for family in of_cluster_ips {
            if !families.contains(&family) {
                families.push(family);
            }
        }
    }
    if families.is_empty() {
        families.push(Family::V4);
    }
    if spec.ip_family_policy.as_deref() == Some("SingleStack") {
        families.truncate(1);
    }
    families
}

/// The annotation's addresses; without it, `spec.loadBalancerIP`.
fn requested(
    spec: &ServiceSpec,
    asked: &Asked,
    families: &[Family],
    refusals: &mut Vec<Refusal>,
    deprecations: &mut Vec<Deprecation>,
) -> Vec<IpAddr> {
    let Some(value) = spec
        .load_balancer_ip
        .as_deref()
        .filter(|value| !value.trim().is_empty())
    else {
        return asked.addresses.clone();
    };
    if families.is_empty() {
        return Vec::new();
    }
    deprecations.push(Deprecation::LoadBalancerIp);
    if asked.has_addresses {
        return asked.addresses.clone();
    }
    annotations::addresses("spec.loadBalancerIP", std::iter::once(value), families, refusals)
}

fn transport(port: &VipPort) -> TransportPort {
    TransportPort {
        protocol: port.protocol,
        port: port.port,
    }
}

/// What the status says by now.
fn current(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let addresses = ingress.iter().filter_map(|ingress| ingress.ip.as_deref()?.parse().ok());
    addresses.take(MAX_CURRENT).collect()
}

/// `spec.externalIPs`, each once.
fn external(spec: &ServiceSpec, refusals: &mut Vec<Refusal>) -> Vec<IpAddr> {
    let field = "spec.externalIPs";
    let values = spec.external_ips.as_deref().unwrap_or_default();
    let mut addresses = Vec::new();
    for value in values.iter().take(MAX_EXTERNAL_IPS) {
        match value.trim().parse() {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => refusals.push(Refusal::bad(field, value, "not an IP address")),
        }
    }
    if values.len() > MAX_EXTERNAL_IPS {
        refusals.push(Refusal::TooMany {
            field: field.to_owned(),
            count: values.len(),
            most: MAX_EXTERNAL_IPS,
        });
    }
    addresses
}

fn affinity(spec: &ServiceSpec, refusals: &mut Vec<Refusal>) -> Option<Affinity> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let client_ip = config.and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
    let seconds = seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS);
    match u32::try_from(seconds) {
        Ok(client_ip_timeout_seconds @ 1..=86_400) => Some(Affinity {
            client_ip_timeout_seconds,
        }),
        Ok(_) | Err(_) => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            refusals.push(Refusal::bad(field, &seconds.to_string(), "not in 1..=86400"));
            None
        }
    }
}
