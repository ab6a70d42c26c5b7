//! `vipline-perf wire`: packets in at one interface, out at another; how many without loss, how late, in which order.
//!
//! Never sends into an interface that the user did not name and that was not made here. Never a figure of the device alone: what
//! generator and sink do by themselves is measured first, and what they bound is said.

mod frames;
mod ledger;
mod report;
mod safety;
mod search;
mod site;
mod stamp;
mod trial;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
pub(crate) use report::{Report, write_table};

use self::{
    frames::{Kind, Mix, PREAMBLE_AND_GAP, Size},
    report::{Latency, Loaded, Rate, Row, Setup, is_noisy},
    search::{Bound, Outcome, Search},
    site::{Ends, Site},
    trial::{Load, Trial},
};
use crate::{interrupt::Interrupt, machine::Machine, progress::Progress, stats::Summary};

/// Shares of the rate without loss at which latency is measured.
const LOADS: [u32; 3] = [10, 50, 90];
/// A generator that sends less than this share of what it was asked for is what bounds a trial.
const FOLLOWED: f64 = 0.97;
/// What a trial takes beside its time.
const OVERHEAD: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Send into this interface, instead of a lab of network namespaces
    #[arg(long, value_name = "IF", requires_all = ["rx", "mac"])]
    tx: Option<String>,
    /// Receive from this interface: all IPv4 and IPv6 that comes there is taken from the kernel while this runs
    #[arg(long, value_name = "IF", requires = "tx")]
    rx: Option<String>,
    /// Hardware address to send to: the device's, or its next hop's
    #[arg(long, value_name = "MAC", value_parser = mac, requires = "tx")]
    mac: Option<[u8; 6]>,
    /// Send or receive even by an interface that has a default route
    #[arg(long)]
    force: bool,
    /// What stands between generator and sink in the lab
    #[arg(long, value_enum, default_value_t = Through::Vipline, conflicts_with = "tx")]
    through: Through,
    /// Where packets go: VIPs of the device, or those that the lab shall have
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        value_delimiter = ',',
        default_value = "203.0.113.10:443"
    )]
    to: Vec<SocketAddr>,
    /// What packets are; several: mixed
    #[arg(long, value_enum, value_delimiter = ',', default_value = "udp")]
    kind: Vec<Kind>,
    /// Frame sizes with the frame check sequence, 64 to 9018, or `imix`
    #[arg(long, value_delimiter = ',', default_value = "64")]
    size: Vec<Size>,
    /// Flows, each client address and port of its own
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    flows: u64,
    /// Which packets: the same for the same seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sending sockets and threads; in the lab, queues of every interface
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    queues: u32,
    /// Descriptors of each socket's rings, a power of two
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=16_384))]
    ring: u32,
    /// Zero-copy, where both drivers have it
    #[arg(long, requires = "tx")]
    zero_copy: bool,
    /// How long a trial sends, in milliseconds
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(50..=600_000))]
    time_ms: u64,
    /// Searches, and trials of each load
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// Only this many packets a second, and no search
    #[arg(long, value_name = "PACKETS")]
    rate: Option<f64>,
    /// Search up to this many packets a second [default: what generator and sink do]
    #[arg(long, value_name = "PACKETS", conflicts_with = "rate")]
    max_rate: Option<f64>,
    /// Search until the rate is known to this many percent of the highest
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT")]
    resolution: f64,
    /// Percent of packets that a clean trial may lose; RFC 2544 allows none
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    tolerance: f64,
    /// Lose every so many-eth packet at the sink, to see that it is found
    #[arg(long, default_value_t = 0, hide = true)]
    self_test_drop_every: u64,
    /// Hold packets between stamp and sending, to see that it is found
    #[arg(long, default_value_t = 0, hide = true)]
    self_test_hold_us: u64,
    /// How to print what was found
    #[arg(short, long, value_enum, default_value_t = crate::Output::Table)]
    pub(crate) output: crate::Output,
}

