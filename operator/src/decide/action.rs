//! The vocabulary of writes.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ServiceStatus, apimachinery::pkg::apis::meta::v1::Condition};
use operator_api::{
    AddressClaim, AddressPoolStatus, AnnouncementStatus, BgpPeerStatus, NodeSet, TunnelConfig, VipTable,
};

use crate::ServiceKey;

/// One write. Each is safe to be the last: whoever comes next goes on from what the API server has.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Server-side apply of finalizers and annotations of ours; refused with 409 when the uid is another.
    ApplyServiceMeta {
        /// Which Service.
        service: ServiceKey,
        /// Its uid.
        uid: String,
        /// All finalizers of ours that it shall have.
        finalizers: Vec<&'static str>,
        /// All annotations of ours that it shall have.
        annotations: BTreeMap<&'static str, String>,
    },
    /// Merge patch of the whole list of finalizers and of annotations of ours to `null`, bound to this resource version: what is
    /// taken out may be owned by others as well, and an apply would leave it there.
    ReplaceServiceMeta {
        /// Which Service.
        service: ServiceKey,
        /// Its `resourceVersion`: 409 when it is another by now.
        resource_version: String,
        /// What stays.
        finalizers: Vec<String>,
        /// Annotations that go.
        without_annotations: Vec<&'static str>,
    },
    /// Server-side apply of the status: ingress and conditions of ours.
    ApplyServiceStatus {
        /// Which Service.
        service: ServiceKey,
        /// Its uid.
        uid: String,
        /// `None`: it has no ingress, and gets none. What has once been applied must be applied again, or it goes.
        ingress: Option<ServiceStatus>,
        /// Conditions of ours.
        conditions: Vec<Condition>,
    },
    /// Merge patch of the whole list of conditions and, if so said, of `status.loadBalancer.ingress` to `null`, bound to this
    /// resource version.
    ReplaceServiceStatus {
        /// Which Service.
        service: ServiceKey,
        /// Its `resourceVersion`.
        resource_version: String,
        /// Whether the ingress goes; else it is left as it is.
        clear_ingress: bool,
        /// Conditions that stay: those of others.
        conditions: Vec<Condition>,
    },
    /// POST: 409 when the address is taken.
    CreateClaim(AddressClaim),
    /// PUT with the `resourceVersion` in it: 409 when somebody was faster.
    ReplaceClaim(AddressClaim),
    /// DELETE with preconditions.
    DeleteClaim {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// Its `resourceVersion`.
        resource_version: String,
    },
    /// Server-side apply.
    ApplyTable(VipTable),
    /// DELETE with preconditions: a new life of the Service may have taken it over meanwhile.
    DeleteTable {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// Its `resourceVersion`.
        resource_version: String,
    },
    /// Server-side apply.
    ApplyNodeSet(NodeSet),
    /// DELETE.
    DeleteNodeSet {
        /// Its name.
        name: String,
    },
    /// Server-side apply.
    ApplyTunnel(TunnelConfig),
    /// POST of the Secret with a new random seed: 409 when there is one.
    CreateSeed,
    /// Server-side apply of a pool's status.
    ApplyPoolStatus {
        /// Its name.
        name: String,
        /// What became of it.
        status: AddressPoolStatus,
    },
    /// Server-side apply of a BgpPeer's status.
    ApplyPeerStatus {
        /// Its name.
        name: String,
        /// What became of it.
        status: BgpPeerStatus,
    },
    /// Server-side apply of an Announcement's status.
    ApplyAnnouncementStatus {
        /// Its name.
        name: String,
        /// What became of it.
        status: AnnouncementStatus,
    },
}

/// An Event about a Service, a pool or the TunnelConfig, emitted once, after the write that it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it is about.
    pub about: About,
    /// A `Warning`; else `Normal`.
    pub warning: bool,
    /// In UpperCamelCase: names that people grep for.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// A Service.
    Service {
        /// Which.
        service: ServiceKey,
        /// Its uid.
        uid: String,
    },
    /// An `AddressPool`.
    Pool {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// The `TunnelConfig`.
    Tunnel {
        /// The operator's namespace.
        namespace: String,
        /// Its uid; empty where there is none yet.
        uid: String,
    },
}

/// What to do for a subject now.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// This write; then its notes; then ask again.
    Do(Box<Action>, Vec<Note>),
    /// Nothing, until something changes.
    Done,
    /// Nothing now; ask again after so many seconds even if nothing changes.
    Wait(u32),
    /// It cannot be had (said in the condition already, or by [`tunnel_fault`](super::tunnel_fault)): ask again with backoff, 5 s to
    /// 300 s.
    Retry,
}
