//! `AddressPool`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Addresses that may be handed out, to whom and how.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "AddressPool",
    shortname = "vpool",
    category = "vipline",
    status = "AddressPoolStatus",
    derive = "PartialEq",
    doc = "Addresses that may be handed out to Services, to which of them and how.",
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Auto-Assign","type":"boolean","jsonPath":".spec.autoAssign"}"#,
    printcolumn = r#"{"name":"Used","type":"integer","jsonPath":".status.used"}"#,
    printcolumn = r#"{"name":"Free","type":"integer","jsonPath":".status.free"}"#,
    printcolumn = r#"{"name":"Conflict","type":"string","jsonPath":".status.conditions[?(@.type=='Conflict')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    /// CIDR blocks (`203.0.113.0/24`, `2001:db8::/112`) and ranges FIRST-LAST (`203.0.113.10-203.0.113.20`), of either
    /// family. All of them count, the first and the last too.
    #[schemars(schema_with = "crate::schema::pool_addresses")]
    pub addresses: Vec<String>,
    /// Whether Services that ask for no pool and no address get one from here. Default: true.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Of the pools that fit a Service, the one with the lowest priority is tried first; one without comes last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub priority: Option<i32>,
    /// Leave out addresses that end in .0 and .255, which broken middleboxes take for broadcast.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,
    /// Namespaces whose Services may have addresses of this pool; empty, together with an absent `namespaceSelector`:
    /// all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        inner(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Vec<String>,
    /// Selects such namespaces by their labels, beside those that `namespaces` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Selects Services that may have addresses of this pool by their labels; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
    /// Whether Services may name addresses of this pool in `spec.externalIPs`. Who may write Services of the pool's
    /// namespaces can take any address that is allowed here (CVE-2020-8554). Say `autoAssign: false` for a pool that
    /// shall serve nothing else.
    #[serde(default, rename = "externalIPs")]
    pub external_ips: bool,
    /// Whether Services of different namespaces may share an address by the same sharing key.
    #[serde(default)]
    pub share_across_namespaces: bool,
}

fn yes() -> bool {
    true
}

/// What became of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolStatus {
    /// Addresses in use, of both families.
    #[serde(default)]
    pub used: i64,
    /// Addresses that can still be handed out, of both families; at most 2^63-1.
    #[serde(default)]
    pub free: i64,
    /// The same of IPv4.
    #[serde(default)]
    pub ipv4: Usage,
    /// The same of IPv6.
    #[serde(default)]
    pub ipv6: Usage,
    /// `metadata.generation` that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Condition `Conflict`: it overlaps with a pool that was there earlier, and hands nothing out. Condition `Valid`:
    /// what the API server cannot check is right, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// Addresses of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// All addresses; at most 2^63-1.
    #[serde(default)]
    pub total: i64,
    /// Addresses in use.
    #[serde(default)]
    pub used: i64,
    /// Addresses that can still be handed out; at most 2^63-1.
    #[serde(default)]
    pub free: i64,
}
