//! Facts and counters as text: what a scrape gets.
//!
//! Never asks anybody.

mod bgp;

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use lb_core::{
    health::{Health, State},
    slow::Outcome,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    registry::Registry,
};
use xdp_prog::verdict::Verdict;

use super::{
    Counted, Facts, FlowFacts, HealthFacts, MAX_BACKEND_SERIES, Metric, Shape,
    names::{
        ADDRESSES, BACKEND_BYTES, BACKEND_PACKETS, BACKENDS, CONFIG_APPLIED, CONFIG_REFUSED, CONFIG_REVISION,
        CONFIG_STALE, DELAY, DRAINING, FLOW_CAPACITY, FLOW_RECORDS, FLOWS_UNRECORDED, HEALTH_BACKENDS, HEALTH_CHANGES,
        HEALTH_CHECKS, HEALTH_ELIGIBLE, HEALTH_LATE, HEALTH_PROBES, HEALTH_VIPS, INTERFACE, KUBE_ALARM, KUBE_AWAY,
        KUBE_CACHED, KUBE_CONNECTED, KUBE_FAILING, KUBE_HELD, LEFT_OUT, LOOKUP_TABLES, PACKETS, SERVING, SLOW_PACKETS,
        SLOW_REFUSED, SLOW_SHED, START_TIME, VERSION, VIP_BYTES, VIP_PACKETS, VIPS, WAITING_VIPS, WORKER_RESTARTS,
        WORKER_UP,
    },
};
use crate::{
    datapath::unrecorded,
    source::kube::agent::{Kind, Standing},
};

/// Everything, in the text format of OpenMetrics.
///
/// # Errors
///
/// When something cannot be written.
pub fn text(facts: Facts, counted: Option<Counted>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("vipline");
    registry.register_collector(Box::new(Page { facts, counted }));
    exposition::text(&registry)
}

struct Page {
    facts: Facts,
    counted: Option<Counted>,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let facts = &self.facts;
        out.one(&VERSION, vec![env!("CARGO_PKG_VERSION").to_owned()], 1)?;
        out.only(&START_TIME, seconds(facts.started))?;
        out.only(&SERVING, facts.serving.into())?;
        if let Some(phase) = facts.draining {
            out.one(&DRAINING, vec![phase.to_owned()], 1)?;
        }
        let interfaces = facts.interfaces.iter();
        let interfaces =
            interfaces.map(|(name, mode)| (vec![name.clone(), (*mode).to_owned()], u64::from(*mode != "gone")));
        out.family(&INTERFACE, interfaces)?;
        self.config(&mut out)?;
        if let Some(tables) = &facts.tables {
            out.only(&VIPS, tables.vips as u64)?;
            let backends = [("resolved", tables.resolved), ("unresolved", tables.unresolved)];
            let backends = backends.map(|(state, count)| (vec![state.to_owned()], count as u64));
            out.family(&BACKENDS, backends.into_iter())?;
        }
        if let Some(health) = &facts.health {
            self::health(&mut out, health)?;
        }
        if let Some(tables) = &facts.tables {
            out.only(&LOOKUP_TABLES, tables.lookup_tables as u64)?;
            out.only(&WAITING_VIPS, tables.waiting as u64)?;
            self.flows(&mut out, tables.flows)?;
            let addresses = [("owned", tables.owned), ("in_use", tables.in_use)];
            let addresses = addresses.map(|(state, count)| (vec![state.to_owned()], count as u64));
            out.family(&ADDRESSES, addresses.into_iter())?;
        }
        if let Some(counted) = &self.counted {
            traffic(&mut out, counted)?;
        }
        self.slow(&mut out)?;
        if let Some(peers) = &facts.bgp {
            bgp::bgp(&mut out, peers)?;
        }
        if let Some(discarded) = &facts.bfd_discarded {
            bgp::bfd(&mut out, discarded)?;
        }
        match &facts.kube {
            Some(kube) => self::kube(&mut out, kube),
            None => Ok(()),
        }
    }
}

impl Page {
    fn config(&self, out: &mut Out<'_>) -> fmt::Result {
        let config = &self.facts.config;
        out.only(&CONFIG_REVISION, config.revision)?;
        out.only(&CONFIG_STALE, config.stale.into())?;
        out.only(&CONFIG_APPLIED, seconds(config.applied))?;
        match config.refused {
            Some(refused) => out.only(&CONFIG_REFUSED, seconds(refused)),
            None => Ok(()),
        }
    }

