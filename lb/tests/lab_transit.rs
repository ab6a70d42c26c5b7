//! Connections and flows stay where they live while their backends' slots move: real TCP and UDP through the daemon, and what each
//! server says of who asked.

#![allow(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use etherparse::PacketBuilder;
use lab::{Conn, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, Wire, assert_spread, eventually, vip_v4, vip_v6};
use nix::sys::signal::Signal;

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
const WORKERS: u8 = 4;
/// Connections, and UDP flows, of each family.
const OPEN: u16 = 80;
/// Timeouts so short that a test can wait for them.
const SHORT: &str = "transit: { tcp_idle_timeout_s: 4, udp_idle_timeout_s: 2 }";

fn vips() -> [SocketAddr; 2] {
    [vip_v4(1, 80), vip_v6(1, 80)]
}

fn bed(more: &str) -> Result<Bed> {
    let topology = Topology::builder().workers(WORKERS).build()?;
    Bed::start(topology, |topology, lb| {
        let [v4, v6] = vips();
        LbFile::new(topology, lb)
            .vips(&BOTH.map(|proto| (proto, v4)), "v4")
            .vips(&BOTH.map(|proto| (proto, v6)), "v6")
            .more(more)
    })
}

/// Connections and UDP flows that are open, each with the server that answered first.
struct Open {
    connections: Vec<(Conn, String)>,
    flows: Vec<(SocketAddr, SocketAddr, String)>,
}

/// How many were answered by whom they were answered first; and how many not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    connections: usize,
    flows: usize,
    broken: usize,
}

impl Open {
    fn all(bed: &Bed, first_port: u16) -> Result<Self> {
        let client = bed.topology.client().with_timeout(Duration::from_millis(700));
        let (mut connections, mut flows) = (Vec::new(), Vec::new());
        for vip in vips() {
            let from = |port| match vip {
                SocketAddr::V4(_) => SocketAddr::new(client.addr_v4().into(), port),
                SocketAddr::V6(_) => SocketAddr::new(client.addr_v6().into(), port),
            };
            for port in first_port..first_port + OPEN {
                let mut connection = client.connect_from(from(port), vip)?;
                let server = connection.get()?.server;
                connections.push((connection, server));
                let server = client.udp_get_from(from(port), vip)?.server;
                flows.push((from(port), vip, server));
            }
        }
        Ok(Self { connections, flows })
    }

    /// Asks all of them again; those that break are gone.
    fn ask(&mut self, bed: &Bed) -> Kept {
        let client = bed.topology.client().with_timeout(Duration::from_millis(700));
        let (connections, flows) = (self.connections.len(), self.flows.len());
        self.connections
            .retain_mut(|(connection, server)| connection.get().is_ok_and(|reply| reply.server == *server));
        self.flows.retain(|(from, vip, server)| {
            client
                .udp_get_from(*from, *vip)
                .is_ok_and(|reply| reply.server == *server)
        });
        let kept = (self.connections.len(), self.flows.len());
        Kept {
            connections: kept.0,
            flows: kept.1,
            broken: connections + flows - kept.0 - kept.1,
        }
    }

    /// Connections by the worker that answers.
    fn servers(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, server) in &self.connections {
            let worker = server.trim_end_matches("-v6").to_owned();
            *counts.entry(worker).or_default() += 1;
        }
        counts
    }

    fn at(&self, worker: &str) -> usize {
        let named = |server: &String| server.starts_with(worker);
        self.connections.iter().filter(|(_, server)| named(server)).count()
            + self.flows.iter().filter(|(_, _, server)| named(server)).count()
    }
}

/// The weights of all four workers, in both sets; 0 leaves one out.
fn weights(bed: &Bed, file: &LbFile, weights: [u32; WORKERS as usize]) -> Result<LbFile> {
    let mut file = file.clone();
    for (set, suffix) in [("v4", ""), ("v6", "-v6")] {
        let all = LbFile::new(&bed.topology, bed.topology.lb(0)).members(set).clone();
        *file.members(set) = all;
        for (number, weight) in (1..).zip(weights) {
            file.weight(set, &format!("worker-{number}{suffix}"), weight);
        }
        file.members(set).retain(|member| member.2 > 0);
    }
    bed.lb().reload_lb(&file)?;
    Ok(file)
}

fn total() -> usize {
    usize::from(OPEN) * 4
}

