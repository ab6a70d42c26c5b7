//! `vipline-perf slow`: what the slow path does on one core, and what the fast path keeps while it is flooded.
//!
//! Never a figure of the handlers alone: a worker's time holds its system calls, and in them the kernel's way out of the veth. The
//! daemon is the real one, in a namespace, its slow path's budgets as high as they go (capacity) or as they are by default (flood).

mod frames;
mod site;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use frames::Traffic;
use lab::RawSocket;
use serde::{Deserialize, Serialize};
use site::Site;

use crate::{interrupt::Interrupt, machine::Machine, progress::Progress, stats};

/// Packets made before they are sent, so that making them costs nothing then.
const PREPARED: u32 = 4096;
/// Time between two bursts of a paced sender.
const BURST_GAP: Duration = Duration::from_millis(1);

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long each run sends.
    pub(crate) time: Duration,
    /// Runs of each kind.
    pub(crate) runs: u32,
    /// Packets a second of the fast path while it is flooded.
    pub(crate) paced: u32,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) runs: u32,
    pub(crate) capacity: Vec<Capacity>,
    pub(crate) floods: Vec<Flood>,
    /// Of the daemon: frames, rings and all bounds.
    pub(crate) memory_bytes: u64,
}

/// One kind of work, as fast as one sender sends it. Medians.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Capacity {
    pub(crate) traffic: String,
    /// Packets a second sent.
    pub(crate) offered: f64,
    /// Packets a second that had an outcome other than a drop.
    pub(crate) handled: f64,
    /// Share of a core that the worker took.
    pub(crate) cores: f64,
    /// Packets a second and core: handled by cores.
    pub(crate) per_core: f64,
}

/// A fast path at a given pace, beside a flood of the slow path. Of the run in the middle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Flood {
    /// What flooded; `None`: the control run.
    pub(crate) traffic: Option<String>,
    /// Packets a second of the flood.
    pub(crate) flood: f64,
    /// Packets of the fast path that were sent, and that were not forwarded.
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    /// Packets of the flood that the fast path shed, and that workers took.
    pub(crate) shed: u64,
    pub(crate) taken: u64,
}

/// Measures everything.
///
/// # Errors
///
/// Without root, or when the daemon does not start.
pub(crate) fn run(options: &Options, interrupt: &Interrupt, progress: &Progress) -> Result<Report> {
    let mut report = Report {
        machine: Machine::this(),
        seconds: options.time.as_secs_f64(),
        runs: options.runs,
        capacity: Vec::new(),
        floods: Vec::new(),
        memory_bytes: 0,
    };
    let site = Site::build(true)?;
    for traffic in Traffic::SLOW {
        if interrupt.came() {
            return Ok(report);
        }
        progress.at("capacity", traffic.name());
        report.capacity.push(capacity(&site, traffic, options)?);
    }
    drop(site);
    let site = Site::build(false)?;
    report.memory_bytes = site.status()?.slow_path.context("the slow path is off")?.memory_bytes;
    for traffic in [
        None,
        Some(Traffic::Fragments),
        Some(Traffic::Reject),
        Some(Traffic::Echo),
    ] {
        if interrupt.came() {
            break;
        }
        progress.at("flood", traffic.map_or("control", Traffic::name));
        report.floods.push(flood(&site, traffic, options)?);
    }
    progress.done();
    Ok(report)
}

fn capacity(site: &Site, traffic: Traffic, options: &Options) -> Result<Capacity> {
    let (mut offered, mut handled, mut cores) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let before = (site.handled()?, site.worker_time()?);
        let (sent, took) = send(&site.socket()?, site, traffic, options.time, None)?;
        thread::sleep(Duration::from_millis(200));
        let seconds = took.as_secs_f64();
        offered.push(sent as f64 / seconds);
        handled.push((site.handled()? - before.0) as f64 / seconds);
        cores.push((site.worker_time()? - before.1).as_secs_f64() / seconds);
    }
    let per_core: Vec<f64> = handled
        .iter()
        .zip(&cores)
        .map(|(packets, cores)| packets / cores.max(1e-9))
        .collect();
    let median = |values: &[f64]| {
        stats::Summary::of(values)
            .map(|summary| summary.median)
            .context("no runs")
    };
    ensure!(
        handled.iter().any(|rate| *rate > 0.0),
        "{}: nothing was handled",
        traffic.name()
    );
    Ok(Capacity {
        traffic: traffic.name().to_owned(),
        offered: median(&offered)?,
        handled: median(&handled)?,
        cores: median(&cores)?,
        per_core: median(&per_core)?,
    })
}

