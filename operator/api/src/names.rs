//! The names that everything of Vipline in Kubernetes goes by.

/// API group of all custom resources.
pub const GROUP: &str = "vipline.dev";
/// Version of all custom resources.
pub const VERSION: &str = "v1alpha1";
/// `spec.loadBalancerClass` of Services that are ours.
pub const LOAD_BALANCER_CLASS: &str = "vipline.dev/xdp";
/// Prefix of annotations and of conditions of our own.
pub const PREFIX: &str = "vipline.dev/";
/// Namespace of the operator and its objects, unless it is told another.
pub const DEFAULT_NAMESPACE: &str = "vipline-system";

/// Requested addresses: a list with commas, at most one of each family.
pub const ANNOTATION_ADDRESSES: &str = "vipline.dev/load-balancer-ips";
/// Requested pool, by name.
pub const ANNOTATION_POOL: &str = "vipline.dev/address-pool";
/// Sharing key: Services with the same one may share an address, where their ports differ.
pub const ANNOTATION_SHARING_KEY: &str = "vipline.dev/allow-shared-ip";
/// Requested [`crate::ForwardingMode`].
pub const ANNOTATION_FORWARDING_MODE: &str = "vipline.dev/forwarding-mode";
/// Requested [`crate::Scheduler`].
pub const ANNOTATION_SCHEDULER: &str = "vipline.dev/scheduler";
/// `none` keeps LB nodes from probing nodes for this Service.
pub const ANNOTATION_HEALTH_CHECK: &str = "vipline.dev/health-check";
/// Written by the operator: the pool an address came from.
pub const ANNOTATION_ALLOCATED_FROM: &str = "vipline.dev/ip-allocated-from-pool";
/// Source ranges as annotation; the field wins.
pub const ANNOTATION_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Prefixes under which MetalLB's `loadBalancerIPs`, `address-pool` and `allow-shared-ip` are read where ours are
/// absent.
pub const METALLB_PREFIXES: [&str; 2] = ["metallb.io/", "metallb.universe.tf/"];

/// Keeps a `LoadBalancer` Service until its address is given back (KEP-980).
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// The same for a Service of another type with `externalIPs`: a cloud controller strips the standard one from those.
pub const FINALIZER_EXTERNAL_IPS: &str = "vipline.dev/cleanup";

/// Condition of a Service: its addresses are allocated.
pub const CONDITION_ALLOCATED: &str = "vipline.dev/Allocated";
/// Condition of a Service: LB nodes have it in their maps.
pub const CONDITION_PROGRAMMED: &str = "vipline.dev/Programmed";
/// Condition of a Service: its addresses are announced to the network, and by whom.
pub const CONDITION_ANNOUNCED: &str = "vipline.dev/Announced";
/// Condition of a Service that asks for what is not served, with the reason.
pub const CONDITION_ACCEPTED: &str = "vipline.dev/Accepted";
/// Condition of an [`crate::AddressPool`]: it overlaps with an earlier one and hands nothing out.
pub const CONDITION_CONFLICT: &str = "Conflict";
/// Condition of an [`crate::AddressPool`]: what its schema cannot see is right, too; else it hands nothing out.
pub const CONDITION_VALID: &str = "Valid";
/// Condition of an [`crate::LbNode`].
pub const CONDITION_READY: &str = "Ready";

/// Label of nodes that LB nodes run on (`true`).
pub const LABEL_LB_NODE: &str = "vipline.dev/lb-node";
/// Taint of LB nodes that run nothing else: those are in no [`crate::NodeSet`].
pub const TAINT_LB_NODE: &str = "vipline.dev/lb-node";
/// Keeps a node out of load balancers: present and not `false` (KEP-3458).
pub const LABEL_EXCLUDE_NODE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// On an LbNode, or on the Node of the same name: that LB node is drained, while the label is present and not `false` (as
/// [`excludes`] has it). It gives everything away first, and serves what still comes.
pub const LABEL_DRAIN: &str = "vipline.dev/drain";
/// Label of a node's name as its host has it. An LB node without it is taken for one whose value is its name.
pub const LABEL_HOSTNAME: &str = "kubernetes.io/hostname";

/// On a node that [`LABEL_EXCLUDE_NODE`] keeps out: when connections that still live there are given up (RFC 3339). On an LB node
/// with [`LABEL_DRAIN`]: when its drain is over, whatever still comes.
pub const ANNOTATION_DRAIN_DEADLINE: &str = "vipline.dev/drain-deadline";

/// Whether a node with this value of [`LABEL_EXCLUDE_NODE`] is kept out (of [`LABEL_DRAIN`]: is drained): `false` in any spelling that Go knows does not, and nonsense
/// does.
pub fn excludes(value: &str) -> bool {
    !matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

/// Taint of a node that the autoscaler is about to delete.
pub const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Secret with the flow-hash seed, in the operator's namespace: made once, immutable, never made again while its
/// fingerprint is pinned in a [`crate::NodeSet`].
pub const SEED_SECRET: &str = "vipline-flow-seed";
/// Its key: 64 hex digits.
pub const SEED_KEY: &str = "seed";
/// Secret with passwords of BGP sessions, in the operator's namespace; [`crate::BgpPeerSpec::password_key`] is a key of it. One
/// name, so that LB nodes may read it and no other.
pub const BGP_SECRET: &str = "vipline-bgp-passwords";
/// Name of the one [`crate::TunnelConfig`].
pub const TUNNEL_CONFIG: &str = "default";
/// Name of the set that all Services with policy Cluster share. Its chunks are `workers-0`, `workers-1`, …
pub const WORKERS: &str = "workers";
/// Field manager of all the operator's writes.
pub const FIELD_MANAGER: &str = "vipline-operator";
/// Field manager of an LB node's writes.
pub const LB_FIELD_MANAGER: &str = "vipline-lb";
/// Lease for which operators compete.
pub const LEADER_LEASE: &str = "vipline-operator";
/// What an installation is called in its claims: the operator's namespace and its leader's Lease.
pub fn installation(namespace: &str) -> String {
    format!("{namespace}/{LEADER_LEASE}")
}

/// Prefix of an LB node's Lease (its liveness), before the node's name.
pub const LB_LEASE_PREFIX: &str = "lb-";
