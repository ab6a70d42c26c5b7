//! The words for what a Service asks of us.
//!
//! Never an opinion of their own: `service` says which of them a Service deserves.

use operator_api::{Affinity, ForwardingMode, Scheduler, ServiceRef, VipPort};

use crate::ipam;

/// What a Service asks of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Not for us, and nothing of ours on it: never touched. A Service that is not there is foreign, too.
    Foreign,
    /// Not served, or not any more: what there is of ours is cleaned up.
    Nothing(Why),
    /// To be served, if there are no [`Serve::refusals`].
    Serve(Box<Serve>),
}

/// Why a Service gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is being deleted.
    Deleted,
    /// Its type asks for no load balancer, and it has no `externalIPs`.
    NotLoadBalancer,
    /// `type: ExternalName`: a name in DNS only.
    ExternalName,
    /// `clusterIP: None`: kube-proxy serves no VIP of it.
    Headless,
    /// It has no class and is no longer selected: its status stays, and whoever serves it next goes on with its address.
    LetGo,
    /// It has another class by now: its status is of others. Only what is provably ours goes.
    OtherClass,
}

impl Why {
    /// In a word or two, for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Deleted => "being deleted",
            Self::NotLoadBalancer => "not of type LoadBalancer",
            Self::ExternalName => "of type ExternalName",
            Self::Headless => "headless",
            Self::LetGo => "let go",
            Self::OtherClass => "of another load balancer class",
        }
    }

    /// Whether `status.loadBalancer` stays as it is.
    pub const fn keeps_status(self) -> bool {
        match self {
            Self::LetGo | Self::OtherClass => true,
            Self::Deleted | Self::NotLoadBalancer | Self::ExternalName | Self::Headless => false,
        }
    }
}

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// The Service.
    pub service: ServiceRef,
    /// What it asks of the pools.
    pub request: ipam::Request,
    /// Ports that are served, sorted; each (protocol, port) once.
    pub ports: Vec<VipPort>,
    /// Ports that are not, sorted.
    pub refused_ports: Vec<RefusedPort>,
    /// How packets are forwarded.
    pub mode: ForwardingMode,
    /// How a backend is chosen.
    pub scheduler: Scheduler,
    /// Whether a client stays with its backend.
    pub affinity: Option<Affinity>,
    /// Sources that may use it, for both families, sorted, without overlap; `None`: all.
    pub source_ranges: Option<Vec<String>>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// `spec.healthCheckNodePort` where it is to be asked.
    pub health_check_node_port: Option<u16>,
    /// LB nodes probe nodes for it.
    pub probed: bool,
    /// `ingress[].ipMode`: `VIP` or `Proxy`.
    pub ip_mode: &'static str,
    /// What keeps it until its addresses are given back.
    pub finalizer: &'static str,
    /// What it asks for and cannot have; one is enough not to serve it (`vipline.dev/Accepted=False`).
    pub refusals: Vec<Refusal>,
    /// What it uses that Kubernetes or we would rather it did not.
    pub deprecations: Vec<Deprecation>,
}

impl Serve {
    /// Nothing in it is refused as a whole.
    pub fn is_accepted(&self) -> bool {
        self.refusals.is_empty()
    }
}

/// A port that is not served, as the Service has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RefusedPort {
    /// Port.
    pub port: u16,
    /// Protocol: `SCTP`, or whatever Kubernetes will have next.
    pub protocol: String,
}

/// Something a Service asks for that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A value that makes no sense where it stands.
    #[error("{field}: {value:?} is {why}")]
    BadValue {
        /// Field or annotation.
        field: String,
        /// Its value, at most 80 characters of it.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A value that is known and not served by this build.
    #[error("{field}: {value:?} is not served by this version; {served}")]
    NotServed {
        /// Field or annotation.
        field: String,
        /// Its value, at most 80 characters of it.
        value: String,
        /// What is.
        served: &'static str,
    },
    /// All its ports are of protocols that are not served.
    #[error("spec.ports: none of its protocols is served ({0})")]
    NoServedPort(String),
    /// It has no ports.
    #[error("spec.ports: there are none")]
    NoPorts,
    /// `NodePortNat` needs a node port for each port.
    #[error("spec.ports: port {port}/{protocol} has no node port, and {field} asks for NodePortNat, which needs one")]
    NoNodePort {
        /// Field or annotation that asks for it.
        field: String,
        /// Port.
        port: u16,
        /// Protocol.
        protocol: &'static str,
    },
    /// More than an object of ours can hold.
    #[error("{field}: {count} are more than the {most} that can be served")]
    TooMany {
        /// Field or annotation.
        field: String,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
}

/// Most characters of a value that a message quotes.
const MAX_QUOTED: usize = 80;

impl Refusal {
    pub(super) fn bad(field: &str, value: &str, why: &'static str) -> Self {
        Self::BadValue {
            field: field.to_owned(),
            value: value.chars().take(MAX_QUOTED).collect(),
            why,
        }
    }

    pub(super) fn not_served(field: &str, value: &str, served: &'static str) -> Self {
        Self::NotServed {
            field: field.to_owned(),
            value: value.chars().take(MAX_QUOTED).collect(),
            served,
        }
    }

    /// In UpperCamelCase, for a condition's reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::BadValue { .. } => "InvalidValue",
            Self::NotServed { .. } => "NotServed",
            Self::NoServedPort(_) => "ProtocolNotSupported",
            Self::NoPorts => "NoPorts",
            Self::NoNodePort { .. } => "NoNodePort",
            Self::TooMany { .. } => "TooMany",
        }
    }
}

/// Something a Service uses that has a better successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deprecation {
    /// `spec.loadBalancerIP`.
    LoadBalancerIp,
}

impl Deprecation {
    /// For people.
    pub const fn message(self) -> &'static str {
        match self {
            Self::LoadBalancerIp => {
                "spec.loadBalancerIP is deprecated and holds one address only: use the annotation vipline.dev/load-balancer-ips"
            }
        }
    }
}
