//! What `vipline-perf control` found, as data and as a table.

use std::io;

use serde::{Deserialize, Serialize};

use super::{latency::Latency, process::Memory};
use crate::machine::Machine;

const MIB: f64 = (1 << 20) as f64;
const MEGABYTE: f64 = 1e6;

/// Cold sync, in seconds.
const COLD_SYNC_GOAL: f64 = 5.0;
/// EndpointSlice change to map write, 99th percentile, in ms.
const CHANGE_GOAL: f64 = 50.0;
/// The operator's memory, in MB.
const OPERATOR_GOAL: f64 = 500.0;
/// The LB node's memory, in MB.
const LB_GOAL: f64 = 300.0;
/// Writes of a Service's first creation, Events left out.
const CREATION_GOAL: f64 = 4.0;
/// Writes of an LbNode, in a second.
const LB_NODE_GOAL: f64 = 1.0;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What it was measured on.
    pub(crate) machine: Machine,
    /// Services, of one port each.
    pub(crate) services: u32,
    /// Of them, those with policy Local: a backend set of their own each.
    pub(crate) local: u32,
    /// Worker nodes.
    pub(crate) nodes: u32,
    /// Everything anew.
    pub(crate) creation: Option<Creation>,
    /// Restarts with everything there.
    pub(crate) restarts: Vec<Restart>,
    /// Changes of EndpointSlices of Services with policy Local.
    pub(crate) changes: Option<Changes>,
    /// A worker node that joins, and leaves.
    pub(crate) node_changes: Vec<NodeChange>,
    /// Memory of both processes, by what had been done.
    pub(crate) memory: Vec<MemoryRow>,
    /// Writes of the LB node's own status.
    pub(crate) lb_node: Option<LbNodeWrites>,
    /// What was to be measured and was not, and why.
    pub(crate) failed: Vec<String>,
    /// Whether it was stopped before its end.
    pub(crate) interrupted: bool,
}

/// Writes of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Writes {
    /// `create`, `update`, `patch`, `apply`, `delete`.
    pub(crate) verb: String,
    /// `services/status`.
    pub(crate) resource: String,
    /// How many.
    pub(crate) count: u64,
}

/// First creation of all Services.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Creation {
    /// Until all Services and EndpointSlices were made, in seconds.
    pub(crate) posted_s: f64,
    /// Until all had an address in their status and were found in the match table.
    pub(crate) served_s: f64,
    /// All writes, Events and Leases too.
    pub(crate) writes: Vec<Writes>,
    /// The operator's writes for a Service: without Events, Leases and what is written once for all.
    pub(crate) per_service: f64,
}

/// A restart of one or both, several times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Restart {
    /// Who, and with what on disk.
    pub(crate) what: String,
    /// Whether the goal is about this one.
    pub(crate) is_cold_sync: bool,
    /// Of each run: seconds until the last VIP was found in the match table.
    pub(crate) found_s: Vec<f64>,
    /// Of each run with the operator: seconds until it had listed everything and nothing was left to do.
    pub(crate) idle_s: Vec<f64>,
    /// Of each run: processor time until both were so.
    #[serde(default)]
    pub(crate) cpu: Vec<Cpu>,
    /// The operator's writes in all runs together, Events and Leases left out.
    pub(crate) writes: Vec<Writes>,
}

/// Processor time, user and system, in seconds. Says more than the clock where others have the processors, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// The operator's; 0 where it was not restarted.
    pub(crate) operator_s: f64,
    /// The LB node's.
    pub(crate) lb_s: f64,
    /// The benchmark's own: the API server's double.
    pub(crate) server_s: f64,
}

/// Changes under way at a pace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Changes {
    /// Changes a second.
    pub(crate) per_second: u32,
    /// From before a change is written to its being in the maps.
    pub(crate) latency: Latency,
    /// The operator's writes, Events and Leases left out.
    pub(crate) writes: Vec<Writes>,
}

