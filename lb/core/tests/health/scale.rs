//! 5,000 nodes and 10,000 Services, with the real monitor: how many probes that is, and how soon a fall is seen.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lb_core::{
    desired::{BackendId, Desired},
    health::{Check, Checks, Failure, MAX_FLYING, MAX_PROBES_PER_SECOND, MAX_TARGETS, Probe, State, WhenNone},
};

use crate::world::{SECOND, World, desired, id, set, vip};

const NODES: usize = 5000;
const SERVICES: usize = 10_000;

/// `local` of the Services have policy Local, and endpoints on three nodes each; the others are served by all nodes.
fn cluster(local: usize) -> Desired {
    let all = set(0..NODES);
    let proxy = Arc::new(Checks::new([Check::kube(10256), Check::tunnel()]));
    desired(
        NODES,
        (0..SERVICES).map(|index| {
            if index >= local {
                return (vip(index), Arc::clone(&all), Some(Arc::clone(&proxy)));
            }
            let mut nodes: Vec<usize> = (0..3).map(|nth| (index * 7 + nth * 1667) % NODES).collect();
            nodes.sort_unstable();
            let port = 30_000 + (index % 2768) as u16;
            let own = Arc::new(Checks::new([Check::kube(port), Check::tunnel()]));
            (vip(index), set(nodes), Some(own))
        }),
    )
}

/// No second has more than the bound, wherever it begins.
fn assert_bounded(world: &World) {
    let bound = MAX_PROBES_PER_SECOND as usize;
    for pair in world.launched.windows(bound + 1) {
        assert!(
            pair[bound].0 - pair[0].0 >= SECOND,
            "more than {bound} in the second from {:?}",
            pair[0].0
        );
    }
}

/// Probes a second, in the last 20 s.
fn rate(world: &World) -> usize {
    world.launches(world.now - 20 * SECOND, |_| true) / 20
}

/// How many turns everybody had of one kind of probe: least, most.
fn turns(world: &World, kind: impl Fn(&Check) -> bool) -> (u32, u32) {
    let mut turns: BTreeMap<(&BackendId, &Check), u32> = BTreeMap::new();
    for (_, launch) in world.launched.iter().filter(|(_, launch)| kind(&launch.check)) {
        *turns.entry((&launch.backend, &launch.check)).or_default() += 1;
    }
    (*turns.values().min().unwrap(), *turns.values().max().unwrap())
}

#[test]
fn services_of_all_nodes_share_their_probes_and_stay_well_below_the_bound() {
    let mut world = World::new(&cluster(0));
    assert_eq!(world.monitor.sums().checks, 2 * NODES);
    world.run(90 * SECOND);
    assert_bounded(&world);
    let rate = rate(&world);
    println!("10,000 Services of all 5,000 nodes: {rate} probes a second");
    assert!(
        (1400..=1600).contains(&rate),
        "1,000 of kube-proxy's port and 500 through the tunnel: {rate}"
    );
    assert!(
        world.monitor.sums().late < Duration::from_millis(50),
        "{:?}",
        world.monitor.sums()
    );
    let (least, most) = turns(&world, |check| check.probe != Probe::Tunnel);
    assert!(
        least >= 16 && most <= 20,
        "{least} to {most} turns in 90 s of an interval of 5 s"
    );
}

#[test]
fn where_there_is_more_to_do_than_the_rate_allows_all_wait_alike() {
    let mut world = World::new(&cluster(8000));
    let checks = world.monitor.sums().checks;
    assert!(checks > 2 * NODES + 20_000, "{checks}");
    world.run(120 * SECOND);
    assert_bounded(&world);
    let rate = rate(&world);
    println!("2,000 Services of all nodes, 8,000 of three each: {checks} checks, {rate} probes a second");
    assert!((1850..=2000).contains(&rate), "{rate}");
    assert!(
        world.monitor.sums().late > SECOND,
        "said to be late: {:?}",
        world.monitor.sums()
    );
    let (least, most) = turns(&world, |check| check.probe != Probe::Tunnel);
    println!("turns in 120 s: {least} to {most}");
    assert!(least >= 4 && most - least <= 4, "{least} to {most}");
}

#[test]
fn a_fallen_rack_is_seen_and_so_is_its_return() {
    let mut world = World::new(&cluster(0));
    world.run(60 * SECOND);
    world.changes.clear();
    let died = world.now;
    world
        .failing
        .extend((0..40).map(|index| (id(index * 100), Failure::NoConnection)));
    world.run(40 * SECOND);
    let when = |state| {
        let of: Vec<Duration> = world
            .changes
            .iter()
            .filter(|(_, _, change)| change.to == state)
            .map(|(at, ..)| *at - died)
            .collect();
        (of.len(), *of.iter().max().unwrap())
    };
    let ((unhealthy, last), (dead, buried)) = (when(State::Unhealthy), when(State::Dead));
    println!(
        "40 of 5,000 nodes fall silent: by their port dead within {buried:?}, through the tunnel unhealthy within {last:?}"
    );
    assert!(
        buried <= 29 * SECOND,
        "two intervals of 5 s and a timeout, ten seconds of silence, and the next probe: {buried:?}"
    );
    assert!(unhealthy == 80 && dead == 40, "{unhealthy} {dead}");
    assert_bounded(&world);
}

#[test]
fn when_all_fall_silent_probes_in_flight_are_bounded_and_all_are_still_asked() {
    let mut world = World::new(&cluster(0));
    world.run(40 * SECOND);
    world
        .failing
        .extend((0..NODES).map(|index| (id(index), Failure::NoConnection)));
    let from = world.now;
    for _ in 0..60 {
        world.run(SECOND);
        assert!(world.monitor.sums().flying <= MAX_FLYING);
    }
    assert_bounded(&world);
    let asked = world.launches(from, |check| check.probe != Probe::Tunnel);
    assert!(asked >= 2 * NODES, "{asked} probes in a minute");
    // And the overlay is not believed: it could not be worse than to use all.
    let proxy = Checks {
        when_none: WhenNone::UseAll,
        ..Checks::new([Check::kube(10256), Check::tunnel()])
    };
    assert_eq!(world.monitor.overlay().unfit(&set(0..NODES), Some(&proxy)), None);
    assert!(world.monitor.overlay().is_panic(&set(0..NODES), &proxy));
}

#[test]
fn what_is_beyond_the_bound_of_targets_is_not_probed_and_said() {
    let all = set(0..NODES);
    let vips = (0..20).map(|index| {
        let checks = Checks::new([Check::kube(30_000 + index as u16)]);
        (vip(index), Arc::clone(&all), Some(Arc::new(checks)))
    });
    let world = World::new(&desired(NODES, vips));
    let sums = world.monitor.sums();
    assert_eq!((sums.checks, sums.unprobed), (MAX_TARGETS, 20 * NODES - MAX_TARGETS));
}
