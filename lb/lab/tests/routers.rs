//! The routers of the bench speak with one another: that is how we know that what they say of us is worth something.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    End, Netns, Process, Veth, require_root,
    routers::{
        BfdPeer, BfdState, BfdTimers, Family, Injected, Neighbour, Route, Router, RouterConfig, RouterKind,
        SessionState,
    },
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);
const FAST: BfdTimers = BfdTimers {
    min_tx_ms: 50,
    min_rx_ms: 50,
    multiplier: 3,
};
/// Set in the child: the path of the witness's namespace.
const ROLE: &str = "ROUTER_WITNESS";

/// Two namespaces on one link; 0 and 1 are their numbers.
fn pair() -> Result<[Netns; 2]> {
    let namespaces = [Netns::new("r0")?, Netns::new("r1")?];
    let end = |index: u8| End {
        ns: namespaces[usize::from(index)].clone(),
        name: "eth0".to_owned(),
        mac: [2, 0x1b, 50, 0, 0, index],
        v4: Some((v4(index), 24)),
        v6: Some((v6(index), 64)),
    };
    Veth::new(end(0), end(1), 1500, 1)?;
    Ok(namespaces)
}

fn v4(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 50, 0, index + 1)
}

fn v6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x50, 0, 0, 0, 0, 0, u16::from(index) + 1)
}

fn asn(index: u8) -> u32 {
    4_200_000_000 + u32::from(index)
}

/// The config of one of a pair: a session for each family, over that family, and a prefix of each with every attribute.
fn config(index: u8, password: Option<&str>, bfd: Option<BfdTimers>) -> Result<RouterConfig> {
    let other = 1 - index;
    let mut config = RouterConfig::new(asn(index), v4(index));
    for (address, family) in [(IpAddr::from(v4(other)), Family::V4), (v6(other).into(), Family::V6)] {
        config = config.neighbour(Neighbour {
            families: vec![family],
            password: password.map(ToOwned::to_owned),
            passive: index == 1,
            bfd,
            ..Neighbour::new(address, asn(other))
        });
    }
    for prefix in [format!("198.51.{index}.0/24"), format!("2001:db8:{index}::/48")] {
        config = config.inject(Injected {
            communities: vec![(64_512, 7), (65_535, 0)],
            large_communities: vec![(asn(index), 1, 2)],
            med: Some(9),
            ..Injected::new(prefix.parse()?)
        });
    }
    Ok(config)
}

/// What a router has from the other one, once it has it.
fn learned(router: &Router, family: Family, from: IpAddr) -> Result<Route> {
    router.wait_for(LIMIT, |router| {
        let mut routes = router.routes(family)?.into_iter();
        routes.find(|route| route.from == Some(from)).context("no route")
    })
}

fn exchange(kinds: [RouterKind; 2]) -> Result<()> {
    let namespaces = pair()?;
    let mut routers = Vec::new();
    for index in [0, 1] {
        let config = config(index, Some("not-so-secret"), None)?;
        routers.push(config.start(&namespaces[usize::from(index)], kinds[usize::from(index)])?);
    }
    for (index, router) in (0..).zip(&routers) {
        let other = 1 - index;
        for (family, from, prefix) in [
            (Family::V4, v4(other).into(), format!("198.51.{other}.0/24")),
            (Family::V6, IpAddr::from(v6(other)), format!("2001:db8:{other}::/48")),
        ] {
            router.established(from, LIMIT)?;
            let route = learned(router, family, from)?;
            let prefix = prefix.parse()?;
            assert_eq!(route.prefix, prefix);
            assert!(route.best && !route.stale, "{route:?}");
            assert!(route.next_hops.contains(&from), "{route:?}");
            assert_eq!(route.as_path, [asn(other)]);
            assert_eq!(route.communities, [(64_512, 7), (65_535, 0)].into());
            assert_eq!(route.large_communities, [(asn(other), 1, 2)].into());
            assert_eq!(route.med, Some(9));
            if router.kind() == RouterKind::Gobgp {
                assert_eq!(router.kernel_routes(family)?.len(), 0);
                continue;
            }
            router.wait_for(LIMIT, |router| {
                let routes = router.kernel_routes(family)?;
                ensure!(routes.contains_key(&prefix), "not in {routes:?}");
                Ok(())
            })?;
        }
    }
    // One that is stopped says so; one that is killed comes back. (GoBGP is never the one that stays: it rests for 30 s after that.)
    let [first, second] = routers.as_mut_slice() else {
        unreachable!()
    };
    second.stop()?;
    first.wait_for(LIMIT, |router| {
        let routes = router.routes(Family::V4)?;
        ensure!(routes.is_empty(), "{routes:?}");
        Ok(())
    })?;
    second.start()?;
    first.established(v4(1).into(), LIMIT)?;
    second.kill()?;
    second.start()?;
    first.established(v4(1).into(), LIMIT)?;
    learned(first, Family::V4, v4(1).into()).map(drop)
}

