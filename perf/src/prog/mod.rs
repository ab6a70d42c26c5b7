//! `vipline-perf prog`: what the shipped balancer costs per packet.
//!
//! Never leaves anything behind: programs and maps hang on descriptors of this process.
//!
//! | room | what it is |
//! |---|---|
//! | [`rows`] | what is measured |
//! | [`tables`] | the balancer with tables of a given size |
//! | [`wrapper`] | the eBPF half: packets made in the kernel |
//! | [`measure`] | from a row to figures: pairs of runs, verdicts checked |
//! | [`live`] | packets per second over veth |
//! | [`builds`], [`memory`] | lookup tables' build times; what the maps cost |

mod builds;
mod live;
mod measure;
mod memory;
mod rows;
pub(crate) mod tables;
mod wrapper;

use anyhow::{Context as _, Result, ensure};
use lb::datapath::Balancer;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    interrupt::Interrupt,
    machine::Machine,
    progress::Progress,
    report::{Effort, Floor, Measured, ProgramFacts, Refused, Report},
    stats,
};
pub(crate) use builds::Build;
pub(crate) use live::{Live, Receiver};
pub(crate) use memory::Memory;
use rows::{Flows, Row};
use tables::Shape;
pub(crate) use wrapper::OBJECT as WRAPPER_OBJECT;
use wrapper::{Wrapper, target};

/// A program that drops and counts what comes to an interface, in the driver.
pub(crate) struct Sink {
    _link: aya::programs::xdp::XdpLink,
    _wrapper: Wrapper,
}

impl Sink {
    /// On an interface of the calling thread's namespace.
    pub(crate) fn attach(interface: &str) -> Result<Self> {
        let mut wrapper = Wrapper::load(1)?;
        let link = wrapper.attach("sink", interface)?;
        Ok(Self {
            _link: link,
            _wrapper: wrapper,
        })
    }
}

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Only the rows that cover the goals.
    pub(crate) quick: bool,
    /// Only rows whose title contains this, whatever its case.
    pub(crate) filter: Option<String>,
    /// Pairs of runs of each row.
    pub(crate) runs: u32,
    /// Packets of each run.
    pub(crate) repeat: u32,
}

impl Options {
    fn wants(&self, title: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| title.to_lowercase().contains(&filter.to_lowercase()))
    }
}

/// Measures everything that is asked for. An interrupt ends it early, with what there is until then.
///
/// # Errors
///
/// What keeps anything from being measured at all: no root, a program that does not load. A row that fails is in
/// [`Report::refused`].
pub(crate) fn run(options: &Options, interrupt: &Interrupt, progress: &Progress) -> Result<Report> {
    let machine = Machine::this();
    let cpu = pin().context("cannot stay on one CPU")?;
    let effort = measure::Effort {
        runs: options.runs,
        repeat: options.repeat,
    };
    let rows: Vec<Row> = rows::all()
        .into_iter()
        .filter(|row| (row.quick || !options.quick) && options.wants(&row.title()))
        .collect();
    let polluting_lines = rows.iter().map(|row| row.caches.polluting_lines()).max().unwrap_or(0);
    let mut bench = Bench {
        wrapper: Wrapper::load(polluting_lines)?,
        loaded: None,
        effort,
        report: Report::new(
            machine,
            Effort {
                cpu,
                runs: effort.runs,
                repeat: effort.repeat,
                burst: measure::BURST,
            },
        ),
    };
    bench
        .wrapper
        .set_flow_ids(&stats::zipf(1 << 20, wrapper::FLOW_IDS, 0x1f83_d9ab_fb41_bd6b))?;
    bench.facts(rows.first().map(|row| row.shape))?;
    bench.steps(&rows, options, interrupt, progress)?;
    progress.done();
    let report = bench.report;
    ensure!(
        !report.is_empty() || report.interrupted,
        "nothing to measure is called like --filter"
    );
    Ok(report)
}

struct Bench {
    wrapper: Wrapper,
    /// The balancer in use and the shape of its tables.
    loaded: Option<(Shape, Balancer)>,
    effort: measure::Effort,
    report: Report,
}

