//! Histories at random, and what must hold of all of them.

use std::collections::BTreeMap;

use xdp_prog::abi::feature;

use super::{Dice, Restarts, World};

const HISTORIES: u64 = 40;
const PLANS: usize = 14;

fn history(seed: u64, features: u64, restarts: Restarts) -> World {
    history_of(seed, World::new(features, restarts))
}

fn history_of(seed: u64, mut world: World) -> World {
    let mut dice = Dice(seed);
    world.plan(&mut dice);
    for _ in 0..40 {
        world.pump(&mut dice, &BTreeMap::new());
    }
    for _ in 0..PLANS {
        world.change(&mut dice);
        if world.departed_die {
            world.bury(&mut dice);
        }
        world.plan(&mut dice);
        let seconds = [0, 1, 30, 150][dice.below(4)];
        world.pass(seconds);
        // As the daemon does every two seconds.
        world.plan(&mut dice);
    }
    world
}

/// No flow breaks in any history; how many packets there were, those that went elsewhere than to `cur`, and restarts.
fn check_histories(features: u64, restarts: Restarts) -> (usize, usize, usize) {
    let (packets, elsewhere, restarted, _) = check_worlds(|| World::new(features, restarts));
    (packets, elsewhere, restarted)
}

/// The same of any world; and how many flows ended with their backends.
fn check_worlds(new: impl Fn() -> World) -> (usize, usize, usize, usize) {
    let (mut packets, mut elsewhere, mut restarted, mut died) = (0, 0, 0, 0);
    for seed in 0..HISTORIES {
        let mut world = history_of(seed, new());
        assert_eq!((world.broken, world.haunting), (0, 0), "seed {seed}");
        packets += world.packets;
        elsewhere += world.elsewhere;
        restarted += world.restarted;
        died += world.died;
        // Flows end, and with them transits: nothing is kept of what has departed.
        world.restarts = Restarts::Never;
        for _ in 0..6 {
            world.living.clear();
            world.pass(150);
            world.plan(&mut Dice(seed));
        }
        assert!(!world.planner.is_in_transit(), "seed {seed}");
        assert_eq!(
            world.planner.usage().backends,
            world.desired.backends.len(),
            "seed {seed}"
        );
        assert!(world.planner.vips().all(|vip| !vip.table.is_wide));
    }
    assert!(packets > 20_000 && elsewhere > packets / 20, "{packets} {elsewhere}");
    (packets, elsewhere, restarted, died)
}

#[test]
fn no_living_flow_changes_its_backend_at_any_prefix_of_any_plan() {
    check_histories(feature::TRANSIT, Restarts::Never);
}

#[test]
fn nor_does_it_where_the_daemon_ends_at_any_prefix_and_another_goes_on_from_the_maps() {
    let (packets, elsewhere, restarted) = check_histories(feature::TRANSIT, Restarts::Adopting);
    assert!(
        restarted > 200,
        "{restarted} restarts, {packets} packets, {elsewhere} elsewhere"
    );
}

/// The same with schedulers that come, go and follow each other.
#[test]
fn nor_does_one_that_a_scheduler_placed() {
    check_histories(feature::TRANSIT | feature::SCHEDULERS, Restarts::Never);
}

#[test]
fn nor_does_one_that_a_scheduler_placed_where_the_daemon_ends_at_any_moment() {
    let (.., restarted) = check_histories(feature::TRANSIT | feature::SCHEDULERS, Restarts::Adopting);
    assert!(restarted > 20, "{restarted}");
}

/// The deadline of one who has departed comes, or it is gone: its flows end at once, and no other does.
#[test]
fn nor_does_one_where_those_who_have_departed_die() {
    for features in [feature::TRANSIT, feature::TRANSIT | feature::SCHEDULERS] {
        for restarts in [Restarts::Never, Restarts::Adopting] {
            let new = || World {
                departed_die: true,
                ..World::new(features, restarts)
            };
            let (.., died) = check_worlds(new);
            assert!(died > 100, "{died}");
        }
    }
}

#[test]
fn without_transit_flows_break() {
    for features in [0, feature::SCHEDULERS] {
        let broken = |seed| history(seed, features, Restarts::Never).broken;
        let broken: usize = (0..HISTORIES).map(broken).sum();
        assert!(broken > 100, "{features:x}: {broken}");
    }
}

#[test]
fn where_a_restart_forgets_what_is_in_transit_flows_break() {
    let broken = |seed| history(seed, feature::TRANSIT, Restarts::Forgetting).broken;
    let broken: usize = (0..HISTORIES).map(broken).sum();
    assert!(broken > 100, "{broken}");
}
