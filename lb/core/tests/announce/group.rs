//! Groups as a network of members that hear one another late, one way first, or not at all.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_core::announce::{Group, Member, START_PATIENCE, YIELD, owner};
use proptest::prelude::*;

/// Of one look at the world to the next.
const STEP: Duration = Duration::from_millis(50);
/// Longest that one hears later than another of the same change: less than [`YIELD`].
const SKEW: Duration = Duration::from_millis(800);

fn names(count: usize) -> Vec<Member> {
    (1..=count).map(|number| format!("lb-{number}").into()).collect()
}

fn addresses(count: u32) -> impl Iterator<Item = IpAddr> {
    (0..count).map(|last| std::net::Ipv4Addr::from(0xcb00_7100 + last).into())
}

fn shares(members: &[Member], count: u32) -> BTreeMap<&Member, u32> {
    let mut shares = BTreeMap::new();
    for address in addresses(count) {
        *shares.entry(owner(members, address).unwrap()).or_default() += 1;
    }
    shares
}

#[test]
fn addresses_are_spread_evenly_and_a_death_moves_only_those_of_the_dead() {
    let members = names(5);
    let before = shares(&members, 1000);
    for (member, share) in &before {
        assert!((150..=250).contains(share), "{member}: {share} of 200");
    }
    let alive: Vec<Member> = members.iter().filter(|name| ***name != *"lb-3").cloned().collect();
    let mut taken = BTreeMap::new();
    for address in addresses(1000) {
        let (then, now) = (owner(&members, address).unwrap(), owner(&alive, address).unwrap());
        if **then == *"lb-3" {
            *taken.entry(now).or_insert(0) += 1;
        } else {
            assert_eq!(then, now);
        }
    }
    assert_eq!(taken.len(), 4, "all others take a part: {taken:?}");
    assert!(taken.values().all(|count| (25..=90).contains(count)), "{taken:?}");
}

/// What LB nodes of different versions agree on.
#[test]
fn owners_are_what_they_always_were() {
    let members = names(3);
    let owners: String = addresses(24)
        .chain((0..8u16).map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])))
        .map(|address| owner(&members, address).unwrap().trim_start_matches("lb-").to_owned())
        .collect();
    assert_eq!(owners, "11211132312133132111132221231321");
    assert_eq!(owner(&[], [203, 0, 113, 1].into()), None);
}

/// LB nodes of one segment.
struct World {
    now: Duration,
    nodes: BTreeMap<Member, Option<Group>>,
    /// Pairs that do not hear one another although both live.
    cut: BTreeSet<(Member, Member)>,
    /// What is to be heard: when, by whom, of whom, and whether.
    due: VecDeque<(Duration, Member, Member, bool)>,
    random: u64,
}

impl World {
    fn new(count: usize, random: u64) -> Self {
        let nodes = names(count).into_iter().map(|name| (name, None)).collect();
        Self {
            now: Duration::from_secs(100),
            nodes,
            cut: BTreeSet::new(),
            due: VecDeque::new(),
            random,
        }
    }

    fn late(&mut self) -> Duration {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        SKEW.mul_f64((self.random >> 33) as f64 / f64::from(1_u32 << 31))
    }

    fn hears(&self, a: &Member, b: &Member) -> bool {
        let pair = if a < b {
            (a.clone(), b.clone())
        } else {
            (b.clone(), a.clone())
        };
        a != b && self.nodes[a].is_some() && self.nodes[b].is_some() && !self.cut.contains(&pair)
    }

    /// After a change of anything, each hears of it in its own time.
    fn tell(&mut self, change: impl FnOnce(&mut Self)) {
        let names: Vec<Member> = self.nodes.keys().cloned().collect();
        let pairs: Vec<(Member, Member)> = names
            .iter()
            .flat_map(|a| names.iter().map(|b| (a.clone(), b.clone())))
            .filter(|(a, b)| a != b)
            .collect();
        let before: Vec<bool> = pairs.iter().map(|(a, b)| self.hears(a, b)).collect();
        change(self);
        for ((a, b), before) in pairs.into_iter().zip(before) {
            let hears = self.hears(&a, &b);
            if hears != before && self.nodes[&a].is_some() {
                // What one hears of another comes in the order in which it happened.
                let earlier = self.due.iter().filter(|(_, by, of, _)| (by, of) == (&a, &b));
                let earlier = earlier.map(|(at, ..)| *at).max().unwrap_or_default();
                let at = (self.now + self.late()).max(earlier);
                self.due.push_back((at, a, b, hears));
            }
        }
        self.due.make_contiguous().sort_by_key(|(at, ..)| *at);
    }

    fn start(&mut self, name: &Member) {
        let others: Vec<Member> = self.nodes.keys().cloned().collect();
        let group = Group::new(Arc::clone(name), others, self.now);
        self.tell(|world| {
            world.nodes.insert(Arc::clone(name), Some(group));
        });
    }

    fn kill(&mut self, name: &Member) {
        self.tell(|world| {
            world.nodes.insert(Arc::clone(name), None);
        });
        self.due.retain(|(_, hearer, _, _)| hearer != name);
    }

