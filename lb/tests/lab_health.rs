//! Probes of real backends by `vipline run`: servers that die, that answer something else, that flap, that are all gone; and a probe
//! through the tunnel to the VIP itself.

mod lab_support;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{Node, Proto, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, eventually, vip_v4, vip_v6};
use lb::control::CheckView;
use nix::sys::signal::Signal;

/// Where workers say how they are.
const PORT: u16 = 9100;
const WORKERS: [&str; 4] = ["worker-1", "worker-2", "worker-3", "worker-4"];

/// A server on a worker itself that answers each request with a status of the test's choice; 0: it closes the connection.
struct Says {
    status: Arc<AtomicU16>,
    stop: Arc<AtomicU16>,
    node: Node,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Says {
    fn start(node: &Node) -> Result<Self> {
        let (status, stop) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(0)));
        let listener = node
            .ns()
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("listen"))?;
        let (says, stopped, name) = (Arc::clone(&status), Arc::clone(&stop), node.name().to_owned());
        let thread = node.ns().spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if stopped.load(Ordering::Acquire) > 0 {
                    break;
                }
                stream.set_read_timeout(Some(Duration::from_secs(1)))?;
                let status = says.load(Ordering::Acquire);
                // Whoever asks may be gone at any time: probes of the port only are.
                let asked = stream.read(&mut [0; 1024]).unwrap_or_default();
                if asked > 0 && status > 0 {
                    let length = name.len();
                    let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {length}\r\n\r\n{name}");
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
            Ok(())
        })?;
        Ok(Self {
            status,
            stop,
            node: node.clone(),
            thread: Some(thread),
        })
    }

    fn says(&self, status: u16) {
        self.status.store(status, Ordering::Release);
    }
}

impl Drop for Says {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Release);
        let at = (self.node.addr_v4(), PORT).into();
        let _ = self
            .node
            .ns()
            .run(move || Ok(std::net::TcpStream::connect_timeout(&at, Duration::from_secs(1)).map(drop)?));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Four workers with a server each, behind an LB node that probes them as `health` says.
struct Site {
    says: Vec<Option<Says>>,
    bed: Bed,
}

impl Site {
    fn start(health: &str) -> Result<Self> {
        let topology = Topology::builder().workers(4).build()?;
        let says = topology.workers().iter().map(|node| Says::start(node).map(Some));
        let says = says.collect::<Result<Vec<_>>>()?;
        let bed = Bed::start(topology, |topology, lb| {
            LbFile::new(topology, lb)
                .vips(&[(Proto::Tcp, vip_v4(1, 80)), (Proto::Udp, vip_v4(1, 53))], "v4")
                .more(&format!("health: {{ {health} }}"))
        })?;
        let site = Self { says, bed };
        site.all("healthy")?;
        Ok(site)
    }

    fn lb(&self) -> &Daemon {
        self.bed.lb()
    }

    /// Waits until all checks of all backends are in this state.
    fn all(&self, state: &str) -> Result<()> {
        eventually(&format!("all are {state}"), || {
            Ok(self
                .lb()
                .backends()?
                .iter()
                .all(|backend| !backend.checks.is_empty() && backend.checks.iter().all(|check| check.state == state)))
        })
        .map(drop)
        .with_context(|| {
            format!(
                "{:#?}",
                self.lb()
                    .backends()
                    .map(|all| all.into_iter().map(|b| b.checks).collect::<Vec<_>>())
            )
        })
    }

    /// The one check of a worker.
    fn check(&self, worker: usize) -> Result<CheckView> {
        let mut checks = self.lb().backend(WORKERS[worker])?.checks;
        ensure!(checks.len() == 1, "{checks:?}");
        checks.pop().context("one")
    }

    /// Waits until a worker is in this state.
    fn is(&self, worker: usize, state: &str) -> Result<CheckView> {
        eventually(&format!("{} is {state}", WORKERS[worker]), || {
            Ok(self.check(worker)?.state == state)
        })
        .with_context(|| format!("{:?}", self.check(worker)))?;
        self.check(worker)
    }

    /// Lines of the log that say that a backend's health changed.
    fn changes(&self) -> Result<usize> {
        Ok(self
            .lb()
            .log()?
            .lines()
            .filter(|line| line.contains("health changed"))
            .count())
    }

    fn panics(&self) -> Result<usize> {
        let status = self.lb().status()?;
        Ok(status.health.context("health")?.vips_in_panic)
    }
}

