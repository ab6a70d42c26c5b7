//! Backends that fall ill, die and recover: TCP stays where it lives while that lives, UDP leaves at once, nothing new comes, and the
//! lookup tables of sets are what they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_core::{
    desired::{BackendId, Protocol},
    health::{Check, Checks, Health, Overlay, WhenNone},
    plan::{Moment, Planner, Write},
};
use xdp_prog::abi::{BackendIndex, feature};

use crate::{
    transit::{Dice, Restarts, World},
    world::{CAPACITY, config, desired, id, key, resolved, set},
};

const HISTORIES: u64 = 40;
const PLANS: usize = 14;

fn checks(when_none: WhenNone) -> Arc<Checks> {
    Arc::new(Checks {
        panic_percent: 20,
        when_none,
        ..Checks::new([Check::kube(1)])
    })
}

impl World {
    /// Somebody falls ill, dies or recovers. What lived with the dead does not any more.
    fn ail(&mut self, dice: &mut Dice, ill: &mut BTreeMap<BackendId, Health>) {
        let known: Vec<BackendId> = self.desired.backends.keys().cloned().collect();
        ill.retain(|backend, _| known.contains(backend));
        let backend = known[dice.below(known.len())].clone();
        let health = [
            Health::Eligible,
            Health::Eligible,
            Health::Unhealthy,
            Health::Unhealthy,
            Health::Dead,
        ];
        let health = health[dice.below(5)];
        ill.insert(backend.clone(), health);
        let checks = checks(WhenNone::Reject);
        self.overlay = Overlay::of(ill.iter().map(|(backend, health)| (backend, &checks.list[0], *health)));
        if health == Health::Dead
            && let Some(dead) = self.planner.backend_index(&backend)
        {
            self.living.retain(|flow| flow.backend != dead.0);
        }
    }

    /// All new flows, of as many as it takes, and none goes to anybody who is out.
    fn assert_nobody_new_is_out(&mut self, dice: &mut Dice) {
        let before = self.planner.vips().map(|vip| (vip.key, vip.table)).collect();
        let old: BTreeSet<_> = self.living.iter().map(|flow| (flow.vip, flow.source())).collect();
        for _ in 0..60 {
            self.pump(dice, &before);
        }
        for flow in self
            .living
            .iter()
            .filter(|flow| !old.contains(&(flow.vip, flow.source())))
        {
            assert!(!self.is_out(&flow.vip, flow.backend), "a new flow of {:?}", flow.vip);
        }
    }
}

fn history(seed: u64, features: u64) -> World {
    let mut dice = Dice(seed);
    let mut world = World::new(features, Restarts::Never);
    for (at, vip) in world.desired.vips.values_mut().enumerate() {
        vip.checks = Some(checks(if at % 2 == 0 {
            WhenNone::UseAll
        } else {
            WhenNone::Reject
        }));
    }
    let mut ill = BTreeMap::new();
    world.plan(&mut dice);
    for _ in 0..40 {
        world.pump(&mut dice, &BTreeMap::new());
    }
    for _ in 0..PLANS {
        if dice.below(3) == 0 {
            world.change(&mut dice);
        } else {
            world.ail(&mut dice, &mut ill);
        }
        world.plan(&mut dice);
        world.speak();
        if features & feature::TRANSIT != 0 {
            world.assert_nobody_new_is_out(&mut dice);
        }
        let seconds = [0, 1, 30, 150][dice.below(4)];
        world.pass(seconds);
        world.plan(&mut dice);
    }
    world
}

#[test]
fn tcp_stays_with_the_unhealthy_udp_leaves_at_once_and_nothing_new_comes() {
    let (mut packets, mut moved) = (0, 0);
    for seed in 0..HISTORIES {
        let world = history(seed, feature::TRANSIT);
        assert_eq!((world.broken, world.stayed), (0, 0), "seed {seed}");
        packets += world.packets;
        moved += world.moved;
    }
    assert!(packets > 10_000 && moved > 50, "{packets} {moved}");
}

#[test]
fn without_transit_the_same_breaks_tcp() {
    let broken: usize = (0..HISTORIES).map(|seed| history(seed, 0).broken).sum();
    assert!(broken > 50, "{broken}");
}

/// A planner that knows one VIP of four backends; what its slots say under an overlay.
struct Bed {
    planner: Planner,
    desired: lb_core::desired::Desired,
    checks: Arc<Checks>,
}

