//! Values and sets of fields: merging, comparing, removing.
//!
//! Never knows who owns what: [`crate::apply`] does.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::fields::FieldSet;
use crate::shape::{Rule, Shape};

/// Whether `value` is owned as one at this place.
fn whole(value: &Value, shape: &Shape) -> bool {
    match value {
        Value::Object(_) => shape.rule == Rule::Atomic,
        Value::Array(_) => matches!(shape.rule, Rule::Atomic | Rule::Deduced),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

/// Puts the leaves of `value` in `set`: what somebody who applies it owns.
pub(crate) fn leaves(value: &Value, shape: &Shape, set: &mut FieldSet) {
    if whole(value, shape) {
        set.member = true;
        return;
    }
    match value {
        Value::Object(map) => {
            set.member |= map.is_empty();
            for (name, child) in map {
                leaves(child, shape.field(name), set.child(&format!("f:{name}")));
            }
        }
        Value::Array(items) => {
            for item in items {
                let below = set.child(&shape.element(item));
                below.member = true;
                if matches!(shape.rule, Rule::Keyed(_)) {
                    leaves(item, shape.item(), below);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Like [`leaves`], with every map and list on the way: what somebody who writes it anew changes.
fn everything(value: &Value, shape: &Shape, set: &mut FieldSet) {
    set.member = true;
    if whole(value, shape) {
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                everything(child, shape.field(name), set.child(&format!("f:{name}")));
            }
        }
        Value::Array(items) => {
            for item in items {
                let below = set.child(&shape.element(item));
                below.member = true;
                if matches!(shape.rule, Rule::Keyed(_)) {
                    everything(item, shape.item(), below);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `config` laid over `live`.
pub(crate) fn merge(live: Option<&Value>, config: &Value, shape: &Shape) -> Value {
    if whole(config, shape) {
        return config.clone();
    }
    match (live, config) {
        (Some(Value::Object(live)), Value::Object(config)) => {
            let mut merged = live.clone();
            for (name, child) in config {
                let value = merge(live.get(name), child, shape.field(name));
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (_, Value::Object(config)) => {
            let fresh: Map<String, Value> = config
                .iter()
                .map(|(name, child)| (name.clone(), merge(None, child, shape.field(name))))
                .collect();
            Value::Object(fresh)
        }
        (live, Value::Array(config)) => {
            let none = Vec::new();
            let live = live.and_then(Value::as_array).unwrap_or(&none);
            Value::Array(merge_lists(live, config, shape))
        }
        (_, other) => other.clone(),
    }
}

/// Items of `live` keep their places as far as the order of `config` lets them.
fn merge_lists(live: &[Value], config: &[Value], shape: &Shape) -> Vec<Value> {
    let live_elements: Vec<String> = live.iter().map(|item| shape.element(item)).collect();
    let config_elements: Vec<String> = config.iter().map(|item| shape.element(item)).collect();
    let (in_live, in_config): (BTreeSet<&String>, BTreeSet<&String>) =
        (live_elements.iter().collect(), config_elements.iter().collect());
    let (mut merged, mut l, mut c) = (Vec::new(), 0, 0);
    while l < live.len() || c < config.len() {
        if l < live.len() && !in_config.contains(&live_elements[l]) {
            merged.push(live[l].clone());
            l += 1;
        } else if c < config.len() {
            let element = &config_elements[c];
            if in_live.contains(element) {
                let place = live_elements.iter().position(|other| other == element);
                merged.push(merge(place.map(|place| &live[place]), &config[c], shape.item()));
                // Shared items of `live` come in the order of `config`: one of each is used up.
                if l < live.len() {
                    l += 1;
                }
            } else {
                merged.push(merge(None, &config[c], shape.item()));
            }
            c += 1;
        } else {
            l += 1;
        }
    }
    merged
}

/// What differs between two versions of an object.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Difference {
    /// Fields that came to be or have another value.
    pub(crate) changed: FieldSet,
    /// Fields that are gone.
    pub(crate) removed: FieldSet,
}

impl Difference {
    pub(crate) fn between(old: &Value, new: &Value, shape: &Shape) -> Self {
        let mut difference = Self::default();
        compare(
            Some(old),
            Some(new),
            shape,
            &mut difference.changed,
            &mut difference.removed,
        );
        difference.changed.prune();
        difference.removed.prune();
        difference
    }
}

fn compare(old: Option<&Value>, new: Option<&Value>, shape: &Shape, changed: &mut FieldSet, removed: &mut FieldSet) {
    match (old, new) {
        (None, None) => {}
        (None, Some(new)) => everything(new, shape, changed),
        (Some(old), None) => everything(old, shape, removed),
        (Some(old), Some(new)) if old == new => {}
        (Some(old), Some(new)) if whole(old, shape) || whole(new, shape) => {
            if whole(new, shape) {
                changed.member = true;
            } else {
                everything(new, shape, changed);
            }
        }
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let element = format!("f:{name}");
                compare(
                    old.get(name),
                    new.get(name),
                    shape.field(name),
                    changed.child(&element),
                    removed.child(&element),
                );
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            let find = |items: &[Value], element: &str| items.iter().position(|item| shape.element(item) == element);
            let elements: BTreeSet<String> = old.iter().chain(new).map(|item| shape.element(item)).collect();
            for element in elements {
                let (was, is) = (find(old, &element), find(new, &element));
                let (was, is) = (was.map(|i| &old[i]), is.map(|i| &new[i]));
                compare(was, is, shape.item(), changed.child(&element), removed.child(&element));
            }
        }
        (Some(_), Some(new)) => everything(new, shape, changed),
    }
}

/// Takes out of `value` what `set` names; a map or list that becomes empty stays unless it is named too.
pub(crate) fn remove(value: &mut Value, set: &FieldSet, shape: &Shape) {
    if whole(value, shape) {
        return;
    }
    match value {
        Value::Object(map) => {
            for (element, below) in &set.children {
                let Some(name) = element.strip_prefix("f:") else {
                    continue;
                };
                if below.member {
                    map.remove(name);
                } else if let Some(child) = map.get_mut(name) {
                    remove(child, below, shape.field(name));
                }
            }
        }
        Value::Array(items) => {
            items.retain(|item| set.children.get(&shape.element(item)).is_none_or(|below| !below.member));
            for item in items {
                if let Some(below) = set.children.get(&shape.element(item)) {
                    remove(item, below, shape.item());
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> &'static Shape {
        Shape::of_builtin("Service")
    }

    #[test]
    fn lists_with_keys_are_merged_and_others_replaced() {
        let live = json!({"spec": {"ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}, {"port": 81}]},
            "metadata": {"finalizers": ["a", "b"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "a"}, {"ip": "b"}]}}});
        let config = json!({"spec": {"ports": [{"port": 80, "name": "x"}, {"port": 82}]},
            "metadata": {"finalizers": ["c"]}, "status": {"loadBalancer": {"ingress": [{"ip": "c"}]}}});
        let merged = merge(Some(&live), &config, service());
        assert_eq!(
            merged,
            json!({"spec": {"ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP", "name": "x"}, {"port": 81},
                {"port": 82}]}, "metadata": {"finalizers": ["a", "b", "c"]},
                "status": {"loadBalancer": {"ingress": [{"ip": "c"}]}}})
        );
    }

    #[test]
    fn differences_name_leaves_and_new_containers() {
        let old = json!({"spec": {"a": 1, "b": 2}, "metadata": {"finalizers": ["x"]}});
        let new = json!({"spec": {"a": 2}, "metadata": {"labels": {"l": "1"}, "finalizers": ["y"]}});
        let difference = Difference::between(&old, &new, service());
        assert_eq!(
            difference.changed.to_json(),
            json!({"f:spec": {"f:a": {}},
                "f:metadata": {"f:labels": {".": {}, "f:l": {}}, "f:finalizers": {"v:\"y\"": {}}}})
        );
        assert_eq!(
            difference.removed.to_json(),
            json!({"f:spec": {"f:b": {}}, "f:metadata": {"f:finalizers": {"v:\"x\"": {}}}})
        );
    }

    #[test]
    fn named_fields_are_removed_and_others_stay() {
        let mut value = json!({"spec": {"ports": [{"port": 80, "nodePort": 1}, {"port": 81, "name": "x"}]}});
        let set = FieldSet::from_json(&json!({"f:spec": {"f:ports": {
            "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}},
            "k:{\"port\":81,\"protocol\":\"TCP\"}": {"f:name": {}}}}}));
        remove(&mut value, &set, service());
        assert_eq!(value, json!({"spec": {"ports": [{"port": 81}]}}));
    }
}
