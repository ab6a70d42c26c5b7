//! `NodeSet`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::schema::NameRule;

/// Most nodes of a chunk.
pub const MAX_NODES_PER_CHUNK: usize = 500;

/// What its name must be, which is a rule of the whole object.
pub(crate) const NAMED: NameRule = NameRule {
    // Not `set + '-' + string(chunk)`: of the text of a number CEL knows no bound, so that the rule would cost too
    // much.
    rule: "self.metadata.name.matches('-(0|[1-9][0-9]{0,2})$') && \
           self.metadata.name.substring(0, self.metadata.name.lastIndexOf('-')) == self.spec.set && \
           int(self.metadata.name.substring(self.metadata.name.lastIndexOf('-') + 1)) == self.spec.chunk",
    message: "a chunk is named by its set and its number, as SET-CHUNK",
};

/// A chunk of a shared list of worker nodes.
///
/// A node stays in its chunk, and a change of one chunk is one write with the same epoch. What takes several chunks
/// raises the epoch in all of them: LB nodes build tables only from a *complete* set, which has all its chunks with one
/// epoch, and keep the last complete one until then.
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
#[x_kube(validation = Rule::new("self.chunk < self.chunks").message("chunks are numbered from 0 to one less than there are"))]
#[serde(rename_all = "camelCase")]
pub struct NodeSetSpec {
    /// Name of the set; the chunk's own is SET-CHUNK.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a chunk stays in its set"))]
    pub set: String,
    /// Which chunk, from 0.
    #[schemars(range(min = 0, max = 255))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a chunk keeps its number"))]
    pub chunk: u32,
    /// How many chunks there are.
    #[schemars(range(min = 1, max = 256))]
    pub chunks: u32,
    /// The same in all chunks of a complete set.
    #[schemars(range(min = 1))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("an epoch never goes back"))]
    pub epoch: i64,
    /// Slots of the lookup table of the whole set: a power of two with headroom that only grows; the largest of all
    /// chunks counts.
    #[schemars(range(min = 256, max = 65536))]
    #[x_kube(
        validation = Rule::new("self in [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]").message("must be a power of two"),
        validation = Rule::new("self >= oldSelf").message("lookup tables only grow"),
    )]
    pub table_slots: u32,
    /// First 16 hex digits of the SHA-256 of the flow-hash seed (its 64 hex digits, as text): LB nodes use no other
    /// seed.
    #[schemars(length(min = 16, max = 16), regex(pattern = "^[0-9a-f]{16}$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a set keeps its seed: with another one every flow would move"))]
    pub seed_fingerprint: String,
    /// Nodes, sorted by name.
    #[schemars(length(max = 500))]
    pub nodes: Vec<NodeEntry>,
    /// What this chunk was before changes that are not over; absent while none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<NodeSetTransit>,
    /// Nodes that are not in the chunk any more and whose connections are not to be waited for without end, sorted by name; of
    /// more than 500 the first. About 155 B each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub leaving: Vec<LeavingNode>,
}

/// A node that is being drained until a time, or that the cluster does not have any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct LeavingNode {
    /// Name of the node.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its address of IPv4 when it was in the chunk: an LB node that starts knows it by that in its maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 7, max = 15))]
    pub ipv4: Option<String>,
    /// Its address of IPv6, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 39))]
    pub ipv6: Option<String>,
    /// Since when this is known of it.
    pub since: Time,
    /// When LB nodes give up what still lives there: the annotation `vipline.dev/drain-deadline` of a node that is excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// The cluster has no such node any more: an LB node to which it is silent, too, gives up what still lives there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// A chunk before changes that are not over: on some LB node flows may still live where they lived then. The operator
/// takes it out when all LB nodes say that none does, or after 24 h. About 100 B, 105 B for each node that has departed
/// and 33 B for each that has arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct NodeSetTransit {
    /// When the first of those changes was.
    pub started: Time,
    /// When the last was.
    pub changed: Time,
    /// Slots of the lookup table of the whole set before; the smallest of all chunks counts.
    #[schemars(range(min = 256, max = 65536))]
    pub table_slots: u32,
    /// Nodes that were in the chunk and are not, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    pub departed: Vec<NodeEntry>,
    /// Names of nodes that are in the chunk and were not, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500), inner(length(min = 1, max = 253)))]
    pub arrived: Vec<String>,
}

/// A worker node. About 105 B.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[x_kube(validation = Rule::new("has(self.ipv4) || has(self.ipv6)").message("a node has an address"))]
#[serde(rename_all = "camelCase")]
pub struct NodeEntry {
    /// Name of the node.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its `InternalIP` of IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 7, max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4").message("must be an IPv4 address"))]
    pub ipv4: Option<String>,
    /// Its `InternalIP` of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 6").message("must be an IPv6 address"))]
    pub ipv6: Option<String>,
    /// Its zone: the label `topology.kubernetes.io/zone`.
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
