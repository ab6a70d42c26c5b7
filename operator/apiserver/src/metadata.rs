//! `metadata`: names, namespaces, finalizers, and what a client may not change.
//!
//! Never looks at spec or status.

use serde_json::{Map, Value, json};

use crate::failure::{Cause, Failure};
use crate::kinds::drop_metadata;
use crate::resource::Resource;
use crate::store::State;
use crate::writes::Request;

/// Metadata is an object, and labels and annotations are strings.
pub(crate) fn decode(object: &mut Value) -> Result<(), Failure> {
    match &mut object["metadata"] {
        metadata @ Value::Null => *metadata = Value::Object(Map::new()),
        Value::Object(metadata) => {
            metadata.retain(|_, value| !value.is_null());
            for field in ["labels", "annotations"] {
                let Some(map) = metadata.get_mut(field) else { continue };
                let Some(strings) = map.as_object_mut() else {
                    return Err(Failure::bad_request(format!(
                        "json: cannot unmarshal metadata.{field}: not an object"
                    )));
                };
                strings.retain(|_, value| !value.is_null());
                if let Some((key, _)) = strings.iter().find(|(_, value)| !value.is_string()) {
                    return Err(Failure::bad_request(format!(
                        "json: cannot unmarshal metadata.{field}.{key}: not a string"
                    )));
                }
                if strings.is_empty() {
                    metadata.remove(field);
                }
            }
            for field in ["finalizers", "ownerReferences"] {
                if metadata
                    .get(field)
                    .is_some_and(|list| list.as_array().is_some_and(Vec::is_empty))
                {
                    metadata.remove(field);
                }
            }
        }
        _other => return Err(Failure::bad_request("json: cannot unmarshal metadata: not an object")),
    }
    Ok(())
}

/// An object's namespace is that of its path.
pub(crate) fn place(object: &mut Value, request: &Request<'_>) -> Result<(), Failure> {
    let given = object["metadata"]["namespace"].as_str().unwrap_or("");
    if !given.is_empty() && given != request.namespace {
        return Err(Failure::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request: {given}, {}",
            request.namespace
        )));
    }
    if request.resource.namespaced {
        object["metadata"]["namespace"] = request.namespace.into();
    } else {
        drop_metadata(object, "namespace");
    }
    Ok(())
}

/// Makes a name of `generateName`.
pub(crate) fn give_name(state: &mut State, request: &Request<'_>, object: &mut Value) -> Result<(), Failure> {
    let metadata = &object["metadata"];
    if metadata["name"].as_str().is_some_and(|name| !name.is_empty()) {
        return Ok(());
    }
    let Some(prefix) = metadata["generateName"].as_str().filter(|prefix| !prefix.is_empty()) else {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(Failure::invalid(
            &request.resource.group,
            &request.resource.kind,
            "",
            &[cause],
        ));
    };
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut number = state.number();
    let mut name = prefix.to_owned();
    for _ in 0..5 {
        let i = usize::try_from(number % LETTERS.len() as u64).unwrap_or(0);
        name.push(char::from(LETTERS[i]));
        number /= LETTERS.len() as u64;
    }
    object["metadata"]["name"] = name.into();
    Ok(())
}

/// Nothing is made in a namespace that is not there or about to go.
pub(crate) fn check_namespace(state: &State, request: &Request<'_>, name: &str) -> Result<(), Failure> {
    let namespace = request.namespace;
    let Some(found) = state.find("namespaces", "", namespace) else {
        return Err(Failure::not_found("", "namespaces", namespace));
    };
    if found.value["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut failure = Failure::forbidden(&request.resource.group, &request.resource.plural, name, why);
    failure.details["causes"] = json!([{
        "reason": "NamespaceTerminating", "field": "metadata.namespace",
        "message": format!("namespace {namespace} is being terminated"),
    }]);
    Err(failure)
}

/// What a new object gets.
pub(crate) fn begin(state: &mut State, request: &Request<'_>, object: &mut Value) {
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
        "generation",
    ] {
        drop_metadata(object, field);
    }
    object["metadata"]["uid"] = state.uid().into();
    object["metadata"]["creationTimestamp"] = request.now.clone().into();
    if request.resource.generation {
        object["metadata"]["generation"] = 1.into();
    }
}

