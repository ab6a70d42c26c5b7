//! Which LB nodes live, and which have a table.

use serde_json::{Value, json};

use super::*;
use crate::index::Coverage;

const NOW: &str = "2026-01-01T00:00:30Z";
const FRESH: &str = "2026-01-01T00:00:00.000000Z";

fn published() -> Object {
    Object::Service(service(
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}}),
    ))
}

/// What is said of `web`'s table (version 200) by one LB node that lives.
fn coverage(status: Value, service: Object) -> Coverage {
    let table = table("web", "198.51.100.1", json!({}));
    let index = index_at(
        NOW,
        [
            service,
            Object::Table(table.clone()),
            Object::LbNode(lb_node("lb1", "", json!({"status": status}))),
            Object::Lease(lease("lb1", FRESH, json!({}))),
        ],
    );
    index.programmed(&table)
}

fn index_at(now: &str, objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = index([]);
    index.tick(time(now));
    for object in objects {
        index.apply(object);
    }
    index
}

#[test]
fn a_table_is_programmed_where_its_version_is_reached() {
    for (through, on) in [("", 0), ("199", 0), ("200", 1), ("1000", 1), ("99", 0), ("nonsense", 0)] {
        let coverage = coverage(
            json!({"programmed": {"tables": through}}),
            Object::Service(service(json!({}))),
        );
        assert_eq!((coverage.on, coverage.of), (on, 1), "{through:?}");
    }
    assert_eq!(
        coverage(Value::Null, published()).on,
        0,
        "an LB node that has said nothing yet"
    );
}

#[test]
fn a_table_that_fails_is_not_programmed_and_says_why() {
    let failing = json!({"programmed": {"tables": "300", "failingCount": 1, "failing": [{"name": "shop.web", "why": "no room"}]}});
    let coverage = coverage(failing, published());
    assert_eq!(
        coverage,
        Coverage {
            on: 0,
            of: 1,
            unsure: 0,
            failing: vec![("lb1".to_owned(), "no room".to_owned())]
        }
    );
}

#[test]
fn when_more_fail_than_are_listed_only_published_tables_count() {
    let overflow = json!({"programmed": {"tables": "300", "failingCount": 40, "failing": [{"name": "shop.other", "why": "no room"}]}});
    assert_eq!(coverage(overflow.clone(), Object::Service(service(json!({})))).on, 0);
    assert_eq!(coverage(overflow, published()).on, 1);
}

/// How many LB nodes live, and of how many nobody can say.
fn living(index: &Index) -> (usize, usize) {
    let coverage = index.programmed(&table("web", "198.51.100.1", json!({})));
    (coverage.of, coverage.unsure)
}

#[test]
fn only_live_lb_nodes_count_and_a_lease_says_until_when() {
    let table = table("web", "198.51.100.1", json!({}));
    let mut index = index_at(
        NOW,
        [
            Object::Table(table.clone()),
            Object::LbNode(lb_node("live", "300", json!({}))),
            Object::LbNode(lb_node("dead", "300", json!({}))),
            Object::LbNode(lb_node("leaseless", "300", json!({}))),
            Object::LbNode(lb_node("absurd", "300", json!({}))),
            Object::Lease(lease("live", FRESH, json!({}))),
            Object::Lease(lease("dead", "2025-12-31T23:59:00.000000Z", json!({}))),
            Object::Lease(lease("absurd", FRESH, json!({"spec": {"leaseDurationSeconds": -1}}))),
            Object::Lease(lease("gone", FRESH, json!({}))),
        ],
    );
    assert_eq!(
        index.programmed(&table),
        Coverage {
            on: 1,
            of: 1,
            unsure: 1,
            failing: vec![]
        },
        "`dead` looks dead, and may only have another time"
    );
    index.tick(time("2026-01-01T00:00:40Z"));
    assert_eq!(living(&index), (0, 2));
    index.tick(time("2026-01-01T00:01:10Z"));
    assert_eq!(living(&index), (0, 0));
}

#[test]
fn a_lease_holds_for_its_duration_after_it_was_seen_to_change_whatever_it_says() {
    for theirs in ["2025-12-31T00:00:00.000000Z", FRESH, "2026-01-02T00:00:00.000000Z"] {
        let mut index = index_at(
            "2026-01-01T00:00:00Z",
            [
                Object::LbNode(lb_node("lb1", "", json!({}))),
                Object::Lease(lease("lb1", "2025-01-01T00:00:00.000000Z", json!({}))),
            ],
        );
        assert_eq!(living(&index), (0, 1), "at first sight");
        index.tick(time("2026-01-01T00:00:10Z"));
        let renewed =
            |version: &str| Object::Lease(lease("lb1", theirs, json!({"metadata": {"resourceVersion": version}})));
        index.apply(renewed("101"));
        assert_eq!(living(&index), (1, 0), "{theirs}");
        // The same again, after a relist or with a label, is no sign of life.
        index.tick(time("2026-01-01T00:00:49Z"));
        index.apply(renewed("102"));
        assert_eq!(living(&index), (1, 0), "{theirs}");
        index.tick(time("2026-01-01T00:00:50Z"));
        assert_eq!(living(&index), (0, 0), "{theirs}");
    }
}

#[test]
fn a_lease_without_duration_lasts_forty_seconds_and_none_lasts_over_an_hour() {
    for (duration, seconds) in [(Value::Null, 40), (json!(i32::MAX), 3_600)] {
        let lease = lease("lb1", FRESH, json!({"spec": {"leaseDurationSeconds": duration}}));
        let mut index = index_at(
            FRESH,
            [Object::LbNode(lb_node("lb1", "", json!({}))), Object::Lease(lease)],
        );
        let after = |seconds: i64| time(FRESH) + jiff::SignedDuration::from_secs(seconds);
        index.tick(after(seconds - 1));
        assert_eq!(living(&index), (1, 0));
        index.tick(after(seconds));
        assert_eq!(living(&index), (0, 0));
    }
}

#[test]
fn the_refresh_goes_round() {
    let tables = ["a", "b", "c"].map(|name| Object::Table(table(name, "198.51.100.1", json!({}))));
    let index = index(tables);
    let names = |after: Option<&str>, most| {
        let after = after.map(key);
        index
            .refresh(after.as_ref(), most)
            .into_iter()
            .map(|key| key.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(None, 2), ["a", "b"]);
    assert_eq!(names(Some("b"), 2), ["c", "a"]);
    assert_eq!(names(Some("bb"), 5), ["c", "a", "b"]);
    assert_eq!(names(Some("c"), 5), ["a", "b", "c"]);
}
