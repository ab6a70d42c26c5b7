//! Transit memory at its bound: changes of backends wait, nothing else does, and no flow breaks.

use lb_core::{
    desired::{BackendId, Limits, Rate},
    plan::PlanError,
};

use super::*;

/// A wide table of so many slots takes half a segment.
const SLOTS: usize = 32_768;

/// Each VIP has a set of its own.
fn world(segments: u32) -> World {
    world_of(&Capacity {
        table_segments: segments,
        ..CAPACITY
    })
}

fn world_of(capacity: &Capacity) -> World {
    let mut world = World::with(feature::TRANSIT | feature::LIMITS, capacity, Restarts::Never);
    for (number, key) in vips().into_iter().enumerate() {
        let mut members: Vec<Member> = (0..5).map(|_| world.member()).collect();
        members[0].weight = 1 + number as u16;
        set(&mut world, &key, members);
    }
    world.plan(&mut Dice(1));
    world
}

fn set(world: &mut World, key: &VipKey, members: Vec<Member>) {
    let set = Arc::new(BackendSet {
        members,
        table_slots: Some(SLOTS),
    });
    world.desired.vips.get_mut(key).unwrap().set = set;
}

/// VIPs that go by the set that is desired.
fn current(world: &World) -> BTreeSet<VipKey> {
    let current = world
        .planner
        .vips()
        .filter(|vip| *vip.set == world.desired.vips[&vip.key].set);
    current.map(|vip| vip.key).collect()
}

fn open(world: &mut World, dice: &mut Dice) {
    let tables: BTreeMap<VipKey, Table> = world.planner.vips().map(|vip| (vip.key, vip.table)).collect();
    for _ in 0..200 {
        world.open(dice, &tables);
    }
}

/// A member of each set leaves and another comes.
fn change_all(world: &mut World) {
    for key in vips() {
        let mut members = world.desired.vips[&key].set.members.clone();
        let left = members.remove(1);
        members.push(world.member());
        world.desired.backends.remove(&left.backend);
        set(world, &key, members);
    }
}

#[test]
fn changes_of_backends_wait_for_room_and_break_nothing() {
    let mut dice = Dice(3);
    let mut world = world(2);
    open(&mut world, &mut dice);
    change_all(&mut world);
    world.plan(&mut dice);
    let moved = current(&world);
    assert!((1..4).contains(&moved.len()), "{moved:?}");
    assert_eq!(world.planner.waiting(), 4 - moved.len());
    // Each stays with what it has, whoever has left the desired state meanwhile; whatever else is asked for is done.
    let limits = Limits {
        packets: Some(Rate {
            per_second: 1_000_000,
            burst: 1_000_000,
        }),
        syns: None,
    };
    world.desired.vips.values_mut().for_each(|vip| vip.limits = limits);
    world.plan(&mut dice);
    world.pass(60);
    world.plan(&mut dice);
    assert_eq!((world.broken, current(&world)), (0, moved.clone()));
    assert!(world.packets > 400);
    // Flows of those that have moved end, then their transits, and the others go on.
    world.living.retain(|flow| !moved.contains(&flow.vip));
    for _ in 0..20 {
        world.pass(30);
        world.plan(&mut dice);
        let others = std::mem::take(&mut world.living);
        world.living = others.into_iter().filter(|flow| !moved.contains(&flow.vip)).collect();
    }
    assert_eq!(
        (world.planner.waiting(), current(&world).len(), world.broken),
        (0, 4, 0)
    );
    for _ in 0..8 {
        world.living.clear();
        world.pass(150);
        world.plan(&mut dice);
    }
    assert!(!world.planner.is_in_transit());
    assert!(
        world.planner.vips().all(|vip| !vip.table.is_wide),
        "there was room for what they became"
    );
    assert_eq!(world.planner.usage().backends, world.desired.backends.len());
}

#[test]
fn with_room_none_waits() {
    let mut world = world(4);
    change_all(&mut world);
    world.plan(&mut Dice(1));
    assert_eq!((world.planner.waiting(), current(&world).len()), (0, 4));
}

