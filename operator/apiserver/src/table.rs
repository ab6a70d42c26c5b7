//! Tables, as `kubectl get` prints them.
//!
//! Never more than what custom columns say; builtin kinds have the few columns that people look at.

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::store::Stored;

pub(crate) fn table(resource: &Resource, items: &[&Stored], revision: &str) -> Value {
    let columns = columns(resource);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|(name, kind, _, priority)| {
            let format = if name == "Name" { "name" } else { "" };
            json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority})
        })
        .collect();
    let rows: Vec<Value> = items
        .iter()
        .map(|stored| {
            let cells: Vec<Value> = columns
                .iter()
                .map(|(_, kind, path, _)| cell(&stored.value, kind, path))
                .collect();
            let metadata = &stored.value["metadata"];
            let object = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
            json!({"cells": cells, "object": object})
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision},
        "columnDefinitions": definitions, "rows": rows})
}

/// Name, type, path, priority.
fn columns(resource: &Resource) -> Vec<(String, String, String, i64)> {
    let mut columns = vec![("Name".to_owned(), "string".to_owned(), ".metadata.name".to_owned(), 0)];
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    match &resource.custom {
        Some(custom) if !custom.columns.is_empty() => {
            columns.extend(custom.columns.iter().map(|column| {
                let priority = column["priority"].as_i64().unwrap_or(0);
                (
                    text(&column["name"]),
                    text(&column["type"]),
                    text(&column["jsonPath"]),
                    priority,
                )
            }));
            return columns;
        }
        Some(_) | None => {}
    }
    let more: &[(&str, &str)] = match resource.plural.as_str() {
        "services" => &[
            ("Type", ".spec.type"),
            ("Cluster-IP", ".spec.clusterIP"),
            ("External-IP", ".status.loadBalancer.ingress[*].ip"),
            ("Port(s)", ".spec.ports[*].port"),
        ],
        "events" => &[("Type", ".type"), ("Reason", ".reason"), ("Message", ".message")],
        "namespaces" | "pods" => &[("Status", ".status.phase")],
        "leases" => &[("Holder", ".spec.holderIdentity")],
        "secrets" => &[("Type", ".type")],
        "endpointslices" => &[
            ("AddressType", ".addressType"),
            ("Endpoints", ".endpoints[*].addresses[*]"),
        ],
        _other => &[],
    };
    columns.extend(
        more.iter()
            .map(|(name, path)| ((*name).to_owned(), "string".to_owned(), (*path).to_owned(), 0)),
    );
    let created = if resource.plural == "customresourcedefinitions" {
        "Created At"
    } else {
        "Age"
    };
    columns.push((created.into(), "date".into(), ".metadata.creationTimestamp".into(), 0));
    columns
}

fn cell(object: &Value, kind: &str, path: &str) -> Value {
    let mut found = Vec::new();
    find(object, path, &mut found);
    match (found.as_slice(), kind) {
        ([], _) => Value::Null,
        ([one], "date") => one.as_str().map_or_else(|| "<unknown>".into(), |time| age(time).into()),
        ([one], "integer") if one.is_number() => (*one).clone(),
        ([one], "number") if one.is_number() => (*one).clone(),
        ([one], "boolean") if one.is_boolean() => (*one).clone(),
        (_, "integer" | "number" | "boolean") => Value::Null,
        (many, _) => many
            .iter()
            .map(|value| plain(value))
            .collect::<Vec<String>>()
            .join(",")
            .into(),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// As much of JSONPath as columns use: `.a.b`, `[0]`, `[*]`, `[?(@.type=='X')]`, `['a.b']`.
fn find<'a>(at: &'a Value, path: &str, found: &mut Vec<&'a Value>) {
    let path = path.trim();
    if path.is_empty() {
        if !at.is_null() {
            found.push(at);
        }
        return;
    }
    if let Some(rest) = path.strip_prefix('[') {
        let Some(end) = rest.find(']') else { return };
        // A quoted name may contain `]` only in theory.
        let (inside, rest) = (&rest[..end], &rest[end + 1..]);
        if inside == "*" {
            at.as_array()
                .into_iter()
                .flatten()
                .for_each(|item| find(item, rest, found));
        } else if let Ok(index) = inside.parse::<usize>() {
            find(&at[index], rest, found);
        } else if let Some(name) = inside.strip_prefix('\'').and_then(|name| name.strip_suffix('\'')) {
            find(&at[name], rest, found);
        } else if let Some(filter) = inside.strip_prefix("?(@.").and_then(|filter| filter.strip_suffix(')'))
            && let Some((name, value)) = filter.split_once("==")
        {
            let value = value.trim().trim_matches(['\'', '"']);
            let items = at.as_array().into_iter().flatten();
            items
                .filter(|item| item[name.trim()] == value)
                .for_each(|item| find(item, rest, found));
        }
        return;
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    let end = path.find(['.', '[']).unwrap_or(path.len());
    find(&at[&path[..end]], &path[end..], found);
}

/// `5s`, `3m`, `2h`, `4d`.
fn age(time: &str) -> String {
    let Ok(time) = time.parse::<jiff::Timestamp>() else {
        return "<unknown>".into();
    };
    let seconds = jiff::Timestamp::now()
        .as_second()
        .saturating_sub(time.as_second())
        .max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _older => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paths_of_columns_are_followed() {
        let object = json!({"a": [{"type": "X", "n": 1}, {"type": "Y", "n": 2}], "m": {"x.y": "z"}});
        let show = |path| cell(&object, "string", path);
        assert_eq!(show(".a[?(@.type=='Y')].n"), "2");
        assert_eq!(show(".a[*].n"), "1,2");
        assert_eq!(show(".a[0].type"), "X");
        assert_eq!(show(".m['x.y']"), "z");
        assert_eq!(show(".b.c"), Value::Null);
        assert_eq!(cell(&object, "integer", ".a[0].n"), 1);
    }
}
