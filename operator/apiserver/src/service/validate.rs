//! What a Service must be.
//!
//! Never changes it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    externally_accessible, is, is_headless, needs_cluster_ip, needs_health_check_port, needs_node_port, node_port,
    ports, text,
};
use crate::failure::Cause;
use crate::metadata::{is_label, is_qualified_name, is_subdomain};
use crate::store::State;

const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";

pub(crate) fn validate(_state: &State, live: Option<&Value>, service: &Value, causes: &mut Vec<Cause>) {
    let spec = &service["spec"];
    one_of(
        service,
        "type",
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        causes,
    );
    one_of(service, "sessionAffinity", &["ClientIP", "None"], causes);
    if needs_cluster_ip(service) {
        one_of(service, "internalTrafficPolicy", &["Cluster", "Local"], causes);
        one_of(
            service,
            "ipFamilyPolicy",
            &["SingleStack", "PreferDualStack", "RequireDualStack"],
            causes,
        );
    }
    if ports(service).is_empty() && !is_headless(service) && !is(service, "ExternalName") {
        causes.push(Cause::required("spec.ports", ""));
    }
    if is_headless(service) && needs_node_port(service) {
        let detail = format!("may not be set to 'None' for {} services", text(service, "type"));
        causes.push(Cause::invalid("spec.clusterIPs[0]", &"None".into(), detail));
    }
    if is(service, "ExternalName") {
        if !is_subdomain(text(service, "externalName").trim_end_matches('.')) {
            causes.push(Cause::required("spec.externalName", ""));
        }
        if !spec["clusterIPs"].is_null() || !text(service, "clusterIP").is_empty() {
            causes.push(Cause::forbidden(
                "spec.clusterIPs",
                "may not be set for ExternalName services",
            ));
        }
    }
    validate_ports(service, causes);
    validate_affinity(spec, causes);
    validate_addresses(live, service, causes);
    validate_external(service, causes);
    validate_class(live, service, causes);
    validate_status(service, causes);
}

fn one_of(service: &Value, field: &str, options: &[&str], causes: &mut Vec<Cause>) {
    if !options.contains(&text(service, field)) {
        causes.push(Cause::not_supported(
            format!("spec.{field}"),
            &service["spec"][field],
            options,
        ));
    }
}

fn validate_ports(service: &Value, causes: &mut Vec<Cause>) {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let count = ports(service).len();
    for (i, port) in ports(service).iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = port["name"].as_str().unwrap_or("");
        if name.is_empty() {
            if count > 1 {
                causes.push(Cause::required(format!("{path}.name"), ""));
            }
        } else if !is_label(name) {
            let detail = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                start and end with an alphanumeric character";
            causes.push(Cause::invalid(format!("{path}.name"), &port["name"], detail));
        } else if !names.insert(name) {
            causes.push(Cause::duplicate(format!("{path}.name"), &port["name"]));
        }
        if !port["port"]
            .as_u64()
            .is_some_and(|number| (1..=65_535).contains(&number))
        {
            let value = if port["port"].is_null() {
                json!(0)
            } else {
                port["port"].clone()
            };
            causes.push(Cause::invalid(
                format!("{path}.port"),
                &value,
                "must be between 1 and 65535, inclusive",
            ));
        }
        match &port["targetPort"] {
            Value::Number(number) if !number.as_u64().is_some_and(|n| (1..=65_535).contains(&n)) => {
                let detail = "must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(
                    format!("{path}.targetPort"),
                    &port["targetPort"],
                    detail,
                ));
            }
            Value::String(name) if name.len() > 15 || !is_label(name) => {
                let detail = "must be no more than 15 characters";
                causes.push(Cause::invalid(
                    format!("{path}.targetPort"),
                    &port["targetPort"],
                    detail,
                ));
            }
            _good => {}
        }
        let protocol = port["protocol"].as_str().unwrap_or("");
        if !["SCTP", "TCP", "UDP"].contains(&protocol) {
            let cause = Cause::not_supported(format!("{path}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
            causes.push(cause);
        }
        if !numbers.insert((protocol, port["port"].as_u64())) {
            causes.push(Cause::duplicate(
                path.clone(),
                &json!({"port": port["port"], "protocol": protocol}),
            ));
        }
        if let Some(number) = node_port(port) {
            if !needs_node_port(service) {
                let detail = format!("may not be used when `type` is '{}'", text(service, "type"));
                causes.push(Cause::forbidden(format!("{path}.nodePort"), detail));
            }
            if !node_ports.insert((protocol, number)) {
                causes.push(Cause::duplicate(format!("{path}.nodePort"), &number.into()));
            }
        }
    }
}

