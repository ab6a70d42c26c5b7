//! The control socket: how the CLI asks a running daemon. Never changes what happens to packets; one request and one answer, each
//! a line of JSON over a Unix socket that only its owner can open. A capture's answer goes on, line by line, until it ends.

mod bgp;
mod capture;
mod client;
mod l2;
mod leave;
mod server;
mod view;

pub use bgp::{BfdPeerView, BgpErrorView, BgpPeerView, BgpView};
pub use capture::{
    CaptureEnd, CaptureEvent, CaptureOptions, CaptureStarted, FlowView, RATE, RATE_MAX, SNAPLEN, SNAPLEN_MAX,
    SNAPLEN_MIN, SampleView, VipFilter,
};
pub use client::{ClientError, Stream, ask, follow};
pub use l2::{AnnouncedView, GroupView, InUseView, MemberView};
pub use leave::NodeDrainView;
pub use server::{Answer, ListenError, Listener};
pub use view::{
    AcceptView, Affinity, AwayView, BackendView, CheckView, CountedBy, CounterView, DrainCause, DrainView, ExplainView,
    FlowTableView, HealthSums, HeldView, InterfaceView, KubeView, MetricsView, NextHopKind, PlacedBy, ReloadView, Role,
    SetView, SlowKindView, SlowPathView, StatusView, UndrainView, VipView, WaitView, WorkerView,
};

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use lb_core::desired::Protocol;

/// Longest request line in bytes: bounds what a client can make the daemon hold.
const MAX_REQUEST: usize = 4 * 1024;
/// Most clients at a time; each costs a task and a request line.
const MAX_CLIENTS: usize = 16;

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask", deny_unknown_fields)]
pub enum Request {
    /// How the daemon is: [`StatusView`].
    Status,
    /// All VIPs: a list of [`VipView`].
    Vips,
    /// All backends: a list of [`BackendView`].
    Backends,
    /// All verdicts: a list of [`CounterView`].
    Counters,
    /// Where a flow would go: [`ExplainView`].
    Explain {
        /// `tcp` or `udp`.
        protocol: ProtocolName,
        /// Client address and port.
        source: SocketAddr,
        /// VIP address and port.
        destination: SocketAddr,
    },
    /// Let what a list of VipTables dropped go: [`AcceptView`].
    KubeAccept,
    /// Drain a backend: [`DrainView`].
    Drain {
        /// Its name.
        backend: String,
        /// In so many seconds flows that still live there are given up; `None`: never.
        deadline_s: Option<u64>,
        /// Also where it is the last that takes new connections of a VIP.
        force: bool,
    },
    /// Give a backend new flows again that was drained by [`Self::Drain`]: [`UndrainView`].
    Undrain {
        /// Its name.
        backend: String,
    },
    /// All backends that take no new flows, and what still lives there: a list of [`DrainView`].
    Drains,
    /// Drain this LB node: [`NodeDrainView`].
    DrainNode {
        /// In so many seconds it counts as left, whatever still comes; `None`: never.
        deadline_s: Option<u64>,
        /// Also where nobody else answers for some of its VIP addresses.
        force: bool,
    },
    /// Let this LB node have its part of the VIP addresses again: [`UndrainView`].
    UndrainNode,
    /// Whether this LB node is being drained: [`NodeDrainView`], or `null`.
    NodeDrain,
    /// BGP sessions: [`BgpView`]; `null` where BGP is not configured.
    Bgp,
    /// Sample packets: [`CaptureStarted`], then [`CaptureEvent`]s to the end.
    Capture {
        /// Which, and how much of them.
        options: CaptureOptions,
    },
}

/// A protocol on the wire of the control socket and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolName {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Tcp => Self::Tcp,
            ProtocolName::Udp => Self::Udp,
        }
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// The answer, a view of the kind that was asked for.
    Ok(serde_json::Value),
    /// Why there is none.
    Error(String),
}
