//! `NodeSet`.

use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Most nodes of a chunk: about 60 kB.
pub const MAX_NODES_PER_CHUNK: usize = 500;

/// A chunk of a shared list of worker nodes.
///
/// A node stays in its chunk, and a change of one chunk is one write with the same epoch. What takes several chunks raises the
/// epoch in all of them: LB nodes build tables only from a *complete* set, which has all its chunks with one epoch, and keep the
/// last complete one until then.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "NodeSet",
    shortname = "vnodes",
    category = "vipline",
    namespaced,
    derive = "PartialEq",
    doc = "A chunk of the list of worker nodes. Written by the operator only.",
    printcolumn = r#"{"name":"Set","type":"string","jsonPath":".spec.set"}"#,
    printcolumn = r#"{"name":"Chunk","type":"integer","jsonPath":".spec.chunk"}"#,
    printcolumn = r#"{"name":"Of","type":"integer","jsonPath":".spec.chunks"}"#,
    printcolumn = r#"{"name":"Epoch","type":"integer","jsonPath":".spec.epoch"}"#,
    printcolumn = r#"{"name":"Slots","type":"integer","jsonPath":".spec.tableSlots"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeSetSpec {
    /// Name of the set; the chunk's own is `<set>-<chunk>`.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a chunk stays in its set"))]
    pub set: String,
    /// Which chunk, from 0.
    #[schemars(range(min = 0, max = 255))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a chunk keeps its number"))]
    pub chunk: u32,
    /// How many there are.
    #[schemars(range(min = 1, max = 256))]
    pub chunks: u32,
    /// The same in all chunks of a complete set.
    #[schemars(range(min = 1))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("an epoch never goes back"))]
    pub epoch: i64,
    /// Slots of the lookup table of the whole set: a power of two with headroom that only grows; the largest of all chunks counts.
    #[schemars(range(min = 256, max = 65536))]
    pub table_slots: u32,
    /// First 16 hex digits of the SHA-256 of the flow-hash seed (its 64 hex digits, as text): LB nodes use no other seed.
    #[schemars(length(min = 16, max = 16))]
    pub seed_fingerprint: String,
    /// Nodes, sorted by name.
    #[schemars(length(max = 500))]
    pub nodes: Vec<NodeEntry>,
}

/// A worker node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// `InternalIP` of IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 39))]
    pub ipv4: Option<String>,
    /// `InternalIP` of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 39))]
    pub ipv6: Option<String>,
    /// `topology.kubernetes.io/zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub zone: Option<String>,
}

impl NodeSet {
    /// The name of a chunk.
    pub fn name_of(set: &str, chunk: u32) -> String {
        format!("{set}-{chunk}")
    }
}
