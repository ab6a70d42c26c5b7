//! From what the datapath says to what the CLI shows. Never asks anything of the kernel itself.

use std::{net::SocketAddr, process, time::Instant};

use lb_core::slow::{Common, Counts, End, Kind, Outcome};
use xdp_prog::{abi::feature, verdict::Fate, verdict::Verdict};

use crate::{
    control::{
        AwayView, CountedBy, CounterView, HeldView, InterfaceView, KubeView, MetricsView, ReloadView, Role,
        SlowKindView, SlowPathView, StatusView, WaitView, WorkerView,
    },
    datapath::{Attachment, Interface},
    source::kube::agent::{Standing, Wait},
    xsk::{SlowPath, Tally, WorkerStatus},
};

/// What both daemons say of themselves; the tables are the LB node's to add.
pub(super) fn status(
    role: Role,
    config: &str,
    revision: u64,
    (started, last_reload): (Instant, &(Instant, Option<String>)),
    attachments: &[Attachment],
    counts: &[(Verdict, u64)],
) -> StatusView {
    StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role,
        pid: process::id(),
        uptime_s: started.elapsed().as_secs(),
        serving: true,
        config: config.to_owned(),
        revision,
        last_reload: ReloadView {
            seconds_ago: last_reload.0.elapsed().as_secs(),
            error: last_reload.1.clone(),
        },
        interfaces: attachments.iter().map(interface).collect(),
        features: Vec::new(),
        vips: 0,
        backends: 0,
        backends_ready: 0,
        tables: 0,
        waiting_vips: 0,
        in_use: Vec::new(),
        group: None,
        health: None,
        packets: by_fate(counts),
        flow_table: None,
        slow_path: None,
        drain: None,
        bgp: None,
        kube: None,
        metrics: None,
        pinned: None,
    }
}

/// Most failing tables that are shown.
const MAX_FAILING: usize = 100;

/// A cluster as a source.
pub(super) fn kube(standing: &Standing) -> KubeView {
    let away = standing.away.iter().map(|(kind, (since, why))| AwayView {
        what: kind.to_string(),
        seconds: since.elapsed().as_secs(),
        why: why.clone(),
    });
    let failing = standing.failing.iter().take(MAX_FAILING);
    let held = standing.held.map(|(vips, of, until)| HeldView {
        vips,
        of,
        seconds_left: until.saturating_duration_since(Instant::now()).as_secs(),
    });
    let ms = |share| standing.delays.quantile(share).map(|delay| delay.as_secs_f64() * 1e3);
    KubeView {
        server: standing.server.clone(),
        namespace: standing.namespace.clone(),
        connected_s: standing.connected.map(|since| since.elapsed().as_secs()),
        away: away.collect(),
        waiting: standing.waiting.iter().map(wait).collect(),
        from_cache: standing.from_cache,
        tables_revision: standing.revisions.tables,
        node_sets_revision: standing.revisions.node_sets,
        failing_count: standing.failing.len(),
        failing: failing.map(|(name, why)| (name.to_string(), why.to_string())).collect(),
        held,
        seed_alarm: standing.seed_alarm.clone(),
        trouble: standing.trouble.clone(),
        changes: standing.delays.total(),
        delay_p50_ms: ms(0.5),
        delay_p99_ms: ms(0.99),
    }
}

fn wait(wait: &Wait) -> WaitView {
    WaitView {
        what: wait.what.clone(),
        seconds: wait.since.elapsed().as_secs(),
    }
}

/// A daemon that waits for the cluster's first word.
pub(super) fn waiting(role: Role, config: &str, started: Instant, standing: &Standing) -> StatusView {
    StatusView {
        serving: false,
        kube: Some(kube(standing)),
        ..status(role, config, 0, (started, &(started, None)), &[], &[])
    }
}

/// The slow path. `shed`: what the fast path did not hand over, by verdict.
pub(super) fn slow_path(path: &SlowPath, common: &Common, counts: &Counts, shed: &[(Verdict, u64)]) -> SlowPathView {
    let (datagrams, fragment_bytes) = common.watched();
    let status = path.status();
    let held = status.len() as u64 * common.bounds().hold.bytes();
    let shed = shed.iter().filter(|(_, packets)| *packets > 0);
    SlowPathView {
        workers: status.iter().map(worker).collect(),
        kinds: Kind::ALL.iter().map(|kind| slow_kind(*kind, counts)).collect(),
        shed_by_fast_path: shed
            .map(|(verdict, packets)| (verdict.reason().to_owned(), *packets))
            .collect(),
        datagrams: datagrams as u64,
        fragment_bytes,
        memory_bytes: path.memory_bytes() + common.memory_bound() + held,
    }
}

