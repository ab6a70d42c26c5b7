//! Label and field selectors.
//!
//! Never guesses: a selector that cannot be read, or a field that cannot be selected by, is refused.

use serde_json::Value;

use crate::failure::Failure;
use crate::resource::Resource;

/// What a list or watch is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In { key: String, values: Vec<String> },
    NotIn { key: String, values: Vec<String> },
    Exists { key: String },
    Absent { key: String },
    Greater { key: String, than: i64 },
    Less { key: String, than: i64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldRequirement {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    pub(crate) fn parse(labels: Option<&str>, fields: Option<&str>, resource: &Resource) -> Result<Self, Failure> {
        Ok(Self {
            labels: parse_labels(labels.unwrap_or(""))?,
            fields: parse_fields(fields.unwrap_or(""), resource)?,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|requirement| requirement.holds(labels))
            && self
                .fields
                .iter()
                .all(|field| (field_value(object, &field.path) == field.value) == field.equal)
    }
}

fn field_value(object: &Value, path: &str) -> String {
    let mut at = object;
    for key in path.split('.') {
        at = &at[key];
    }
    match at {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => String::new(),
    }
}

impl Requirement {
    fn holds(&self, labels: &Value) -> bool {
        let of = |key: &str| labels.get(key).and_then(Value::as_str);
        let number = |key: &str| of(key).and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::In { key, values } => of(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn { key, values } => of(key).is_none_or(|value| values.iter().all(|v| v != value)),
            Self::Exists { key } => of(key).is_some(),
            Self::Absent { key } => of(key).is_none(),
            Self::Greater { key, than } => number(key).is_some_and(|value| value > *than),
            Self::Less { key, than } => number(key).is_some_and(|value| value < *than),
        }
    }
}

fn unreadable(text: &str) -> Failure {
    Failure::bad_request(format!("unable to parse requirement: found '{text}'"))
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, Failure> {
    split_outside_brackets(text)
        .into_iter()
        .filter(|part| !part.trim().is_empty())
        .map(parse_label)
        .collect()
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _other => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_label(part: &str) -> Result<Requirement, Failure> {
    let part = part.trim();
    if let Some(open) = part.find('(') {
        let inside = part[open + 1..].strip_suffix(')').ok_or_else(|| unreadable(part))?;
        let values = inside.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = part[..open].split_whitespace();
        let (key, operator) = (words.next(), words.next());
        let key = key.ok_or_else(|| unreadable(part))?.to_owned();
        return match (operator, words.next()) {
            (Some("in"), None) => Ok(Requirement::In { key, values }),
            (Some("notin"), None) => Ok(Requirement::NotIn { key, values }),
            _other => Err(unreadable(part)),
        };
    }
    for (sign, negative) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = part.split_once(sign) {
            let (key, values) = (checked_key(key)?, vec![value.trim().to_owned()]);
            return Ok(if negative {
                Requirement::NotIn { key, values }
            } else {
                Requirement::In { key, values }
            });
        }
    }
    for (sign, greater) in [('>', true), ('<', false)] {
        if let Some((key, value)) = part.split_once(sign) {
            let than = value.trim().parse().map_err(|_| unreadable(part))?;
            let key = checked_key(key)?;
            return Ok(if greater {
                Requirement::Greater { key, than }
            } else {
                Requirement::Less { key, than }
            });
        }
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent { key: checked_key(key)? }),
        None => Ok(Requirement::Exists {
            key: checked_key(part)?,
        }),
    }
}

fn checked_key(key: &str) -> Result<String, Failure> {
    let key = key.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(good) {
        return Err(unreadable(key));
    }
    Ok(key.to_owned())
}

fn parse_fields(text: &str, resource: &Resource) -> Result<Vec<FieldRequirement>, Failure> {
    let mut fields = Vec::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (path, value, true)
        } else {
            return Err(Failure::bad_request(format!(
                "invalid selector: '{text}'; can't understand '{part}'"
            )));
        };
        let path = path.trim();
        let namespaced = resource.namespaced && path == "metadata.namespace";
        if path != "metadata.name" && !namespaced && !selectable(resource).contains(&path) {
            return Err(Failure::bad_request(format!("field label not supported: {path}")));
        }
        fields.push(FieldRequirement {
            path: core_path(path).to_owned(),
            value: value.trim().to_owned(),
            equal,
        });
    }
    Ok(fields)
}

/// What can be selected by beside name and namespace.
fn selectable(resource: &Resource) -> &'static [&'static str] {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "status.phase",
            "status.podIP",
        ],
        ("", "secrets") => &["type"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        _other => &[],
    }
}

/// Events are kept in their core form.
fn core_path(path: &str) -> &str {
    match path {
        "regarding.kind" => "involvedObject.kind",
        "regarding.namespace" => "involvedObject.namespace",
        "regarding.name" => "involvedObject.name",
        "regarding.uid" => "involvedObject.uid",
        "regarding.apiVersion" => "involvedObject.apiVersion",
        "reportingController" => "reportingComponent",
        "source" => "source.component",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Registry;

    fn matches(selector: &str) -> bool {
        let services = Registry::builtin().named("services").unwrap();
        let object = json!({"metadata": {"labels": {"app": "a", "n": "5", "x/y": ""}}});
        Selector::parse(Some(selector), None, &services)
            .unwrap()
            .matches(&object)
    }

    #[test]
    fn every_operator_selects_by_labels() {
        for yes in [
            "app=a",
            "app==a",
            "app!=b",
            "app in (a,b)",
            "app notin (b, c)",
            "app",
            "!b",
            "n>4",
            "n<6",
            "b!=a",
            "b notin (a)",
            "x/y",
            "x/y=",
            "app=a,n=5",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [
            "app=b",
            "app!=a",
            "app in (b)",
            "app notin (a)",
            "b",
            "!app",
            "n>5",
            "n<5",
            "app=a,n=6",
        ] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn a_field_that_cannot_be_selected_by_is_refused() {
        let services = Registry::builtin().named("services").unwrap();
        let refused = Selector::parse(None, Some("spec.ports=1"), &services).unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (400, "field label not supported: spec.ports")
        );
        assert!(Selector::parse(Some("a b c"), None, &services).is_err());
    }
}
