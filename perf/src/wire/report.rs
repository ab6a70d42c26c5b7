//! What `wire` found, as JSON and for people.

use std::io;

use serde::{Deserialize, Serialize};

use super::search::Bound;
use crate::{machine::Machine, stats::Summary};

/// A figure whose runs differ by more than this share of their median is said to be noisy.
const NOISY: f64 = 0.1;

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// The exact command.
    pub(crate) command: Vec<String>,
    pub(crate) setup: Setup,
    pub(crate) rows: Vec<Row>,
    /// Whether the benchmark was stopped before its end.
    pub(crate) interrupted: bool,
}

/// How it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// What packets went through.
    pub(crate) through: String,
    pub(crate) zero_copy: bool,
    /// Sockets of the generator and of the sink.
    pub(crate) senders: usize,
    pub(crate) sinks: usize,
    /// Descriptors of each ring.
    pub(crate) ring: u32,
    pub(crate) kinds: Vec<String>,
    pub(crate) targets: Vec<String>,
    pub(crate) flows: u64,
    pub(crate) seed: u64,
    pub(crate) trial_seconds: f64,
    pub(crate) runs: u32,
    /// Of the search: a share of the highest rate tried.
    pub(crate) resolution: f64,
    /// Share of packets that a trial may lose and be called clean.
    pub(crate) tolerance: f64,
    /// A build without optimisation: its rates are the harness's own.
    pub(crate) debug_build: bool,
    /// Every so many-eth packet was lost on purpose; 0: none.
    pub(crate) self_test_drop_every: u64,
    /// So long every packet was held on purpose.
    pub(crate) self_test_hold_us: u64,
}

/// One frame size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) size: String,
    /// Whether packets had room for a stamp. Where not, they were counted only: no latency, no order, no duplicates.
    pub(crate) stamped: bool,
    /// What generator and sink do by themselves.
    pub(crate) limit: Option<Rate>,
    /// Highest rate without loss.
    pub(crate) no_drop: Option<Rate>,
    /// What was measured at certain rates.
    pub(crate) loads: Vec<Loaded>,
}

/// A rate that was found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// Packets a second offered.
    pub(crate) pps: Summary,
    /// What bounds it, in the run that found least.
    pub(crate) bound: Bound,
    /// Mean frame that went in, and that came out, with the frame check sequence.
    pub(crate) offered_bytes: f64,
    pub(crate) received_bytes: f64,
    /// Bits a second on the wire on either side at the median rate: preamble, check sequence and gap counted.
    pub(crate) offered_bits: f64,
    pub(crate) received_bits: f64,
    pub(crate) noisy: bool,
}

/// Trials at one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Loaded {
    /// Of the rate without loss; none where the rate was given.
    pub(crate) percent: Option<u32>,
    /// Packets a second that were asked for.
    pub(crate) offered_pps: f64,
    /// Packets a second that left the generator.
    pub(crate) emitted_pps: Summary,
    /// Of all runs.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicates: u64,
    pub(crate) reordered: u64,
    /// Of what was lost: by the sink's own sockets.
    pub(crate) overruns: u64,
    pub(crate) received_bytes: f64,
    /// By run, where packets are stamped.
    pub(crate) latency_us: Option<Latency>,
}

/// From just before a frame is put on the generator's ring to when the sink has it, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: Summary,
    pub(crate) p99: Summary,
    pub(crate) p999: Summary,
    pub(crate) max: Summary,
    pub(crate) noisy: bool,
}

pub(crate) fn is_noisy(of: &Summary) -> bool {
    of.p90 - of.p10 > of.median * NOISY
}