#[test]
fn without_any_room_for_a_plain_table_a_vip_is_refused_by_name() {
    let mut world = world(1);
    let first = vips()[0];
    for number in 0..20u16 {
        let key = VipKey {
            port: 1_000 + number,
            ..first
        };
        let mut vip = world.desired.vips[&first].clone();
        let mut set = (*vip.set).clone();
        set.members[0].weight = 100 + number;
        vip.set = Arc::new(set);
        world.desired.vips.insert(key, vip);
    }
    let moment = Moment {
        now: world.ticks(),
        ..Moment::STILL
    };
    let hops = resolved(&world.desired);
    let error = world.planner.plan_at(&world.desired, &hops, &moment).unwrap_err();
    assert!(matches!(error, PlanError::SlotMemoryFull { .. }), "{error}");
}

/// Why what is wanted is not planned; nothing has changed then.
fn refused(world: &mut World, wanted: &Desired) -> Option<PlanError> {
    let (timeouts, lives) = (TRANSIT.timeouts(HZ), TRANSIT.lives(HZ));
    let moment = Moment {
        now: world.ticks(),
        timeouts,
        lives,
        ..Moment::STILL
    };
    let before = world.planner.image().clone();
    let error = world.planner.plan_at(wanted, &resolved(wanted), &moment).err()?;
    assert!(*world.planner.image() == before, "nothing is half done");
    Some(error)
}

/// What is wanted for these VIPs, and what was before for the others.
fn in_part(before: &Desired, wanted: &Desired, vips: &[VipKey]) -> Desired {
    let mut part = before.clone();
    part.backends.extend(wanted.backends.clone());
    for key in vips {
        part.vips.insert(*key, wanted.vips[key].clone());
    }
    let members = part.vips.values().flat_map(|vip| &vip.set.members);
    let named: BTreeSet<_> = members.map(|member| member.backend.clone()).collect();
    let stays = |id: &BackendId| before.backends.contains_key(id) && wanted.backends.contains_key(id);
    part.backends.retain(|id, _| named.contains(id) || stays(id));
    part
}

#[test]
fn who_has_departed_keeps_a_position_and_a_change_that_finds_none_is_named_and_loses_nothing() {
    let mut dice = Dice(5);
    let mut world = world_of(&Capacity {
        backends: 27,
        table_segments: 4,
        ..CAPACITY
    });
    open(&mut world, &mut dice);
    let before = world.desired.clone();
    assert_eq!(before.backends.len(), 25);
    change_all(&mut world);
    let wanted = world.desired.clone();
    let full = |error: Option<PlanError>| matches!(error, Some(PlanError::TooManyBackends { capacity: 27, .. }));
    assert!(
        full(refused(&mut world, &wanted)),
        "four come, and there is room for two"
    );
    // As the daemon does: what was before goes on. The half that fits is a change like any other.
    world.desired = before.clone();
    world.plan(&mut dice);
    let (first, others) = (vips()[..2].to_vec(), vips()[2..].to_vec());
    world.desired = in_part(&before, &wanted, &first);
    world.plan(&mut dice);
    assert_eq!(current(&world).len(), 4, "all go by the sets that they were given");
    world.pass(60);
    assert!(
        full(refused(&mut world, &wanted)),
        "two have left, and flows live there"
    );
    world.plan(&mut dice);
    world.pass(60);
    assert_eq!(world.broken, 0);
    assert!(world.packets > 400 && world.living.iter().any(|flow| first.contains(&flow.vip)));
    // Their flows end, then the transits, and who has left is forgotten. A position rests until no record can name who had it.
    world.living.retain(|flow| others.contains(&flow.vip));
    for _ in 0..40 {
        world.pass(30);
        world.plan(&mut dice);
        let all = std::mem::take(&mut world.living);
        world.living = all.into_iter().filter(|flow| others.contains(&flow.vip)).collect();
        if world.planner.usage().backends == 25 {
            break;
        }
    }
    assert_eq!(world.planner.usage().backends, 25);
    assert!(full(refused(&mut world, &wanted)), "it rests");
    world.pass(TRANSIT.tcp_idle_timeout_s + 30);
    world.desired = wanted;
    world.plan(&mut dice);
    world.pass(60);
    assert_eq!((world.broken, current(&world).len()), (0, 4));
    assert!(
        world.living.iter().any(|flow| others.contains(&flow.vip)),
        "somebody lived through it"
    );
}
