//! An object of the API server, as far as this node reads it.
//!
//! Never lets one bad object stand in the way of the others: what cannot be read is an error of its own.

use std::{borrow::Cow, marker::PhantomData, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Resource;
use operator_api::{NodeSetSpec, TunnelConfigSpec, VipTableSpec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// An object of kind `K` as the API server sent it, spec and status not read yet.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
pub struct Received<K> {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
    #[serde(skip)]
    kind: PhantomData<K>,
}

impl<K: Resource<DynamicType = ()>> Resource for Received<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

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

/// What is read of an object.
pub trait Says: Sized {
    /// From spec and status, each null where there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn read(spec: Value, status: Value) -> serde_json::Result<Self>;
}

macro_rules! specs_alone {
    ($($spec:ty),+) => {
        $(impl Says for $spec {
            fn read(spec: Value, _: Value) -> serde_json::Result<Self> {
                serde_json::from_value(spec)
            }
        })+
    };
}

specs_alone!(VipTableSpec, NodeSetSpec, TunnelConfigSpec);

impl<S: DeserializeOwned, T: DeserializeOwned> Says for (S, Option<T>) {
    fn read(spec: Value, status: Value) -> serde_json::Result<Self> {
        Ok((serde_json::from_value(spec)?, serde_json::from_value(status)?))
    }
}

impl<S: Says> Object<S> {
    /// Reads what the API server sent.
    pub fn read<K>(received: Received<K>) -> Self {
        let Received {
            metadata, spec, status, ..
        } = received;
        Self {
            name: metadata.name.unwrap_or_default().into(),
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            revision: revision(metadata.resource_version.as_deref()),
            spec: S::read(spec, status).map_err(|error| error.to_string().into()),
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
