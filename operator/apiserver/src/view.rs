//! In which form objects are answered: as they are, as metadata only, or as rows of a table.
//!
//! Never changes what is stored.

use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::events;
use crate::resource::Resource;
use crate::store::Stored;
use crate::table;

/// The form that a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The whole object.
    Object,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `Table`: what `kubectl get` prints.
    Table,
}

impl View {
    /// By the `Accept` header; the first form that is known counts.
    pub(crate) fn accepted(header: &str) -> Self {
        for part in header.split(',') {
            if part.contains("as=Table") && part.contains("v=v1") && !part.contains("v=v1beta1") {
                return Self::Table;
            }
            if part.contains("as=PartialObjectMetadata") {
                return Self::Metadata;
            }
            if part.trim().starts_with("application/json") && !part.contains("as=") {
                return Self::Object;
            }
        }
        Self::Object
    }

    /// One object, as JSON.
    pub(crate) fn one(self, resource: &Resource, stored: &Stored) -> Bytes {
        match self {
            Self::Object if !translated(resource, &stored.value) => stored.json(),
            Self::Object => Bytes::from(self.value(resource, stored).to_string()),
            Self::Metadata | Self::Table => Bytes::from(self.value(resource, stored).to_string()),
        }
    }

    /// One object.
    pub(crate) fn value(self, resource: &Resource, stored: &Stored) -> Value {
        match self {
            Self::Object => spoken(resource, &stored.value),
            Self::Metadata => json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": stored.value["metadata"]}),
            Self::Table => table::table(resource, &[stored], &stored.revision.to_string()),
        }
    }

    /// A list, as JSON.
    pub(crate) fn list(self, resource: &Resource, items: &[&Stored], metadata: &Value) -> Bytes {
        if self == Self::Table {
            let mut table = table::table(resource, items, "");
            table["metadata"] = metadata.clone();
            return Bytes::from(table.to_string());
        }
        let (kind, version) = match self {
            Self::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
            Self::Object | Self::Table => (format!("{}List", resource.kind), resource.api_version()),
        };
        let mut text =
            format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":["#).into_bytes();
        for (i, stored) in items.iter().enumerate() {
            if i > 0 {
                text.push(b',');
            }
            text.extend_from_slice(&self.one(resource, stored));
        }
        text.extend_from_slice(b"]}");
        Bytes::from(text)
    }
}

/// Whether the object is kept in another version than it is asked for.
fn translated(resource: &Resource, value: &Value) -> bool {
    value["apiVersion"]
        .as_str()
        .is_some_and(|version| version != resource.api_version())
}

/// The object in the version that it is asked for.
pub(crate) fn spoken(resource: &Resource, value: &Value) -> Value {
    if !translated(resource, value) {
        return value.clone();
    }
    let mut value = value.clone();
    if resource.group == "events.k8s.io" {
        value = events::from_core(value);
    }
    value["apiVersion"] = resource.api_version().into();
    value
}
