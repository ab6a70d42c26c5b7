//! What becomes of real flows: none that is new goes to the unhealthy, TCP that lives there stays, UDP moves at once, and the dead keep
//! nothing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::{Client, Conn, Topology, require_root};

use crate::{
    lab_support::{METRICS, Scrape, count_servers, eventually},
    site::{PORT, QUICK, Site, VIP, WORKERS},
};

/// Connections, and UDP flows.
const OPEN: u16 = 60;
/// Longest from the third failure to the tables: the least time between two overlays, and a plan on a machine that does much else.
const SOON: Duration = Duration::from_secs(4);

/// Connections and UDP flows, each with who answered first.
struct Open {
    client: Client,
    connections: Vec<(Conn, String)>,
    flows: Vec<(SocketAddr, String)>,
}

/// Of those that lived at one worker, and of all others: how many are answered by whom they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    tcp_there: (usize, usize),
    udp_there: (usize, usize),
    tcp_elsewhere: (usize, usize),
    udp_elsewhere: (usize, usize),
}

impl Open {
    fn all(site: &Site, first_port: u16) -> Result<Self> {
        let client = site.bed.topology.client().with_timeout(Duration::from_millis(700));
        let (mut connections, mut flows) = (Vec::new(), Vec::new());
        for port in first_port..first_port + OPEN {
            let from = SocketAddr::new(client.addr_v4().into(), port);
            let mut connection = client.connect_from(from, VIP)?;
            let server = connection.get()?.server;
            connections.push((connection, server));
            flows.push((from, client.udp_get_from(from, VIP)?.server));
        }
        Ok(Self {
            client,
            connections,
            flows,
        })
    }

    fn at(&self, worker: &str) -> (usize, usize) {
        let is_there = |server: &&String| *server == worker;
        (
            self.connections
                .iter()
                .map(|(_, server)| server)
                .filter(is_there)
                .count(),
            self.flows.iter().map(|(_, server)| server).filter(is_there).count(),
        )
    }

    /// Asks all of them again.
    fn ask(&mut self, worker: &str) -> Kept {
        let mut kept = Kept {
            tcp_there: (0, 0),
            udp_there: (0, 0),
            tcp_elsewhere: (0, 0),
            udp_elsewhere: (0, 0),
        };
        let count = |of: &mut (usize, usize), is_kept: bool| {
            of.0 += usize::from(is_kept);
            of.1 += 1;
        };
        for (connection, server) in &mut self.connections {
            let is_kept = connection.get().is_ok_and(|reply| reply.server == *server);
            let there = server == worker;
            count(
                if there {
                    &mut kept.tcp_there
                } else {
                    &mut kept.tcp_elsewhere
                },
                is_kept,
            );
        }
        for (from, server) in &self.flows {
            let is_kept = self
                .client
                .udp_get_from(*from, VIP)
                .is_ok_and(|reply| reply.server == *server);
            let there = server == worker;
            count(
                if there {
                    &mut kept.udp_there
                } else {
                    &mut kept.udp_elsewhere
                },
                is_kept,
            );
        }
        kept
    }

    /// Who answers UDP flows now is who is to answer them from now on.
    fn take_on(&mut self) -> Result<()> {
        for (from, server) in &mut self.flows {
            *server = self.client.udp_get_from(*from, VIP)?.server;
        }
        Ok(())
    }
}

/// Whether `of` all stayed, where there are any.
fn all((kept, of): (usize, usize)) -> bool {
    kept == of && of > 0
}

fn none((kept, of): (usize, usize)) -> bool {
    kept == 0 && of > 0
}

/// New connections and flows by who answers.
fn new(site: &Site) -> Result<BTreeMap<String, usize>> {
    let client = site.bed.topology.client();
    let mut replies = client.http_get(VIP, 60)?;
    replies.extend(client.udp_get(VIP, 60)?);
    Ok(count_servers(&replies))
}

/// Waits until a worker has no slots; for how long it had some after it was found unhealthy.
fn wait_until_out(site: &Site, worker: usize) -> Result<Duration> {
    let start = Instant::now();
    eventually(&format!("{} has no slots", WORKERS[worker]), || {
        Ok(site.slots(worker)? == 0)
    })?;
    Ok(start.elapsed())
}

