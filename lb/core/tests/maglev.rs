//! Lookup tables: what every table holds to, and how they compare with the `maglev` crate (the textbook's method over a prime
//! number of slots).

use std::{collections::BTreeMap, sync::Arc};

use lb_core::{
    desired::{BackendId, Member},
    maglev::{NO_MEMBER, base_slot, build, default_slots, is_table_size, quotas},
};
use maglev::ConsistentHasher;
use proptest::prelude::*;

fn member(name: &str, weight: u16) -> Member {
    Member {
        backend: BackendId(Arc::from(name)),
        weight,
    }
}

fn nodes(count: usize) -> Vec<Member> {
    (0..count).map(|index| member(&format!("node-{index:04}"), 1)).collect()
}

/// The table by name, so that tables of different members compare.
fn names(members: &[Member], slots: usize) -> Vec<Option<Arc<str>>> {
    let name = |position: u16| (position != NO_MEMBER).then(|| members[usize::from(position)].backend.0.clone());
    build(members, slots).into_iter().map(name).collect()
}

fn moved<T: PartialEq>(before: &[T], after: &[T]) -> usize {
    before
        .iter()
        .zip(after)
        .filter(|(before, after)| before != after)
        .count()
}

fn counts(members: &[Member], slots: usize) -> Vec<u32> {
    let mut counts = vec![0; members.len()];
    build(members, slots)
        .into_iter()
        .for_each(|position| counts[usize::from(position)] += 1);
    counts
}

fn without(members: &[Member], index: usize) -> Vec<Member> {
    let mut members = members.to_vec();
    members.remove(index);
    members
}

