//! What a URL asks for.
//!
//! Never looks at what exists: `/apis/a/v1/b` is parsed the same whether there is such a thing or not.

/// Query parameters, decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(raw: &str) -> Self {
        Self(form_urlencoded::parse(raw.as_bytes()).into_owned().collect())
    }

    /// The first value; an empty one is none.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// As Go's `strconv.ParseBool` and the API machinery: present and not `false` or `0`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| value != "false" && value != "0")
    }

    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/healthz`, `/readyz`, `/livez`.
    Health,
    /// `/version`.
    Version,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/G`.
    Group(String),
    /// `/api/v1`, `/apis/G/V`.
    Resources { group: String, version: String },
    /// `/openapi/v3`.
    OpenApi,
    /// `/openapi/v3/apis/G/V`.
    OpenApiOf { group: String, version: String },
    /// Objects.
    Objects(Target),
    /// Nothing that is served.
    Unknown,
}

/// Objects that a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    /// Empty: cluster-scoped, or all namespaces.
    pub(crate) namespace: String,
    /// Empty: the collection.
    pub(crate) name: String,
    /// `status`, `scale`; empty: the object itself.
    pub(crate) subresource: String,
}

impl Route {
    pub(crate) fn parse(path: &str) -> Self {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        match segments.as_slice() {
            ["healthz" | "readyz" | "livez", ..] => Self::Health,
            ["version"] => Self::Version,
            ["api"] => Self::CoreVersions,
            ["apis"] => Self::Groups,
            ["apis", group] => Self::Group((*group).to_owned()),
            ["api", version] => Self::Resources {
                group: String::new(),
                version: (*version).to_owned(),
            },
            ["apis", group, version] => Self::Resources {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
            },
            ["openapi", "v3"] => Self::OpenApi,
            ["openapi", "v3", "api", version] => Self::OpenApiOf {
                group: String::new(),
                version: (*version).to_owned(),
            },
            ["openapi", "v3", "apis", group, version] => Self::OpenApiOf {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
            },
            ["api", version, rest @ ..] => Self::objects("", version, rest),
            ["apis", group, version, rest @ ..] => Self::objects(group, version, rest),
            _unknown => Self::Unknown,
        }
    }

    fn objects(group: &str, version: &str, rest: &[&str]) -> Self {
        let (namespace, rest) = match rest {
            // `/namespaces/x` and `/namespaces/x/status` are the Namespace itself.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let mut target = Target {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace: namespace.to_owned(),
            ..Target::default()
        };
        match rest {
            [plural] => target.plural = (*plural).to_owned(),
            [plural, name] => {
                target.plural = (*plural).to_owned();
                target.name = (*name).to_owned();
            }
            [plural, name, subresource] => {
                target.plural = (*plural).to_owned();
                target.name = (*name).to_owned();
                target.subresource = (*subresource).to_owned();
            }
            _other => return Self::Unknown,
        }
        Self::Objects(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Target {
        match Route::parse(path) {
            Route::Objects(target) => target,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn a_namespace_is_not_taken_for_the_place_of_an_object() {
        let it = target("/api/v1/namespaces/a");
        assert_eq!(
            (it.plural.as_str(), it.name.as_str(), it.namespace.as_str()),
            ("namespaces", "a", "")
        );
        let it = target("/api/v1/namespaces/a/status");
        assert_eq!((it.plural.as_str(), it.subresource.as_str()), ("namespaces", "status"));
        let it = target("/api/v1/namespaces/a/services/b/status");
        assert_eq!(
            (it.namespace.as_str(), it.name.as_str(), it.subresource.as_str()),
            ("a", "b", "status")
        );
        assert_eq!(
            target("/apis/discovery.k8s.io/v1/endpointslices").plural,
            "endpointslices"
        );
    }

    #[test]
    fn paths_that_are_too_long_are_unknown() {
        assert_eq!(Route::parse("/api/v1/namespaces/a/services/b/status/c"), Route::Unknown);
        assert_eq!(Route::parse("/nothing"), Route::Unknown);
    }
}
