//! The same with real connections: a client, a router with ECMP, two LB nodes with the real daemon, workers with real servers, in
//! network namespaces of this machine.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{Bpffs, Client, Conn, Node, Process, Proto, Server, Topology, raise_open_files};
use lb::control::{self, BackendView, Request, StatusView};
use nix::sys::signal::Signal;

use super::{report::Row, scenario::Scenario, world::Design};
use crate::{interrupt::Interrupt, progress::Progress, vipline::vipline};

pub(super) const WORKERS: usize = 6;
pub(super) const LBS: u8 = 2;
/// Longest wait for a daemon or a change.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait for an answer: what takes longer is broken.
const ANSWER: Duration = Duration::from_secs(1);
/// First port of the client's.
const FIRST_PORT: u16 = 10_000;
/// One of so many flows is UDP.
const UDP_EVERY: usize = 4;
/// As many new flows as one in so many of those that are open, between two things that happen.
const YOUNG: usize = 10;
/// Files of this process that a connection takes: the client's, the server's twice.
const FILES: u64 = 3;
/// Port of the workers themselves, at which they are probed.
const PROBED: u16 = 8081;
/// So fast that nobody waits for it.
const HEALTH: &str =
    "{type: tcp, port: 8081, interval_ms: 500, timeout_ms: 400, fall: 2, damping_ms: 1000, dead_after_ms: 1000}";
/// A seed like any other: a real one is a secret.
const SEED: &str = "3f9a1c07d2e84b56a0c7f1e92d3b5846790ab1c2d3e4f5061728394a5b6c7d8e";

/// Weights of the workers; `None`: not in the set.
type Weights = [Option<u16>; WORKERS];

/// Something that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The set is another.
    Set(Weights),
    /// The first LB node's daemon is killed, and started again.
    Kill,
    /// The first LB node's daemon is killed, the file changes, and it is started again.
    KillAndSet(Weights),
    /// A worker loses its link: LB nodes find that by themselves.
    Die(usize),
    /// The routers send everything to the first LB node.
    SecondLeaves,
    /// They send to both again.
    SecondJoins,
}

const ALL: Weights = [Some(100); WORKERS];

/// All but these, counted from 0, which have weight 0 or are not in the set.
fn without(gone: &[usize], weight: Option<u16>) -> Weights {
    std::array::from_fn(|worker| if gone.contains(&worker) { weight } else { Some(100) })
}

fn scenarios() -> Vec<(Scenario, Vec<Event>)> {
    use Event::*;
    let rolled = (0..WORKERS).flat_map(|worker| [Set(without(&[worker], Some(0))), Set(ALL)]);
    let scenario = |name, is_single_cause, events| {
        let scenario = Scenario {
            name,
            is_single_cause,
            is_short_of_records: false,
            events: Vec::new(),
        };
        (scenario, events)
    };
    vec![
        scenario("nothing changes", true, Vec::new()),
        scenario("a backend is removed", true, vec![Set(without(&[2], None))]),
        scenario(
            "a backend is drained, and comes back",
            true,
            vec![Set(without(&[2], Some(0))), Set(ALL)],
        ),
        scenario(
            "two of six are replaced by two",
            true,
            vec![Set(without(&[0, 1], None)), Set(without(&[2, 3], None))],
        ),
        scenario("all are drained, one after the other", true, rolled.collect()),
        scenario(
            "weights change",
            true,
            vec![Set([Some(100), Some(50), Some(200), Some(100), Some(10), Some(100)])],
        ),
        scenario("a backend dies", true, vec![Die(2)]),
        scenario(
            "a backend dies, and is taken out",
            true,
            vec![Die(2), Set(without(&[2], None))],
        ),
        scenario("a daemon is killed and started again", true, vec![Kill]),
        scenario("an LB node leaves, and joins", true, vec![SecondLeaves, SecondJoins]),
        scenario(
            "in a transit a daemon is killed and started again",
            false,
            vec![Set(without(&[2], None)), Kill],
        ),
        scenario(
            "a daemon is killed, the set changes, it starts",
            false,
            vec![KillAndSet(without(&[2], None))],
        ),
        scenario(
            "in a transit an LB node leaves",
            false,
            vec![Set(without(&[2], None)), SecondLeaves],
        ),
        scenario(
            "in a transit an LB node leaves, and joins",
            false,
            vec![Set(without(&[2], None)), SecondLeaves, SecondJoins],
        ),
    ]
}

