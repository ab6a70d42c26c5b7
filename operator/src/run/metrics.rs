//! What the operator counts.
//!
//! Never decides anything. Names and labels: docs/operator-metrics.md.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::explain::{Target, Verb};
use crate::{Subject, index::Kind};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    subject: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    verb: &'static str,
    resource: &'static str,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watch {
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSubject {
    subject: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InQueue {
    state: &'static str,
}

/// All metrics.
pub(super) struct Metrics {
    registry: Registry,
    reconciles: Family<Reconcile, Counter>,
    reconcile_seconds: Family<OfSubject, Histogram, fn() -> Histogram>,
    writes: Family<Write, Counter>,
    watch_events: Family<Watch, Counter>,
    watch_errors: Family<Watch, Counter>,
    watch_lists: Family<Watch, Counter>,
    endpoint_delay: Histogram,
    events_sent: Counter,
    events_dropped: Counter,
    leader: Gauge,
    queue: Family<InQueue, Gauge>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("vipline_operator");
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_1, 2.0, 18));
        let it = Self {
            registry: Registry::default(),
            reconciles: Family::default(),
            reconcile_seconds: Family::new_with_constructor(seconds),
            writes: Family::default(),
            watch_events: Family::default(),
            watch_errors: Family::default(),
            watch_lists: Family::default(),
            endpoint_delay: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            events_sent: Counter::default(),
            events_dropped: Counter::default(),
            leader: Gauge::default(),
            queue: Family::default(),
        };
        registry.register(
            "reconciles",
            "Looks at a subject, by how they ended",
            it.reconciles.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time from taking a subject to the end of the look, with all its writes",
            Unit::Seconds,
            it.reconcile_seconds.clone(),
        );
        registry.register(
            "api_writes",
            "Writes to the API server, by verb, resource and HTTP status (0: no answer)",
            it.writes.clone(),
        );
        registry.register(
            "watch_events",
            "Events of watches, objects of lists among them",
            it.watch_events.clone(),
        );
        registry.register("watch_errors", "Lists and watches that failed", it.watch_errors.clone());
        registry.register(
            "watch_lists",
            "Complete lists: one at the start, and one for each watch that was too old",
            it.watch_lists.clone(),
        );
        registry.register_with_unit(
            "endpoint_delay",
            "Time from an EndpointSlice's change to the API server's acknowledgement of the VipTable",
            Unit::Seconds,
            it.endpoint_delay.clone(),
        );
        registry.register("events", "Kubernetes Events sent", it.events_sent.clone());
        registry.register(
            "events_dropped",
            "Kubernetes Events not sent: queue full, or refused",
            it.events_dropped.clone(),
        );
        registry.register("leader", "1 while this operator holds the Lease", it.leader.clone());
        registry.register("queue", "Subjects in the work queue", it.queue.clone());
        Self { registry, ..it }
    }

    pub(super) fn reconciled(&self, subject: &Subject, result: &'static str, took: Duration) {
        let subject = word(subject);
        self.reconciles.get_or_create(&Reconcile { subject, result }).inc();
        self.reconcile_seconds
            .get_or_create(&OfSubject { subject })
            .observe(took.as_secs_f64());
    }

    pub(super) fn written(&self, target: &Target, code: u16) {
        let verb = match target.verb {
            Verb::ListWatch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
        };
        let write = Write {
            verb,
            resource: target.resource,
            code: code.to_string(),
        };
        self.writes.get_or_create(&write).inc();
    }

    pub(super) fn watch_event(&self, kind: Kind) {
        self.watch_events.get_or_create(&watched(kind)).inc();
    }

    pub(super) fn watch_failed(&self, kind: Kind) {
        self.watch_errors.get_or_create(&watched(kind)).inc();
    }

    pub(super) fn watch_listed(&self, kind: Kind) {
        self.watch_lists.get_or_create(&watched(kind)).inc();
    }

    pub(super) fn endpoints_followed(&self, delay: Duration) {
        self.endpoint_delay.observe(delay.as_secs_f64());
    }

    pub(super) fn event_sent(&self) {
        self.events_sent.inc();
    }

    pub(super) fn event_dropped(&self) {
        self.events_dropped.inc();
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    pub(super) fn queue(&self, depth: super::queue::Depth) {
        for (state, count) in [
            ("ready", depth.ready),
            ("later", depth.later),
            ("running", depth.running),
        ] {
            let gauge = self.queue.get_or_create_owned(&InQueue { state });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// All of them, in the text format of OpenMetrics.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            text.clear();
            text.push_str("# EOF\n");
            tracing::error!(%error, "metrics were not encoded");
        }
        text
    }
}

fn watched(kind: Kind) -> Watch {
    Watch {
        resource: Target::of_kind(kind).resource,
    }
}

fn word(subject: &Subject) -> &'static str {
    match subject {
        Subject::Seed => "seed",
        Subject::NodeSets => "nodesets",
        Subject::Tunnel => "tunnel",
        Subject::Service(_) => "service",
        Subject::Pool(_) => "pool",
        Subject::Orphans => "orphans",
    }
}
