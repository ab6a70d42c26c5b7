//! What is served: kinds, their paths, and which of them have a status of its own.
//!
//! Never holds objects. Builtin kinds are a table here; kinds of custom resources come and go with their definitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::crd::CustomKind;
use crate::failure::qualified;
use crate::typed::{self, Decode};

/// One kind in one version, as served.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether `/status` is there and the main path leaves status alone.
    pub(crate) status: bool,
    /// Whether `metadata.generation` counts changes of what is not metadata or status.
    pub(crate) generation: bool,
    /// Where objects are kept: two versions of a kind share a table.
    pub(crate) table: String,
    /// Reads and writes a builtin object in its true type, which drops what the type does not have.
    pub(crate) decode: Option<Decode>,
    /// A custom resource's schema and columns.
    pub(crate) custom: Option<Arc<CustomKind>>,
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `services`, `vippools.vipline.dev`.
    pub(crate) fn qualified(&self) -> String {
        qualified(&self.group, &self.plural)
    }
}

/// All that is served.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    by_path: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    /// Every builtin kind.
    pub(crate) fn builtin() -> Self {
        let mut registry = Self::default();
        for row in BUILTIN {
            registry.add(row.resource());
        }
        registry
    }

    pub(crate) fn add(&mut self, resource: Resource) {
        let key = (
            resource.group.clone(),
            resource.version.clone(),
            resource.plural.clone(),
        );
        self.by_path.insert(key, Arc::new(resource));
    }

    pub(crate) fn remove(&mut self, group: &str, plural: &str) {
        self.by_path.retain(|(g, _, p), _| !(g == group && p == plural));
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
            .cloned()
    }

    /// By `kind` and `apiVersion` of an object.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.iter()
            .find(|r| r.kind == kind && r.api_version() == api_version)
            .cloned()
    }

    /// By `services`, or `leases.coordination.k8s.io` where the short form could be two things.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Resource>> {
        self.iter().find(|r| r.plural == name || r.qualified() == name).cloned()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_path.values()
    }

    /// Groups with their versions, without the core group.
    pub(crate) fn groups(&self) -> BTreeMap<String, Vec<String>> {
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for resource in self.iter().filter(|r| !r.group.is_empty()) {
            let versions = groups.entry(resource.group.clone()).or_default();
            if !versions.contains(&resource.version) {
                versions.push(resource.version.clone());
            }
        }
        groups
    }
}

/// A row of the table of builtin kinds.
struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    status: bool,
    generation: bool,
    decode: Decode,
}

impl Row {
    fn resource(&self) -> Resource {
        Resource {
            group: self.group.into(),
            version: self.version.into(),
            plural: self.plural.into(),
            singular: self.kind.to_lowercase(),
            kind: self.kind.into(),
            short_names: self.short.iter().map(|s| (*s).to_owned()).collect(),
            categories: if self.plural == "services" || self.plural == "pods" || self.group == "apps" {
                vec!["all".into()]
            } else {
                Vec::new()
            },
            namespaced: self.namespaced,
            status: self.status,
            generation: self.generation,
            // Both kinds of Event are one store, in the core form.
            table: if self.plural == "events" {
                "events".into()
            } else {
                qualified(self.group, self.plural)
            },
            decode: Some(self.decode),
            custom: None,
        }
    }
}

const fn row(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    flags: &'static str,
    decode: Decode,
) -> Row {
    let flags = flags.as_bytes();
    let (mut namespaced, mut status, mut generation) = (false, false, false);
    let mut i = 0;
    while i < flags.len() {
        match flags[i] {
            b'n' => namespaced = true,
            b's' => status = true,
            b'g' => generation = true,
            _ => panic!("a flag that is not n, s or g"),
        }
        i += 1;
    }
    Row {
        group,
        version: "v1",
        kind,
        plural,
        short,
        namespaced,
        status,
        generation,
        decode,
    }
}

const ADMISSION: &str = "admissionregistration.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

/// Flags: `n`amespaced, has `s`tatus of its own, counts `g`enerations.
const BUILTIN: &[Row] = &[
    row("", "ConfigMap", "configmaps", &["cm"], "n", typed::config_map),
    row("", "Event", "events", &["ev"], "n", typed::event),
    row("", "Namespace", "namespaces", &["ns"], "s", typed::namespace),
    row("", "Node", "nodes", &["no"], "s", typed::node),
    row("", "Pod", "pods", &["po"], "nsg", typed::pod),
    row("", "Secret", "secrets", &[], "n", typed::secret),
    row("", "Service", "services", &["svc"], "ns", typed::service),
    row(
        "",
        "ServiceAccount",
        "serviceaccounts",
        &["sa"],
        "n",
        typed::service_account,
    ),
    row(
        ADMISSION,
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        &[],
        "sg",
        typed::admission_policy,
    ),
    row(
        ADMISSION,
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        &[],
        "g",
        typed::admission_binding,
    ),
    row(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        &["crd", "crds"],
        "sg",
        typed::crd,
    ),
    row("apps", "DaemonSet", "daemonsets", &["ds"], "nsg", typed::daemon_set),
    row(
        "apps",
        "Deployment",
        "deployments",
        &["deploy"],
        "nsg",
        typed::deployment,
    ),
    row("coordination.k8s.io", "Lease", "leases", &[], "n", typed::lease),
    row(
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        &[],
        "ng",
        typed::endpoint_slice,
    ),
    row("events.k8s.io", "Event", "events", &["ev"], "n", typed::event_v1),
    row(
        "networking.k8s.io",
        "NetworkPolicy",
        "networkpolicies",
        &["netpol"],
        "ng",
        typed::network_policy,
    ),
    row(
        "policy",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        &["pdb"],
        "nsg",
        typed::disruption_budget,
    ),
    row(RBAC, "ClusterRole", "clusterroles", &[], "", typed::cluster_role),
    row(
        RBAC,
        "ClusterRoleBinding",
        "clusterrolebindings",
        &[],
        "",
        typed::cluster_role_binding,
    ),
    row(RBAC, "Role", "roles", &[], "n", typed::role),
    row(RBAC, "RoleBinding", "rolebindings", &[], "n", typed::role_binding),
    row(
        "scheduling.k8s.io",
        "PriorityClass",
        "priorityclasses",
        &["pc"],
        "g",
        typed::priority_class,
    ),
];
