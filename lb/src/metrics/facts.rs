//! What the daemon's loop says of itself. Never a counter of the program: those are read beside the loop.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use lb_core::{
    bfd::{self, Discard},
    bgp::SessionView,
    desired::BackendId,
    health::{State, Sums},
    slow::Counts,
};

use super::Meters;
use crate::source::kube::agent::Standing;

/// How things stand.
pub struct Facts {
    /// Whether the program is in place with whole tables.
    pub serving: bool,
    /// When the daemon started.
    pub started: SystemTime,
    /// How far it is with giving its VIP addresses away; none while it is not drained.
    pub draining: Option<&'static str>,
    /// Its configuration.
    pub config: ConfigFacts,
    /// How much there is; none while nothing is served.
    pub tables: Option<TableFacts>,
    /// Interfaces with the program, and how it is attached: `native`, `generic`, `gone`.
    pub interfaces: Vec<(String, &'static str)>,
    /// Backends' health, where any is probed.
    pub health: Option<HealthFacts>,
    /// The slow path, where it is on.
    pub slow: Option<SlowFacts>,
    /// BGP peers and their sessions; none where BGP is not configured.
    pub bgp: Option<Vec<BgpFacts>>,
    /// Datagrams that BFD discarded, and why; none while nothing is served.
    pub bfd_discarded: Option<Vec<(Discard, u64)>>,
    /// The cluster, where one is the source.
    pub kube: Option<Standing>,
    /// Counters; none while nothing is served.
    pub meters: Option<Arc<Meters>>,
}

/// The file.
#[derive(Clone, Copy, Debug)]
pub struct ConfigFacts {
    /// Counts changes of the tables, those that a cluster asks for included.
    pub revision: u64,
    /// When the file was applied last.
    pub applied: SystemTime,
    /// When it was refused last.
    pub refused: Option<SystemTime>,
    /// What was read last was refused: what was applied last is in force.
    pub stale: bool,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub struct TableFacts {
    /// VIPs.
    pub vips: usize,
    /// Backends with a next hop, or that are this node.
    pub resolved: usize,
    /// The others.
    pub unresolved: usize,
    /// Distinct lookup tables.
    pub lookup_tables: usize,
    /// VIPs whose change of backends waits for room.
    pub waiting: usize,
    /// VIP addresses that this node answers for on its segments.
    pub owned: usize,
    /// VIP addresses that it would answer for if another host did not have them.
    pub in_use: usize,
    /// The flow table, where flows are recorded.
    pub flows: Option<FlowFacts>,
}

/// The flow table.
#[derive(Clone, Copy, Debug)]
pub struct FlowFacts {
    /// Records there is room for.
    pub room: usize,
    /// Those of flows that live, as counted last; none before the first time.
    pub live: Option<u64>,
}

/// Backends' health.
#[derive(Clone, Debug, Default)]
pub struct HealthFacts {
    /// Every backend that is probed, by the worst of its checks.
    pub backends: BTreeMap<BackendId, State>,
    /// Probes by kind and outcome.
    pub probes: BTreeMap<(&'static str, &'static str), u64>,
    /// All checks together.
    pub sums: Sums,
    /// VIPs of which so few backends are eligible that all are used.
    pub vips_in_panic: usize,
    /// VIPs of which no backend is eligible, so that new flows are refused.
    pub vips_refused: usize,
}

/// A BGP peer.
#[derive(Clone, Debug)]
pub struct BgpFacts {
    /// Its name.
    pub name: String,
    /// Its session.
    pub session: SessionView,
    /// BFD with it, where it is watched.
    pub bfd: Option<bfd::SessionView>,
}

/// The slow path.
#[derive(Clone, Debug)]
pub struct SlowFacts {
    /// What became of packets.
    pub counts: Box<Counts>,
    /// One for each receive queue.
    pub workers: Vec<WorkerFacts>,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct WorkerFacts {
    /// Its interface.
    pub interface: String,
    /// Its receive queue.
    pub queue: u32,
    /// Whether it runs.
    pub running: bool,
    /// Times that it was started again.
    pub restarts: u64,
}
