//! Scenarios: what the kernel says, one event after the other, and what comes of it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::*;
use crate::desired::{NextHop, Via, VlanTags};

const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GW_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const NEW_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const ETH0: u32 = 2;
const ETH1: u32 = 3;
const WG0: u32 = 4;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn id(name: &str) -> BackendId {
    BackendId(name.into())
}

fn link(ifindex: u32, name: &str) -> Link {
    Link {
        ifindex,
        name: name.into(),
        mac: Some(LB_MAC),
        mtu: 1500,
        up: true,
        vlan: None,
    }
}

fn on(ifindex: u32, address: &str) -> Address {
    Address {
        ifindex,
        address: ip(address),
        usable: true,
    }
}

fn neighbour(address: &str, state: NeighbourState, mac: Option<[u8; 6]>) -> Neighbour {
    Neighbour {
        ifindex: ETH0,
        address: ip(address),
        state,
        mac,
        keeper: Keeper::Us,
    }
}

fn via(gateway: Option<&str>) -> RouteAnswer {
    via_interface(ETH0, gateway)
}

fn via_interface(ifindex: u32, gateway: Option<&str>) -> RouteAnswer {
    RouteAnswer::Unicast {
        ifindex,
        gateway: gateway.map(ip),
        source: Some(ip("10.0.0.1")),
        mtu: None,
    }
}

/// A resolver, a kernel that answers lookups from a table, and a clock.
struct World {
    resolver: Resolver,
    fib: BTreeMap<IpAddr, RouteAnswer>,
    now: Duration,
    /// All commands since the last look.
    commands: Vec<Command>,
}

impl World {
    /// Two configured Ethernet interfaces and one that is not; nothing routed.
    fn new() -> Self {
        Self::with(Settings {
            interfaces: vec!["eth0".into(), "eth1".into()],
            sources: Sources::default(),
        })
    }

    fn with(settings: Settings) -> Self {
        let mut world = Self {
            resolver: Resolver::new(settings),
            fib: BTreeMap::new(),
            now: Duration::from_secs(100),
            commands: Vec::new(),
        };
        world.tell(Event::Snapshot(Snapshot {
            links: vec![link(ETH0, "eth0"), link(ETH1, "eth1"), link(WG0, "wg0")],
            addresses: vec![
                on(ETH0, "10.0.0.1"),
                on(ETH1, "10.1.0.1"),
                on(ETH0, "fd00::1"),
                on(1, "127.0.0.1"),
            ],
            neighbours: Vec::new(),
        }));
        world
    }

    /// Backends `b0`, `b1`… at these addresses, with these routes.
    fn backends(&mut self, routes: &[(&str, RouteAnswer)]) {
        for (address, answer) in routes {
            self.fib.insert(ip(address), *answer);
        }
        let numbered = routes.iter().enumerate();
        self.resolver.set_backends(
            numbered
                .map(|(i, (address, _))| (id(&format!("b{i}")), ip(address)))
                .collect(),
        );
        self.run();
    }

    fn tell(&mut self, event: Event) {
        self.resolver.apply(event, self.now);
        self.run();
    }

    /// Lets time pass, stepping whenever the resolver asks for it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.resolver.deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.run();
        }
        self.now = end;
        self.run();
    }

    fn run(&mut self) {
        loop {
            let commands = self.resolver.step(self.now);
            if commands.is_empty() {
                return;
            }
            for command in &commands {
                if let Command::LookUpRoute { destination, .. } = command {
                    let answer = self.fib.get(destination).copied();
                    let answer = answer.unwrap_or(RouteAnswer::Refused(RouteRefusal::NoRoute));
                    self.resolver.apply(
                        Event::Route {
                            destination: *destination,
                            answer,
                        },
                        self.now,
                    );
                }
            }
            self.commands.extend(commands);
        }
    }

    fn lookups(&mut self) -> usize {
        let commands = std::mem::take(&mut self.commands);
        commands
            .iter()
            .filter(|command| matches!(command, Command::LookUpRoute { .. }))
            .count()
    }

    fn keeps(&mut self) -> Vec<IpAddr> {
        let commands = std::mem::take(&mut self.commands);
        let keep = |command| match command {
            Command::Keep { address, .. } => Some(address),
            Command::LookUpRoute { .. } | Command::Release { .. } | Command::Changed(_) => None,
        };
        commands.into_iter().filter_map(keep).collect()
    }

    fn changes(&mut self) -> usize {
        let commands = std::mem::take(&mut self.commands);
        commands
            .iter()
            .filter(|command| matches!(command, Command::Changed(_)))
            .count()
    }

    /// What is known of a backend: its next hop, or the reason's text.
    fn known(&self, backend: &str) -> Result<NextHop, String> {
        let view = &self.resolver.view();
        match view.next_hops[&id(backend)].clone() {
            NextHop::Unresolved => Err(view.unresolved[&id(backend)].to_string()),
            resolved @ (NextHop::Local | NextHop::Via(_)) => {
                assert!(
                    !view.unresolved.contains_key(&id(backend)),
                    "{backend} is resolved and has a reason"
                );
                Ok(resolved)
            }
        }
    }

    fn via(&self, backend: &str) -> Via {
        match self.known(backend) {
            Ok(NextHop::Via(via)) => via,
            other => panic!("{backend}: {other:?}"),
        }
    }
}

