//! Arguments and their help.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args as Arguments, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser, value_parser};
use xdp_prog::verdict::{Fate, Verdict};

use crate::control::{ProtocolName, RATE, RATE_MAX, SNAPLEN, SNAPLEN_MAX, SNAPLEN_MIN, VipFilter};
use crate::daemon::Keeping;
use crate::datapath::PinPlace;
use crate::source::kube::KubeSettings;

/// Where the daemon of an LB node listens.
const LB_SOCKET: &str = "/run/vipline/lb.sock";
/// Configuration of an LB node that is not told by a cluster.
pub(super) const LB_FILE: &str = "/etc/vipline/lb.yaml";
/// Configuration of a worker node that is not told by a cluster.
pub(super) const NODE_FILE: &str = "/etc/vipline/node.yaml";
/// Cache of an LB node.
pub(super) const LB_CACHE: &str = "/var/lib/vipline/kube.json";
/// What daemons keep.
const STATE: &str = "/var/lib/vipline";
/// Cache of a worker node.
pub(super) const NODE_CACHE: &str = "/var/lib/vipline/kube-node.json";

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
    /// Run the LB node's daemon until SIGTERM; SIGHUP or a change of the file reloads it. The data plane goes on when it ends.
    Run(RunArgs),
    /// Run the worker node's agent: decapsulates what LB nodes send to this node.
    Node(NodeArgs),
    /// End the data plane that an ended `vipline run` left: programs, links, maps, rules. Says what it removed.
    Detach(PinArgs),
    /// Validate a configuration without root; prints every error with its path.
    Check(CheckArgs),
    /// How the daemon is: interfaces, revision, last reload, packets by fate.
    Status(StatusArgs),
    /// VIPs: backends, lookup tables, traffic.
    Vips(AskArgs),
    /// Backends: next hops, shares of slots, traffic.
    Backends(AskArgs),
    /// BGP peers: sessions, prefixes, what went wrong last and what to do.
    Bgp(AskArgs),
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
    /// Packets as they leave the program, each with its verdict and reason: as lines or as a pcapng file.
    #[command(
        long_about = "Samples packets as they leave the program, each with its verdict, reason, VIP and backend, until --count \
                      or Ctrl-C. A forwarded packet is seen encapsulated; one that is dropped or passed, as it came.\n\n\
                      The daemon puts a program that samples in the place of the one that runs, and puts that one back at \
                      the end: no packet is lost, counters go on, and while nobody captures the program has no code for it. \
                      There can be one capture at a time. It ends when this command does, however that ends, or when its \
                      output is not taken for 30 seconds.\n\n\
                      Times are the kernel's, in UTC.",
        after_help = "Examples: vipline capture --verdict drop,slow\n          \
                      vipline capture --vip tcp://203.0.113.10:80 --count 100 -w flows.pcapng\n          \
                      vipline capture --vip 203.0.113.10 -w - | tshark -r - -T fields -e frame.comment"
    )]
    Capture(CaptureArgs),
    /// Take a backend out of service without breaking its connections, and see what still lives there.
    #[command(subcommand)]
    Drain(DrainCommand),
    /// A word to an LB node's daemon that runs with --kube.
    #[command(subcommand)]
    Kube(KubeCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum DrainCommand {
    /// No new connections go to this backend; those that live there stay, until a deadline if there is one.
    #[command(
        long_about = "No new connections go to this backend from now on. TCP connections and UDP flows that live there stay, \
                      until they end or the deadline comes. The daemon keeps the drain over restarts, until --undo or until the \
                      backend is taken out of the configuration.\n\n\
                      A datagram does not say whether its flow is new: for transit.udp_idle_timeout_s (2 minutes) UDP flows that \
                      begin still go there and stay.\n\n\
                      Connections of before the drain are not recorded one by one: how many there are is estimated from the \
                      slots that still have packets of theirs.\n\n\
                      With --kube the backend is a node of the cluster, and the label \
                      node.kubernetes.io/exclude-from-external-load-balancers is set on it, with your own rights: all LB nodes \
                      take it out, and their transit keeps its connections. A deadline is the annotation \
                      vipline.dev/drain-deadline: a time, which all LB nodes go by, each with its own clock.",
        after_help = "Examples: vipline drain backend worker-3\n          \
                      vipline drain backend worker-3 --deadline 30m --wait\n          \
                      vipline drain backend worker-3 --now\n          \
                      vipline drain backend worker-3 --undo\n          \
                      vipline drain backend worker-3 --kube --kubeconfig admin.conf --deadline 10m"
    )]
    Backend(DrainArgs),
    /// This LB node gives its VIP addresses to the others, and says when nothing comes to it any more: before maintenance.
    #[command(
        long_about = "This LB node gives its VIP addresses away: BGP peers take another way (RFC 8326) and are told a second later \
                      that this one is gone; other LB nodes of its l2.group answer for its addresses. What still comes is forwarded. \
                      Returns when no VIP packet has come for a second, and stops waiting at the deadline. Ctrl-C ends the waiting, \
                      not the drain.\n\n\
                      The daemon keeps the drain over restarts, until --undo. Where nobody else would answer for an address on its \
                      segment it is refused without --force. Whether routers have another way only they know: where they have none, \
                      packets go on coming, or are lost.",
        after_help = "Exit code 1: packets still come, at the deadline.\n\n\
                      Examples: vipline drain node && systemctl stop vipline-lb\n          \
                      vipline drain node --deadline 2m\n          \
                      vipline drain node --undo"
    )]
    Node(DrainNodeArgs),
    /// All backends that take no new connections, by a drain, weight 0 or because no set has them any more; and what still lives there.
    List(AskArgs),
}

