//! What is probed, and what the planner hears of it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lb_core::{
    desired::{Desired, NextHop, Protocol, VipKey},
    health::{Check, Checks, Failure, Health, HttpProbe, Outcome, Probe, State, Timing, VIP_SETTLES, Wanted},
    nexthop::{NextHopView, Unresolved},
};

use crate::world::{SECOND, World, desired, id, ms, set, vip};

fn tcp() -> Arc<Checks> {
    Arc::new(Checks::new([Check {
        probe: Probe::Tcp { port: 80 },
        timing: Timing::default(),
        needs_proof: false,
    }]))
}

fn kube() -> Arc<Checks> {
    Arc::new(Checks::new([Check::kube(10256), Check::tunnel()]))
}

#[test]
fn a_backend_whose_server_dies_is_unhealthy_within_three_probes_and_comes_back_within_two() {
    let checks = tcp();
    let mut world = World::new(&desired(3, [(vip(1), set(0..3), Some(Arc::clone(&checks)))]));
    world.run(20 * SECOND);
    assert!(world.monitor.overlay().is_empty());
    let seen: BTreeSet<State> = world
        .monitor
        .report(world.now)
        .values()
        .flatten()
        .map(|line| line.state)
        .collect();
    assert_eq!(seen, BTreeSet::from([State::Healthy]));

    let died = world.now;
    world.changes.clear();
    world.failing.insert(id(1), Failure::Refused);
    world.run(30 * SECOND);
    let (at, backend, change) = &world.changes[0];
    assert_eq!((backend, change.to), (&id(1), State::Unhealthy));
    // The third failure comes after two to three intervals, each at most a tenth longer than it says.
    assert!((ms(3600)..=ms(6700)).contains(&(*at - died)), "{:?}", *at - died);
    let unfit = world.monitor.overlay().unfit(&set(0..3), Some(&checks)).unwrap();
    assert_eq!(
        unfit.iter().collect::<Vec<_>>(),
        [(&id(1), Health::Unhealthy)],
        "who refuses is not dead"
    );
    let report = world.monitor.report(world.now);
    assert_eq!(report[&id(1)][0].last_failure, Some(Failure::Refused));

    let back = world.now;
    world.changes.clear();
    world.failing.clear();
    world.run(10 * SECOND);
    let (at, backend, change) = &world.changes[0];
    assert_eq!((backend, change.to), (&id(1), State::Healthy));
    assert!((ms(1700)..=ms(4500)).contains(&(*at - back)), "{:?}", *at - back);
    assert!(world.monitor.overlay().is_empty());
}

#[test]
fn a_backend_that_falls_silent_is_unhealthy_and_then_dead() {
    let mut world = World::new(&desired(3, [(vip(1), set(0..3), Some(tcp()))]));
    world.run(20 * SECOND);
    let died = world.now;
    world.changes.clear();
    world.failing.insert(id(2), Failure::NoConnection);
    world.run(30 * SECOND);
    let changes: Vec<_> = world
        .changes
        .iter()
        .map(|(at, _, change)| (*at - died, change.to))
        .collect();
    assert_eq!(
        changes.iter().map(|(_, to)| *to).collect::<Vec<_>>(),
        [State::Unhealthy, State::Dead]
    );
    let dead = changes[1].0 - changes[0].0;
    assert!((10 * SECOND..=ms(12_300)).contains(&dead), "{dead:?}");
}

#[test]
fn flapping_is_damped() {
    let mut world = World::new(&desired(3, [(vip(1), set(0..3), Some(tcp()))]));
    world.run(20 * SECOND);
    world.changes.clear();
    // Down for six seconds, up for six: as it is, it would change ten times a minute.
    for _ in 0..50 {
        world.failing.insert(id(0), Failure::Refused);
        world.run(6 * SECOND);
        world.failing.clear();
        world.run(6 * SECOND);
    }
    let gaps: Vec<Duration> = world.changes.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps.iter().all(|gap| *gap >= 5 * SECOND), "{gaps:?}");
    assert!(
        (2..40).contains(&world.changes.len()),
        "{} changes in ten minutes",
        world.changes.len()
    );
}

