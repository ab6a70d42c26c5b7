//! `vipline-perf churn`: connections broken while backends and LB nodes change. A simulator of many nodes through the real planner and
//! the real packet logic, beside a plain Maglev and a design that tracks every flow.
//!
//! Never models Vipline: what is simulated is the network around it (clients, ECMP, time) and the two others.

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

/// What to simulate.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Flows that are open at a time, three TCP connections to one UDP flow
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    flows: u32,
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

/// Runs every scenario for every design.
///
/// # Errors
///
/// When no scenario has such a name, and when a table does not go into its maps.
pub(crate) fn run(args: &Args, interrupt: &Interrupt, progress: &Progress) -> Result<Report> {
    let mut scenarios = Scenario::all(args.backends);
    if let Some(filter) = &args.filter {
        scenarios.retain(|scenario| scenario.name.contains(filter.as_str()));
    }
    ensure!(!scenarios.is_empty(), "no scenario has such a name");
    let mut report = Report {
        flows: args.flows,
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
                    flows: args.flows as usize,
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
