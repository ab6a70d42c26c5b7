//! Whole lists: what they drop, what they change, and what is kept of them.

use std::time::Duration;

use operator_api::VipTableSpec;

use super::{NOW, delete, index, local, members, object, own, spec, why, workers};
use crate::source::kube::{
    guard::{HOLD, SETTLE},
    index::Index,
    object::Object,
};

fn many(count: u8) -> Vec<Object<VipTableSpec>> {
    let table = |n: u8| {
        object(
            &format!("t{n:02}"),
            1,
            20 + u64::from(n),
            spec(&[&format!("203.0.113.{n}")], &[80]),
        )
    };
    (0..count).map(table).collect()
}

#[test]
fn a_list_that_drops_over_half_is_held_while_new_and_changed_tables_apply() {
    let mut index = index();
    index.reset_tables(many(10), NOW);
    assert_eq!((index.counts().0, index.held()), (10, None));
    let mut short = many(3);
    short[0] = object("t00", 1, 50, spec(&["203.0.113.0"], &[81]));
    // What is held gives way, too.
    short.push(object("new", 9, 51, spec(&["203.0.113.9"], &[80])));
    index.reset_tables(short.clone(), NOW + Duration::from_secs(1));
    let held = index.held().unwrap();
    assert_eq!((held.vips, held.of), (6, 10));
    assert_eq!(index.counts().0, 10);
    assert_ne!(members(&index, "203.0.113.0", 81), "none");
    assert_eq!(why(&index, "new"), None);
    assert!(why(&index, "t09").is_some(), "it gave way");
    assert_eq!(index.held_until(), Some(NOW + Duration::from_secs(1) + HOLD));

    // One comes back; what is deleted by name meanwhile is held, too.
    index.apply_table(object("t05", 1, 60, spec(&["203.0.113.5"], &[80])));
    assert_eq!(index.held().unwrap().vips, 5);
    delete(&mut index, "t05", 61);
    assert_eq!(index.held().unwrap().vips, 6);
    assert_ne!(members(&index, "203.0.113.5", 80), "none");
    index.apply_table(object("t05", 1, 62, spec(&["203.0.113.5"], &[80])));
    index.apply_table(object("t06", 1, 63, spec(&["203.0.113.6"], &[80])));
    assert_eq!(index.let_go(), 5);
    assert_eq!((index.counts().0, index.held()), (6, None));
}

#[test]
fn a_list_without_the_only_vip_is_held_and_its_deletion_by_name_is_not() {
    let mut index = index();
    index.reset_tables(many(1), NOW);
    index.reset_tables(Vec::new(), NOW);
    assert_eq!(index.held().map(|held| (held.vips, held.of)), Some((1, 1)));
    index.reset_tables(many(1), NOW);
    assert_eq!(index.held(), None);
    index.delete_table("t00", 50, NOW);
    assert_eq!(index.deletions_due(), Some(NOW + SETTLE));
    index.carry_out_deletions(NOW);
    assert_ne!(members(&index, "203.0.113.0", 80), "none", "others may come");
    index.carry_out_deletions(NOW + SETTLE);
    assert_eq!((index.counts(), index.held()), ((0, 0, 0), None));
}

#[test]
fn deletions_of_over_half_at_once_are_held_like_a_list_that_drops_them() {
    let mut index = index();
    index.reset_tables(many(10), NOW);
    for n in 0..10 {
        index.delete_table(&format!("t{n:02}"), 60 + n, NOW);
    }
    assert_eq!(index.held().map(|held| (held.vips, held.of)), Some((10, 10)));
    assert_eq!((index.held_until(), index.deletions_due()), (Some(NOW + HOLD), None));
    index.carry_out_deletions(NOW + SETTLE);
    assert_eq!(index.counts().0, 10, "all are served");
    assert_eq!(index.revisions().tables, 69);
    // What comes back is whole, and what is new has its address at once.
    index.apply_table(object("t03", 1, 70, spec(&["203.0.113.3"], &[80])));
    index.apply_table(object("new", 9, 71, spec(&["203.0.113.4"], &[80])));
    assert_eq!((why(&index, "new"), index.held().unwrap().vips), (None, 8));
    assert_eq!(index.let_go(), 9);
    assert_eq!((index.counts().0, index.held()), (2, None));
}

