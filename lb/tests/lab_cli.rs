//! The command line against a daemon at work: what it shows is what happened, and `explain` says where packets really go.

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    time::Instant,
};

use anyhow::{Context as _, Result};
use lab::{Proto, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, NodeFile, eventually, vip_v4, vip_v6, vipline, word};
use lb::control::{BackendView, CounterView, ExplainView, NextHopKind, Role, SetView, StatusView, VipView};
use serde_json::Value;

fn vips() -> [(Proto, SocketAddr); 4] {
    [
        (Proto::Tcp, vip_v4(1, 80)),
        (Proto::Udp, vip_v4(1, 80)),
        (Proto::Tcp, vip_v6(1, 80)),
        (Proto::Udp, vip_v6(1, 80)),
    ]
}

/// Ports in random order, none twice; the seed is printed.
fn ports(count: usize) -> impl Iterator<Item = u16> {
    let seed = RandomState::new().hash_one("ports");
    println!("ports by seed {seed:#x}");
    let mut ports = BTreeSet::new();
    let mut state = seed;
    while ports.len() < count {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ports.insert(10_000 + (state >> 32) as u16 % 50_000);
    }
    ports.into_iter()
}

fn explain(daemon: &Daemon, proto: Proto, source: SocketAddr, destination: SocketAddr) -> Result<ExplainView> {
    daemon.cli_json(&["explain", word(proto), &source.to_string(), &destination.to_string()])
}

/// Where `explain` says that a flow goes, and who answers it.
fn said_and_done(bed: &Bed, proto: Proto, port: u16, vip: SocketAddr) -> Result<(String, String)> {
    let client = bed.topology.client();
    let address: IpAddr = if vip.is_ipv4() {
        client.addr_v4().into()
    } else {
        client.addr_v6().into()
    };
    let source = SocketAddr::new(address, port);
    let view = explain(bed.lb(), proto, source, vip)?;
    assert_eq!(
        (view.fate.as_str(), view.reason.as_str()),
        ("forward", "tx"),
        "{view:?}"
    );
    let reply = match proto {
        Proto::Tcp => client.http_get_from(source, vip)?,
        Proto::Udp => client.udp_get_from(source, vip)?,
    };
    Ok((view.backend.context("no backend")?, reply.server))
}

#[test]
fn explain_says_where_packets_really_go() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const FLOWS: usize = 240;
    let bed = Bed::simple(4, &vips())?;
    let mut servers = BTreeSet::new();
    let mut other_weights = bed.file();
    other_weights.weight("v4", "worker-2", 300);
    other_weights.weight("v4", "worker-3", 0);
    for (position, port) in ports(FLOWS).enumerate() {
        if position == FLOWS / 2 {
            bed.lb().reload_lb(&other_weights)?;
        }
        let (proto, vip) = vips()[position % 4];
        let (said, done) = said_and_done(&bed, proto, port, vip)?;
        assert_eq!(said, done, "{proto:?} from port {port} to {vip}");
        servers.insert(done);
    }
    assert_eq!(servers.len(), 4);
    Ok(())
}

