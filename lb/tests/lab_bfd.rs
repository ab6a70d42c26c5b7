//! BFD with real routers: how soon each side notices what happens to the other. The times are printed (`--nocapture`).

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{
    End, Netns, Process, Veth, require_root,
    routers::{BfdPeer, BfdState, BfdTimers, Router, RouterConfig, RouterKind},
};
use lb::announce::bfd::{Bfd, Changes, Liveness};
use lb_core::bfd::{Cause, Discard, Peer, Reach, SINGLE_HOP_PORT, State, Timers, Wanted};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const FAST_MS: u32 = 50;
const MULTIPLIER: u8 = 3;
/// Three packets of 50 ms.
const DETECTION: Duration = Duration::from_millis(150);
/// What the machine may add before it runs us, when it is busy: what is measured is printed, and judged here only roughly.
const SLACK: Duration = Duration::from_millis(700);
/// Timers with which nothing is noticed before 6 s by silence alone.
const SLOW_MS: u32 = 2000;
/// Routers that have BFD.
const KINDS: [RouterKind; 2] = [RouterKind::Bird, RouterKind::Frr];
/// Set in the child that is to be killed: the path of its namespace.
const ROLE: &str = "BFD_NAMESPACE";

const LB_V4: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 1);
const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(10, 60, 0, 2);
const LB_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x60, 0, 0, 0, 0, 0, 1);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x60, 0, 0, 0, 0, 0, 2);

/// An LB node and a router on one link.
struct Bed {
    lb: Netns,
    router: Netns,
}

impl Bed {
    fn new() -> Result<Self> {
        let bed = Self {
            lb: Netns::new("lb")?,
            router: Netns::new("router")?,
        };
        let end = |ns: &Netns, host: u8, v4, v6| End {
            ns: ns.clone(),
            name: "eth0".to_owned(),
            mac: [2, 0x1b, 60, 0, 0, host],
            v4: Some((v4, 24)),
            v6: Some((v6, 64)),
        };
        let lb = end(&bed.lb, 1, LB_V4, LB_V6);
        Veth::new(lb, end(&bed.router, 2, ROUTER_V4, ROUTER_V6), 1500, 1)?;
        Ok(bed)
    }

    /// A router with a session over each family.
    fn start(&self, kind: RouterKind, interval_ms: u32, is_multihop: bool) -> Result<Router> {
        let mut config = RouterConfig::new(65_002, ROUTER_V4);
        for (address, local) in [
            (IpAddr::from(LB_V4), IpAddr::from(ROUTER_V4)),
            (LB_V6.into(), ROUTER_V6.into()),
        ] {
            config = config.bfd_peer(BfdPeer {
                address,
                local,
                interface: (!is_multihop).then(|| "eth0".to_owned()),
                timers: BfdTimers {
                    min_tx_ms: interval_ms,
                    min_rx_ms: interval_ms,
                    multiplier: MULTIPLIER,
                },
            });
        }
        config.start(&self.router, kind)
    }

    fn bfd(&self, interval_ms: u32, reach: Reach) -> Result<Ours> {
        let (bfd, changes) = self.lb.run(|| Ok(Bfd::start(rand())?))?;
        bfd.set(both(interval_ms, reach));
        Ok(Ours { bfd, changes })
    }
}

/// Our side.
struct Ours {
    bfd: Bfd,
    changes: Changes,
}

