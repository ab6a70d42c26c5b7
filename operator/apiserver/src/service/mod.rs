//! Services: what a client may leave out, and what depends on the type.
//!
//! Never an endpoint and never a load balancer: those are other controllers' work.

mod allocate;
mod validate;

pub(crate) use allocate::{Allocations, Cluster};
pub(crate) use validate::{validate, validate_status_write};

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::kinds::items_mut;
use crate::store::State;

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or("")
}

fn is(service: &Value, kind: &str) -> bool {
    text(service, "type") == kind
}

/// Has a cluster IP, or `None` for one.
fn needs_cluster_ip(service: &Value) -> bool {
    ["ClusterIP", "NodePort", "LoadBalancer"].contains(&text(service, "type"))
}

fn needs_node_port(service: &Value) -> bool {
    is(service, "NodePort") || is(service, "LoadBalancer")
}

fn allocates_node_ports(service: &Value) -> bool {
    is(service, "NodePort") || is(service, "LoadBalancer") && service["spec"]["allocateLoadBalancerNodePorts"] != false
}

fn needs_health_check_port(service: &Value) -> bool {
    is(service, "LoadBalancer") && text(service, "externalTrafficPolicy") == "Local"
}

fn is_headless(service: &Value) -> bool {
    text(service, "clusterIP") == "None" || service["spec"]["clusterIPs"][0] == "None"
}

fn has_selector(service: &Value) -> bool {
    service["spec"]["selector"]
        .as_object()
        .is_some_and(|selector| !selector.is_empty())
}

fn externally_accessible(service: &Value) -> bool {
    needs_node_port(service)
        || is(service, "ClusterIP")
            && service["spec"]["externalIPs"]
                .as_array()
                .is_some_and(|ips| !ips.is_empty())
}

