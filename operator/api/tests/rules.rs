//! The rules of the custom resource definitions, evaluated as an API server does: tests/rules.yaml has the objects.
//!
//! What kube-cel knows and a real API server does not (and the other way round) this cannot see: `make e2e` with
//! KUBECONFIG does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::collections::{BTreeMap, BTreeSet};

use kube_cel::Validator;
use serde_json::{Value, json};

#[derive(serde::Deserialize)]
struct Table {
    good: BTreeMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    kind: String,
    what: String,
    change: Value,
    from: Option<Value>,
    refused: Option<String>,
}

fn table() -> Table {
    serde_norway::from_str(include_str!("rules.yaml")).unwrap()
}

fn schemas() -> BTreeMap<String, Value> {
    let crds = operator_api::crds()
        .into_iter()
        .map(|crd| serde_json::to_value(crd).unwrap());
    crds.map(|crd| {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        (kind, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
    })
    .collect()
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn patched(good: &Value, patch: &Value) -> Value {
    let mut object = good.clone();
    merge(&mut object, patch);
    object
}

#[test]
fn good_objects_are_taken() {
    for (kind, object) in table().good {
        let refused = Validator::new().validate(&schemas()[&kind], &object, None);
        assert!(refused.is_ok(), "{kind}: {refused:?}");
    }
}

#[test]
fn bad_objects_are_refused_by_the_rule_that_is_meant() {
    let (Table { good, cases }, schemas) = (table(), schemas());
    assert!(cases.len() > 40);
    for Case {
        kind,
        what,
        change,
        from,
        refused,
    } in cases
    {
        let old = from.map(|from| patched(&good[&kind], &from));
        let result = Validator::new().validate(&schemas[&kind], &patched(&good[&kind], &change), old.as_ref());
        let messages: Vec<_> = result
            .err()
            .into_iter()
            .flat_map(|errors| errors.into_vec())
            .map(|e| e.message)
            .collect();
        assert_eq!(messages, refused.into_iter().collect::<Vec<_>>(), "{kind}: {what}");
    }
}

#[test]
fn good_objects_fit_our_types() {
    let table = table();
    for (kind, object) in &table.good {
        let whole = patched(object, &json!({"apiVersion": "vipline.dev/v1alpha1", "kind": kind}));
        let parsed = match kind.as_str() {
            "AddressPool" => serde_json::from_value::<operator_api::AddressPool>(whole).map(|_| ()),
            "AddressClaim" => serde_json::from_value::<operator_api::AddressClaim>(whole).map(|_| ()),
            "VipTable" => serde_json::from_value::<operator_api::VipTable>(whole).map(|_| ()),
            "NodeSet" => serde_json::from_value::<operator_api::NodeSet>(whole).map(|_| ()),
            "TunnelConfig" => serde_json::from_value::<operator_api::TunnelConfig>(whole).map(|_| ()),
            "BgpPeer" => serde_json::from_value::<operator_api::BgpPeer>(whole).map(|_| ()),
            "Announcement" => serde_json::from_value::<operator_api::Announcement>(whole).map(|_| ()),
            "LbNode" => serde_json::from_value::<operator_api::LbNode>(whole).map(|_| ()),
            other => panic!("{other}?"),
        };
        assert!(parsed.is_ok(), "{kind}: {parsed:?}");
    }
    assert_eq!(table.good.len(), operator_api::crds().len());
}

/// Calls `visit` with the path of every schema below this one.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, visit);
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            walk(&format!("{path}{suffix}"), &schema[key], visit);
        }
    }
}

#[test]
fn every_rule_has_an_object_that_it_refuses() {
    let refused: BTreeSet<_> = table()
        .cases
        .into_iter()
        .filter_map(|case| Some((case.kind, case.refused?)))
        .collect();
    let mut rules = 0;
    for (kind, schema) in schemas() {
        walk("", &schema, &mut |path, node| {
            for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let message = rule["message"].as_str().expect("every rule has a message").to_owned();
                assert!(
                    refused.contains(&(kind.clone(), message.clone())),
                    "{kind}{path}: {message}: no case"
                );
                rules += 1;
            }
        });
    }
    assert!(rules > 25, "{rules} rules");
}

#[test]
fn every_list_map_and_string_is_bounded() {
    let mut seen = 0;
    for (kind, schema) in schemas() {
        walk("", &schema, &mut |path, node| {
            let bounded = match node["type"].as_str() {
                Some("string") => {
                    node["maxLength"].is_u64() || node["enum"].is_array() || node["format"] == "date-time"
                }
                Some("array") => node["maxItems"].is_u64(),
                Some("object") => node["properties"].is_object() || node["maxProperties"].is_u64(),
                Some("integer") | Some("boolean") => true,
                other => panic!("{kind}{path}: type {other:?}"),
            };
            assert!(bounded, "{kind}{path} has no bound");
            seen += 1;
        });
    }
    assert!(seen > 100, "{seen} schemas");
}

#[test]
fn formats_and_descriptions_are_those_of_an_api_server() {
    for (kind, schema) in schemas() {
        walk("", &schema, &mut |path, node| {
            if let Some(format) = node["format"].as_str() {
                assert!(
                    ["int32", "int64", "date-time"].contains(&format),
                    "{kind}{path}: format {format}"
                );
            }
            assert!(node.get("nullable").is_none(), "{kind}{path}: null means absent");
            let described = path.is_empty() || path.ends_with("[]") || path.ends_with("{}") || path == ".status";
            let text = node["description"].as_str().unwrap_or_else(|| {
                assert!(described, "{kind}{path}: no description");
                "-"
            });
            for markup in ["[`", "crate::", "::name_of", "\n"] {
                assert!(!text.contains(markup), "{kind}{path}: {markup:?} in {text}");
            }
        });
    }
}

#[test]
fn conditions_are_merged_by_type() {
    let mut found = 0;
    for (_, schema) in schemas() {
        walk("", &schema, &mut |path, node| {
            if path.ends_with(".conditions") {
                assert_eq!(node["x-kubernetes-list-type"], "map");
                assert_eq!(node["x-kubernetes-list-map-keys"], json!(["type"]));
                found += 1;
            }
        });
    }
    assert_eq!(found, 4);
}
