//! `vipline-perf`: the benchmark harness.

#![forbid(unsafe_code)]

mod churn;
#[cfg(feature = "control")]
mod control;
mod interrupt;
mod machine;
mod prog;
mod progress;
mod report;
mod slow;
mod stats;
mod vipline;
mod wire;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use interrupt::Interrupt;
use progress::Progress;
use report::Report;

/// The benchmark harness of Vipline.
#[derive(Debug, Parser)]
#[command(name = "vipline-perf", version)]
struct Cli {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Cost per packet of the shipped XDP program, beside the design's goals (root)
    Prog(ProgArgs),
    /// Packets a second and core of the slow path, and what the fast path keeps while the slow path is flooded (root)
    Slow(SlowArgs),
    /// The control plane at scale: operator and LB node beside an API server double, beside the design's goals (root)
    #[cfg(feature = "control")]
    Control(control::Args),
    /// Connections broken while backends and LB nodes change, beside a stateless Maglev and a table of all flows: simulated, or with real connections (--lab, root)
    Churn(churn::Args),
    /// Rate without loss, latency, loss and order of packets through a device or through Vipline, by AF_XDP (root)
    Wire(wire::Args),
    /// Print a recorded `prog`, `slow`, `control`, `churn` or `wire -o json` as a table
    Show {
        /// The record, such as perf/record/DATE_MACHINE/prog.json
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ProgArgs {
    /// Only the rows that cover the goals, with less effort
    #[arg(long)]
    quick: bool,
    /// Only rows whose title (group, packets, flows, VIPs, backends, caches) contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Pairs of runs of each row [default: 25, or 11 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: Option<u32>,
    /// Packets of each run [default: 200000, or 100000 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    repeat: Option<u32>,
}

#[derive(Debug, Args)]
struct SlowArgs {
    /// How long each run sends, in milliseconds
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    time_ms: u64,
    /// Runs of each kind
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Packets a second of the fast path while the slow path is flooded
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pace: u32,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns, for people
    Table,
    /// Everything, for programs
    Json,
}

fn main() -> ExitCode {
    #[cfg(feature = "control")]
    if let Some(code) = control::role() {
        return code;
    }
    let outcome = match Cli::parse().mode {
        Mode::Prog(args) => prog(&args),
        Mode::Slow(args) => slow(&args),
        #[cfg(feature = "control")]
        Mode::Control(args) => control(&args),
        Mode::Churn(args) => churn(&args),
        Mode::Wire(args) => wire(&args),
        Mode::Show { file } => show(&file),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "vipline-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Exit codes: 0 measured (goals met or not), 1 nothing measured or a row refused, 130 interrupted.
fn prog(args: &ProgArgs) -> Result<ExitCode> {
    let interrupt = Interrupt::hold()?;
    let (runs, repeat) = if args.quick { (11, 100_000) } else { (25, 200_000) };
    let options = prog::Options {
        quick: args.quick,
        filter: args.filter.clone(),
        runs: args.runs.unwrap_or(runs),
        repeat: args.repeat.unwrap_or(repeat),
    };
    let report = prog::run(&options, &interrupt, &Progress::new())?;
    print(args.output, &report, |report, mut out| {
        report::write_table(report, &mut out)
    })?;
    Ok(if report.interrupted {
        ExitCode::from(130)
    } else if report.refused.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Exit codes as those of [`prog()`].
fn slow(args: &SlowArgs) -> Result<ExitCode> {
    let interrupt = Interrupt::hold()?;
    let options = slow::Options {
        time: Duration::from_millis(args.time_ms),
        runs: args.runs,
        paced: args.pace,
    };
    let report = slow::run(&options, &interrupt, &Progress::new())?;
    print(args.output, &report, slow::write_table)?;
    Ok(if interrupt.came() {
        ExitCode::from(130)
    } else {
        ExitCode::SUCCESS
    })
}

/// Exit codes as those of [`prog()`]; 1 where a part could not be measured.
#[cfg(feature = "control")]
fn control(args: &control::Args) -> Result<ExitCode> {
    let interrupt = Interrupt::hold()?;
    let report = control::run(&args.options(), &interrupt, &Progress::new())?;
    print(args.output, &report, control::write_table)?;
    Ok(if report.interrupted {
        ExitCode::from(130)
    } else if report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Exit codes as those of [`prog()`]; 1 where a living flow broke that must not.
fn churn(args: &churn::Args) -> Result<ExitCode> {
    let interrupt = Interrupt::hold()?;
    let report = churn::run(args, &interrupt, &Progress::new())?;
    print(args.output, &report, churn::write_table)?;
    Ok(if report.interrupted {
        ExitCode::from(130)
    } else if report.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Exit codes as those of [`prog()`].
fn wire(args: &wire::Args) -> Result<ExitCode> {
    let interrupt = Interrupt::hold()?;
    let report = wire::run(args, &interrupt, &Progress::new())?;
    print(args.output, &report, wire::write_table)?;
    Ok(if report.interrupted {
        ExitCode::from(130)
    } else {
        ExitCode::SUCCESS
    })
}

/// Writes a report as it was asked for.
fn print<T: serde::Serialize>(
    output: Output,
    report: &T,
    write_table: impl FnOnce(&T, &mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        Output::Table => write_table(report, &mut out)?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, report)?;
            writeln!(out)?;
        }
    }
    out.flush()
}

fn show(file: &Path) -> Result<ExitCode> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut out = io::stdout().lock();
    if let Ok(report) = serde_json::from_slice::<slow::Report>(&text) {
        slow::write_table(&report, &mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    #[cfg(feature = "control")]
    if let Ok(report) = serde_json::from_slice::<control::Report>(&text) {
        control::write_table(&report, &mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Ok(report) = serde_json::from_slice::<churn::Report>(&text) {
        churn::write_table(&report, &mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Ok(report) = serde_json::from_slice::<wire::Report>(&text) {
        wire::write_table(&report, &mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report: Report = serde_json::from_slice(&text).with_context(|| format!("{} is no record", file.display()))?;
    report::write_table(&report, &mut out)?;
    Ok(ExitCode::SUCCESS)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
