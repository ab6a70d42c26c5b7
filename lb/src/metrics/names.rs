//! All metrics of an LB node: their names, labels and meaning. docs/metrics.md has the same words, and a test compares them.
//!
//! Never a value.

use prometheus_client::{metrics::MetricType, registry::Unit};

/// Of which kind its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A value that goes up and down.
    Gauge,
    /// A count that only grows while the daemon runs; `_total` is added to its name.
    Counter,
    /// Counts in buckets.
    Histogram,
}

impl Shape {
    /// In the words of OpenMetrics.
    pub fn kind(self) -> MetricType {
        match self {
            Self::Gauge => MetricType::Gauge,
            Self::Counter => MetricType::Counter,
            Self::Histogram => MetricType::Histogram,
        }
    }
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Without prefix, unit and `_total`.
    pub(super) stem: &'static str,
    /// `seconds` or `bytes`, the name's last word but `_total`.
    unit: Option<&'static str>,
    /// Its kind.
    pub shape: Shape,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

impl Metric {
    /// As it stands in the text, and in queries.
    pub fn name(&self) -> String {
        let unit = self.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        let total = if self.shape == Shape::Counter { "_total" } else { "" };
        format!("vipline_{}{unit}{total}", self.stem)
    }

    pub(super) fn unit(&self) -> Option<Unit> {
        self.unit.map(|unit| match unit {
            "seconds" => Unit::Seconds,
            "bytes" => Unit::Bytes,
            other => Unit::Other(other.to_owned()),
        })
    }
}

macro_rules! metrics {
    ($($name:ident = $shape:ident $stem:literal $(in $unit:literal)? by [$($label:literal),*]: $help:literal;)+) => {
        $(pub(super) static $name: Metric = Metric {
            stem: $stem,
            unit: metrics!(@unit $($unit)?),
            shape: Shape::$shape,
            labels: &[$($label),*],
            help: $help,
        };)+
        /// All of them, in the order in which they are shown.
        pub static METRICS: &[&Metric] = &[$(&$name),+];
    };
    (@unit) => { None };
    (@unit $unit:literal) => { Some($unit) };
}

metrics! {
    VERSION = Gauge "build" by ["version"]: "1, with the daemon's version";
    START_TIME = Gauge "start_time" in "seconds" by []: "When the daemon started, in seconds since 1970";
    SERVING = Gauge "serving" by []: "1 once the program is in place with whole tables; 0 while it waits for the cluster's first word";
    DRAINING = Gauge "draining" by ["phase"]: "1, with how far this node is with giving its VIP addresses away: last_choice, withdrawn or left; absent while it is not drained";
    INTERFACE = Gauge "interface_attached" by ["interface", "mode"]: "1 while the program is on the interface, in mode native or generic; 0 with mode gone: the interface was deleted";
    CONFIG_REVISION = Gauge "config_revision" by []: "Changes of the tables since the start, by the file, the cluster or next hops";
    CONFIG_STALE = Gauge "config_stale" by []: "1 while the file that was read last is refused and the one before it is in force";
    CONFIG_APPLIED = Gauge "config_applied" in "seconds" by []: "When the file was applied last, in seconds since 1970";
    CONFIG_REFUSED = Gauge "config_refused" in "seconds" by []: "When the file was refused last, in seconds since 1970; absent while it never was";
    VIPS = Gauge "vips" by []: "VIPs in the match table";
    BACKENDS = Gauge "backends" by ["state"]: "Backends whose next hop is resolved (or that are this node), and those that are unresolved";
    HEALTH_BACKENDS = Gauge "health_backends" by ["state"]: "Backends that are probed, by the worst of their checks: healthy, unknown (eligible too), unhealthy, dead";
    HEALTH_ELIGIBLE = Gauge "backend_eligible" by ["backend"]: "1 while all checks of a backend let it take new flows, 0 while one does not; absent where none is made";
    HEALTH_VIPS = Gauge "health_vips" by ["state"]: "VIPs of which so few backends are eligible that all are used (panic), or none, so that new flows are refused (refused)";
    HEALTH_CHECKS = Gauge "health_checks" by ["state"]: "Checks of backends: those that are made (probed), and those that are not because there are too many (unprobed)";
    HEALTH_LATE = Gauge "health_late_milliseconds" by []: "How long a probe waits for its turn: where it is seconds, there is more to probe than the rate allows, and intervals are longer";
    HEALTH_PROBES = Counter "health_probes" by ["probe", "outcome"]: "Probes by kind and what came of them";
    HEALTH_CHANGES = Counter "health_changes" by []: "Times that a check changed whether a backend takes flows";
    LOOKUP_TABLES = Gauge "lookup_tables" by []: "Distinct lookup tables";
    WAITING_VIPS = Gauge "waiting_vips" by []: "VIPs whose change of backends waits for room for its transit, see capacity.table_segments";
    FLOW_CAPACITY = Gauge "flow_table_capacity" by []: "Flow records there is room for; absent where flows are not recorded (transit.enabled)";
    FLOW_RECORDS = Gauge "flow_table_records" by []: "Flows that are recorded and live, as counted in the last half minute or two; absent until then";
    FLOWS_UNRECORDED = Counter "flows_unrecorded" by ["kind"]: "What found no room in the flow table and went by its slot: SYNs and datagrams in transit, new flows of VIPs with a scheduler, clients; begins at 0 with another program";
    ADDRESSES = Gauge "l2_addresses" by ["state"]: "VIP addresses that this node answers for on its own segments (owned), and that it would answer for if another host did not have them (in_use)";
    PACKETS = Counter "packets" by ["fate", "reason"]: "Packets by verdict: each that an interface's program saw, once";
    VIP_PACKETS = Counter "vip_packets" by ["address", "protocol", "port"]: "Packets of a VIP that were sent to backends, by both paths";
    VIP_BYTES = Counter "vip" in "bytes" by ["address", "protocol", "port"]: "Their bytes, of IP packets as clients sent them";
    BACKEND_PACKETS = Counter "backend_packets" by ["backend", "address"]: "Packets that were sent to a backend, by both paths";
    BACKEND_BYTES = Counter "backend" in "bytes" by ["backend", "address"]: "Their bytes, of IP packets as clients sent them";
    LEFT_OUT = Gauge "series_left_out" by ["of"]: "VIPs (of: vip) and backends (of: backend) that have no series of their own, because there are too many";
    SLOW_PACKETS = Counter "slow_path_packets" by ["kind", "end", "outcome"]: "Packets by what became of them on the slow path: those with fate slow, once more";
    SLOW_REFUSED = Counter "slow_path_refused_packets" by ["reason"]: "Those with outcome refused, by the verdict's reason";
    SLOW_SHED = Counter "slow_path_shed_packets" by ["reason"]: "Packets that the fast path did not hand over because their reason was over its budget";
    WORKER_UP = Gauge "slow_path_worker_running" by ["interface", "queue"]: "1 while the worker runs; 0 while it waits for its restart";
    WORKER_RESTARTS = Counter "slow_path_worker_restarts" by ["interface", "queue"]: "Times that the worker was started again";
    BGP_UP = Gauge "bgp_session_up" by ["peer"]: "1 while the session with a BGP peer is established";
    BGP_ANNOUNCED = Gauge "bgp_announced_prefixes" by ["peer"]: "Prefixes that the peer knows from this node";
    BGP_WITHHELD = Gauge "bgp_withheld_prefixes" by ["peer"]: "Prefixes that the peer cannot be told: their family was not agreed on, or there is no next hop for them";
    BGP_IGNORED = Counter "bgp_ignored_prefixes" by ["peer"]: "Prefixes that the peer announced: this node takes no routes";
    BGP_MALFORMED = Counter "bgp_malformed_updates" by ["peer"]: "UPDATEs of the peer that were malformed and passed over (RFC 7606)";
    BGP_MESSAGES = Counter "bgp_messages" by ["peer", "way"]: "BGP messages, sent and received";
    BGP_FLAPS = Counter "bgp_session_flaps" by ["peer"]: "Times that an established session ended without being told to";
    BGP_ERROR = Gauge "bgp_last_error" by ["peer", "error"]: "1, with the kind of what went wrong last; it stays when the session is up again, see docs/bgp.md";
    BFD_UP = Gauge "bfd_session_up" by ["peer"]: "1 while BFD with a BGP peer is up; absent where it is not asked for";
    BFD_DOWNS = Counter "bfd_session_downs" by ["peer"]: "Times that BFD with the peer went down from up";
    BFD_DISCARDED = Counter "bfd_discarded_packets" by ["reason"]: "Datagrams on BFD's ports that were for no session here, see docs/bfd.md";
    DELAY = Histogram "programming_delay" in "seconds" by []: "From the API server's word to the maps: each change of a VipTable, NodeSet or TunnelConfig, as the watch told it";
    KUBE_CONNECTED = Gauge "kube_connected" by []: "1 while everything can be watched";
    KUBE_AWAY = Gauge "kube_watch_away" by ["resource"]: "1 while a kind of object cannot be watched: what it said last holds";
    KUBE_CACHED = Gauge "kube_from_cache" by []: "1 while what is served comes from the cache: the API server has said nothing since the start";
    KUBE_FAILING = Gauge "kube_failing_tables" by []: "VipTables that fail on this node; of each the last good version stays";
    KUBE_HELD = Gauge "kube_held_vips" by []: "VIPs that a held list would drop: `vipline kube accept` lets them go";
    KUBE_ALARM = Gauge "kube_alarm" by ["alarm"]: "1 while the flow-hash seed is refused (seed), or the maps cannot take what the cluster says (maps)";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::METRICS;

    #[test]
    fn names_are_each_metrics_own_and_of_the_usual_letters() {
        let names: BTreeSet<String> = METRICS.iter().map(|metric| metric.name()).collect();
        assert_eq!(names.len(), METRICS.len());
        let usual = |name: &String| name.chars().all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '_'));
        assert!(names.iter().all(usual), "{names:?}");
        assert!(names.contains("vipline_programming_delay_seconds") && names.contains("vipline_vip_bytes_total"));
        // Those of the operator have a prefix of their own.
        assert!(!names.iter().any(|name| name.starts_with("vipline_operator")));
    }
}