const QUICK: &str = "interval_ms: 300, timeout_ms: 300, damping_ms: 400";

#[test]
fn a_backend_whose_server_dies_is_unhealthy_after_so_many_probes_and_comes_back() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = Site::start(&format!("type: tcp, port: {PORT}, {QUICK}"))?;
    // The control: nothing happens.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(site.changes()?, 0, "{}", site.lb().log()?);

    site.says[1] = None;
    // Seen from outside, whenever one looks: not unhealthy before the third failure, not healthy after it.
    let start = Instant::now();
    loop {
        let check = site.check(1)?;
        let unhealthy = check.state == "unhealthy";
        assert_eq!(unhealthy, check.failures >= 3, "{check:?}");
        if unhealthy {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "{check:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    println!(
        "unhealthy {:?} after its server was closed, at an interval of 300 ms",
        start.elapsed()
    );
    assert_eq!(site.check(1)?.reason.as_deref(), Some("connection refused"));
    let shown = site.lb().cli(&["backends"])?;
    assert!(
        shown.contains("UNHEALTHY for") && shown.contains("tcp :9100: connection refused"),
        "{shown}"
    );
    let sums = site.lb().status()?.health.context("health")?;
    assert_eq!(
        (sums.healthy, sums.unhealthy, sums.dead, sums.vips_in_panic),
        (3, 1, 0, 0)
    );

    // Refused for longer than it takes to die of silence: it is not dead.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(site.check(1)?.state, "unhealthy");
    let again = Says::start(site.bed.topology.worker(1))?;
    site.says[1] = Some(again);
    let check = site.is(1, "healthy")?;
    assert_eq!(check.reason, None);
    Ok(())
}

#[test]
fn a_host_that_falls_silent_is_dead_in_time_and_alive_again_when_it_answers() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(&format!("type: tcp, port: {PORT}, {QUICK}, dead_after_ms: 1000"))?;
    let node = site.bed.topology.worker(2).ns();
    node.nft("table inet silent { chain in { type filter hook input priority 0; tcp dport 9100 drop; }; }")?;
    let check = site.is(2, "dead")?;
    assert_eq!(check.reason.as_deref(), Some("no connection in time"));
    assert!(site.lb().cli(&["backends"])?.contains("DEAD for"));
    node.nft("delete table inet silent")?;
    site.is(2, "healthy")?;
    Ok(())
}

#[test]
fn another_status_and_another_body_are_failures() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(&format!(
        "type: http, port: {PORT}, path: /healthz, body: worker, {QUICK}"
    ))?;
    for (worker, status, why) in [
        (0, 503, "status 503"),
        (1, 404, "status 404"),
        (2, 0, "connection closed before the answer"),
    ] {
        let says = site.says[worker].as_ref().context("a server")?;
        says.says(status);
        assert_eq!(site.is(worker, "unhealthy")?.reason.as_deref(), Some(why));
        says.says(200);
        site.is(worker, "healthy")?;
    }
    // A text that only one of them has: a reload changes what is asked, and forgets what was.
    let file = LbFile {
        more: format!("health: {{ type: http, port: {PORT}, body: worker-2, panic_percent: 0, {QUICK} }}\n"),
        ..site.bed.file()
    };
    site.lb().reload_lb(&file)?;
    for worker in [0, 2, 3] {
        let check = site.is(worker, "unhealthy")?;
        assert_eq!(check.reason.as_deref(), Some("the body does not have the text"));
    }
    site.is(1, "healthy")?;
    // And without `health` nothing is probed.
    site.lb().reload_lb(&LbFile {
        more: String::new(),
        ..site.bed.file()
    })?;
    eventually("nothing is probed", || Ok(site.lb().status()?.health.is_none()))?;
    assert!(site.lb().backends()?.iter().all(|backend| backend.checks.is_empty()));
    Ok(())
}

#[test]
fn flapping_is_damped() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // As fast as probes can tell, but no faster than every 2 s.
    let site = Site::start(&format!(
        "type: http, port: {PORT}, interval_ms: 100, timeout_ms: 100, rise: 1, fall: 1, damping_ms: 2000"
    ))?;
    let says = site.says[3].as_ref().context("a server")?;
    let (before, start) = (site.changes()?, Instant::now());
    let mut turns = 0;
    while start.elapsed() < Duration::from_secs(12) {
        says.says(if turns % 2 == 0 { 500 } else { 200 });
        turns += 1;
        std::thread::sleep(Duration::from_millis(400));
    }
    let changes = site.changes()? - before;
    println!(
        "{turns} turns of the server in {:?}: {changes} changes of its health",
        start.elapsed()
    );
    assert!(changes >= 2, "it does change");
    assert!(
        changes as u64 <= start.elapsed().as_secs() / 2 + 1,
        "{changes} changes:\n{}",
        site.lb().log()?
    );
    Ok(())
}