/// A change of the node set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeChange {
    /// `joins` or `leaves`.
    pub(crate) what: String,
    /// Until all Services that share the node set had it so in the maps, in ms.
    pub(crate) all_ms: f64,
    /// The operator's writes, Events and Leases left out.
    pub(crate) writes: Vec<Writes>,
}

/// Memory at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryRow {
    /// After what.
    pub(crate) after: String,
    /// The operator's.
    pub(crate) operator: Memory,
    /// The LB node's.
    pub(crate) lb: Memory,
}

/// How often the LB node wrote its status.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LbNodeWrites {
    /// Writes in all.
    pub(crate) writes: u64,
    /// Over so many seconds.
    pub(crate) seconds: f64,
    /// Most in any ten seconds, a second.
    pub(crate) most_per_second: f64,
}

/// A figure and the design's goal for it.
struct Goal {
    name: &'static str,
    figure: f64,
    unit: &'static str,
    goal: f64,
}

impl Report {
    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let mut add = |name, figure: Option<f64>, unit, goal| {
            if let Some(figure) = figure {
                goals.push(Goal {
                    name,
                    figure,
                    unit,
                    goal,
                });
            }
        };
        let cold = self.restarts.iter().filter(|restart| restart.is_cold_sync);
        let slowest = cold.flat_map(|restart| &restart.found_s).copied().reduce(f64::max);
        let writes = self
            .restarts
            .iter()
            .flat_map(|restart| &restart.writes)
            .map(|row| row.count)
            .sum::<u64>();
        let creation = self.creation.as_ref().map(|creation| creation.per_service);
        add("cold sync, slowest", slowest, "s", COLD_SYNC_GOAL);
        add("writes of all restarts", slowest.map(|_| writes as f64), "", 0.0);
        let latency = self.changes.as_ref().map(|changes| &changes.latency);
        add(
            "EndpointSlice change to map write, p99",
            latency.map(|latency| latency.p99_ms),
            "ms",
            CHANGE_GOAL,
        );
        add(
            "changes that were never seen",
            latency.map(|latency| latency.lost as f64),
            "",
            0.0,
        );
        let most = |of: fn(&MemoryRow) -> Memory| {
            let sizes = self.memory.iter().map(|row| of(row).most as f64 / MEGABYTE);
            sizes.reduce(f64::max)
        };
        add("operator memory, peak", most(|row| row.operator), "MB", OPERATOR_GOAL);
        add("LB node memory, peak", most(|row| row.lb), "MB", LB_GOAL);
        add("writes of a Service's creation", creation, "", CREATION_GOAL);
        let rate = self.lb_node.map(|lb_node| lb_node.most_per_second);
        add("LbNode writes a second, most", rate, "", LB_NODE_GOAL);
        goals
    }
}

