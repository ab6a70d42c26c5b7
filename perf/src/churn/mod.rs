//! `vipline-perf churn`: connections broken while backends and LB nodes change. A simulator of many nodes through the real planner and
//! the real packet logic, beside a plain Maglev and a design that tracks every flow; and a lab of real daemons and connections.
//!
//! Never models Vipline: what is simulated is the network around it (clients, ECMP, time) and the two others.

mod lab;
mod node;
mod report;
mod scenario;
mod world;

use anyhow::{Result, ensure};

pub(crate) use report::{Report, write_table};

use self::{
    report::Row,
    scenario::Scenario,
    world::{Design, World},
};
use crate::{interrupt::Interrupt, progress::Progress};

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Real connections through real daemons, in network namespaces of this machine (root): 6 backends, 2 LB nodes
    #[arg(long, conflicts_with_all = ["backends", "lbs", "runs"])]
    lab: bool,
    /// Flows that are open at a time, three TCP connections to one UDP flow [default: 4000, or 2000 with --lab]
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    flows: Option<u32>,
    /// Backends
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(4..=1_000))]
    backends: u32,
    /// LB nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=16))]
    lbs: u32,
    /// Histories of each scenario, with seeds 1, 2, 3 and so on
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = crate::Output::Table)]
    pub(crate) output: crate::Output,
}

/// Flows of the simulation, and of the lab.
const FLOWS: u32 = 4_000;
const LAB_FLOWS: u32 = 2_000;
const NO_SUCH: &str = "no scenario has such a name";

/// Runs every scenario for every design.
///
/// # Errors
///
/// When no scenario has such a name, and when a table does not go into its maps.
pub(crate) fn run(args: &Args, interrupt: &Interrupt, progress: &Progress) -> Result<Report> {
    if args.lab {
        let flows = args.flows.unwrap_or(LAB_FLOWS);
        let (rows, interrupted) = lab::run(flows as usize, args.filter.as_deref(), interrupt, progress)?;
        progress.done();
        ensure!(!rows.is_empty() || interrupted, NO_SUCH);
        return Ok(Report {
            is_lab: true,
            flows,
            backends: lab::WORKERS as u32,
            lbs: u32::from(lab::LBS),
            runs: 1,
            rows,
            interrupted,
        });
    }
    let flows = args.flows.unwrap_or(FLOWS);
    let mut scenarios = Scenario::all(args.backends);
    if let Some(filter) = &args.filter {
        scenarios.retain(|scenario| scenario.name.contains(filter.as_str()));
    }
    ensure!(!scenarios.is_empty(), NO_SUCH);
    let mut report = Report {
        is_lab: false,
        flows,
        backends: args.backends,
        lbs: args.lbs,
        runs: args.runs,
        rows: Vec::new(),
        interrupted: false,
    };
    'all: for scenario in &scenarios {
        for design in Design::ALL {
            let mut row = Row::new(scenario, design);
            for seed in 1..=u64::from(args.runs) {
                if interrupt.came() {
                    report.interrupted = true;
                    break 'all;
                }
                progress.at(
                    "scenarios",
                    &format!("{}: {}, run {seed}", scenario.name, design.name()),
                );
                let size = world::Size {
                    flows: flows as usize,
                    backends: args.backends,
                    lbs: args.lbs,
                    is_short_of_records: scenario.is_short_of_records,
                };
                let mut world = World::new(design, size, seed)?;
                for event in &scenario.events {
                    world.meet(event)?;
                }
                row.add(&world.outcome());
            }
            report.rows.push(row);
        }
    }
    progress.done();
    Ok(report)
}
