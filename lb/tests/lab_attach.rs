//! The LB daemon's life: how it attaches, whom it gives way to, what it leaves behind however it ends, and what a restart costs.

mod lab_support;

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::{LinkKind, Load, LoadKind, Netns, Proto, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, NodeFile, PATIENCE, SEED, eventually, vip_v4};
use lb::datapath::{Holder, Mode, holders};
use nix::sys::signal::Signal;

const TCP: Proto = Proto::Tcp;

fn vip() -> SocketAddr {
    vip_v4(1, 80)
}

fn at_hook(ns: &Netns, interface: &str) -> Result<Vec<Holder>> {
    ns.run(|| Ok(holders(interface)?))
}

/// Starts `vipline run`, which must end by itself with exit code 1; what it says.
fn refused(topology: &Topology, file: &LbFile) -> Result<String> {
    let mut daemon = Daemon::spawn("run", topology.lb(0), |socket| file.yaml(socket))?;
    let status = daemon.wait()?;
    assert_eq!(status.code(), Some(1), "{}", daemon.log()?);
    assert!(!daemon.socket().exists(), "no control socket stays");
    daemon.log()
}

#[test]
fn with_nothing_pinned_a_stop_detaches_and_takes_the_socket_and_the_rules_away() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // An LB node that is a worker too, so that there are rules.
    let topology = Topology::builder().workers(1).lb_pods().two_interfaces().build()?;
    let mut bed = Bed::start(topology, |topology, lb| {
        let mut file = LbFile::new(topology, lb).vips(&[(TCP, vip())], "v4");
        file.members("v4").push(("lb-1".to_owned(), lb.addr_v4().into(), 100));
        file.more("tunnel: { sources: [10.20.2.2], vip_prefixes: [203.0.113.0/24, \"2001:db8:f00d::/64\"] }")
    })?;
    bed.unpin()?;
    let ns = bed.topology.lb(0).ns().clone();
    let rules = || Ok::<_, anyhow::Error>(ns.sh("ip -4 rule")? + &ns.sh("ip -6 rule")?);
    for (signal, name) in [(Signal::SIGTERM, "SIGTERM"), (Signal::SIGINT, "SIGINT")] {
        bed.topology.client().http_get(vip(), 10)?;
        for interface in ["eth0", "eth1"] {
            let holders = at_hook(&ns, interface)?;
            assert_eq!(holders.len(), 1, "{interface}");
            assert_eq!(
                (holders[0].name.as_str(), holders[0].mode),
                ("vipline_lb", Mode::Native)
            );
        }
        assert!(rules()?.contains("blackhole"), "{}", rules()?);
        let modes = fs::metadata(bed.lb().socket())?;
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&modes.permissions()) & 0o777,
            0o600
        );

        assert!(bed.lbs[0].end(signal)?.success());
        assert_eq!((at_hook(&ns, "eth0")?, at_hook(&ns, "eth1")?), (vec![], vec![]));
        assert!(!rules()?.contains("blackhole"), "{}", rules()?);
        assert!(!bed.lb().socket().exists());
        assert!(bed.lb().log()?.contains(name), "{}", bed.lb().log()?);
        bed.lbs[0].start_again()?;
    }
    Ok(())
}

#[test]
fn with_nothing_pinned_a_killed_daemon_leaves_no_program_and_the_next_one_starts() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::simple(2, &[(TCP, vip())])?;
    bed.unpin()?;
    let ns = bed.topology.lb(0).ns().clone();
    bed.lbs[0].end(Signal::SIGKILL)?;
    eventually("the kernel takes the program away", || {
        Ok(at_hook(&ns, "eth0")?.is_empty())
    })?;
    assert!(
        bed.lb().socket().exists(),
        "nobody removed the socket: it is in the way of the next one"
    );
    let client = bed.topology.client().with_timeout(Duration::from_millis(200));
    assert!(
        client.http_get(vip(), 1).is_err(),
        "the control: without the daemon nothing is served"
    );

    bed.lbs[0].start_again()?;
    bed.topology.client().http_get(vip(), 20)?;
    assert_eq!(at_hook(&ns, "eth0")?.len(), 1);
    Ok(())
}