#[test]
fn when_too_few_are_left_all_are_used_and_that_is_said() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = Site::start(&format!("type: tcp, port: {PORT}, {QUICK}"))?;
    for worker in 0..3 {
        site.says[worker] = None;
        site.is(worker, "unhealthy")?;
    }
    // A quarter is not too few, at the default.
    assert_eq!(site.panics()?, 0);
    site.says[3] = None;
    site.all("unhealthy")?;
    eventually("all are used", || Ok(site.panics()? == 2))?;
    let shown = site.lb().cli(&["status"])?;
    assert!(
        shown.contains("PANIC: of 2 VIPs so few backends are eligible"),
        "{shown}"
    );
    assert!(site.lb().log()?.contains("the probes are not believed"));
    // Nothing is lost by that: who serves goes on to.
    site.bed.topology.client().http_get(vip_v4(1, 80), 40)?;
    let again = Says::start(site.bed.topology.worker(0))?;
    site.says[0] = Some(again);
    site.is(0, "healthy")?;
    eventually("it is over", || Ok(site.panics()? == 0))?;
    Ok(())
}

#[test]
fn a_node_that_does_not_decapsulate_is_found_through_the_tunnel_and_by_nothing_else() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(3).build()?;
    let says = topology.workers().iter().map(Says::start).collect::<Result<Vec<_>>>()?;
    let mut bed = Bed::start(topology, |topology, lb| {
        let health =
            format!("type: tcp, port: {PORT}, tunnel: true, interval_ms: 500, timeout_ms: 500, damping_ms: 500");
        LbFile::new(topology, lb)
            .vips(&[(Proto::Tcp, vip_v4(1, 80)), (Proto::Udp, vip_v4(1, 80))], "v4")
            .vips(&[(Proto::Tcp, vip_v6(1, 80))], "v6")
            .more(&format!("health: {{ {health} }}"))
    })?;
    // VIPs have to settle first: longer than one waits elsewhere.
    let states = |bed: &Bed, kind: &str| -> Result<Vec<(String, String)>> {
        let of = |backend: lb::control::BackendView| {
            let check = backend.checks.into_iter().find(|check| check.check.starts_with(kind));
            (backend.name, check.map(|check| check.state).unwrap_or_default())
        };
        Ok(bed.lb().backends()?.into_iter().map(of).collect())
    };
    let wait = |bed: &Bed, what: &str, holds: &dyn Fn(&(String, String)) -> bool| -> Result<()> {
        let start = Instant::now();
        while !states(bed, "tunnel")?.iter().all(holds) {
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "not {what}: {:?}, {:?}",
                states(bed, "tunnel")?,
                bed.lb().status()?.health
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    assert_eq!(
        states(&bed, "tunnel")?.len(),
        6,
        "three nodes, by address of either family"
    );
    wait(&bed, "all healthy", &|(_, state)| state == "healthy")?;

    // The agent of one node goes; the node itself is as well as before.
    bed.nodes[1].end(Signal::SIGTERM)?;
    let fell = |(name, state): &(String, String)| (state == "unhealthy") == name.starts_with("worker-2");
    wait(&bed, "worker-2 alone unhealthy", &fell)?;
    assert!(states(&bed, "tcp")?.iter().all(|(_, state)| state == "healthy"));
    let backend = bed.lb().backend("worker-2")?;
    let reason = backend.checks.iter().find_map(|check| check.reason.clone());
    assert_eq!(reason.as_deref(), Some("no answer from the VIP through the tunnel"));

    bed.nodes[1].start_again()?;
    wait(&bed, "all healthy again", &|(_, state)| state == "healthy")?;
    // Every connection that a probe began was ended by it: what is left is what is under way.
    let open = |bed: &Bed| {
        bed.servers
            .iter()
            .map(lab::Server::connections)
            .max()
            .unwrap_or_default()
    };
    eventually("no connection is left behind", || Ok(open(&bed) <= 2))?;
    drop(says);
    Ok(())
}
