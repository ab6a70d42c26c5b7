//! Who gets the slots of members that take no new flows.
//!
//! Never builds the set's own table: that comes from the desired state alone, and is the same on every LB node.

use super::overlay::Health;
use crate::{desired::Member, maglev};

/// A set's table with the slots of members that are not eligible given to others: each to its owner in the table built without
/// those members. All other slots stay, so that two LB nodes that disagree about one backend disagree about its slots only.
///
/// `table`: positions in `members`, as [`maglev::build`] gives them; `health` by position. `None`: nothing changes, because all are
/// eligible, or nobody else has a weight.
pub fn replaced(members: &[Member], table: &[u16], health: &[Health]) -> Option<Vec<u16>> {
    let is_out = |position: usize| health.get(position).is_some_and(|health| *health != Health::Eligible);
    let weighted = |out: bool| {
        let mut positions = members.iter().zip(0..).filter(|(member, _)| member.weight > 0);
        positions.any(|(_, position)| is_out(position) == out)
    };
    if !weighted(true) || !weighted(false) {
        return None;
    }
    let rest: Vec<Member> = members
        .iter()
        .enumerate()
        .map(|(position, member)| Member {
            backend: member.backend.clone(),
            weight: if is_out(position) { 0 } else { member.weight },
        })
        .collect();
    let without = maglev::build(&rest, table.len());
    let slots = table.iter().zip(without);
    Some(
        slots
            .map(|(owner, other)| if is_out(usize::from(*owner)) { other } else { *owner })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::desired::BackendId;

    fn members() -> impl Strategy<Value = Vec<Member>> {
        let weight = prop_oneof![6 => Just(1u16), 2 => 1..=20u16, 1 => Just(0u16), 1 => any::<u16>()];
        proptest::collection::btree_map("[a-z]{1,6}", weight, 1..40).prop_map(|members| {
            let member = |(name, weight): (String, u16)| Member {
                backend: BackendId(Arc::from(name)),
                weight,
            };
            members.into_iter().map(member).collect()
        })
    }

    fn healths() -> impl Strategy<Value = Vec<Health>> {
        let health = prop_oneof![3 => Just(Health::Eligible), 1 => Just(Health::Unhealthy), 1 => Just(Health::Dead)];
        proptest::collection::vec(health, 40)
    }

    proptest! {
        #[test]
        fn only_slots_of_those_that_are_out_change_and_go_where_a_table_without_them_says(
            members in members(),
            health in healths(),
            log2 in 8..=12u32,
        ) {
            let table = maglev::build(&members, 1 << log2);
            let out = |position: u16| health[usize::from(position)] != Health::Eligible;
            let takes = |out_too: bool| {
                members.iter().zip(0u16..).filter(|(member, at)| member.weight > 0 && (out_too || !out(*at))).count()
            };
            let changed = replaced(&members, &table, &health);
            if takes(false) == 0 || takes(false) == takes(true) {
                prop_assert_eq!(changed, None);
                return Ok(());
            }
            let changed = changed.unwrap();
            let left: Vec<Member> = members.iter().zip(0u16..).filter(|(_, at)| !out(*at)).map(|(m, _)| m.clone()).collect();
            let without = maglev::build(&left, table.len());
            for slot in 0..table.len() {
                if out(table[slot]) {
                    // The table without them knows other positions, and the same names.
                    prop_assert_eq!(&members[usize::from(changed[slot])], &left[usize::from(without[slot])]);
                } else {
                    prop_assert_eq!(changed[slot], table[slot]);
                }
                prop_assert!(!out(changed[slot]));
            }
        }

        #[test]
        fn every_lb_node_comes_to_the_same_whatever_the_order_of_members(
            members in members(),
            health in healths(),
            turn in any::<prop::sample::Index>(),
        ) {
            let of = |order: &[usize]| {
                let turned: Vec<Member> = order.iter().map(|at| members[*at].clone()).collect();
                let health: Vec<Health> = order.iter().map(|at| health[*at]).collect();
                let table = maglev::build(&turned, 256);
                let table = replaced(&turned, &table, &health).unwrap_or(table);
                let name = |position: &u16| turned.get(usize::from(*position)).map(|member| member.backend.clone());
                table.iter().map(name).collect::<Vec<_>>()
            };
            let order: Vec<usize> = (0..members.len()).collect();
            let mut other = order.clone();
            other.rotate_left(turn.index(members.len()));
            prop_assert_eq!(of(&order), of(&other));
        }
    }

    #[test]
    fn the_share_of_one_that_fell_is_spread_evenly_and_a_second_fall_moves_its_own_slots_and_theirs() {
        let members: Vec<Member> = (0..20)
            .map(|index| Member {
                backend: BackendId(format!("worker-{index}").into()),
                weight: 1,
            })
            .collect();
        let table = maglev::build(&members, 2048);
        let fall = |fallen: &[usize]| {
            let mut health = vec![Health::Eligible; 20];
            fallen.iter().for_each(|at| health[*at] = Health::Unhealthy);
            replaced(&members, &table, &health).unwrap()
        };
        let one = fall(&[4]);
        let mut got = [0usize; 20];
        one.iter().for_each(|owner| got[usize::from(*owner)] += 1);
        assert_eq!(got[4], 0);
        assert!(
            got.iter()
                .enumerate()
                .all(|(at, got)| at == 4 || (100..=125).contains(got)),
            "{got:?}"
        );
        let two = fall(&[4, 9]);
        let moved = (0..2048).filter(|slot| one[*slot] != two[*slot]).count();
        // Its own 102 or so, and of those of the first that it had got, or that the rebuilt table now gives to another.
        assert!((100..=160).contains(&moved), "{moved}");
    }
}