#[test]
fn equal_checks_are_probed_once_and_those_of_one_service_are_its_own() {
    let (shared, own) = (kube(), Arc::new(Checks::new([Check::kube(31_234), Check::tunnel()])));
    let all = set(0..4);
    let vips = (0..100).map(|index| (vip(index), Arc::clone(&all), Some(Arc::new((*shared).clone()))));
    let local = (vip(100), set([1, 2]), Some(Arc::clone(&own)));
    let unchecked = (vip(101), set([3]), None);
    let mut world = World::new(&desired(5, vips.chain([local, unchecked])));
    assert_eq!(
        world.monitor.sums().checks,
        4 + 4 + 2,
        "kube-proxy's port, tunnel, the Service's own port"
    );
    world.run(100 * SECOND);
    let by_port = |port| {
        world.launches(
            Duration::ZERO,
            |check| matches!(&check.probe, Probe::Http(HttpProbe { port: at, .. }) if *at == port),
        )
    };
    assert!((76..=84).contains(&by_port(10256)), "{}", by_port(10256));
    assert!((38..=42).contains(&by_port(31_234)), "{}", by_port(31_234));
    // A node that does not serve that Service is none of another's business.
    let asked = world.launched.iter().filter(|(_, launch)| launch.check == own.list[0]);
    let asked: BTreeSet<_> = asked.map(|(_, launch)| launch.backend.clone()).collect();
    assert_eq!(asked, BTreeSet::from([id(1), id(2)]));
    assert!(
        world.launched.iter().all(|(_, launch)| launch.backend != id(4)),
        "nobody's backend"
    );
}

#[test]
fn the_tunnel_probe_asks_for_another_vip_each_time_and_for_none_that_would_not_let_it_in() {
    let all = set(0..2);
    let mut desired = desired(2, (0..20).map(|index| (vip(index), Arc::clone(&all), Some(kube()))));
    for index in 10..20 {
        desired.vips.get_mut(&vip(index)).unwrap().allowed_sources = Some(Arc::from([]));
    }
    let udp = VipKey {
        protocol: Protocol::Udp,
        ..vip(30)
    };
    let other = desired.vips[&vip(0)].clone();
    desired.vips.insert(udp, other);
    let mut world = World::new(&desired);
    world.run(1000 * SECOND);
    let tunnel = || {
        world
            .launched
            .iter()
            .filter(|(_, launch)| launch.check.probe == Probe::Tunnel)
    };
    assert!(
        tunnel().all(|(at, _)| *at >= VIP_SETTLES),
        "none before its Service's status can have reached the nodes"
    );
    let asked: BTreeSet<VipKey> = tunnel().filter_map(|(_, launch)| launch.vip).collect();
    assert_eq!(asked, (0..10).map(vip).collect());
    assert!(
        (180..=204).contains(&tunnel().count()),
        "one per node and round: {}",
        tunnel().count()
    );
    let skipped = world.monitor.outcomes()[&("tunnel", "no_vip")];
    assert!((4..=8).contains(&skipped), "in the first half minute: {skipped}");
}

#[test]
fn one_vip_that_never_answers_makes_no_node_unhealthy() {
    let all = set(0..3);
    let mut world = World::new(&desired(
        3,
        (0..10).map(|index| (vip(index), Arc::clone(&all), Some(kube()))),
    ));
    // Answers by hand: who is asked for the first VIP stays silent.
    while world.now < 3600 * SECOND {
        world.now += ms(100);
        while let Some(launch) = world.monitor.launch(world.now) {
            let outcome = match launch.vip {
                Some(asked) if asked == vip(0) => Outcome::Failure(Failure::NoSynAck),
                Some(_) | None => Outcome::Success,
            };
            let change = world.monitor.finish(launch.ticket, outcome, world.now);
            assert!(change.is_none_or(|(_, _, change)| !change.is_of_health()), "{launch:?}");
        }
    }
    assert!(world.monitor.outcomes()[&("tunnel", "no_syn_ack")] > 50);
}

