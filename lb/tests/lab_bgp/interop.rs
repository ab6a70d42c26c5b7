//! Each router: sessions over both families with both families in them, what a route looks like there, changes, ends and errors.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Proto, Topology, require_root,
    routers::{Family, Injected, Neighbour, Route, RouterConfig, RouterKind, SessionState},
};
use nix::sys::signal::Signal;

use super::{
    lab_support::{Daemon, LbFile, PATIENCE, eventually},
    site::{
        OUR_ASN, PASSWORD, ROUTER_ASN, bgp, file, learned, neighbour, password_file, peer, peer_view, router_config,
        router_v4, router_v6, up, view,
    },
};

const V4: [&str; 2] = ["203.0.113.1/32", "203.0.113.2/32"];
const V6: [&str; 1] = ["2001:db8:f00d::1/128"];
const ATTRIBUTES: &str =
    ", med: 9, prepend: 1, communities: [\"65000:7\", no-export], large_communities: [\"65000:1:2\"]";

fn assert_attributes(route: &Route) {
    assert_eq!(route.as_path, [OUR_ASN, OUR_ASN], "{route:?}");
    assert_eq!(route.med, Some(9), "{route:?}");
    assert_eq!(route.communities, [(65_000, 7), (65_535, 65_281)].into(), "{route:?}");
    assert_eq!(route.large_communities, [(65_000, 1, 2)].into(), "{route:?}");
}

/// A router's whole life with an LB node.
fn life(kind: RouterKind) -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let (lb_v4, lb_v6): (IpAddr, IpAddr) = (lb.addr_v4().into(), lb.addr_v6().into());
    let (_directory, password) = password_file(PASSWORD)?;
    let yaml = |attributes: &str| {
        let signed = format!(", password_file: {}{attributes}", password.display());
        let over_v4 = peer("over-v4", router_v4(lb), &signed);
        // Both sides connect, and of two connections one must stay.
        bgp("  listen_port: 179\n", &[over_v4, peer("over-v6", router_v6(lb), "")])
    };
    let mut router = router_config()
        .neighbour(Neighbour {
            password: Some(PASSWORD.to_owned()),
            ..neighbour(lb_v4)
        })
        .neighbour(Neighbour {
            extended_next_hop: true,
            ..neighbour(lb_v6)
        })
        .inject(Injected::new("198.51.100.0/24".parse()?))
        .inject(Injected {
            next_hop: Some(router_v6(lb)),
            ..Injected::new("2001:db8:99::/48".parse()?)
        })
        .start(topology.router().ns(), kind)?;
    let mut daemon = Daemon::lb(lb, &file(&topology, lb, &yaml(ATTRIBUTES)))?;

    // Both families over each: next hops are the node's own addresses, and of IPv4 over IPv6 an IPv6 one.
    up(&daemon, "over-v4", 3)?;
    up(&daemon, "over-v6", 3)?;
    for route in learned(&router, Family::V4, lb_v4, &V4)? {
        assert!(route.next_hops.contains(&lb_v4), "{route:?}");
        assert_attributes(&route);
    }
    for route in learned(&router, Family::V6, lb_v4, &V6)? {
        assert!(route.next_hops.contains(&lb_v6), "{route:?}");
        assert_attributes(&route);
    }
    for route in learned(&router, Family::V4, lb_v6, &V4)? {
        assert!(route.next_hops.contains(&lb_v6), "{route:?}");
        assert_eq!(route.as_path, [OUR_ASN]);
        assert!(
            route.communities.is_empty() && route.med.is_none_or(|med| med == 0),
            "{route:?}"
        );
    }
    learned(&router, Family::V6, lb_v6, &V6)?;
    let table = daemon.cli(&["bgp"])?;
    assert!(table.contains("over-v4") && table.contains("Established"), "{table}");
    let status = daemon.cli(&["status"])?;
    assert!(
        status.contains("BGP        2 of 2 sessions up, 3 VIP addresses announced"),
        "{status}"
    );

    // What the router announces is counted, and is nowhere.
    eventually("injected routes are ignored", || {
        Ok(peer_view(&daemon, "over-v4")?.ignored >= 2)
    })?;
    let routes = lb.ns().ip(&["route", "show", "table", "all"])?;
    assert!(!routes.contains("198.51.100.0/24"), "{routes}");

    // Other attributes and other VIPs: told on the session that there is.
    let mut fewer = file(&topology, lb, &yaml(", med: 10"));
    fewer.vips.remove(1);
    daemon.reload_lb(&fewer)?;
    learned(&router, Family::V4, lb_v4, &V4[..1])?;
    learned(&router, Family::V4, lb_v6, &V4[..1])?;
    eventually("the new MED", || {
        let routes = learned(&router, Family::V4, lb_v4, &V4[..1])?;
        Ok(routes[0].med == Some(10) && routes[0].communities.is_empty() && routes[0].as_path == [OUR_ASN])
    })?;
    for name in ["over-v4", "over-v6"] {
        assert_eq!(peer_view(&daemon, name)?.flaps, 0, "{}", daemon.log()?);
    }

    // A router that dies and comes back.
    router.kill()?;
    eventually("both sessions are noticed to be down", || {
        Ok(view(&daemon)?.peers.iter().all(|peer| peer.flaps == 1))
    })?;
    router.start()?;
    router.established(lb_v4, PATIENCE)?;
    up(&daemon, "over-v4", 2)?;
    up(&daemon, "over-v6", 2)?;
    learned(&router, Family::V4, lb_v4, &V4[..1])?;

    // The end: the router forgets at once, and is told why.
    daemon.end(Signal::SIGTERM)?;
    learned(&router, Family::V4, lb_v4, &[])?;
    learned(&router, Family::V6, lb_v6, &[])?;
    assert!(daemon.detach()?.status.success());
    if kind == RouterKind::Bird {
        let sessions = router.sessions()?;
        let said = sessions[&lb_v4].last_error.clone().unwrap_or_default();
        assert!(said.contains("Administrative shutdown"), "{said}");
    }
    Ok(())
}

