//! `BgpPeer`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{AddressFamily, schema::NameRule};

/// What its name must be, which is a rule of the whole object: it stands in other objects, where there is no room for 253 bytes.
pub(crate) const NAMED: NameRule = NameRule {
    rule: "self.metadata.name.size() <= 63",
    message: "a name has at most 63 characters",
};

/// Most LB nodes that [`BgpPeerStatus::nodes`] and [`crate::AnnouncementStatus::nodes`] name.
pub const MAX_ANNOUNCING_NODES: usize = 256;

/// A router that LB nodes announce VIP addresses to, by BGP. What each key means stands in docs/configuration.md, where the
/// file's `bgp.peers` have the same.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "BgpPeer",
    shortname = "vbgp",
    category = "vipline",
    namespaced,
    status = "BgpPeerStatus",
    derive = "PartialEq",
    doc = "A router that LB nodes announce VIP addresses to, by BGP. What it is told is in Announcements.",
    printcolumn = r#"{"name":"Address","type":"string","jsonPath":".spec.address"}"#,
    printcolumn = r#"{"name":"ASN","type":"integer","jsonPath":".spec.asn"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Valid","type":"string","jsonPath":".status.conditions[?(@.type=='Valid')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("!has(self.source) || !isIP(self.source) || !isIP(self.address) || \
        ip(self.source).family() == ip(self.address).family()").message("source must be of the family of address"),
    validation = Rule::new("!has(self.multihop) || self.asn != self.localAsn || self.ttlSecurity")
        .message("iBGP peers may be any number of hops away; remove multihop, or say with ttlSecurity how far at most"),
)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerSpec {
    /// Where it is. No two peers of an LB node have the same address.
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new("isIP(self) && ip.isCanonical(self) && ip(self).isGlobalUnicast()")
        .message("must be a unicast address in its shortest form, not link-local and not loopback"))]
    pub address: String,
    /// Its AS; another is refused. The same as `localAsn`: iBGP.
    #[schemars(range(min = 1))]
    pub asn: u32,
    /// AS of the LB nodes: the same in all peers of an LB node.
    #[schemars(range(min = 1))]
    pub local_asn: u32,
    /// Its port. Default: 179.
    #[serde(default = "bgp_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Key in the Secret `vipline-bgp-passwords` of this namespace, whose value signs TCP segments (RFC 2385): 1 to 80 bytes.
    /// Absent: none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z0-9]+$"))]
    pub password_key: Option<String>,
    /// The LB node's address on the session, of the family of `address`; absent: the one that its route there has. Only where
    /// `nodeSelector` selects one LB node, or all have the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new("isIP(self) && ip.isCanonical(self) && ip(self).isGlobalUnicast()")
        .message("must be a unicast address in its shortest form, not link-local and not loopback"))]
    pub source: Option<String>,
    /// How many hops away it may be. Absent: 1 for eBGP, any number for iBGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub multihop: Option<u8>,
    /// Drop packets that came over more than `multihop` hops (RFC 5082); the peer must do the same.
    #[serde(default)]
    pub ttl_security: bool,
    /// What is announced to it, if it agrees. Default: both.
    #[serde(default = "both_families")]
    #[schemars(length(min = 1, max = 2))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub families: Vec<AddressFamily>,
    /// When a silent peer is gone: the smaller of both sides holds. Default: 90.
    #[serde(default = "hold_time_seconds")]
    #[schemars(range(min = 3, max = 65535))]
    pub hold_time_seconds: u16,
    /// Pause between two attempts. Default: 5.
    #[serde(default = "connect_retry_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub connect_retry_seconds: u16,
    /// Only the peer connects: to port 179 of the LB node, which listens there while it has such a peer.
    #[serde(default)]
    pub passive: bool,
    /// Another next hop for IPv4 than the LB node's address.
    #[serde(default, rename = "nextHopV4", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 7, max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4 && ip(self).isGlobalUnicast()")
        .message("must be a unicast IPv4 address, not link-local and not loopback"))]
    pub next_hop_v4: Option<String>,
    /// Another next hop for IPv6 than the LB node's address.
    #[serde(default, rename = "nextHopV6", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 6 && ip(self).isGlobalUnicast()")
        .message("must be a unicast IPv6 address, not link-local and not loopback"))]
    pub next_hop_v6: Option<String>,
    /// The peer keeps routes while the daemon of an LB node restarts (RFC 4724); absent: it does not. The same in all peers of an
    /// LB node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
    /// BFD with the peer: its silence ends the session at once. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// LB nodes that have this peer, by labels of their LbNode and of the Node of the same name (and `kubernetes.io/hostname`,
    /// which is the name where neither has it). Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

fn bgp_port() -> u16 {
    179
}

fn both_families() -> Vec<AddressFamily> {
    vec![AddressFamily::IPv4, AddressFamily::IPv6]
}

fn hold_time_seconds() -> u16 {
    90
}

fn connect_retry_seconds() -> u16 {
    5
}

/// Graceful restart, on the side that restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestart {
    /// For so long. Default: 120.
    #[serde(default = "restart_time_seconds")]
    #[schemars(range(min = 1, max = 4095))]
    pub restart_time_seconds: u16,
}

fn restart_time_seconds() -> u16 {
    120
}

/// How fast a peer's silence is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// Milliseconds between two packets that are sent, at least. Default: 100.
    #[serde(default = "interval_milliseconds")]
    #[schemars(range(min = 10, max = 60_000))]
    pub min_tx_milliseconds: u32,
    /// Milliseconds between two packets that are received, at least. Default: 100.
    #[serde(default = "interval_milliseconds")]
    #[schemars(range(min = 10, max = 60_000))]
    pub min_rx_milliseconds: u32,
    /// How many packets in a row may be missing. Default: 3.
    #[serde(default = "multiplier")]
    #[schemars(range(min = 1, max = 50))]
    pub multiplier: u8,
    /// Over UDP 4784 instead of 3784; the same on both sides. Absent: whether the peer may be over more than one hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multihop: Option<bool>,
}

fn interval_milliseconds() -> u32 {
    100
}

fn multiplier() -> u8 {
    3
}

/// What became of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerStatus {
    /// LB nodes that have this peer, by name, sorted: those that are selected and live. Of more than 256 the first.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    pub nodes: Vec<String>,
    /// Of how many of them a session is established.
    #[serde(default)]
    pub established: u32,
    /// How many of them take it from here: all but those whose own file says what they announce by BGP.
    #[serde(default)]
    pub of: u32,
    /// The same for people.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub state: String,
    /// `metadata.generation` that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// Condition `Valid`: what the API server cannot check is right, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
}
