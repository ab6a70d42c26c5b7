//! Schedulers and client affinity that is remembered, with real connections through the daemon: who takes them is told by the servers.

#![allow(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lab::{Conn, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, Vip, eventually, vip_v4, vip_v6};
use lb::control::{ExplainView, PlacedBy, ProtocolName, Request};

const WORKERS: u8 = 4;
/// How long clients are remembered on [`STICKY`].
const AFFINITY_S: u64 = 8;

const MAGLEV: u16 = 80;
const RR: u16 = 81;
const WRR: u16 = 82;
const LC: u16 = 83;
const WLC: u16 = 84;
const SED: u16 = 85;
const NQ: u16 = 86;
const SH: u16 = 87;
const DH: u16 = 88;
const STICKY: u16 = 89;

fn option(port: u16) -> String {
    match port {
        RR => ", scheduler: rr".to_owned(),
        WRR => ", scheduler: wrr".to_owned(),
        LC => ", scheduler: lc".to_owned(),
        WLC => ", scheduler: wlc".to_owned(),
        SED => ", scheduler: sed".to_owned(),
        NQ => ", scheduler: nq".to_owned(),
        SH => ", scheduler: sh".to_owned(),
        DH => ", scheduler: dh".to_owned(),
        STICKY => format!(", scheduler: rr, affinity: {{ client_ip: {{ timeout_s: {AFFINITY_S} }} }}"),
        _ => String::new(),
    }
}

/// VIPs with these schedulers on these families' sets of all workers.
fn bed(ports: &[u16]) -> Result<Bed> {
    let topology = Topology::builder().workers(WORKERS).build()?;
    let bed = Bed::start(topology, |topology, lb| {
        let mut file = LbFile::new(topology, lb);
        for port in ports {
            for (at, set) in [(vip_v4(1, *port), "v4"), (vip_v6(1, *port), "v6")] {
                file.vips.push(Vip {
                    options: option(*port),
                    ..Vip::new(Proto::Tcp, at, set)
                });
            }
        }
        file
    })?;
    let client = bed.topology.client();
    for number in 0..16_u8 {
        let [a, b, c, _] = client.addr_v4().octets();
        let address = IpAddr::from([a, b, c, 100 + number]);
        client
            .ns()
            .ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    }
    Ok(bed)
}

fn vips(port: u16) -> [SocketAddr; 2] {
    [vip_v4(1, port), vip_v6(1, port)]
}

fn other_client(bed: &Bed, number: u8) -> IpAddr {
    let [a, b, c, _] = bed.topology.client().addr_v4().octets();
    IpAddr::from([a, b, c, 100 + number])
}

