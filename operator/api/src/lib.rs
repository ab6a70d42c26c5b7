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
//! | [`LbNode`] | operator's namespace | its LB node | what that node has programmed |
//!
//! `BgpPeer` and `Announcement` come with announcing; until then nothing reads them and no CRD of theirs is installed.

#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    reason = "KubeSchema derives a second, private struct for each of ours"
)]

mod claim;
mod lb_node;
mod lean;
mod names;
mod node_set;
mod pool;
mod schema;
mod tunnel;
mod vip_table;

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
        schema::finish(LbNode::crd(), None),
        schema::finish(NodeSet::crd(), Some(&node_set::NAMED)),
        schema::finish(TunnelConfig::crd(), Some(&tunnel::NAMED)),
        schema::finish(VipTable::crd(), Some(&vip_table::NAMED)),
    ]
}