impl Bench {
    fn steps(&mut self, rows: &[Row], options: &Options, interrupt: &Interrupt, progress: &Progress) -> Result<()> {
        let established = rows::all().into_iter().find(|row| row.group == "established flows");
        let established = established.context("no row of established flows")?;
        for (name, floor) in [
            ("header read", target::FLOOR_READ),
            ("adjust_head, 34 B written", target::FLOOR_WRITE),
        ] {
            if options.wants(&format!("floors: {name}")) && !self.stopped(interrupt) {
                progress.at("floors", name);
                self.floor(&established, name, floor)?;
            }
        }
        for (number, row) in rows.iter().enumerate() {
            if self.stopped(interrupt) {
                return Ok(());
            }
            progress.at(row.group, &format!("{} ({}/{})", row.title(), number + 1, rows.len()));
            self.row(row);
        }
        let many = Shape {
            vips: 10_000,
            ..established.shape
        };
        if options.wants("memory") && !self.stopped(interrupt) {
            progress.at("memory", "10k VIPs on one node set");
            let cpus = self.report.machine.possible_cpus;
            let balancer = load(&mut self.loaded, &mut self.wrapper, many)?;
            self.report.memory = Some(memory::measure(balancer, many.vips, many.backends, cpus)?);
        }
        if options.wants("lookup table builds") && !self.stopped(interrupt) {
            progress.at("lookup table builds", "ours and the crate maglev");
            self.report.builds = builds::measure(self.effort.runs)?;
        }
        if options.wants("live frames over veth") && !self.stopped(interrupt) {
            progress.at("live frames over veth", "one CPU");
            let row = Row {
                name: "IPv4 TCP, 1M flows".into(),
                traffic: rows::Traffic {
                    flows: Flows::Random(1 << 20),
                    ..established.traffic
                },
                ..established
            };
            let measured = load(&mut self.loaded, &mut self.wrapper, row.shape)
                .map(drop)
                .and_then(|()| self.live(&row));
            match measured {
                Ok(live) => self.report.live = live,
                Err(error) => self.refuse("live frames over veth", &error),
            }
        }
        Ok(())
    }

    fn live(&mut self, row: &Row) -> Result<Vec<Live>> {
        let (_, balancer) = self.loaded.as_ref().context("no balancer is loaded")?;
        live::measure(&mut self.wrapper, balancer, row, self.effort)
    }

    fn stopped(&mut self, interrupt: &Interrupt) -> bool {
        self.report.interrupted |= interrupt.came();
        self.report.interrupted
    }

    fn facts(&mut self, shape: Option<Shape>) -> Result<()> {
        let Some(shape) = shape else { return Ok(()) };
        let facts = load(&mut self.loaded, &mut self.wrapper, shape)?.program.facts()?;
        self.report.program = Some(ProgramFacts::new(&facts));
        Ok(())
    }

    fn floor(&mut self, row: &Row, name: &str, floor: u32) -> Result<()> {
        let cost = measure::floor(&mut self.wrapper, row, floor, self.effort)?;
        self.report.floors.push(Floor {
            name: name.to_owned(),
            over_tx_ns: cost.over_tx,
            tx_ns: cost.tx,
        });
        Ok(())
    }

    fn row(&mut self, row: &Row) {
        let measured = load(&mut self.loaded, &mut self.wrapper, row.shape)
            .map(drop)
            .and_then(|()| {
                let (_, balancer) = self.loaded.as_ref().context("no balancer is loaded")?;
                let cost = measure::row(&mut self.wrapper, balancer, row, self.effort)?;
                Ok((cost, balancer.program.facts()?))
            });
        match measured {
            Ok((cost, facts)) => self.report.rows.push(Measured {
                group: row.group.to_owned(),
                name: row.name.clone(),
                flows: row.traffic.flows.label(),
                vips: row.shape.all_vips(),
                backends: row.shape.backends,
                slots: row.shape.slots,
                tables: row.shape.tables(),
                caches: row.caches.label().to_owned(),
                verdict: row.verdict.reason().to_owned(),
                packets: cost.packets,
                over_tx_ns: cost.over_tx,
                tx_ns: cost.tx,
                goal_ns: row.goal,
                met: row.goal.map(|goal| cost.over_tx.median <= goal),
                jited_bytes: facts.jited_len,
            }),
            Err(error) => self.refuse(&row.title(), &error),
        }
    }

    fn refuse(&mut self, title: &str, error: &anyhow::Error) {
        self.report.refused.push(Refused {
            row: title.to_owned(),
            reason: format!("{error:#}"),
        });
    }
}

/// The balancer with these tables, with the wrapper aimed at it; the one in use where it has them already.
fn load<'a>(loaded: &'a mut Option<(Shape, Balancer)>, wrapper: &mut Wrapper, shape: Shape) -> Result<&'a Balancer> {
    if loaded.as_ref().is_none_or(|(other, _)| *other != shape) {
        // The old one's memory goes first.
        *loaded = None;
        let balancer = shape.load()?;
        wrapper.aim(balancer.program.fd()?)?;
        *loaded = Some((shape, balancer));
    }
    loaded
        .as_ref()
        .map(|(_, balancer)| balancer)
        .context("no balancer is loaded")
}

/// Keeps this thread on the last CPU: interrupts are mostly served by the first.
fn pin() -> Result<usize> {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .context("no CPU")?;
    let mut only = CpuSet::new();
    only.set(last)?;
    sched_setaffinity(Pid::from_raw(0), &only)?;
    Ok(last)
}