#[test]
fn explain_tells_what_is_not_forwarded_and_why_and_counts_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start(Topology::builder().workers(2).lb_pods().build()?, |topology, lb| {
        let mut file = LbFile::new(topology, lb)
            .vips(&vips(), "v4")
            .vips(&[(Proto::Tcp, vip_v4(2, 80))], "none");
        file.sets
            .push(("none", vec![("lb-1".to_owned(), lb.addr_v4().into(), 100)]));
        file.vips[0].options = ", allowed_sources: [10.10.0.0/16]".to_owned();
        file.more("protection: { denied_sources: [10.10.9.0/24] }")
    })?;
    let before = bed.lb().counted()?;
    let backends = bed.lb().backends()?;
    for (proto, source, destination, verdict) in [
        (Proto::Tcp, "10.10.1.2:1", "203.0.113.1:80", "forward tx"),
        (Proto::Tcp, "10.10.1.2:1", "203.0.113.2:80", "forward local"),
        (Proto::Tcp, "10.10.9.1:1", "203.0.113.1:80", "drop source_denied"),
        (Proto::Tcp, "10.11.1.2:1", "203.0.113.1:80", "drop source_not_allowed"),
        (Proto::Udp, "10.11.1.2:1", "203.0.113.1:80", "forward tx"),
        (Proto::Tcp, "127.0.0.1:1", "203.0.113.1:80", "drop martian"),
        (Proto::Tcp, "203.0.113.1:1", "203.0.113.1:80", "drop source_is_vip"),
        (Proto::Tcp, "10.10.1.2:1", "203.0.113.1:81", "slow unserved_port"),
        (Proto::Tcp, "10.10.1.2:1", "198.51.100.1:80", "pass not_vip"),
        (Proto::Udp, "[fd00:10:1::2]:1", "[2001:db8:f00d::1]:80", "forward tx"),
        (Proto::Udp, "[fd00:10:1::2]:1", "[2001:db8:f00d::2]:80", "pass not_vip"),
    ] {
        let view = explain(bed.lb(), proto, source.parse()?, destination.parse()?)?;
        assert_eq!(
            format!("{} {}", view.fate, view.reason),
            verdict,
            "{proto:?} {source} {destination}"
        );
        let table = bed.lb().cli(&["explain", word(proto), source, destination])?;
        assert!(table.contains(&view.meaning) && table.contains(source), "{table}");
        assert_eq!(view.vip.is_some(), verdict.starts_with("forward"), "{view:?}");
    }
    let socket = bed.lb().socket();
    let socket = socket.to_str().context("UTF-8")?;
    let mixed = vipline(&[
        "explain",
        "tcp",
        "10.10.1.2:1",
        "[2001:db8:f00d::1]:80",
        "--socket",
        socket,
    ])?;
    assert!(!mixed.status.success() && mixed.stdout.is_empty(), "{mixed:?}");
    assert!(String::from_utf8_lossy(&mixed.stderr).contains("famil"), "{mixed:?}");
    // Questions are no packets.
    assert_eq!(bed.lb().counted()?.since(&before).len(), 0);
    assert_eq!(bed.lb().backends()?, backends);
    Ok(())
}

#[test]
fn what_is_shown_is_what_happened() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::simple(3, &vips())?;
    let lb = bed.lb();
    for (proto, vip) in vips() {
        match proto {
            Proto::Tcp => drop(bed.topology.client().http_get(vip, 50)?),
            Proto::Udp => drop(bed.topology.client().udp_get(vip, 50)?),
        }
    }
    // Of UDP it is exactly known how many packets that was.
    eventually("all is counted", || {
        Ok(lb.counted()?.of("forward tx") >= 2 * 50 + 2 * 50 * 4)
    })?;

    let status: StatusView = lb.cli_json(&["status"])?;
    assert_eq!(
        (status.role, status.pid, status.vips, status.tables),
        (Role::Lb, lb.pid(), 4, 1)
    );
    assert_eq!((status.backends, status.backends_ready), (3, 3));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(status.config, lb.config().display().to_string());
    assert_eq!(
        (status.interfaces[0].name.as_str(), status.interfaces[0].mode.as_str()),
        ("eth0", "native")
    );
    let table = lb.cli(&["status"])?;
    for part in [
        "LB node",
        "4 VIPs, 1 lookup tables",
        "3 of 3 reachable",
        "eth0",
        "native",
        "applied",
    ] {
        assert!(table.contains(part), "no {part} in:\n{table}");
    }

    let shown: Vec<VipView> = lb.cli_json(&["vips"])?;
    assert_eq!(shown.len(), 4);
    for vip in &shown {
        assert_eq!((vip.ready, vip.backends, vip.shared_by, vip.port), (3, 3, 4, 80));
        if vip.protocol == "udp" {
            // 16 bytes of payload behind UDP and IP headers.
            let header = if vip.address.is_ipv4() { 28 } else { 48 };
            assert_eq!((vip.packets, vip.bytes), (50, 50 * (16 + header)), "{vip:?}");
        }
    }
    let table = lb.cli(&["vips"])?;
    for part in ["tcp 203.0.113.1:80", "udp [2001:db8:f00d::1]:80", "3/3"] {
        assert!(table.contains(part), "no {part} in:\n{table}");
    }

    let shown: Vec<BackendView> = lb.cli_json(&["backends"])?;
    assert_eq!(
        shown.iter().map(|view| view.name.as_str()).collect::<Vec<_>>(),
        ["worker-1", "worker-2", "worker-3"]
    );
    let gateway = "02:1b:14:01:00:01";
    let (mut slots, mut packets) = (0, 0);
    for view in &shown {
        let NextHopKind::Via {
            interface,
            mac,
            source,
            mtu,
        } = &view.next_hop
        else {
            panic!("{view:?}")
        };
        assert_eq!((interface.as_str(), mac.as_str(), *mtu), ("eth0", gateway, 1600));
        assert_eq!(*source, IpAddr::from(bed.topology.lb(0).addr_v4()));
        let [
            SetView {
                vips: 4,
                weight: 100,
                slots: own,
                of,
            },
        ] = view.sets[..]
        else {
            panic!("{view:?}")
        };
        assert!((own as f64 / of as f64 - 1.0 / 3.0).abs() < 0.02, "{view:?}");
        slots += own;
        packets += view.packets;
        assert_eq!(slots > 0, view.packets > 0);
    }
    assert_eq!(slots, shown[0].sets[0].of, "every slot has a backend");
    let table = lb.cli(&["backends"])?;
    for part in ["worker-3", "10.30.3.2", gateway, "% of 4 VIPs"] {
        assert!(table.contains(part), "no {part} in:\n{table}");
    }

    let shown: Vec<CounterView> = lb.cli_json(&["counters", "--all"])?;
    assert!(
        shown
            .iter()
            .any(|view| (view.reason.as_str(), view.packets) == ("tx", packets)),
        "{shown:?}"
    );
    assert!(
        shown.iter().any(|view| view.reason == "internal" && view.packets == 0),
        "{shown:?}"
    );
    let table = lb.cli(&["counters"])?;
    assert!(table.contains("forward") && !table.contains("internal"), "{table}");
    Ok(())
}