#[test]
fn a_neighbour_that_does_not_answer_is_dead_and_back_when_it_is_found_again() {
    let (checks, all) = (tcp(), set(0..3));
    let mut world = World::new(&desired(3, [(vip(1), Arc::clone(&all), Some(Arc::clone(&checks)))]));
    world.run(10 * SECOND);
    let mut view = NextHopView::default();
    for index in 0..3 {
        view.next_hops.insert(id(index), NextHop::Local);
    }
    let mut failed = view.clone();
    failed.next_hops.insert(id(0), NextHop::Unresolved);
    failed
        .unresolved
        .insert(id(0), Unresolved::NeighbourFailed([10, 0, 0, 0].into(), "eth0".into()));
    world.changes.clear();
    world.monitor.hear(&failed);
    world.run(2 * SECOND);
    assert_eq!(world.monitor.overlay().health(&id(0), &checks), Health::Dead);
    assert!(
        world
            .changes
            .iter()
            .all(|(_, backend, change)| (backend, change.to) == (&id(0), State::Dead))
    );

    // The kernel asks again: that says nothing.
    let mut resolving = failed.clone();
    resolving.unresolved.insert(
        id(0),
        Unresolved::NeighbourResolving([10, 0, 0, 0].into(), "eth0".into()),
    );
    world.monitor.hear(&resolving);
    world.run(20 * SECOND);
    assert_eq!(world.monitor.overlay().health(&id(0), &checks), Health::Dead);
    world.monitor.hear(&view);
    world.run(2 * SECOND);
    assert_eq!(world.monitor.overlay().health(&id(0), &checks), Health::Eligible);
    // A gateway that does not answer is nobody's death.
    let mut gateway = failed.clone();
    gateway.unresolved.insert(
        id(0),
        Unresolved::NeighbourFailed([10, 0, 0, 254].into(), "eth0".into()),
    );
    world.monitor.hear(&gateway);
    world.run(20 * SECOND);
    assert_eq!(world.monitor.overlay().health(&id(0), &checks), Health::Eligible);
    // Who has left is forgotten, fallen or not.
    world.monitor.hear(&failed);
    world.run(20 * SECOND);
    assert!(!world.monitor.overlay().is_empty());
    world.monitor.watch(&Wanted::default(), world.now);
    assert!(world.monitor.overlay().is_empty());
    assert_eq!(world.monitor.sums().checks, 0);
}

#[test]
fn another_address_is_another_backend_and_what_is_still_in_flight_says_nothing() {
    let mut desired = desired(2, [(vip(1), set(0..2), Some(tcp()))]);
    let mut world = World::new(&desired);
    world.failing.insert(id(0), Failure::NoConnection);
    world.run(40 * SECOND);
    assert!(!world.monitor.overlay().is_empty());
    let launch = loop {
        world.now += ms(10);
        match world.monitor.launch(world.now) {
            Some(launch) if launch.backend == id(0) => break launch,
            Some(launch) => drop(world.monitor.finish(launch.ticket, Outcome::Success, world.now)),
            None => {}
        }
    };
    desired.backends.get_mut(&id(0)).unwrap().address = [10, 9, 9, 9].into();
    world.monitor.watch(&Wanted::new(&desired), world.now);
    assert!(world.monitor.overlay().is_empty(), "nothing is known of it");
    let before = world.monitor.sums();
    assert_eq!(world.monitor.finish(launch.ticket, Outcome::Success, world.now), None);
    assert_eq!(world.monitor.sums(), before);
    assert_eq!(before.flying, 0);
    // Nothing changes: nothing is forgotten.
    let report = world.monitor.report(world.now);
    world.monitor.watch(&Wanted::new(&desired), world.now);
    assert_eq!(world.monitor.report(world.now), report);
}