fn validate_affinity(spec: &Value, causes: &mut Vec<Cause>) {
    let config = &spec["sessionAffinityConfig"];
    if spec["sessionAffinity"] == "None" && !config.is_null() {
        let detail = "must not be set when session affinity is None";
        causes.push(Cause::forbidden("spec.sessionAffinityConfig", detail));
    }
    let seconds = &config["clientIP"]["timeoutSeconds"];
    if spec["sessionAffinity"] == "ClientIP" && !seconds.as_i64().is_some_and(|seconds| (1..=86_400).contains(&seconds))
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        causes.push(Cause::invalid(
            field,
            seconds,
            "must be greater than 0 and less than 86400",
        ));
    }
}

fn validate_addresses(live: Option<&Value>, service: &Value, causes: &mut Vec<Cause>) {
    let spec = &service["spec"];
    for (i, ip) in spec["externalIPs"].as_array().into_iter().flatten().enumerate() {
        let field = format!("spec.externalIPs[{i}]");
        match ip.as_str().unwrap_or("").parse::<IpAddr>() {
            Err(_) => causes.push(Cause::invalid(
                field,
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            )),
            Ok(parsed) if parsed.is_unspecified() => {
                causes.push(Cause::invalid(field, ip, format!("may not be unspecified ({parsed})")));
            }
            Ok(parsed) if parsed.is_loopback() => {
                causes.push(Cause::invalid(
                    field,
                    ip,
                    "may not be in the loopback range (127.0.0.0/8, ::1/128)",
                ));
            }
            Ok(IpAddr::V4(parsed)) if parsed.is_link_local() || parsed.is_multicast() => {
                causes.push(Cause::invalid(
                    field,
                    ip,
                    "may not be in the link-local or multicast range",
                ));
            }
            Ok(IpAddr::V6(parsed)) if parsed.is_unicast_link_local() || parsed.is_multicast() => {
                causes.push(Cause::invalid(
                    field,
                    ip,
                    "may not be in the link-local or multicast range",
                ));
            }
            Ok(_) => {}
        }
    }
    for (i, ip) in spec["clusterIPs"].as_array().into_iter().flatten().enumerate() {
        let text = ip.as_str().unwrap_or("");
        if text != "None" && text.parse::<IpAddr>().is_err() {
            causes.push(Cause::invalid(
                format!("spec.clusterIPs[{i}]"),
                ip,
                "must be a valid IP address",
            ));
        }
    }
    if needs_cluster_ip(service) && text(service, "clusterIP") != spec["clusterIPs"][0].as_str().unwrap_or("") {
        let detail = "first value must match `clusterIP`";
        causes.push(Cause::invalid("spec.clusterIPs", &spec["clusterIPs"], detail));
    }
    let families: Vec<&str> = spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (i, family) in families.iter().enumerate() {
        if !["IPv4", "IPv6"].contains(family) {
            let cause = Cause::not_supported(format!("spec.ipFamilies[{i}]"), &(*family).into(), &["IPv4", "IPv6"]);
            causes.push(cause);
        }
    }
    if families.len() == 2 && families[0] == families[1] {
        causes.push(Cause::duplicate("spec.ipFamilies[1]", &families[1].into()));
    }
    if families.len() == 2 && text(service, "ipFamilyPolicy") == "SingleStack" {
        let detail = "must be RequireDualStack or PreferDualStack when multiple 'ipFamilies' are specified";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], detail));
    }
    let Some(live) = live.filter(|live| needs_cluster_ip(live) && needs_cluster_ip(service)) else {
        return;
    };
    for (field, i) in [
        ("clusterIPs", 0),
        ("ipFamilies", 0),
        ("clusterIPs", 1),
        ("ipFamilies", 1),
    ] {
        let (before, after) = (&live["spec"][field][i], &spec[field][i]);
        let given_back = i == 1 && after.is_null();
        if !before.is_null() && before != after && !given_back {
            causes.push(Cause::invalid(
                format!("spec.{field}[{i}]"),
                &spec[field],
                "may not change once set",
            ));
        }
    }
}