/// The figures, for people.
pub(crate) fn write_table(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    let Setup {
        through,
        senders,
        sinks,
        ring,
        kinds,
        targets,
        flows,
        seed,
        trial_seconds,
        runs,
        ..
    } = &report.setup;
    let mode = if report.setup.zero_copy {
        "zero-copy"
    } else {
        "copy mode"
    };
    let machine = &report.machine;
    let guest = if machine.virtual_machine {
        " (virtual machine)"
    } else {
        ""
    };
    writeln!(out, "command   {}", report.command.join(" "))?;
    writeln!(
        out,
        "machine   {}{guest}, {} CPUs online, kernel {}, load average {} when it began",
        machine.cpu, machine.cpus, machine.kernel, machine.load_average
    )?;
    writeln!(
        out,
        "through   {through}; AF_XDP, {mode}: {senders} sending and {sinks} receiving sockets, rings of {ring}"
    )?;
    writeln!(
        out,
        "packets   {} to {}, {flows} flows, seed {seed}",
        kinds.join(", "),
        targets.join(", ")
    )?;
    writeln!(
        out,
        "method    trials of {trial_seconds} s, {runs} runs: median (p10..p90). Searched to {} % of the limit; lost at most {} % is clean",
        report.setup.resolution * 100.0,
        report.setup.tolerance * 100.0
    )?;
    if report.setup.debug_build {
        writeln!(out, "DEBUG     a build without optimisation: its rates are no figures")?;
    }
    if report.setup.self_test_drop_every != 0 || report.setup.self_test_hold_us != 0 {
        writeln!(
            out,
            "SELF-TEST every {}th packet lost, each held {} us: no figures of a device",
            report.setup.self_test_drop_every, report.setup.self_test_hold_us
        )?;
    }
    for row in &report.rows {
        let counted = if row.stamped {
            ""
        } else {
            " (no room for a stamp: counted only)"
        };
        writeln!(out, "\nframes of {}{counted}", row.size)?;
        for (name, rate) in [
            ("limit of generator and sink", row.limit),
            ("without loss", row.no_drop),
        ] {
            if let Some(rate) = rate {
                write_rate(out, name, &rate)?;
            }
        }
        if !row.loads.is_empty() {
            writeln!(
                out,
                "  {:>5} {:>11} {:>11} {:>10} {:>9} {:>9} {:>9} {:>9}  {:>8} {:>8} {:>8} {:>9}",
                "load",
                "offered/s",
                "emitted/s",
                "sent",
                "lost",
                "of sink",
                "twice",
                "order",
                "p50 us",
                "p99",
                "p99.9",
                "max"
            )?;
        }
        for load in &row.loads {
            write_load(out, load)?;
        }
    }
    if report.interrupted {
        writeln!(out, "\ninterrupted: the rest was not measured")?;
    }
    Ok(())
}

fn write_rate(out: &mut dyn io::Write, name: &str, rate: &Rate) -> io::Result<()> {
    let bound = match rate.bound {
        Bound::Loss => "above it packets are lost",
        Bound::Harness => "above it generator or sink do not follow: the device may do more",
        Bound::Asked => "no more was asked for",
    };
    let noisy = if rate.noisy { "  TOO NOISY" } else { "" };
    writeln!(
        out,
        "  {name:<28} {:>9.0} packets/s ({:.0}..{:.0}); in {:.1} B, {:.3} Gbit/s; out {:.1} B, {:.3} Gbit/s; {bound}{noisy}",
        rate.pps.median,
        rate.pps.p10,
        rate.pps.p90,
        rate.offered_bytes,
        rate.offered_bits / 1e9,
        rate.received_bytes,
        rate.received_bits / 1e9,
    )
}

fn write_load(out: &mut dyn io::Write, load: &Loaded) -> io::Result<()> {
    let percent = load
        .percent
        .map_or_else(|| "-".to_owned(), |percent| format!("{percent} %"));
    write!(
        out,
        "  {percent:>5} {:>11.0} {:>11.0} {:>10} {:>9} {:>9} {:>9} {:>9}",
        load.offered_pps, load.emitted_pps.median, load.sent, load.lost, load.overruns, load.duplicates, load.reordered
    )?;
    match &load.latency_us {
        Some(latency) => writeln!(
            out,
            "  {:>8.1} {:>8.1} {:>8.1} {:>9.1}{}",
            latency.p50.median,
            latency.p99.median,
            latency.p999.median,
            latency.max.median,
            if latency.noisy { "  TOO NOISY" } else { "" }
        ),
        None => writeln!(out),
    }
}