/// FNV-1a over the positions.
fn digest(table: &[u16]) -> u64 {
    table
        .iter()
        .flat_map(|position| position.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

/// The method as the paper has it, one look at a time: the builder's shortcuts must not show.
fn textbook(members: &[Member], slots: usize) -> Vec<u16> {
    let hash = |name: &str| {
        let fnv = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let hash = (fnv ^ fnv >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ hash >> 31
    };
    let weights: Vec<u16> = members.iter().map(|member| member.weight).collect();
    let mut left = quotas(&weights, slots);
    let mut table = vec![NO_MEMBER; slots];
    let permutation = |member: &Member| {
        let hash = hash(&member.backend.0);
        (hash as usize % slots, (hash >> 32) as usize | 1)
    };
    let mut permutations: Vec<(usize, usize)> = members.iter().map(permutation).collect();
    while left.iter().any(|quota| *quota > 0) {
        for (index, (next, skip)) in permutations
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| left[*index] > 0)
        {
            while table[*next] != NO_MEMBER {
                *next = (*next + *skip) % slots;
            }
            table[*next] = index as u16;
        }
        left.iter_mut().for_each(|quota| *quota = quota.saturating_sub(1));
    }
    table
}

fn sets() -> impl Strategy<Value = Vec<Member>> {
    let weight = prop_oneof![3 => Just(1u16), 2 => 0..=10u16, 1 => any::<u16>()];
    proptest::collection::btree_map("[a-z]{1,6}", weight, 1..60)
        .prop_map(|members| members.iter().map(|(name, weight)| member(name, *weight)).collect())
}

fn sizes() -> impl Strategy<Value = usize> {
    (8..=12u32).prop_map(|log2| 1 << log2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_slot_names_a_member_with_a_weight(members in sets(), slots in sizes()) {
        let table = build(&members, slots);
        prop_assert_eq!(table.len(), slots);
        if members.iter().all(|member| member.weight == 0) {
            prop_assert!(table.iter().all(|position| *position == NO_MEMBER));
        } else {
            prop_assert!(table.iter().all(|position| members[usize::from(*position)].weight > 0));
        }
    }

    #[test]
    fn shares_follow_the_weights_to_one_slot(members in sets(), slots in sizes()) {
        let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
        prop_assume!(total > 0);
        let small = members.iter().filter(|member| member.weight > 0).count() as f64;
        for (member, count) in members.iter().zip(counts(&members, slots)) {
            let ideal = f64::from(member.weight) * slots as f64 / total as f64;
            if member.weight == 0 {
                prop_assert_eq!(count, 0);
            } else if members.iter().all(|other| other.weight == 0 || u64::from(other.weight) * slots as u64 >= total) {
                prop_assert!((f64::from(count) - ideal).abs() < 1.0, "{} of {}", count, ideal);
            } else {
                // Somebody got a slot for less than a slot's share: the others pay for it, less than one slot for each of them.
                prop_assert!(count >= 1 && (f64::from(count) - ideal).abs() <= small, "{} of {}", count, ideal);
            }
        }
    }

    #[test]
    fn the_order_of_members_does_not_matter(members in sets(), slots in sizes(), rotation: prop::sample::Index) {
        let mut other = members.clone();
        other.rotate_left(rotation.index(members.len()));
        prop_assert_eq!(names(&members, slots), names(&other, slots));
        other.reverse();
        prop_assert_eq!(names(&members, slots), names(&other, slots));
    }

    #[test]
    fn the_shortcuts_do_not_show(members in sets(), slots in sizes()) {
        prop_assert_eq!(build(&members, slots), textbook(&members, slots));
    }

    #[test]
    fn quotas_fill_the_table(weights in proptest::collection::vec(any::<u16>(), 0..400), slots in sizes()) {
        let quotas = quotas(&weights, slots);
        let takers = weights.iter().filter(|weight| **weight > 0).count();
        prop_assert_eq!(quotas.iter().sum::<u32>() as usize, if takers == 0 { 0 } else { slots });
        let zero = |(weight, quota): (&u16, &u32)| (*weight == 0) == (*quota == 0);
        prop_assert!(takers > slots || weights.iter().zip(&quotas).all(zero));
    }
}

#[test]
fn tables_of_many_members_are_the_textbooks() {
    for (count, slots) in [(1000, 65_536), (1, 65_536), (300, 256), (255, 256)] {
        let mut members = nodes(count);
        assert!(
            build(&members, slots) == textbook(&members, slots),
            "{count} members, {slots} slots"
        );
        members.iter_mut().step_by(3).for_each(|member| member.weight = 7);
        assert!(
            build(&members, slots) == textbook(&members, slots),
            "{count} weighted members, {slots} slots"
        );
    }
}

#[test]
fn more_members_than_slots_leaves_the_lightest_out() {
    let mut members = nodes(300);
    members[299].weight = 2;
    let counts = counts(&members, 256);
    assert_eq!(counts.iter().sum::<u32>(), 256);
    assert!(counts.iter().all(|count| *count <= 1));
    assert_eq!(counts[299], 1);
}

#[test]
fn an_empty_set_gives_a_table_of_nobody() {
    assert_eq!(build(&[], 256), vec![NO_MEMBER; 256]);
    assert_eq!(build(&[member("a", 0)], 512), vec![NO_MEMBER; 512]);
}

#[test]
fn default_sizes_give_64_to_128_slots_each_within_bounds() {
    assert_eq!(
        [0, 1, 4, 5, 16, 17, 1000].map(default_slots),
        [256, 256, 256, 512, 1024, 2048, 65_536]
    );
    assert_eq!(default_slots(usize::MAX), 65_536);
    for members in 4..=1024 {
        assert!((64..=128).contains(&(default_slots(members) / members)), "{members}");
        assert!(is_table_size(default_slots(members)));
    }
    assert!(![0, 128, 300, 131_072].into_iter().any(is_table_size));
}

#[test]
fn a_grown_tables_slots_go_back_to_the_slot_their_flows_had() {
    let hash = 0xdead_beef_cafe_f00d_u64;
    let slot = |slots: usize| (hash >> (64 - slots.trailing_zeros())) as usize;
    for (base, grown) in [(256, 256), (256, 512), (1024, 65_536)] {
        assert_eq!(base_slot(slot(grown), grown, base), slot(base));
    }
}

/// Committed: a table must never change under a version of this program, or LB nodes of a group would disagree while they are
/// upgraded.
#[test]
fn tables_are_the_same_on_every_machine_for_ever() {
    let mut weighted = nodes(10);
    weighted
        .iter_mut()
        .zip(0..)
        .for_each(|(member, weight)| member.weight = weight);
    let digests = [
        digest(&build(&nodes(3), 256)),
        digest(&build(&weighted, 1024)),
        digest(&build(&nodes(1000), 65_536)),
    ];
    assert_eq!(
        digests,
        [
            11_332_261_003_354_638_966,
            14_153_035_109_954_000_666,
            7_792_734_027_430_720_313
        ]
    );
}

/// Share of slots that moved, in units of the share that had to.
fn our_disruption(members: &[Member], slots: usize, changes: &[usize]) -> f64 {
    let before = names(members, slots);
    let moved: usize = changes
        .iter()
        .map(|index| moved(&before, &names(&without(members, *index), slots)))
        .sum();
    moved as f64 / changes.len() as f64 / (slots as f64 / members.len() as f64)
}

/// The same of the `maglev` crate, over a sample of keys.
fn oracle_disruption(members: &[Member], slots: usize, changes: &[usize]) -> f64 {
    let build = |members: &[Member]| {
        maglev::Maglev::with_capacity(
            members
                .iter()
                .map(|member| member.backend.0.clone())
                .collect::<Vec<_>>(),
            slots,
        )
    };
    let keys = 0..100_000u32;
    let before = build(members);
    let moved: usize = changes
        .iter()
        .map(|index| {
            let after = build(&without(members, *index));
            keys.clone().filter(|key| before.get(key) != after.get(key)).count()
        })
        .sum();
    moved as f64 / changes.len() as f64 / (keys.len() as f64 / members.len() as f64)
}

#[test]
fn a_removed_backend_disrupts_no_more_than_with_the_textbooks_primes() {
    for (count, slots) in [(3, 256), (10, 1024), (100, 8192)] {
        let members = nodes(count);
        let changes: Vec<usize> = (0..count).step_by(count.div_ceil(5)).collect();
        let ours = our_disruption(&members, slots, &changes);
        let oracles = oracle_disruption(&members, slots, &changes);
        println!("{count} backends, {slots} slots: one removed moves {ours:.2} of its share, textbook {oracles:.2}");
        assert!(ours <= oracles * 1.1, "{count} backends: {ours} against {oracles}");
    }
}

#[test]
fn shares_are_more_even_than_the_textbooks() {
    let members = nodes(100);
    let ours = counts(&members, 8192);
    let oracle = maglev::Maglev::with_capacity(members.iter().map(|m| m.backend.0.clone()).collect::<Vec<_>>(), 8192);
    let mut theirs = BTreeMap::new();
    (0..200_000u32).for_each(|key| *theirs.entry(oracle.get(&key).unwrap().clone()).or_insert(0) += 1);
    assert_eq!((ours.iter().min(), ours.iter().max()), (Some(&81), Some(&82)));
    // The oracle's table is as even, but can only be seen through a sample of keys.
    assert!(theirs.values().all(|count| (1600..=2400).contains(count)), "{theirs:?}");
}

#[test]
fn adding_is_removing_backwards_and_a_weight_moves_little() {
    let members = nodes(100);
    let slots = 8192;
    let before = names(&without(&members, 50), slots);
    let after = names(&members, slots);
    // What does not move to or from the newcomer is the price of exact shares; it stays a small part of the table.
    assert!(moved(&before, &after) <= slots * 4 / 100, "{}", moved(&before, &after));

    let mut heavier = nodes(100);
    heavier[50].weight = 2;
    let heavier = names(&heavier, slots);
    assert!(
        moved(&after, &heavier) <= slots * 4 / 100,
        "{}",
        moved(&after, &heavier)
    );
    let own = |table: &[Option<Arc<str>>]| table.iter().flatten().filter(|name| ***name == *"node-0050").count();
    assert_eq!((own(&after), own(&heavier)), (82, 163));
    // What it gives up is the rare exception: somebody displaced takes one of its slots a turn earlier than it.
    let owned = after
        .iter()
        .zip(&heavier)
        .filter(|(before, _)| before.as_deref() == Some("node-0050"));
    let kept = owned.filter(|(before, after)| before == after).count();
    assert!(kept >= 75, "{kept} of 82");
}