#[test]
fn bird_learns_what_is_announced() -> Result<()> {
    life(RouterKind::Bird)
}

#[test]
fn frr_learns_what_is_announced() -> Result<()> {
    life(RouterKind::Frr)
}

#[test]
fn gobgp_learns_what_is_announced() -> Result<()> {
    life(RouterKind::Gobgp)
}

/// A session that must not come up: what the LB node says of it, and that the router does not have it either.
fn refused(kind: RouterKind, router: RouterConfig, more: &str, errors: &[&str], words: &str) -> Result<()> {
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let neighbour = Neighbour {
        address: lb.addr_v4().into(),
        ..router.neighbours[0].clone()
    };
    let router = RouterConfig {
        neighbours: vec![neighbour],
        ..router
    };
    let router = router.start(topology.router().ns(), kind)?;
    let daemon = Daemon::lb(lb, &file(&topology, lb, &bgp("", &[peer("tor", router_v4(lb), more)])))?;
    let mut last = None;
    eventually("the error that is meant", || {
        last = peer_view(&daemon, "tor")?.last_error;
        Ok(last.as_ref().is_some_and(|error| errors.contains(&&*error.kind)))
    })
    .map_err(|error| error.context(format!("{kind}: {last:?}")))?;
    let shown = daemon.cli(&["bgp"])?;
    assert!(shown.contains(words), "{kind}: {shown}");
    assert!(!peer_view(&daemon, "tor")?.up);
    let state = router.sessions()?[&lb.addr_v4().into()].state;
    assert!(state < SessionState::Established, "{kind}: {state:?}");
    assert!(daemon.status()?.serving);
    Ok(())
}