/// For people.
///
/// # Errors
///
/// The writer's.
pub(crate) fn write_table(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    let Machine {
        kernel,
        cpu,
        cpus,
        load_average,
        ..
    } = &report.machine;
    writeln!(
        out,
        "kernel {kernel}; {cpu}, {cpus} online; load average {load_average}"
    )?;
    writeln!(
        out,
        "{} Services ({} Local), {} nodes; API server: a double on loopback, on the same CPUs",
        report.services, report.local, report.nodes
    )?;
    writeln!(out, "\n{:<44} {:>12} {:>12}  MET", "FIGURE", "MEASURED", "GOAL")?;
    for goal in report.goals() {
        let met = if goal.figure <= goal.goal { "yes" } else { "NO" };
        let unit = goal.unit;
        let figure = format!("{:.2} {unit}", goal.figure);
        let wanted = format!("{} {unit}", goal.goal);
        writeln!(out, "{:<44} {figure:>12} {wanted:>12}  {met}", goal.name)?;
    }
    if let Some(creation) = &report.creation {
        writeln!(
            out,
            "\nfirst creation: made in {:.2} s, all served after {:.2} s, {:.3} writes a Service",
            creation.posted_s, creation.served_s, creation.per_service
        )?;
        table_of_writes(&creation.writes, out)?;
    }
    if !report.restarts.is_empty() {
        writeln!(
            out,
            "\n{:<44} {:>20} {:>20} {:>7}",
            "RESTART", "ALL FOUND, s", "OPERATOR IDLE, s", "WRITES"
        )?;
    }
    for restart in &report.restarts {
        let seconds = |runs: &[f64]| {
            let words: Vec<_> = runs.iter().map(|seconds| format!("{seconds:.2}")).collect();
            if words.is_empty() {
                "-".to_owned()
            } else {
                words.join(" ")
            }
        };
        let writes: u64 = restart.writes.iter().map(|row| row.count).sum();
        writeln!(
            out,
            "{:<44} {:>20} {:>20} {writes:>7}",
            restart.what,
            seconds(&restart.found_s),
            seconds(&restart.idle_s)
        )?;
        if !restart.cpu.is_empty() {
            let of = |part: fn(&Cpu) -> f64| seconds(&restart.cpu.iter().map(part).collect::<Vec<_>>());
            writeln!(
                out,
                "  CPU, s: operator {}; LB node {}; API server {}",
                of(|cpu| cpu.operator_s),
                of(|cpu| cpu.lb_s),
                of(|cpu| cpu.server_s)
            )?;
        }
        table_of_writes(&restart.writes, out)?;
    }
    if let Some(changes) = &report.changes {
        changes_table(changes, out)?;
    }
    for change in &report.node_changes {
        writeln!(
            out,
            "\na node {}: in all tables after {:.1} ms",
            change.what, change.all_ms
        )?;
        table_of_writes(&change.writes, out)?;
    }
    if !report.memory.is_empty() {
        writeln!(
            out,
            "\n{:<32} {:>14} {:>10} {:>14} {:>10}",
            "MEMORY, MiB, AFTER", "OPERATOR NOW", "PEAK", "LB NODE NOW", "PEAK"
        )?;
    }
    for row in &report.memory {
        let [now, most, lb_now, lb_most] =
            [row.operator.resident, row.operator.most, row.lb.resident, row.lb.most].map(|bytes| bytes as f64 / MIB);
        writeln!(
            out,
            "{:<32} {now:>14.1} {most:>10.1} {lb_now:>14.1} {lb_most:>10.1}",
            row.after
        )?;
    }
    if let Some(lb_node) = &report.lb_node {
        writeln!(out, "\nLbNode: {} writes in {:.0} s", lb_node.writes, lb_node.seconds)?;
    }
    for failed in &report.failed {
        writeln!(out, "\nNOT MEASURED  {failed}")?;
    }
    if report.interrupted {
        writeln!(out, "\ninterrupted: the rest was not measured")?;
    }
    Ok(())
}

fn changes_table(changes: &Changes, out: &mut dyn io::Write) -> io::Result<()> {
    let latency = &changes.latency;
    writeln!(
        out,
        "\nEndpointSlice change to map write, {} a second: {} seen, {} lost; p50 {:.1}, p90 {:.1}, p99 {:.1}, max {:.1} ms",
        changes.per_second, latency.seen, latency.lost, latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.max_ms
    )?;
    for bucket in &latency.histogram {
        if bucket.count > 0 {
            let bound = bucket
                .at_most_ms
                .map_or_else(|| "longer".to_owned(), |bound| format!("<= {bound} ms"));
            let share = 60 * bucket.count / latency.seen.max(1);
            writeln!(out, "  {bound:>10} {:>6} {}", bucket.count, "#".repeat(share.max(1)))?;
        }
    }
    table_of_writes(&changes.writes, out)
}

fn table_of_writes(writes: &[Writes], out: &mut dyn io::Write) -> io::Result<()> {
    for row in writes {
        writeln!(out, "  {:>8} {:<8} {}", row.count, row.verb, row.resource)?;
    }
    Ok(())
}
