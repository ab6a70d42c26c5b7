//! Structural schemas of custom resources: pruning, defaults, and what a value must be.
//!
//! Never evaluates CEL: [`crate::cel`] does, and only for objects that are right otherwise.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use regex::Regex;
use serde_json::Value;

use crate::crd::CustomKind;
use crate::failure::Cause;

/// Drops fields that the schema does not have, and says which.
pub(crate) fn prune(object: &mut Value, schema: &Value, path: &str, unknown: &mut Vec<String>) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    match object {
        Value::Object(map) => {
            let names: Vec<String> = map.keys().cloned().collect();
            for name in names {
                let root = path.is_empty();
                if root && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
                    continue;
                }
                let here = if root { name.clone() } else { format!("{path}.{name}") };
                let below = schema["properties"]
                    .get(&name)
                    .or_else(|| match &schema["additionalProperties"] {
                        Value::Bool(true) | Value::Object(_) => Some(&schema["additionalProperties"]),
                        _none => None,
                    });
                match below {
                    Some(below) => {
                        if let Some(child) = map.get_mut(&name) {
                            prune(child, below, &here, unknown);
                        }
                    }
                    None => {
                        map.remove(&name);
                        unknown.push(here);
                    }
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                prune(item, &schema["items"], &format!("{path}[{i}]"), unknown);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Fills in defaults; a null that may not be null becomes the default, or goes away.
pub(crate) fn default(object: &mut Value, schema: &Value) {
    match object {
        Value::Object(map) => {
            for (name, below) in schema["properties"].as_object().into_iter().flatten() {
                if map.get(name).is_some_and(Value::is_null) && below["nullable"] != true {
                    map.remove(name);
                }
                if let (None, Some(value)) = (map.get(name), below.get("default")) {
                    map.insert(name.clone(), value.clone());
                }
                if let Some(child) = map.get_mut(name) {
                    default(child, below);
                }
            }
            if schema["additionalProperties"].is_object() {
                let named = schema["properties"].as_object();
                for (name, child) in map.iter_mut() {
                    if named.is_none_or(|named| !named.contains_key(name)) {
                        default(child, &schema["additionalProperties"]);
                    }
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| default(item, &schema["items"])),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Everything that is wrong with a custom resource.
pub(crate) fn validate_object(kind: &CustomKind, live: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let before = causes.len();
    validate(object, live, &kind.schema, "", causes);
    if causes.len() == before {
        kind.rules.check(live, object, causes);
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// What a field is called at the root.
fn named(path: &str) -> String {
    if path.is_empty() {
        "<nil>".into()
    } else {
        path.to_owned()
    }
}

/// `live` is the value before: what has not changed is not held against an update (validation ratcheting).
fn validate(value: &Value, live: Option<&Value>, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !path.is_empty() && live == Some(value) {
        return;
    }
    let kind = schema["type"].as_str().unwrap_or("");
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if schema["x-kubernetes-int-or-string"] == true {
        if !value.is_i64() && !value.is_u64() && !value.is_string() {
            causes.push(wrong_type(value, path, "integer,string"));
            return;
        }
    } else if !kind.is_empty() && !is_type(value, kind) {
        causes.push(wrong_type(value, path, kind));
        return;
    }
    if let Some(options) = schema["enum"].as_array()
        && !options.contains(value)
    {
        let options: Vec<&str> = options.iter().filter_map(Value::as_str).collect();
        causes.push(Cause::not_supported(named(path), value, &options));
    }
    match value {
        Value::String(text) => validate_string(text, value, schema, path, causes),
        Value::Number(_) => validate_number(value, schema, path, causes),
        Value::Array(items) => {
            let count = items.len() as u64;
            if let Some(limit) = schema["maxItems"].as_u64().filter(|limit| count > *limit) {
                causes.push(Cause::too_many(named(path), items.len(), limit));
            }
            if let Some(limit) = schema["minItems"].as_u64().filter(|limit| count < *limit) {
                let detail = format!("{} in body should have at least {limit} items", named(path));
                causes.push(Cause::invalid(named(path), &count.into(), detail));
            }
            let list = schema["x-kubernetes-list-type"].as_str().unwrap_or("");
            if list == "set" || list == "map" || schema["uniqueItems"] == true {
                check_unique(items, schema, path, causes);
            }
            let old = live.and_then(Value::as_array);
            for (i, item) in items.iter().enumerate() {
                // Items of lists without keys have no counterpart, unless they are all the same.
                let before = old.and_then(|old| old.get(i)).filter(|_| list == "map");
                validate(item, before, &schema["items"], &format!("{path}[{i}]"), causes);
            }
        }
        Value::Object(map) => validate_map(map, value, live, schema, path, causes),
        Value::Null | Value::Bool(_) => {}
    }
    validate_combinations(value, schema, path, causes);
}

fn validate_map(
    map: &serde_json::Map<String, Value>,
    value: &Value,
    live: Option<&Value>,
    schema: &Value,
    path: &str,
    causes: &mut Vec<Cause>,
) {
    for name in schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if !map.contains_key(name) {
            causes.push(Cause::required(join(path, name), ""));
        }
    }
    let count = map.len() as u64;
    if let Some(limit) = schema["maxProperties"].as_u64().filter(|limit| count > *limit) {
        causes.push(Cause::too_many(named(path), map.len(), limit));
    }
    if let Some(limit) = schema["minProperties"].as_u64().filter(|limit| count < *limit) {
        let detail = format!("{} in body should have at least {limit} properties", named(path));
        causes.push(Cause::invalid(named(path), value, detail));
    }
    for (name, child) in map {
        if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            continue;
        }
        let below = schema["properties"]
            .get(name)
            .unwrap_or(&schema["additionalProperties"]);
        if below.is_object() {
            validate(
                child,
                live.and_then(|live| live.get(name)),
                below,
                &join(path, name),
                causes,
            );
        }
    }
}

fn validate_combinations(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let holds = |schema: &Value| {
        let mut causes = Vec::new();
        validate(value, None, schema, path, &mut causes);
        causes.is_empty()
    };
    let all = |name: &str| schema[name].as_array().map(Vec::as_slice).unwrap_or_default();
    for below in all("allOf") {
        validate(value, None, below, path, causes);
    }
    let any = all("anyOf");
    if !any.is_empty() && !any.iter().any(holds) {
        let detail = format!("\"{}\" must validate at least one schema (anyOf)", named(path));
        causes.push(Cause::invalid(named(path), &Value::Null, detail));
    }
    let one = all("oneOf");
    let count = one.iter().filter(|schema| holds(schema)).count();
    if !one.is_empty() && count != 1 {
        let found = if count == 0 {
            "Found none valid"
        } else {
            "Found 2 valid alternatives"
        };
        let detail = format!(
            "\"{}\" must validate one and only one schema (oneOf). {found}",
            named(path)
        );
        causes.push(Cause::invalid(named(path), &Value::Null, detail));
    }
    if schema["not"].is_object() && holds(&schema["not"]) {
        let detail = format!("\"{}\" must not validate the schema (not)", named(path));
        causes.push(Cause::invalid(named(path), &Value::Null, detail));
    }
}

fn is_type(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _other => true,
    }
}

fn wrong_type(value: &Value, path: &str, kind: &str) -> Cause {
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let shown = if value.is_string() { value.clone() } else { is.into() };
    Cause::of_type(
        named(path),
        &shown,
        format!("{} in body must be of type {kind}: {:?}", named(path), is),
    )
}

fn validate_string(text: &str, value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let length = text.chars().count() as u64;
    if let Some(limit) = schema["maxLength"].as_u64().filter(|limit| length > *limit) {
        causes.push(Cause::too_long(named(path), limit));
    }
    if let Some(limit) = schema["minLength"].as_u64().filter(|limit| length < *limit) {
        let detail = format!("{} in body should be at least {limit} chars long", named(path));
        causes.push(Cause::invalid(named(path), value, detail));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && !pattern_matches(pattern, text)
    {
        let detail = format!("{} in body should match '{pattern}'", named(path));
        causes.push(Cause::invalid(named(path), value, detail));
    }
    let well_formed = match schema["format"].as_str().unwrap_or("") {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        _unknown_formats_are_ignored => true,
    };
    if !well_formed {
        let format = schema["format"].as_str().unwrap_or("");
        let detail = format!("{} in body must be of type {format}: \"{text}\"", named(path));
        causes.push(Cause::invalid(named(path), value, detail));
    }
}

fn pattern_matches(pattern: &str, text: &str) -> bool {
    static COMPILED: OnceLock<Mutex<BTreeMap<String, Option<Regex>>>> = OnceLock::new();
    let mut compiled = COMPILED
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let regex = compiled
        .entry(pattern.to_owned())
        .or_insert_with(|| Regex::new(pattern).ok());
    regex.as_ref().is_none_or(|regex| regex.is_match(text))
}

fn validate_number(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    // Integers are compared as integers: a u64 next to i64::MAX is not what its f64 is.
    let less = |a: &Value, b: &Value| match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a < b,
        _other => a.as_f64() < b.as_f64(),
    };
    let (least, most) = (&schema["minimum"], &schema["maximum"]);
    if least.is_number() && (less(value, least) || (schema["exclusiveMinimum"] == true && !less(least, value))) {
        let detail = format!(
            "{} in body should be greater than or equal to {}",
            named(path),
            whole(least)
        );
        causes.push(Cause::invalid(named(path), value, detail));
    }
    if most.is_number() && (less(most, value) || (schema["exclusiveMaximum"] == true && !less(value, most))) {
        let detail = format!(
            "{} in body should be less than or equal to {}",
            named(path),
            whole(most)
        );
        causes.push(Cause::invalid(named(path), value, detail));
    }
    let range = match schema["format"].as_str().unwrap_or("") {
        "int32" => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
        "int64" => Some((i64::MIN, i64::MAX)),
        _other => None,
    };
    if let Some((least, most)) = range
        && value.as_i64().is_none_or(|n| n < least || n > most)
    {
        let format = schema["format"].as_str().unwrap_or("");
        causes.push(Cause::invalid(
            named(path),
            value,
            format!("{} in body must be of type {format}", named(path)),
        ));
    }
}

/// `1.0` is written `1`.
fn whole(number: &Value) -> String {
    number
        .as_f64()
        .map_or_else(|| number.to_string(), |number| number.to_string())
}

fn check_unique(items: &[Value], schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for (i, item) in items.iter().enumerate() {
        let key = if keys.is_empty() {
            item.clone()
        } else {
            keys.iter()
                .map(|key| ((*key).to_owned(), item[*key].clone()))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        if !seen.insert(key.to_string()) {
            causes.push(Cause::duplicate(format!("{path}[{i}]"), &key));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(schema: Value, value: Value) -> Vec<String> {
        let mut causes = Vec::new();
        validate(&value, None, &schema, "", &mut causes);
        causes
            .into_iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn what_is_wrong_is_said_with_its_path() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "integer", "minimum": 1.0, "maximum": 9.0},
            "b": {"type": "array", "maxItems": 1, "items": {"type": "string", "maxLength": 2}},
            "c": {"type": "string", "enum": ["x", "y"]}}});
        assert_eq!(
            causes(schema.clone(), json!({"a": 1, "b": ["ok"], "c": "x"})),
            Vec::<String>::new()
        );
        let said = causes(schema.clone(), json!({"b": ["long", 1], "c": "z"}));
        assert_eq!(said[0], "a: Required value");
        assert_eq!(said[1], "b: Too many: 2: must have at most 1 items");
        assert_eq!(said[2], "b[0]: Too long: may not be more than 2 bytes");
        assert!(
            said[3].starts_with("b[1]: Invalid value: \"integer\": b[1] in body must be of type string"),
            "{said:?}"
        );
        assert_eq!(said[4], "c: Unsupported value: \"z\": supported values: \"x\", \"y\"");
        let said = causes(schema, json!({"a": 10}));
        assert_eq!(
            said,
            ["a: Invalid value: 10: a in body should be less than or equal to 9"]
        );
    }

    #[test]
    fn unknown_fields_are_dropped_and_defaults_filled_in() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "integer", "default": 5}, "m": {"type": "object", "additionalProperties": {"type": "string"}}}}}});
        let mut object = json!({"metadata": {"x": 1}, "spec": {"b": 1, "m": {"k": "v"}}, "more": 1});
        let mut unknown = Vec::new();
        prune(&mut object, &schema, "", &mut unknown);
        default(&mut object, &schema);
        assert_eq!(object, json!({"metadata": {"x": 1}, "spec": {"a": 5, "m": {"k": "v"}}}));
        unknown.sort();
        assert_eq!(unknown, ["more", "spec.b"]);
    }

    #[test]
    fn exactly_one_alternative_must_hold() {
        let schema = json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}],
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}});
        assert!(causes(schema.clone(), json!({"a": 1})).is_empty());
        assert_eq!(causes(schema.clone(), json!({})).len(), 1);
        assert_eq!(causes(schema, json!({"a": 1, "b": 1})).len(), 1);
    }
}