/// Something with each router, all at once.
fn with_each(work: impl Fn(RouterKind) -> Result<()> + Sync) -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    thread::scope(|scope| {
        let work = &work;
        let running = RouterKind::ALL.map(|kind| scope.spawn(move || work(kind)));
        running.into_iter().try_for_each(|each| match each.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

#[test]
fn a_wrong_password_keeps_the_session_down_with_a_helpful_word() -> Result<()> {
    with_each(|kind| {
        let (_directory, password) = password_file("another")?;
        let signed = format!(", password_file: {}", password.display());
        // It waits, so that only this node's attempts count.
        let router = router_config().neighbour(Neighbour {
            password: Some(PASSWORD.to_owned()),
            passive: true,
            ..neighbour([0, 0, 0, 0].into())
        });
        refused(
            kind,
            router,
            &signed,
            &["no_answer"],
            "that both sides have the same one",
        )
    })
}

#[test]
fn a_wrong_asn_on_either_side_is_named() -> Result<()> {
    with_each(|kind| {
        // The router is of another AS than this node thinks: whoever reads the other's OPEN first refuses it.
        let router = RouterConfig {
            asn: 65_009,
            ..router_config()
        };
        let router = router.neighbour(neighbour([0, 0, 0, 0].into()));
        let words = format!("AS {ROUTER_ASN} is configured");
        refused(kind, router, "", &["wrong_asn"], &words)?;
        // This node is of another AS than the router thinks.
        let router = router_config().neighbour(Neighbour {
            asn: 65_009,
            ..neighbour([0, 0, 0, 0].into())
        });
        refused(kind, router, "", &["notification"], "OPEN Message Error/Bad Peer AS")
    })
}

#[test]
fn gobgp_keeps_routes_over_a_restart_and_only_with_graceful_restart() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let lb_v4: IpAddr = lb.addr_v4().into();
    let router = router_config()
        .neighbour(Neighbour {
            graceful_restart: true,
            ..neighbour(lb_v4)
        })
        .start(topology.router().ns(), RouterKind::Gobgp)?;
    let peers = [peer("tor", router_v4(lb), "")];
    let graceful = file(&topology, lb, &bgp("  graceful_restart: {}\n", &peers));
    let mut daemon = Daemon::lb(lb, &graceful)?;
    up(&daemon, "tor", 3)?;
    learned(&router, Family::V4, lb_v4, &V4)?;

    daemon.end(Signal::SIGTERM)?;
    eventually("the router noticed, and keeps the routes as stale ones", || {
        let routes = learned(&router, Family::V4, lb_v4, &V4)?;
        Ok(routes.iter().all(|route| route.stale))
    })?;
    daemon.start_again()?;
    up(&daemon, "tor", 3)?;
    eventually("fresh ones", || {
        let routes = learned(&router, Family::V4, lb_v4, &V4)?;
        Ok(routes.iter().all(|route| !route.stale))
    })?;

    // The twin.
    daemon.reload_lb(&file(&topology, lb, &bgp("", &peers)))?;
    eventually("a session without graceful restart", || {
        let peer = peer_view(&daemon, "tor")?;
        Ok(peer.up && daemon.log()?.matches("BGP session is up").count() == 3)
    })?;
    learned(&router, Family::V4, lb_v4, &V4)?;
    daemon.end(Signal::SIGTERM)?;
    learned(&router, Family::V4, lb_v4, &[])?;
    assert!(daemon.detach()?.status.success());
    Ok(())
}

#[test]
fn an_address_without_a_backend_stays_unless_it_is_to_be_withdrawn() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let lb_v4: IpAddr = lb.addr_v4().into();
    let router = router_config()
        .neighbour(neighbour(lb_v4))
        .start(topology.router().ns(), RouterKind::Bird)?;
    let with = |more: &str, weight: u32| {
        let mut file = file(&topology, lb, &bgp(more, &[peer("tor", router_v4(lb), "")]));
        let worker = topology.worker(0);
        *file.members("v4") = vec![(worker.name().to_owned(), worker.addr_v4().into(), weight)];
        file
    };
    let daemon = Daemon::lb(lb, &with("", 100))?;
    let told = |announced: bool, reason: &str| -> Result<()> {
        let vips = daemon.vips()?;
        let vip = vips.iter().find(|vip| vip.address == super::site::vips()[0].1.ip());
        let bgp = vip.and_then(|vip| vip.bgp.clone()).context("BGP is configured")?;
        assert_eq!((bgp.announced, bgp.reason.as_str()), (announced, reason));
        Ok(())
    };
    up(&daemon, "tor", 3)?;
    learned(&router, Family::V4, lb_v4, &V4)?;
    told(true, "serves")?;
    daemon.reload_lb(&with("", 0))?;
    told(true, "stays_without_backend")?;
    learned(&router, Family::V4, lb_v4, &V4)?;

    daemon.reload_lb(&with("  when_no_backend: withdraw\n", 0))?;
    learned(&router, Family::V4, lb_v4, &[])?;
    told(false, "no_backend")?;
    let said = daemon.cli(&["vips"])?;
    assert!(said.contains("not by bgp: no backend takes new flows"), "{said}");
    daemon.reload_lb(&with("  when_no_backend: withdraw\n", 100))?;
    learned(&router, Family::V4, lb_v4, &V4)?;
    // Its next hop goes, and with it its only backend: nobody reloads anything.
    lb.ns()
        .sh(&format!("ip route add unreachable {}", topology.worker(0).addr_v4()))?;
    learned(&router, Family::V4, lb_v4, &[])?;
    Ok(())
}

#[test]
fn ten_thousand_addresses_are_a_few_messages() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const ADDRESSES: u32 = 10_000;
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let lb_v4: IpAddr = lb.addr_v4().into();
    let router = router_config()
        .neighbour(neighbour(lb_v4))
        .start(topology.router().ns(), RouterKind::Bird)?;
    let mut many = LbFile::new(&topology, lb).more(&bgp("", &[peer("tor", router_v4(lb), "")]));
    let vips = (0..ADDRESSES).map(|n| SocketAddr::new(Ipv4Addr::from(0x0a80_0000 + n).into(), 80));
    many = many.vips(&vips.map(|vip| (Proto::Tcp, vip)).collect::<Vec<_>>(), "v4");
    let daemon = Daemon::lb(lb, &many)?;
    let served = Instant::now();
    up(&daemon, "tor", ADDRESSES as usize)?;
    eventually("the router has them all", || {
        Ok(router.routes(Family::V4)?.len() == ADDRESSES as usize)
    })?;
    println!(
        "{ADDRESSES} addresses are at the router {:?} after the daemon serves",
        served.elapsed()
    );
    let sent = peer_view(&daemon, "tor")?.messages_sent;
    assert!(sent < 40, "{sent} messages");
    many.vips.truncate(1);
    daemon.reload_lb(&many)?;
    learned(&router, Family::V4, lb_v4, &["10.128.0.0/32"])?;
    let sent = peer_view(&daemon, "tor")?.messages_sent - sent;
    assert!(sent < 40, "{sent} messages");
    Ok(())
}