#[test]
fn a_second_daemon_is_refused_and_the_first_one_serves_on() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::simple(2, &[(TCP, vip())])?;
    let load = Load::start(bed.topology.client(), vip(), LoadKind::NewConnections, 2)?;
    load.wait_for(20, PATIENCE)?;
    let said = refused(&bed.topology, &bed.file())?;
    assert!(
        said.contains("eth0") && said.contains("XDP program vipline_lb"),
        "{said}"
    );

    // On the same control socket it does not even get that far, and leaves the socket alone.
    let socket = bed.lb().socket();
    let mut second = Daemon::spawn("run", bed.topology.lb(0), |_| bed.file().yaml(&socket))?;
    assert_eq!(second.wait()?.code(), Some(1));
    assert!(
        second.log()?.contains("another vipline answers there"),
        "{}",
        second.log()?
    );
    assert_eq!(bed.lb().status()?.pid, bed.lb().pid());

    // A worker's agent gives way alike, and takes nothing of the first one's away.
    let worker = bed.topology.worker(0);
    let rules = || Ok::<_, anyhow::Error>(worker.ns().sh("ip -4 rule")? + &worker.ns().sh("ip -6 rule")?);
    let before = rules()?;
    assert_eq!(before.matches("blackhole").count(), 2, "{before}");
    let mut node_file = NodeFile::new(&bed.topology);
    node_file.vip_prefixes = vec!["198.18.0.0/24".to_owned()];
    let mut second = Daemon::spawn("node", worker, |socket| node_file.yaml(socket))?;
    assert_eq!(second.wait()?.code(), Some(1));
    assert!(second.log()?.contains("XDP program vipline_decap"), "{}", second.log()?);
    assert_eq!(rules()?, before);

    load.wait_for(20, PATIENCE)?;
    let report = load.stop()?;
    assert_eq!(report.failed, 0, "{:?}", report.errors);
    Ok(())
}

#[test]
fn another_xdp_program_is_left_in_peace_and_named() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).two_interfaces().build()?;
    let ns = topology.lb(0).ns();
    let stranger = lab::program::pass(ns, &["eth1"])?;
    let there = at_hook(ns, "eth1")?;
    let file = LbFile::new(&topology, topology.lb(0)).vips(&[(TCP, vip())], "v4");
    let said = refused(&topology, &file)?;
    assert!(said.contains("eth1") && said.contains(&there[0].to_string()), "{said}");
    assert_eq!(at_hook(ns, "eth1")?, there, "it is still there");
    assert_eq!(at_hook(ns, "eth0")?, [], "and what was attached before is not");

    drop(stranger);
    let daemon = Daemon::lb(topology.lb(0), &file)?;
    assert_eq!(daemon.status()?.interfaces.len(), 2);
    Ok(())
}

#[test]
fn an_interface_that_is_not_there_is_a_clear_word() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let mut file = LbFile::new(&topology, topology.lb(0)).vips(&[(TCP, vip())], "v4");
    file.interfaces.push("eth7".to_owned());
    let said = refused(&topology, &file)?;
    assert!(said.contains("eth7"), "{said}");
    assert_eq!(at_hook(topology.lb(0).ns(), "eth0")?, []);
    Ok(())
}

#[test]
fn generic_mode_serves_when_it_is_asked_for_and_is_said_loudly() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mode = |mode: &'static str| {
        move |topology: &Topology, lb: &lab::Node| {
            let mut file = LbFile::new(topology, lb).vips(&[(TCP, vip())], "v4");
            file.interfaces = vec![format!("{{ name: eth0, mode: {mode} }}")];
            file
        }
    };
    let bed = Bed::start(Topology::builder().workers(2).build()?, mode("generic"))?;
    let interfaces = bed.lb().status()?.interfaces;
    assert_eq!(
        (interfaces[0].mode.as_str(), interfaces[0].native_refused.as_deref()),
        ("generic", None)
    );
    assert_eq!(at_hook(bed.topology.lb(0).ns(), "eth0")?[0].mode, Mode::Generic);
    assert!(bed.lb().log()?.contains("generic"), "{}", bed.lb().log()?);
    for reply in bed.topology.client().http_get(vip(), 50)? {
        assert_eq!(reply.client_seen, reply.local_addr);
    }
    assert!(bed.lb().counted()?.of("forward tx") > 50 * 4);
    assert_eq!(bed.topology.router().counters()?.from(LinkKind::Lb).replies.packets, 0);
    Ok(())
}

#[test]
fn where_the_driver_refuses_native_mode_generic_stands_in_or_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // veth refuses XDP when it has fewer receive queues than its peer has to send.
    let topology = Topology::builder().workers(1).queues(2).build()?;
    topology.lb(0).ns().sh("ethtool -L eth0 rx 1")?;
    let mut file = LbFile::new(&topology, topology.lb(0)).vips(&[(TCP, vip())], "v4");
    file.interfaces = vec!["{ name: eth0, mode: native }".to_owned()];
    let said = refused(&topology, &file)?;
    assert!(said.contains("eth0") && said.contains("native"), "{said}");

    let bed = Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb).vips(&[(TCP, vip())], "v4")
    })?;
    let interface = &bed.lb().status()?.interfaces[0];
    assert_eq!(interface.mode, "generic");
    assert!(interface.native_refused.is_some());
    assert!(bed.lb().log()?.contains("GENERIC"), "{}", bed.lb().log()?);
    assert!(
        bed.lb().cli(&["status"])?.contains("SLOW"),
        "{}",
        bed.lb().cli(&["status"])?
    );
    bed.topology.client().http_get(vip(), 20)?;
    Ok(())
}