/// Runs every scenario by Vipline, and by Vipline without transit: a plain Maglev.
///
/// # Errors
///
/// Without root, and when a daemon does not start or does not take a change.
pub(super) fn run(
    flows: usize,
    filter: Option<&str>,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<(Vec<Row>, bool)> {
    let files = raise_open_files().context("the limit of open files")?;
    let connections = flows as u64;
    ensure!(
        connections * FILES + 1_000 < files,
        "{flows} flows take more files than this process may have open ({files}): raise the hard limit (ulimit -Hn), or give fewer"
    );
    let room = usize::from(u16::MAX - FIRST_PORT);
    ensure!(
        flows * 4 < room,
        "at most {} flows: one client address has no more ports",
        room / 4
    );
    let mut rows = Vec::new();
    for (scenario, events) in scenarios() {
        if filter.is_some_and(|filter| !scenario.name.contains(filter)) {
            continue;
        }
        for design in [Design::Vipline, Design::Stateless] {
            if interrupt.came() {
                return Ok((rows, true));
            }
            progress.at("real connections", &format!("{}: {}", scenario.name, design.name()));
            let is_probed = events.iter().any(|event| matches!(event, Event::Die(_)));
            let mut site = Site::build(design, is_probed)?;
            let mut row = Row::new(&scenario, design);
            let mut open = Open::default();
            open.begin(&site, flows)?;
            ensure!(open.ask(&site) == 0, "flows break although nothing has changed yet");
            for event in events.iter().copied() {
                site.meet(event)?;
                if let Event::Die(worker) = event {
                    row.died += open.bury(site.worker(worker)?.name());
                }
                row.broken += open.ask(&site);
                open.begin(&site, flows / YOUNG)?;
            }
            row.broken += open.ask(&site);
            row.flows = open.begun;
            rows.push(row);
        }
    }
    Ok((rows, false))
}

/// What is open.
#[derive(Default)]
struct Open {
    connections: Vec<(Conn, String)>,
    datagrams: Vec<(SocketAddr, String)>,
    begun: usize,
}

impl Open {
    fn begin(&mut self, site: &Site, count: usize) -> Result<()> {
        let client = site.client();
        for _ in 0..count {
            let port = FIRST_PORT + u16::try_from(self.begun)?;
            self.begun += 1;
            let from = SocketAddr::new(client.addr_v4().into(), port);
            if self.begun.is_multiple_of(UDP_EVERY) {
                self.datagrams.push((from, client.udp_get_from(from, vip())?.server));
            } else {
                let mut connection = client.connect_from(from, vip())?;
                let server = connection.get()?.server;
                self.connections.push((connection, server));
            }
        }
        Ok(())
    }

    /// Those of a server that is no more; how many.
    fn bury(&mut self, dead: &str) -> usize {
        let before = self.connections.len() + self.datagrams.len();
        self.connections.retain(|(_, server)| server != dead);
        self.datagrams.retain(|(_, server)| server != dead);
        before - self.connections.len() - self.datagrams.len()
    }

    /// Asks all of them again; how many were answered by another or by nobody. Those are gone.
    fn ask(&mut self, site: &Site) -> usize {
        let client = site.client();
        let before = self.connections.len() + self.datagrams.len();
        self.connections
            .retain_mut(|(connection, server)| connection.get().is_ok_and(|reply| reply.server == *server));
        self.datagrams.retain(|(from, server)| {
            let reply = client.udp_get_from(*from, vip());
            reply.is_ok_and(|reply| reply.server == *server)
        });
        before - self.connections.len() - self.datagrams.len()
    }
}

fn vip() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 10], 443))
}

