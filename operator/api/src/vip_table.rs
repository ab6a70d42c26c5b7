//! `VipTable`.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::NameRule;

/// Most ports of a Service that is served.
pub const MAX_VIP_PORTS: usize = 512;
/// Most nodes in [`Backends::Local`].
pub const MAX_LOCAL_NODES: usize = 5_000;

/// What its name must be, which is a rule of the whole object.
pub(crate) const NAMED: NameRule = NameRule {
    rule: "self.metadata.name == self.spec.service.__namespace__ + '.' + self.spec.service.name",
    message: "a table is named by its Service, as NAMESPACE.SERVICE",
};

/// A Service as LB nodes need it: one for each, named NAMESPACE.SERVICE, in the operator's namespace, so that no tenant
/// can forge one. About 800 B, and 65 B for each node of a Service with policy Local.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[kube(
    group = "vipline.dev",
    version = "v1alpha1",
    crates(kube_core = "::kube_core"),
    kind = "VipTable",
    shortname = "viptable",
    shortname = "vt",
    category = "vipline",
    namespaced,
    derive = "PartialEq",
    doc = "A Service as LB nodes need it. Written by the operator only.",
    printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.service.namespace"}"#,
    printcolumn = r#"{"name":"Service","type":"string","jsonPath":".spec.service.name"}"#,
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses[*].address"}"#,
    printcolumn = r#"{"name":"Ports","type":"string","jsonPath":".spec.ports[*].port"}"#,
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct VipTableSpec {
    /// The Service.
    #[x_kube(validation = Rule::new("self == oldSelf").message("a table stays with its Service, and with this life of it"))]
    pub service: ServiceRef,
    /// VIP addresses: load balancer addresses in the order of the Service's families, then external ones.
    #[schemars(length(min = 1, max = 64))]
    pub addresses: Vec<VipAddress>,
    /// Ports, each a VIP with each address. Sorted; each (protocol, port) once.
    #[schemars(length(min = 1, max = 512))]
    pub ports: Vec<VipPort>,
    /// How packets are forwarded.
    #[serde(default)]
    pub mode: ForwardingMode,
    /// How a backend is chosen.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Whether a client stays with its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Sources that may use it; absent: all. A family without a range is not restricted where the list has ranges of
    /// the other only; the operator then writes that family's whole range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), inner(length(min = 3, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(r, isCIDR(r))").message("must be CIDR blocks"))]
    pub source_ranges: Option<Vec<String>>,
    /// Where flows may go.
    pub backends: Backends,
    /// How LB nodes learn whether a node serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// Which Service, and which life of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Namespace of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its `metadata.uid`.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// A VIP address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct VipAddress {
    /// The address, in its shortest form (RFC 5952).
    #[schemars(length(min = 2, max = 39))]
    #[x_kube(validation = Rule::new("isIP(self) && ip.isCanonical(self)").message("must be an IP address in its shortest form"))]
    pub address: String,
    /// Pool that the address came from.
    #[schemars(length(min = 1, max = 253))]
    pub pool: String,
    /// What the Service uses it for: `LoadBalancer` or `ExternalIP`.
    #[serde(rename = "use")]
    pub used_as: crate::Use,
    /// Names of the Announcements that select it, sorted; of more than 16 the first. Absent: no Announcement names its
    /// pool, and all LB nodes that have a connected network with it answer for it by L2. Empty: it is announced by nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    pub announcements: Option<Vec<String>>,
}

/// Transport protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// RFC 9293.
    #[serde(rename = "TCP")]
    Tcp,
    /// RFC 768.
    #[serde(rename = "UDP")]
    Udp,
}

/// Address families, as Kubernetes writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum AddressFamily {
    /// RFC 791.
    IPv4,
    /// RFC 8200.
    IPv6,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct VipPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port that clients dial.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Node port, where one is allocated: the target of `NodePortNat` and of node probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub node_port: Option<u16>,
    /// Its name in the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub name: Option<String>,
}

/// A protocol and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct TransportPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// How packets are forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ForwardingMode {
    /// Encapsulated in IPv4 or IPv6; direct server return.
    #[default]
    DsrIpip,
    /// Encapsulated in UDP (GUE). Not served yet.
    DsrGue,
    /// With another destination MAC, on one segment. Not served yet.
    DsrL2,
    /// Rewritten to a node port; replies come back through the LB node. Not served yet.
    NodePortNat,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Scheduler {
    /// Consistent hashing of the whole flow.
    #[default]
    Maglev,
    /// Consistent hashing of the client's address.
    SourceHash,
    /// One node for a VIP address, and another one when that goes.
    DestinationHash,
    /// In turns.
    RoundRobin,
    /// In turns, by weight.
    WeightedRoundRobin,
    /// The node with the fewest open flows.
    LeastConnections,
    /// The node with the fewest open flows for its weight.
    WeightedLeastConnections,
    /// The node that would have the fewest open flows for its weight with the new one.
    ShortestExpectedDelay,
    /// A node without open flows, else by shortest expected delay.
    NeverQueue,
}

