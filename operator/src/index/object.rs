//! What is watched.
//!
//! Never a client's type: objects come in as they are and are told apart by kind.

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Node, Secret, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use operator_api::{AddressClaim, AddressPool, Announcement, BgpPeer, LbNode, NodeSet, TunnelConfig, VipTable};

use super::store::Key;

/// An object of a kind that is watched.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "taken apart at once, never kept")]
pub enum Object {
    /// A Service of any type and class.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A node.
    Node(Node),
    /// A namespace: its labels count.
    Namespace(Namespace),
    /// A pool.
    Pool(AddressPool),
    /// A claim.
    Claim(AddressClaim),
    /// A table.
    Table(VipTable),
    /// A chunk of a node set.
    NodeSet(NodeSet),
    /// The tunnel configuration.
    Tunnel(TunnelConfig),
    /// An LB node.
    LbNode(LbNode),
    /// A Lease of the operator's namespace: an LB node's liveness.
    Lease(Lease),
    /// A BGP peer.
    Peer(BgpPeer),
    /// An Announcement.
    Announcement(Announcement),
    /// The seed's Secret; others of the namespace are not watched.
    Seed(Secret),
}

impl Object {
    /// What it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pool(_) => Kind::Pool,
            Self::Claim(_) => Kind::Claim,
            Self::Table(_) => Kind::Table,
            Self::NodeSet(_) => Kind::NodeSet,
            Self::Tunnel(_) => Kind::Tunnel,
            Self::LbNode(_) => Kind::LbNode,
            Self::Lease(_) => Kind::Lease,
            Self::Peer(_) => Kind::Peer,
            Self::Announcement(_) => Kind::Announcement,
            Self::Seed(_) => Kind::Seed,
        }
    }

    /// Its metadata.
    pub const fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::Namespace(object) => &object.metadata,
            Self::Pool(object) => &object.metadata,
            Self::Claim(object) => &object.metadata,
            Self::Table(object) => &object.metadata,
            Self::NodeSet(object) => &object.metadata,
            Self::Tunnel(object) => &object.metadata,
            Self::LbNode(object) => &object.metadata,
            Self::Lease(object) => &object.metadata,
            Self::Peer(object) => &object.metadata,
            Self::Announcement(object) => &object.metadata,
            Self::Seed(object) => &object.metadata,
        }
    }

    /// `None`: it has no name.
    pub(super) fn key(&self) -> Option<Key> {
        let metadata = self.metadata();
        Some(Key {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().filter(|name| !name.is_empty())?,
        })
    }
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "as the variants of Object")]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    Namespace,
    Pool,
    Claim,
    Table,
    NodeSet,
    Tunnel,
    LbNode,
    Lease,
    Peer,
    Announcement,
    Seed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Namespace,
        Self::Pool,
        Self::Claim,
        Self::Table,
        Self::NodeSet,
        Self::Tunnel,
        Self::LbNode,
        Self::Lease,
        Self::Peer,
        Self::Announcement,
        Self::Seed,
    ];

    /// Whether only those of the operator's own namespace mean anything.
    pub(super) const fn is_of_operator(self) -> bool {
        match self {
            Self::Table
            | Self::NodeSet
            | Self::Tunnel
            | Self::LbNode
            | Self::Lease
            | Self::Peer
            | Self::Announcement
            | Self::Seed => true,
            Self::Service | Self::EndpointSlice | Self::Node | Self::Namespace | Self::Pool | Self::Claim => false,
        }
    }
}

/// What the operator was told on its command line, as far as decisions need it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Namespace of the operator and its objects.
    pub namespace: String,
    /// `spec.loadBalancerClass` of Services that are ours.
    pub class: String,
    /// Take Services without a class, too.
    pub default_class: bool,
    /// Take Services without a class whose labels fit, whatever `default_class` says. One that makes no sense fits none.
    pub service_selector: Option<LabelSelector>,
}

impl Settings {
    /// What this installation is called in its claims.
    pub fn installation(&self) -> String {
        operator_api::installation(&self.namespace)
    }
}
