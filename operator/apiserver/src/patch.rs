//! JSON patch, merge patch, strategic merge patch.
//!
//! Never applies server-side: [`crate::apply`] does.

use serde_json::{Map, Value};

use crate::failure::Failure;

/// The body of a PATCH.
#[derive(Clone, Debug)]
pub(crate) enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// As `kubectl` sends it for builtin kinds.
    Strategic(Value),
    /// Server-side apply.
    Apply(Value),
}

impl Patch {
    pub(crate) fn parse(content_type: &str, body: &[u8]) -> Result<Self, Failure> {
        let json = || serde_json::from_slice(body).map_err(|error| Failure::bad_request(error.to_string()));
        match content_type.split(';').next().unwrap_or("").trim() {
            "application/json-patch+json" => {
                let operations = serde_json::from_slice(body);
                Ok(Self::Json(
                    operations.map_err(|error| Failure::bad_request(error.to_string()))?,
                ))
            }
            "application/merge-patch+json" => Ok(Self::Merge(json()?)),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(json()?)),
            "application/apply-patch+yaml" => Ok(Self::Apply(yaml(body)?)),
            other => Err(Failure::new(
                415,
                "UnsupportedMediaType",
                format!(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml (not {other:?})"
                ),
            )),
        }
    }

    /// The object as patched; of [`Patch::Apply`], which is not done here, the object as it is.
    pub(crate) fn patched(&self, live: &Value, kind: &str, custom: bool) -> Result<Value, Failure> {
        let mut object = live.clone();
        match self {
            Self::Json(operations) => {
                json_patch::patch(&mut object, operations).map_err(|error| {
                    let message = format!("the server rejected our request due to an error in our request: {error}");
                    Failure::new(422, "Invalid", message)
                })?;
            }
            Self::Merge(patch) => json_patch::merge(&mut object, patch),
            Self::Strategic(_) if custom => {
                return Err(Failure::new(
                    415,
                    "UnsupportedMediaType",
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                ));
            }
            Self::Strategic(patch) => object = strategic(&object, patch, kind, "")?,
            Self::Apply(_) => {}
        }
        Ok(object)
    }
}

/// JSON, or YAML of which JSON is a part.
pub(crate) fn yaml(body: &[u8]) -> Result<Value, Failure> {
    match serde_json::from_slice(body) {
        Ok(value) => Ok(value),
        Err(_) => serde_norway::from_slice(body)
            .map_err(|error| Failure::bad_request(format!("error decoding YAML: {error}"))),
    }
}

/// The key by which items of a list are told apart; `""`: a set of plain values; none: the list is replaced.
fn merge_key(kind: &str, path: &str) -> Option<&'static str> {
    let pod = path
        .strip_prefix("spec.template.")
        .or(if kind == "Pod" { Some(path) } else { None });
    if let Some(pod) = pod.and_then(|path| path.strip_prefix("spec.")) {
        return match pod {
            "containers" | "initContainers" | "volumes" | "imagePullSecrets" => Some("name"),
            "containers.env" | "initContainers.env" => Some("name"),
            "containers.volumeMounts" | "initContainers.volumeMounts" => Some("mountPath"),
            "containers.ports" | "initContainers.ports" => Some("containerPort"),
            "topologySpreadConstraints" => Some("topologyKey"),
            "hostAliases" => Some("ip"),
            _other => None,
        };
    }
    match (kind, path) {
        (_, "metadata.finalizers") => Some(""),
        (_, "metadata.ownerReferences") => Some("uid"),
        (_, "status.conditions") => Some("type"),
        ("Service", "spec.ports") => Some("port"),
        ("Node", "status.addresses") => Some("type"),
        ("Node", "spec.podCIDRs") => Some(""),
        ("ServiceAccount", "secrets" | "imagePullSecrets") => Some("name"),
        _other => None,
    }
}

