//! Objects as they are read from an API server: without what nobody here reads.
//!
//! Never keeps `metadata.managedFields`. Who owns which field is about half of an object's bytes, an API server leaves it out of no
//! list, and read as what it is, it becomes a tree of small allocations that is thrown away at once.

use std::{borrow::Cow, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, IntoDeserializer as _, MapAccess, Visitor},
    forward_to_deserialize_any,
};

/// An object that is read without its `managedFields`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lean<K>(pub K);

impl<K: Resource> Resource for Lean<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Lean<K> {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> Result<Self, D::Error> {
        let what = What::Object;
        K::deserialize(Part { what, inner }).map(Self)
    }
}

/// Which part of an object is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// All of it.
    Object,
    /// Its metadata.
    Metadata,
}

/// What reads a part, and what its reader hands on.
struct Part<T> {
    what: What,
    inner: T,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Part<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (what, inner) = (self.what, visitor);
        self.inner.deserialize_any(Part { what, inner })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (what, inner) = (self.what, visitor);
        self.inner.deserialize_option(Part { what, inner })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Part<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let what = self.what;
        self.inner.visit_some(Part { what, inner })
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<V::Value, M::Error> {
        let (what, is_metadata) = (self.what, false);
        self.inner.visit_map(Fields { what, map, is_metadata })
    }
}

/// The fields of a part.
struct Fields<M> {
    what: What,
    map: M,
    /// The next value is the object's metadata.
    is_metadata: bool,
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, M: MapAccess<'de>> MapAccess<'de> for Fields<M> {
    type Error = M::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, M::Error> {
        while let Some(Name(name)) = self.map.next_key()? {
            if self.what == What::Metadata && name == "managedFields" {
                self.map.next_value::<IgnoredAny>()?;
                continue;
            }
            self.is_metadata = self.what == What::Object && name == "metadata";
            return seed.deserialize(name.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, M::Error> {
        if self.is_metadata {
            self.map.next_value_seed(Metadata(seed))
        } else {
            self.map.next_value_seed(seed)
        }
    }
}

/// What takes the metadata.
struct Metadata<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Metadata<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        let what = What::Metadata;
        self.0.deserialize(Part { what, inner })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube_core::Resource as _;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::Lean;
    use crate::{AddressClaim, VipTable};

    fn both<K: DeserializeOwned>(object: &Value) -> (Lean<K>, K) {
        let text = object.to_string();
        let (lean, whole) = (
            serde_json::from_str(&text).unwrap(),
            serde_json::from_str(&text).unwrap(),
        );
        (lean, whole)
    }

    fn service() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "w\u{e9}b", "namespace": "shop", "uid": "1", "resourceVersion": "7", "labels": {"managedFields": "a", "metadata": "b"},
                "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"], "unheard-of": {"managedFields": 1},
                "managedFields": [{"manager": "a", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:type": {}}}}],
            },
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "targetPort": "http"}], "selector": {"metadata": "managedFields"}},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
            "of-a-later-version": {"metadata": {"managedFields": 1}},
        })
    }

    #[test]
    fn all_is_read_but_managed_fields() {
        let (lean, mut whole) = both::<Service>(&service());
        assert!(whole.metadata.managed_fields.take().is_some(), "the control reads them");
        assert_eq!(lean.0, whole);
        assert_eq!(lean.meta().name.as_deref(), Some("w\u{e9}b"));
    }

    #[test]
    fn managed_fields_may_be_anything() {
        let mut object = service();
        object["metadata"]["managedFields"] = json!("of a later version");
        assert!(serde_json::from_value::<Service>(object.clone()).is_err());
        serde_json::from_value::<Lean<Service>>(object).unwrap();
    }

    #[test]
    fn our_own_kinds_are_read_alike() {
        let table = json!({
            "apiVersion": "vipline.dev/v1alpha1", "kind": "VipTable", "metadata": {"name": "shop.web", "managedFields": []},
            "spec": {
                "service": {"namespace": "shop", "name": "web", "uid": "1"},
                "addresses": [{"address": "203.0.113.1", "pool": "p", "use": "LoadBalancer"}],
                "ports": [{"protocol": "TCP", "port": 80}],
                "backends": {"nodeSet": {"name": "workers"}},
            },
        });
        let (lean, mut whole) = both::<VipTable>(&table);
        assert!(whole.metadata.managed_fields.take().is_some());
        assert_eq!(lean.0, whole);
        let claim = json!({"metadata": {"name": "203.0.113.1"}, "spec": {"address": "203.0.113.1", "pool": "p", "holders": []}});
        let (lean, whole) = both::<AddressClaim>(&claim);
        assert_eq!(lean.0, whole);
    }

    #[test]
    fn what_is_no_object_is_refused_in_the_same_words() {
        for text in [
            "3",
            r#"{"metadata": 3}"#,
            r#"{"metadata": {"name": 3}}"#,
            r#"{"metadata": {}"#,
            r#"{"spec": {}}"#,
        ] {
            let lean = serde_json::from_str::<Lean<VipTable>>(text).unwrap_err().to_string();
            let whole = serde_json::from_str::<VipTable>(text).unwrap_err().to_string();
            let words = |error: &str| error.split(" at line").next().unwrap_or_default().to_owned();
            assert_eq!(words(&lean), words(&whole), "{text}");
        }
        let error = serde_json::from_str::<Lean<VipTable>>("[]").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("invalid type: sequence, expected struct VipTable"),
            "{error}"
        );
        let (lean, whole) = both::<Service>(&json!({"metadata": null}));
        assert_eq!(lean.0, whole);
    }
}
