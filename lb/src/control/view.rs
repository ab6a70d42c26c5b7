//! What the daemon tells: plain data, the same for tables and for `-o json`. Field names are an interface; they change with a word
//! in the CHANGELOG.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{AnnouncedView, BgpView, GroupView, InUseView, NodeDrainView};

/// Which daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `vipline run`.
    Lb,
    /// `vipline node`.
    Node,
}

/// `vipline status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the daemon.
    pub version: String,
    /// Which daemon.
    pub role: Role,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Whether its program is in place with whole tables. Before, [`KubeView::waiting`] and [`KubeView::trouble`] say what it waits
    /// for, and there is nothing to tell of interfaces, tables and packets.
    #[serde(default = "serves")]
    pub serving: bool,
    /// Its configuration file.
    pub config: String,
    /// Counts changes of the tables; 1 after the first.
    pub revision: u64,
    /// The last time that configuration was read.
    pub last_reload: ReloadView,
    /// Interfaces with the program.
    pub interfaces: Vec<InterfaceView>,
    /// Features compiled into the running program.
    pub features: Vec<String>,
    /// VIPs in the match table.
    pub vips: usize,
    /// Backends with a line.
    pub backends: usize,
    /// Backends whose next hop is known, or that are this node.
    pub backends_ready: usize,
    /// Distinct lookup tables.
    pub tables: usize,
    /// VIPs whose change of backends waits for room for its transit.
    #[serde(default)]
    pub waiting_vips: usize,
    /// VIP addresses that this node would answer for on its segments if another host did not have them.
    #[serde(default)]
    pub in_use: Vec<InUseView>,
    /// Those with whom this node shares the addresses of its segments.
    #[serde(default)]
    pub group: Option<GroupView>,
    /// Backends by their health, where any is probed.
    #[serde(default)]
    pub health: Option<HealthSums>,
    /// Packets by fate: forward, pass, slow, drop.
    pub packets: Vec<(String, u64)>,
    /// Flow records, where there are any.
    #[serde(default)]
    pub flow_table: Option<FlowTableView>,
    /// The slow path, where it is on.
    pub slow_path: Option<SlowPathView>,
    /// How far it is with giving its VIP addresses away, while it is being drained.
    #[serde(default)]
    pub drain: Option<NodeDrainView>,
    /// BGP sessions, where BGP is configured.
    #[serde(default)]
    pub bgp: Option<BgpView>,
    /// The cluster that says what there is, with `--kube`.
    #[serde(default)]
    pub kube: Option<KubeView>,
    /// Where metrics are, where they are configured.
    #[serde(default)]
    pub metrics: Option<MetricsView>,
    /// Where links and maps are pinned; absent where the data plane ends with the daemon.
    #[serde(default)]
    pub pinned: Option<String>,
}

/// Flow records: of slots in transit, and of VIPs with a scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTableView {
    /// Records there is room for.
    pub records: usize,
    /// Flows that are recorded and live, as counted within the last half minute or two; absent until then.
    pub flows: Option<u64>,
    /// What found no room, and goes by its slot: SYNs and datagrams in transit, new flows of VIPs with a scheduler, clients.
    pub unrecorded: Vec<(String, u64)>,
}

/// Where metrics are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsView {
    /// Address and port of `/metrics`.
    pub listen: SocketAddr,
    /// Why they are not there; absent when they are.
    pub error: Option<String>,
}

/// Daemons that do not say so answer only when they serve.
fn serves() -> bool {
    true
}