/// A source address of its own for each connection: never the same port twice.
fn source(address: IpAddr) -> SocketAddr {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    SocketAddr::new(address, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A connection that has been answered, and by which worker.
fn open(bed: &Bed, address: IpAddr, vip: SocketAddr) -> Result<(Conn, String)> {
    let mut connection = bed.topology.client().connect_from(source(address), vip)?;
    let server = connection.get()?.server;
    Ok((connection, server.trim_end_matches("-v6").to_owned()))
}

fn client(bed: &Bed, vip: SocketAddr) -> IpAddr {
    match vip {
        SocketAddr::V4(_) => bed.topology.client().addr_v4().into(),
        SocketAddr::V6(_) => bed.topology.client().addr_v6().into(),
    }
}

fn open_many(bed: &Bed, vip: SocketAddr, count: usize) -> Result<Vec<(Conn, String)>> {
    (0..count).map(|_| open(bed, client(bed, vip), vip)).collect()
}

fn counts(open: &[(Conn, String)]) -> [usize; WORKERS as usize] {
    std::array::from_fn(|number| {
        let name = format!("worker-{}", number + 1);
        open.iter().filter(|(_, server)| *server == name).count()
    })
}

/// All of them answer, and the same worker does.
fn still_there(open: &mut [(Conn, String)]) -> Result<()> {
    for (connection, server) in open {
        assert_eq!(connection.get()?.server.trim_end_matches("-v6"), *server);
    }
    Ok(())
}

/// What the daemon counts, by worker.
fn open_flows(bed: &Bed) -> Result<[u64; WORKERS as usize]> {
    let mut flows = [0; WORKERS as usize];
    for backend in bed.lb().backends()? {
        let number: usize = backend
            .name
            .trim_end_matches("-v6")
            .trim_start_matches("worker-")
            .parse()?;
        flows[number - 1] += backend.open_flows;
    }
    Ok(flows)
}

fn weights(bed: &Bed, weights: [u32; WORKERS as usize]) -> Result<()> {
    let mut file = bed.file();
    for (number, weight) in (1..).zip(weights) {
        file.weight("v4", &format!("worker-{number}"), weight);
        file.weight("v6", &format!("worker-{number}-v6"), weight);
    }
    bed.lb().reload_lb(&file)
}

#[test]
fn turns_are_even_whatever_the_hash_says_and_weights_are_exact() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(&[MAGLEV, RR, WRR])?;
    for (rr, hashed) in vips(RR).into_iter().zip(vips(MAGLEV)) {
        let mut open = open_many(&bed, rr, 40)?;
        assert_eq!(counts(&open), [10; 4], "{rr}");
        still_there(&mut open)?;
        // The twin: by hash, shares are only even on average.
        let by_hash = counts(&open_many(&bed, hashed, 40)?);
        println!("40 connections by hash: {by_hash:?}");
        assert_ne!(by_hash, [10; 4]);
    }
    assert_eq!(counts(&open_many(&bed, vip_v4(1, WRR), 40)?), [10; 4]);
    weights(&bed, [100, 50, 200, 50])?;
    assert_eq!(counts(&open_many(&bed, vip_v4(1, WRR), 40)?), [10, 5, 20, 5]);
    assert_eq!(
        counts(&open_many(&bed, vip_v4(1, RR), 40)?),
        [10; 4],
        "without weights for rr"
    );
    let table = bed.lb().cli(&["vips"])?;
    assert_eq!(table.matches("scheduler wrr").count(), 2, "{table}");
    assert!(bed.lb().status()?.features.contains(&"schedulers".to_owned()));
    Ok(())
}

#[test]
fn explain_names_the_scheduler_and_what_says_where_a_flow_goes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(&[MAGLEV, RR, STICKY])?;
    let explain = |source: SocketAddr, port: u16| -> Result<ExplainView> {
        let protocol = ProtocolName::Tcp;
        let destination = vip_v4(1, port);
        bed.lb().explain(&Request::Explain {
            protocol,
            source,
            destination,
        })
    };
    let known = open_many(&bed, vip_v4(1, RR), 12)?;
    for (connection, server) in &known {
        let view = explain(connection.local_addr(), RR)?;
        assert_eq!(
            (view.scheduler.as_deref(), view.placed_by, view.backend.as_ref()),
            (Some("rr"), Some(PlacedBy::Record), Some(server)),
            "{view:?}"
        );
        let hashed = explain(connection.local_addr(), MAGLEV)?;
        assert_eq!(
            (hashed.scheduler.as_deref(), hashed.placed_by),
            (Some("mh"), Some(PlacedBy::Slot))
        );
    }
    // Who asks takes nobody's turn, and is told whose it is.
    let new = source(client(&bed, vip_v4(1, RR)));
    let told = explain(new, RR)?;
    assert_eq!(told.placed_by, Some(PlacedBy::Scheduler), "{told:?}");
    assert_eq!(explain(new, RR)?.backend, told.backend);
    let mut connection = bed.topology.client().connect_from(new, vip_v4(1, RR))?;
    assert_eq!(Some(connection.get()?.server), told.backend);
    // By a record of the client's: another connection of it.
    let sticky = open_many(&bed, vip_v4(1, STICKY), 1)?;
    let view = explain(source(client(&bed, vip_v4(1, STICKY))), STICKY)?;
    assert_eq!(
        (view.placed_by, view.backend.as_ref()),
        (Some(PlacedBy::Record), Some(&sticky[0].1)),
        "{view:?}"
    );
    assert_eq!(view.health, None, "nobody is probed here");
    Ok(())
}

#[test]
fn who_is_loaded_gets_no_more_until_the_others_are() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(&[LC, WLC, SED])?;
    weights(&bed, [100, 100, 200, 100])?;
    // Counts are of a backend, whatever the VIP: each scheduler begins with nothing open.
    for (port, first) in [(LC, [10, 10, 10, 10]), (WLC, [8, 8, 16, 8]), (SED, [8, 8, 16, 8])] {
        let vip = vip_v4(1, port);
        let mut open = open_many(&bed, vip, 40)?;
        assert_eq!(counts(&open), first, "{}", option(port));
        assert_eq!(open_flows(&bed)?, first.map(|flows| flows as u64));
        // All but the first worker's end: it has the most to do, and gets nothing until all are equal again.
        open.retain(|(_, server)| server == "worker-1");
        eventually("connections that end are counted", || {
            Ok(open_flows(&bed)?[1..] == [0; 3])
        })?;
        let more = open_many(&bed, vip, first[1..].iter().sum())?;
        let mut expected = first;
        expected[0] = 0;
        assert_eq!(counts(&more), expected, "{}", option(port));
        still_there(&mut open)?;
        drop((open, more));
        eventually("all have ended", || Ok(open_flows(&bed)? == [0; 4]))?;
    }
    Ok(())
}

