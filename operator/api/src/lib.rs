//! The `vipline.dev/v1alpha1` custom resource types, shared by the operator and the LB node.
//!
//! Never decides anything and never talks to anybody: these types are the contract between the two programs. Every list
//! and every string has a bound, without which an API server refuses the cost of a CEL rule.
//!
//! | object | where | who writes it | what it is |
//! |---|---|---|---|
//! | [`AddressPool`] | cluster | people; status: operator | what may be handed out, to whom |
//! | [`AddressClaim`] | cluster | operator | an address in use; its creation precedes any use |
//! | [`VipTable`] | operator's namespace | operator | a Service as LB nodes need it |
//! | [`NodeSet`] | operator's namespace | operator | worker nodes, in chunks |
//! | [`TunnelConfig`] | operator's namespace | operator | what worker nodes accept by tunnel |
//! | [`LbNode`] | operator's namespace | its LB node | what that node has programmed, and what it announces |
//! | [`BgpPeer`] | operator's namespace | people; status: operator | a router that LB nodes announce to |
//! | [`Announcement`] | operator's namespace | people; status: operator | which addresses are announced, how, and by whom |

#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    reason = "KubeSchema derives a second, private struct for each of ours"
)]

mod announcement;
mod announcing;
mod bgp_peer;
mod claim;
mod lb_node;
mod lean;
mod names;
mod node_set;
mod pool;
mod schema;
mod tunnel;
mod vip_table;

pub use announcement::{
    Announcement, AnnouncementSpec, AnnouncementStatus, BgpAnnouncement, L2Announcement, MAX_ADDRESS_ANNOUNCEMENTS,
    MAX_ANNOUNCEMENT_PEERS, WhenNoBackend,
};
pub use announcing::{
    AnnounceException, Announcing, BgpAnnouncing, EXCEPTION_ADDRESS_IN_USE, EXCEPTION_NO_BACKEND, EXCEPTION_WAITS,
    L2Announcing, L2Member, LbDraining, MAX_ANNOUNCING_BYTES, MAX_EXCEPTIONS, MAX_L2_MEMBERS, MAX_PEER_STATUSES,
    MAX_PLACES, MAX_UNSERVED, Origin, PeerStatus, Way,
};
pub use bgp_peer::{Bfd, BgpPeer, BgpPeerSpec, BgpPeerStatus, GracefulRestart, MAX_ANNOUNCING_NODES};
pub use claim::{AddressClaim, AddressClaimSpec, Holder, Use};
pub use lb_node::{
    FailingTable, LbNode, LbNodeSpec, LbNodeStatus, MAX_FAILING_TABLES, MAX_LB_NODE_BYTES, MAX_LIVELY_TRANSITS,
    Programmed, Transits,
};
pub use lean::Lean;
pub use names::*;
pub use node_set::{LeavingNode, MAX_NODES_PER_CHUNK, NodeEntry, NodeSet, NodeSetSpec, NodeSetTransit};
pub use pool::{AddressPool, AddressPoolSpec, AddressPoolStatus, Usage};
pub use schema::MAX_POOL_ADDRESSES;
pub use tunnel::{TunnelConfig, TunnelConfigSpec};
pub use vip_table::{
    AddressFamily, Affinity, Backends, ForwardingMode, HealthCheck, LocalNode, LocalTransit, MAX_LOCAL_NODES,
    MAX_VIP_PORTS, Protocol, Scheduler, ServiceRef, TransportPort, VipAddress, VipPort, VipTable, VipTableSpec,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt as _;

/// All custom resource definitions as they are installed, in the order of their names.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        schema::finish(AddressClaim::crd(), Some(&claim::NAMED)),
        schema::finish(AddressPool::crd(), None),
        schema::finish(Announcement::crd(), Some(&announcement::NAMED)),
        schema::finish(BgpPeer::crd(), Some(&bgp_peer::NAMED)),
        schema::finish(LbNode::crd(), None),
        schema::finish(NodeSet::crd(), Some(&node_set::NAMED)),
        schema::finish(TunnelConfig::crd(), Some(&tunnel::NAMED)),
        schema::finish(VipTable::crd(), Some(&vip_table::NAMED)),
    ]
}
