//! Traffic on the way that BGP made: over a restart of the daemon, with graceful restart and without, and over the death of one of two
//! LB nodes. Routes that the bench made itself are blackholes here.

use std::{
    net::{IpAddr, SocketAddr},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Load, LoadKind, LoadReport, Pace, Proto, Stream, StreamReport, Topology, require_root,
    routers::{Family, Neighbour, Router, RouterKind},
};
use lb::control::NodeDrainView;
use nix::sys::signal::Signal;

use super::{
    lab_support::{Bed, LbFile, PATIENCE, eventually, vip_v4, vipline},
    site::{bgp, learned, neighbour, peer, router_config, router_v4, up},
};

const PACE: Pace = Pace {
    per_second: 20_000,
    under_way: 64,
};
/// How long no daemon runs.
const GAP: Duration = Duration::from_millis(500);
pub(crate) const PREFIXES: [&str; 2] = ["203.0.113.1/32", "203.0.113.2/32"];

pub(crate) fn vip() -> SocketAddr {
    vip_v4(1, 80)
}

pub(crate) fn streamed() -> SocketAddr {
    vip_v4(2, 9000)
}

/// LB nodes that announce to a router, which forwards by that alone.
fn bed(kind: RouterKind, lbs: u8, more: &str, each: &str, hold_s: u16) -> Result<(Bed, Router)> {
    let topology = Topology::builder().workers(2).lbs(lbs).build()?;
    let bed = Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb)
            .vips(&[(Proto::Tcp, vip()), (Proto::Udp, streamed())], "v4")
            .more(&bgp(more, &[peer("tor", router_v4(lb), each)]))
    })?;
    let router_ns = bed.topology.router().ns();
    router_ns.ip(&["route", "replace", "blackhole", "203.0.113.0/24"])?;
    let mut config = router_config();
    for lb in bed.topology.lbs() {
        config = config.neighbour(Neighbour {
            graceful_restart: true,
            hold_time: hold_s,
            ..neighbour(lb.addr_v4().into())
        });
    }
    let router = config.start(router_ns, kind)?;
    for (node, lb) in bed.topology.lbs().iter().zip(&bed.lbs) {
        up(lb, "tor", 2)?;
        learned(&router, Family::V4, node.addr_v4().into(), &PREFIXES)?;
    }
    eventually("the kernel forwards by BGP", || {
        Ok(ways(&router, vip())?.len() == usize::from(lbs))
    })?;
    Ok((bed, router))
}

/// Next hops of a VIP in the router's kernel.
pub(crate) fn ways(router: &Router, vip: SocketAddr) -> Result<Vec<IpAddr>> {
    let routes = router.kernel_routes(Family::V4)?;
    Ok(routes.get(&vip.ip().into()).into_iter().flatten().copied().collect())
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stream: StreamReport,
    pub(crate) open: LoadReport,
    pub(crate) new: LoadReport,
}

pub(crate) fn under_load(what: &str, bed: &mut Bed, event: impl FnOnce(&mut Bed) -> Result<()>) -> Result<Outcome> {
    let client = bed.topology.client().with_timeout(Duration::from_secs(8));
    let open = Load::start(&client, vip(), LoadKind::KeepAlive, 8)?;
    let new = Load::start(&client, vip(), LoadKind::NewConnections, 2)?;
    open.wait_for(50, PATIENCE)?;
    let stream = Stream::start(&bed.topology, streamed(), PACE)?;
    sleep(Duration::from_millis(300));
    event(bed)?;
    sleep(Duration::from_millis(300));
    let outcome = Outcome {
        stream: stream.stop()?,
        open: open.stop()?,
        new: new.stop()?,
    };
    println!(
        "{what}: {}; connections: {} requests on open ones, {} broken, {} moved; {} new ones, {} failed",
        outcome.stream, outcome.open.ok, outcome.open.failed, outcome.open.moved, outcome.new.ok, outcome.new.failed,
    );
    Ok(outcome)
}

/// The daemon ends and begins again after a while; the session is up again after that.
fn restart(bed: &mut Bed, signal: Signal) -> Result<()> {
    bed.lbs[0].end(signal)?;
    sleep(GAP);
    bed.lbs[0].start_again()?;
    up(bed.lb(), "tor", 2)
}

