//! What single builtin kinds have of their own: defaults, validation, what status and main path leave alone.
//!
//! Never about Services, which have [`crate::service`], nor about custom resources.

use serde_json::{Value, json};

use crate::failure::{Cause, Failure};
use crate::resource::Resource;
use crate::service;
use crate::store::State;
use crate::writes::Request;

/// Removes a field at the top.
pub(crate) fn drop_field(object: &mut Value, field: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(field);
    }
}

/// Removes a field of metadata.
pub(crate) fn drop_metadata(object: &mut Value, field: &str) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove(field);
    }
}

/// Items of the list at a pointer (RFC 6901), if there is one. Indexing would put a null there.
pub(crate) fn items_mut<'a>(object: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .pointer_mut(pointer)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Takes managed fields out while others look at the object.
pub(crate) fn drop_managed(object: &mut Value) -> Option<Value> {
    object["metadata"]
        .as_object_mut()
        .and_then(|metadata| metadata.remove("managedFields"))
}

/// Puts them back.
pub(crate) fn give_managed(object: &mut Value, managed: Option<Value>) {
    if let Some(managed) = managed {
        object["metadata"]["managedFields"] = managed;
    }
}

/// Drops from an intent what this path does not write.
pub(crate) fn reset(resource: &Resource, subresource: &str, config: &mut Value) {
    let Some(fields) = config.as_object_mut() else { return };
    if subresource == "status" {
        if resource.custom.is_some() {
            fields.retain(|name, _| ["apiVersion", "kind", "metadata", "status"].contains(&name.as_str()));
            if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|name, _| ["name", "namespace", "uid", "resourceVersion"].contains(&name.as_str()));
            }
        } else {
            fields.remove("spec");
        }
    } else if resource.status {
        fields.remove("status");
    }
}

/// What a write leaves as it is: status on the main path, all but status on `/status`.
pub(crate) fn keep(resource: &Resource, subresource: &str, live: &Value, object: &mut Value) {
    let restore = |object: &mut Value, field: &str| match live.get(field) {
        Some(value) => object[field] = value.clone(),
        None => drop_field(object, field),
    };
    if subresource == "status" {
        if resource.custom.is_some() {
            let status = object.get("status").cloned();
            let managed = object["metadata"].get("managedFields").cloned();
            let version = object["metadata"].get("resourceVersion").cloned();
            *object = live.clone();
            match status {
                Some(status) => object["status"] = status,
                None => drop_field(object, "status"),
            }
            drop_metadata(object, "managedFields");
            give_managed(object, managed);
            if let Some(version) = version {
                object["metadata"]["resourceVersion"] = version;
            }
        } else {
            restore(object, "spec");
        }
    } else if subresource == "finalize" {
        let finalizers = object["spec"]["finalizers"].clone();
        restore(object, "spec");
        restore(object, "status");
        object["spec"]["finalizers"] = finalizers;
    } else if resource.status {
        restore(object, "status");
    }
}

/// Whether two versions differ in more than metadata and status.
pub(crate) fn spec_differs(live: &Value, object: &Value) -> bool {
    let rest = |object: &Value| -> Vec<(String, Value)> {
        let fields = object.as_object().into_iter().flatten();
        let skipped = ["metadata", "status", "apiVersion", "kind"];
        let fields = fields.filter(|(name, _)| !skipped.contains(&name.as_str()));
        fields.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    rest(live) != rest(object)
}

/// What becomes of an intent before it is merged: write-only fields are turned into what is kept.
pub(crate) fn before_apply(resource: &Resource, config: &mut Value) {
    if resource.group.is_empty() && resource.plural == "secrets" {
        secret_strings(config);
    }
}

/// Fills in what a client may leave out.
pub(crate) fn default(_state: &State, resource: &Resource, live: Option<&Value>, object: &mut Value) {
    let set = |at: &mut Value, field: &str, value: Value| {
        if at[field].is_null() {
            at[field] = value;
        }
    };
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "services") => service::default(object),
        ("", "secrets") => {
            secret_strings(object);
            set(object, "type", "Opaque".into());
        }
        ("", "namespaces") if live.is_none() => {
            object["status"] = json!({"phase": "Active"});
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        ("discovery.k8s.io", "endpointslices") => {
            for port in items_mut(object, "/ports") {
                set(port, "name", "".into());
                set(port, "protocol", "TCP".into());
            }
        }
        ("apps", "deployments") => {
            set(&mut object["spec"], "replicas", 1.into());
            set(&mut object["spec"], "revisionHistoryLimit", 10.into());
            set(&mut object["spec"], "progressDeadlineSeconds", 600.into());
            set(&mut object["spec"], "strategy", json!({"type": "RollingUpdate"}));
        }
        ("apps", "daemonsets") => {
            set(&mut object["spec"], "revisionHistoryLimit", 10.into());
            set(&mut object["spec"], "updateStrategy", json!({"type": "RollingUpdate"}));
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            set(&mut object["spec"], "failurePolicy", "Fail".into());
            for rule in items_mut(object, "/spec/matchConstraints/resourceRules") {
                set(rule, "scope", "*".into());
            }
            let constraints = &mut object["spec"]["matchConstraints"];
            if constraints.is_object() {
                set(constraints, "matchPolicy", "Equivalent".into());
                set(constraints, "namespaceSelector", json!({}));
                set(constraints, "objectSelector", json!({}));
            }
        }
        ("apiextensions.k8s.io", _) => {
            set(&mut object["spec"], "conversion", json!({"strategy": "None"}));
            let kind = object["spec"]["names"]["kind"].as_str().unwrap_or("").to_owned();
            set(&mut object["spec"]["names"], "singular", kind.to_lowercase().into());
            set(&mut object["spec"]["names"], "listKind", format!("{kind}List").into());
        }
        _other => {}
    }
}

