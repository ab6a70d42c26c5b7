//! Routes, rules and interfaces that change.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::require_root;
use lb_core::{
    desired::NextHop,
    nexthop::{NextHopView, Settings, Sources},
};

use super::bed::*;

#[test]
fn gateways_and_on_link_backends_of_both_families_resolve() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    route_gateways(&bed)?;
    bed.lb.ip_batch(
        "route add 198.51.100.0/24 via 10.0.1.2 mtu 1400\nroute add blackhole 198.18.0.0/24\n\
         route add unreachable 198.18.1.0/24\nroute add prohibit 198.18.2.0/24\n\
         route add blackhole 2001:db8:b::/48\nroute add unreachable 2001:db8:c::/48\nroute add prohibit 2001:db8:d::/48\n\
         route add 198.51.101.0/24 via inet6 fd00:1::2 dev eth1\n",
    )?;
    let others = [
        ("mtu", "198.51.100.1"),
        ("mixed", "198.51.101.1"),
        ("self4", "10.0.0.1"),
        ("self6", "fd00:1::1"),
        ("black4", "198.18.0.1"),
        ("unreach4", "198.18.1.1"),
        ("prohibit4", "198.18.2.1"),
        ("black6", "2001:db8:b::1"),
        ("unreach6", "2001:db8:c::1"),
        ("prohibit6", "2001:db8:d::1"),
        ("broadcast", "10.0.0.255"),
        ("nowhere4", "203.0.113.1"),
        ("nowhere6", "2001:dead::1"),
    ];
    let start = Instant::now();
    let mut followed = bed.start(&[&GATEWAYS[..], &others].concat())?;
    for backend in ["v4", "v6", "link4", "link6"] {
        followed.until_via(backend, GW_MACS[0])?;
    }
    followed.until_via("mtu", GW_MACS[1])?;
    followed.until_via("mixed", GW_MACS[1])?;
    report("from start to all resolved, ARP and NDP included", start.elapsed());
    let via = followed.via("v4")?;
    ensure!((via.port, via.source_mac, via.mtu) == (0, LB_MACS[0], 1500), "{via:?}");
    ensure!(via.source == "10.0.0.1".parse::<IpAddr>()?, "{via:?}");
    ensure!(followed.via("v6")?.source == "fd00::1".parse::<IpAddr>()?);
    ensure!((followed.via("mtu")?.port, followed.via("mtu")?.mtu) == (1, 1400));
    let view = followed.view.borrow().clone();
    for local in ["self4", "self6"] {
        ensure!(
            view.next_hops[&id(local)] == NextHop::Local,
            "{local}: {:?}",
            view.next_hops[&id(local)]
        );
    }
    for (backend, label) in [
        ("black4", "route_blackhole"),
        ("black6", "route_blackhole"),
        ("unreach4", "route_unreachable"),
        ("unreach6", "route_unreachable"),
        ("prohibit4", "route_prohibited"),
        ("prohibit6", "route_prohibited"),
        ("broadcast", "not_unicast"),
        ("nowhere4", "no_route"),
        ("nowhere6", "no_route"),
    ] {
        ensure!(
            reason(&view, backend) == Some(label),
            "{backend}: {:?}",
            view.unresolved.get(&id(backend))
        );
    }
    let own: Vec<String> = view.own_addresses.iter().map(ToString::to_string).collect();
    ensure!(own == ["10.0.0.1", "10.0.1.1", "fd00::1", "fd00:1::1"], "{own:?}");
    Ok(())
}

#[test]
fn egress_must_be_a_configured_interface() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    let mut followed = bed.start_with(&["eth1"], Sources::default(), &[("b", "10.0.0.2"), ("c", "10.0.1.2")])?;
    followed.until_via("c", GW_MACS[1])?;
    let text = followed.view.borrow().unresolved[&id("b")].to_string();
    ensure!(text == "egress interface eth0 is not in interfaces", "{text}");
    followed.driver.set_settings(Settings {
        interfaces: vec!["eth1".into(), "eth0".into()],
        sources: Sources::node(Some([10, 0, 1, 1].into()), None),
    });
    followed.until_via("b", GW_MACS[0])?;
    let via = followed.via("b")?;
    ensure!((via.port, via.source) == (1, "10.0.1.1".parse()?), "{via:?}");
    Ok(())
}

