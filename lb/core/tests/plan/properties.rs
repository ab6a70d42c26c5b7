//! Random histories of a small world.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_core::{
    config::Capacity,
    desired::{Desired, NextHops, VipKey},
    explain::explain,
    plan::{Image, Plan, PlanError, Planner, Usage, Write},
};
use proptest::prelude::*;
use xdp_prog::{abi::Config, verdict::Verdict};

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

/// The packet logic itself at every prefix, with policy off: where it forwards to is where one of the two states would.
fn check_packets_at_every_prefix(before: &State<'_>, after: &State<'_>, plan: &Plan, random: u64) {
    let config = Config {
        features: 0,
        ..*after.planner.config()
    };
    let go = |image: &Image, key: &VipKey| {
        let source = match key.address {
            IpAddr::V4(_) => IpAddr::from([10, 1, (random >> 8) as u8, random as u8]),
            IpAddr::V6(_) => IpAddr::V6(((0x2001_0db8_u128 << 96) | u128::from(random)).into()),
        };
        let source = SocketAddr::new(source, (random >> 16) as u16 | 1);
        let outcome = explain(
            image.view(&config),
            (1, 1),
            key.protocol,
            source,
            SocketAddr::new(key.address, key.port),
        );
        let outcome = outcome.unwrap();
        (outcome.verdict, outcome.choice.map(|choice| choice.backend))
    };
    let keys: BTreeSet<_> = before.desired.vips.keys().chain(after.desired.vips.keys()).collect();
    let ends: Vec<_> = keys
        .iter()
        .map(|key| [before, after].map(|state| go(state.planner.image(), key)))
        .collect();
    let mut image = before.planner.image().clone();
    for write in &plan.writes {
        image.apply(write);
        for (key, ends) in keys.iter().zip(&ends) {
            let (verdict, backend) = go(&image, key);
            assert!(
                ends.iter().any(|(_, end)| *end == backend),
                "{key}: {verdict:?} {backend:?}, neither of {ends:?}"
            );
            // With a backend chosen, the verdict is its line's, which may be of either state; without one, it is a state's.
            assert_ne!(verdict, Verdict::DropInternal, "{key}");
            let forwards = [
                Verdict::ForwardTx,
                Verdict::ForwardLocal,
                Verdict::SlowNextHop,
                Verdict::SlowTooBig,
            ];
            // What is unclaimed meets the address entry, which changes with a store of its own.
            let own = [before, after].map(|state| state.desired.own_addresses.contains(&key.address));
            let unclaimed = match verdict {
                Verdict::PassOwnAddress => own.contains(&true),
                Verdict::SlowUnservedPort => own.contains(&false),
                _ => false,
            };
            let known = ends.iter().any(|(end, _)| *end == verdict)
                || backend.is_some() && forwards.contains(&verdict)
                || backend.is_none() && unclaimed;
            assert!(known, "{key}: {verdict:?}, neither of {ends:?}");
        }
    }
}

/// No needless waiting.
fn check_shape(plan: &Plan) {
    let apart = plan.writes.windows(2).all(|pair| pair != [Write::Grace, Write::Grace]);
    assert!(apart, "two grace periods in a row");
}

proptest! {
    #[test]
    fn every_plan_reaches_what_is_desired_and_every_prefix_is_safe(
        history in histories(), salt in 0..64u64, random: u64,
    ) {
        let mut planner = planner(salt);
        let mut desired = Desired::default();
        for (new_desired, hops) in history {
            let before = planner.clone();
            let Some(plan) = step(&mut planner, new_desired.as_ref(), &hops) else { continue };
            let old_desired = desired.clone();
            desired = new_desired.unwrap_or(desired);

            let mut image = before.image().clone();
            prop_assert!(plan.writes.iter().all(|write| image.apply(write)));
            prop_assert!(&image == planner.image());
            check_shape(&plan);
            meaning::check(&planner, &desired, &hops);
            let old = State { planner: &before, desired: &old_desired };
            let new = State { planner: &planner, desired: &desired };
            check_all_moments(&old, &new, &plan, random);
            check_packets_at_every_prefix(&old, &new, &plan, random);
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
        let mut planner = Planner::new(&capacity, &config(salt), 250);
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

fn deep_copy(mut desired: Desired) -> Desired {
    for vip in desired.vips.values_mut() {
        vip.set = std::sync::Arc::new((*vip.set).clone());
    }
    desired
}