#[derive(Debug, Arguments)]
pub(super) struct DrainNodeArgs {
    /// Stop waiting after this long: `2m`, `90s`.
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "undo")]
    pub(super) deadline: Option<Duration>,
    /// Also where nobody else answers for some of its VIP addresses.
    #[arg(long, conflicts_with = "undo")]
    pub(super) force: bool,
    /// Return at once: `vipline status` says how far it is.
    #[arg(long, conflicts_with = "undo")]
    pub(super) no_wait: bool,
    /// End the drain: it takes its part of the VIP addresses again.
    #[arg(long)]
    pub(super) undo: bool,
    #[command(flatten)]
    pub(super) ask: AskArgs,
}

#[derive(Debug, Arguments)]
pub(super) struct DrainArgs {
    /// The backend, by its name.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Give up what still lives there after this long: `30m`, `1h 30m`.
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "undo")]
    pub(super) deadline: Option<Duration>,
    /// Give up at once what lives there: its connections break.
    #[arg(long, conflicts_with_all = ["deadline", "undo"])]
    pub(super) now: bool,
    /// Also where it is the last backend that takes new connections of a VIP.
    #[arg(long, conflicts_with_all = ["undo", "kube"])]
    pub(super) force: bool,
    /// Wait until nothing lives there any more, or no old connection has had a packet for --quiet.
    #[arg(long, conflicts_with_all = ["undo", "kube"])]
    pub(super) wait: bool,
    /// How long must be quiet for --wait to end.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "60s", requires = "wait")]
    pub(super) quiet: Duration,
    /// End the drain: new connections go there again.
    #[arg(long)]
    pub(super) undo: bool,
    #[command(flatten)]
    pub(super) ask: AskArgs,
    /// The backend is a node of a cluster: all its LB nodes shall take it out.
    #[arg(long)]
    pub(super) kube: bool,
    /// The way to the API server, with the right to patch nodes.
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Which of the kubeconfig's contexts.
    #[arg(long, value_name = "NAME", requires = "kube")]
    pub(super) context: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum KubeCommand {
    /// Let a list of VipTables through that is held because it drops over half of the VIPs: they go now.
    Accept(SocketArgs),
}