/// Allocations, and what other fields decide.
pub(crate) fn prepare(
    state: &mut State,
    resource: &Resource,
    live: Option<&Value>,
    object: &mut Value,
) -> Result<(), Failure> {
    if resource.group.is_empty() && resource.plural == "services" {
        service::prepare(state, live, object)?;
    }
    Ok(())
}

/// `stringData` is a way to write `data`.
fn secret_strings(secret: &mut Value) {
    let strings = secret.get("stringData").and_then(Value::as_object).cloned();
    drop_field(secret, "stringData");
    for (key, text) in strings.into_iter().flatten() {
        secret["data"][key] = base64(text.as_str().unwrap_or("").as_bytes()).into();
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0u32, |group, i| {
            (group << 8) | u32::from(chunk.get(i).copied().unwrap_or(0))
        });
        for i in 0..4 {
            let letter = LETTERS[((group >> (18 - 6 * i)) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// Everything that is wrong with a builtin object beside its metadata.
pub(crate) fn validate(
    state: &State,
    resource: &Resource,
    subresource: &str,
    live: Option<&Value>,
    object: &Value,
    causes: &mut Vec<Cause>,
) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "services") => {
            service::validate(state, live, object, causes);
            if subresource == "status" {
                service::validate_status_write(object, causes);
            }
        }
        ("", "secrets" | "configmaps") => immutable(live, object, causes),
        ("discovery.k8s.io", "endpointslices") => endpoint_slice(live, object, causes),
        ("apiextensions.k8s.io", _) => crate::definition::validate(live, object, causes),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            crate::admission::validate_policy(object, causes);
        }
        ("coordination.k8s.io", "leases") => {
            let seconds = &object["spec"]["leaseDurationSeconds"];
            if seconds.as_i64().is_some_and(|seconds| seconds <= 0) {
                causes.push(Cause::invalid(
                    "spec.leaseDurationSeconds",
                    seconds,
                    "must be greater than 0",
                ));
            }
        }
        _other => {}
    }
}

fn immutable(live: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let Some(live) = live else { return };
    if object["kind"] == "Secret" && live["type"] != object["type"] {
        causes.push(Cause::invalid("type", &object["type"], "field is immutable"));
    }
    if live["immutable"] != true {
        return;
    }
    for field in ["immutable", "data", "binaryData"] {
        if live[field] != object[field] {
            causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}

fn endpoint_slice(live: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let family = &object["addressType"];
    match family.as_str() {
        None | Some("") => causes.push(Cause::required("addressType", "")),
        Some("IPv4" | "IPv6" | "FQDN") => {}
        Some(_) => causes.push(Cause::not_supported("addressType", family, &["FQDN", "IPv4", "IPv6"])),
    }
    if live.is_some_and(|live| live["addressType"] != *family) {
        causes.push(Cause::invalid("addressType", family, "field is immutable"));
    }
    let endpoints = object["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    if endpoints.len() > 1000 {
        causes.push(Cause::too_many("endpoints", endpoints.len(), 1000));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let addresses = endpoint["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let path = format!("endpoints[{i}].addresses");
        if addresses.is_empty() {
            causes.push(Cause::required(path.clone(), "must contain at least 1 address"));
        }
        for (j, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or("");
            let good = match family.as_str() {
                Some("IPv4") => text
                    .parse::<std::net::Ipv4Addr>()
                    .is_ok_and(|a| !a.is_loopback() && !a.is_unspecified()),
                Some("IPv6") => text
                    .parse::<std::net::Ipv6Addr>()
                    .is_ok_and(|a| !a.is_loopback() && !a.is_unspecified()),
                Some(_) | None => true,
            };
            if !good {
                let family = family.as_str().unwrap_or("");
                causes.push(Cause::invalid(
                    format!("{path}[{j}]"),
                    address,
                    format!("must be a valid {family} address"),
                ));
            }
        }
    }
    let mut names = std::collections::BTreeSet::new();
    for (i, port) in object["ports"].as_array().into_iter().flatten().enumerate() {
        if !names.insert(port["name"].to_string()) {
            causes.push(Cause::duplicate(format!("ports[{i}].name"), &port["name"]));
        }
        let protocol = &port["protocol"];
        if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str().unwrap_or("")) {
            causes.push(Cause::not_supported(
                format!("ports[{i}].protocol"),
                protocol,
                &["SCTP", "TCP", "UDP"],
            ));
        }
    }
}

/// What happens to an object that is deleted.
pub(crate) fn delete(resource: &Resource, object: &mut Value) {
    if resource.group.is_empty() && resource.plural == "namespaces" {
        object["status"]["phase"] = "Terminating".into();
    }
}

/// Some objects are never deleted.
pub(crate) fn may_delete(request: &Request<'_>) -> Result<(), Failure> {
    if request.resource.plural == "namespaces" && ["default", "kube-system", "kube-public"].contains(&request.name) {
        return Err(Failure::forbidden(
            "",
            "namespaces",
            request.name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}
