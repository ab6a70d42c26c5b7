//! What an LB node announces, as it says in its `LbNode`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most entries of [`BgpAnnouncing::peers`].
pub const MAX_PEER_STATUSES: usize = 16;
/// Most entries of [`L2Announcing::networks`] and of [`Announcing::places`].
pub const MAX_PLACES: usize = 16;
/// Most entries of [`L2Announcing::members`].
pub const MAX_L2_MEMBERS: usize = 32;
/// Most entries of [`Announcing::exceptions`].
pub const MAX_EXCEPTIONS: usize = 16;
/// Most entries of [`Announcing::unserved`].
pub const MAX_UNSERVED: usize = 32;
/// Most bytes of an [`Announcing`] as JSON, so that all of an LbNode stays within [`crate::MAX_LB_NODE_BYTES`]: lists are cut, and
/// their counts are not.
pub const MAX_ANNOUNCING_BYTES: usize = 6 << 10;

/// [`AnnounceException::reason`] of an address that another host has.
pub const EXCEPTION_ADDRESS_IN_USE: &str = "AddressInUse";
/// [`AnnounceException::reason`] of an address that is withdrawn because none of its VIPs has a backend.
pub const EXCEPTION_NO_BACKEND: &str = "NoBackend";
/// [`AnnounceException::reason`] of an address that is asked for whether it is free, or that waits for others.
pub const EXCEPTION_WAITS: &str = "Waits";

/// What an LB node announces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Announcing {
    /// By BGP; absent: it has no peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpAnnouncing>,
    /// By ARP and neighbour discovery; absent: it answers for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<L2Announcing>,
    /// Addresses that it has a way for and does not announce by that, sorted by address and way: the first 16. One that another
    /// LB node answers for is none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub exceptions: Vec<AnnounceException>,
    /// How many they are.
    #[serde(default)]
    pub exception_count: u32,
    /// VIP addresses in its maps none of whose VIPs has a backend that takes new flows here, sorted: the first 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 2, max = 39)))]
    pub unserved: Vec<String>,
    /// How many they are.
    #[serde(default)]
    pub unserved_count: u32,
    /// It gives everything away; absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<LbDraining>,
    /// Where other LB nodes hear it: its addresses, with the length of their network, on the interfaces that it answers on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 3, max = 43)))]
    pub places: Vec<String>,
}

/// Who says what an LB node announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Origin {
    /// Its own file.
    File,
    /// BgpPeers, Announcements and VipTables.
    #[default]
    Cluster,
}

/// What it announces by BGP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct BgpAnnouncing {
    /// Who says so.
    #[serde(default)]
    pub origin: Origin,
    /// Its AS.
    #[serde(default)]
    pub local_asn: u32,
    /// Its peers, sorted by name: the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub peers: Vec<PeerStatus>,
    /// How many they are.
    #[serde(default)]
    pub peer_count: u32,
    /// With how many of all a session is established.
    #[serde(default)]
    pub established: u32,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Name of the BgpPeer, or of the file's peer.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its address.
    #[schemars(length(min = 2, max = 39))]
    pub address: String,
    /// State of the session, as `vipline bgp` shows it.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub state: String,
    /// Whether it is established.
    #[serde(default)]
    pub established: bool,
    /// Prefixes that it is told.
    #[serde(default)]
    pub announced: u32,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 160))]
    pub last_error: Option<String>,
}

/// What it answers for by ARP and neighbour discovery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct L2Announcing {
    /// Who says so.
    #[serde(default)]
    pub origin: Origin,
    /// Networks whose VIP addresses it may answer for, as CIDR blocks, sorted: the first 16. Told by the cluster: its connected
    /// networks; by its file: `l2.owned`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 3, max = 43)))]
    pub networks: Vec<String>,
    /// How many addresses it answers for.
    #[serde(default)]
    pub owned: u32,
    /// LB nodes that it shares segments with, sorted by name: the first 32. Not itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub members: Vec<L2Member>,
}

/// Another LB node on a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct L2Member {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whether it is heard.
    #[serde(default)]
    pub heard: bool,
}

/// A way to announce an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Way {
    /// By BGP.
    #[serde(rename = "BGP")]
    Bgp,
    /// By ARP and neighbour discovery.
    L2,
}

/// An address that an LB node does not announce by a way that it has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct AnnounceException {
    /// The VIP address, in its shortest form (RFC 5952).
    #[schemars(length(min = 2, max = 39))]
    pub address: String,
    /// By which it is not announced.
    pub way: Way,
    /// Why, in UpperCamelCase: `AddressInUse`, `NoBackend`, `Waits`, `NoWay`; others may come.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z]+$"))]
    pub reason: String,
    /// Why, for people.
    #[serde(default)]
    #[schemars(length(max = 160))]
    pub why: String,
}

/// An LB node that gives everything away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct LbDraining {
    /// Since when.
    pub since: Time,
    /// When it ends, whatever still comes; absent: when nothing comes any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// Packets that still come, each second.
    #[serde(default)]
    pub packets_per_second: u32,
    /// It is over: nothing comes any more, or the deadline is past.
    #[serde(default)]
    pub done: bool,
}