/// What stands between generator and sink in the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Through {
    /// An LB node with the real daemon, in by one interface and out by another
    Vipline,
    /// Nothing: one veth pair
    Wire,
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("{text} is not like 02:00:00:00:00:01"))
}

/// Measures every size.
///
/// # Errors
///
/// Without root, when an interface is refused or cannot be had, and when packets cannot be as asked for.
pub(crate) fn run(args: &Args, interrupt: &Interrupt, progress: &Progress) -> Result<Report> {
    ensure!(
        args.ring.is_power_of_two(),
        "--ring {} is not a power of two",
        args.ring
    );
    ensure!(
        args.resolution > 0.0 && args.tolerance >= 0.0 && args.rate.is_none_or(|rate| rate > 0.0),
        "--resolution and --rate are over 0, --tolerance is not below"
    );
    ensure!(
        args.tx.is_none() || args.tx != args.rx,
        "--tx and --rx are two interfaces: packets that come back by the one they left by cannot be taken yet"
    );
    for interface in [&args.tx, &args.rx].into_iter().flatten() {
        if !args.force {
            safety::check(interface)?;
        }
    }
    let mut bench = Bench::new(args, interrupt, progress)?;
    let mut report = Report {
        machine: Machine::this(),
        command: std::env::args().collect(),
        setup: bench.setup(),
        rows: Vec::new(),
        interrupted: false,
    };
    for size in &args.size {
        bench.size = *size;
        bench.mix(&bench.site).check()?;
    }
    for size in &args.size {
        bench.size = *size;
        let row = bench.row()?;
        report.rows.push(row);
        if bench.interrupted {
            break;
        }
    }
    report.interrupted = bench.interrupted;
    progress.done();
    Ok(report)
}

