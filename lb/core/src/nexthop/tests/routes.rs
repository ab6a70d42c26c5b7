//! Routes: what is looked up, when, and what comes of the answer.

use super::*;

#[test]
fn backend_behind_a_gateway_gets_the_gateways_mac_address() {
    assert_eq!(
        resolved().via("b0"),
        Via {
            ifindex: ETH0,
            port: 0,
            destination_mac: GW_MAC,
            source_mac: LB_MAC,
            source: ip("10.0.0.1"),
            mtu: 1500,
            tags: None,
        }
    );
}

#[test]
fn on_link_backend_is_its_own_neighbour() {
    let mut world = World::new();
    world.backends(&[("10.0.0.7", via(None))]);
    assert_eq!(
        world.known("b0"),
        Err("neighbour 10.0.0.7 on eth0 is being resolved".into())
    );
    assert_eq!(world.keeps(), [ip("10.0.0.7")]);
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.7",
        NeighbourState::Stale,
        Some(GW_MAC),
    )));
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
}

#[test]
fn ipv4_backend_may_be_behind_an_ipv6_gateway() {
    let mut world = World::new();
    world.backends(&[("192.0.2.1", via(Some("fe80::2")))]);
    world.tell(Event::Neighbour(neighbour(
        "fe80::2",
        NeighbourState::Reachable,
        Some(GW_MAC),
    )));
    assert_eq!(
        (world.via("b0").destination_mac, world.via("b0").source),
        (GW_MAC, ip("10.0.0.1"))
    );
}

#[test]
fn nothing_is_said_before_the_kernels_tables_are_known() {
    let mut resolver = Resolver::new(Settings::default());
    resolver.set_backends([(id("b0"), ip("192.0.2.1"))].into());
    assert_eq!((resolver.step(Duration::ZERO), resolver.deadline()), (vec![], None));
}

#[test]
fn every_refusal_has_its_reason() {
    use RouteRefusal::*;
    let table = [
        (RouteAnswer::Refused(NoRoute), "no route"),
        (RouteAnswer::Refused(Unreachable), "route is unreachable"),
        (RouteAnswer::Refused(Blackhole), "route is a blackhole"),
        (RouteAnswer::Refused(Prohibited), "route is prohibited"),
        (RouteAnswer::Refused(NotUnicast), "not a unicast address"),
        (
            RouteAnswer::Refused(Encapsulated),
            "route has an encapsulation of its own",
        ),
        (RouteAnswer::Refused(Failed(12)), "route lookup failed (errno 12)"),
        (via_interface(WG0, None), "egress interface wg0 is not in interfaces"),
        (via_interface(99, None), "egress interface with index 99 is unknown"),
    ];
    for (answer, text) in table {
        let mut world = World::new();
        world.backends(&[("192.0.2.1", answer)]);
        assert_eq!(world.known("b0"), Err(text.into()));
        assert!(world.keeps().is_empty(), "nobody to resolve: {text}");
    }
}

#[test]
fn backend_that_is_this_node_is_local() {
    let mut world = World::new();
    world.backends(&[("10.0.0.1", RouteAnswer::Local)]);
    assert_eq!(world.known("b0"), Ok(NextHop::Local));
}

#[test]
fn route_that_moves_to_another_interface_is_followed() {
    let mut world = resolved();
    world.fib.insert(ip("192.0.2.1"), via_interface(ETH1, Some("10.1.0.2")));
    world.tell(Event::RoutesChanged(Some("192.0.2.0/24".parse().unwrap())));
    world.pass(PASS_GAP);
    assert_eq!(
        world.known("b0"),
        Err("neighbour 10.1.0.2 on eth1 is being resolved".into())
    );
    let there = neighbour("10.1.0.2", NeighbourState::Reachable, Some(NEW_MAC));
    world.tell(Event::Neighbour(Neighbour { ifindex: ETH1, ..there }));
    assert_eq!(
        (
            world.via("b0").ifindex,
            world.via("b0").port,
            world.via("b0").destination_mac
        ),
        (ETH1, 1, NEW_MAC)
    );
}

#[test]
fn flapping_route_costs_one_pass_per_gap() {
    let mut world = resolved();
    for millisecond in 0..100 {
        let gone = RouteAnswer::Refused(RouteRefusal::NoRoute);
        let answer = if millisecond % 2 == 0 {
            gone
        } else {
            via(Some("10.0.0.2"))
        };
        world.fib.insert(ip("192.0.2.1"), answer);
        world.tell(Event::RoutesChanged(None));
        world.pass(Duration::from_millis(1));
    }
    world.pass(PASS_GAP);
    let passes = 100 / u32::try_from(PASS_GAP.as_millis()).unwrap();
    assert!(
        (passes..=passes + 2).contains(&u32::try_from(world.lookups()).unwrap()),
        "a pass per gap"
    );
    assert_eq!(world.via("b0").destination_mac, GW_MAC, "the last word counts");
}

