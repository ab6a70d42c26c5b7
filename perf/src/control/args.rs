//! The command line of `vipline-perf control`.

use super::Options;
use crate::Output;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Services, of one port each
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    services: u32,
    /// How many of them have policy Local, and so a backend set of their own [default: a tenth]
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    local: Option<u32>,
    /// Worker nodes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(4..=5_000))]
    nodes: u32,
    /// Changes of EndpointSlices of Local Services
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    changes: u32,
    /// How many of them a second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Restarts of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    restarts: u32,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

impl Args {
    /// What they ask for.
    pub(crate) fn options(&self) -> Options {
        Options {
            services: self.services,
            local: self.local.unwrap_or(self.services.div_ceil(10)),
            nodes: self.nodes,
            changes: self.changes,
            rate: self.rate,
            restarts: self.restarts,
        }
    }
}
