//! Events in their two forms: one store, two groups.
//!
//! Never looks into an Event: fields have another name, and that is all.

use serde_json::Value;

/// Core name, `events.k8s.io` name.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// A core Event as one of `events.k8s.io`.
pub(crate) fn from_core(mut event: Value) -> Value {
    rename(&mut event, |(core, new)| (core, new));
    event["apiVersion"] = "events.k8s.io/v1".into();
    event
}

/// The reverse.
pub(crate) fn to_core(mut event: Value) -> Value {
    rename(&mut event, |(core, new)| (new, core));
    event["apiVersion"] = "v1".into();
    event
}

/// Any object in the form that it is kept in.
pub(crate) fn stored_form(object: Value) -> Value {
    if object["apiVersion"] == "events.k8s.io/v1" {
        to_core(object)
    } else {
        object
    }
}

fn rename<'a>(event: &mut Value, way: impl Fn((&'a str, &'a str)) -> (&'a str, &'a str)) {
    let Some(fields) = event.as_object_mut() else { return };
    for names in NAMES {
        let (from, to) = way(*names);
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
    // `reportingInstance` has the same name in both, and core's reporting fields are always written.
}
