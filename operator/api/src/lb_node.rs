//! `LbNode`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::Announcing;

/// Most entries of [`Programmed::failing`].
pub const MAX_FAILING_TABLES: usize = 32;
/// Most entries of [`Transits::but_for`].
pub const MAX_LIVELY_TRANSITS: usize = 16;
/// Most bytes of an LbNode's JSON, status and all.
pub const MAX_LB_NODE_BYTES: usize = 16 << 10;

/// An LB node: made and written by itself, at most once a second, at most 16 kB. Whether it lives is said by the Lease
/// `lb-NAME`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "LbNode",
    shortname = "lbn",
    category = "vipline",
    namespaced,
    status = "LbNodeStatus",
    derive = "PartialEq",
    doc = "An LB node, what it has programmed and what it announces. Written by that LB node only.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"VIPs","type":"integer","jsonPath":".status.programmed.vips"}"#,
    printcolumn = r#"{"name":"Revision","type":"string","jsonPath":".status.programmed.tables"}"#,
    printcolumn = r#"{"name":"Failing","type":"integer","jsonPath":".status.programmed.failingCount"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.version"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct LbNodeSpec {
    /// Outer sources of what it sends: its addresses, or its source prefixes, as CIDR blocks.
    #[schemars(length(max = 16), inner(length(min = 3, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(s, isCIDR(s))").message("must be CIDR blocks"))]
    pub tunnel_sources: Vec<String>,
}

/// What an LB node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct LbNodeStatus {
    /// Version of the daemon.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub version: String,
    /// What is in its maps.
    #[serde(default)]
    pub programmed: Programmed,
    /// Which transits that NodeSets and VipTables publish are over here. An LB node of an earlier version says nothing,
    /// and nobody waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transits: Option<Transits>,
    /// What it announces. An LB node of an earlier version says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announcing: Option<Announcing>,
    /// Condition `Ready`: it serves what it was told; the message says what is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}

/// How far an LB node has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Programmed {
    /// `resourceVersion` up to which every change of VipTables is in the maps, or is among the failing. Resource versions of one
    /// resource can be compared as numbers (KEP-5504); empty before the first time.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub tables: String,
    /// `resourceVersion` up to which every change of NodeSets is in the maps; empty before the first time.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub node_sets: String,
    /// VIPs in the match table.
    #[serde(default)]
    pub vips: u32,
    /// Backends in the maps.
    #[serde(default)]
    pub backends: u32,
    /// How many tables are not in the maps as they should be.
    #[serde(default)]
    pub failing_count: u32,
    /// The first of them by name, 32 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub failing: Vec<FailingTable>,
}

/// Transits that are over on an LB node: since its idle timeout nothing has gone elsewhere than where new flows go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Transits {
    /// Those are over that did not change after this, and that stand in what is programmed; absent: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_through: Option<Time>,
    /// But for those of these node sets and VipTables, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub but_for: Vec<String>,
}

/// A VipTable that an LB node cannot program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct FailingTable {
    /// Name of the VipTable.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Why, for people.
    #[schemars(length(max = 256))]
    pub why: String,
}