fn worker(status: &WorkerStatus) -> WorkerView {
    let dropped = status
        .tallies()
        .filter(|(tally, packets)| tally.is_drop() && *packets > 0);
    WorkerView {
        interface: status.interface.clone(),
        queue: status.queue,
        running: status.running,
        mode: status.mode.name().to_owned(),
        restarts: status.restarts,
        last_error: status.last_error.clone(),
        received: status.tally(Tally::Received),
        sent: status.tally(Tally::Sent),
        queued: status.waiting + status.inbox,
        sending: status.sending,
        dropped: dropped
            .map(|(tally, packets)| (tally.name().to_owned(), packets))
            .collect(),
    }
}

fn slow_kind(kind: Kind, counts: &Counts) -> SlowKindView {
    let of_end = |end: End| {
        let outcomes = Outcome::ALL.iter().filter(|outcome| outcome.end() == end);
        outcomes.map(|outcome| counts.of(kind, *outcome)).sum()
    };
    let outcomes = Outcome::ALL.iter().filter(|outcome| counts.of(kind, **outcome) > 0);
    SlowKindView {
        kind: kind.name().to_owned(),
        answered: of_end(End::Answered),
        forwarded: of_end(End::Forwarded),
        dropped: of_end(End::Dropped),
        shed: counts.of(kind, Outcome::OverBudget) + counts.of(kind, Outcome::OverSourceLimit),
        outcomes: outcomes
            .map(|outcome| (outcome.reason().to_owned(), counts.of(kind, *outcome)))
            .collect(),
    }
}

/// All verdicts with their counts.
pub(super) fn counters(counts: Vec<(Verdict, u64)>) -> Vec<CounterView> {
    counts
        .into_iter()
        .map(|(verdict, packets)| CounterView {
            path: CountedBy::Fast,
            fate: verdict.fate().name().to_owned(),
            reason: verdict.reason().to_owned(),
            packets,
            meaning: verdict.describe().to_owned(),
        })
        .collect()
}

/// What became of packets on the slow path: all kinds of work with the outcomes that they have had, each packet once; what the
/// balancer's rules refused stands by verdict.
pub(super) fn outcomes(counts: &Counts) -> Vec<CounterView> {
    let refused = Verdict::ALL.iter().filter(|verdict| counts.refused(**verdict) > 0);
    let refused = refused.map(|verdict| CounterView {
        path: CountedBy::Slow,
        fate: End::Dropped.name().to_owned(),
        reason: format!("refused/{}", verdict.reason()),
        packets: counts.refused(*verdict),
        meaning: verdict.describe().to_owned(),
    });
    counts
        .iter()
        .filter(|(_, outcome, _)| *outcome != Outcome::Refused)
        .map(|(kind, outcome, packets)| CounterView {
            path: CountedBy::Slow,
            fate: outcome.end().name().to_owned(),
            reason: format!("{}/{}", kind.name(), outcome.reason()),
            packets,
            meaning: outcome.describe().to_owned(),
        })
        .chain(refused)
        .collect()
}

/// Packets by fate, in the order in which one reads them.
fn by_fate(counts: &[(Verdict, u64)]) -> Vec<(String, u64)> {
    [Fate::Forward, Fate::Pass, Fate::Slow, Fate::Drop]
        .into_iter()
        .map(|fate| {
            let packets = counts
                .iter()
                .filter(|(verdict, _)| verdict.fate() == fate)
                .map(|(_, packets)| packets)
                .sum();
            (fate.name().to_owned(), packets)
        })
        .collect()
}

/// An interface's name, and how the program is attached to it; not at all where the interface is gone: a link goes with its
/// interface, and does not come back with it.
pub(super) fn attached(attachment: &Attachment) -> (String, &'static str) {
    let attached = attachment.interface();
    let is_there = Interface::find(&attached.name).is_ok_and(|now| now.index == attached.index);
    let mode = if is_there { attachment.mode().name() } else { "gone" };
    (attached.name.clone(), mode)
}

fn interface(attachment: &Attachment) -> InterfaceView {
    let (name, mode) = attached(attachment);
    InterfaceView {
        name,
        ifindex: attachment.interface().index,
        mode: mode.to_owned(),
        native_refused: attachment.native_refused().map(ToString::to_string),
    }
}

/// Where metrics are, and why they are not.
pub(super) fn metrics((listen, error): (SocketAddr, Option<String>)) -> MetricsView {
    MetricsView { listen, error }
}

/// Says where the program is, and loudly where it is slow.
pub(super) fn say_attached(attachment: &Attachment) {
    let interface = &attachment.interface().name;
    match attachment.native_refused() {
        Some(why) => tracing::warn!(
            %interface,
            "attached in GENERIC mode, several times slower: the driver refused native mode: {why}"
        ),
        None => tracing::info!(%interface, mode = attachment.mode().name(), "attached"),
    }
}

/// Names of the features that are on.
pub(super) fn features(features: u64) -> Vec<String> {
    feature::NAMES
        .iter()
        .filter(|(bit, _)| features & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}