/// Backends by their health, and the probes of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthSums {
    /// Backends all of whose checks succeed.
    pub healthy: usize,
    /// Backends of which not all is known yet: eligible.
    pub unknown: usize,
    /// Backends that take no new flows.
    pub unhealthy: usize,
    /// Backends of which nothing lives.
    pub dead: usize,
    /// VIPs of which so few backends are eligible that all are used.
    pub vips_in_panic: usize,
    /// VIPs of which no backend is eligible, so that new flows are refused.
    #[serde(default)]
    pub vips_refused: usize,
    /// Checks: each is probed by itself, whoever shares it.
    pub checks: usize,
    /// Checks that are not made, because there are too many; their backends are eligible.
    pub unprobed: usize,
    /// How long a probe waits for its turn, in milliseconds; more than a moment: there is more to do than the rate allows.
    pub late_ms: u64,
    /// Probes since the start by kind and outcome, `http/status`; those that are not 0.
    pub probes: Vec<(String, u64)>,
}

/// A check of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// What is asked: `http :8080/healthz`.
    pub check: String,
    /// `unknown`, `healthy`, `unhealthy` or `dead`.
    pub state: String,
    /// Seconds since it is.
    pub seconds: u64,
    /// Why the last probe failed, where one did since it was last healthy.
    pub reason: Option<String>,
    /// Probes that failed, the last in a row.
    pub failures: u16,
}

/// A cluster as a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KubeView {
    /// URL of its API server.
    pub server: String,
    /// The operator's namespace.
    pub namespace: String,
    /// Seconds since all of it could be watched; absent while some of it cannot.
    pub connected_s: Option<u64>,
    /// What cannot be watched.
    pub away: Vec<AwayView>,
    /// What serving waits for.
    pub waiting: Vec<WaitView>,
    /// What is served comes from the cache: the API server has said nothing since the start.
    pub from_cache: bool,
    /// Highest `resourceVersion` of VipTables (of a worker node: of the TunnelConfig) that is in the maps.
    pub tables_revision: u64,
    /// The same of NodeSets.
    pub node_sets_revision: u64,
    /// Tables that fail.
    pub failing_count: usize,
    /// The first of them, with the reason.
    pub failing: Vec<(String, String)>,
    /// A list that drops too much.
    pub held: Option<HeldView>,
    /// What is wrong with the flow-hash seed.
    pub seed_alarm: Option<String>,
    /// Why the maps cannot take what the cluster says.
    pub trouble: Option<String>,
    /// Changes that reached the maps since the start.
    pub changes: u64,
    /// Half of them took no longer than this from the API server's word to the maps, in ms.
    pub delay_p50_ms: Option<f64>,
    /// The same of 99 in 100.
    pub delay_p99_ms: Option<f64>,
}

/// What a daemon waits for before it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitView {
    /// What.
    pub what: String,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// What cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwayView {
    /// What.
    pub what: String,
    /// For how long, in seconds.
    pub seconds: u64,
    /// Why.
    pub why: String,
}

/// A list of tables that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldView {
    /// VIPs that it would drop.
    pub vips: usize,
    /// VIPs that there were.
    pub of: usize,
    /// Seconds until it goes through by itself.
    pub seconds_left: u64,
}

/// `vipline kube accept`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptView {
    /// VIPs that go; 0 where nothing was held.
    pub vips: usize,
}

/// Why a backend takes no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainCause {
    /// By `vipline drain`.
    Word,
    /// It has weight 0 in all its sets.
    Weight,
    /// It is in no set any more.
    Left,
}

/// A backend that takes no new flows, and what still lives there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Its name.
    pub backend: String,
    /// Why.
    pub cause: DrainCause,
    /// Its address; absent when it is in no set any more and nothing lives there.
    pub address: Option<IpAddr>,
    /// Seconds since it began; known of those by `vipline drain`.
    pub seconds: Option<u64>,
    /// Seconds until flows that still live there are given up; 0 when they have been. Absent: never.
    pub deadline_s: Option<u64>,
    /// Slots whose connections of before go there.
    pub slots: usize,
    /// Of them, those with such a packet in the last minute.
    pub active_slots: usize,
    /// Flows that so many active slots mean, if flows choose slots at random; absent when all are active: many.
    pub flows: Option<u64>,
    /// Flows that are recorded as living there.
    pub recorded: u64,
    /// Seconds since the last packet of an old flow was seen; absent: none was.
    pub silent_s: Option<u64>,
    /// Nothing is sent there any more.
    pub empty: bool,
}