impl Scheduler {
    /// All of them, each with its name and its short one, that of IPVS: either may stand in the annotation.
    pub const NAMED: [(Self, &'static str, &'static str); 9] = [
        (Self::Maglev, "Maglev", "mh"),
        (Self::SourceHash, "SourceHash", "sh"),
        (Self::DestinationHash, "DestinationHash", "dh"),
        (Self::RoundRobin, "RoundRobin", "rr"),
        (Self::WeightedRoundRobin, "WeightedRoundRobin", "wrr"),
        (Self::LeastConnections, "LeastConnections", "lc"),
        (Self::WeightedLeastConnections, "WeightedLeastConnections", "wlc"),
        (Self::ShortestExpectedDelay, "ShortestExpectedDelay", "sed"),
        (Self::NeverQueue, "NeverQueue", "nq"),
    ];

    /// The scheduler of a name, long or short.
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::NAMED
            .iter()
            .find(|(_, long, short)| *long == name || *short == name);
        found.map(|(scheduler, ..)| *scheduler)
    }
}

/// `sessionAffinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Affinity {
    /// All flows of a client address go where its first went; seconds after which one that is silent may go elsewhere.
    #[schemars(range(min = 1, max = 86400))]
    pub client_ip_timeout_seconds: u32,
}

/// Where flows may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Backends {
    /// All nodes of a set, by its name, with equal weight: `externalTrafficPolicy: Cluster`.
    #[serde(rename_all = "camelCase")]
    NodeSet {
        /// Name of the set: `workers`.
        #[schemars(length(min = 1, max = 63))]
        name: String,
        /// Families of which no endpoint anywhere is ready, or serving and terminating: LB nodes answer clients of such
        /// a VIP (reset, port unreachable) and forward nothing. A node's own refusal is not reached: what comes by
        /// tunnel and is not translated dies before kube-proxy would refuse it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(max = 2))]
        unserved: Vec<AddressFamily>,
    },
    /// Nodes with endpoints, weighted by their number: `externalTrafficPolicy: Local`.
    #[serde(rename_all = "camelCase")]
    Local {
        /// Name of the set where the nodes' addresses stand.
        #[schemars(length(min = 1, max = 63))]
        set: String,
        /// Slots of the lookup table: a power of two with headroom that only grows while the Service lives.
        #[schemars(range(min = 256, max = 65536), extend("x-kubernetes-validations" = crate::schema::growing_power_of_two()))]
        table_slots: u32,
        /// Sorted by name. Empty: nobody serves it, and clients are told so.
        #[schemars(length(max = 5000))]
        nodes: Vec<LocalNode>,
        /// What the nodes were before changes that are not over; absent while none is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transit: Option<LocalTransit>,
    },
}

/// Nodes of a Service before changes that are not over: on some LB node flows may still live where they lived then. The
/// operator takes it out when all LB nodes say that none does, or after 24 h.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct LocalTransit {
    /// When the first of those changes was.
    pub started: Time,
    /// When the last was.
    pub changed: Time,
    /// Slots of the lookup table before.
    #[schemars(range(min = 256, max = 65536))]
    pub table_slots: u32,
    /// Nodes of which there is another number now, as they were, sorted by name; without a number: there were none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5000))]
    pub nodes: Vec<LocalNode>,
}

/// A node with endpoints of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct LocalNode {
    /// Name of the node.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Eligible IPv4 endpoints: the weight for IPv4 VIPs.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 65535))]
    pub ipv4: u16,
    /// Eligible IPv6 endpoints: the weight for IPv6 VIPs.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 65535))]
    pub ipv6: u16,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}

/// How LB nodes learn whether a node serves a Service: HTTP GET of `/healthz` at the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HealthCheck {
    /// `spec.healthCheckNodePort` of a `LoadBalancer` Service with policy Local.
    #[serde(rename_all = "camelCase")]
    ServicePort {
        /// The port.
        #[schemars(range(min = 1, max = 65535))]
        port: u16,
        /// All endpoints are terminating: nodes say 503 and are served all the same (KEP-1669).
        #[serde(default)]
        ignored: bool,
    },
    /// kube-proxy's own (KEP-3836).
    #[serde(rename_all = "camelCase")]
    KubeProxy {
        /// The port: 10256.
        #[schemars(range(min = 1, max = 65535))]
        port: u16,
    },
}

impl VipTable {
    /// The name of a Service's table: neither part can have a dot.
    pub fn name_of(namespace: &str, name: &str) -> String {
        format!("{namespace}.{name}")
    }
}

impl VipAddress {
    /// The address, where it is one: what came past the API server's rules may be anything.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }
}
