//! The report for people: columns that line up, goals beside figures.

use std::io::{self, Write};

use super::Report;
use crate::{machine::Machine, prog::Receiver, stats::Summary};

const MIB: f64 = (1 << 20) as f64;

/// Writes all of it.
///
/// # Errors
///
/// The writer's.
pub(crate) fn write_table(report: &Report, out: &mut impl Write) -> io::Result<()> {
    header(report, out)?;
    floors(report, out)?;
    rows(report, out)?;
    live(report, out)?;
    builds(report, out)?;
    memory(report, out)?;
    for refused in &report.refused {
        writeln!(out, "\nREFUSED  {}\n         {}", refused.row, refused.reason)?;
    }
    if report.interrupted {
        writeln!(out, "\ninterrupted: the rest was not measured")?;
    }
    Ok(())
}

fn header(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Machine {
        kernel,
        cpu,
        cpus,
        possible_cpus,
        jit,
        jit_harden,
        load_average,
        ..
    } = &report.machine;
    let guest = if report.machine.virtual_machine {
        " (virtual machine)"
    } else {
        ""
    };
    writeln!(out, "kernel       {kernel}")?;
    writeln!(
        out,
        "CPU          {cpu}{guest}; {cpus} online, {possible_cpus} possible; {}",
        report.machine.caches.join(", ")
    )?;
    for (number, (name, state)) in report.machine.mitigations.iter().enumerate() {
        let label = if number == 0 { "mitigations" } else { "" };
        writeln!(out, "{label:<12} {name}: {state}")?;
    }
    let hz = report
        .machine
        .hz
        .map_or_else(|| "unknown".to_owned(), |hz| hz.to_string());
    writeln!(
        out,
        "settings     HZ {hz}, JIT {jit}, JIT hardening {jit_harden}, load average {load_average}"
    )?;
    if let Some(program) = &report.program {
        writeln!(
            out,
            "program      vipline_lb: {} B machine code (goal {} B: {}), {} B eBPF, {} instructions verified",
            program.jited_bytes,
            program.goal_bytes,
            said(program.jited_bytes <= program.goal_bytes),
            program.xlated_bytes,
            program.verified_insns
        )?;
    }
    let effort = &report.effort;
    writeln!(
        out,
        "method       ns per packet over bare XDP_TX behind the same wrapper, on CPU {}: median (p10..p90) of {} pairs of runs of",
        effort.cpu, effort.runs
    )?;
    writeln!(
        out,
        "             {} packets, without those whose XDP_TX was disturbed. Every packet came to the verdict that the row is about.",
        effort.repeat
    )?;
    writeln!(
        out,
        "polluted     before each packet the wrapper reads 64 random lines of 4 MiB (L2) or 64 MiB (LLC); an eighth of the packets"
    )?;
    writeln!(
        out,
        "cold burst   mean of {} packets that come after 64 MiB were written and others had the CPU for 20 ms",
        effort.burst
    )
}

fn floors(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = report.floors.first() else {
        return Ok(());
    };
    writeln!(out, "\nfloors")?;
    let tx = summary(&first.tx_ns);
    writeln!(out, "  {:<48}{tx}", "XDP_TX itself: wrapper and the kernel's loop")?;
    for floor in &report.floors {
        writeln!(
            out,
            "  {:<48}{}",
            format!("+ {}", floor.name),
            summary(&floor.over_tx_ns)
        )?;
    }
    Ok(())
}

fn rows(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let mut group = "";
    let width = report
        .rows
        .iter()
        .map(|row| row.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(20);
    for row in &report.rows {
        if row.group != group {
            group = &row.group;
            writeln!(
                out,
                "\n{group:<gap$}  {:>8} {:>6} {:>8} {:>6} {:>6}  {:<12} {:>22} {:>6}  met",
                "flows",
                "VIPs",
                "backends",
                "slots",
                "tables",
                "caches",
                "ns over XDP_TX",
                "goal",
                gap = width + 2
            )?;
        }
        let goal = row.goal_ns.map_or_else(|| "-".to_owned(), |goal| format!("{goal:.0}"));
        writeln!(
            out,
            "  {:<width$}  {:>8} {:>6} {:>8} {:>6} {:>6}  {:<12} {:>22} {:>6}  {}",
            row.name,
            row.flows,
            row.vips,
            row.backends,
            row.slots,
            row.tables,
            row.caches,
            summary(&row.over_tx_ns),
            goal,
            row.met.map_or("-", said)
        )?;
    }
    Ok(())
}

fn live(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = report.live.first() else {
        return Ok(());
    };
    writeln!(
        out,
        "\nlive frames over veth, generator and both ends on one CPU: {}",
        first.traffic
    )?;
    for live in &report.live {
        let name = match live.receiver {
            Receiver::Drop => "one crossing, XDP_DROP",
            Receiver::Tx => "there and back, XDP_TX",
            Receiver::Balancer => "there and back, the balancer",
        };
        let Summary { median, p10, p90, .. } = live.mpps;
        let came = live.delivered * 100.0;
        writeln!(
            out,
            "  {name:<48}{median:.2} Mpps ({p10:.2}..{p90:.2}), {came:.1} % came to their end"
        )?;
    }
    Ok(())
}

fn builds(report: &Report, out: &mut impl Write) -> io::Result<()> {
    if report.builds.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:<20} {:>8} {:>24} {:>24} {:>6}  met",
        "lookup table builds", "slots", "ms", "crate maglev, ms", "goal"
    )?;
    for build in &report.builds {
        let ms = |of: &Summary| format!("{:.3} ({:.3}..{:.3})", of.median, of.p10, of.p90);
        writeln!(
            out,
            "  {:<18} {:>8} {:>24} {:>24} {:>6}  {}",
            format!("{} backends", build.backends),
            build.slots,
            ms(&build.ms),
            build.peer_ms.as_ref().map_or_else(|| "-".to_owned(), ms),
            build.goal_ms.map_or_else(|| "-".to_owned(), |goal| goal.to_string()),
            build.goal_ms.map_or("-", |goal| said(build.ms.median <= goal))
        )?;
    }
    Ok(())
}

fn memory(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Some(memory) = &report.memory else { return Ok(()) };
    let scaled = format!("{} CPUs, MiB", memory.scaled_to_cpus);
    writeln!(
        out,
        "\n{:<32} {:>10} {scaled:>14}",
        format!("memory, {} VIPs on one node set", memory.vips),
        "here, MiB"
    )?;
    for map in memory.maps.iter().filter(|map| map.scaled_bytes as f64 >= MIB / 100.0) {
        writeln!(
            out,
            "  {:<30} {:>10.2} {:>14.2}",
            map.map,
            map.bytes as f64 / MIB,
            map.scaled_bytes as f64 / MIB
        )?;
    }
    writeln!(
        out,
        "  {:<30} {:>10.2} {:>14.2}  goal {:.0}: {}",
        "all",
        memory.total_bytes as f64 / MIB,
        memory.scaled_bytes as f64 / MIB,
        memory.goal_bytes as f64 / MIB,
        said(memory.scaled_bytes <= memory.goal_bytes)
    )
}

fn summary(of: &Summary) -> String {
    format!("{:.1} ({:.1}..{:.1})", of.median, of.p10, of.p90)
}

const fn said(met: bool) -> &'static str {
    if met { "yes" } else { "NO" }
}