#[test]
fn bird_and_frr_exchange_routes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    exchange([RouterKind::Bird, RouterKind::Frr])
}

#[test]
fn frr_and_gobgp_exchange_routes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    exchange([RouterKind::Frr, RouterKind::Gobgp])
}

#[test]
fn bird_and_gobgp_exchange_routes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    exchange([RouterKind::Bird, RouterKind::Gobgp])
}

#[test]
fn with_another_password_nothing_is_established() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let namespaces = pair()?;
    let bird = config(0, Some("right"), None)?.start(&namespaces[0], RouterKind::Bird)?;
    let mut frr = config(1, Some("wrong"), None)?.start(&namespaces[1], RouterKind::Frr)?;
    // Several tries long.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        for session in bird.sessions()?.values() {
            assert_ne!(session.state, SessionState::Established);
        }
    }
    frr.kill()?;
    let _frr = config(1, Some("right"), None)?.start(&namespaces[1], RouterKind::Frr)?;
    bird.established(v4(1).into(), LIMIT)
}

/// One prefix from two routers: both next hops are in the kernel of the third.
#[test]
fn two_equal_paths_are_in_the_kernel() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for kind in [RouterKind::Bird, RouterKind::Frr] {
        let near = Netns::new("near")?;
        let mut config = RouterConfig::new(asn(0), v4(0));
        let mut far = Vec::new();
        for link in [1, 2] {
            let ns = Netns::new("far")?;
            let end = |ns: &Netns, name: String, host: u8| End {
                ns: ns.clone(),
                name,
                mac: [2, 0x1b, 50, link, 0, host],
                v4: Some((Ipv4Addr::new(10, 50, link, host), 24)),
                v6: None,
            };
            let pair = Veth::new(
                end(&near, format!("eth{link}"), 1),
                end(&ns, "eth0".to_owned(), 2),
                1500,
                1,
            )?;
            let address = |end: &End| end.v4.map(|(address, _)| IpAddr::from(address)).context("no address");
            let neighbour = |address, asn| Neighbour {
                families: vec![Family::V4],
                ..Neighbour::new(address, asn)
            };
            config = config.neighbour(neighbour(address(&pair.b)?, asn(1)));
            let there = RouterConfig::new(asn(1), Ipv4Addr::new(10, 50, link, 2))
                .neighbour(neighbour(address(&pair.a)?, asn(0)))
                .inject(Injected::new("198.51.1.0/24".parse()?));
            far.push(there.start(&ns, RouterKind::Bird)?);
        }
        let near = config.start(&near, kind)?;
        let both: BTreeSet<IpAddr> = [[10, 50, 1, 2].into(), [10, 50, 2, 2].into()].into();
        near.wait_for(LIMIT, |router| {
            let routes = router.kernel_routes(Family::V4)?;
            let hops = routes.get(&"198.51.1.0/24".parse()?);
            ensure!(hops == Some(&both), "{kind}: {routes:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn what_frr_does_not_understand_is_an_error() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let ns = Netns::new("r0")?;
    let error = config(0, Some("two words"), None)?
        .start(&ns, RouterKind::Frr)
        .expect_err("one word");
    assert!(format!("{error:#}").contains("password two words"), "{error:#}");
    Ok(())
}

#[test]
fn bird_and_frr_watch_one_another_by_bfd() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let namespaces = pair()?;
    let mut bird = config(0, None, Some(FAST))?.start(&namespaces[0], RouterKind::Bird)?;
    let frr = config(1, None, Some(FAST))?.start(&namespaces[1], RouterKind::Frr)?;
    let state = |router: &Router, peer: IpAddr, wanted: BfdState| {
        router.wait_for(LIMIT, |router| {
            let sessions = router.bfd_sessions()?;
            let session = sessions.get(&peer).context("no BFD session")?;
            ensure!(session.state == wanted, "{session:?}");
            Ok(session.interval_ms)
        })
    };
    for peer in [IpAddr::from(v4(0)), v6(0).into()] {
        assert_eq!(state(&frr, peer, BfdState::Up)?, 50);
    }
    for peer in [IpAddr::from(v4(1)), v6(1).into()] {
        state(&bird, peer, BfdState::Up)?;
    }
    bird.kill()?;
    state(&frr, v4(0).into(), BfdState::Down)?;
    assert!(
        config(0, None, Some(FAST))?
            .start(&namespaces[0], RouterKind::Gobgp)
            .is_err()
    );
    Ok(())
}

#[test]
fn bfd_needs_no_bgp() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let namespaces = pair()?;
    let mut routers = Vec::new();
    for (index, kind) in [(0, RouterKind::Bird), (1, RouterKind::Frr)] {
        let config = RouterConfig::new(asn(index), v4(index)).bfd_peer(BfdPeer {
            address: v4(1 - index).into(),
            local: v4(index).into(),
            interface: Some("eth0".to_owned()),
            timers: FAST,
        });
        routers.push(config.start(&namespaces[usize::from(index)], kind)?);
    }
    for router in &routers {
        router.wait_for(LIMIT, |router| {
            let sessions = router.bfd_sessions()?;
            let up = sessions.values().all(|session| session.state == BfdState::Up);
            ensure!(up && sessions.len() == 1, "{sessions:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A router whose daemons have become another user is gone with this process all the same: its namespace is, and tells.
#[test]
fn nothing_is_left_after_sigkill() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let tie = |ns: &Netns, witness: &str| {
        ns.ip(&[
            "link", "add", "tie", "type", "veth", "peer", "name", "told", "netns", witness,
        ])
    };
    if let Ok(witness) = std::env::var(ROLE) {
        let ns = Netns::new("router")?;
        tie(&ns, &witness)?;
        let _router = RouterConfig::new(1, v4(0)).start(&ns, RouterKind::Frr)?;
        {
            println!("it runs");
        }
        std::thread::sleep(LIMIT);
        return Ok(());
    }
    let witness = Netns::new("witness")?;
    let mut again = std::process::Command::new(std::env::current_exe()?);
    again
        .args(["--exact", "nothing_is_left_after_sigkill", "--nocapture"])
        .env(ROLE, witness.path())
        .stdout(Stdio::piped());
    let mut child = Process::start(again)?;
    let mut output = BufReader::new(child.child().stdout.take().context("stdout")?).lines();
    ensure!(
        output.any(|line| line.is_ok_and(|line| line.contains("it runs"))),
        "no router"
    );
    let is_there = || -> Result<bool> { Ok(witness.ip(&["-o", "link"])?.contains("told")) };
    assert!(is_there()?);
    child.signal(Signal::SIGKILL)?;
    child.wait()?;
    let deadline = Instant::now() + LIMIT;
    while is_there()? {
        ensure!(Instant::now() < deadline, "a daemon still holds the namespace");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
