//! What a custom resource definition must be.
//!
//! Never exact about the cost of rules: a real server's estimate is followed roughly, so that an unbounded list or string under
//! a rule that goes through it is refused here too.

use kube_cel::cel::Program;
use serde_json::Value;

use crate::failure::Cause;
use crate::metadata::{is_label, is_subdomain};

/// What one rule may cost, as estimated.
const RULE_BUDGET: f64 = 10_000_000.0;
/// What a request can hold of something without a bound.
const UNBOUNDED_ITEMS: f64 = 1_000_000.0;
const UNBOUNDED_LENGTH: f64 = 3_145_728.0;

pub(crate) fn validate(live: Option<&Value>, definition: &Value, causes: &mut Vec<Cause>) {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let (group, plural, kind) = (
        text(&spec["group"]),
        text(&spec["names"]["plural"]),
        text(&spec["names"]["kind"]),
    );
    if !is_subdomain(&group) || !group.contains('.') {
        let detail = "should be a domain with at least one dot";
        causes.push(Cause::invalid("spec.group", &spec["group"], detail));
    }
    if definition["metadata"]["name"] != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &definition["metadata"]["name"], detail));
    }
    if !is_label(&plural) {
        causes.push(Cause::required("spec.names.plural", ""));
    }
    if !is_label(&kind.to_lowercase()) {
        causes.push(Cause::required("spec.names.kind", ""));
    }
    if spec["scope"] != "Namespaced" && spec["scope"] != "Cluster" {
        causes.push(Cause::not_supported(
            "spec.scope",
            &spec["scope"],
            &["Cluster", "Namespaced"],
        ));
    }
    if let Some(live) = live {
        for field in ["group", "scope"] {
            if live["spec"][field] != spec[field] {
                causes.push(Cause::invalid(
                    format!("spec.{field}"),
                    &spec[field],
                    "field is immutable",
                ));
            }
        }
        for field in ["plural", "kind"] {
            if live["spec"]["names"][field] != spec["names"][field] {
                let path = format!("spec.names.{field}");
                causes.push(Cause::invalid(path, &spec["names"][field], "field is immutable"));
            }
        }
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &Value::Null, detail));
    }
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            causes.push(Cause::required(
                format!("{path}.schema.openAPIV3Schema"),
                "schemas are required",
            ));
            continue;
        }
        for (j, column) in version["additionalPrinterColumns"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            if !text(&column["jsonPath"]).starts_with('.') {
                let path = format!("{path}.additionalPrinterColumns[{j}].jsonPath");
                causes.push(Cause::invalid(
                    path,
                    &column["jsonPath"],
                    "must be a simple json path starting with .",
                ));
            }
        }
        let path = format!("{path}.schema.openAPIV3Schema");
        if schema["type"] != "object" {
            causes.push(Cause::invalid(
                format!("{path}.type"),
                &schema["type"],
                "must be object at the root",
            ));
        }
        structural(schema, &path, 1.0, causes);
    }
}

fn any(schema: &Value) -> bool {
    schema["x-kubernetes-int-or-string"] == true || schema["x-kubernetes-preserve-unknown-fields"] == true
}

fn structural(schema: &Value, path: &str, repeated: f64, causes: &mut Vec<Cause>) {
    let kind = schema["type"].as_str().unwrap_or("");
    if kind.is_empty() && !any(schema) {
        causes.push(Cause::required(
            format!("{path}.type"),
            "must not be empty for specified object fields",
        ));
    }
    if schema["properties"].is_object() && !schema["additionalProperties"].is_null() {
        causes.push(Cause::forbidden(
            format!("{path}.additionalProperties"),
            "may not be used with properties",
        ));
    }
    if schema["uniqueItems"] == true {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.push(Cause::forbidden(format!("{path}.uniqueItems"), detail));
    }
    for combination in ["allOf", "anyOf", "oneOf"] {
        for (i, below) in schema[combination].as_array().into_iter().flatten().enumerate() {
            alternative(below, schema, &format!("{path}.{combination}[{i}]"), causes);
        }
    }
    if schema["not"].is_object() {
        alternative(&schema["not"], schema, &format!("{path}.not"), causes);
    }
    if kind == "array" {
        if !schema["items"].is_object() {
            causes.push(Cause::required(format!("{path}.items"), "must be specified"));
            return;
        }
        if schema["x-kubernetes-list-type"] == "map" {
            list_keys(schema, path, causes);
        }
    }
    for (i, rule) in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        check_rule(
            rule,
            schema,
            &format!("{path}.x-kubernetes-validations[{i}].rule"),
            repeated,
            causes,
        );
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        if path.ends_with("openAPIV3Schema") && name == "metadata" {
            continue;
        }
        structural(below, &format!("{path}.properties[{name}]"), repeated, causes);
    }
    if schema["items"].is_object() {
        structural(
            &schema["items"],
            &format!("{path}.items"),
            repeated * items(schema),
            causes,
        );
    }
    if schema["additionalProperties"].is_object() {
        let path = format!("{path}.additionalProperties");
        structural(&schema["additionalProperties"], &path, repeated * items(schema), causes);
    }
}

/// Inside of a combination, values are only checked, not shaped, and only what is shaped outside.
fn alternative(schema: &Value, outside: &Value, path: &str, causes: &mut Vec<Cause>) {
    let typed_for_int_or_string = outside["x-kubernetes-int-or-string"] == true;
    for field in [
        "type",
        "default",
        "nullable",
        "additionalProperties",
        "description",
        "x-kubernetes-validations",
    ] {
        if field == "type" && typed_for_int_or_string || schema[field].is_null() {
            continue;
        }
        causes.push(Cause::forbidden(
            format!("{path}.{field}"),
            "must be empty to be structural",
        ));
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        match outside["properties"].get(name) {
            Some(outside) => alternative(below, outside, &format!("{path}.properties[{name}]"), causes),
            None => {
                let path = format!("{path}.properties[{name}]");
                causes.push(Cause::required(
                    path,
                    "because it is not defined outside of the combination",
                ));
            }
        }
    }
}