fn flood(site: &Site, traffic: Option<Traffic>, options: &Options) -> Result<Flood> {
    let mut floods = Vec::new();
    for _ in 0..options.runs {
        let before = (site.forwarded()?, site.shed()?, site.received()?);
        let (paced, flooding) = (site.socket()?, site.socket()?);
        let (sent, flood) = thread::scope(|scope| {
            let flood = traffic.map(|traffic| scope.spawn(move || send(&flooding, site, traffic, options.time, None)));
            let sent = send(&paced, site, Traffic::Fast, options.time, Some(options.paced));
            let flood = flood.and_then(|flood| flood.join().ok()).transpose();
            (sent, flood)
        });
        let (sent, _) = sent?;
        thread::sleep(Duration::from_millis(300));
        let flood = flood?.map_or(0.0, |(sent, took)| sent as f64 / took.as_secs_f64());
        floods.push(Flood {
            traffic: traffic.map(|traffic| traffic.name().to_owned()),
            flood,
            sent,
            lost: sent.saturating_sub(site.forwarded()? - before.0),
            shed: site.shed()? - before.1,
            taken: site.received()? - before.2,
        });
    }
    floods.sort_by_key(|flood| flood.lost);
    let middle = floods.len() / 2;
    floods.into_iter().nth(middle).context("no runs")
}

/// Sends for a while, as fast as it goes or at a pace; how much and how long.
fn send(
    socket: &RawSocket,
    site: &Site,
    traffic: Traffic,
    time: Duration,
    pace: Option<u32>,
) -> Result<(u64, Duration)> {
    let frames: Vec<_> = (0..PREPARED)
        .flat_map(|number| traffic.frames(&site.addresses, number))
        .collect();
    let mut next = frames.iter().cycle();
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let due = match pace {
            Some(pace) => (start.elapsed().as_secs_f64() * f64::from(pace)) as u64,
            None => sent + 64,
        };
        while sent < due {
            // A full queue is a frame that was not sent.
            if let Some(frame) = next.next()
                && socket.send(frame).is_ok()
            {
                sent += 1;
            }
        }
        if pace.is_some() {
            thread::sleep(BURST_GAP);
        }
    }
    Ok((sent, start.elapsed()))
}

/// The figures, for people.
pub(crate) fn write_table(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    writeln!(out, "one sender, {} runs of {} s, medians", report.runs, report.seconds)?;
    writeln!(
        out,
        "{:28} {:>12} {:>12} {:>8} {:>14}",
        "SLOW PATH", "OFFERED/s", "HANDLED/s", "CORES", "PER CORE AND s"
    )?;
    for row in &report.capacity {
        writeln!(
            out,
            "{:28} {:>12.0} {:>12.0} {:>8.2} {:>14.0}",
            row.traffic, row.offered, row.handled, row.cores, row.per_core
        )?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "{:28} {:>12} {:>12} {:>8} {:>12} {:>12}",
        "FLOOD", "FLOOD/s", "FAST SENT", "LOST", "SHED", "TAKEN"
    )?;
    for row in &report.floods {
        let traffic = row.traffic.as_deref().unwrap_or("none (control)");
        writeln!(
            out,
            "{traffic:28} {:>12.0} {:>12} {:>8} {:>12} {:>12}",
            row.flood, row.sent, row.lost, row.shed, row.taken
        )?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "most memory of the daemon's slow path: {:.1} MiB",
        report.memory_bytes as f64 / f64::from(1 << 20)
    )
}
