//! `vipline-perf prog`: what the balancer costs per packet, by BPF_PROG_TEST_RUN behind a wrapper.

mod rows;
mod tables;
mod wrapper;

use anyhow::{Context as _, Result, ensure};
use xdp_prog::verdict::Verdict;

use crate::stats::Summary;
use rows::Row;
use wrapper::{Params, Wrapper, kind, target};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

pub(crate) fn run(quick: bool, filter: Option<&str>, runs: usize, repeat: u32) -> Result<()> {
    let cpu = nix::sched::CpuSet::new();
    let mut set = cpu;
    set.set(1)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    let mut wrapper = Wrapper::load()?;
    let mut loaded: Option<(tables::Shape, lb::datapath::Balancer)> = None;
    for row in rows::all() {
        if quick && !row.quick || filter.is_some_and(|f| !row.name.contains(f)) {
            continue;
        }
        if loaded.as_ref().is_none_or(|(shape, _)| *shape != row.shape) {
            drop(loaded.take());
            let kinds: &[u64] =
                if row.shape.vips == 1 { &[0, kind::UDP, kind::V6, kind::V6 | kind::UDP] } else { &[0] };
            let balancer = row.shape.load(kinds)?;
            wrapper.aim(balancer.program.fd()?)?;
            let facts = balancer.program.facts()?;
            println!("# jited {} xlated {} verified {}", facts.jited_len, facts.xlated_len, facts.verified_insns);
            loaded = Some((row.shape, balancer));
        }
        let (_, balancer) = loaded.as_ref().context("loaded")?;
        let before = balancer.counters.verdicts.read()?;
        let mut cost = Vec::new();
        let mut floor = Vec::new();
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for turn in 0..runs {
            let mut of = |to| -> Result<wrapper::Run> { wrapper.run(&params(&row, to, turn as u64 * u64::from(repeat)), repeat) };
            let tx = of(target::FLOOR_TX)?;
            let program = of(target::PROGRAM)?;
            read.push(of(target::FLOOR_READ)?.ns - tx.ns);
            write.push(of(target::FLOOR_WRITE)?.ns - tx.ns);
            let expected = if row.verdict == Verdict::PassNotVip { XDP_PASS } else { XDP_TX };
            ensure!(program.action == expected && tx.action == XDP_TX, "{}: action {}", row.name, program.action);
            floor.push(tx.ns);
            cost.push(program.ns - tx.ns);
        }
        let counted: Vec<(Verdict, u64)> = balancer
            .counters
            .verdicts
            .read()?
            .into_iter()
            .zip(before)
            .map(|((verdict, now), (_, then))| (verdict, now - then))
            .filter(|(_, count)| *count > 0)
            .collect();
        ensure!(
            counted == [(row.verdict, runs as u64 * u64::from(repeat))],
            "{}: verdicts {counted:?}",
            row.name
        );
        let summary = |v: &[f64]| Summary::of(v).context("no runs");
        let (cost, floor, read, write) = (summary(&cost)?, summary(&floor)?, summary(&read)?, summary(&write)?);
        println!(
            "{:38} vips {:6} backends {:5} slots {:6}  {:6.1} ns ({:.1}..{:.1}) goal {:?}   floor {:.1} read {:+.1} write {:+.1}",
            row.name, row.shape.vips, row.shape.backends, row.shape.slots, cost.median, cost.p10, cost.p90, row.goal, floor.median, read.median, write.median
        );
    }
    Ok(())
}

fn params(row: &Row, target: u32, from: u64) -> Params {
    let not_vip = row.verdict == Verdict::PassNotVip;
    Params {
        target: u64::from(target),
        choice: row.traffic.choice,
        flow_mask: row.traffic.flows.map_or(u64::MAX, |flows| flows - 1),
        stride: 1,
        vips: u64::from(row.shape.vips),
        vip_v4: u64::from(tables::VIP_V4) + if not_vip { 1 << 16 } else { 0 },
        vip_v6: tables::VIP_V6 + u64::from(not_vip),
        kind: row.traffic.kind,
        tcp_flags: row.traffic.tcp_flags,
        sequence: from,
        random: 0x9e37_79b9_7f4a_7c15 ^ from,
        packets: 0,
    }
}
