//! Who asks.
//!
//! Never checks a password: a bearer token is looked up in a table that tests fill.

use std::collections::BTreeMap;

/// What a bearer token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `system:serviceaccount:vipline-system:vipline-operator`
    pub username: String,
    /// `system:masters` may do everything.
    pub groups: Vec<String>,
    /// `authentication.kubernetes.io/node-name` and the like.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// Who may do everything.
    pub fn admin() -> Self {
        Self {
            username: "system:admin".into(),
            groups: vec!["system:masters".into(), "system:authenticated".into()],
            extra: BTreeMap::new(),
        }
    }

    /// A service account, with the groups that a real server gives it.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self {
            username: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".into(),
            ],
            extra: BTreeMap::new(),
        }
    }

    /// The same, with a token bound to a pod on `node`.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        self.extra
            .insert("authentication.kubernetes.io/node-name".into(), vec![node.to_owned()]);
        self
    }

    pub(crate) fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }
}