fn validate_external(service: &Value, causes: &mut Vec<Cause>) {
    let (spec, balanced) = (&service["spec"], is(service, "LoadBalancer"));
    if let Some(ranges) = spec["loadBalancerSourceRanges"]
        .as_array()
        .filter(|ranges| !ranges.is_empty())
    {
        let path = "spec.LoadBalancerSourceRanges";
        if !balanced {
            causes.push(Cause::forbidden(path, ONLY_BALANCED));
        }
        for (i, range) in ranges.iter().enumerate() {
            if !is_cidr(range.as_str().unwrap_or("").trim()) {
                causes.push(Cause::invalid(format!("{path}[{i}]"), range, CIDR));
            }
        }
    } else if let Some(text) = service["metadata"]["annotations"][SOURCE_RANGES].as_str() {
        let path = format!("metadata.annotations[{SOURCE_RANGES}]");
        if !balanced {
            causes.push(Cause::forbidden(path, ONLY_BALANCED));
        } else if !text.trim().is_empty() && !text.split(',').all(|range| is_cidr(range.trim())) {
            causes.push(Cause::invalid(path, &text.into(), CIDR));
        }
    }
    let policy = &spec["externalTrafficPolicy"];
    if externally_accessible(service) {
        one_of(service, "externalTrafficPolicy", &["Cluster", "Local"], causes);
    } else if !policy.is_null() {
        let detail = "may only be set for externally-accessible services";
        causes.push(Cause::invalid("spec.externalTrafficPolicy", policy, detail));
    }
    let port = &spec["healthCheckNodePort"];
    if !needs_health_check_port(service) && !port.is_null() {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        causes.push(Cause::invalid("spec.healthCheckNodePort", port, detail));
    }
    if !balanced && !spec["allocateLoadBalancerNodePorts"].is_null() {
        causes.push(Cause::forbidden("spec.allocateLoadBalancerNodePorts", ONLY_BALANCED));
    }
}

const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u8>()) else {
        return false;
    };
    length <= if address.is_ipv4() { 32 } else { 128 }
}

fn validate_class(live: Option<&Value>, service: &Value, causes: &mut Vec<Cause>) {
    let class = &service["spec"]["loadBalancerClass"];
    let field = "spec.loadBalancerClass";
    if !is(service, "LoadBalancer") {
        if !class.is_null() {
            causes.push(Cause::forbidden(field, ONLY_BALANCED));
        }
        return;
    }
    if let Some(live) = live.filter(|live| is(live, "LoadBalancer")) {
        if live["spec"]["loadBalancerClass"] != *class {
            causes.push(Cause::invalid(field, class, "may not change once set"));
        }
        if needs_health_check_port(live) && needs_health_check_port(service) {
            let port = |service: &Value| service["spec"]["healthCheckNodePort"].clone();
            if port(live) != port(service) {
                causes.push(Cause::forbidden("spec.healthCheckNodePort", "field is immutable"));
            }
        }
    }
    if class.as_str().is_some_and(|class| !is_qualified_name(class)) {
        let detail = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
            alphanumeric character";
        causes.push(Cause::invalid(field, class, detail));
    }
}

fn validate_status(service: &Value, causes: &mut Vec<Cause>) {
    let path = "status.loadBalancer.ingress";
    let list = service["status"]["loadBalancer"]["ingress"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for (i, ingress) in list.iter().enumerate() {
        let (ip, mode) = (ingress["ip"].as_str().unwrap_or(""), &ingress["ipMode"]);
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            causes.push(Cause::invalid(
                format!("{path}[{i}].ip"),
                &ingress["ip"],
                "must be a valid IP address",
            ));
        }
        if ip.is_empty() && !mode.is_null() {
            let detail = "may not be specified when `ip` is not set";
            causes.push(Cause::forbidden(format!("{path}[{i}].ipMode"), detail));
        } else if !mode.is_null() && *mode != "VIP" && *mode != "Proxy" {
            causes.push(Cause::not_supported(
                format!("{path}[{i}].ipMode"),
                mode,
                &["Proxy", "VIP"],
            ));
        }
        let name = ingress["hostname"].as_str().unwrap_or("");
        if !name.is_empty() && (!is_subdomain(name) || name.parse::<IpAddr>().is_ok()) {
            let detail = "must be a DNS name, not an IP address";
            causes.push(Cause::invalid(
                format!("{path}[{i}].hostname"),
                &ingress["hostname"],
                detail,
            ));
        }
    }
}

/// What only a write of the status is held to.
pub(crate) fn validate_status_write(service: &Value, causes: &mut Vec<Cause>) {
    let some = service["status"]["loadBalancer"]["ingress"]
        .as_array()
        .is_some_and(|list| !list.is_empty());
    if some && !is(service, "LoadBalancer") {
        let detail = "may only be used when `spec.type` is \"LoadBalancer\"";
        causes.push(Cause::forbidden("status.loadBalancer.ingress", detail));
    }
}
