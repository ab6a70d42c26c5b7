//! LB nodes that start or join in a transit, with and without what is published of it: they come to the slots of who has lived through
//! it, and flows that began before it stay.

use lb_core::{
    desired::{BackendId, Base},
    plan::MapId,
};
use xdp_prog::abi::SlotWord;

use super::*;

/// Flows of each kind of the measurement.
const MANY: usize = 600;

impl World {
    /// By the clock of who publishes.
    pub(super) fn unix_s(&self) -> u64 {
        self.now / u64::from(HZ)
    }

    fn set(&self) -> Arc<BackendSet> {
        self.desired.vips[&vips()[0]].set.clone()
    }

    /// A change of the set of all VIPs, as of a node set: slots only grow, and who leaves has an address still.
    fn change_all(&mut self, dice: &mut Dice) {
        let set = self.set();
        let (mut members, mut slots) = (set.members.clone(), set.table_slots);
        match dice.below(5) {
            0 => members.push(self.member()),
            1 if members.len() > 2 => drop(members.remove(dice.below(members.len()))),
            2 => {
                members.remove(dice.below(members.len()));
                members.push(self.member());
            }
            3 => {
                let at = dice.below(members.len());
                members[at].weight = 1 + dice.below(3) as u16;
            }
            _ => slots = slots.map(|slots| (slots * 2).min(1024)),
        }
        self.set_all(members, slots);
    }

    fn set_all(&mut self, members: Vec<Member>, table_slots: Option<usize>) {
        let named: BTreeSet<&BackendId> = members.iter().map(|member| &member.backend).collect();
        let left = self.desired.backends.extract_if(.., |id, _| !named.contains(id));
        self.desired.departed.extend(left);
        let set = Arc::new(BackendSet { members, table_slots });
        for vip in self.desired.vips.values_mut() {
            vip.set = set.clone();
        }
    }

    fn publish(&mut self, set: &Arc<BackendSet>, since_s: u64) {
        let base = Arc::new(Base {
            set: set.clone(),
            of: "workers".into(),
            since_s,
        });
        for vip in self.desired.vips.values_mut() {
            vip.base = Some(base.clone());
        }
    }

    fn unpublish(&mut self) {
        self.desired.vips.values_mut().for_each(|vip| vip.base = None);
    }

    /// An LB node that starts now, told the same.
    fn joined(&self) -> Self {
        let mut joined = Self::new(self.config.features, Restarts::Never);
        joined.now = self.now;
        joined.desired = self.desired.clone();
        joined.plan(&mut Dice(1));
        joined.living.clear();
        joined
    }

    /// A VIP's slots by names, as the maps say it.
    fn slots(&self, key: &VipKey) -> Vec<Named> {
        let table = self.planner.vip(key).unwrap().table;
        let name = |index: u16| self.planner.backend_at(BackendIndex(index)).cloned();
        if !table.is_wide {
            let words = self.image.table(table.unit, table.slots).iter();
            let targets = words.flat_map(|word| (0..4).map(move |slot| (word >> (16 * slot)) as u16));
            let steady = |index| Named {
                cur: name(index),
                base: name(index),
                udp_base: name(index),
                flags: 0,
            };
            return targets.map(steady).collect();
        }
        let word = |slot| {
            let (segment, word) = table.word(slot);
            SlotWord(self.image.load(MapId::LookupTables, segment, word))
        };
        let named = |word: SlotWord| Named {
            cur: name(word.cur()),
            base: name(word.base()),
            udp_base: name(word.udp_base()),
            flags: word.flags(),
        };
        (0..table.slots).map(word).map(named).collect()
    }

    /// Lets time pass with plans as the daemon makes them, and without a packet.
    fn silence(&mut self, seconds: u64) {
        for _ in 0..seconds.div_ceil(2) {
            self.now += 2 * u64::from(HZ);
            self.plan_in_silence();
        }
    }

    fn plan_in_silence(&mut self) {
        self.plan(&mut Dice(1));
        self.living.clear();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    cur: Option<BackendId>,
    base: Option<BackendId>,
    udp_base: Option<BackendId>,
    flags: u64,
}

/// Slots are not of one length where a VIP's table is plain on one of the two.
fn pairs<'a>(one: &'a [Named], other: &'a [Named]) -> impl Iterator<Item = (&'a Named, &'a Named)> {
    let scale = one.len().max(other.len());
    (0..scale).map(move |slot| (&one[slot * one.len() / scale], &other[slot * other.len() / scale]))
}