/// A backend behind the gateway 10.0.0.2, resolved.
fn resolved() -> World {
    let mut world = World::new();
    world.backends(&[("192.0.2.1", via(Some("10.0.0.2")))]);
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Reachable,
        Some(GW_MAC),
    )));
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
    world.pass(SOLICIT_AGAIN);
    world.commands.clear();
    world
}

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
fn backend_that_is_this_node_is_local() {
    let mut world = World::new();
    world.backends(&[("10.0.0.1", RouteAnswer::Local)]);
    assert_eq!(world.known("b0"), Ok(NextHop::Local));
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
fn new_mac_address_of_a_gateway_counts_at_once() {
    let mut world = resolved();
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Stale,
        Some(NEW_MAC),
    )));
    assert_eq!(world.via("b0").destination_mac, NEW_MAC);
}

#[test]
fn state_changes_that_keep_the_mac_address_change_nothing() {
    let mut world = resolved();
    for state in [
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Reachable,
    ] {
        world.tell(Event::Neighbour(neighbour("10.0.0.2", state, Some(GW_MAC))));
    }
    assert_eq!(world.commands, []);
}

#[test]
fn failed_neighbour_is_asked_again_and_recovers() {
    let mut world = resolved();
    world.tell(Event::Neighbour(neighbour("10.0.0.2", NeighbourState::Failed, None)));
    assert_eq!(
        world.known("b0"),
        Err("neighbour 10.0.0.2 on eth0 does not answer".into())
    );
    assert_eq!(world.keeps(), [ip("10.0.0.2")], "at once");
    world.pass(SOLICIT_AGAIN * 3);
    assert_eq!(world.keeps().len(), 3, "then once a second");
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Incomplete,
        None,
    )));
    assert_eq!(world.changes(), 0, "being asked is no better than having failed");
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Reachable,
        Some(GW_MAC),
    )));
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
}

#[test]
fn vanished_neighbour_counts_until_the_kernel_had_time_to_find_it_again() {
    let mut world = resolved();
    world.tell(Event::NeighbourGone(ETH0, ip("10.0.0.2")));
    assert_eq!(world.keeps(), [ip("10.0.0.2")]);
    world.tell(Event::Neighbour(neighbour(
        "10.0.0.2",
        NeighbourState::Incomplete,
        None,
    )));
    assert_eq!(world.via("b0").destination_mac, GW_MAC);
    world.pass(LINGER);
    assert_eq!(
        world.known("b0"),
        Err("neighbour 10.0.0.2 on eth0 is being resolved".into())
    );
}

#[test]
fn entries_of_others_and_permanent_ones_are_used_and_left_alone() {
    for (state, keeper) in [
        (NeighbourState::Permanent, Keeper::Nobody),
        (NeighbourState::Noarp, Keeper::Nobody),
        (NeighbourState::Reachable, Keeper::Other),
    ] {
        let mut world = World::new();
        world.tell(Event::Neighbour(Neighbour {
            keeper,
            ..neighbour("10.0.0.2", state, Some(GW_MAC))
        }));
        world.backends(&[("192.0.2.1", via(Some("10.0.0.2")))]);
        world.pass(Duration::from_secs(60));
        assert_eq!(world.via("b0").destination_mac, GW_MAC);
        assert!(world.keeps().is_empty(), "{state:?} {keeper:?}");
        world.backends(&[]);
        assert!(
            !world
                .commands
                .iter()
                .any(|command| matches!(command, Command::Release { .. }))
        );
    }
}

#[test]
fn neighbour_that_nobody_keeps_is_kept_and_again_where_the_kernel_cannot() {
    let mut world = World::new();
    let learned = neighbour("10.0.0.2", NeighbourState::Stale, Some(GW_MAC));
    world.tell(Event::Neighbour(Neighbour {
        keeper: Keeper::Nobody,
        ..learned
    }));
    world.backends(&[("192.0.2.1", via(Some("10.0.0.2")))]);
    assert_eq!(world.keeps(), [ip("10.0.0.2")]);
    world.pass(KEEP_AGAIN * 4);
    assert_eq!(world.keeps().len(), 4);
    world.tell(Event::Neighbour(learned));
    world.pass(KEEP_AGAIN * 4);
    assert!(world.keeps().is_empty());
}

#[test]
fn neighbour_that_is_not_needed_any_more_is_let_go() {
    let mut world = resolved();
    let release = Command::Release {
        ifindex: ETH0,
        address: ip("10.0.0.2"),
    };
    assert_eq!(world.resolver.stop(), [release.clone()]);
    let mut world = resolved();
    world.backends(&[]);
    assert_eq!(world.commands.last(), Some(&release));
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