#[test]
fn the_unhealthy_get_nothing_new_keep_their_tcp_and_lose_their_udp() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start_with(&format!(
        "health: {{ type: http, port: {PORT}, {QUICK} }}\nmetrics: {{ listen: \"{METRICS}\" }}"
    ))?;
    let mut open = Open::all(&site, 20_000)?;
    let kept = open.ask("worker-2");
    assert!(all(kept.tcp_there) && all(kept.udp_there), "the control: {kept:?}");
    assert!(
        all(kept.tcp_elsewhere) && all(kept.udp_elsewhere),
        "the control: {kept:?}"
    );
    assert_eq!(new(&site)?.len(), 4);

    let start = Instant::now();
    site.says(1, 503)?;
    site.is(1, "unhealthy")?;
    let found = start.elapsed();
    let took = wait_until_out(&site, 1)?;
    println!("unhealthy {found:?} after its server said 503, out of the tables {took:?} later");
    assert!(took < SOON, "{took:?}");
    let counts = new(&site)?;
    assert!(counts.len() == 3 && !counts.contains_key("worker-2"), "{counts:?}");
    let kept = open.ask("worker-2");
    println!("unhealthy: {kept:?}");
    assert!(all(kept.tcp_there) && all(kept.tcp_elsewhere), "TCP stays: {kept:?}");
    assert!(
        none(kept.udp_there) && all(kept.udp_elsewhere),
        "UDP moves, of who fell: {kept:?}"
    );
    let ready: Vec<_> = site.lb().vips()?.iter().map(|vip| (vip.ready, vip.backends)).collect();
    assert_eq!(ready, [(3, 4); 2]);
    let scrape = Scrape::of(site.bed.topology.lb(0))?;
    for (series, value) in [
        ("vipline_health_backends{state=\"healthy\"}", 3.0),
        ("vipline_health_backends{state=\"unhealthy\"}", 1.0),
        ("vipline_backend_eligible{backend=\"worker-1\"}", 1.0),
        ("vipline_backend_eligible{backend=\"worker-2\"}", 0.0),
        ("vipline_health_vips{state=\"refused\"}", 0.0),
        ("vipline_health_checks{state=\"probed\"}", 4.0),
    ] {
        assert_eq!(scrape.value(series), Some(value), "{series}");
    }
    let failed = scrape.value("vipline_health_probes_total{probe=\"http\",outcome=\"status\"}");
    assert!(failed >= Some(3.0), "{failed:?}");

    // It recovers: new flows come, and nothing that lives moves.
    open.take_on()?;
    let mut young = Open::all(&site, 21_000)?;
    site.says(1, 200)?;
    site.is(1, "healthy")?;
    eventually("it has slots again", || Ok(site.slots(1)? > 0))?;
    assert_eq!(new(&site)?.len(), 4);
    for open in [&mut open, &mut young] {
        let kept = open.ask("worker-1");
        assert!(
            all(kept.tcp_there) && all(kept.udp_there) && all(kept.tcp_elsewhere) && all(kept.udp_elsewhere),
            "{kept:?}"
        );
    }
    Ok(())
}

/// The twin: nobody asks.
#[test]
fn without_health_new_flows_go_to_the_unhealthy() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(&format!("type: http, port: {PORT}, {QUICK}"))?;
    site.lb().reload_lb(&crate::lab_support::LbFile {
        more: String::new(),
        ..site.bed.file()
    })?;
    site.says(1, 503)?;
    std::thread::sleep(Duration::from_secs(3));
    let counts = new(&site)?;
    assert!(counts.contains_key("worker-2"), "{counts:?}");
    Ok(())
}

#[test]
fn udp_flows_that_are_recorded_move_at_once_too() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(&format!("type: http, port: {PORT}, {QUICK}"))?;
    let mut open = Open::all(&site, 20_000)?;
    // A change of weights: UDP flows of slots that move are recorded where they live, as they speak.
    let mut file = site.bed.file();
    file.weight("v4", "worker-2", 10);
    site.lb().reload_lb(&file)?;
    let kept = open.ask("worker-2");
    assert!(
        all(kept.udp_there) && all(kept.tcp_there),
        "transit keeps them: {kept:?}"
    );
    let (_, flows) = open.at("worker-2");
    ensure!(flows >= 5, "too few to say anything: {flows}");

    site.says(1, 503)?;
    site.is(1, "unhealthy")?;
    wait_until_out(&site, 1)?;
    let kept = open.ask("worker-2");
    println!("{kept:?}");
    assert!(none(kept.udp_there), "{kept:?}");
    assert!(
        all(kept.tcp_there) && all(kept.tcp_elsewhere) && all(kept.udp_elsewhere),
        "{kept:?}"
    );
    Ok(())
}