/// Weights, members that leave and come back, one after the other.
const CHANGES: [[u32; WORKERS as usize]; 5] = [
    [100, 100, 0, 100],
    [100, 50, 0, 200],
    [0, 100, 100, 100],
    [100, 100, 100, 100],
    [100, 0, 0, 100],
];

#[test]
fn connections_and_flows_stay_through_one_change_after_another() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let mut open = Open::all(&bed, 20_000)?;
    let all = Kept {
        connections: total() / 2,
        flows: total() / 2,
        broken: 0,
    };
    assert_eq!(open.ask(&bed), all, "the control: nothing changes");
    let mut file = bed.file();
    let mut later = Vec::new();
    for (round, change) in (1..).zip(CHANGES) {
        file = weights(&bed, &file, change)?;
        assert_eq!(open.ask(&bed), all, "after change {round}, {change:?}");
        for open in &mut later {
            let kept = Open::ask(open, &bed);
            assert_eq!(
                (kept.connections, kept.broken),
                (total() / 2, 0),
                "those of round {round}"
            );
        }
        // New ones go where the file says, and stay there.
        later.push(Open::all(&bed, 20_000 + 1_000 * round)?);
        let counts = later.last().map(Open::servers).unwrap_or_default();
        let names = ["worker-1", "worker-2", "worker-3", "worker-4"];
        let share: Vec<(&str, u32)> = names
            .into_iter()
            .zip(change)
            .filter(|(_, weight)| *weight > 0)
            .collect();
        assert_spread("new connections", &counts, &share);
        println!("{change:?}: {all:?}, then {counts:?}");
    }
    assert!(open.at("worker-3") > 0, "some still live where nothing new goes");
    Ok(())
}

/// SYNs of clients that are nobody, to both VIPs, each from an address and a port of its own.
fn flood(bed: &Bed, count: u32) -> Result<u64> {
    let wire = Wire::to_lb(bed)?;
    let mut sent = 0;
    for number in 0..count {
        let (host, port) = ((number >> 8) as u16, 1_024 + (number & 0xff) as u16);
        let mut packet = Vec::new();
        let [high, low] = host.to_be_bytes();
        if number % 2 == 0 {
            let SocketAddr::V4(vip) = vips()[0] else { unreachable!() };
            let syn =
                PacketBuilder::ipv4([198, 18, high, low], vip.ip().octets(), 64).tcp(port, vip.port(), number, 1_000);
            syn.syn().write(&mut packet, &[])?;
        } else {
            let SocketAddr::V6(vip) = vips()[1] else { unreachable!() };
            let source = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, host).octets();
            let syn = PacketBuilder::ipv6(source, vip.ip().octets(), 64).tcp(port, vip.port(), number, 1_000);
            syn.syn().write(&mut packet, &[])?;
        }
        sent += u64::from(wire.send(&packet).is_ok());
    }
    Ok(sent)
}

#[test]
fn a_syn_flood_in_transit_breaks_nothing_and_takes_no_more_than_its_room() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // Room for so few flows that the flood is many times that.
    const ROOM: u64 = 2_048;
    let bed = bed("transit: { flow_records: 2048 }")?;
    let mut before = Open::all(&bed, 20_000)?;
    weights(&bed, &bed.file(), CHANGES[0])?;
    // Recorded, all of them that a slot in transit has.
    let mut young = Open::all(&bed, 22_000)?;
    let counted = || -> Result<(u64, u64)> {
        let table = bed.lb().status()?.flow_table.context("flows can be recorded")?;
        let unrecorded = table.unrecorded.iter().map(|(_, count)| count).sum();
        Ok((table.records as u64, unrecorded))
    };
    let (room, unrecorded) = counted()?;
    assert_eq!(
        (room, unrecorded),
        (ROOM, 0),
        "the control: there is room for those that are real"
    );
    let start = Instant::now();
    let sent = flood(&bed, 60_000)?;
    println!("{sent} SYNs in {:?}", start.elapsed());
    assert!(sent > 40_000, "{sent}");
    let kept = (before.ask(&bed), young.ask(&bed));
    assert_eq!((kept.0.broken, kept.1.broken), (0, 0), "{kept:?}");
    // A quarter of the slots moved, and of a bucket's four records SYNs alone have two.
    let (_, unrecorded) = counted()?;
    println!("{unrecorded} of the flood found no room; {kept:?}");
    assert!(unrecorded > sent / 4 - ROOM, "{unrecorded}");
    // Real ones still get in, and stay.
    let mut late = Open::all(&bed, 24_000)?;
    flood(&bed, 20_000)?;
    assert_eq!(
        (late.ask(&bed).broken, young.ask(&bed).broken, before.ask(&bed).broken),
        (0, 0, 0)
    );
    Ok(())
}

