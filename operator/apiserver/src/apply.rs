//! Server-side apply and `metadata.managedFields`, as structured-merge-diff does them.
//!
//! Never stores anything: live object and intent go in, the object that should be comes out.

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::fields::FieldSet;
use crate::merge::{Difference, leaves, merge, remove};
use crate::shape::Shape;

/// Who writes, and through which door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    pub(crate) manager: String,
    pub(crate) apply: bool,
    pub(crate) subresource: String,
    pub(crate) api_version: String,
    /// RFC 3339, seconds.
    pub(crate) now: String,
}

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Manager {
    writer: Writer,
    fields: FieldSet,
}

impl Manager {
    fn same_as(&self, writer: &Writer) -> bool {
        let mine = &self.writer;
        (&mine.manager, mine.apply, &mine.subresource, &mine.api_version)
            == (&writer.manager, writer.apply, &writer.subresource, &writer.api_version)
    }

    fn parse(entry: &Value) -> Option<Self> {
        let text = |name: &str| entry[name].as_str().unwrap_or("").to_owned();
        let operation = entry["operation"].as_str()?;
        Some(Self {
            writer: Writer {
                manager: text("manager"),
                apply: operation == "Apply",
                subresource: text("subresource"),
                api_version: text("apiVersion"),
                now: text("time"),
            },
            fields: FieldSet::from_json(&entry["fieldsV1"]),
        })
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.writer.manager,
            "operation": if self.writer.apply { "Apply" } else { "Update" },
            "apiVersion": self.writer.api_version,
            "time": self.writer.now,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if !self.writer.subresource.is_empty() {
            entry["subresource"] = self.writer.subresource.clone().into();
        }
        entry
    }
}

fn managers(object: &Value) -> Vec<Manager> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().filter_map(Manager::parse).collect()
}

fn with_managers(object: &mut Value, mut managers: Vec<Manager>) {
    managers.retain(|manager| !manager.fields.is_empty());
    managers.sort_by(|a, b| {
        let order = |m: &Manager| (!m.writer.apply, m.writer.now.clone(), m.writer.manager.clone());
        order(a).cmp(&order(b))
    });
    let entries: Vec<Value> = managers.iter().map(Manager::to_json).collect();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        if !entries.is_empty() {
            metadata.insert("managedFields".into(), entries.into());
        }
    }
}

/// Fields that nobody owns.
const UNOWNED: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// Drops what nobody owns from a set of fields.
fn owned(mut set: FieldSet) -> FieldSet {
    set.children.remove("f:apiVersion");
    set.children.remove("f:kind");
    if let Some(metadata) = set.children.get_mut("f:metadata") {
        metadata.member = false;
        for name in UNOWNED {
            metadata.children.remove(&format!("f:{name}"));
        }
    }
    set.prune();
    set
}

