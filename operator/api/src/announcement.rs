//! `Announcement`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::NameRule;

/// Most Announcements that a VIP address may have: [`crate::VipAddress::announcements`].
pub const MAX_ADDRESS_ANNOUNCEMENTS: usize = 16;
/// Most peers that [`AnnouncementStatus::peers`] names.
pub const MAX_ANNOUNCEMENT_PEERS: usize = 64;

/// What its name must be, which is a rule of the whole object: it stands in VipTables, for each address.
pub(crate) const NAMED: NameRule = NameRule {
    rule: "self.metadata.name.size() <= 63",
    message: "a name has at most 63 characters",
};

/// How VIP addresses are made reachable, which of them, and by which LB nodes. A pool that no Announcement names (by its name,
/// by a selector, or because it names none) is announced by L2 on the segments that its addresses are on, by all LB nodes. One
/// that an Announcement names is announced as Announcements say, and not at all where none selects it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "Announcement",
    shortname = "vann",
    category = "vipline",
    namespaced,
    status = "AnnouncementStatus",
    derive = "PartialEq",
    doc = "How VIP addresses are made reachable, which of them, and by which LB nodes.",
    printcolumn = r#"{"name":"BGP","type":"string","jsonPath":".status.peers"}"#,
    printcolumn = r#"{"name":"L2","type":"boolean","jsonPath":".status.l2"}"#,
    printcolumn = r#"{"name":"Nodes","type":"integer","jsonPath":".status.nodeCount"}"#,
    printcolumn = r#"{"name":"Valid","type":"string","jsonPath":".status.conditions[?(@.type=='Valid')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(validation = Rule::new("has(self.bgp) || has(self.l2)").message("say how: bgp, l2 or both"))]
#[serde(rename_all = "camelCase")]
pub struct AnnouncementSpec {
    /// Pools whose addresses are announced, by name, beside those that `poolSelector` selects. Neither: all pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub pools: Vec<String>,
    /// Selects pools by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_selector: Option<LabelSelector>,
    /// Selects Services by their labels; of those, addresses of these pools are announced. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
    /// LB nodes that announce, by labels of their LbNode and of the Node of the same name (and `kubernetes.io/hostname`, which
    /// is the name where neither has it). Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// By BGP, and how; absent: not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpAnnouncement>,
    /// By ARP and neighbour discovery, where a connected network of the LB node has the address; absent: not. Of the LB nodes
    /// on a segment one owns an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2Announcement>,
}

/// What peers are told. Of several Announcements for the same address and peer, communities count all, and of everything else
/// that of the first by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct BgpAnnouncement {
    /// BgpPeers that are told, by name, beside those that `peerSelector` selects. Neither: all peers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub peers: Vec<String>,
    /// Selects BgpPeers by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_selector: Option<LabelSelector>,
    /// Communities: `65000:100`, `no-export`, `no-advertise`, `graceful-shutdown`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 3, max = 17)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(c, c in ['no-export', 'no-advertise', 'graceful-shutdown'] || \
            (c.matches('^[0-9]{1,5}:[0-9]{1,5}$') && c.split(':').all(n, int(n) <= 65535)))")
            .message("a community is as 65000:100, or no-export, no-advertise, graceful-shutdown"),
    )]
    pub communities: Vec<String>,
    /// Large communities (RFC 8092): `65000:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 5, max = 32)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(c, c.matches('^[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') && \
            c.split(':').all(n, int(n) <= 4294967295))").message("a large community is as 65000:1:2"),
    )]
    pub large_communities: Vec<String>,
    /// Local preference; said to iBGP peers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<u32>,
    /// Multi-exit discriminator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub med: Option<u32>,
    /// So many times more the LB node's AS in the path; said to eBGP peers only.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16))]
    pub prepend: u8,
    /// Length of the IPv4 networks that are announced. The router sends all of such a network, so it must be Vipline's alone.
    /// Default: 32.
    #[serde(default = "host_v4", rename = "aggregationLengthV4")]
    #[schemars(range(min = 1, max = 32))]
    pub aggregation_length_v4: u8,
    /// The same for IPv6. Default: 128.
    #[serde(default = "host_v6", rename = "aggregationLengthV6")]
    #[schemars(range(min = 1, max = 128))]
    pub aggregation_length_v6: u8,
    /// What becomes of an address none of whose VIPs has a backend that takes new flows.
    #[serde(default)]
    pub when_no_backend: WhenNoBackend,
}

fn host_v4() -> u8 {
    32
}

fn host_v6() -> u8 {
    128
}

/// What becomes of an address none of whose VIPs has a backend, as an LB node sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum WhenNoBackend {
    /// Withdrawn where another LB node that announces it has a backend; else it stays, and new flows are refused.
    #[default]
    Elsewhere,
    /// It stays, and new flows are refused.
    Stay,
    /// It is withdrawn.
    Withdraw,
}

/// How addresses are answered for on a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct L2Announcement {
    /// Ask before an address's first use whether another host has it (RFC 5227, RFC 4862 5.4), and leave alone what is answered
    /// for. Default: true. Of several Announcements for an address, one that asks is enough.
    #[serde(default = "yes")]
    pub probe: bool,
}

fn yes() -> bool {
    true
}

/// What the operator made of it: LB nodes go by this, and evaluate no selector.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct AnnouncementStatus {
    /// LB nodes that announce, by name, sorted: those that are selected, live, and are not drained. Of more than 256 the first.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    pub nodes: Vec<String>,
    /// How many they are.
    #[serde(default)]
    pub node_count: u32,
    /// BgpPeers that are told, by name, sorted; of more than 64 the first. None where `bgp` is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub peers: Vec<String>,
    /// Whether `l2` is there.
    #[serde(default)]
    pub l2: bool,
    /// `metadata.generation` that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Condition `Valid`: pools and peers that it names are there, and LB nodes are selected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}