/// The twin: the same without transit.
#[test]
fn without_transit_the_same_changes_break_some() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("transit: { enabled: false }")?;
    let mut open = Open::all(&bed, 20_000)?;
    assert_eq!(open.ask(&bed).broken, 0, "the control: nothing changes");
    weights(&bed, &bed.file(), CHANGES[0])?;
    let kept = open.ask(&bed);
    println!("{kept:?}");
    assert!(
        kept.broken > total() / 8,
        "a quarter lived where nothing is sent any more: {kept:?}"
    );
    Ok(())
}

#[test]
fn a_transit_ends_when_nothing_lives_elsewhere_and_the_backend_is_forgotten() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(SHORT)?;
    let mut open = Open::all(&bed, 20_000)?;
    let file = weights(&bed, &bed.file(), CHANGES[0])?;
    let known = || -> Result<bool> { Ok(bed.lb().backends()?.iter().any(|backend| backend.name == "worker-3")) };
    assert!(known()?, "it is kept while something may live there");
    // Longer than the timeout: who speaks is kept all the same.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(open.ask(&bed).broken, 0);
    }
    assert!(known()?);
    drop(open);
    eventually("worker-3 is forgotten", || Ok(!known()?))?;
    // And it may come back as if it had never been there.
    weights(&bed, &file, [100; WORKERS as usize])?;
    let mut open = Open::all(&bed, 30_000)?;
    assert_eq!(open.ask(&bed).broken, 0);
    assert!(open.at("worker-3") > 0);
    Ok(())
}

#[test]
fn a_program_that_is_replaced_in_transit_goes_on_with_its_flows() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let mut open = Open::all(&bed, 20_000)?;
    let file = weights(&bed, &bed.file(), CHANGES[0])?;
    let mut young = Open::all(&bed, 21_000)?;
    let file = weights(&bed, &file, CHANGES[1])?;
    assert_eq!((open.ask(&bed).broken, young.ask(&bed).broken), (0, 0));
    // Another feature: another program, with maps of its own.
    let file = file.more("protection: { denied_sources: [192.0.2.0/24] }");
    bed.lb().reload_lb(&file)?;
    assert_eq!(open.ask(&bed).broken, 0, "those that no record names");
    assert_eq!(young.ask(&bed).broken, 0, "those that are recorded");
    weights(&bed, &file, CHANGES[3])?;
    assert_eq!(
        (open.ask(&bed).broken, young.ask(&bed).broken),
        (0, 0),
        "one change more"
    );
    Ok(())
}

/// Ends the daemon, and starts it again with a file that no daemon has seen before.
fn restart(bed: &mut Bed, signal: Signal, file: &LbFile) -> Result<String> {
    let before = bed.lb().log()?;
    bed.lbs[0].end(signal)?;
    bed.lb().write(&file.yaml(&bed.lb().socket()))?;
    bed.lbs[0].start_again()?;
    let log = bed.lb().log()?;
    Ok(log.strip_prefix(&before).unwrap_or_default().to_owned())
}

fn without_worker_3(bed: &Bed) -> LbFile {
    let mut file = bed.file();
    for (set, suffix) in [("v4", ""), ("v6", "-v6")] {
        let gone = format!("worker-3{suffix}");
        file.members(set).retain(|member| member.0 != gone);
    }
    file
}

const GOES_ON: &str = "goes on with the maps of the process before";