/// `config` without `metadata.managedFields` and the like, which apply never changes.
fn intent(config: &Value) -> Value {
    let mut config = config.clone();
    drop_nulls(&mut config);
    if let Some(metadata) = config["metadata"].as_object_mut() {
        for name in UNOWNED.iter().skip(2) {
            metadata.remove(*name);
        }
    }
    config
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, child| !child.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Applies `config` as `writer` to `live`. The result has the new `managedFields`.
///
/// # Errors
/// 409 that lists all fields that others own with another value, unless `force`.
pub(crate) fn apply(
    live: &Value,
    config: &Value,
    shape: &Shape,
    writer: &Writer,
    force: bool,
) -> Result<Value, Failure> {
    let config = intent(config);
    check_lists(&config, shape, "")?;
    let mut merged = merge(Some(live), &config, shape);
    let mut all = managers(live);
    let mut set = FieldSet::default();
    leaves(&config, shape, &mut set);
    let set = owned(set);

    let changed = owned(Difference::between(live, &merged, shape).changed);
    let mut conflicts = Vec::new();
    for other in all.iter_mut().filter(|other| !other.same_as(writer)) {
        let conflict = other.fields.intersection(&changed);
        if conflict.is_empty() {
            continue;
        }
        if force {
            other.fields.subtract(&conflict);
        } else {
            conflicts.extend(conflict.paths().into_iter().map(|path| (other.writer.clone(), path)));
        }
    }
    if !conflicts.is_empty() {
        return Err(conflict(&conflicts));
    }

    let before = all
        .iter()
        .position(|manager| manager.same_as(writer))
        .map(|i| all.remove(i));
    let mut kept = set.clone();
    all.iter().for_each(|other| kept.union(&other.fields));
    if let Some(before) = &before {
        let mut gone = before.fields.with_parents();
        gone.subtract(&kept.with_parents());
        remove(&mut merged, &gone, shape);
    }
    let time = before
        .filter(|before| before.fields == set)
        .map(|before| before.writer.now);
    let writer = Writer {
        now: time.unwrap_or_else(|| writer.now.clone()),
        ..writer.clone()
    };
    all.push(Manager { writer, fields: set });
    with_managers(&mut merged, all);
    Ok(merged)
}

/// Notes in `new` that `writer` changed `live` into it without applying.
pub(crate) fn update(live: &Value, new: &mut Value, shape: &Shape, writer: &Writer) {
    let given = new["metadata"]["managedFields"].as_array().cloned();
    let mut all = match &given {
        // An empty entry is the way to start over.
        Some(entries) if entries.len() == 1 && entries[0].as_object().is_some_and(serde_json::Map::is_empty) => {
            Vec::new()
        }
        Some(entries) if !entries.is_empty() => entries.iter().filter_map(Manager::parse).collect(),
        Some(_) | None => managers(live),
    };
    let difference = Difference::between(live, new, shape);
    let (changed, removed) = (owned(difference.changed), owned(difference.removed));
    if !changed.is_empty() || !removed.is_empty() {
        let mine = all
            .iter()
            .position(|manager| manager.same_as(writer))
            .map(|i| all.remove(i));
        for other in &mut all {
            other.fields.subtract(&changed);
            other.fields.subtract(&removed);
        }
        let before = mine.clone().map(|mine| mine.fields).unwrap_or_default();
        let mut fields = before.clone();
        fields.subtract(&removed);
        fields.union(&changed);
        let now = match mine {
            Some(mine) if fields == before => mine.writer.now,
            Some(_) | None => writer.now.clone(),
        };
        all.push(Manager {
            writer: Writer { now, ..writer.clone() },
            fields,
        });
    }
    with_managers(new, all);
}

fn conflict(conflicts: &[(Writer, String)]) -> Failure {
    let said = |writer: &Writer| {
        let door = match writer.subresource.as_str() {
            "" => String::new(),
            subresource => format!(" with subresource \"{subresource}\""),
        };
        let version = if writer.apply {
            String::new()
        } else {
            format!(" using {}", writer.api_version)
        };
        format!("conflict with \"{}\"{door}{version}", writer.manager)
    };
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(writer, path)| json!({"reason": "FieldManagerConflict", "message": said(writer), "field": path}))
        .collect();
    let message = if let [(writer, path)] = conflicts {
        format!("Apply failed with 1 conflict: {}: {path}", said(writer))
    } else {
        let lines: Vec<String> = conflicts
            .iter()
            .map(|(writer, path)| format!("{}:\n- {path}", said(writer)))
            .collect();
        format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
    };
    Failure {
        code: 409,
        reason: "Conflict",
        message,
        details: json!({"causes": causes}),
    }
}