    fn flows(&self, out: &mut Out<'_>, flows: Option<FlowFacts>) -> fmt::Result {
        let Some(FlowFacts { room, live }) = flows else {
            return Ok(());
        };
        out.only(&FLOW_CAPACITY, room as u64)?;
        if let Some(live) = live {
            out.only(&FLOW_RECORDS, live)?;
        }
        let Some(counted) = &self.counted else { return Ok(()) };
        let kinds = unrecorded(counted.unrecorded);
        let kinds = kinds.map(|(kind, count)| (vec![kind.to_owned()], count));
        out.family(&FLOWS_UNRECORDED, kinds.into_iter())
    }

    fn slow(&self, out: &mut Out<'_>) -> fmt::Result {
        let Some(slow) = &self.facts.slow else {
            return Ok(());
        };
        let outcomes = slow.counts.iter().map(|(kind, outcome, packets)| {
            let labels = [kind.name(), outcome.end().name(), outcome.reason()];
            (labels.map(ToOwned::to_owned).to_vec(), packets)
        });
        out.family(&SLOW_PACKETS, outcomes)?;
        if slow.counts.iter().any(|(_, outcome, _)| outcome == Outcome::Refused) {
            let refused = Verdict::ALL
                .iter()
                .map(|verdict| (*verdict, slow.counts.refused(*verdict)));
            out.family(&SLOW_REFUSED, by_reason(refused.filter(|(_, packets)| *packets > 0)))?;
        }
        if let Some(counted) = &self.counted {
            out.family(&SLOW_SHED, by_reason(counted.shed.iter().copied()))?;
        }
        let at = |worker: &super::WorkerFacts| vec![worker.interface.clone(), worker.queue.to_string()];
        let running = slow.workers.iter().map(|worker| (at(worker), worker.running.into()));
        out.family(&WORKER_UP, running)?;
        let restarts = slow.workers.iter().map(|worker| (at(worker), worker.restarts));
        out.family(&WORKER_RESTARTS, restarts)
    }
}

fn traffic(out: &mut Out<'_>, counted: &Counted) -> fmt::Result {
    let verdicts = counted.verdicts.iter().map(|(verdict, packets)| {
        let labels = [verdict.fate().name(), verdict.reason()];
        (labels.map(ToOwned::to_owned).to_vec(), *packets)
    });
    out.family(&PACKETS, verdicts)?;
    let vips = || {
        counted.vips.iter().map(|(vip, traffic)| {
            let labels = [
                vip.address.to_string(),
                vip.protocol.name().to_owned(),
                vip.port.to_string(),
            ];
            (labels.to_vec(), traffic)
        })
    };
    out.family(&VIP_PACKETS, vips().map(|(labels, traffic)| (labels, traffic.packets)))?;
    out.family(&VIP_BYTES, vips().map(|(labels, traffic)| (labels, traffic.bytes)))?;
    let backends = || {
        let backends = counted.backends.iter();
        backends.map(|(id, address, traffic)| (vec![id.to_string(), address.to_string()], traffic))
    };
    out.family(
        &BACKEND_PACKETS,
        backends().map(|(labels, traffic)| (labels, traffic.packets)),
    )?;
    out.family(
        &BACKEND_BYTES,
        backends().map(|(labels, traffic)| (labels, traffic.bytes)),
    )?;
    let (vips, backends) = counted.left_out;
    let left_out = [("vip", vips), ("backend", backends)];
    let left_out = left_out.map(|(of, count)| (vec![of.to_owned()], count as u64));
    out.family(&LEFT_OUT, left_out.into_iter())
}

