//! Says in words what the API server refused, and what to do about it.
//!
//! Never sends anything.

use std::fmt;

use kube::Error;
use operator_api::GROUP;

use crate::{
    decide::{About, Action, Note},
    index::Kind,
};

/// HTTP verbs in RBAC's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Verb {
    /// GET of a list, and GET of changes.
    ListWatch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH: merge and server-side apply.
    Patch,
    /// DELETE.
    Delete,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ListWatch => "list, watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        })
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// What is done.
    pub(super) verb: Verb,
    /// API group; empty: the core group.
    pub(super) group: &'static str,
    /// Resource, with its subresource: `services/status`.
    pub(super) resource: &'static str,
    /// Whether it is in the operator's namespace: a Role is enough.
    pub(super) own: bool,
}

impl Target {
    const fn new(verb: Verb, group: &'static str, resource: &'static str, own: bool) -> Self {
        Self {
            verb,
            group,
            resource,
            own,
        }
    }

    /// Of a watch.
    pub(super) const fn of_kind(kind: Kind) -> Self {
        let (group, resource, own) = match kind {
            Kind::Service => ("", "services", false),
            Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices", false),
            Kind::Node => ("", "nodes", false),
            Kind::Namespace => ("", "namespaces", false),
            Kind::Pool => (GROUP, "addresspools", false),
            Kind::Claim => (GROUP, "addressclaims", false),
            Kind::Table => (GROUP, "viptables", true),
            Kind::NodeSet => (GROUP, "nodesets", true),
            Kind::Tunnel => (GROUP, "tunnelconfigs", true),
            Kind::LbNode => (GROUP, "lbnodes", true),
            Kind::Lease => ("coordination.k8s.io", "leases", true),
            Kind::Peer => (GROUP, "bgppeers", true),
            Kind::Announcement => (GROUP, "announcements", true),
            Kind::Seed => ("", "secrets", true),
        };
        Self::new(Verb::ListWatch, group, resource, own)
    }

    /// Of a write.
    pub(super) const fn of_action(action: &Action) -> Self {
        match action {
            Action::ApplyServiceMeta { .. } | Action::ReplaceServiceMeta { .. } => {
                Self::new(Verb::Patch, "", "services", false)
            }
            Action::ApplyServiceStatus { .. } | Action::ReplaceServiceStatus { .. } => {
                Self::new(Verb::Patch, "", "services/status", false)
            }
            Action::CreateClaim(_) => Self::new(Verb::Create, GROUP, "addressclaims", false),
            Action::ReplaceClaim(_) => Self::new(Verb::Update, GROUP, "addressclaims", false),
            Action::DeleteClaim { .. } => Self::new(Verb::Delete, GROUP, "addressclaims", false),
            Action::ApplyTable(_) => Self::new(Verb::Patch, GROUP, "viptables", true),
            Action::DeleteTable { .. } => Self::new(Verb::Delete, GROUP, "viptables", true),
            Action::ApplyNodeSet(_) => Self::new(Verb::Patch, GROUP, "nodesets", true),
            Action::DeleteNodeSet { .. } => Self::new(Verb::Delete, GROUP, "nodesets", true),
            Action::ApplyTunnel(_) => Self::new(Verb::Patch, GROUP, "tunnelconfigs", true),
            Action::CreateSeed => Self::new(Verb::Create, "", "secrets", true),
            Action::ApplyPoolStatus { .. } => Self::new(Verb::Patch, GROUP, "addresspools/status", false),
            Action::ApplyPeerStatus { .. } => Self::new(Verb::Patch, GROUP, "bgppeers/status", true),
            Action::ApplyAnnouncementStatus { .. } => Self::new(Verb::Patch, GROUP, "announcements/status", true),
        }
    }

    /// Whether it is about a Service or its status.
    pub(super) fn is_service(&self) -> bool {
        self.group.is_empty() && self.resource.starts_with("services")
    }

    /// Whether a 404 means that the object is missing, not its kind.
    pub(super) fn needs_object(&self) -> bool {
        matches!(self.verb, Verb::Delete | Verb::Update) || self.resource.ends_with("/status")
    }

    /// What to do about an answer, where there is something to do.
    pub(super) fn remedy(&self, error: &Error) -> Option<String> {
        let Error::Api(status) = error else {
            return None;
        };
        let Self {
            verb, group, resource, ..
        } = self;
        match status.code {
            401 => Some(
                "the API server does not accept these credentials: check the ServiceAccount token or kubeconfig"
                    .to_owned(),
            ),
            // Quota, webhooks, a namespace that is going: the message says it, and RBAC has no part in it.
            403 if ["admission", "exceeded quota", "being terminated"]
                .iter()
                .any(|word| status.message.contains(word)) =>
            {
                None
            }
            403 => {
                let role = if self.own {
                    "Role in the operator's namespace"
                } else {
                    "ClusterRole"
                };
                let group = if group.is_empty() { "\"\"" } else { group };
                Some(format!(
                    "RBAC is missing: give the operator's ServiceAccount the verbs [{verb}] on resource `{resource}` of API group \
                     {group} in a {role} (deploy/manifests/install.yaml has it)"
                ))
            }
            404 if *group == GROUP => {
                let plural = resource.split('/').next().unwrap_or(resource);
                Some(format!(
                    "the CustomResourceDefinition {plural}.{group} or the operator's namespace is missing: \
                     `vipline-operator crds | kubectl apply --server-side -f -`, or apply deploy/manifests/install.yaml"
                ))
            }
            404 if !self.is_service() => Some(format!(
                "the API server has no `{resource}`, or the operator's namespace does not exist"
            )),
            _ => None,
        }
    }
}

/// Reason of a write that was refused before clients knew of the Service.
pub(super) const SYNC_FAILED: &str = "SyncLoadBalancerFailed";
/// The same of one that clients know of: what was served before stays.
pub(super) const UPDATE_FAILED: &str = "UpdateLoadBalancerFailed";
/// The same of one on the way out.
pub(super) const DELETE_FAILED: &str = "DeleteLoadBalancerFailed";

/// The Event for a write that was refused, on what the write was for.
pub(super) fn refusal(about: &About, reason: &'static str, target: &Target, error: &impl fmt::Display) -> Note {
    Note {
        about: about.clone(),
        warning: true,
        reason,
        message: format!("Error writing {}: {error}", target.resource),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn error(code: u16) -> Error {
        Error::Api(Status::failure("no", "No").with_code(code).boxed())
    }

    #[test]
    fn a_403_names_verbs_resource_group_and_role() {
        let said = Target::of_kind(Kind::EndpointSlice).remedy(&error(403)).unwrap();
        for word in ["[list, watch]", "`endpointslices`", "discovery.k8s.io", "ClusterRole"] {
            assert!(said.contains(word), "{word} is not in: {said}");
        }
        let said = Target::of_kind(Kind::Table).remedy(&error(403)).unwrap();
        assert!(said.contains("in a Role in the operator's namespace"), "{said}");
    }

    #[test]
    fn a_404_of_ours_names_the_definition() {
        let said = Target::of_kind(Kind::Pool).remedy(&error(404)).unwrap();
        assert!(said.contains("addresspools.vipline.dev"), "{said}");
    }

    #[test]
    fn what_passes_by_itself_has_no_remedy() {
        for code in [409, 429, 500, 503] {
            assert_eq!(Target::of_kind(Kind::Pool).remedy(&error(code)), None);
        }
    }
}
