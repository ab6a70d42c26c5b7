//! Interfaces: ports, tags, MTU and addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

#[test]
fn interface_without_mac_address_or_source_address_is_no_egress() {
    let mut world = World::new();
    world.backends(&[("192.0.2.1", via(None)), ("2001:db8::1", via_interface(ETH1, None))]);
    world.tell(Event::Link(Link {
        mac: None,
        ..link(ETH0, "eth0")
    }));
    assert_eq!(world.known("b0"), Err("egress interface eth0 is not Ethernet".into()));
    assert_eq!(
        world.known("b1"),
        Err("egress interface eth1 has no address to send from".into())
    );
}

#[test]
fn own_addresses_are_those_that_others_may_know() {
    let mut world = World::new();
    world.tell(Event::Address(on(ETH0, "fe80::1")));
    assert_eq!(
        world.resolver.view().own_addresses,
        [ip("10.0.0.1"), ip("10.1.0.1"), ip("fd00::1")].into()
    );
    world.tell(Event::AddressGone(ETH1, ip("10.1.0.1")));
    world.pass(PASS_GAP);
    assert_eq!(
        world.resolver.view().own_addresses,
        [ip("10.0.0.1"), ip("fd00::1")].into()
    );
}

#[test]
fn interface_going_down_and_up_is_followed() {
    let mut world = resolved();
    world.tell(Event::Link(Link {
        up: false,
        ..link(ETH0, "eth0")
    }));
    world.pass(PASS_GAP);
    assert_eq!(world.known("b0"), Err("egress interface eth0 is down".into()));
    world.tell(Event::Link(link(ETH0, "eth0")));
    world.pass(PASS_GAP);
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
    world.tell(Event::LinkGone(ETH0));
    world.pass(PASS_GAP);
    assert_eq!(
        world.known("b0"),
        Err("egress interface with index 2 is unknown".into())
    );
}

#[test]
fn configured_interfaces_that_are_down_or_gone_are_told_without_any_backend() {
    let mut world = World::new();
    world.pass(PASS_GAP);
    assert!(world.resolver.view().down.is_empty());
    world.tell(Event::Link(Link {
        up: false,
        ..link(ETH0, "eth0")
    }));
    world.pass(PASS_GAP);
    assert_eq!(world.resolver.view().down, ["eth0".into()].into());
    world.tell(Event::LinkGone(ETH1));
    world.pass(PASS_GAP);
    assert_eq!(world.resolver.view().down, ["eth0".into(), "eth1".into()].into());
    world.tell(Event::Link(link(ETH0, "eth0")));
    world.pass(PASS_GAP);
    assert_eq!(world.resolver.view().down, ["eth1".into()].into());
}

#[test]
fn what_does_not_matter_asks_nothing() {
    let mut world = resolved();
    world.pass(PASS_GAP);
    world.tell(Event::Link(link(ETH0, "eth0")));
    world.tell(Event::Link(link(77, "pod-veth")));
    world.tell(Event::LinkGone(77));
    world.tell(Event::Address(on(ETH0, "10.0.0.1")));
    world.tell(Event::Address(on(ETH0, "fe80::5")));
    world.tell(Event::AddressGone(ETH0, ip("10.9.9.9")));
    world.pass(PASS_GAP);
    assert_eq!(world.commands, []);
}

#[test]
fn mtu_is_the_least_of_route_and_interface() {
    for (route, interface, expected) in [
        (None, 1500, 1500),
        (Some(1400), 1500, 1400),
        (Some(9000), 1500, 1500),
        (None, 65_536, 65_535),
    ] {
        let mut world = resolved();
        let answer = RouteAnswer::Unicast {
            ifindex: ETH0,
            gateway: Some(ip("10.0.0.2")),
            source: None,
            mtu: route,
        };
        world.fib.insert(ip("192.0.2.1"), answer);
        world.tell(Event::Link(Link {
            mtu: interface,
            ..link(ETH0, "eth0")
        }));
        world.tell(Event::RoutesChanged(None));
        world.pass(PASS_GAP);
        assert_eq!(world.via("b0").mtu, expected);
    }
}