fn restart_gracefully(kind: RouterKind) -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (mut bed, router) = bed(kind, 1, "  graceful_restart: {}\n", "", 90)?;
    let lb: IpAddr = bed.topology.lb(0).addr_v4().into();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let outcome = under_load(&format!("{signal} beside {kind}"), &mut bed, |bed| restart(bed, signal))?;
        assert!(outcome.stream.sent > 1_000, "{outcome:?}");
        assert_eq!(outcome.stream.lost(), 0, "{outcome:?}");
        assert_eq!((outcome.open.failed, outcome.new.failed), (0, 0), "{outcome:?}");
        // What was kept is fresh again: nothing goes when the restart time is over.
        learned(&router, Family::V4, lb, &PREFIXES)?;
    }
    Ok(())
}

#[test]
fn graceful_restart_with_bird_keeps_traffic_over_a_restart_and_a_kill() -> Result<()> {
    restart_gracefully(RouterKind::Bird)
}

#[test]
fn graceful_restart_with_frr_keeps_traffic_over_a_restart_and_a_kill() -> Result<()> {
    restart_gracefully(RouterKind::Frr)
}

#[test]
fn without_graceful_restart_a_restart_loses_traffic() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (mut bed, router) = bed(RouterKind::Bird, 1, "", "", 90)?;
    let outcome = under_load("no graceful restart", &mut bed, |bed| restart(bed, Signal::SIGTERM))?;
    assert!(outcome.stream.lost() > 0, "{outcome:?}");
    let lb: IpAddr = bed.topology.lb(0).addr_v4().into();
    learned(&router, Family::V4, lb, &PREFIXES)?;
    Ok(())
}

#[test]
fn one_of_two_lb_nodes_dies_and_the_other_takes_its_connections() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (mut bed, router) = bed(RouterKind::Bird, 2, "  graceful_restart: {}\n", ", hold_time_s: 3", 3)?;
    // What dies is the node, so nothing of it may go on; and no router may be told to keep routes to it.
    bed.unpin()?;
    for lb in &bed.lbs {
        up(lb, "tor", 2)?;
    }
    let left: Vec<IpAddr> = vec![bed.topology.lb(0).addr_v4().into()];
    let both = |router: &Router| Ok(ways(router, vip())?.len() == 2);
    for (what, is_silent) in [
        ("an LB node dies and its kernel says so", false),
        ("an LB node dies silently", true),
    ] {
        eventually("both LB nodes are ways", || both(&router))?;
        let ns = bed.topology.lb(1).ns().clone();
        if is_silent {
            // Nothing that its kernel would say for the dead daemon gets out.
            ns.nft(
                "table inet dead {\n chain out {\n  type filter hook output priority 0; policy accept;\n  \
                 tcp sport 179 drop\n  tcp dport 179 drop\n }\n}",
            )?;
        }
        let mut noticed = Duration::ZERO;
        let outcome = under_load(what, &mut bed, |bed| {
            let start = Instant::now();
            bed.lbs[1].end(Signal::SIGKILL)?;
            eventually("the other one is the only way", || Ok(ways(&router, vip())? == left))?;
            noticed = start.elapsed();
            Ok(())
        })?;
        println!("{what}: the router goes without it after {noticed:?}");
        assert_eq!((outcome.open.failed, outcome.open.moved), (0, 0), "{outcome:?}");
        assert!(outcome.open.ok > 50 && outcome.new.ok > 50, "{outcome:?}");
        if is_silent {
            // The hold time, which is three seconds.
            assert!(noticed > Duration::from_secs(1), "{noticed:?}");
            ns.nft("delete table inet dead")?;
        }
        bed.lbs[1].start_again()?;
        up(&bed.lbs[1], "tor", 2)?;
    }
    Ok(())
}

/// Nothing that a node's kernel would say of BGP gets out.
const MUTE: &str = "table inet mute {\n chain out {\n  type filter hook output priority 0; policy accept;\n  tcp sport 179 drop\n  \
                    tcp dport 179 drop\n }\n}";

/// What ends of an LB node, and how.
type Ends = fn(&mut Bed) -> Result<()>;