#[derive(Debug, Arguments)]
pub(super) struct SocketArgs {
    /// Control socket of the daemon to ask.
    #[arg(long, value_name = "PATH", env = "VIPLINE_SOCKET", default_value = LB_SOCKET)]
    pub(super) socket: PathBuf,
}

/// Where a node of a cluster is told what it shall do.
#[derive(Debug, Arguments)]
pub(super) struct KubeArgs {
    /// Be told by a cluster; the file, if any, has this node's own settings only.
    #[arg(long)]
    pub(super) kube: bool,
    /// The way to the API server; without it, what a pod has, or the usual places.
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Which of the kubeconfig's contexts.
    #[arg(long, value_name = "NAME", requires = "kube")]
    pub(super) context: Option<String>,
    /// The operator's namespace.
    #[arg(long, value_name = "NAMESPACE", default_value = operator_api::DEFAULT_NAMESPACE)]
    pub(super) namespace: String,
    /// This node's name in the cluster; without it, the host's name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(super) node_name: Option<String>,
    /// Where it keeps what it was told, the flow-hash seed included: for root only.
    #[arg(long, value_name = "FILE")]
    pub(super) cache: Option<PathBuf>,
}

impl KubeArgs {
    /// What the daemon needs to know; `None` without --kube. `cache`: where none is given.
    pub(super) fn settings(&self, cache: &str) -> anyhow::Result<Option<KubeSettings>> {
        if !self.kube {
            return Ok(None);
        }
        let node = match &self.node_name {
            Some(name) => name.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")?,
        };
        let node = node.trim().to_lowercase();
        anyhow::ensure!(!node.is_empty(), "this host has no name: give --node-name");
        Ok(Some(KubeSettings {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: self.namespace.clone(),
            node: node.into(),
            cache: self.cache.clone().unwrap_or_else(|| cache.into()),
        }))
    }
}

#[derive(Debug, Arguments)]
pub(super) struct RunArgs {
    /// Configuration file (docs/configuration.md) [default: /etc/vipline/lb.yaml; with --kube, none]
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) kube: KubeArgs,
    #[command(flatten)]
    pub(super) keep: KeepArgs,
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) log: LogFormat,
}

/// Where a data plane outlives its daemon.
#[derive(Debug, Arguments)]
pub(super) struct PinArgs {
    /// Which of the node's data planes: letters, digits, `-` and `_`.
    #[arg(long, value_name = "NAME", env = "VIPLINE_INSTANCE", default_value = "default")]
    pub(super) instance: String,
    /// Where the BPF file system is, or shall be mounted.
    #[arg(long, value_name = "DIRECTORY", env = "VIPLINE_BPFFS", default_value = "/sys/fs/bpf")]
    pub(super) bpffs: PathBuf,
}

impl PinArgs {
    pub(super) fn place(&self) -> PinPlace {
        PinPlace {
            bpffs: self.bpffs.clone(),
            instance: self.instance.clone(),
        }
    }
}

/// How a daemon and what it puts in place belong together.
#[derive(Debug, Arguments)]
pub(super) struct KeepArgs {
    #[command(flatten)]
    pin: PinArgs,
    /// Pin nothing: the data plane ends with the daemon.
    #[arg(long)]
    no_pin: bool,
    /// Take another seed than that of the VIPs that are being served: their connections break.
    #[arg(long)]
    new_seed: bool,
    /// Where drains (`vipline drain`) are kept over restarts; not with --kube, where the cluster keeps them
    /// [default: /var/lib/vipline/drains-INSTANCE.json]
    #[arg(long, value_name = "FILE")]
    drains: Option<PathBuf>,
}

impl KeepArgs {
    pub(super) fn keeping(&self) -> Keeping {
        Keeping {
            place: (!self.no_pin).then(|| self.pin.place()),
            new_seed: self.new_seed,
            drains: self
                .drains
                .clone()
                .unwrap_or_else(|| format!("{STATE}/drains-{}.json", self.pin.instance).into()),
        }
    }
}

