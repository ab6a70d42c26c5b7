//! Maps that an earlier process wrote, to the end of a plan or not: what a new planner makes of them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_core::{
    config::Capacity,
    desired::{Desired, NextHops, VipKey},
    explain::explain,
    nexthop_line,
    plan::{AdoptError, Image, MapId, Moment, Plan, PlanError, Planner, Usage, Write},
};
use proptest::prelude::*;
use xdp_prog::abi::{Activity, BackendIndex, Config, FlowLives, LineMeta, VipMeta, feature, setting};

use crate::{
    meaning,
    reader::{History, Reader, walk},
    world::{CAPACITY, config, desired, histories, hops, key, resolved, set, states},
};

fn adopt(image: &Image, salt: u64, desired: &Desired) -> Planner {
    Planner::adopt(&ROOMY, &config(salt), 250, (image.clone(), 0), desired).unwrap()
}

fn step(planner: &mut Planner, desired: &Desired, hops: &NextHops) -> Option<Plan> {
    match planner.plan(desired, hops) {
        Ok(plan) => Some(plan),
        // Chance leaves no room in the small match tables.
        Err(PlanError::MatchTableFull { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Room for the backends of two states and stand-ins for as many.
const ROOMY: Capacity = Capacity {
    backends: 24,
    ..CAPACITY
};

fn planner(salt: u64) -> Planner {
    Planner::new(&ROOMY, &config(salt), 250)
}

/// Where a packet to a VIP goes: the address that the line of its backend names, and whether packets read it.
fn goes(image: &Image, config: &Config, key: &VipKey, random: u64) -> Option<(Option<IpAddr>, bool)> {
    let config = Config { features: 0, ..*config };
    let source = match key.address {
        IpAddr::V4(_) => IpAddr::from([10, 1, (random >> 8) as u8, random as u8]),
        IpAddr::V6(_) => IpAddr::V6(((0x2001_0db8_u128 << 96) | u128::from(random)).into()),
    };
    let source = SocketAddr::new(source, (random >> 16) as u16 | 1);
    let destination = SocketAddr::new(key.address, key.port);
    let view = image.view(&config);
    let choice = explain(view, (1, 1), key.protocol, source, destination)
        .unwrap()
        .choice?;
    let BackendIndex(index) = Some(choice.backend).filter(|backend| *backend != BackendIndex::NONE)?;
    let line = image.view(&config).backends[usize::from(index)];
    let read = LineMeta(line.meta).has(LineMeta::RESOLVED) || LineMeta(line.meta).has(LineMeta::LOCAL);
    Some((nexthop_line::address_of(&line), read))
}

/// VIPs that are the same in all these states, backends and all.
fn unchanged<'a>(states: &[&'a Desired]) -> BTreeSet<&'a VipKey> {
    let [first, rest @ ..] = states else {
        return BTreeSet::new();
    };
    let same = |key: &VipKey| {
        let vip = &first.vips[key];
        rest.iter().all(|state| {
            let members = vip.set.members.iter().map(|member| &member.backend);
            let mut addresses = members.map(|id| first.backends.get(id) == state.backends.get(id));
            state.vips.get(key) == Some(vip) && addresses.all(|same| same)
        })
    };
    first.vips.keys().filter(|key| same(key)).collect()
}

/// Packets at every moment of the plan that goes on from `found`.
fn check_every_prefix(found: &Image, adopted: &Planner, plan: &Plan, states: &[&Desired], random: u64) {
    let keys: BTreeSet<&VipKey> = states.iter().flat_map(|state| state.vips.keys()).collect();
    let unchanged = unchanged(states);
    let config = *adopted.config();
    let at = |image: &Image, key: &VipKey| goes(image, &config, key, random);
    let ends: Vec<_> = keys
        .iter()
        .map(|key| [at(found, key), at(adopted.image(), key)])
        .collect();
    let mut image = found.clone();
    for write in &plan.writes {
        assert!(image.apply(write));
        for (key, ends) in keys.iter().zip(&ends) {
            let now = at(&image, key);
            let known = |address: Option<IpAddr>| ends.iter().flatten().any(|(end, _)| *end == address);
            match now {
                Some((address, true)) => {
                    assert!(known(address), "{key} goes to {address:?}, and not to one of {ends:?}")
                }
                Some((_, false)) => {}
                None => assert!(ends.contains(&None), "{key} goes nowhere, and not to one of {ends:?}"),
            }
            if unchanged.contains(key) {
                let address = |end: Option<(Option<IpAddr>, bool)>| end.map(|(address, _)| address);
                assert_eq!(address(now), address(ends[0]), "{key} moved, and nothing of it changed");
            }
        }
    }
    // Packets that take their time.
    let history = History::new(found.clone(), &plan.writes);
    for moment in 0..=history.moments() {
        for (key, salt) in keys.iter().zip(1u64..) {
            let random = random.wrapping_mul(salt * 2 + 1).wrapping_add(moment as u64) | 1;
            let seen = walk(
                &mut Reader::new(&history, moment, random),
                adopted,
                key,
                (random >> 20) as u32,
            );
            if unchanged.contains(key) {
                assert!(seen.is_some(), "{key} is not found, and nothing of it changed");
            }
            let Some(seen) = seen else { continue };
            if let Some(line) = seen.line.filter(|line| LineMeta(line[0]).has(LineMeta::RESOLVED)) {
                let of = |image: &Image| {
                    let words = image.words(MapId::Backends, u32::from(seen.backend));
                    words[3..8] == line[3..8]
                };
                assert!(of(found) || of(adopted.image()), "{key}: a torn outer header");
            }
        }
    }
}

/// A new planner goes on from `found`, and nothing is left of what was there before.
fn check_adoption(found: &Image, salt: u64, target: &Desired, hops: &NextHops, others: &[&Desired], random: u64) {
    let mut adopted = adopt(found, salt, target);
    let Some(plan) = step(&mut adopted, target, hops) else {
        return;
    };
    meaning::check(&adopted, target, hops);
    check_every_prefix(found, &adopted, &plan, &[others, &[target]].concat(), random);
    assert_eq!(adopted.plan(target, hops).unwrap(), Plan::default());
    assert_eq!(adopted.plan_hops(hops), Plan::default());
    assert_eq!(
        adopt(adopted.image(), salt, target).plan(target, hops).unwrap(),
        Plan::default()
    );
    check_nothing_leaks(adopted);
}

fn check_nothing_leaks(mut planner: Planner) {
    planner.plan(&Desired::default(), &NextHops::new()).unwrap();
    let Usage {
        vips,
        backends,
        entries,
        table_units,
        segments,
        ranges,
    } = planner.usage();
    assert_eq!((vips, backends, entries, table_units, ranges), (0, 0, 0, segments, 0));
    for map in [MapId::Backends, MapId::VipOptions] {
        assert!(planner.image().words(map, 0).iter().all(|word| *word == 0), "{map}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn maps_that_say_what_is_desired_are_adopted_without_a_write(history in histories(), salt in 0..64u64) {
        let mut planner = planner(salt);
        let mut desired = Desired::default();
        for (new, hops) in history {
            match new {
                Some(new) if step(&mut planner, &new, &hops).is_some() => desired = new,
                Some(_) => continue,
                None => drop(planner.plan_hops(&hops)),
            }
            let mut adopted = adopt(planner.image(), salt, &desired);
            prop_assert_eq!(adopted.usage(), planner.usage());
            prop_assert_eq!(adopted.plan(&desired, &hops).unwrap(), Plan::default());
            prop_assert_eq!(adopted.plan_hops(&hops), Plan::default());
            meaning::check(&adopted, &desired, &hops);
            check_nothing_leaks(adopted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_that_was_interrupted_anywhere_is_completed_or_undone_and_every_prefix_is_safe(
        history in histories(), last in states(), other in states(), hops in hops(), salt in 0..64u64, random: u32,
    ) {
        let random = u64::from(random);
        let mut planner = planner(salt);
        let mut before = Desired::default();
        for (new, hops) in history {
            if let Some(new) = new && step(&mut planner, &new, &hops).is_some() {
                before = new;
            }
        }
        let mut found = planner.image().clone();
        let Some(plan) = step(&mut planner, &last, &hops) else { return Ok(()) };
        for (write, number) in [None].into_iter().chain(plan.writes.iter().map(Some)).zip(random..) {
            prop_assert!(write.is_none_or(|write| found.apply(write)));
            // In turn: completed, undone, or something else altogether.
            match number % 3 {
                0 => check_adoption(&found, salt, &last, &hops, &[&before], random),
                1 => check_adoption(&found, salt, &before, &hops, &[&last], random),
                _ => check_adoption(&found, salt, &other, &hops, &[&before, &last], random),
            }
        }
    }
}

const A: &str = "203.0.113.1";

fn a_vip_with_two_backends() -> (Planner, Desired) {
    let desired = desired(&[(key(A, 80), &set(&[("a", 1), ("b", 1)]))]);
    let mut planner = planner(1);
    planner.plan(&desired, &resolved(&desired)).unwrap();
    (planner, desired)
}

#[test]
fn a_backend_that_nobody_desires_any_more_is_forgotten_after_a_grace_period() {
    let (planner, mut desired) = a_vip_with_two_backends();
    let vip = desired.vips.get_mut(&key(A, 80)).unwrap();
    vip.set = set(&[("b", 1)]);
    desired.backends.retain(|id, _| &*id.0 == "b");
    let b = planner.backend_index(&crate::world::id("b"));
    let mut adopted = adopt(planner.image(), 1, &desired);
    assert_eq!(adopted.backend_index(&crate::world::id("b")), b);
    let plan = adopted.plan(&desired, &resolved(&desired)).unwrap();
    assert_eq!((plan.summary.vips_retargeted, plan.summary.backends_removed), (1, 1));
    let cleared = |write: &Write| {
        matches!(
            write,
            Write::Store {
                map: MapId::Backends,
                word: 0,
                value: 0,
                ..
            }
        )
    };
    let grace = plan.writes.iter().position(|write| *write == Write::Grace).unwrap();
    assert!(plan.writes.iter().position(cleared).unwrap() > grace);
    meaning::check(&adopted, &desired, &resolved(&desired));
}

#[test]
fn a_table_that_has_grown_stays_as_large() {
    let many: Vec<(String, u16)> = (0..6).map(|number| (format!("n{number}"), 1)).collect();
    let many: Vec<(&str, u16)> = many.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
    let (large, small) = (
        desired(&[(key(A, 80), &set(&many))]),
        desired(&[(key(A, 80), &set(&[("n0", 1)]))]),
    );
    let mut planner = planner(1);
    planner.plan(&large, &resolved(&large)).unwrap();
    let slots = planner.vip(&key(A, 80)).unwrap().table.slots;
    let mut adopted = adopt(planner.image(), 1, &small);
    adopted.plan(&small, &resolved(&small)).unwrap();
    assert_eq!(adopted.vip(&key(A, 80)).unwrap().table.slots, slots);
    // The twin: a planner of new maps begins small.
    let mut fresh = self::planner(1);
    fresh.plan(&small, &resolved(&small)).unwrap();
    assert!(fresh.vip(&key(A, 80)).unwrap().table.slots < slots);
}

#[test]
fn maps_that_contradict_themselves_are_refused() {
    let (planner, desired) = a_vip_with_two_backends();
    let adopt = |change: &dyn Fn(&mut Image)| {
        let mut image = planner.image().clone();
        change(&mut image);
        Planner::adopt(&ROOMY, &config(1), 250, (image, 0), &desired).map(drop)
    };
    assert_eq!(adopt(&|_| {}), Ok(()), "the control");
    let store = |map, index, word, value| {
        move |image: &mut Image| {
            assert!(image.apply(&Write::Store {
                map,
                index,
                word,
                value
            }));
        }
    };
    // Where the VIP's entry is.
    let words = planner.image().words(MapId::VipsV4, 0).to_vec();
    let is_vip = |at: &usize| at % 8 < 4 && words[*at] >> 48 & 0xff == 6;
    let at = (0..words.len()).find(is_vip).unwrap();
    let (bucket, way) = ((at / 8) as u32, (at % 8) as u32);
    let meta = VipMeta(words[at + 4]);
    let entry = AdoptError::Entry {
        map: MapId::VipsV4,
        bucket,
        way,
    };
    let sctp = words[at] & !(0xff << 48) | 132 << 48;
    assert_eq!(adopt(&store(MapId::VipsV4, bucket, way, sctp)), Err(entry));
    let elsewhere = (0..4)
        .find(|other| *other != bucket && words[*other as usize * 8 + 3] == 0)
        .unwrap();
    let moved = |image: &mut Image| {
        store(MapId::VipsV4, bucket, way, 0)(image);
        store(MapId::VipsV4, elsewhere, 7, meta.0)(image);
        store(MapId::VipsV4, elsewhere, 3, words[at])(image);
    };
    let three: BTreeSet<u32> = xdp_prog::abi::KeyV4(words[at]).buckets(1, 3).into();
    if !three.contains(&elsewhere) {
        assert!(matches!(adopt(&moved), Err(AdoptError::Entry { .. })));
    }
    let word = bucket;
    let with = |value: u64| store(MapId::VipsV4, word, way + 4, value);
    let beyond = VipMeta::new(meta.vip(), xdp_prog::abi::TableUnit(9_999), meta.slots(), 0).0;
    assert!(matches!(adopt(&with(beyond)), Err(AdoptError::Table { .. })));
    let vip = VipMeta::new(xdp_prog::abi::VipIndex(999), meta.unit(), meta.slots(), 0).0;
    assert_eq!(adopt(&with(vip)), Err(AdoptError::Vip { index: 999 }));
    let unknown = meta.0 | 1 << 62;
    assert_eq!(adopt(&with(unknown)), Err(AdoptError::Meaning { index: meta.vip().0 }));
    let first_word = meta.unit().0 * 64;
    assert_eq!(
        adopt(&store(MapId::LookupTables, 0, first_word, 500)),
        Err(AdoptError::Backend { index: 500 })
    );
    let reference = xdp_prog::abi::SetRef::new(0, 1).0;
    assert_eq!(
        adopt(&store(MapId::Settings, 0, 0, reference)),
        Err(AdoptError::Ranges { offset: 0 })
    );
}

fn keeping_flows() -> Config {
    Config {
        features: config(1).features | feature::TRANSIT,
        ..config(1)
    }
}

/// Not the lives that a planner has without being told.
const LATER: Moment<'static> = Moment {
    now: 4_000_000_000,
    lives: FlowLives::new(20, 300, 40, 70),
    ..Moment::STILL
};

fn adopt_later(image: &Image, config: &Config, desired: &Desired) -> Planner {
    Planner::adopt(&ROOMY, config, 250, (image.clone(), LATER.now), desired).unwrap()
}

#[test]
fn where_flows_are_kept_the_steady_state_is_adopted_without_a_write_too() {
    let config = keeping_flows();
    let desired = desired(&[(key(A, 80), &set(&[("a", 1), ("b", 1)]))]);
    let mut planner = Planner::new(&ROOMY, &config, 250);
    planner.plan_at(&desired, &resolved(&desired), &LATER).unwrap();
    let image = planner.image();
    assert_ne!(image.load(MapId::Settings, setting::FLOW_LIVES, 0), 0);
    let index = planner.backend_index(&crate::world::id("a")).unwrap();
    let line = image.view(&config).backends[usize::from(index.0)];
    assert!(LineMeta(line.meta).has(LineMeta::ALIVE));
    let mut adopted = adopt_later(image, &config, &desired);
    assert_eq!(
        adopted.plan_at(&desired, &resolved(&desired), &LATER).unwrap(),
        Plan::default()
    );
    assert_eq!(adopted.plan_hops(&resolved(&desired)), Plan::default());
    assert_eq!(adopted.image(), planner.image());
}

#[test]
fn a_change_that_nobody_saw_is_a_transit_from_what_the_maps_say_and_goes_on_after_the_next_restart() {
    let config = keeping_flows();
    let (old, new) = (
        desired(&[(key(A, 80), &set(&[("a", 1), ("b", 1)]))]),
        desired(&[(key(A, 80), &set(&[("b", 1), ("c", 1)]))]),
    );
    let mut planner = Planner::new(&ROOMY, &config, 250);
    planner.plan_at(&old, &resolved(&old), &LATER).unwrap();
    let a = planner.backend_index(&crate::world::id("a")).unwrap();
    let mut adopted = adopt_later(planner.image(), &config, &new);
    let plan = adopted.plan_at(&new, &resolved(&new), &LATER).unwrap();
    assert_eq!((plan.summary.vips_retargeted, plan.summary.backends_removed), (1, 0));
    assert!(adopted.is_in_transit());
    // Flows that live at the one that is gone find it as it was.
    let line = |planner: &Planner| planner.image().view(&config).backends[usize::from(a.0)];
    assert_eq!(line(&adopted), line(&planner));
    let backends: Vec<_> = adopted
        .backends()
        .map(|backend| (backend.index, backend.has_departed))
        .collect();
    assert!(backends.contains(&(a, true)), "{backends:?}");
    // Another one knows the set by where new flows go, and has nothing to do while flows may live.
    let mut again = adopt_later(adopted.image(), &config, &new);
    assert!(again.is_in_transit());
    let timeouts = LATER.timeouts;
    let (now, last) = (LATER.now.wrapping_add(timeouts.tcp_idle), LATER.now);
    let moment = Moment {
        now,
        activity: &|_, _| Activity::new(last, last),
        ..LATER
    };
    assert_eq!(
        again.plan_at(&new, &resolved(&new), &moment).unwrap().summary,
        Plan::default().summary
    );
    assert_eq!(line(&again), line(&planner));
    // And ends it in time, and forgets who was kept for it.
    let later = Moment {
        now: now.wrapping_add(timeouts.udp_idle + 2),
        ..moment
    };
    let plan = again.plan_at(&new, &resolved(&new), &later).unwrap();
    assert_eq!((plan.summary.vips_retargeted, plan.summary.backends_removed), (1, 1));
    assert!(!again.is_in_transit());
    // A slot that says something else is nobody's.
    let table = adopted.vip(&key(A, 80)).unwrap().table;
    let (index, word) = table.word(5);
    let mut image = adopted.image().clone();
    let value = image.load(MapId::LookupTables, index, word) | 1 << 60;
    assert!(image.apply(&Write::Store {
        map: MapId::LookupTables,
        index,
        word,
        value
    }));
    let unit = table.unit.0;
    assert_eq!(
        Planner::adopt(&ROOMY, &config, 250, (image, LATER.now), &new).map(drop),
        Err(AdoptError::Slot { unit, slot: 5 })
    );
    // Without the feature, the same change keeps nothing: the twin.
    let mut planner = self::planner(1);
    planner.plan(&old, &resolved(&old)).unwrap();
    let mut adopted = adopt(planner.image(), 1, &new);
    let plan = adopted.plan(&new, &resolved(&new)).unwrap();
    assert_eq!((plan.summary.vips_retargeted, plan.summary.backends_removed), (1, 1));
    assert!(!adopted.is_in_transit());
}