#[test]
fn rules_on_the_source_address_are_honoured() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    route_gateways(&bed)?;
    let sources = Sources::node(Some([10, 0, 1, 1].into()), None);
    let mut followed = bed.start_with(&["eth0", "eth1"], sources, &GATEWAYS)?;
    followed.until_via("v4", GW_MACS[0])?;
    bed.lb.ip_batch("route add 192.0.2.0/24 via 10.0.1.2 table 7\n")?;
    followed.unchanged_for(Duration::from_millis(200))?;
    bed.ip("rule add from 10.0.1.1 lookup 7")?;
    report("policy rule added", followed.until_via("v4", GW_MACS[1])?);
    bed.ip("rule del from 10.0.1.1 lookup 7")?;
    report("policy rule removed", followed.until_via("v4", GW_MACS[0])?);
    Ok(())
}

#[test]
fn routes_that_move_vanish_or_appear_are_followed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    route_gateways(&bed)?;
    let mut followed = bed.start(&GATEWAYS)?;
    for (backend, prefix, gateways) in [
        ("v4", "192.0.2.0/24", ["10.0.0.2", "10.0.1.2"]),
        ("v6", "2001:db8::/32", ["fd00:0::2", "fd00:1::2"]),
    ] {
        followed.until_via(backend, GW_MACS[0])?;
        bed.ip(&format!("route replace {prefix} via {}", gateways[1]))?;
        report(
            &format!("{backend} route moved, new gateway not known yet"),
            followed.until_via(backend, GW_MACS[1])?,
        );
        ensure!(followed.via(backend)?.port == 1);
        bed.ip(&format!("route replace {prefix} via {}", gateways[0]))?;
        report(
            &format!("{backend} route moved back"),
            followed.until_via(backend, GW_MACS[0])?,
        );
        bed.ip(&format!("route del {prefix}"))?;
        report(
            &format!("{backend} route removed"),
            followed.until_reason(backend, "no_route")?,
        );
        bed.ip(&format!("route add {prefix} via {}", gateways[0]))?;
        report(
            &format!("{backend} route added"),
            followed.until_via(backend, GW_MACS[0])?,
        );
    }
    bed.ip("nexthop add id 5 via 10.0.0.2 dev eth0")?;
    bed.ip("route replace 192.0.2.0/24 nhid 5")?;
    followed.unchanged_for(Duration::from_millis(200))?;
    bed.ip("nexthop replace id 5 via 10.0.1.2 dev eth1")?;
    report("next-hop object replaced", followed.until_via("v4", GW_MACS[1])?);
    Ok(())
}

#[test]
fn interfaces_that_go_down_lose_their_carrier_or_vanish_are_followed() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    let mut followed = bed.start(&[("b", "10.0.0.2"), ("c", "fd00:1::2")])?;
    followed.until_via("b", GW_MACS[0])?;
    followed.until_via("c", GW_MACS[1])?;
    bed.ip("link set eth0 down")?;
    report(
        "interface set down",
        followed.until("b has no way", |view| reason(view, "b").is_some())?,
    );
    bed.ip("link set eth0 up")?;
    report("interface set up", followed.until_via("b", GW_MACS[0])?);
    // The kernel tells of carriers at most once a second.
    std::thread::sleep(Duration::from_millis(1_100));
    bed.gateways[0].ip(&["link", "set", "gw0", "down"])?;
    report("carrier lost", followed.until_reason("b", "egress_down")?);
    bed.gateways[0].ip(&["link", "set", "gw0", "up"])?;
    report("carrier back", followed.until_via("b", GW_MACS[0])?);
    bed.ip("link set eth0 mtu 1400")?;
    report(
        "MTU changed",
        followed.until("MTU 1400", |view| is_mtu(view, "b", 1400))?,
    );
    bed.ip("link del eth1")?;
    report(
        "interface deleted",
        followed.until("c has no way", |view| reason(view, "c").is_some())?,
    );
    let gone = "10.0.1.1".parse()?;
    followed.until("its address is not ours", |view| !view.own_addresses.contains(&gone))?;
    Ok(())
}

fn is_mtu(view: &NextHopView, backend: &str, mtu: u16) -> bool {
    matches!(view.next_hops.get(&id(backend)), Some(NextHop::Via(via)) if via.mtu == mtu)
}