impl Ours {
    /// Waits until both peers have changed to what is expected; returns when the last one did.
    fn wait(&mut self, expected: impl Fn(Liveness) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + LIMIT;
        let mut left = vec![ROUTER_V4.into(), IpAddr::from(ROUTER_V6)];
        while !left.is_empty() {
            match self.changes.try_recv() {
                Ok((peer, liveness)) => {
                    ensure!(expected(liveness), "{}: {liveness:?}", peer.address);
                    left.retain(|address| *address != peer.address);
                }
                Err(_) if Instant::now() > deadline => bail!("no change of {left:?}: {:?}", self.bfd.views()),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Ok(Instant::now())
    }
}

fn both(interval_ms: u32, reach: Reach) -> [Wanted; 2] {
    [
        (ROUTER_V4.into(), LB_V4.into()),
        (ROUTER_V6.into(), IpAddr::from(LB_V6)),
    ]
    .map(|(address, local)| Wanted {
        peer: Peer::new(address),
        local: Some(local),
        reach,
        timers: Timers {
            min_tx_us: interval_ms * 1000,
            min_rx_us: interval_ms * 1000,
            multiplier: MULTIPLIER,
        },
    })
}

fn rand() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Waits until the router sees both our sessions so.
fn seen(router: &Router, wanted: BfdState) -> Result<Instant> {
    router.wait_for(LIMIT, |router| {
        let sessions = router.bfd_sessions()?;
        for address in [LB_V4.into(), IpAddr::from(LB_V6)] {
            let session = sessions
                .get(&address)
                .with_context(|| format!("no session with {address}"))?;
            ensure!(session.state == wanted, "{address}: {session:?}");
        }
        Ok(Instant::now())
    })
}

fn told(what: &str, kind: RouterKind, took: Duration) {
    println!("{kind}: {what}: {} ms", took.as_millis());
}

fn is_up(liveness: Liveness) -> bool {
    liveness == Liveness::Up
}

fn is_silence(liveness: Liveness) -> bool {
    liveness == Liveness::Down(Cause::DetectionTimeExpired)
}

#[test]
fn a_router_that_dies_or_is_cut_off_is_noticed_and_comes_back() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let bed = Bed::new()?;
        let mut router = bed.start(kind, FAST_MS, false)?;
        let start = Instant::now();
        let mut ours = bed.bfd(FAST_MS, Reach::SingleHop)?;
        told("up", kind, ours.wait(is_up)? - start);
        seen(&router, BfdState::Up)?;
        for session in router.bfd_sessions()?.values() {
            assert_eq!(session.interval_ms, FAST_MS);
        }
        for view in ours.bfd.views() {
            assert_eq!(view.is.session.interval, Duration::from_millis(FAST_MS.into()));
            assert_eq!(view.is.session.detection_time, Some(DETECTION));
            assert_eq!(view.fault, None);
        }

        let start = Instant::now();
        router.kill()?;
        let took = ours.wait(is_silence)? - start;
        told("kill -9 of the router, noticed by us", kind, took);
        assert!(took < DETECTION + SLACK, "{took:?}");
        router.start()?;
        ours.wait(is_up)?;

        let start = Instant::now();
        bed.router.ip(&["link", "set", "eth0", "down"])?;
        let took = ours.wait(is_silence)? - start;
        told("link down, noticed by us", kind, took);
        assert!(took < DETECTION + SLACK, "{took:?}");
        bed.router.ip_batch(&format!(
            "link set eth0 up\naddr replace {ROUTER_V6}/64 dev eth0 nodad\n"
        ))?;
        ours.wait(is_up)?;
        seen(&router, BfdState::Up)?;
        for view in ours.bfd.views() {
            assert_eq!((view.is.session.ups, view.is.session.downs), (3, 2));
        }
    }
    Ok(())
}

/// Until it is killed.
fn be_killed(namespace: &str) -> Result<()> {
    let file = std::fs::File::open(namespace)?;
    let run = std::thread::spawn(move || -> Result<()> {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let (bfd, _changes) = Bfd::start(rand())?;
        bfd.set(both(FAST_MS, Reach::SingleHop));
        println!("it runs");
        std::thread::sleep(LIMIT * 2);
        Ok(())
    });
    run.join().expect("no panic")
}

#[test]
fn we_are_missed_when_we_are_killed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    if let Ok(namespace) = std::env::var(ROLE) {
        return be_killed(&namespace);
    }
    for kind in KINDS {
        let bed = Bed::new()?;
        let router = bed.start(kind, FAST_MS, false)?;
        let mut again = std::process::Command::new(std::env::current_exe()?);
        again
            .args(["--exact", "we_are_missed_when_we_are_killed", "--nocapture"])
            .env(ROLE, bed.lb.path())
            .stdout(Stdio::piped());
        let mut child = Process::start(again)?;
        let mut output = BufReader::new(child.child().stdout.take().context("stdout")?).lines();
        ensure!(
            output.any(|line| line.is_ok_and(|line| line.contains("it runs"))),
            "no child"
        );
        seen(&router, BfdState::Up)?;
        let start = Instant::now();
        child.signal(Signal::SIGKILL)?;
        let took = seen(&router, BfdState::Down)? - start;
        // The router is asked every 50 ms or so.
        told("kill -9 of us, noticed by the router (asked every 50 ms)", kind, took);
        assert!(took < DETECTION + SLACK, "{took:?}");
    }
    Ok(())
}