fn strategic(live: &Value, patch: &Value, kind: &str, path: &str) -> Result<Value, Failure> {
    let Some(patch) = patch.as_object() else {
        return Ok(patch.clone());
    };
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => return Ok(without_directives(&Value::Object(patch.clone()))),
        Some("delete") => return Ok(Value::Object(Map::new())),
        Some("merge") | None => {}
        Some(other) => return Err(Failure::bad_request(format!("Unknown patch type found: {other}"))),
    }
    let mut object = live.as_object().cloned().unwrap_or_default();
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        object.retain(|key, _| keep.iter().any(|name| name == key.as_str()));
    }
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(items)), Some(gone)) = (object.get_mut(name), value.as_array()) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        let here = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match value {
            Value::Null => {
                object.remove(key);
            }
            Value::Object(_) => {
                let merged = strategic(object.get(key).unwrap_or(&Value::Null), value, kind, &here)?;
                object.insert(key.clone(), merged);
            }
            Value::Array(items) => {
                let merged = match merge_key(kind, &here) {
                    Some(by) => {
                        let none = Vec::new();
                        let live = object.get(key).and_then(Value::as_array).unwrap_or(&none);
                        let order = patch.get(&format!("$setElementOrder/{key}")).and_then(Value::as_array);
                        strategic_list(live, items, order, by, kind, &here)?
                    }
                    None => items.iter().map(without_directives).collect(),
                };
                object.insert(key.clone(), Value::Array(merged));
            }
            plain => {
                object.insert(key.clone(), plain.clone());
            }
        }
    }
    Ok(Value::Object(object))
}

fn strategic_list(
    live: &[Value],
    patch: &[Value],
    order: Option<&Vec<Value>>,
    by: &str,
    kind: &str,
    path: &str,
) -> Result<Vec<Value>, Failure> {
    let replace = patch.iter().any(|item| item["$patch"] == "replace");
    let mut merged: Vec<Value> = if replace { Vec::new() } else { live.to_vec() };
    for item in patch {
        if by.is_empty() {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
            continue;
        }
        if replace && item["$patch"] == "replace" {
            continue;
        }
        let Some(key) = item.get(by) else {
            return Err(Failure::bad_request(format!(
                "map: {item} does not contain declared merge key: {by}"
            )));
        };
        let place = merged.iter().position(|other| other.get(by) == Some(key));
        match (place, item["$patch"] == "delete") {
            (Some(place), true) => {
                merged.remove(place);
            }
            (None, true) => {}
            (Some(place), false) => merged[place] = strategic(&merged[place], item, kind, path)?,
            (None, false) => merged.push(strategic(&Value::Null, item, kind, path)?),
        }
    }
    if let Some(order) = order {
        let rank = |item: &Value| {
            let same = |wanted: &Value| {
                if by.is_empty() {
                    wanted == item
                } else {
                    wanted.get(by) == item.get(by)
                }
            };
            order.iter().position(same).unwrap_or(usize::MAX)
        };
        merged.sort_by_key(rank);
    }
    Ok(merged)
}

fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map
                .iter()
                .filter(|(key, child)| !key.starts_with('$') && !child.is_null());
            Value::Object(
                kept.map(|(key, child)| (key.clone(), without_directives(child)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_strategic_patch_merges_lists_by_their_key() {
        let live = json!({"metadata": {"finalizers": ["a", "b"]},
            "spec": {"ports": [{"port": 80, "nodePort": 1}, {"port": 81}], "externalIPs": ["x"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]},
            "spec": {"ports": [{"port": 80, "name": "h"}, {"$patch": "delete", "port": 81}, {"port": 82}],
                     "$setElementOrder/ports": [{"port": 82}, {"port": 80}], "externalIPs": ["y"]}});
        let patched = Patch::Strategic(patch).patched(&live, "Service", false).unwrap();
        assert_eq!(
            patched,
            json!({"metadata": {"finalizers": ["b", "c"]},
                "spec": {"ports": [{"port": 82}, {"port": 80, "nodePort": 1, "name": "h"}], "externalIPs": ["y"]}})
        );
    }

    #[test]
    fn a_strategic_patch_of_a_custom_resource_is_refused() {
        let refused = Patch::Strategic(json!({}))
            .patched(&json!({}), "AddressPool", true)
            .unwrap_err();
        assert_eq!(refused.code, 415);
    }

    #[test]
    fn a_json_patch_whose_test_fails_is_refused() {
        let patch = Patch::parse(
            "application/json-patch+json",
            br#"[{"op":"test","path":"/a","value":1}]"#,
        )
        .unwrap();
        assert_eq!(patch.patched(&json!({"a": 2}), "Service", false).unwrap_err().code, 422);
    }
}