#[test]
fn who_joins_comes_to_the_slots_of_who_lived_through_any_changes() {
    let (mut elsewhere, mut differ_without) = (0, 0);
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut world = World::new(feature::TRANSIT, Restarts::Never);
        world.plan_in_silence();
        let (first, since_s) = (world.set(), world.unix_s());
        for _ in 0..1 + dice.below(5) {
            world.change_all(&mut dice);
            world.publish(&first, since_s);
            world.plan_in_silence();
            let seconds = [0, 8, 40, 300][dice.below(4)];
            world.silence(seconds);
            let joined = world.joined();
            let mut blind = world.joined();
            blind.unpublish();
            let blind = blind.joined();
            for key in vips() {
                let (lived, new, told_nothing) = (world.slots(&key), joined.slots(&key), blind.slots(&key));
                for (lived, new) in pairs(&lived, &new) {
                    assert_eq!((&lived.cur, &lived.base), (&new.cur, &new.base), "seed {seed} {key}");
                    elsewhere += usize::from(lived.cur != lived.base);
                }
                differ_without += pairs(&lived, &told_nothing).filter(|(a, b)| a.base != b.base).count();
            }
        }
    }
    assert!(elsewhere > 10_000, "{elsewhere}");
    assert_eq!(
        differ_without, elsewhere,
        "the twin: without what is published none of them is known"
    );
}

#[test]
fn after_one_change_the_whole_word_is_the_same_whenever_one_joins() {
    for (seed, seconds) in [(0, 0), (1, 6), (2, 18), (3, 24), (4, 90), (5, 600)] {
        let mut dice = Dice(seed);
        let mut world = World::new(feature::TRANSIT, Restarts::Never);
        world.plan_in_silence();
        let (first, since_s) = (world.set(), world.unix_s());
        let mut members = first.members.clone();
        members.remove(dice.below(members.len()));
        members.push(world.member());
        world.set_all(members, first.table_slots);
        world.publish(&first, since_s);
        world.plan_in_silence();
        world.silence(seconds);
        let joined = world.joined();
        for key in vips() {
            let (lived, new) = (world.slots(&key), joined.slots(&key));
            assert!(lived.iter().any(|slot| slot.flags != 0), "{seconds} s: {key}");
            assert_eq!(lived, new, "{seconds} s: {key}");
        }
    }
}

/// A member has left every set, and that is published.
fn one_left() -> World {
    let mut world = World::new(feature::TRANSIT, Restarts::Never);
    world.plan_in_silence();
    let (first, since_s) = (world.set(), world.unix_s());
    let mut members = first.members.clone();
    members.remove(1);
    world.set_all(members, first.table_slots);
    world.publish(&first, since_s);
    world.plan_in_silence();
    world
}

#[test]
fn silence_ends_a_published_transit_only_when_it_is_not_published_any_more() {
    let mut world = one_left();
    let lively = |world: &World| world.planner.lively_transits(&world.desired).len();
    assert_eq!(lively(&world), 1);
    world.silence(90);
    assert_eq!(lively(&world), 1, "within the timeout of 100 s");
    // Longer than all timeouts, and than the learning window before UDP's.
    world.silence(60);
    assert_eq!(lively(&world), 0);
    world.silence(600);
    assert!(world.planner.is_in_transit(), "others may not be that far");
    let slots = world.slots(&vips()[0]);
    assert!(slots.iter().any(|slot| slot.cur != slot.base));
    // A slot at which somebody speaks is lively again: it is for the operator to say when all are silent.
    let mut spoken = world.joined();
    assert_eq!(lively(&spoken), 1, "who joins knows of no silence");
    world.unpublish();
    world.plan_in_silence();
    assert!(!world.planner.is_in_transit());
    spoken.unpublish();
    spoken.plan_in_silence();
    assert!(
        spoken.planner.is_in_transit(),
        "its own flows may live: silence ends it, here alone"
    );
    spoken.silence(160);
    assert!(!spoken.planner.is_in_transit());
    assert_eq!(spoken.planner.usage().backends, spoken.desired.backends.len());
}

#[test]
fn a_published_transit_that_is_too_old_ends_by_itself() {
    let mut world = one_left();
    world.now += u64::from(TRANSIT.max_s + 1) * u64::from(HZ);
    world.plan_in_silence();
    world.now += u64::from(HZ);
    world.plan_in_silence();
    assert!(!world.planner.is_in_transit());
    let joined = world.joined();
    assert!(!joined.planner.is_in_transit());
}