#[test]
fn top_shows_rates_of_what_goes_on() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::simple(2, &vips())?;
    let load = lab::Load::start(bed.topology.client(), vip_v4(1, 80), lab::LoadKind::DatagramFlow, 2)?;
    load.wait_for(20, lab_support::PATIENCE)?;
    let text = bed.lb().cli(&["top", "-n", "2", "--interval", "0.5", "-o", "json"])?;
    let looks: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(looks.len(), 2, "a line of JSON a look: {text}");
    for look in &looks {
        let vips = look["vips"].as_array().context("vips")?;
        assert_eq!(vips.len(), 1, "only what moves: {look}");
        assert_eq!(vips[0]["name"], "udp 203.0.113.1:80");
        let rate = vips[0]["packets_per_second"].as_f64().context("a rate")?;
        assert!(rate > 10.0, "{look}");
        let seconds = look["seconds"].as_f64().context("seconds")?;
        assert!((0.5..5.0).contains(&seconds), "{look}");
    }
    let table = bed.lb().cli(&["top", "-n", "1", "--interval", "0.2"])?;
    for part in ["udp 203.0.113.1:80", "worker-", "forward tx", "PACKETS/s"] {
        assert!(table.contains(part), "no {part} in:\n{table}");
    }
    assert!(!table.contains('\x1b'), "a pipe is no terminal");
    Ok(())
}

#[test]
fn a_workers_agent_answers_what_it_can_and_refuses_the_rest() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::simple(1, &vips())?;
    bed.topology.client().udp_get(vip_v4(1, 80), 30)?;
    let agent = &bed.nodes[0];
    let status: StatusView = agent.cli_json(&["status"])?;
    assert_eq!((status.role, status.pid), (Role::Node, agent.pid()));
    assert!(agent.cli(&["status"])?.contains("worker node"));
    let counters: Vec<CounterView> = agent.cli_json(&["counters"])?;
    assert!(
        counters
            .iter()
            .any(|view| (view.reason.as_str(), view.packets) == ("decapsulated", 30)),
        "{counters:?}"
    );
    for command in [
        &["vips"][..],
        &["backends"],
        &["explain", "tcp", "10.0.0.1:1", "203.0.113.1:80"],
        &["top"],
    ] {
        let error = agent.cli(command).expect_err("refused").to_string();
        assert!(error.contains("ask an LB node"), "{command:?}: {error}");
    }
    Ok(())
}

#[test]
fn clients_that_say_nothing_or_nonsense_keep_nobody_waiting_for_long() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let daemon = Daemon::node(topology.worker(0), &NodeFile::new(&topology))?;
    // More than it serves at a time.
    let silent = (0..40)
        .map(|_| Ok(UnixStream::connect(daemon.socket())?))
        .collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    eventually("a client is answered all the same", || Ok(daemon.status().is_ok()))?;
    println!("answered after {:?} behind 40 that say nothing", start.elapsed());
    drop(silent);

    for nonsense in [
        "\n",
        "{}\n",
        "status\n",
        "{\"ask\":\"everything\"}\n",
        "{\"ask\":\"status\",\"more\":1}\n",
        &"x".repeat(100_000),
    ] {
        let mut stream = UnixStream::connect(daemon.socket())?;
        // It may hang up before it has heard all of it.
        let _ = stream.write_all(nonsense.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(
            answer.is_empty() || answer.contains("error"),
            "{nonsense:.20}: {answer}"
        );
        daemon.status()?;
    }
    Ok(())
}