#[test]
fn the_dead_keep_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // Time enough between the two to look.
    let site = Site::start(&format!("type: tcp, port: {PORT}, {QUICK}, dead_after_ms: 15000"))?;
    let mut open = Open::all(&site, 20_000)?;
    // Its health port falls silent; what it serves goes on, so that one sees who is sent there.
    let node = site.bed.topology.worker(2).ns();
    node.nft("table inet silent { chain in { type filter hook input priority 0; tcp dport 9100 drop; }; }")?;
    site.is(2, "unhealthy")?;
    wait_until_out(&site, 2)?;
    let kept = open.ask("worker-3");
    println!("unhealthy: {kept:?}");
    assert!(
        all(kept.tcp_there) && all(kept.tcp_elsewhere),
        "the silent may live: {kept:?}"
    );
    assert!(none(kept.udp_there) && all(kept.udp_elsewhere), "{kept:?}");
    open.take_on()?;
    let check = site.check(2)?;
    ensure!(
        check.state == "unhealthy",
        "this machine is too slow for this test: {check:?}"
    );

    site.is(2, "dead")?;
    let there = open.at("worker-3").0;
    let mut lost = Kept {
        tcp_there: (there, there),
        ..open.ask("nobody")
    };
    let start = Instant::now();
    while lost.tcp_there.0 > 0 {
        ensure!(start.elapsed() < SOON, "not all have moved: {lost:?}");
        lost = open.ask("worker-3");
    }
    println!("dead: {lost:?}");
    assert!(all(lost.tcp_elsewhere) && all(lost.udp_elsewhere), "{lost:?}");
    assert!(!new(&site)?.contains_key("worker-3"));

    node.nft("delete table inet silent")?;
    site.is(2, "healthy")?;
    eventually("it has slots again", || Ok(site.slots(2)? > 0))?;
    assert!(new(&site)?.contains_key("worker-3"));
    Ok(())
}

#[test]
fn a_neighbour_that_is_gone_is_dead_without_waiting_for_silence() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(4).on_link().build()?;
    // The kernel doubts sooner and asks faster than it would by itself.
    for (key, value) in [
        ("base_reachable_time_ms", "500"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "200"),
    ] {
        let key = format!("net/ipv4/neigh/eth0/{key}");
        topology.lb(0).ns().sysctl(&key, value)?;
    }
    let health = format!("health: {{ type: tcp, port: {PORT}, {QUICK}, dead_after_ms: 86400000 }}");
    let site = Site::start_at(topology, &health)?;
    let mut open = Open::all(&site, 20_000)?;
    let router = site.bed.topology.router().ns();
    router.ip(&["link", "set", "dev", "w1", "down"])?;
    let took = eventually("its neighbour is found dead", || {
        let checks = site.lb().backend("worker-1")?.checks;
        Ok(checks
            .iter()
            .any(|check| check.check == "neighbour" && check.state == "dead"))
    })?;
    println!("found dead after {took:?}");
    wait_until_out(&site, 0)?;
    let counts = new(&site)?;
    assert!(counts.len() == 3 && !counts.contains_key("worker-1"), "{counts:?}");
    let kept = open.ask("worker-1");
    assert!(none(kept.tcp_there) && none(kept.udp_there), "{kept:?}");
    assert!(all(kept.tcp_elsewhere) && all(kept.udp_elsewhere), "{kept:?}");

    router.ip(&["link", "set", "dev", "w1", "up"])?;
    eventually("it is back", || {
        let checks = site.lb().backend("worker-1")?.checks;
        Ok(checks.iter().all(|check| check.state == "healthy"))
    })?;
    eventually("it has slots again", || Ok(site.slots(0)? > 0))?;
    assert!(new(&site)?.contains_key("worker-1"));
    Ok(())
}