#[test]
fn what_makes_no_sense_says_nothing() {
    let mut world = World::new(feature::TRANSIT, Restarts::Never);
    let set = world.set();
    let mut backwards = set.members.clone();
    backwards.reverse();
    for (members, table_slots) in [
        (set.members.clone(), Some(300)),
        (set.members.clone(), None),
        (backwards, Some(256)),
        (Vec::new(), Some(256)),
        (
            vec![Member {
                backend: id("stranger"),
                weight: 1,
            }],
            Some(256),
        ),
    ] {
        world.publish(&Arc::new(BackendSet { members, table_slots }), 0);
        assert!(!world.joined().planner.is_in_transit());
    }
}

/// Of flows of a kind, those that an LB node to which they all come after the change sends elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Broken {
    old: usize,
    young: usize,
}

#[test]
fn who_joins_in_a_transit_keeps_old_flows_and_breaks_young_ones_on_moved_slots() {
    let mut dice = Dice(7);
    let mut world = World::new(feature::TRANSIT, Restarts::Never);
    world.plan_in_silence();
    let (first, since_s) = (world.set(), world.unix_s());
    let open = |world: &mut World, dice: &mut Dice| {
        let tables: BTreeMap<VipKey, Table> = world.planner.vips().map(|vip| (vip.key, vip.table)).collect();
        for _ in 0..MANY {
            world.open(dice, &tables);
        }
    };
    open(&mut world, &mut dice);
    let mut members = first.members.clone();
    members.remove(1);
    world.set_all(members, first.table_slots);
    world.publish(&first, since_s);
    let old = std::mem::take(&mut world.living);
    world.plan_in_silence();
    world.living = old;
    // Past the learning window, in which old datagrams say that they live.
    world.pass(45);
    world.silence_of_plans();
    open(&mut world, &mut dice);
    world.pass(10);
    assert_eq!(
        (world.broken, world.living.len()),
        (0, 2 * MANY),
        "the control: on the LB node that they have"
    );

    let of = |joined: &mut World, protocol: Protocol| {
        let mut broken = Broken::default();
        let tables: BTreeMap<VipKey, Table> = joined.planner.vips().map(|vip| (vip.key, vip.table)).collect();
        for (number, flow) in world
            .living
            .iter()
            .enumerate()
            .filter(|(_, flow)| flow.vip.protocol == protocol)
        {
            let went = joined.send(flow, false, &tables);
            let went = went.and_then(|index| joined.planner.backend_at(BackendIndex(index)).cloned());
            if went.as_ref() != world.planner.backend_at(BackendIndex(flow.backend)) {
                *if number < MANY {
                    &mut broken.old
                } else {
                    &mut broken.young
                } += 1;
            }
        }
        broken
    };
    let count = |protocol| world.living.iter().filter(|flow| flow.vip.protocol == protocol).count();
    let mut told = world.joined();
    let mut blind = world.joined();
    blind.unpublish();
    let mut blind = blind.joined();
    let (tcp, udp) = (of(&mut told, Protocol::Tcp), of(&mut told, Protocol::Udp));
    let (blind_tcp, blind_udp) = (of(&mut blind, Protocol::Tcp), of(&mut blind, Protocol::Udp));
    println!(
        "one of five backends leaves; all flows come to an LB node that joins {} s later. Half of {} TCP and {} UDP flows are old. \
         Broken, TCP: {tcp:?}; nothing published: {blind_tcp:?}. UDP: {udp:?}; nothing published: {blind_udp:?}",
        world.unix_s() - since_s,
        count(Protocol::Tcp),
        count(Protocol::Udp),
    );
    assert_eq!(tcp.old, 0);
    assert!(blind_tcp.old > MANY / 10, "the twin: {blind_tcp:?}");
    assert!(
        tcp.young > 0 && blind_tcp.young == 0,
        "until nodes offer a second chance"
    );
    assert_eq!(udp.young, 0, "the learning window is over, by the published time");
}

impl World {
    /// A plan as the daemon makes it every two seconds; flows stay.
    fn silence_of_plans(&mut self) {
        let living = std::mem::take(&mut self.living);
        self.plan(&mut Dice(1));
        self.living = living;
    }
}