fn health(out: &mut Out<'_>, health: &HealthFacts) -> fmt::Result {
    let labelled = |(label, count): (&str, usize)| (vec![label.to_owned()], count as u64);
    let states = State::ALL.map(|state| {
        let count = health.backends.values().filter(|of| **of == state).count();
        labelled((state.name(), count))
    });
    out.family(&HEALTH_BACKENDS, states.into_iter())?;
    let eligible = health.backends.iter().take(MAX_BACKEND_SERIES).map(|(backend, state)| {
        let is_eligible = state.health() == Health::Eligible;
        (vec![backend.to_string()], is_eligible.into())
    });
    out.family(&HEALTH_ELIGIBLE, eligible)?;
    let vips = [("panic", health.vips_in_panic), ("refused", health.vips_refused)];
    out.family(&HEALTH_VIPS, vips.into_iter().map(labelled))?;
    let checks = [("probed", health.sums.checks), ("unprobed", health.sums.unprobed)];
    out.family(&HEALTH_CHECKS, checks.into_iter().map(labelled))?;
    out.only(
        &HEALTH_LATE,
        u64::try_from(health.sums.late.as_millis()).unwrap_or(u64::MAX),
    )?;
    let probes = health.probes.iter().map(|((probe, outcome), count)| {
        let labels = [*probe, *outcome];
        (labels.map(ToOwned::to_owned).to_vec(), *count)
    });
    out.family(&HEALTH_PROBES, probes)?;
    out.only(&HEALTH_CHANGES, health.sums.changes)
}

fn kube(out: &mut Out<'_>, kube: &Standing) -> fmt::Result {
    out.histogram(&DELAY, kube)?;
    out.only(&KUBE_CONNECTED, kube.connected.is_some().into())?;
    let away = Kind::ALL.map(|kind| (vec![kind.resource().to_owned()], kube.away.contains_key(&kind).into()));
    out.family(&KUBE_AWAY, away.into_iter())?;
    out.only(&KUBE_CACHED, kube.from_cache.into())?;
    out.only(&KUBE_FAILING, kube.failing.len() as u64)?;
    out.only(&KUBE_HELD, kube.held.map_or(0, |(vips, _, _)| vips as u64))?;
    let alarms = [("seed", kube.seed_alarm.is_some()), ("maps", kube.trouble.is_some())];
    let alarms = alarms.map(|(alarm, on)| (vec![alarm.to_owned()], on.into()));
    out.family(&KUBE_ALARM, alarms.into_iter())
}

fn by_reason(counts: impl Iterator<Item = (Verdict, u64)>) -> impl Iterator<Item = (Vec<String>, u64)> {
    counts.map(|(verdict, packets)| (vec![verdict.reason().to_owned()], packets))
}

/// Since 1970.
fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where it is written.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    /// The only value of a metric without labels.
    fn only(&mut self, metric: &Metric, value: u64) -> fmt::Result {
        self.one(metric, Vec::new(), value)
    }

    fn one(&mut self, metric: &Metric, labels: Vec<String>, value: u64) -> fmt::Result {
        self.family(metric, std::iter::once((labels, value)))
    }

    /// All values of a metric, each with its labels' values.
    fn family(&mut self, metric: &Metric, values: impl Iterator<Item = (Vec<String>, u64)>) -> fmt::Result {
        let unit = metric.unit();
        let mut encoder = self
            .0
            .encode_descriptor(metric.stem, metric.help, unit.as_ref(), metric.shape.kind())?;
        for (labels, value) in values {
            debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.stem);
            let labels: Vec<(&str, String)> = metric.labels.iter().copied().zip(labels).collect();
            if labels.is_empty() {
                put(&mut encoder, metric.shape, value)?;
            } else {
                put(&mut encoder.encode_family(&labels)?, metric.shape, value)?;
            }
        }
        Ok(())
    }

    fn histogram(&mut self, metric: &Metric, kube: &Standing) -> fmt::Result {
        let unit = metric.unit();
        let mut encoder = self
            .0
            .encode_descriptor(metric.stem, metric.help, unit.as_ref(), metric.shape.kind())?;
        let buckets: Vec<(f64, u64)> = kube.delays.buckets().collect();
        let sum = kube.delays.sum().as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, kube.delays.total(), &buckets, None)
    }
}

/// A value of a gauge or a counter.
fn put(encoder: &mut MetricEncoder<'_>, shape: Shape, value: u64) -> fmt::Result {
    match shape {
        Shape::Gauge => encoder.encode_gauge(&value),
        Shape::Counter => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
        Shape::Histogram => Err(fmt::Error),
    }
}

#[cfg(test)]
mod tests;