/// Where it happens. Fields drop in this order: daemons before what they hold, namespaces last.
struct Site {
    lbs: Vec<Lb>,
    _workers: Vec<Process>,
    _servers: Vec<Server>,
    _bpffs: Vec<Bpffs>,
    topology: Topology,
    directory: tempfile::TempDir,
    design: Design,
    /// LB nodes ask workers whether they serve.
    is_probed: bool,
}

/// An LB node's daemon.
struct Lb {
    process: Process,
    node: Node,
    bpffs: PathBuf,
}

impl Site {
    fn build(design: Design, is_probed: bool) -> Result<Self> {
        let topology = Topology::builder().workers(WORKERS as u8).lbs(LBS).build()?;
        let mut servers = topology.serve(&[(Proto::Tcp, vip()), (Proto::Udp, vip())])?;
        for worker in topology.workers() {
            servers.push(Server::start(worker.ns(), worker.name(), PROBED)?);
        }
        let directory = tempfile::tempdir()?;
        let sources: Vec<String> = topology.lbs().iter().map(|lb| format!("{}/32", lb.addr_v4())).collect();
        let mut workers = Vec::new();
        for worker in topology.workers() {
            let text = format!(
                "interfaces: [{{name: {}, mode: native}}]\nlb_sources: [{}]\nvip_prefixes: [203.0.113.0/24]\ncontrol_socket: {}\n",
                worker.eth0().name,
                sources.join(", "),
                socket(directory.path(), worker).display()
            );
            fs::write(config(directory.path(), worker), text)?;
            workers.push(start("node", worker, directory.path(), &[])?);
        }
        let mut site = Self {
            lbs: Vec::new(),
            _workers: workers,
            _servers: servers,
            _bpffs: Vec::new(),
            topology,
            directory,
            design,
            is_probed,
        };
        site.configure(ALL)?;
        for node in site.topology.lbs() {
            let held = Bpffs::new()?;
            let bpffs = held.path();
            let process = site.start(node, &bpffs)?;
            site.lbs.push(Lb {
                process,
                node: node.clone(),
                bpffs,
            });
            site._bpffs.push(held);
        }
        for node in site.topology.workers().iter().chain(site.topology.lbs()) {
            site.wait_for(node, |status| {
                status.serving && status.backends_ready == status.backends
            })?;
        }
        Ok(site)
    }

    fn client(&self) -> Client {
        self.topology.client().with_timeout(ANSWER)
    }

    fn start(&self, node: &Node, bpffs: &Path) -> Result<Process> {
        let drains = self.directory.path().join(format!("{}.drains", node.name()));
        let words = [Path::new("--bpffs"), bpffs, Path::new("--drains"), &drains];
        start("run", node, self.directory.path(), &words)
    }

    /// Gives all LB nodes these members.
    fn configure(&self, weights: Weights) -> Result<()> {
        for lb in self.topology.lbs() {
            let mut text = format!(
                "interfaces: [{{name: {}, mode: native}}]\nseed: {SEED}\ncontrol_socket: {}\ntransit: {{enabled: {}}}\n\
                 backend_sets:\n  web:\n    members:\n",
                lb.eth0().name,
                socket(self.directory.path(), lb).display(),
                self.design == Design::Vipline
            );
            for (worker, weight) in self.topology.workers().iter().zip(weights) {
                if let Some(weight) = weight {
                    let (name, address) = (worker.name(), worker.addr_v4());
                    text += &format!("      - {{name: {name}, address: {address}, weight: {weight}}}\n");
                }
            }
            if self.is_probed {
                text += &format!("health: {HEALTH}\n");
            }
            text += "vips:\n";
            for protocol in ["tcp", "udp"] {
                let (address, port) = (vip().ip(), vip().port());
                text += &format!("  - {{address: {address}, protocol: {protocol}, port: {port}, backends: web}}\n");
            }
            let path = config(self.directory.path(), lb);
            let beside = path.with_extension("new");
            fs::write(&beside, text)?;
            fs::rename(&beside, &path)?;
        }
        Ok(())
    }