#[test]
fn route_change_asks_only_about_backends_inside_its_prefix() {
    let mut world = World::new();
    world.backends(&[
        ("192.0.2.1", via(None)),
        ("192.0.3.1", via(None)),
        ("2001:db8::1", via(None)),
    ]);
    let table = [
        (Some("192.0.2.0/24"), 1),
        (Some("0.0.0.0/0"), 2),
        (Some("::/0"), 1),
        (Some("198.51.100.0/24"), 0),
    ];
    for (prefix, lookups) in table.into_iter().chain([(None, 3)]) {
        world.pass(PASS_GAP);
        world.commands.clear();
        world.tell(Event::RoutesChanged(prefix.map(|prefix| prefix.parse().unwrap())));
        assert_eq!(world.lookups(), lookups, "{prefix:?}");
    }
}

#[test]
fn thousands_of_backends_behind_one_gateway_share_its_entry() {
    let mut world = World::new();
    let addresses: Vec<String> = (0..5_000_u32)
        .map(|i| Ipv4Addr::from(0xc612_0000 + i).to_string())
        .collect();
    let routes: Vec<_> = addresses
        .iter()
        .map(|address| (address.as_str(), via(Some("10.0.0.2"))))
        .collect();
    world.backends(&routes);
    assert_eq!(world.keeps(), [ip("10.0.0.2")]);
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Reachable,
        Some(GW_MAC),
    )));
    assert_eq!(world.via("b4999").destination_mac, GW_MAC);
    assert_eq!(world.changes(), 1, "all of them in one change");
}

#[test]
fn steps_are_bounded() {
    let mut resolver = Resolver::new(Settings {
        interfaces: vec!["eth0".into()],
        sources: Sources::default(),
    });
    resolver.set_backends(
        (0..1_000_u32)
            .map(|i| (id(&i.to_string()), Ipv4Addr::from(0x0a00_1000 + i).into()))
            .collect(),
    );
    let links = vec![link(ETH0, "eth0")];
    resolver.apply(
        Event::Snapshot(Snapshot {
            links,
            ..Snapshot::default()
        }),
        Duration::ZERO,
    );
    let mut asked = 0;
    let mut kept = 0;
    loop {
        let commands = resolver.step(Duration::ZERO);
        let keeps = commands
            .iter()
            .filter(|command| matches!(command, Command::Keep { .. }))
            .count();
        assert!(
            commands.len() <= LOOKUPS_PER_STEP.max(SOLICITS_PER_STEP + 1),
            "{}",
            commands.len()
        );
        for command in &commands {
            if let Command::LookUpRoute { destination, .. } = command {
                asked += 1;
                resolver.apply(
                    Event::Route {
                        destination: *destination,
                        answer: via(None),
                    },
                    Duration::ZERO,
                );
            }
        }
        kept += keeps;
        if commands.is_empty() {
            break;
        }
    }
    assert_eq!((asked, kept), (1_000, 1_000));
}

#[test]
fn snapshot_corrects_what_was_missed() {
    let mut world = resolved();
    world.tell(Event::Snapshot(Snapshot {
        links: vec![link(ETH0, "eth0")],
        addresses: vec![on(ETH0, "10.0.0.1")],
        neighbours: vec![neighbour("10.0.0.2", NeighbourState::Reachable, Some(NEW_MAC))],
    }));
    world.pass(PASS_GAP);
    assert_eq!(world.via("b0").destination_mac, NEW_MAC);
    assert_eq!(world.resolver.view().own_addresses, [ip("10.0.0.1")].into());
}

#[test]
fn order_of_events_does_not_matter_in_the_end() {
    let events = || {
        vec![
            Event::Link(link(ETH0, "eth0")),
            Event::Address(on(ETH0, "10.0.0.5")),
            Event::Neighbour(neighbour("10.0.0.2", NeighbourState::Reachable, Some(NEW_MAC))),
            Event::RoutesChanged(None),
        ]
    };
    let run = |events: Vec<Event>| {
        let mut world = World::new();
        world.backends(&[("192.0.2.1", via(Some("10.0.0.2")))]);
        events.into_iter().for_each(|event| world.tell(event));
        world.pass(PASS_GAP);
        world.resolver.view().clone()
    };
    let reference = run(events());
    assert!(reference.unresolved.is_empty());
    for rotation in 1..4 {
        let mut events = events();
        events.rotate_left(rotation);
        assert_eq!(run(events), reference);
    }
}