#[test]
fn an_lb_node_that_is_drained_or_stops_under_load_loses_nothing_and_breaks_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (mut bed, router) = bed(RouterKind::Bird, 2, "", "", 90)?;
    // What ends is the node: nothing of it goes on.
    bed.unpin()?;
    let left: Vec<IpAddr> = vec![bed.topology.lb(0).addr_v4().into()];
    let both = |router: &Router| Ok(ways(router, vip())?.len() == 2);
    let back = |bed: &mut Bed| -> Result<()> {
        bed.lbs[1].start_again()?;
        up(&bed.lbs[1], "tor", 2)
    };
    for lb in &bed.lbs {
        up(lb, "tor", 2)?;
    }
    let drained: Ends = |bed| {
        let said = bed.lbs[1].cli(&["drain", "node"])?;
        ensure!(said.contains("nothing comes any more"), "{said}");
        bed.lbs[1].end(Signal::SIGTERM)?;
        Ok(())
    };
    let stopped: Ends = |bed| bed.lbs[1].end(Signal::SIGTERM).map(drop);
    let dies: Ends = |bed| {
        // Its kernel would close the session, and the router might be quicker than the next packet.
        let ns = bed.topology.lb(1).ns().clone();
        ns.nft(MUTE)?;
        bed.lbs[1].end(Signal::SIGKILL)?;
        sleep(Duration::from_millis(300));
        ns.nft("delete table inet mute")?;
        bed.lbs[1].start_again()?;
        up(&bed.lbs[1], "tor", 2)
    };
    for (what, ends, is_orderly) in [
        ("an LB node is drained", drained, true),
        ("an LB node is stopped", stopped, true),
        // The twin: packets go to it, for nobody knows.
        ("an LB node dies", dies, false),
    ] {
        eventually("both LB nodes are ways", || both(&router))?;
        let outcome = under_load(what, &mut bed, |bed| {
            let start = Instant::now();
            ends(bed)?;
            println!("{what}: done after {:?}", start.elapsed());
            if is_orderly {
                eventually("the other one is the only way", || Ok(ways(&router, vip())? == left))?;
            }
            Ok(())
        })?;
        assert!(outcome.stream.sent > 1_000 && outcome.open.ok > 50, "{outcome:?}");
        if is_orderly {
            assert_eq!(outcome.stream.lost(), 0, "{outcome:?}");
            let broken = (outcome.open.failed, outcome.open.moved, outcome.new.failed);
            assert_eq!(broken, (0, 0, 0), "{outcome:?}");
        } else {
            assert!(outcome.stream.lost() > 0, "{outcome:?}");
        }
        if what.ends_with("drained") {
            // It was drained, and is.
            bed.lbs[1].start_again()?;
            up(&bed.lbs[1], "tor", 0)?;
            assert_eq!(ways(&router, vip())?, left);
            let status = bed.lbs[1].cli(&["status"])?;
            assert!(status.contains("drain      "), "{status}");
            let vips = bed.lbs[1].cli(&["vips"])?;
            assert!(vips.contains("drained"), "{vips}");
            bed.lbs[1].cli(&["drain", "node", "--undo"])?;
            up(&bed.lbs[1], "tor", 2)?;
        } else if is_orderly {
            back(&mut bed)?;
        }
    }
    Ok(())
}

#[test]
fn a_drain_of_the_only_way_says_that_packets_still_come() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (bed, router) = bed(RouterKind::Bird, 1, "", "", 90)?;
    let lb: IpAddr = bed.topology.lb(0).addr_v4().into();
    // A route that is not Vipline's.
    let more = format!("route replace 203.0.113.2/32 via {lb}");
    bed.topology.router().ns().ip(&more.split(' ').collect::<Vec<_>>())?;
    let stream = Stream::start(&bed.topology, streamed(), PACE)?;
    let socket = bed.lb().socket();
    let socket = socket.to_str().context("a path")?;
    let said = vipline(&["drain", "node", "--deadline", "4s", "-o", "json", "--socket", socket])?;
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let view: NodeDrainView = serde_json::from_slice(&said.stdout)?;
    assert!(view.left && !view.quiet && view.packets_per_second > 100, "{view:?}");
    learned(&router, Family::V4, lb, &[])?;
    let report = stream.stop()?;
    assert_eq!(report.lost(), 0, "what still comes is forwarded: {report}");
    bed.lbs[0].cli(&["drain", "node", "--undo"])?;
    up(bed.lb(), "tor", 2)
}
