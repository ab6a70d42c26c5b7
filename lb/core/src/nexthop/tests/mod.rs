//! Scenarios: what the kernel says, one event after the other, and what comes of it.

mod interfaces;
mod neighbours;
mod routes;

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