    /// Lets time pass, and looks at each step.
    fn run(&mut self, long: Duration, mut look: impl FnMut(&Self)) {
        let until = self.now + long;
        while self.now < until {
            self.now += STEP;
            while self.due.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, hearer, other, hears) = self.due.pop_front().unwrap();
                if let Some(group) = self.nodes.get_mut(&hearer).unwrap() {
                    group.hear(&other, hears, self.now);
                }
            }
            look(self);
        }
    }

    fn owners(&self, address: IpAddr) -> Vec<&Member> {
        let owns = |group: &&Group| group.owns(address, None, self.now);
        let nodes = self.nodes.values().flatten().filter(owns);
        nodes.map(Group::me).collect()
    }

    /// Everything has been heard, and everybody who waits has waited.
    fn settle(&mut self) {
        self.run(START_PATIENCE + SKEW + YIELD, |_| {});
    }
}

#[test]
fn one_that_starts_alone_waits_and_then_answers_for_all() {
    let mut world = World::new(3, 1);
    let first = names(1).remove(0);
    world.start(&first);
    let mut waited = Duration::ZERO;
    world.run(START_PATIENCE + STEP, |world| {
        if world.owners([203, 0, 113, 1].into()).is_empty() {
            waited += STEP;
        }
    });
    assert!(
        waited >= START_PATIENCE - STEP * 2 && waited <= START_PATIENCE,
        "{waited:?}"
    );
    assert!(addresses(50).all(|address| world.owners(address) == [&first]));
    let alone = Group::new("lb-1".into(), ["lb-1".into()], Duration::ZERO);
    assert!(
        alone.owns([203, 0, 113, 1].into(), None, Duration::ZERO),
        "without others nobody is waited for"
    );
}

#[test]
fn one_whose_segment_is_away_answers_for_nothing_and_comes_back_as_one_that_starts() {
    let mut world = World::new(2, 2);
    let names = names(2);
    names.iter().for_each(|name| world.start(name));
    world.settle();
    let theirs: Vec<IpAddr> = addresses(50)
        .filter(|address| world.owners(*address) == [&names[0]])
        .collect();
    assert!(theirs.len() > 10);
    let now = world.now;
    let group = world.nodes.get_mut(&names[0]).unwrap().as_mut().unwrap();
    group.go_out();
    assert!(theirs.iter().all(|address| !group.owns(*address, None, now)));
    assert_eq!(group.owner(theirs[0], None), Some(&names[1]));
    group.come_back(now);
    assert!(
        !group.owns(theirs[0], None, now),
        "the other is heard, and has not given up yet"
    );
    assert_eq!(group.deadline(now), Some(now + YIELD));
    assert!(group.owns(theirs[0], None, now + YIELD));
}

#[derive(Clone, Debug)]
enum Step {
    Start(usize),
    Kill(usize),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4usize).prop_map(Step::Start),
        2 => (0..4usize).prop_map(Step::Kill),
        3 => (0..8000u16).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Nodes come and go as they like, and hear of one another late: no address ever has two owners while all hear one another, and
    /// every address has one when nothing changes any more.
    #[test]
    fn no_address_has_two_owners_while_the_network_is_whole(
        count in 2..=4usize,
        steps in prop::collection::vec(step(), 1..14),
        random in any::<u64>(),
    ) {
        let mut world = World::new(count, random);
        let names = names(count);
        names.iter().for_each(|name| world.start(name));
        world.settle();
        let mut doubled = Vec::new();
        for step in &steps {
            match step {
                Step::Start(index) if world.nodes[&names[*index % count]].is_none() => world.start(&names[*index % count]),
                Step::Kill(index) => world.kill(&names[*index % count]),
                Step::Start(_) => {}
                Step::Wait(ms) => world.run(Duration::from_millis((*ms).into()), |world| {
                    doubled.extend(addresses(40).filter(|address| world.owners(*address).len() > 1).map(|a| (a, world.now)));
                }),
            }
        }
        prop_assert!(doubled.is_empty(), "{doubled:?}");
        world.settle();
        let alive = world.nodes.values().flatten().count();
        for address in addresses(40) {
            prop_assert_eq!(world.owners(address).len(), usize::from(alive > 0), "{}", address);
        }
    }

    /// The network falls apart and heals: each part has one owner for each address, and after the healing there is one in all.
    #[test]
    fn after_a_partition_heals_exactly_one_owner_remains(side in prop::collection::vec(any::<bool>(), 4), random in any::<u64>()) {
        let mut world = World::new(4, random);
        let names = names(4);
        names.iter().for_each(|name| world.start(name));
        world.settle();
        let cut: BTreeSet<(Member, Member)> = (0..4).flat_map(|a| (a + 1..4).map(move |b| (a, b)))
            .filter(|(a, b)| side[*a] != side[*b])
            .map(|(a, b)| (names[a].clone(), names[b].clone()))
            .collect();
        let parts = 1 + usize::from(!cut.is_empty());
        world.tell(|world| world.cut = cut);
        world.run(SKEW + STEP, |_| {});
        for address in addresses(40) {
            prop_assert_eq!(world.owners(address).len(), parts);
        }
        world.tell(|world| world.cut.clear());
        let mut orphaned = 0;
        world.run(SKEW + STEP, |world| {
            orphaned += addresses(40).filter(|address| world.owners(*address).is_empty()).count();
        });
        prop_assert_eq!(orphaned, 0, "giving up what another has had all the time leaves nobody without");
        for address in addresses(40) {
            prop_assert_eq!(world.owners(address), vec![owner(&names, address).unwrap()]);
        }
    }
}