/// A benchmark under way.
struct Bench<'a> {
    args: &'a Args,
    interrupt: &'a Interrupt,
    progress: &'a Progress,
    /// From generator to sink, in the lab.
    direct: Option<Site>,
    site: Site,
    size: Size,
    run_id: u32,
    interrupted: bool,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args, interrupt: &'a Interrupt, progress: &'a Progress) -> Result<Self> {
        let ends = Ends {
            queues: args.queues,
            zero_copy: args.zero_copy,
            ring: args.ring * 2,
            drop_every: args.self_test_drop_every,
        };
        let size = *args.size.first().context("no size")?;
        let largest = args.size.iter().map(|size| size.largest()).max().unwrap_or(1518);
        let named = args.tx.as_ref().zip(args.rx.as_ref()).zip(args.mac);
        let (direct, site) = match (named, args.through) {
            (Some(((tx, rx), mac)), _) => (None, Site::named(ends, tx, rx, mac)?),
            (None, Through::Wire) => (None, Site::direct(ends, largest)?),
            (None, Through::Vipline) => {
                let clean = Ends { drop_every: 0, ..ends };
                let direct = args.rate.is_none().then(|| Site::direct(clean, largest)).transpose()?;
                (direct, Site::vipline(ends, largest, &args.to, &args.kind)?)
            }
        };
        Ok(Self {
            args,
            interrupt,
            progress,
            direct,
            site,
            size,
            // Above what QUIC's first byte is, so that no stamp looks like one.
            run_id: std::process::id() << 12 | 1 << 31,
            interrupted: false,
        })
    }

    fn setup(&self) -> Setup {
        let args = self.args;
        let through = match (&args.tx, &args.rx) {
            (Some(tx), Some(rx)) => format!("whatever is between {tx} and {rx}"),
            _ if args.through == Through::Wire => "a veth pair".to_owned(),
            _ => "vipline run, in by a veth and out by another".to_owned(),
        };
        Setup {
            through,
            zero_copy: self.site.zero_copy,
            senders: self.site.senders.len(),
            sinks: self.site.sinks.len(),
            ring: args.ring,
            kinds: args
                .kind
                .iter()
                .map(|kind| format!("{kind:?}").to_lowercase())
                .collect(),
            targets: args.to.iter().map(SocketAddr::to_string).collect(),
            flows: args.flows,
            seed: args.seed,
            trial_seconds: args.time_ms as f64 / 1e3,
            runs: args.runs,
            resolution: args.resolution / 100.0,
            tolerance: args.tolerance / 100.0,
            debug_build: cfg!(debug_assertions),
            self_test_drop_every: args.self_test_drop_every,
            self_test_hold_us: args.self_test_hold_us,
        }
    }

    fn mix(&self, site: &Site) -> Mix {
        Mix {
            source_mac: site.source_mac,
            destination_mac: site.destination_mac,
            targets: self.args.to.clone(),
            kinds: self.args.kind.clone(),
            size: self.size,
            flows: self.args.flows,
            seed: self.args.seed,
        }
    }

    /// Limit, rate without loss, and latency at shares of it; as far as it gets.
    fn row(&mut self) -> Result<Row> {
        let mut row = Row {
            size: self.size.to_string(),
            stamped: self.mix(&self.site).is_stamped(),
            limit: None,
            no_drop: None,
            loads: Vec::new(),
        };
        if let Some(rate) = self.args.rate {
            row.loads.extend(self.loaded(None, rate)?);
            return Ok(row);
        }
        // Unpaced: more than this the generator does not send, whoever takes it.
        let fastest = self.trial(self.direct.is_some(), None)?.emitted();
        if self.direct.is_some() && !self.interrupted {
            row.limit = self.searched(true, fastest, Bound::Harness)?;
        }
        let (most, bound) = match (self.args.max_rate, row.limit) {
            (Some(rate), _) => (rate, Bound::Asked),
            (None, Some(limit)) if limit.pps.median > 0.0 => (limit.pps.median, Bound::Harness),
            (None, _) => (fastest, Bound::Harness),
        };
        if !self.interrupted {
            row.no_drop = self.searched(false, most, bound)?;
        }
        if let Some(rate) = row.no_drop.map(|rate| rate.pps.median).filter(|rate| *rate > 0.0) {
            for percent in LOADS {
                if !self.interrupted {
                    row.loads
                        .extend(self.loaded(Some(percent), rate * f64::from(percent) / 100.0)?);
                }
            }
        }
        Ok(row)
    }

    /// One search for each run. `highest`: what bounds a device that takes `most`.
    fn searched(&mut self, direct: bool, most: f64, highest: Bound) -> Result<Option<Rate>> {
        let (mut rates, mut least) = (Vec::new(), (f64::INFINITY, highest));
        let mut received_bytes = self.size.mean();
        for run in 0..self.args.runs {
            let mut search = Search::new(most, self.args.resolution / 100.0);
            while let Some(rate) = search.next() {
                self.say(if direct { "limit" } else { "search" }, run, rate, search.left());
                let trial = self.trial(direct, Some(rate))?;
                if self.interrupted {
                    break;
                }
                if trial.account.received > 0 {
                    received_bytes = trial.received_bytes;
                }
                search.note(self.outcome(&trial, rate));
            }
            if self.interrupted {
                break;
            }
            let (rate, bound) = search.found();
            let bound = if bound == Bound::Asked { highest } else { bound };
            if rate < least.0 {
                least = (rate, bound);
            }
            rates.push(rate);
        }
        let bits = |bytes: f64, pps: f64| (bytes + PREAMBLE_AND_GAP as f64) * 8.0 * pps;
        Ok(Summary::of(&rates).map(|pps| Rate {
            bound: least.1,
            offered_bytes: self.size.mean(),
            received_bytes,
            offered_bits: bits(self.size.mean(), pps.median),
            received_bits: bits(received_bytes, pps.median),
            noisy: is_noisy(&pps),
            pps,
        }))
    }

    fn outcome(&self, trial: &Trial, rate: f64) -> Outcome {
        let tolerated = |lost: u64| lost as f64 <= trial.sent as f64 * self.args.tolerance / 100.0;
        if !tolerated(trial.lost().saturating_sub(trial.overruns)) {
            Outcome::Lossy
        } else if trial.emitted() < rate * FOLLOWED || !tolerated(trial.lost()) {
            Outcome::TooFast
        } else {
            Outcome::Clean
        }
    }

    /// Trials at one rate; `None` if none came to its end.
    fn loaded(&mut self, percent: Option<u32>, rate: f64) -> Result<Option<Loaded>> {
        let mut trials = Vec::new();
        for run in 0..self.args.runs {
            self.say("load", run, rate, self.args.runs - run);
            trials.push(self.trial(false, Some(rate))?);
            if self.interrupted {
                break;
            }
        }
        let all = |count: fn(&Trial) -> u64| trials.iter().map(count).sum::<u64>();
        let emitted: Vec<f64> = trials.iter().map(Trial::emitted).collect();
        let Some(emitted_pps) = Summary::of(&emitted) else {
            return Ok(None);
        };
        Ok(Some(Loaded {
            percent,
            offered_pps: rate,
            emitted_pps,
            sent: all(|trial| trial.sent),
            received: all(|trial| trial.account.received),
            lost: all(Trial::lost),
            duplicates: all(|trial| trial.account.duplicates),
            reordered: all(|trial| trial.account.reordered),
            overruns: all(|trial| trial.overruns),
            received_bytes: trials.last().map_or(0.0, |trial| trial.received_bytes),
            latency_us: latency(&trials),
        }))
    }

    fn trial(&mut self, direct: bool, rate: Option<f64>) -> Result<Trial> {
        self.run_id = self.run_id.wrapping_add(1) | 1 << 31;
        let mix = self.mix(match (direct, &self.direct) {
            (true, Some(direct)) => direct,
            (true, None) | (false, _) => &self.site,
        });
        let site = match (direct, &mut self.direct) {
            (true, Some(direct)) => direct,
            (true, None) => bail!("there is no direct path"),
            (false, _) => &mut self.site,
        };
        let load = Load {
            mix: &mix,
            rate,
            time: Duration::from_millis(self.args.time_ms),
            run_id: self.run_id,
            hold: Duration::from_micros(self.args.self_test_hold_us),
        };
        let trial = trial::run(&mut site.senders, &mut site.sinks, &load, self.interrupt)?;
        self.interrupted |= trial.interrupted;
        Ok(trial)
    }

    /// What is being measured, and how long that takes yet.
    fn say(&self, what: &str, run: u32, rate: f64, left: u32) {
        let each = Duration::from_millis(self.args.time_ms) + OVERHEAD;
        let group = format!("frames of {}: {what}", self.size);
        self.progress.at(
            &group,
            &format!(
                "{group}, run {} of {}, {rate:.0} packets/s, at most {:.0} s left of the run",
                run + 1,
                self.args.runs,
                (each * left).as_secs_f64()
            ),
        );
    }
}

/// Percentiles of each trial, and how they spread.
fn latency(trials: &[Trial]) -> Option<Latency> {
    let of = |value: &dyn Fn(&Trial) -> u64| {
        let values: Vec<f64> = trials
            .iter()
            .filter(|trial| !trial.latency_ns.is_empty())
            .map(|trial| value(trial) as f64 / 1e3)
            .collect();
        Summary::of(&values)
    };
    let at = |quantile: f64| of(&move |trial| trial.latency_ns.value_at_quantile(quantile));
    let p99 = at(0.99)?;
    Some(Latency {
        p50: at(0.5)?,
        p99,
        p999: at(0.999)?,
        max: of(&|trial| trial.latency_ns.max())?,
        noisy: is_noisy(&p99),
    })
}