fn ports(service: &Value) -> &[Value] {
    service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn set_if_absent(at: &mut Value, field: &str, value: Value) {
    if at[field].is_null() || at[field] == "" {
        at[field] = value;
    }
}

fn drop_spec(service: &mut Value, field: &str) {
    if let Some(spec) = service["spec"].as_object_mut() {
        spec.remove(field);
    }
}

/// Fills in what does not need a look at other Services.
pub(crate) fn default(service: &mut Value) {
    if !service["spec"].is_object() {
        service["spec"] = json!({});
    }
    // Empty values are absent ones in the real type.
    if let Some(spec) = service["spec"].as_object_mut() {
        spec.retain(|field, value| {
            let empty = value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(serde_json::Map::is_empty)
                || value.as_str() == Some("") && field != "clusterIP"
                || *value == 0
                || *value == false && field == "publishNotReadyAddresses";
            !empty
        });
    }
    let spec = &mut service["spec"];
    set_if_absent(spec, "type", "ClusterIP".into());
    set_if_absent(spec, "sessionAffinity", "None".into());
    if spec["sessionAffinity"] == "ClientIP" {
        set_if_absent(
            &mut spec["sessionAffinityConfig"]["clientIP"],
            "timeoutSeconds",
            10_800.into(),
        );
    }
    for port in items_mut(spec, "/ports") {
        set_if_absent(port, "protocol", "TCP".into());
        if port["targetPort"].is_null() || port["targetPort"] == "" || port["targetPort"] == 0 {
            port["targetPort"] = port["port"].clone();
        }
        if let Some(port) = port.as_object_mut() {
            port.retain(|_, value| !(value.is_null() || *value == "" || *value == 0));
        }
    }
    if externally_accessible(service) {
        set_if_absent(&mut service["spec"], "externalTrafficPolicy", "Cluster".into());
    }
    if needs_cluster_ip(service) {
        set_if_absent(&mut service["spec"], "internalTrafficPolicy", "Cluster".into());
    }
    if is(service, "LoadBalancer") && service["spec"]["allocateLoadBalancerNodePorts"].is_null() {
        service["spec"]["allocateLoadBalancerNodePorts"] = true.into();
    }
    default_status(service);
}

fn default_status(service: &mut Value) {
    if !service["status"]["loadBalancer"].is_object() {
        service["status"]["loadBalancer"] = json!({});
    }
    let balanced = is(service, "LoadBalancer");
    let status = &mut service["status"];
    for (field, at) in [("conditions", &[][..]), ("ingress", &["loadBalancer"][..])] {
        let at = at.iter().fold(&mut *status, |at, name| &mut at[*name]);
        if at[field].as_array().is_some_and(Vec::is_empty) || at[field].is_null() {
            crate::kinds::drop_field(at, field);
        }
    }
    for ingress in items_mut(status, "/loadBalancer/ingress") {
        if balanced && ingress["ip"].as_str().is_some_and(|ip| !ip.is_empty()) {
            set_if_absent(ingress, "ipMode", "VIP".into());
        }
        if let Some(ingress) = ingress.as_object_mut() {
            ingress.retain(|_, value| !value.is_null());
        }
    }
}

/// Carries over what was allocated, drops what another type had, and allocates what is missing.
///
/// # Errors
/// 422: what was asked for is taken or cannot be.
pub(crate) fn prepare(state: &mut State, live: Option<&Value>, service: &mut Value) -> Result<(), Failure> {
    if let Some(live) = live {
        carry_over(live, service);
        drop_by_type(live, service);
    }
    allocate::allocate(state, live, service)
}

fn node_port(port: &Value) -> Option<u64> {
    port["nodePort"].as_u64().filter(|port| *port != 0)
}

/// What a client that replaces a Service without knowing its allocations did not mean to change.
fn carry_over(live: &Value, service: &mut Value) {
    if needs_cluster_ip(live) && needs_cluster_ip(service) {
        if text(service, "clusterIP").is_empty() && service["spec"]["clusterIPs"].is_null() {
            service["spec"]["clusterIP"] = live["spec"]["clusterIP"].clone();
        }
        if service["spec"]["clusterIPs"].is_null() && text(service, "clusterIP") == text(live, "clusterIP") {
            service["spec"]["clusterIPs"] = live["spec"]["clusterIPs"].clone();
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if service["spec"][field].is_null() {
                service["spec"][field] = live["spec"][field].clone();
            }
        }
    }
    if needs_node_port(live) && needs_node_port(service) {
        let used: Vec<u64> = ports(service).iter().filter_map(node_port).collect();
        let by_name: Vec<(Value, u64)> = ports(live)
            .iter()
            .filter_map(|port| Some((port["name"].clone(), node_port(port)?)))
            .collect();
        for port in items_mut(service, "/spec/ports") {
            let before = by_name
                .iter()
                .find(|(name, _)| *name == port["name"])
                .map(|(_, number)| *number);
            if let (None, Some(before)) = (node_port(port), before.filter(|number| !used.contains(number))) {
                port["nodePort"] = before.into();
            }
        }
    }
    if needs_health_check_port(live)
        && needs_health_check_port(service)
        && service["spec"]["healthCheckNodePort"].is_null()
    {
        service["spec"]["healthCheckNodePort"] = live["spec"]["healthCheckNodePort"].clone();
    }
    if let Some(spec) = service["spec"].as_object_mut() {
        spec.retain(|_, value| !value.is_null());
    }
}

/// Fields that the new type does not have go, where the client did not change them.
fn drop_by_type(live: &Value, service: &mut Value) {
    let same = |service: &Value, field: &str| live["spec"][field] == service["spec"][field];
    if needs_cluster_ip(live) && !needs_cluster_ip(service) {
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            if same(service, field) {
                drop_spec(service, field);
            }
        }
    }
    if needs_node_port(live) && !needs_node_port(service) {
        let numbers = |service: &Value| ports(service).iter().filter_map(node_port).collect::<Vec<u64>>();
        if numbers(live) == numbers(service) {
            for port in items_mut(service, "/spec/ports") {
                crate::kinds::drop_field(port, "nodePort");
            }
        }
    }
    if needs_health_check_port(live) && !needs_health_check_port(service) && same(service, "healthCheckNodePort") {
        drop_spec(service, "healthCheckNodePort");
    }
    if is(live, "LoadBalancer") && !is(service, "LoadBalancer") {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(service, field) {
                drop_spec(service, field);
            }
        }
    }
    if externally_accessible(live) && !externally_accessible(service) && same(service, "externalTrafficPolicy") {
        drop_spec(service, "externalTrafficPolicy");
    }
    // Not only what another type had: whatever a Service without a load balancer has there goes with its next update.
    if !is(service, "LoadBalancer") {
        service["status"]["loadBalancer"] = json!({});
    }
    if text(service, "sessionAffinity") == "None" && text(live, "sessionAffinity") != "None" {
        drop_spec(service, "sessionAffinityConfig");
    }
}