impl Bed {
    fn new(when_none: WhenNone) -> Self {
        let set = set(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        let mut desired = desired(&[(key("203.0.113.1", 80), &set), (key("203.0.113.1", 81), &set)]);
        let checks = checks(when_none);
        // The second VIP asks for nothing.
        desired.vips.get_mut(&key("203.0.113.1", 80)).unwrap().checks = Some(Arc::clone(&checks));
        let planner = Planner::new(&CAPACITY, &config(0), 250);
        Self {
            planner,
            desired,
            checks,
        }
    }

    fn plan(&mut self, ill: &[(&str, Health)]) -> Vec<Write> {
        let ill: Vec<_> = ill.iter().map(|(name, health)| (id(name), *health)).collect();
        let check = &self.checks.list[0];
        let overlay = Overlay::of(ill.iter().map(|(backend, health)| (backend, check, *health)));
        let moment = Moment {
            overlay: Some(&overlay),
            ..Moment::STILL
        };
        let plan = self
            .planner
            .plan_at(&self.desired, &resolved(&self.desired), &moment)
            .unwrap();
        plan.writes
    }

    /// Backends of the slots of the VIP at this port.
    fn slots(&self, port: u16) -> Vec<String> {
        let vip = self.planner.vip(&key("203.0.113.1", port)).unwrap();
        let words = self.planner.image().table(vip.table.unit, vip.table.slots);
        let slots = words
            .iter()
            .flat_map(|word| (0..4).map(move |at| (word >> (16 * at)) as u16));
        let name = |slot| self.planner.backend_at(BackendIndex(slot)).map(ToString::to_string);
        slots.map(|slot| name(slot).unwrap_or_default()).collect()
    }
}

#[test]
fn slots_of_who_fell_go_to_others_all_else_stays_and_comes_back() {
    let mut bed = Bed::new(WhenNone::Reject);
    bed.plan(&[]);
    let before = bed.slots(80);
    assert_eq!(bed.planner.tables(), 1, "the two VIPs share it");
    bed.plan(&[("b", Health::Unhealthy)]);
    let after = bed.slots(80);
    for (before, after) in before.iter().zip(&after) {
        assert!(after != "b" && (before == after || before == "b"), "{before} {after}");
    }
    assert_eq!(bed.slots(81), before, "who asks for nothing hears of nothing");
    let vip = bed.planner.vip(&key("203.0.113.1", 80)).unwrap();
    assert_eq!(vip.unfit.map(|unfit| unfit.health(&id("b"))), Some(Health::Unhealthy));
    // Dead, the slots are the same; nothing but the backend's line is written.
    bed.plan(&[("b", Health::Dead)]);
    assert_eq!(bed.slots(80), after);
    assert!(bed.plan(&[("b", Health::Dead)]).is_empty());
    bed.plan(&[]);
    assert_eq!(bed.slots(80), before);
    assert_eq!(bed.planner.tables(), 1, "and nothing is left behind");
}

#[test]
fn with_nobody_left_new_flows_are_refused_or_all_are_used() {
    let all = ["a", "b", "c", "d"].map(|name| (name, Health::Unhealthy));
    for (when_none, refuses) in [(WhenNone::Reject, true), (WhenNone::UseAll, false)] {
        let mut bed = Bed::new(when_none);
        bed.plan(&[]);
        let before = bed.slots(80);
        bed.plan(&all);
        let nobody = bed.slots(80).iter().all(String::is_empty);
        assert_eq!((nobody, bed.slots(80) == before), (refuses, !refuses), "{when_none:?}");
        bed.plan(&all[..3]);
        assert!(bed.slots(80).iter().all(|name| name == "d"));
        assert_eq!(bed.slots(81), before);
    }
    // Below the threshold.
    let mut bed = Bed::new(WhenNone::Reject);
    bed.checks = Arc::new(Checks {
        panic_percent: 30,
        ..(*bed.checks).clone()
    });
    let vip = bed.desired.vips.get_mut(&key("203.0.113.1", 80)).unwrap();
    vip.checks = Some(Arc::clone(&bed.checks));
    bed.plan(&[]);
    let before = bed.slots(80);
    bed.plan(&all[..3]);
    assert_eq!(bed.slots(80), before, "one of four is too few");
}

#[test]
fn every_protocol_has_a_vip_in_the_histories() {
    let world = World::new(feature::TRANSIT, Restarts::Never);
    let protocols: BTreeSet<Protocol> = world.desired.vips.keys().map(|key| key.protocol).collect();
    assert_eq!(protocols.len(), 2);
}
