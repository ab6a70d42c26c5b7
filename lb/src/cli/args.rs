//! Arguments and their help.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum};

use crate::control::ProtocolName;

/// Where the daemon of an LB node listens.
const LB_SOCKET: &str = "/run/vipline/lb.sock";

#[derive(Debug, Parser)]
#[command(
    name = "vipline",
    version,
    about = "VIPs at line rate: a layer-4 load balancer on XDP",
    long_about = "Vipline spreads TCP and UDP connections to virtual addresses (VIPs) over worker nodes: an XDP program on this \
                  LB node picks a backend by consistent hashing and forwards IPIP-encapsulated; replies go straight from \
                  worker to client (direct server return).\n\n\
                  `vipline run` is the daemon of an LB node, `vipline node` that of a worker node; the other commands ask a \
                  running daemon over its control socket.",
    after_help = "Exit codes: 0 success, 1 failure, 2 configuration or command line cannot be used."
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the LB node's daemon until SIGTERM; SIGHUP or a change of the file reloads it.
    Run(RunArgs),
    /// Run the worker node's agent: decapsulates what LB nodes send to this node.
    Node(NodeArgs),
    /// Validate a configuration without root; prints every error with its path.
    Check(CheckArgs),
    /// How the daemon is: interfaces, revision, last reload, packets by fate.
    Status(AskArgs),
    /// VIPs: backends, lookup tables, traffic.
    Vips(AskArgs),
    /// Backends: next hops, shares of slots, traffic.
    Backends(AskArgs),
    /// Packets by verdict and reason.
    Counters(CountersArgs),
    /// Traffic as it happens: packets and bytes per second by VIP, by backend and by verdict.
    Top(TopArgs),
    /// Where a flow would go, from the tables that the program reads.
    #[command(
        after_help = "Example: vipline explain tcp 198.51.100.7:40000 203.0.113.10:80\n         \
                            vipline explain udp [2001:db8::7]:5000 [2001:db8:f00d::10]:53"
    )]
    Explain(ExplainArgs),
}

#[derive(Debug, Arguments)]
pub(super) struct RunArgs {
    /// Configuration file (docs/configuration.md).
    #[arg(long, short, value_name = "FILE", default_value = "/etc/vipline/lb.yaml")]
    pub(super) config: PathBuf,
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) log: LogFormat,
}

#[derive(Debug, Arguments)]
pub(super) struct NodeArgs {
    /// Configuration file (docs/configuration.md).
    #[arg(long, short, value_name = "FILE", default_value = "/etc/vipline/node.yaml")]
    pub(super) config: PathBuf,
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) log: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal. The level is set by VIPLINE_LOG (default: info).
    Text,
    /// A JSON object a line.
    Json,
}

#[derive(Debug, Arguments)]
pub(super) struct CheckArgs {
    /// Configuration file.
    #[arg(long, short, value_name = "FILE", default_value = "/etc/vipline/lb.yaml")]
    pub(super) config: PathBuf,
    /// It is a worker node's.
    #[arg(long)]
    pub(super) node: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) output: Format,
}

#[derive(Debug, Arguments)]
pub(super) struct AskArgs {
    /// Control socket of the daemon to ask.
    #[arg(long, value_name = "PATH", env = "VIPLINE_SOCKET", default_value = LB_SOCKET)]
    pub(super) socket: PathBuf,
    /// How to print.
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people.
    Table,
    /// JSON for programs.
    Json,
}

#[derive(Debug, Arguments)]
pub(super) struct CountersArgs {
    #[command(flatten)]
    pub(super) ask: AskArgs,
    /// Show verdicts that were never reached, too.
    #[arg(long)]
    pub(super) all: bool,
}

#[derive(Debug, Arguments)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    pub(super) ask: AskArgs,
    /// Transport protocol.
    #[arg(value_enum, ignore_case = true)]
    pub(super) protocol: ProtocolName,
    /// Client address and port.
    #[arg(value_name = "SRC:PORT")]
    pub(super) source: SocketAddr,
    /// VIP address and port.
    #[arg(value_name = "DST:PORT")]
    pub(super) destination: SocketAddr,
}

#[derive(Debug, Arguments)]
pub(super) struct TopArgs {
    #[command(flatten)]
    pub(super) ask: AskArgs,
    /// Time between two looks, in seconds.
    #[arg(long, short, default_value = "1", value_parser = seconds)]
    pub(super) interval: Duration,
    /// Stop after this many looks; without it, on Ctrl-C.
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) count: Option<u64>,
    /// Most rows of each table.
    #[arg(long, default_value = "15", value_name = "N")]
    pub(super) rows: usize,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give seconds from 0.1 to 3600".to_owned()),
    }
}