#[test]
fn while_nobody_answers_through_the_tunnel_silence_counts_against_nobody() {
    let (checks, all) = (kube(), set(0..3));
    let mut world = World::new(&desired(3, [(vip(1), Arc::clone(&all), Some(Arc::clone(&checks)))]));
    // Which backends answer through the tunnel; all answer at their health port.
    let drive = |world: &mut World, until: Duration, answers: &[usize]| {
        while world.now < until {
            world.now += ms(100);
            while let Some(launch) = world.monitor.launch(world.now) {
                let silent = launch.vip.is_some() && !answers.iter().any(|index| launch.backend == id(*index));
                let outcome = if silent {
                    Outcome::Failure(Failure::NoSynAck)
                } else {
                    Outcome::Success
                };
                world.monitor.finish(launch.ticket, outcome, world.now);
            }
        }
    };
    drive(&mut world, 600 * SECOND, &[]);
    assert!(
        world.monitor.overlay().is_empty(),
        "never a word: this node's own trouble"
    );
    assert_eq!(world.monitor.outcomes().get(&("tunnel", "no_syn_ack")), None);
    assert!(world.monitor.outcomes()[&("tunnel", "nobody_answers")] > 100);
    drive(&mut world, 700 * SECOND, &[0, 1]);
    assert_eq!(
        world.monitor.overlay().health(&id(2), &checks),
        Health::Unhealthy,
        "others are answered"
    );
    assert_eq!(world.monitor.overlay().health(&id(0), &checks), Health::Eligible);
    drive(&mut world, 800 * SECOND, &[0, 1, 2]);
    assert!(world.monitor.overlay().is_empty());
}

#[test]
fn a_health_port_that_no_node_serves_counts_against_nobody_until_one_does() {
    let checks = Arc::new(Checks::new([Check::kube(10256)]));
    let mut world = World::new(&desired(3, [(vip(1), set(0..3), Some(Arc::clone(&checks)))]));
    let drive = |world: &mut World, long: Duration, answer: &dyn Fn(usize) -> Outcome| {
        let until = world.now + long;
        while world.now < until {
            world.now += ms(100);
            while let Some(launch) = world.monitor.launch(world.now) {
                let index = (0..3).find(|index| launch.backend == id(*index));
                world
                    .monitor
                    .finish(launch.ticket, answer(index.expect("one of them")), world.now);
            }
        }
    };
    let refused = Outcome::Failure(Failure::Refused);
    let unfit = |world: &World| {
        let health = |index: &usize| world.monitor.overlay().health(&id(*index), &checks) != Health::Eligible;
        (0..3).filter(health).collect::<Vec<_>>()
    };
    drive(&mut world, 300 * SECOND, &|_| refused);
    assert_eq!(unfit(&world), [0; 0]);
    assert!(world.monitor.states().values().all(|state| *state == State::Unknown));
    assert!(world.monitor.outcomes()[&("http", "nobody_answers")] > 100);
    // A word against itself is one, too: a node without endpoints answers 503 at a `healthCheckNodePort`.
    drive(&mut world, 30 * SECOND, &|index| match index {
        1 => Outcome::Failure(Failure::Status(503)),
        _ => refused,
    });
    assert_eq!(unfit(&world), [0, 1, 2]);
    // What is known stays when all fall silent at once.
    drive(&mut world, 30 * SECOND, &|_| Outcome::Success);
    assert_eq!(unfit(&world), [0; 0]);
    drive(&mut world, 300 * SECOND, &|_| refused);
    assert_eq!(unfit(&world), [0, 1, 2]);
}

