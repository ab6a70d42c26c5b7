//! Custom resource definitions: what they make served.
//!
//! Never validates custom resources: [`crate::schema`] does.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cel::Rules;
use crate::resource::Resource;
use crate::shape::Shape;
use crate::store::{Key, State};

/// What is known of one version of a custom kind.
pub(crate) struct CustomKind {
    /// `openAPIV3Schema`.
    pub(crate) schema: Value,
    pub(crate) shape: Shape,
    pub(crate) columns: Vec<Value>,
    pub(crate) rules: Rules,
}

/// All versions of a definition, as they are served.
fn resources(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let texts = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
    let (group, plural, names) = (text(&spec["group"]), text(&spec["names"]["plural"]), &spec["names"]);
    let versions = spec["versions"].as_array().into_iter().flatten();
    versions
        .filter(|version| version["served"] == true)
        .map(|version| {
            let schema = version["schema"]["openAPIV3Schema"].clone();
            Resource {
                group: group.clone(),
                version: text(&version["name"]),
                plural: plural.clone(),
                singular: match names["singular"].as_str() {
                    Some(singular) if !singular.is_empty() => singular.to_owned(),
                    Some(_) | None => text(&names["kind"]).to_lowercase(),
                },
                kind: text(&names["kind"]),
                short_names: texts(&names["shortNames"]),
                categories: texts(&names["categories"]),
                namespaced: spec["scope"] == "Namespaced",
                status: version["subresources"]["status"].is_object(),
                generation: true,
                table: format!("{plural}.{group}"),
                decode: None,
                custom: Some(Arc::new(CustomKind {
                    shape: Shape::of_schema(&schema),
                    columns: version["additionalPrinterColumns"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default(),
                    rules: Rules::compile(&schema),
                    schema,
                })),
            }
        })
        .collect()
}

/// Takes note of a definition that was written: an established one is served as it says now.
pub(crate) fn written(state: &mut State, resource: &Resource, definition: &Value) {
    if resource.plural != "customresourcedefinitions" {
        return;
    }
    let group = definition["spec"]["group"].as_str().unwrap_or("");
    let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or("");
    let established = definition["status"]["conditions"].as_array().is_some_and(|conditions| {
        conditions
            .iter()
            .any(|c| c["type"] == "Established" && c["status"] == "True")
    });
    if established {
        state.registry.remove(group, plural);
        for resource in resources(definition) {
            state.registry.add(resource);
        }
    }
}

/// Takes note of a definition that is gone: its objects go with it, one by one.
pub(crate) fn removed(state: &mut State, resource: &Resource, definition: &Value) {
    if resource.plural == "customresourcedefinitions" {
        let group = definition["spec"]["group"].as_str().unwrap_or("");
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or("");
        let table = format!("{plural}.{group}");
        let keys: Vec<Key> = state.table(&table).objects.keys().cloned().collect();
        for key in keys {
            state.remove(&table, &key, None);
        }
        state.registry.remove(group, plural);
    }
}

/// Establishes a definition that was made: what a controller inside of a real server does a moment later.
pub(crate) fn establish(state: &mut State, key: &Key, now: &str) -> bool {
    let table = "customresourcedefinitions.apiextensions.k8s.io";
    let Some(live) = state.find(table, &key.0, &key.1) else {
        return false;
    };
    if live.value["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| !conditions.is_empty())
    {
        return false;
    }
    let mut definition = live.value.clone();
    let mut names = definition["spec"]["names"].clone();
    if names["singular"].as_str().is_none_or(str::is_empty) {
        names["singular"] = names["kind"].as_str().unwrap_or("").to_lowercase().into();
    }
    let stored: Vec<Value> = definition["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
    definition["status"] = json!({
        "acceptedNames": names,
        "storedVersions": stored,
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
    });
    let stored = state.put(table, key.clone(), definition);
    if let Some(resource) = state
        .registry
        .find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    {
        written(state, &resource, &stored.value);
    }
    true
}