/// `vipline drain backend --undo`, `vipline drain node --undo`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndrainView {
    /// It was being drained.
    pub was_drained: bool,
}

/// The slow path: who works, what was done and what was shed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowPathView {
    /// One worker for every receive queue.
    pub workers: Vec<WorkerView>,
    /// All kinds of work.
    pub kinds: Vec<SlowKindView>,
    /// Packets that the fast path did not hand over because their reason was over its budget, by reason; those of them that are
    /// not 0.
    pub shed_by_fast_path: Vec<(String, u64)>,
    /// Datagrams whose fragments are being watched.
    pub datagrams: u64,
    /// Bytes of fragments that wait for the first of their datagram.
    pub fragment_bytes: u64,
    /// Most memory that it can take: frames, rings, what it watches and holds.
    pub memory_bytes: u64,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its interface.
    pub interface: String,
    /// Its receive queue.
    pub queue: u32,
    /// Whether it runs; else it waits for its restart.
    pub running: bool,
    /// `copy` or `zero_copy`.
    pub mode: String,
    /// Times that it was started again.
    pub restarts: u64,
    /// Why, last.
    pub last_error: Option<String>,
    /// Packets received.
    pub received: u64,
    /// Packets sent out of its interface.
    pub sent: u64,
    /// Packets that waited when it looked last: received, and handed to it for sending.
    pub queued: u32,
    /// Frames on their way out.
    pub sending: u32,
    /// Packets that it or its socket dropped, by reason; those that are not 0.
    pub dropped: Vec<(String, u64)>,
}

/// A kind of slow-path work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowKindView {
    /// Its name, as in the configuration.
    pub kind: String,
    /// Packets answered by this node.
    pub answered: u64,
    /// Packets sent to their backend.
    pub forwarded: u64,
    /// Packets dropped, the shed ones included.
    pub dropped: u64,
    /// Of them, those over the kind's budget or over what one source gets.
    pub shed: u64,
    /// Packets by outcome; those that are not 0.
    pub outcomes: Vec<(String, u64)>,
}

/// How a reading of the configuration ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// Seconds ago.
    pub seconds_ago: u64,
    /// Why it was refused; absent when it was applied.
    pub error: Option<String>,
}

/// An interface with the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// `native` or `generic`; `gone` when the interface was deleted, also where one of the same name was made since.
    pub mode: String,
    /// Why native mode was refused, where generic mode stands in for it.
    pub native_refused: Option<String>,
}

/// What says where a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacedBy {
    /// Its slot of the lookup table.
    Slot,
    /// A record: of the flow, or of its client.
    Record,
    /// The scheduler: nothing is known of the flow.
    Scheduler,
}

/// What of a flow chooses its backend, in the words of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// Addresses, ports and protocol.
    #[default]
    None,
    /// The client's address alone.
    ClientIp,
}

impl From<bool> for Affinity {
    /// From [`lb_core::desired::Vip::client_affinity`].
    fn from(client_affinity: bool) -> Self {
        if client_affinity { Self::ClientIp } else { Self::None }
    }
}

/// Daemons that do not say so have no other.
fn maglev() -> String {
    "mh".to_owned()
}