/// What an object keeps, whatever a client says.
pub(crate) fn keep(live: &Value, object: &mut Value) {
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
    ] {
        match live["metadata"].get(field) {
            Some(value) => object["metadata"][field] = value.clone(),
            None => drop_metadata(object, field),
        }
    }
}

/// Finalizers, also those of a Namespace's spec.
pub(crate) fn has_finalizers(object: &Value) -> bool {
    let some = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    some(&object["metadata"]["finalizers"]) || (object["kind"] == "Namespace" && some(&object["spec"]["finalizers"]))
}

/// Whether an object is marked as deleted and nothing holds it any more.
pub(crate) fn is_finished(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(object)
}

pub(crate) fn validate(resource: &Resource, live: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or("");
    if live.is_none()
        && let Some(detail) = name_problem(resource, name)
    {
        causes.push(Cause::invalid("metadata.name", &metadata["name"], detail));
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if !is_qualified_name(key) {
            causes.push(Cause::invalid("metadata.labels", &key.as_str().into(), QUALIFIED_NAME));
        }
        if !is_label_value(value.as_str().unwrap_or("")) {
            causes.push(Cause::invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    let mut annotations = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        annotations += key.len() + value.as_str().unwrap_or("").len();
        if !is_qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &key.as_str().into(),
                QUALIFIED_NAME,
            ));
        }
    }
    if annotations > 256 * 1024 {
        causes.push(Cause::too_long("metadata.annotations", 256 * 1024));
    }
    let names = |object: &Value| -> Vec<String> {
        let list = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let finalizers = names(object);
    for (i, finalizer) in finalizers.iter().enumerate() {
        let builtin = ["orphan", "foregroundDeletion"].contains(&finalizer.as_str());
        if !is_qualified_name(finalizer) || (!finalizer.contains('/') && !builtin) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            // A real server only warns about a finalizer without a slash where it is a custom resource's.
            if resource.custom.is_none() || !is_qualified_name(finalizer) {
                let path = format!("metadata.finalizers[{i}]");
                causes.push(Cause::invalid(path, &finalizer.as_str().into(), detail));
            }
        }
    }
    if let Some(live) = live.filter(|live| !live["metadata"]["deletionTimestamp"].is_null()) {
        let before = names(live);
        let new: Vec<String> = finalizers
            .into_iter()
            .filter(|name| !before.contains(name))
            .map(|n| format!("{n:?}"))
            .collect();
        if !new.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                new.join(", ")
            );
            causes.push(Cause::forbidden("metadata.finalizers", detail));
        }
    }
    for (i, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                let path = format!("metadata.ownerReferences[{i}].{field}");
                causes.push(Cause::invalid(path, &json!(""), "must not be empty"));
            }
        }
    }
}

const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
    and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
    must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
    and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
    is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn name_problem(resource: &Resource, name: &str) -> Option<&'static str> {
    match resource.plural.as_str() {
        // Any path segment will do.
        "clusterroles" | "clusterrolebindings" | "roles" | "rolebindings" => {
            (name == "." || name == ".." || name.contains(['/', '%'])).then_some("may not contain '/' or '%'")
        }
        "services" => (!is_label(name) || name.starts_with(|c: char| c.is_ascii_digit())).then_some(LABEL_1035),
        "namespaces" => (!is_label(name)).then_some(LABEL),
        _other => (!is_subdomain(name)).then_some(SUBDOMAIN),
    }
}

pub(crate) fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len()) && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

pub(crate) fn is_subdomain(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good =
        |part: &str| !part.is_empty() && part.chars().all(inner) && !part.starts_with('-') && !part.ends_with('-');
    text.len() <= 253 && text.split('.').all(good)
}

fn is_name_part(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: char| c.is_ascii_alphanumeric();
    (1..=63).contains(&text.len()) && text.chars().all(inner) && text.starts_with(edge) && text.ends_with(edge)
}

pub(crate) fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(text),
    }
}

pub(crate) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name_part(text)
}