#[test]
fn an_ibgp_router_that_connects_gets_preferences_and_networks() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let lb = topology.lb(0);
    let lb_v4: IpAddr = lb.addr_v4().into();
    let router = RouterConfig {
        asn: OUR_ASN,
        ..router_config()
    };
    let router = router
        .neighbour(Neighbour {
            password: Some(PASSWORD.to_owned()),
            ..neighbour(lb_v4)
        })
        .start(topology.router().ns(), RouterKind::Bird)?;
    let (_directory, password) = password_file(PASSWORD)?;
    // Another address of the link: BIRD takes no next hop that it cannot reach.
    let next_hop = Ipv6Addr::from(u128::from(lb.addr_v6()) + 0x100);
    let tor = format!(
        "name: tor, address: \"{}\", asn: {OUR_ASN}, passive: true, password_file: {}, local_pref: 250, aggregation_length_v4: 24, \
         aggregation_length_v6: 64, next_hop_v6: \"{next_hop}\"",
        router_v4(lb),
        password.display()
    );
    let daemon = Daemon::lb(lb, &file(&topology, lb, &bgp("  listen_port: 179\n", &[tor])))?;
    up(&daemon, "tor", 2)?;
    let routes = learned(&router, Family::V4, lb_v4, &["203.0.113.0/24"])?;
    assert_eq!(
        (routes[0].local_pref, routes[0].as_path.len()),
        (Some(250), 0),
        "{routes:?}"
    );
    let routes = learned(&router, Family::V6, lb_v4, &["2001:db8:f00d::/64"])?;
    assert!(routes[0].next_hops.contains(&next_hop.into()), "{routes:?}");

    // One of two addresses of a network goes: the network stays.
    let mut fewer: LbFile = file(&topology, lb, &daemon_bgp(&daemon)?);
    fewer.vips.remove(0);
    daemon.reload_lb(&fewer)?;
    eventually("one address less", || Ok(view(&daemon)?.addresses == 2))?;
    learned(&router, Family::V4, lb_v4, &["203.0.113.0/24"])?;
    Ok(())
}

/// `bgp` of the file that a daemon has.
fn daemon_bgp(daemon: &Daemon) -> Result<String> {
    let text = std::fs::read_to_string(daemon.config())?;
    let at = text.find("bgp:\n");
    ensure!(at.is_some(), "no bgp in {text}");
    Ok(text[at.unwrap_or_default()..].to_owned())
}