    /// Something happens; it is done when this returns.
    fn meet(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Set(weights) => {
                let before = self.revisions()?;
                self.configure(weights)?;
                for (lb, before) in self.lbs.iter().zip(before) {
                    self.wait_for(&lb.node, |status| {
                        status.revision > before && status.last_reload.error.is_none()
                    })?;
                }
                Ok(())
            }
            Event::Kill => self.kill_first(None),
            Event::KillAndSet(weights) => self.kill_first(Some(weights)),
            Event::Die(worker) => {
                let dead = self.worker(worker)?;
                dead.ns().ip(&["link", "set", &dead.eth0().name, "down"])?;
                let mut lbs = self.lbs.iter();
                lbs.try_for_each(|lb| self.wait_for_death(&lb.node, dead.name()))
            }
            Event::SecondLeaves => self.route(1),
            Event::SecondJoins => self.route(2),
        }
    }

    fn kill_first(&mut self, weights: Option<Weights>) -> Result<()> {
        let others: Vec<Node> = self.lbs.iter().skip(1).map(|lb| lb.node.clone()).collect();
        let before = self.revisions()?;
        let first = self.lbs.first_mut().context("an LB node")?;
        first.process.signal(Signal::SIGKILL)?;
        let start = Instant::now();
        while first.process.ended()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "a daemon outlives SIGKILL");
            thread::sleep(Duration::from_millis(5));
        }
        let (node, bpffs) = (first.node.clone(), first.bpffs.clone());
        if let Some(weights) = weights {
            self.configure(weights)?;
            for (node, before) in others.iter().zip(before.iter().skip(1)) {
                self.wait_for(node, |status| status.revision > *before)?;
            }
        }
        let process = self.start(&node, &bpffs)?;
        self.lbs.first_mut().context("an LB node")?.process = process;
        self.wait_for(&node, |status| {
            status.serving && status.backends_ready == status.backends
        })
    }

    fn worker(&self, number: usize) -> Result<&Node> {
        self.topology.workers().get(number).context("there is no such worker")
    }

    /// Until an LB node says of a backend that it is dead, and its tables say it, too.
    fn wait_for_death(&self, lb: &Node, backend: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            let backends: Vec<BackendView> = control::ask(&socket(self.directory.path(), lb), &Request::Backends)?;
            let found = backends.iter().find(|found| found.name == backend);
            let found = found.with_context(|| format!("{} knows no {backend}", lb.name()))?;
            let is_dead = found.checks.iter().any(|check| check.state == "dead");
            if is_dead && found.sets.iter().all(|set| set.slots == 0) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "{} does not find that {backend} is dead",
                lb.name()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn route(&self, count: usize) -> Result<()> {
        let nodes: Vec<&Node> = self.topology.lbs().iter().take(count).collect();
        self.topology.route([203, 0, 113, 0].into(), 24, &nodes)
    }

    fn revisions(&self) -> Result<Vec<u64>> {
        let lbs = self.lbs.iter();
        lbs.map(|lb| Ok(self.status(&lb.node)?.revision)).collect()
    }

    fn status(&self, node: &Node) -> Result<StatusView> {
        Ok(control::ask(&socket(self.directory.path(), node), &Request::Status)?)
    }

    fn wait_for(&self, node: &Node, is_so: impl Fn(&StatusView) -> bool) -> Result<()> {
        let start = Instant::now();
        while !self.status(node).is_ok_and(|status| is_so(&status)) {
            let log = || fs::read_to_string(self.directory.path().join(format!("{}.log", node.name())));
            ensure!(
                start.elapsed() < PATIENCE,
                "the daemon of {} is not where it should be after {PATIENCE:?}; its log:\n{}",
                node.name(),
                log().unwrap_or_default()
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn config(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}.yaml", node.name()))
}

fn socket(directory: &Path, node: &Node) -> PathBuf {
    directory.join(format!("{}.sock", node.name()))
}

fn start(role: &str, node: &Node, directory: &Path, words: &[&Path]) -> Result<Process> {
    let mut command = node.ns().command(&vipline()?);
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(directory.join(format!("{}.log", node.name())))?;
    command
        .arg(role)
        .arg("--config")
        .arg(config(directory, node))
        .args(words)
        .stderr(log);
    Process::start(command)
}