#[test]
fn who_answers_at_one_port_is_not_dead_for_the_silence_of_another() {
    let check = |port| Check {
        probe: Probe::Tcp { port },
        timing: Timing::default(),
        needs_proof: false,
    };
    let [silent, speaks] = [1, 2].map(|port| Arc::new(Checks::new([check(port)])));
    let mut world = World::new(&desired(
        3,
        [
            (vip(1), set(0..3), Some(Arc::clone(&silent))),
            (vip(2), set(0..3), Some(Arc::clone(&speaks))),
        ],
    ));
    // Which ports of the first worker answer.
    let drive = |world: &mut World, long: Duration, answers: &[u16]| {
        let until = world.now + long;
        while world.now < until {
            world.now += ms(50);
            while let Some(launch) = world.monitor.launch(world.now) {
                let Probe::Tcp { port } = launch.check.probe else {
                    unreachable!("only those are asked for")
                };
                let outcome = if launch.backend != id(0) || answers.contains(&port) {
                    Outcome::Success
                } else {
                    Outcome::Failure(Failure::NoConnection)
                };
                world.monitor.finish(launch.ticket, outcome, world.now);
            }
        }
    };
    let of = |world: &World| [&silent, &speaks].map(|checks| world.monitor.overlay().health(&id(0), checks));
    drive(&mut world, 60 * SECOND, &[2]);
    assert_eq!(of(&world), [Health::Unhealthy, Health::Eligible], "the host lives");
    drive(&mut world, 60 * SECOND, &[]);
    assert_eq!(of(&world), [Health::Dead; 2]);
    drive(&mut world, 60 * SECOND, &[1]);
    assert_eq!(of(&world), [Health::Eligible, Health::Unhealthy]);
    let states = world.monitor.states();
    assert_eq!(states[&id(0)], State::Unhealthy, "the worst of what is asked is shown");
    assert_eq!(states[&id(1)], State::Healthy);
}

/// The cluster does not have it any more, and flows may live there.
#[test]
fn a_backend_that_is_gone_is_dead_when_it_is_silent_and_lives_while_anything_answers() {
    let of = |gone: &[usize]| Desired {
        gone: gone.iter().map(|index| id(*index)).collect(),
        ..desired(2, [(vip(1), set(0..2), Some(tcp()))])
    };
    let departed = || [2, 3, 4].map(|index| (id(index), [10, 0, 0, index as u8].into()));
    let mut world = World::new(&of(&[]));
    let watch = |world: &mut World, gone: &[usize]| {
        world
            .monitor
            .watch(&Wanted::new(&of(gone)).keeping(departed()), world.now);
        world.launched.clear();
    };
    // 2 is gone and silent, 3 is gone and refuses connections, 4 has only left, and is silent.
    world.failing.insert(id(2), Failure::NoConnection);
    world.failing.insert(id(3), Failure::Refused);
    world.failing.insert(id(4), Failure::NoConnection);
    watch(&mut world, &[]);
    world.run(60 * SECOND);
    assert!(
        world.launched.iter().all(|(_, launch)| launch.backend < id(2)),
        "nothing is asked of who has left"
    );
    watch(&mut world, &[2, 3]);
    let dead = |world: &World| {
        let overlay = world.monitor.overlay();
        [2, 3, 4].map(|index| overlay.is_gone(&id(index)))
    };
    let dead_after = u64::from(Check::presence().timing.dead_after_ms);
    world.run(ms(dead_after));
    assert_eq!(dead(&world), [false; 3], "a moment of silence is none");
    world.run(15 * SECOND);
    assert_eq!(dead(&world), [true, false, false]);
    world.run(600 * SECOND);
    assert_eq!(dead(&world), [true, false, false]);
    let states = world.monitor.states();
    assert_eq!(states.len(), 2, "of those that may take flows: {states:?}");
    // It was a mistake of the cluster's: the node is back, or only excluded.
    watch(&mut world, &[3]);
    assert_eq!(dead(&world), [false; 3]);
    // Where nothing is probed, this is not either.
    let unchecked = Desired {
        gone: [id(2)].into(),
        ..desired(2, [(vip(1), set(0..2), None)])
    };
    world
        .monitor
        .watch(&Wanted::new(&unchecked).keeping(departed()), world.now);
    assert_eq!(world.monitor.sums().checks, 0);
}