/// With timers of seconds: what takes less than a second was told, not missed.
#[test]
fn whoever_stops_in_order_says_so() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let bed = Bed::new()?;
        let router = bed.start(kind, SLOW_MS, false)?;
        let mut ours = bed.bfd(SLOW_MS, Reach::SingleHop)?;
        ours.wait(is_up)?;
        seen(&router, BfdState::Up)?;

        let start = Instant::now();
        drop(ours);
        let took = seen(&router, BfdState::Down)? - start;
        told("our orderly stop, noticed by the router", kind, took);
        assert!(took < Duration::from_secs(2), "{took:?}");
        if kind == RouterKind::Frr {
            for session in router.bfd_sessions()?.values() {
                let word = session.remote_diagnostic.as_deref();
                assert_eq!(word, Some("administratively down"));
            }
        }

        // Both daemons end without a word and are missed, as one that dies; and of a session that is switched off BIRD says nothing.
        if kind == RouterKind::Bird {
            continue;
        }
        let mut ours = bed.bfd(SLOW_MS, Reach::SingleHop)?;
        ours.wait(is_up)?;
        let start = Instant::now();
        for (peer, local) in [
            (IpAddr::from(LB_V4), IpAddr::from(ROUTER_V4)),
            (LB_V6.into(), ROUTER_V6.into()),
        ] {
            let peer = format!("peer {peer} local-address {local} interface eth0");
            router.command(&["configure terminal", "bfd", &peer, "shutdown"])?;
        }
        let took = ours.wait(|liveness| liveness == Liveness::Down(Cause::NeighbourAdminDown))? - start;
        told("switched off in the router, noticed by us", kind, took);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    Ok(())
}

#[test]
fn timers_change_without_a_flap() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let bed = Bed::new()?;
        let router = bed.start(kind, FAST_MS, false)?;
        let mut ours = bed.bfd(FAST_MS, Reach::SingleHop)?;
        ours.wait(is_up)?;
        for interval_ms in [300, 50, 100] {
            ours.bfd.set(both(interval_ms, Reach::SingleHop));
            let interval = Duration::from_millis(interval_ms.max(FAST_MS).into());
            let deadline = Instant::now() + LIMIT;
            // The router has answered the poll: what we send and how long we wait are as asked for.
            while ours.bfd.views().iter().any(|view| {
                (view.is.session.interval, view.is.session.detection_time)
                    != (interval, Some(interval * MULTIPLIER.into()))
            }) {
                ensure!(Instant::now() < deadline, "{kind}: {:?}", ours.bfd.views());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for view in ours.bfd.views() {
            assert_eq!((view.is.session.ups, view.is.session.downs), (1, 0), "{kind}");
        }
        seen(&router, BfdState::Up)?;
    }
    Ok(())
}