fn list_keys(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let keys = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if keys.is_empty() {
        causes.push(Cause::required(
            format!("{path}.x-kubernetes-list-map-keys"),
            "must not be empty for map lists",
        ));
    }
    let required = schema["items"]["required"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for key in keys {
        let name = key.as_str().unwrap_or("");
        let property = &schema["items"]["properties"][name];
        if property.is_null() {
            let detail = "entries must all be names of item properties";
            causes.push(Cause::invalid(
                format!("{path}.x-kubernetes-list-map-keys"),
                key,
                detail,
            ));
        } else if !required.contains(key) && property["default"].is_null() {
            let detail =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            causes.push(Cause::required(
                format!("{path}.items.properties[{name}].default"),
                detail,
            ));
        }
    }
}

fn items(schema: &Value) -> f64 {
    let bound = schema["maxItems"].as_f64().or(schema["maxProperties"].as_f64());
    bound.unwrap_or(UNBOUNDED_ITEMS)
}

/// The largest bounds of lists and of strings in a schema.
fn bounds(schema: &Value) -> (f64, f64) {
    let (mut most, mut longest) = (1.0, 1.0);
    match schema["type"].as_str() {
        Some("string") if schema["enum"].is_null() && schema["format"].is_null() => {
            longest = schema["maxLength"].as_f64().unwrap_or(UNBOUNDED_LENGTH);
        }
        Some("array") => most = items(schema),
        Some("object") if !schema["additionalProperties"].is_null() => most = items(schema),
        Some(_) | None => {}
    }
    let properties = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, below)| below);
    let more = [&schema["items"], &schema["additionalProperties"]];
    for below in properties.chain(more).filter(|below| below.is_object()) {
        let (items, length) = bounds(below);
        most = f64::max(most, items);
        longest = f64::max(longest, length);
    }
    (most, longest)
}

fn check_rule(rule: &Value, schema: &Value, path: &str, repeated: f64, causes: &mut Vec<Cause>) {
    let text = rule["rule"].as_str().unwrap_or("");
    if text.trim().is_empty() {
        causes.push(Cause::required(path, "rule is not specified"));
        return;
    }
    if let Err(error) = Program::compile(text) {
        causes.push(Cause::invalid(
            path,
            &text.into(),
            format!("compilation failed: {error}"),
        ));
        return;
    }
    let uses = |words: &[&str]| words.iter().map(|word| text.matches(word).count()).sum::<usize>() > 0;
    let through = uses(&[".all(", ".exists(", ".exists_one(", ".map(", ".filter("]);
    let reads = uses(&[
        ".matches(",
        ".contains(",
        ".startsWith(",
        ".endsWith(",
        ".split(",
        ".find(",
        "isCIDR(",
        "isIP(",
        "==",
    ]);
    let (most, longest) = bounds(schema);
    let once = if reads { 1.0 + longest * 0.1 } else { 1.0 };
    let cost = repeated * if through { most * once } else { once };
    if cost > RULE_BUDGET {
        let factor = cost / RULE_BUDGET;
        let detail = format!(
            "estimated rule cost exceeds budget by factor of {factor:.1}x (try simplifying the rule, or adding maxItems, \
             maxProperties, and maxLength where arrays, maps, and strings are declared)"
        );
        causes.push(Cause::forbidden(path, detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(spec: Value) -> Value {
        json!({"metadata": {"name": "as.x.dev"}, "spec": {"group": "x.dev", "scope": "Cluster",
            "names": {"plural": "as", "kind": "A"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]}})
    }

    fn causes(spec: Value) -> Vec<String> {
        let mut causes = Vec::new();
        validate(None, &definition(spec), &mut causes);
        causes
            .into_iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn our_own_definitions_are_good() {
        for definition in operator_api::crds() {
            let mut causes = Vec::new();
            validate(None, &serde_json::to_value(&definition).unwrap(), &mut causes);
            assert_eq!(causes, Vec::new(), "{:?}", definition.metadata.name);
        }
    }

    #[test]
    fn a_rule_over_what_has_no_bound_is_refused() {
        let rule = json!([{"rule": "self.all(a, a.contains('x'))"}]);
        let list = |bounds: (Value, Value)| {
            json!({"type": "array", "maxItems": bounds.0, "x-kubernetes-validations": rule,
                "items": {"type": "string", "maxLength": bounds.1}})
        };
        assert!(causes(list((json!(64), json!(64)))).is_empty());
        for spec in [list((Value::Null, json!(1000))), list((json!(64), Value::Null))] {
            let said = causes(spec);
            assert!(
                said.len() == 1 && said[0].contains("estimated rule cost exceeds budget"),
                "{said:?}"
            );
        }
    }

    #[test]
    fn a_schema_that_is_not_structural_is_refused() {
        assert!(causes(json!({"properties": {}}))[0].contains("type: Required value"));
        assert_eq!(causes(json!({"type": "array"})).len(), 1);
        assert_eq!(
            causes(json!({"type": "object", "oneOf": [{"type": "object"}]})).len(),
            1
        );
        assert_eq!(
            causes(json!({"type": "string", "x-kubernetes-validations": [{"rule": "self ==="}]})).len(),
            1
        );
    }
}
