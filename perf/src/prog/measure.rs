//! From a row to figures.
//!
//! Never reports a row whose packets did not all come to the verdict that the row says: a benchmark of drops is a lie. Floor and
//! program run in turns, and the figure is the median of the differences, so that what slows down both falls out. Pairs whose floor
//! was disturbed are left out: neighbours on a shared machine slow down the program too, and by more.

use std::{collections::BTreeMap, hint::black_box};

use anyhow::{Context as _, Result, bail, ensure};
use lb::datapath::Balancer;
use xdp_prog::verdict::{Fate, Verdict};

use super::{
    rows::{Caches, Flows, Row},
    tables::{VIP_V4, VIP_V6},
    wrapper::{Params, Wrapper, target},
};
use crate::stats::{self, Summary};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// Packets of a burst to cold caches: what a driver's poll takes at most (`NAPI_POLL_WEIGHT`).
pub(crate) const BURST: u32 = 64;
/// Bytes written before such a burst. The kernel then sleeps for 20 ms before it runs a program more than once.
const EVICTION: usize = 64 << 20;

/// How often, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Pairs of runs of each row.
    pub(crate) runs: u32,
    /// Packets of each run.
    pub(crate) repeat: u32,
}

/// What a row came to, in ns per packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Over bare `XDP_TX`.
    pub(crate) over_tx: Summary,
    /// Bare `XDP_TX`, with the wrapper and the kernel's loop.
    pub(crate) tx: Summary,
    /// Packets through the program.
    pub(crate) packets: u64,
}

/// Measures a row on a balancer that the wrapper is aimed at.
pub(crate) fn row(wrapper: &mut Wrapper, balancer: &Balancer, row: &Row, effort: Effort) -> Result<Cost> {
    let cold = row.caches == Caches::Cold;
    let mut eviction = vec![0_u64; if cold { EVICTION / size_of::<u64>() } else { 0 }];
    let repeat = match row.caches {
        Caches::Hot => effort.repeat,
        // Each packet costs the wrapper 64 cache misses.
        Caches::L2Polluted | Caches::LlcPolluted => (effort.repeat / 8).max(1),
        Caches::Cold => BURST,
    };
    let before = verdicts(balancer)?;
    let pairs = Pairs {
        program: target::PROGRAM,
        action: action(row.verdict)?,
        runs: effort.runs,
        repeat,
    };
    let cost = pairs.measure(wrapper, row, || evict(&mut eviction))?;
    let counted: BTreeMap<Verdict, u64> = verdicts(balancer)?
        .into_iter()
        .map(|(verdict, count)| (verdict, count - before.get(&verdict).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let expected = BTreeMap::from([(row.verdict, cost.packets)]);
    if counted != expected {
        let list: Vec<String> = counted
            .iter()
            .map(|(verdict, count)| format!("{count} {}", verdict.reason()))
            .collect();
        bail!(
            "verdicts are not as expected: {} instead of {} {}",
            list.join(", "),
            cost.packets,
            row.verdict.reason()
        );
    }
    Ok(cost)
}

/// Measures one of the floors.
pub(crate) fn floor(wrapper: &mut Wrapper, row: &Row, floor: u32, effort: Effort) -> Result<Cost> {
    let Effort { runs, repeat } = effort;
    Pairs {
        program: floor,
        action: XDP_TX,
        runs,
        repeat,
    }
    .measure(wrapper, row, || ())
}

/// Runs of floor and program in turns.
struct Pairs {
    program: u32,
    /// What the program must return.
    action: u32,
    runs: u32,
    repeat: u32,
}

impl Pairs {
    fn measure(&self, wrapper: &mut Wrapper, row: &Row, mut before_each: impl FnMut()) -> Result<Cost> {
        let (mut over_tx, mut tx) = (Vec::new(), Vec::new());
        let mut one = |wrapper: &mut Wrapper, target, action, from| -> Result<f64> {
            before_each();
            let run = wrapper.run(&params(row, target, from), self.repeat)?;
            ensure!(run.action == action, "action {} instead of {action}", run.action);
            Ok(run.ns)
        };
        for turn in 0..self.runs {
            let from = u64::from(turn) * u64::from(self.repeat);
            // Both see the same packets. Who comes first takes turns too.
            let (floor, program) = if turn % 2 == 0 {
                let floor = one(wrapper, target::FLOOR_TX, XDP_TX, from)?;
                (floor, one(wrapper, self.program, self.action, from)?)
            } else {
                let program = one(wrapper, self.program, self.action, from)?;
                (one(wrapper, target::FLOOR_TX, XDP_TX, from)?, program)
            };
            tx.push(floor);
            over_tx.push(program - floor);
        }
        let quiet = stats::quiet(&tx);
        let of = |values: &[f64]| Summary::of(&quiet.iter().map(|&at| values[at]).collect::<Vec<_>>());
        Ok(Cost {
            over_tx: of(&over_tx).context("no runs")?,
            tx: of(&tx).context("no runs")?,
            packets: u64::from(self.runs) * u64::from(self.repeat),
        })
    }
}

/// What the wrapper is told. Packets that are not for a VIP go to as many addresses as there are VIPs, beside them.
fn params(row: &Row, target: u32, from: u64) -> Params {
    let beside = u64::from(row.verdict == Verdict::PassNotVip);
    Params {
        target: u64::from(target),
        choice: row.traffic.flows.choice(),
        flow_mask: match row.traffic.flows {
            Flows::Random(count) | Flows::Zipf(count) => u64::from(count) - 1,
            Flows::New => u64::MAX,
        },
        stride: 1,
        vips: u64::from(row.shape.vips),
        vip_v4: u64::from(VIP_V4) + (beside << 16),
        vip_v6: VIP_V6 + beside,
        kind: row.traffic.kind,
        tcp_flags: row.traffic.tcp_flags,
        pollution_mask: u64::from(row.caches.polluting_lines().saturating_sub(1)),
        sequence: from,
        random: 0x9e37_79b9_7f4a_7c15 ^ from,
        packets: 0,
    }
}

/// As for a test run, for packets that are sent.
pub(crate) fn live_params(row: &Row, from: u64) -> Params {
    params(row, target::FLOOR_TX, from)
}

fn verdicts(balancer: &Balancer) -> Result<BTreeMap<Verdict, u64>> {
    Ok(balancer.counters.verdicts.read()?.into_iter().collect())
}

/// The `XDP_*` action that says a verdict.
fn action(verdict: Verdict) -> Result<u32> {
    Ok(match verdict.fate() {
        Fate::Forward if verdict == Verdict::ForwardTx => XDP_TX,
        Fate::Forward => bail!("rows are measured with one interface"),
        Fate::Pass => XDP_PASS,
        Fate::Slow | Fate::Drop => XDP_DROP,
    })
}

/// Writes a word of every cache line.
fn evict(buffer: &mut [u64]) {
    const LINE: usize = 64 / size_of::<u64>();
    for word in buffer.iter_mut().step_by(LINE) {
        *word = word.wrapping_add(1);
    }
    black_box(buffer);
}