#[test]
fn source_is_configured_or_the_routes_or_the_interfaces() {
    let v4 = |address| Sources::node(Some(address), None);
    let prefix = Sources::prefix(Some("198.51.100.0/24".parse().unwrap()), None);
    let own = Ipv4Addr::new(10, 1, 0, 1);
    let other = Some(ip("10.0.0.99"));
    for (sources, preferred, expected, asked_with) in [
        (Sources::default(), other, "10.0.0.99", None),
        (Sources::default(), None, "10.0.0.1", None),
        (v4(own), other, "10.1.0.1", Some(ip("10.1.0.1"))),
        (prefix, other, "198.51.100.0", None),
        (Sources::node(None, Some(Ipv6Addr::LOCALHOST)), other, "10.0.0.99", None),
    ] {
        let mut world = World::with(Settings {
            interfaces: vec!["eth0".into()],
            sources,
        });
        let answer = RouteAnswer::Unicast {
            ifindex: ETH0,
            gateway: None,
            source: preferred,
            mtu: None,
        };
        world.backends(&[("192.0.2.1", answer)]);
        let lookup = Command::LookUpRoute {
            destination: ip("192.0.2.1"),
            source: asked_with,
        };
        assert!(
            world.commands.contains(&lookup),
            "rules on sources see the address we send from"
        );
        world.tell(Event::Neighbour(neighbour(
            "192.0.2.1",
            NeighbourState::Reachable,
            Some(GW_MAC),
        )));
        assert_eq!(world.via("b0").source, ip(expected));
    }
}

#[test]
fn vlan_devices_on_a_configured_interface_give_tags() {
    let vlan = |ifindex, name, parent, id, ad| Link {
        vlan: Some(Vlan { parent, id, ad }),
        ..link(ifindex, name)
    };
    let two = VlanTags::Two {
        outer: 100,
        inner: 7,
        ad: true,
    };
    let untaggable = "egress interface top adds VLAN tags that are not supported";
    for (links, expected) in [
        (vec![vlan(10, "top", ETH1, 100, false)], Ok(VlanTags::One(100))),
        (
            vec![vlan(11, "mid", ETH1, 100, true), vlan(10, "top", 11, 7, false)],
            Ok(two),
        ),
        (vec![vlan(10, "top", ETH1, 100, true)], Err(untaggable)),
        (
            vec![
                vlan(12, "low", ETH1, 1, false),
                vlan(11, "mid", 12, 2, false),
                vlan(10, "top", 11, 3, false),
            ],
            Err(untaggable),
        ),
        (
            vec![vlan(10, "top", WG0, 100, false)],
            Err("egress interface top is not in interfaces"),
        ),
    ] {
        let mut world = World::new();
        world.backends(&[("192.0.2.1", via_interface(10, None))]);
        for link in links {
            world.tell(Event::Link(link));
        }
        let there = neighbour("192.0.2.1", NeighbourState::Reachable, Some(GW_MAC));
        world.tell(Event::Neighbour(Neighbour { ifindex: 10, ..there }));
        world.pass(PASS_GAP);
        match expected {
            Ok(tags) => assert_eq!(
                (world.via("b0").ifindex, world.via("b0").port, world.via("b0").tags),
                (ETH1, 1, Some(tags))
            ),
            Err(text) => assert_eq!(world.known("b0"), Err(text.into())),
        }
    }
}

#[test]
fn where_the_kernel_knows_vlans_an_untagged_way_is_untagged() {
    let mut world = World::new();
    world.backends(&[("192.0.2.1", via(None))]);
    world.tell(Event::Neighbour(neighbour(
        "192.0.2.1",
        NeighbourState::Reachable,
        Some(GW_MAC),
    )));
    world.pass(PASS_GAP);
    assert_eq!(
        world.via("b0").tags,
        None,
        "no VLANs: what a packet came with stays on it"
    );
    let clients = |parent| Link {
        vlan: Some(Vlan {
            parent,
            id: 100,
            ad: false,
        }),
        ..link(10, "clients")
    };
    world.tell(Event::Link(clients(WG0)));
    world.pass(PASS_GAP);
    assert_eq!(world.via("b0").tags, None, "they are not on a configured interface");
    world.tell(Event::Link(clients(ETH1)));
    world.pass(PASS_GAP);
    assert_eq!(world.via("b0").tags, Some(VlanTags::Untagged));
    world.tell(Event::LinkGone(10));
    world.pass(PASS_GAP);
    assert_eq!(world.via("b0").tags, None);
}