/// A VIP and its table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipView {
    /// VIP address.
    pub address: IpAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Port.
    pub port: u16,
    /// Members of its backend set, drained ones included.
    pub backends: usize,
    /// Members that take flows and can be reached.
    pub ready: usize,
    /// Slots of its lookup table.
    pub slots: usize,
    /// VIPs that share the table, itself included.
    pub shared_by: usize,
    /// Whether it has limits.
    pub limited: bool,
    /// Source ranges, where it has any.
    pub allowed_sources: Option<Vec<String>>,
    /// What chooses a flow's slot.
    #[serde(default)]
    pub affinity: Affinity,
    /// How the backend of a new flow is chosen: `mh`, `sh`, `dh`, `rr`, `wrr`, `lc`, `wlc`, `sed` or `nq`.
    #[serde(default = "maglev")]
    pub scheduler: String,
    /// How long a client's new flows go where its last ones went, in seconds.
    #[serde(default)]
    pub affinity_timeout_s: Option<u32>,
    /// Whether routers are told of its address, and why; absent without BGP.
    #[serde(default)]
    pub bgp: Option<AnnouncedView>,
    /// Whether its address is answered for on this node's segments, and why; absent where it is on none.
    #[serde(default)]
    pub l2: Option<AnnouncedView>,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes forwarded, of IP packets as the client sent them.
    pub bytes: u64,
}

/// A backend and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// How it is reached.
    pub next_hop: NextHopKind,
    /// It is in no set any more, and kept for the flows that may live there.
    #[serde(default)]
    pub has_departed: bool,
    /// It is being drained (`vipline drain`): no new flows go there.
    #[serde(default)]
    pub is_drained: bool,
    /// The sets it is in.
    pub sets: Vec<SetView>,
    /// The checks that anybody makes of it; empty: it is not probed.
    #[serde(default)]
    pub checks: Vec<CheckView>,
    /// Open flows of VIPs with a scheduler, which are recorded.
    #[serde(default)]
    pub open_flows: u64,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes forwarded, of IP packets as the client sent them.
    pub bytes: u64,
}

/// How a backend is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum NextHopKind {
    /// By this neighbour.
    Via {
        /// Egress interface.
        interface: String,
        /// MAC address of the next hop.
        mac: String,
        /// Outer source address.
        source: IpAddr,
        /// MTU of the way in bytes.
        mtu: u16,
    },
    /// It is this node.
    Local,
    /// Not at all, at the moment.
    Unresolved {
        /// Why.
        reason: String,
    },
}

/// A backend's part in a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetView {
    /// VIPs that the set serves.
    pub vips: usize,
    /// Its weight.
    pub weight: u16,
    /// Its slots.
    pub slots: usize,
    /// Slots of the table.
    pub of: usize,
}

/// Which path counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CountedBy {
    /// XDP: every packet, once.
    #[default]
    Fast,
    /// AF_XDP: packets that the fast path counted as slow, once more, by what became of them.
    Slow,
}

/// A verdict, or an outcome of the slow path, and how often it was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterView {
    /// Which path counted.
    #[serde(default)]
    pub path: CountedBy,
    /// `forward`, `pass`, `slow` or `drop`; of the slow path `answered`, `forwarded` or `dropped`.
    pub fate: String,
    /// The reason; of the slow path, the kind of work and the outcome: `echo/echo_reply`.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// What it means.
    pub meaning: String,
}

/// Where a flow would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainView {
    /// The flow, for people.
    pub flow: String,
    /// `forward`, `pass`, `slow` or `drop`.
    pub fate: String,
    /// The verdict's reason.
    pub reason: String,
    /// What it means.
    pub meaning: String,
    /// The VIP, where one claims the flow.
    pub vip: Option<String>,
    /// What chose the slot, where one was chosen.
    #[serde(default)]
    pub affinity: Option<Affinity>,
    /// How the VIP's new flows are spread.
    #[serde(default)]
    pub scheduler: Option<String>,
    /// Slots of its table, and the flow's slot.
    pub slot: Option<(usize, u32)>,
    /// What says that the flow goes to this backend.
    #[serde(default)]
    pub placed_by: Option<PlacedBy>,
    /// The worst that the backend's checks say: `unknown`, `healthy`, `unhealthy` or `dead`; absent where none is made.
    #[serde(default)]
    pub health: Option<String>,
    /// The backend's name.
    pub backend: Option<String>,
    /// The backend's address.
    pub address: Option<IpAddr>,
    /// How it is reached.
    pub next_hop: Option<NextHopKind>,
}