#[test]
fn who_is_idle_is_first_and_who_has_the_weight_is_next() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(&[NQ, SED])?;
    weights(&bed, [10, 10, 100, 10])?;
    let by_sed = open_many(&bed, vip_v4(1, SED), 4)?;
    assert_eq!(counts(&by_sed), [0, 0, 4, 0], "the control: sed lets the others idle");
    drop(by_sed);
    eventually("all have ended", || Ok(open_flows(&bed)? == [0; 4]))?;
    let mut open = open_many(&bed, vip_v4(1, NQ), 4)?;
    assert_eq!(counts(&open), [1; 4], "nq lets nobody idle");
    let more = open_many(&bed, vip_v4(1, NQ), 5)?;
    assert_eq!(counts(&more), [0, 0, 5, 0]);
    // One has nothing to do again.
    let at = open
        .iter()
        .position(|(_, server)| server == "worker-2")
        .context("one each")?;
    drop(open.remove(at));
    eventually("it is idle", || Ok(open_flows(&bed)?[1] == 0))?;
    assert_eq!(open_many(&bed, vip_v4(1, NQ), 1)?[0].1, "worker-2");
    Ok(())
}

#[test]
fn sources_and_destinations_choose_where_they_alone_count() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(&[MAGLEV, SH, DH])?;
    let mut by_source = BTreeMap::new();
    let mut by_destination = BTreeSet::new();
    let mut spread = 0;
    for number in 0..12 {
        let address = other_client(&bed, number);
        let servers = |port| -> Result<BTreeSet<String>> {
            (0..6).map(|_| Ok(open(&bed, address, vip_v4(1, port))?.1)).collect()
        };
        let here = servers(SH)?;
        assert_eq!(here.len(), 1, "{address}: {here:?}");
        by_source.insert(address, here);
        by_destination.extend(servers(DH)?);
        spread += usize::from(servers(MAGLEV)?.len() > 1);
    }
    assert!(
        spread > 8,
        "the control: by the whole flow, {spread} of 12 clients have more than one"
    );
    let all: BTreeSet<_> = by_source.values().collect();
    assert!(all.len() > 1, "{by_source:?}");
    assert_eq!(by_destination.len(), 1, "{by_destination:?}");
    // Its backend goes: one other takes all, and the connections that live stay.
    let taken = by_destination.first().context("somebody")?.clone();
    let mut old = open_many(&bed, vip_v4(1, DH), 5)?;
    let number: usize = taken.trim_start_matches("worker-").parse()?;
    let mut left = [100; WORKERS as usize];
    left[number - 1] = 0;
    weights(&bed, left)?;
    let after: BTreeSet<String> = open_many(&bed, vip_v4(1, DH), 8)?
        .into_iter()
        .map(|(_, server)| server)
        .collect();
    assert!(after.len() == 1 && !after.contains(&taken), "{after:?}");
    still_there(&mut old)?;
    assert_eq!(counts(&old)[number - 1], 5);
    Ok(())
}

#[test]
fn a_client_is_remembered_through_a_change_of_members_and_forgotten_in_time() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(&[STICKY])?;
    let vip = vip_v4(1, STICKY);
    weights(&bed, [100, 100, 0, 0])?;
    let first: Vec<String> = (0..12)
        .map(|number| Ok(open(&bed, other_client(&bed, number), vip)?.1))
        .collect::<Result<_>>()?;
    // Clients take turns on two, then there are four: those that are known stay, though their turn would be another's.
    weights(&bed, [100; 4])?;
    for round in 0..4 {
        for (number, server) in (0..).zip(&first) {
            assert_eq!(
                open(&bed, other_client(&bed, number), vip)?.1,
                *server,
                "client {number}, round {round}"
            );
        }
        // Longer together than they would be remembered without renewal.
        sleep(Duration::from_secs(AFFINITY_S / 3));
    }
    assert!(bed.lb().cli(&["vips"])?.contains("client affinity for 8 s"));
    sleep(Duration::from_secs(AFFINITY_S + 1));
    let after: Vec<String> = (0..12)
        .map(|number| Ok(open(&bed, other_client(&bed, number), vip)?.1))
        .collect::<Result<_>>()?;
    let fresh = after
        .iter()
        .filter(|server| *server == "worker-3" || *server == "worker-4")
        .count();
    assert_eq!(fresh, 6, "half of the turns are those of the new ones: {after:?}");
    // A new program takes the records along: a feature comes on.
    let mut file = bed.file();
    file.vips[0].options += ", limits: { packets_per_second_per_cpu: 100000 }";
    bed.lb().reload_lb(&file)?;
    assert!(bed.lb().log()?.contains("+limits"), "{}", bed.lb().log()?);
    for (number, server) in (0..).zip(&after) {
        assert_eq!(
            open(&bed, other_client(&bed, number), vip)?.1,
            *server,
            "after the swap, client {number}"
        );
    }
    Ok(())
}
