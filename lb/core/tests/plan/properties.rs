//! Random histories of a small world.

use lb_core::{
    config::Capacity,
    desired::{Desired, NextHops},
    plan::{Plan, PlanError, Planner, Usage, Write},
};
use proptest::prelude::*;

use crate::{
    meaning,
    reader::{History, Reader, State, check, walk},
    world::{CAPACITY, config, histories, planner, states},
};

/// Plans a step of a history; `None` where chance leaves no room in the small match tables.
fn step(planner: &mut Planner, desired: Option<&Desired>, hops: &NextHops) -> Option<Plan> {
    match desired.map(|desired| planner.plan(desired, hops)) {
        None => Some(planner.plan_hops(hops)),
        Some(Ok(plan)) => Some(plan),
        Some(Err(PlanError::MatchTableFull { .. })) => None,
        Some(Err(error)) => panic!("{error}"),
    }
}

/// Every moment of a plan, and packets that see several.
fn check_all_moments(before: &State<'_>, after: &State<'_>, plan: &Plan, random: u64) {
    let history = History::new(before.planner.image().clone(), &plan.writes);
    let vips: Vec<_> = before.desired.vips.keys().chain(after.desired.vips.keys()).collect();
    for moment in 0..=history.moments() {
        for (key, salt) in vips.iter().zip(1u64..) {
            let random = random.wrapping_mul(salt * 2 + 1).wrapping_add(moment as u64) | 1;
            let slot = (random >> 20) as u32;
            let seen = walk(&mut Reader::new(&history, moment, 0), after.planner, key, slot);
            check(before, after, key, seen.as_ref());
            let seen = walk(&mut Reader::new(&history, moment, random), after.planner, key, slot);
            check(before, after, key, seen.as_ref());
        }
    }
}

/// Writes only go where packets do not look, but for single words; counters are zeroed before anybody counts.
fn check_shape(plan: &Plan) {
    let starts_or_ends_idle = plan.writes.windows(2).all(|pair| pair != [Write::Grace, Write::Grace]);
    assert!(starts_or_ends_idle, "two grace periods in a row");
}

proptest! {
    #[test]
    fn every_plan_reaches_what_is_desired_and_every_prefix_is_safe(
        history in histories(), salt in 0..64u64, random: u64,
    ) {
        let mut planner = planner(salt);
        let mut desired = Desired::default();
        let mut hops = NextHops::new();
        for (new_desired, new_hops) in history {
            let before = planner.clone();
            let Some(plan) = step(&mut planner, new_desired.as_ref(), &new_hops) else { continue };
            let (old_desired, old_hops) = (desired.clone(), std::mem::replace(&mut hops, new_hops));
            desired = new_desired.unwrap_or(desired);

            let mut image = before.image().clone();
            prop_assert!(plan.writes.iter().all(|write| image.apply(write)));
            prop_assert!(&image == planner.image());
            check_shape(&plan);
            meaning::check(&planner, &desired, &hops);
            let old = State { planner: &before, desired: &old_desired, hops: &old_hops };
            let new = State { planner: &planner, desired: &desired, hops: &hops };
            check_all_moments(&old, &new, &plan, random);
            prop_assert_eq!(planner.plan(&desired, &hops).unwrap(), Plan::default());
            prop_assert_eq!(planner.plan_hops(&hops), Plan::default());
        }
        planner.plan(&Desired::default(), &NextHops::new()).unwrap();
        let Usage { vips, backends, entries, table_units, segments, ranges } = planner.usage();
        // Unit 0, the empty table's, is taken with the first segment and never given away.
        prop_assert_eq!((vips, backends, entries, table_units, ranges), (0, 0, 0, segments, 0));
        prop_assert_eq!(planner.tables(), 0);
    }

    #[test]
    fn a_plan_that_does_not_fit_changes_nothing(
        history in proptest::collection::vec((states(), crate::world::hops()), 2..6), salt in 0..64u64,
        vips in 1..12u32, backends in 2..6u32, ranges in 4..32u32,
    ) {
        let capacity = Capacity { vips, backends, ranges, ..CAPACITY };
        let mut planner = Planner::new(&capacity, &lb_config(salt), 250);
        let mut reached = (Desired::default(), NextHops::new());
        for (desired, hops) in history {
            let before = planner.clone();
            match planner.plan(&desired, &hops) {
                Ok(_) => reached = (desired, hops),
                Err(_) => {
                    prop_assert!(planner.image() == before.image());
                    prop_assert_eq!(planner.usage(), before.usage());
                }
            }
            meaning::check(&planner, &reached.0, &reached.1);
            prop_assert_eq!(planner.plan(&reached.0, &reached.1).unwrap(), Plan::default());
        }
    }

    #[test]
    fn a_plan_depends_on_nothing_but_its_history(history in histories(), salt in 0..64u64) {
        let (mut one, mut other) = (planner(salt), planner(salt));
        for (desired, hops) in history {
            // Sets are the same by value, not by allocation.
            let copied = desired.clone().map(deep_copy);
            prop_assert_eq!(step(&mut one, desired.as_ref(), &hops), step(&mut other, copied.as_ref(), &hops));
        }
    }
}

fn lb_config(salt: u64) -> xdp_prog::abi::Config {
    config(salt)
}

fn deep_copy(mut desired: Desired) -> Desired {
    for vip in desired.vips.values_mut() {
        vip.set = std::sync::Arc::new((*vip.set).clone());
    }
    desired
}