#[test]
fn a_cluster_from_a_backup_counts_from_there() {
    let mut index = index();
    index.reset_tables(many(3), NOW);
    index.apply_table(object("t00", 1, 900, spec(&["203.0.113.0"], &[81])));
    index.apply_node_set(Object {
        revision: 901,
        ..workers()
    });
    let before = index.revisions();
    assert_eq!((before.tables, before.node_sets), (900, 901));
    index.reset_tables(many(3), NOW);
    index.reset_node_sets(vec![workers()]);
    // Whoever waits for revision 30 of a table waits until it is here.
    assert_eq!((index.revisions().tables, index.revisions().node_sets), (22, 10));
    assert_ne!(members(&index, "203.0.113.0", 80), "none");
}

#[test]
fn a_list_that_is_whole_again_ends_what_was_held_and_a_smaller_loss_is_believed() {
    let mut index = index();
    index.reset_tables(many(10), NOW);
    index.reset_tables(Vec::new(), NOW);
    assert_eq!((index.counts().0, index.held().map(|held| held.vips)), (10, Some(10)));
    let sequence = index.sequence();
    index.reset_tables(many(10), NOW);
    assert_eq!((index.counts().0, index.held()), (10, None));
    index.reset_tables(many(6), NOW);
    assert_eq!((index.counts().0, index.held()), (6, None));
    assert!(index.sequence() > sequence);
}

#[test]
fn a_list_of_what_is_known_changes_nothing() {
    let mut index = index();
    index.reset_tables(many(10), NOW);
    let sequence = index.sequence();
    index.reset_tables(many(10), NOW);
    index.apply_table(many(10).remove(3));
    index.reset_node_sets(vec![workers()]);
    assert_eq!(index.sequence(), sequence);
    let mut other = many(10).remove(3);
    other.revision = 99;
    index.apply_table(other);
    assert_eq!((index.sequence(), index.revisions().tables), (sequence, 99));
}

#[test]
fn the_same_objects_in_any_order_ask_for_the_same() {
    let mut tables = many(8);
    tables.push(object("x", 0, 50, spec(&["203.0.113.1", "203.0.113.2"], &[80])));
    tables.push(object(
        "y",
        5,
        51,
        local(&["203.0.113.1", "203.0.113.60"], &[("n1", 1, 0)]),
    ));
    let mut expected = None;
    for turn in 0..tables.len() {
        let mut index = Index::new(own());
        tables.rotate_left(1);
        for (at, table) in tables.iter().enumerate() {
            if at == turn {
                index.apply_node_set(workers());
            }
            index.apply_table(table.clone());
        }
        let snapshot = index.snapshot();
        let said = (snapshot.vips, snapshot.backends, snapshot.failing);
        assert_eq!(expected.get_or_insert_with(|| said.clone()), &said, "turn {turn}");
    }
    let failing: Vec<String> = expected.unwrap().2.keys().map(ToString::to_string).collect();
    assert_eq!(failing, ["t01", "t02", "y"]);
}

#[test]
fn what_is_kept_is_what_is_in_the_maps() {
    let mut index = index();
    index.apply_table(object("a", 1, 20, spec(&["203.0.113.1"], &[80])));
    index.programmed(index.sequence());
    index.apply_table(object("a", 1, 21, spec(&["203.0.113.1"], &[0])));
    index.apply_table(object("never", 2, 22, spec(&["203.0.113.2"], &[0])));
    let kept = index.kept();
    let tables: Vec<_> = kept
        .tables
        .iter()
        .map(|(name, created, revision, _)| (&**name, *created, *revision))
        .collect();
    assert_eq!(tables, [("a", 1, 20)]);
    assert_eq!(kept.chunks.len(), 1);
}