/// What a restart did to connections that were open.
struct Restarted {
    broken: u64,
    moved: u64,
    /// From the end of one process until the next one served.
    gap: Duration,
    /// Longest time without an answer on any connection.
    silence: Duration,
}

/// Keeps connections busy while the daemon, whose data plane ends with it, is ended by `signal` and started again with `seed`.
fn restart(signal: Option<Signal>, seed: &str) -> Result<Restarted> {
    let mut bed = Bed::start(Topology::builder().build()?, |topology, lb| {
        LbFile::new(topology, lb).vips(&[(TCP, vip())], "v4")
    })?;
    bed.unpin()?;
    let client = bed.topology.client().with_timeout(Duration::from_secs(8));
    let load = Load::start(&client, vip(), LoadKind::KeepAlive, 12)?;
    load.wait_for(200, PATIENCE)?;
    let start = Instant::now();
    if let Some(signal) = signal {
        bed.lbs[0].end(signal)?;
        let yaml = bed.file().yaml(&bed.lb().socket()).replace(SEED, seed);
        bed.lb().write(&yaml)?;
        bed.lbs[0].start_again()?;
    }
    let gap = start.elapsed();
    load.wait_for(1, PATIENCE)?;
    let silence = start.elapsed();
    load.wait_for(500, PATIENCE)?;
    // Ends when every connection has had its answer, or has waited for it in vain.
    let report = load.stop()?;
    Ok(Restarted {
        broken: report.failed,
        moved: report.moved,
        gap,
        silence,
    })
}

#[test]
fn open_connections_outlive_a_restart_because_tables_are_the_same_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let control = restart(None, SEED)?;
    assert_eq!((control.broken, control.moved), (0, 0), "the control: nothing happens");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let Restarted {
            broken,
            moved,
            gap,
            silence,
        } = restart(Some(signal), SEED)?;
        println!(
            "{signal}: 12 connections, {broken} broken, {moved} moved; down {gap:?}, first answer after {silence:?}"
        );
        assert_eq!((broken, moved), (0, 0), "{signal}");
    }
    Ok(())
}

#[test]
fn with_another_seed_a_restart_breaks_connections() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // The twin of the test above: tables that are not the same again.
    let other = SEED.chars().rev().collect::<String>();
    let Restarted { broken, .. } = restart(Some(Signal::SIGTERM), &other)?;
    println!("another seed: {broken} of 12 connections broken");
    assert!(broken > 0);
    Ok(())
}

#[test]
fn an_interface_that_is_deleted_is_said_to_be_gone() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).two_interfaces().build()?;
    let mut bed = Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb).vips(&[(TCP, vip())], "v4")
    })?;
    let mode = |bed: &mut Bed, index: usize| Ok::<_, anyhow::Error>(bed.lb().status()?.interfaces[index].mode.clone());
    assert_eq!(mode(&mut bed, 1)?, "native");
    bed.topology.lb(0).ns().sh("ip link del eth1")?;
    assert_eq!(mode(&mut bed, 1)?, "gone");
    assert_eq!(mode(&mut bed, 0)?, "native", "the other one goes on");
    Ok(())
}

#[test]
fn a_reload_that_does_not_fit_puts_the_rules_back() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let tunnel = "tunnel: { sources: [10.20.2.2], vip_prefixes: [203.0.113.0/24] }";
    let bed = Bed::start(topology, |topology, lb| {
        let mut file = LbFile::new(topology, lb).vips(&[(TCP, vip())], "v4");
        // All backends of both files: with no next hop changing, nothing but the refusal itself can put the rules back.
        let others = (1001..1010).map(|port| (format!("p{port}"), [10, 99, 0, (port - 1000) as u8].into(), 1));
        file.members("v4").extend(others);
        file.more("capacity: { table_segments: 1 }").more(tunnel)
    })?;
    let ns = bed.topology.lb(0).ns();
    let before = ns.sh("ip rule")?;
    assert!(before.contains("203.0.113.0/24"), "{before}");
    // A good file for another prefix, but one segment holds seven of the largest tables, and these are nine.
    let address = bed.topology.worker(0).addr_v4();
    let mut yaml = fs::read_to_string(bed.lb().config())?.replace("203.0.113.0/24", "198.18.0.0/24");
    yaml = yaml.replace("vips:\n", &{
        let mut vips = "vips:\n".to_owned();
        for port in 1001..1010 {
            let set = format!(
                "[{{ name: worker-1, address: {address}, weight: {port} }}, {{ name: p{port}, address: 10.99.0.{} }}]",
                port - 1000
            );
            vips += &format!(
                "  - {{ address: 203.0.113.1, protocol: tcp, port: {port}, table_slots: 65536, backends: {set} }}\n"
            );
        }
        vips
    });
    let refused = bed.lb().reload(&yaml).unwrap_err().to_string();
    assert!(refused.contains("no room for a lookup table"), "{refused}");
    assert_eq!(ns.sh("ip rule")?, before);
    Ok(())
}
