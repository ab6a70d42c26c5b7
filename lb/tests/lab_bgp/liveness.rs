//! BGP with BFD: whoever dies without a word is left within the detection time, on both sides. Nothing that a dead daemon's kernel would
//! say for it gets out, so that only silence tells.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Netns, Proto, Topology, require_root,
    routers::{BfdState, BfdTimers, Family, Neighbour, Router, RouterKind, SessionState},
};
use lb::control::BfdPeerView;
use nix::sys::signal::Signal;

use super::{
    lab_support::{Bed, Daemon, LbFile, eventually},
    site::{bgp, learned, neighbour, peer, peer_view, router_config, router_v4, up},
    traffic::{PREFIXES, streamed, under_load, vip, ways},
};

const BFD: &str = ", bfd: { min_tx_ms: 50, min_rx_ms: 50 }";
const TIMERS: BfdTimers = BfdTimers {
    min_tx_ms: 50,
    min_rx_ms: 50,
    multiplier: 3,
};
/// Three packets of 50 ms.
const DETECTION: Duration = Duration::from_millis(150);
/// What the machine may add before it runs us, when it is busy: what is measured is printed, and judged here only roughly.
const SLACK: Duration = Duration::from_millis(1000);
/// Routers that have BFD.
const KINDS: [RouterKind; 2] = [RouterKind::Bird, RouterKind::Frr];

/// LB nodes whose file has `more` of BGP and `each` of the peer, and a router that watches them, which forwards by BGP alone.
fn bed(lbs: u8, kind: RouterKind, more: &str, each: &str) -> Result<(Bed, Router)> {
    let topology = Topology::builder().workers(2).lbs(lbs).build()?;
    let bed = Bed::start(topology, |topology, lb| file(topology, lb, more, each))?;
    let router_ns = bed.topology.router().ns();
    router_ns.ip(&["route", "replace", "blackhole", "203.0.113.0/24"])?;
    let mut config = router_config();
    for lb in bed.topology.lbs() {
        config = config.neighbour(Neighbour {
            families: vec![Family::V4],
            graceful_restart: !more.is_empty(),
            bfd: Some(TIMERS),
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

fn file(topology: &Topology, lb: &lab::Node, more: &str, each: &str) -> LbFile {
    LbFile::new(topology, lb)
        .vips(&[(Proto::Tcp, vip()), (Proto::Udp, streamed())], "v4")
        .more(&bgp(more, &[peer("tor", router_v4(lb), each)]))
}

fn bfd(lb: &Daemon) -> Result<BfdPeerView> {
    peer_view(lb, "tor")?.bfd.context("BFD is asked for")
}

/// Waits until both sides' BFD is up.
fn watched(bed: &Bed, router: &Router) -> Result<()> {
    for (node, lb) in bed.topology.lbs().iter().zip(&bed.lbs) {
        eventually("BFD is up here", || Ok(bfd(lb)?.up))?;
        eventually("BFD is up there", || {
            let session = router.bfd_sessions()?.remove(&node.addr_v4().into());
            Ok(session.is_some_and(|session| session.state == BfdState::Up))
        })?;
    }
    Ok(())
}

/// From now on nothing of BGP leaves the namespace: no FIN, no RST.
fn mute(ns: &Netns) -> Result<()> {
    ns.nft(
        "table inet mute {\n chain out {\n  type filter hook output priority 0; policy accept;\n  \
         tcp sport 179 drop\n  tcp dport 179 drop\n }\n}",
    )
}

fn unmute(ns: &Netns) -> Result<()> {
    ns.nft("delete table inet mute")
}

#[test]
fn an_lb_node_that_dies_silently_is_left_at_once_under_load() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let (mut bed, router) = bed(2, kind, "", BFD)?;
        // What dies is the node, so nothing of it may go on.
        bed.unpin()?;
        for lb in &bed.lbs {
            up(lb, "tor", 2)?;
        }
        watched(&bed, &router)?;
        eventually("both LB nodes are ways", || Ok(ways(&router, vip())?.len() == 2))?;
        let left: Vec<IpAddr> = vec![bed.topology.lb(0).addr_v4().into()];
        mute(bed.topology.lb(1).ns())?;
        let mut noticed = Duration::ZERO;
        let outcome = under_load(
            &format!("{kind}, BFD 3 x 50 ms, an LB node dies silently"),
            &mut bed,
            |bed| {
                let start = Instant::now();
                bed.lbs[1].end(Signal::SIGKILL)?;
                eventually("the other one is the only way", || Ok(ways(&router, vip())? == left))?;
                noticed = start.elapsed();
                Ok(())
            },
        )?;
        println!("{kind}: the router goes without it after {} ms", noticed.as_millis());
        assert!(noticed < DETECTION + SLACK, "{noticed:?}");
        assert_eq!((outcome.open.failed, outcome.open.moved), (0, 0), "{outcome:?}");
        assert!(outcome.open.ok > 50 && outcome.new.ok > 50, "{outcome:?}");
        unmute(bed.topology.lb(1).ns())?;
        bed.lbs[1].start_again()?;
        up(&bed.lbs[1], "tor", 2)?;
        eventually("both LB nodes are ways again", || Ok(ways(&router, vip())?.len() == 2))?;
    }
    Ok(())
}

#[test]
fn a_router_that_dies_silently_is_left_at_once_and_spoken_to_when_bfd_finds_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let (bed, mut router) = bed(1, kind, "", BFD)?;
        watched(&bed, &router)?;
        let router_ns = bed.topology.router().ns();
        mute(router_ns)?;
        let start = Instant::now();
        router.kill()?;
        eventually("the session is down", || Ok(!peer_view(bed.lb(), "tor")?.up))?;
        let took = start.elapsed();
        println!(
            "{kind}: kill -9 of the router, its session is down here after {} ms",
            took.as_millis()
        );
        assert!(took < DETECTION + SLACK, "{took:?}");
        let peer = peer_view(bed.lb(), "tor")?;
        assert_eq!(peer.last_error.map(|error| error.kind).as_deref(), Some("bfd"));
        let bfd_now = bfd(bed.lb())?;
        assert!(bfd_now.holds_bgp && !bfd_now.up, "{bfd_now:?}");
        assert_eq!(bfd_now.cause.as_deref(), Some("detection_time_expired"));
        assert!(
            bed.lb().cli(&["bgp"])?.contains("BGP waits for BFD"),
            "{}",
            bed.lb().cli(&["bgp"])?
        );

        unmute(router_ns)?;
        router.start()?;
        // FRR's bgpd asks bfdd for the session a second time when it knows its own address, which ends the first one.
        let back = eventually("both are up again, and each loss has ended one session", || {
            let (peer, bfd) = (peer_view(bed.lb(), "tor")?, bfd(bed.lb())?);
            Ok(peer.up && bfd.up && !bfd.holds_bgp && peer.flaps == bfd.downs)
        });
        back.map(drop)
            .with_context(|| format!("{:?}", peer_view(bed.lb(), "tor")))?;
    }
    Ok(())
}

