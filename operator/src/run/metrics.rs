//! What the operator counts.
//!
//! Never decides anything. Names and labels: docs/operator-metrics.md.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use operator_api::AddressPoolStatus;

use super::{
    explain::{Target, Verb},
    state::State,
};
use crate::{
    Subject,
    index::{Kind, Object},
};

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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
    family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPeer {
    peer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnnouncement {
    announcement: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
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
    pool_total: Family<OfPool, Gauge>,
    pool_used: Family<OfPool, Gauge>,
    peer_lb_nodes: Family<OfPeer, Gauge>,
    peer_established: Family<OfPeer, Gauge>,
    announcement_lb_nodes: Family<OfAnnouncement, Gauge>,
    services: Family<InState, Gauge>,
    seed_lost: Gauge,
    tunnel_too_large: Gauge,
    objects: Family<Watch, Gauge>,
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
            pool_total: Family::default(),
            pool_used: Family::default(),
            peer_lb_nodes: Family::default(),
            peer_established: Family::default(),
            announcement_lb_nodes: Family::default(),
            services: Family::default(),
            seed_lost: Gauge::default(),
            tunnel_too_large: Gauge::default(),
            objects: Family::default(),
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
        registry.register("pool_addresses", "Addresses of a pool", it.pool_total.clone());
        registry.register(
            "pool_addresses_used",
            "Addresses of a pool in use",
            it.pool_used.clone(),
        );
        registry.register(
            "bgp_peer_lb_nodes",
            "LB nodes that are to have a session with a BgpPeer",
            it.peer_lb_nodes.clone(),
        );
        registry.register(
            "bgp_peer_established",
            "LB nodes that have one; fewer is a session that is down",
            it.peer_established.clone(),
        );
        registry.register(
            "announcement_lb_nodes",
            "LB nodes that an Announcement is for",
            it.announcement_lb_nodes.clone(),
        );
        registry.register("services", "Services of ours, by how they stand", it.services.clone());
        registry.register(
            "seed_lost",
            "1: the flow-hash seed that LB nodes have is not in its Secret; restore it",
            it.seed_lost.clone(),
        );
        registry.register(
            "tunnel_too_large",
            "1: sources or VIP prefixes are more than a TunnelConfig holds; workers accept nothing that is new",
            it.tunnel_too_large.clone(),
        );
        registry.register("objects", "Objects in the index", it.objects.clone());
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

    /// A pool's status, as it was written last; `None`: the pool is gone.
    fn pool(&self, name: &str, status: Option<&AddressPoolStatus>) {
        for family in ["ipv4", "ipv6"] {
            let label = OfPool {
                pool: name.to_owned(),
                family,
            };
            match status.map(|status| if family == "ipv4" { status.ipv4 } else { status.ipv6 }) {
                Some(usage) => {
                    self.pool_total.get_or_create_owned(&label).set(usage.total);
                    self.pool_used.get_or_create_owned(&label).set(usage.used);
                }
                None => {
                    self.pool_total.remove(&label);
                    self.pool_used.remove(&label);
                }
            }
        }
    }

    /// What the status of an object says, as it was written last.
    pub(super) fn stands(&self, object: &Object) {
        let name = object.metadata().name.as_deref().unwrap_or_default();
        match object {
            Object::Pool(pool) => self.pool(name, pool.status.as_ref()),
            Object::Peer(peer) => {
                let (peer, status) = (OfPeer { peer: name.to_owned() }, peer.status.as_ref());
                let number = |count: Option<u32>| i64::from(count.unwrap_or_default());
                let of = number(status.map(|status| status.of));
                self.peer_lb_nodes.get_or_create_owned(&peer).set(of);
                let established = number(status.map(|status| status.established));
                self.peer_established.get_or_create_owned(&peer).set(established);
            }
            Object::Announcement(announcement) => {
                let status = announcement.status.as_ref();
                let count = status.map(|status| status.node_count).unwrap_or_default();
                let announcement = OfAnnouncement {
                    announcement: name.to_owned(),
                };
                self.announcement_lb_nodes
                    .get_or_create_owned(&announcement)
                    .set(count.into());
            }
            Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Node(_)
            | Object::Namespace(_)
            | Object::Claim(_)
            | Object::Table(_)
            | Object::NodeSet(_)
            | Object::Tunnel(_)
            | Object::LbNode(_)
            | Object::Lease(_)
            | Object::Seed(_) => {}
        }
    }

    /// An object is gone.
    pub(super) fn gone(&self, object: &Object) {
        let name = object.metadata().name.as_deref().unwrap_or_default();
        if let Object::Pool(_) = object {
            self.pool(name, None);
        } else if let Object::Peer(_) = object {
            let peer = OfPeer { peer: name.to_owned() };
            self.peer_lb_nodes.remove(&peer);
            self.peer_established.remove(&peer);
        } else if let Object::Announcement(_) = object {
            let announcement = name.to_owned();
            self.announcement_lb_nodes.remove(&OfAnnouncement { announcement });
        }
    }

    /// All objects of a kind are about to be named.
    pub(super) fn none_of(&self, kind: Kind) {
        if kind == Kind::Pool {
            self.pool_total.clear();
            self.pool_used.clear();
        } else if kind == Kind::Peer {
            self.peer_lb_nodes.clear();
            self.peer_established.clear();
        } else if kind == Kind::Announcement {
            self.announcement_lb_nodes.clear();
        }
    }

    pub(super) fn services(&self, state: State, count: usize) {
        let gauge = self.services.get_or_create_owned(&InState { state: state.word() });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn seed_lost(&self, lost: bool) {
        self.seed_lost.set(i64::from(lost));
    }

    pub(super) fn tunnel_too_large(&self, too_large: bool) {
        self.tunnel_too_large.set(i64::from(too_large));
    }

    pub(super) fn objects(&self, kind: Kind, count: usize) {
        let gauge = self.objects.get_or_create_owned(&watched(kind));
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// All of them, in the text format of OpenMetrics.
    pub(super) fn text(&self) -> Result<String, std::fmt::Error> {
        exposition::text(&self.registry)
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
        Subject::Announcement(_) => "announcement",
        Subject::Peer(_) => "peer",
        Subject::Orphans => "orphans",
    }
}