#[test]
fn multihop_sessions_come_up_and_forged_packets_are_counted() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in KINDS {
        let bed = Bed::new()?;
        let router = bed.start(kind, FAST_MS, true)?;
        let mut ours = bed.bfd(FAST_MS, Reach::Multihop)?;
        ours.wait(is_up)?;
        seen(&router, BfdState::Up)?;
    }
    let bed = Bed::new()?;
    let (bfd, _changes) = bed.lb.run(|| Ok(Bfd::start(rand())?))?;
    bfd.set(both(FAST_MS, Reach::SingleHop));
    let packet = lb_core::bfd::Packet {
        diagnostic: lb_core::bfd::Diagnostic::None,
        state: State::Down,
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: false,
        multiplier: MULTIPLIER,
        my_discriminator: 1,
        your_discriminator: 0,
        min_tx_us: 1_000_000,
        min_rx_us: 1_000_000,
        min_echo_rx_us: 0,
    };
    let count = |reason| -> u64 {
        let all = bfd.discarded();
        all.into_iter()
            .find(|(of, _)| *of == reason)
            .map_or(0, |(_, count)| count)
    };
    let cases: [(u32, &[u8], Discard); 3] = [
        (254, &packet.bytes(), Discard::Hops),
        (64, &packet.bytes(), Discard::Hops),
        (255, &packet.bytes()[..23], Discard::Short),
    ];
    for (ttl, payload, reason) in cases {
        for (from, to) in [
            (ROUTER_V4.into(), LB_V4.into()),
            (ROUTER_V6.into(), IpAddr::from(LB_V6)),
        ] {
            let before = count(reason);
            let deadline = Instant::now() + LIMIT;
            // Again and again: the first ones may come before our socket is there.
            while count(reason) == before {
                ensure!(Instant::now() < deadline, "not counted: {reason:?} from {from}");
                bed.router.run(|| {
                    let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
                    if from.is_ipv4() {
                        socket.set_ttl(ttl)?;
                    } else {
                        nix::sys::socket::setsockopt(
                            &socket,
                            nix::sys::socket::sockopt::Ipv6Ttl,
                            &i32::try_from(ttl)?,
                        )?;
                    }
                    socket.send_to(payload, (to, SINGLE_HOP_PORT))?;
                    Ok(())
                })?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    // The twin: one with the TTL of a neighbour is taken.
    assert!(bfd.views().iter().all(|view| view.is.session.state == State::Down));
    bed.router.run(|| {
        let socket = UdpSocket::bind(SocketAddr::new(ROUTER_V4.into(), 0))?;
        socket.set_ttl(255)?;
        socket.send_to(&packet.bytes(), (LB_V4, SINGLE_HOP_PORT))?;
        Ok(())
    })?;
    let deadline = Instant::now() + LIMIT;
    while bfd.views()[0].is.session.state != State::Init {
        ensure!(Instant::now() < deadline, "{:?}", bfd.views());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn what_cannot_be_opened_is_said_and_tried_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    let taken = bed
        .lb
        .run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SINGLE_HOP_PORT))?))?;
    bed.lb.ip(&["addr", "del", &format!("{LB_V6}/64"), "dev", "eth0"])?;
    let (bfd, _changes) = bed.lb.run(|| Ok(Bfd::start(rand())?))?;
    bfd.set(both(FAST_MS, Reach::SingleHop));
    let wait = |holds: &dyn Fn(&[Option<String>]) -> bool| -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let faults: Vec<_> = bfd.views().into_iter().map(|view| view.fault).collect();
            if holds(&faults) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{faults:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&|faults| {
        let says = |index: usize, word: &str| faults[index].as_ref().is_some_and(|fault| fault.contains(word));
        says(0, "UDP port 3784") && says(1, "cannot send from fd00:60::1")
    })?;
    drop(taken);
    bed.lb
        .ip(&["addr", "add", &format!("{LB_V6}/64"), "dev", "eth0", "nodad"])?;
    wait(&|faults| faults.iter().all(Option::is_none))?;
    Ok(())
}

#[test]
fn who_watches_a_peer_that_another_watches_is_told_and_the_last_to_go_ends_its_session() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    let router = bed.start(RouterKind::Bird, FAST_MS, false)?;
    let mut first = bed.bfd(FAST_MS, Reach::SingleHop)?;
    first.wait(|liveness| liveness == Liveness::Up)?;
    let (bfd, changes) = first.bfd.another();
    let mut second = Ours { bfd, changes };
    second.bfd.set(both(FAST_MS, Reach::SingleHop));
    second.wait(|liveness| liveness == Liveness::Up)?;

    drop(first);
    std::thread::sleep(DETECTION);
    let is_up = |ours: &Ours| ours.bfd.views().iter().all(|view| view.is.session.state == State::Up);
    assert!(is_up(&second), "another still watches: {:?}", second.bfd.views());
    second.bfd.set([]);
    seen(&router, BfdState::Down)?;
    Ok(())
}
