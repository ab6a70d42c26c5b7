//! Builtin objects in their true types.
//!
//! Never keeps a typed object: a body is read into its type and written out again, which refuses values of the wrong type and
//! drops fields that the type does not have, as a real server's decoder does.

use k8s_openapi::Resource as _;
use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, coordination::v1 as coordination, core::v1 as core,
    discovery::v1 as discovery, events::v1 as events, networking::v1 as networking, policy::v1 as policy,
    rbac::v1 as rbac, scheduling::v1 as scheduling,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a body into its type and writes it out again.
pub(crate) type Decode = fn(&Value) -> Result<Value, String>;

macro_rules! kinds {
    ($($name:ident = $kind:ty;)*) => {
        $(pub(crate) fn $name(value: &Value) -> Result<Value, String> {
            round_trip::<$kind>(value, <$kind>::KIND)
        })*
    };
}

kinds! {
    admission_binding = admission::ValidatingAdmissionPolicyBinding;
    admission_policy = admission::ValidatingAdmissionPolicy;
    cluster_role = rbac::ClusterRole;
    cluster_role_binding = rbac::ClusterRoleBinding;
    config_map = core::ConfigMap;
    crd = apiextensions::CustomResourceDefinition;
    daemon_set = apps::DaemonSet;
    deployment = apps::Deployment;
    disruption_budget = policy::PodDisruptionBudget;
    endpoint_slice = discovery::EndpointSlice;
    event = core::Event;
    event_v1 = events::Event;
    lease = coordination::Lease;
    namespace = core::Namespace;
    network_policy = networking::NetworkPolicy;
    node = core::Node;
    pod = core::Pod;
    priority_class = scheduling::PriorityClass;
    role = rbac::Role;
    role_binding = rbac::RoleBinding;
    secret = core::Secret;
    service = core::Service;
    service_account = core::ServiceAccount;
}

fn round_trip<T: DeserializeOwned + Serialize>(given: &Value, kind: &str) -> Result<Value, String> {
    let mut value = given.clone();
    quantities(&mut value);
    // Set by us, and `managedFields` is by far the largest part.
    let managed = value
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .and_then(|m| m.remove("managedFields"));
    let typed: T = serde_json::from_value(value).map_err(|error| {
        format!("{kind} in version \"v1\" cannot be handled as a {kind}: json: cannot unmarshal: {error}")
    })?;
    let mut value = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    restrict(&mut value, given);
    if let Some(managed) = managed {
        value["metadata"]["managedFields"] = managed;
    }
    Ok(value)
}

/// Drops what was not given: fields that the types at hand write although they were absent.
fn restrict(value: &mut Value, given: &Value) {
    match (value, given) {
        (Value::Object(value), Value::Object(given)) => {
            value.retain(|key, _| given.get(key).is_some_and(|given| !given.is_null()));
            for (key, child) in value.iter_mut() {
                restrict(child, &given[key]);
            }
        }
        (Value::Array(items), Value::Array(given)) => {
            items
                .iter_mut()
                .zip(given)
                .for_each(|(item, given)| restrict(item, given));
        }
        _same_leaf => {}
    }
}

/// `cpu: 1` is as good as `cpu: "1"`, which the types at hand do not know.
fn quantities(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, child) in map.iter_mut() {
                if let ("limits" | "requests" | "capacity" | "allocatable", Value::Object(amounts)) =
                    (key.as_str(), &mut *child)
                {
                    for amount in amounts.values_mut() {
                        if let Value::Number(number) = amount {
                            *amount = Value::String(number.to_string());
                        }
                    }
                } else {
                    quantities(child);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Paths in `given` that `kept` does not have: fields that the type does not know.
pub(crate) fn unknown_fields(given: &Value, kept: &Value, path: &str, unknown: &mut Vec<String>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, child) in given {
                let here = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                match kept.get(key) {
                    Some(kept) => unknown_fields(child, kept, &here, unknown),
                    None if child.is_null() || is_empty(child) => {}
                    None => unknown.push(here),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (i, (given, kept)) in given.iter().zip(kept).enumerate() {
                unknown_fields(given, kept, &format!("{path}[{i}]"), unknown);
            }
        }
        _same_leaf => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
