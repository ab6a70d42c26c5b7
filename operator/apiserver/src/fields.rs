//! Sets of fields: who owns what in an object, in the form of `fieldsV1`.
//!
//! Never looks at values: a path is made of elements such as `f:spec`, `k:{"type":"Ready"}` and `v:"a-finalizer"`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A tree of paths. The root itself is never a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// Whether the path that ends here is in the set.
    pub(crate) member: bool,
    pub(crate) children: BTreeMap<String, Self>,
}

impl FieldSet {
    /// Reads `fieldsV1`; what is not an object is nothing.
    pub(crate) fn from_json(value: &Value) -> Self {
        let mut set = Self::default();
        for (element, child) in value.as_object().into_iter().flatten() {
            if element == "." {
                set.member = true;
            } else {
                let mut child = Self::from_json(child);
                child.member |= child.children.is_empty();
                set.children.insert(element.clone(), child);
            }
        }
        set
    }

    /// Writes `fieldsV1`.
    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.clone(), child.to_json());
        }
        Value::Object(map)
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// The set below `element`, made if it is not there. Call [`Self::prune`] after it if nothing may have been put in.
    pub(crate) fn child(&mut self, element: &str) -> &mut Self {
        if !self.children.contains_key(element) {
            self.children.insert(element.to_owned(), Self::default());
        }
        self.children.entry(element.to_owned()).or_default()
    }

    /// Drops branches without members.
    pub(crate) fn prune(&mut self) {
        self.children.retain(|_, child| {
            child.prune();
            !child.is_empty()
        });
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (element, theirs) in &other.children {
            self.child(element).union(theirs);
        }
    }

    /// Takes out the members of `other`.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        self.children.retain(|element, child| {
            if let Some(theirs) = other.children.get(element) {
                child.subtract(theirs);
            }
            !child.is_empty()
        });
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self {
            member: self.member && other.member,
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                let common = child.intersection(theirs);
                if !common.is_empty() {
                    both.children.insert(element.clone(), common);
                }
            }
        }
        both
    }

    /// With every named field on the way to a member a member too.
    pub(crate) fn with_parents(&self) -> Self {
        let mut set = self.clone();
        set.add_parents();
        set
    }

    fn add_parents(&mut self) {
        for (element, child) in &mut self.children {
            child.add_parents();
            child.member |= element.starts_with("f:");
        }
    }

    /// Paths of all members, as conflicts are written: `.spec.ports[port=80,protocol="TCP"].nodePort`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: &mut String, paths: &mut Vec<String>) {
        if self.member {
            paths.push(path.clone());
        }
        for (element, child) in &self.children {
            let length = path.len();
            path.push_str(&spoken(element));
            child.collect(path, paths);
            path.truncate(length);
        }
    }
}

fn spoken(element: &str) -> String {
    if let Some(name) = element.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(keys) = element.strip_prefix("k:")
        && let Ok(Value::Object(keys)) = serde_json::from_str(keys)
    {
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        return format!("[{}]", keys.join(","));
    }
    format!("[={}]", element.strip_prefix("v:").unwrap_or(element))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_read_and_written_in_the_same_form() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
        let set = FieldSet::from_json(&text);
        assert_eq!(set.to_json(), text);
        let paths = set.paths();
        assert!(paths.contains(&".metadata.finalizers[=\"x\"]".to_owned()), "{paths:?}");
        assert!(
            paths.contains(&".spec.ports[port=80,protocol=\"TCP\"].port".to_owned()),
            "{paths:?}"
        );
        assert!(paths.contains(&".metadata.labels".to_owned()), "{paths:?}");
        assert!(!paths.contains(&".spec".to_owned()), "{paths:?}");
    }

    #[test]
    fn sets_are_joined_and_taken_apart() {
        let a = FieldSet::from_json(&json!({"f:a": {"f:x": {}, "f:y": {}}}));
        let b = FieldSet::from_json(&json!({"f:a": {"f:y": {}, "f:z": {}}, "f:b": {}}));
        assert_eq!(a.intersection(&b).to_json(), json!({"f:a": {"f:y": {}}}));
        let mut rest = a.clone();
        rest.subtract(&b);
        assert_eq!(rest.to_json(), json!({"f:a": {"f:x": {}}}));
        let mut all = a.clone();
        all.union(&b);
        all.subtract(&a);
        all.subtract(&b);
        assert!(all.is_empty());
    }
}
