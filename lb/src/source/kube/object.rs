//! An object of the API server, as far as this node reads it.
//!
//! Never lets one bad object stand in the way of the others: what cannot be read is an error of its own.

use std::sync::Arc;

use kube::core::DynamicObject;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A named object with a spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<S> {
    /// Its name.
    pub name: Arc<str>,
    /// Seconds since 1970 at which it was made; the oldest of two that want the same has it.
    pub created: i64,
    /// Its `resourceVersion` as a number (KEP-5504); 0 where it is none.
    pub revision: u64,
    /// What it says, or why that cannot be read.
    pub spec: Result<S, Arc<str>>,
}

impl<S: DeserializeOwned> Object<S> {
    /// Reads what the API server sent.
    pub fn read(mut raw: DynamicObject) -> Self {
        let spec = raw
            .data
            .get_mut("spec")
            .map(serde_json::Value::take)
            .unwrap_or_default();
        let created = raw.metadata.creation_timestamp.map_or(0, |time| time.0.as_second());
        Self {
            name: raw.metadata.name.unwrap_or_default().into(),
            created,
            revision: revision(raw.metadata.resource_version.as_deref()),
            spec: serde_json::from_value(spec).map_err(|error| error.to_string().into()),
        }
    }
}

/// A `resourceVersion` as a number.
pub fn revision(text: Option<&str>) -> u64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// As it stands in the cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptObject<S> {
    name: Arc<str>,
    created: i64,
    revision: u64,
    spec: S,
}

impl<S> KeptObject<S> {
    pub(super) fn new(name: &Arc<str>, created: i64, revision: u64, spec: S) -> Self {
        Self {
            name: Arc::clone(name),
            created,
            revision,
            spec,
        }
    }

    pub(super) fn map<T>(self, spec: impl FnOnce(S) -> T) -> Object<T> {
        Object {
            name: self.name,
            created: self.created,
            revision: self.revision,
            spec: Ok(spec(self.spec)),
        }
    }
}