#[derive(Debug, Arguments)]
pub(super) struct NodeArgs {
    /// Configuration file (docs/configuration.md) [default: /etc/vipline/node.yaml; with --kube, none]
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) kube: KubeArgs,
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
    /// It is for --kube: this node's own settings.
    #[arg(long)]
    pub(super) kube: bool,
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

#[derive(Debug, Arguments)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) ask: AskArgs,
    /// Fail while it does not serve yet: with --kube, while it waits for the cluster's first word. For readiness probes; without it,
    /// the command fails only where nobody answers.
    #[arg(long)]
    pub(super) ready: bool,
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

#[derive(Debug, Arguments)]
pub(super) struct CaptureArgs {
    /// Control socket of the daemon to ask.
    #[arg(long, value_name = "PATH", env = "VIPLINE_SOCKET", default_value = LB_SOCKET)]
    pub(super) socket: PathBuf,
    /// How to print: a line per packet either way.
    #[arg(long, short, value_enum, default_value = "table", conflicts_with = "write")]
    pub(super) output: Format,
    /// Write a pcapng file, with verdict, reason, VIP and backend in each packet's comment; `-` for standard output.
    #[arg(long, short, value_name = "FILE")]
    pub(super) write: Option<PathBuf>,
    /// Only this VIP's packets (tcp://ADDRESS:PORT, compared in the kernel), or all that a VIP of this ADDRESS claimed or that name
    /// it as source or destination (compared after sampling: others use up --rate and --sample too).
    #[arg(long, value_name = "VIP", value_parser = VipFilter::parse)]
    pub(super) vip: Option<VipFilter>,
    /// Only packets with these verdicts; compared in the kernel.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VERDICT")]
    pub(super) verdict: Vec<FateName>,
    /// Only packets with these reasons (`vipline counters --all` shows them); with --verdict, both must fit.
    #[arg(long, value_delimiter = ',', value_name = "REASON", hide_possible_values = true, value_parser = reasons())]
    pub(super) reason: Vec<String>,
    /// Stop after this many packets; without it, on Ctrl-C.
    #[arg(long, short = 'n', value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// One in N of the packets that fit, by chance.
    #[arg(long, value_name = "1-in-N", default_value = "1", value_parser = one_in)]
    pub(super) sample: u32,
    /// Most bytes of a packet.
    #[arg(long, value_name = "BYTES", default_value_t = SNAPLEN, value_parser = value_parser!(u32).range(i64::from(SNAPLEN_MIN)..=i64::from(SNAPLEN_MAX)))]
    pub(super) snaplen: u32,
    /// Most packets per second on each CPU: what a capture may cost. There is no way to go without.
    #[arg(long, value_name = "PACKETS", default_value_t = RATE, value_parser = value_parser!(u32).range(1..=i64::from(RATE_MAX)))]
    pub(super) rate: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FateName {
    /// Sent to a backend.
    Forward,
    /// Handed to this node's kernel.
    Pass,
    /// Given to the slow path.
    Slow,
    /// Dropped.
    Drop,
}

impl From<FateName> for Fate {
    fn from(name: FateName) -> Self {
        match name {
            FateName::Forward => Self::Forward,
            FateName::Pass => Self::Pass,
            FateName::Slow => Self::Slow,
            FateName::Drop => Self::Drop,
        }
    }
}

fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(Verdict::ALL.iter().map(|verdict| verdict.reason()))
}

fn one_in(text: &str) -> Result<u32, String> {
    let number = text
        .strip_prefix("1-in-")
        .or_else(|| text.strip_prefix("1/"))
        .unwrap_or(text);
    match number.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("give N, or 1-in-N, from 1 to 4294967295".to_owned()),
    }
}

/// A time as people write it, to the second.
fn time(text: &str) -> Result<Duration, String> {
    let time: jiff::SignedDuration = text
        .parse()
        .map_err(|error| format!("{error}; write it as 90s, 30m or 1h 30m"))?;
    let seconds = u64::try_from(time.as_secs()).map_err(|_| "a time before now".to_owned())?;
    Ok(Duration::from_secs(seconds))
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give seconds from 0.1 to 3600".to_owned()),
    }
}