/// A worker leaves while no daemon runs: the next one finds its slots in the maps alone, and so do all after that.
#[test]
fn a_change_that_comes_with_a_restart_is_a_transit_too_and_restarts_in_it_go_on_with_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed("")?;
    let mut open = Open::all(&bed, 20_000)?;
    let file = without_worker_3(&bed);
    let log = restart(&mut bed, Signal::SIGKILL, &file)?;
    assert!(log.contains(GOES_ON), "{log}");
    assert_eq!(open.ask(&bed).broken, 0, "those at a backend that only the maps name");
    let at_gone = open.at("worker-3");
    assert!(at_gone > 0);
    let mut young = Open::all(&bed, 21_000)?;
    assert_eq!((young.servers().get("worker-3"), young.ask(&bed).broken), (None, 0));
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let log = restart(&mut bed, signal, &file)?;
        assert!(log.contains(&format!("{GOES_ON} writes=0")), "{log}");
        assert_eq!(
            (open.ask(&bed).broken, young.ask(&bed).broken),
            (0, 0),
            "{signal} in transit"
        );
        assert_eq!(open.at("worker-3"), at_gone);
    }
    // One change more, and one that needs another program with maps of its own.
    let mut heavier = file.clone();
    for (set, suffix) in [("v4", ""), ("v6", "-v6")] {
        heavier.weight(set, &format!("worker-2{suffix}"), 400);
    }
    let log = restart(&mut bed, Signal::SIGTERM, &heavier)?;
    assert!(log.contains(GOES_ON), "{log}");
    assert_eq!(
        (open.ask(&bed).broken, young.ask(&bed).broken),
        (0, 0),
        "one change more"
    );
    let mut third = Open::all(&bed, 22_000)?;
    let other = heavier.more("protection: { denied_sources: [192.0.2.0/24] }");
    let log = restart(&mut bed, Signal::SIGKILL, &other)?;
    assert!(log.contains("new maps take the place"), "{log}");
    let broken = [&mut open, &mut young, &mut third].map(|open| open.ask(&bed).broken);
    assert_eq!((broken, open.at("worker-3")), ([0; 3], at_gone), "in maps of its own");
    println!(
        "{at_gone} of {} stayed at the one that is gone, over five restarts",
        total()
    );
    Ok(())
}

/// The twin: nothing is pinned, so what is in transit goes with the process.
#[test]
fn with_nothing_pinned_a_restart_in_transit_breaks_what_lives_elsewhere() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed("")?;
    bed.unpin()?;
    let mut open = Open::all(&bed, 20_000)?;
    let file = without_worker_3(&bed);
    bed.lb().reload_lb(&file)?;
    assert_eq!(open.ask(&bed).broken, 0, "the control: a change, and no restart");
    let at_gone = open.at("worker-3");
    restart(&mut bed, Signal::SIGTERM, &file)?;
    let broken = open.ask(&bed).broken;
    assert!(
        at_gone > 0 && broken >= at_gone,
        "{broken} of {at_gone} at the one that is gone"
    );
    Ok(())
}

#[test]
fn a_transit_that_a_restart_went_on_with_ends_in_time() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed(SHORT)?;
    let mut open = Open::all(&bed, 20_000)?;
    let file = without_worker_3(&bed);
    bed.lb().reload_lb(&file)?;
    let gone: IpAddr = bed.topology.worker(2).addr_v4().into();
    let log = restart(&mut bed, Signal::SIGKILL, &file)?;
    assert!(log.contains(GOES_ON), "{log}");
    let known = || -> Result<bool> { Ok(bed.lb().backends()?.iter().any(|backend| backend.address == gone)) };
    // Longer than the timeout: who speaks is kept all the same.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(open.ask(&bed).broken, 0);
    }
    assert!(known()? && open.at("worker-3") > 0);
    drop(open);
    eventually("worker-3 is forgotten", || Ok(!known()?))?;
    Ok(())
}

#[test]
fn a_set_that_is_drained_whole_keeps_its_connections_and_takes_no_new_ones() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let mut open = Open::all(&bed, 20_000)?;
    let mut drained = bed.file();
    for (set, suffix) in [("v4", ""), ("v6", "-v6")] {
        for number in 1..=WORKERS {
            drained.weight(set, &format!("worker-{number}{suffix}"), 0);
        }
    }
    bed.lb().reload_lb(&drained)?;
    assert_eq!(open.ask(&bed).broken, 0);
    let client = bed.topology.client().with_timeout(Duration::from_millis(700));
    for vip in vips() {
        let refused = client.try_http_get(vip, 10)?;
        assert!(refused.iter().all(Result::is_err), "{vip}: {refused:?}");
    }
    assert_eq!(open.ask(&bed).broken, 0);
    bed.lb().reload_lb(&bed.file())?;
    assert_eq!(open.ask(&bed).broken, 0);
    bed.topology.client().http_get(vips()[0], 10)?;
    Ok(())
}