/// The twin: without BFD the same death is not noticed for a long time.
#[test]
fn without_bfd_silence_is_not_noticed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (bed, mut router) = bed(1, RouterKind::Bird, "", "")?;
    assert_eq!(peer_view(bed.lb(), "tor")?.bfd, None);
    mute(bed.topology.router().ns())?;
    router.kill()?;
    let until = Instant::now() + DETECTION + SLACK;
    while Instant::now() < until {
        assert!(peer_view(bed.lb(), "tor")?.up);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn bfd_can_be_asked_for_and_retimed_without_a_word_to_bgp() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let (bed, router) = bed(1, kind, "", "")?;
        let lb = bed.topology.lb(0);
        for (each, detection_ms) in [
            (BFD, 150),
            (", bfd: { min_tx_ms: 200, min_rx_ms: 200, multiplier: 5 }", 600),
        ] {
            bed.lb().reload_lb(&file(&bed.topology, lb, "", each))?;
            eventually("BFD is as asked for", || {
                let bfd = bfd(bed.lb())?;
                Ok(bfd.up && bfd.detection_ms == Some(detection_ms))
            })?;
        }
        let peer = peer_view(bed.lb(), "tor")?;
        assert!(peer.up && peer.flaps == 0, "{peer:?}");
        let session = router.sessions()?.remove(&lb.addr_v4().into()).context("a session")?;
        ensure!(session.state == SessionState::Established, "{session:?}");
    }
    Ok(())
}

/// What the warning in `vipline check` says, and docs/bfd.md. The twin without BFD is in `traffic`.
#[test]
fn over_a_graceful_restart_frr_keeps_the_routes_and_bird_listens_to_bfd() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let (mut bed, router) = bed(1, kind, "  graceful_restart: {}\n", BFD)?;
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            watched(&bed, &router)?;
            bed.lbs[0].end(signal)?;
            // For several detection times, and until the session is up again.
            let until = Instant::now() + DETECTION * 5;
            let mut looks = 0;
            let mut kept = 0;
            let mut look = |router: &Router| -> Result<()> {
                looks += 1;
                kept += u32::from(ways(router, vip())?.len() == 1);
                Ok(())
            };
            while Instant::now() < until {
                look(&router)?;
            }
            bed.lbs[0].start_again()?;
            let deadline = Instant::now() + Duration::from_secs(20);
            while !(peer_view(bed.lb(), "tor")?.up && bfd(bed.lb())?.up) {
                ensure!(Instant::now() < deadline, "{:?}", peer_view(bed.lb(), "tor")?);
                look(&router)?;
            }
            println!("{kind}, {signal}, graceful restart: the route was there {kept} times of {looks}");
            match kind {
                RouterKind::Frr => assert_eq!(kept, looks),
                RouterKind::Bird | RouterKind::Gobgp => assert!(kept < looks),
            }
        }
    }
    Ok(())
}