/// Lists with keys must have them, once each.
fn check_lists(value: &Value, shape: &Shape, path: &str) -> Result<(), Failure> {
    use crate::shape::Rule;
    match value {
        Value::Object(map) => map
            .iter()
            .try_for_each(|(name, child)| check_lists(child, shape.field(name), &format!("{path}.{name}"))),
        Value::Array(items) => {
            let mut seen = std::collections::BTreeSet::new();
            for item in items {
                let unmergeable = |why: String| {
                    let message = format!("failed to create manager for existing fields: {path}: {why}");
                    Failure::new(500, "InternalError", message)
                };
                match &shape.rule {
                    Rule::Keyed(keys) => {
                        let missing =
                            |(key, default): &&(String, Option<Value>)| item.get(key).is_none() && default.is_none();
                        if let Some((key, _)) = keys.iter().find(missing) {
                            let why = format!(
                                "element 0: associative list with keys has an element that omits key field \"{key}\" (and doesn't have default value)"
                            );
                            return Err(unmergeable(why));
                        }
                    }
                    Rule::Set => {}
                    Rule::Deduced | Rule::Atomic => continue,
                }
                let element = shape.element(item);
                if !seen.insert(element.clone()) {
                    return Err(unmergeable(format!("duplicate entries for key [{element}]")));
                }
                check_lists(item, shape.item(), &format!("{path}[{element}]"))?;
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(manager: &str, apply: bool) -> Writer {
        Writer {
            manager: manager.into(),
            apply,
            subresource: String::new(),
            api_version: "v1".into(),
            now: "2024-01-01T00:00:00Z".into(),
        }
    }

    fn config(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
    }

    fn applied(live: &Value, manager: &str, data: Value, force: bool) -> Result<Value, Failure> {
        apply(
            live,
            &config(data),
            Shape::of_builtin("ConfigMap"),
            &writer(manager, true),
            force,
        )
    }

    #[test]
    fn a_field_that_its_only_manager_no_longer_applies_is_dropped() {
        let one = applied(&json!({"metadata": {}}), "m", json!({"a": "1", "b": "2"}), false).unwrap();
        let two = applied(&one, "m", json!({"a": "1"}), false).unwrap();
        assert_eq!(two["data"], json!({"a": "1"}));
    }

    #[test]
    fn a_shared_field_stays_until_the_last_manager_lets_go() {
        let one = applied(&json!({"metadata": {}}), "m", json!({"a": "1"}), false).unwrap();
        let two = applied(&one, "n", json!({"a": "1"}), false).unwrap();
        let three = applied(&two, "m", json!({"x": "1"}), false).unwrap();
        assert_eq!(three["data"], json!({"a": "1", "x": "1"}));
        let four = applied(&three, "n", json!({"y": "1"}), false).unwrap();
        assert_eq!(four["data"], json!({"x": "1", "y": "1"}));
    }

    #[test]
    fn a_conflict_names_manager_and_field_and_force_takes_over() {
        let one = applied(&json!({"metadata": {}}), "m", json!({"a": "1"}), false).unwrap();
        let refused = applied(&one, "n", json!({"a": "2"}), false).unwrap_err();
        assert_eq!(
            refused.message,
            "Apply failed with 1 conflict: conflict with \"m\": .data.a"
        );
        assert_eq!(refused.details["causes"][0]["reason"], "FieldManagerConflict");
        let two = applied(&one, "n", json!({"a": "2"}), true).unwrap();
        assert_eq!(two["data"]["a"], "2");
        let entries = two["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!(entries.len(), 1, "the first owns nothing any more: {entries:?}");
    }

    #[test]
    fn the_same_apply_again_changes_nothing() {
        let one = applied(&json!({"metadata": {}}), "m", json!({"a": "1"}), false).unwrap();
        assert_eq!(applied(&one, "m", json!({"a": "1"}), false).unwrap(), one);
    }

    #[test]
    fn an_update_takes_what_it_changes_and_leaves_the_rest() {
        let one = applied(&json!({"metadata": {}}), "m", json!({"a": "1", "b": "1"}), false).unwrap();
        let mut two = one.clone();
        two["data"]["a"] = "2".into();
        update(&one, &mut two, Shape::of_builtin("ConfigMap"), &writer("u", false));
        let refused = applied(&two, "m", json!({"a": "1", "b": "1"}), false).unwrap_err();
        assert_eq!(
            refused.message,
            "Apply failed with 1 conflict: conflict with \"u\" using v1: .data.a"
        );
        applied(&two, "m", json!({"a": "2", "b": "1"}), false).unwrap();
    }
}
