//! What is published of transits, and what VIPs get of it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lb_core::desired::Base;
use lb_core::drain::Drain;
use operator_api::{LeavingNode, LocalTransit, NodeSetTransit};

use super::*;

fn time(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

type Entry = (&'static str, Option<&'static str>, Option<&'static str>);

const N1: Entry = ("n1", Some("10.0.0.1"), Some("2001:db8:1::1"));
const N2: Entry = ("n2", Some("10.0.0.2"), None);
const N3: Entry = ("n3", None, Some("2001:db8:1::3"));
const N4: Entry = ("n4", Some("10.0.0.4"), None);

/// A chunk that had `departed` before a change at `started`, and had not `arrived`.
fn moving(
    (number, chunks): (u32, u32),
    nodes: &[Entry],
    departed: &[Entry],
    arrived: &[&str],
    started: i64,
) -> Object<NodeSetSpec> {
    let mut object = chunk(number, chunks, 1, nodes);
    let gone = chunk(0, 1, 1, departed).spec.unwrap().nodes;
    object.spec.as_mut().unwrap().transit = Some(NodeSetTransit {
        started: time(started),
        changed: time(started + 5),
        table_slots: 512,
        departed: gone,
        arrived: arrived.iter().map(|name| (*name).to_owned()).collect(),
    });
    object
}

fn words(base: &Base) -> String {
    let members = base.set.members.iter();
    let words: Vec<String> = members
        .map(|member| format!("{}*{}", member.backend, member.weight))
        .collect();
    format!(
        "{} of {:?} since {}: {}",
        base.of,
        base.set.table_slots,
        base.since_s,
        words.join(" ")
    )
}

fn base(index: &Index, address: &str) -> String {
    let snapshot = index.snapshot();
    let vip = &snapshot.vips[&key(address, 80)];
    vip.base.as_ref().map_or_else(|| "none".to_owned(), |base| words(base))
}

fn published(index: &Index) -> Vec<(String, i64)> {
    let all = index.published_transits();
    all.map(|(of, changed)| (of.to_string(), changed)).collect()
}

#[test]
fn a_sets_base_is_who_stayed_and_who_has_departed() {
    let mut index = index();
    index.apply_table(object(
        "shop.web",
        1,
        20,
        spec(&["203.0.113.1", "2001:db8:f00d::1"], &[80]),
    ));
    assert_eq!(
        (base(&index, "203.0.113.1"), published(&index)),
        ("none".to_owned(), Vec::new())
    );
    let sequence = index.sequence();
    index.apply_node_set(moving((0, 1), &[N1, N3, N4], &[N2], &["n4"], 100));
    assert!(index.sequence() > sequence);
    // A family that a node has no address of goes to the other.
    assert_eq!(
        base(&index, "203.0.113.1"),
        "workers of Some(512) since 100: n1/ipv4*1 n2/ipv4*1 n3/ipv6*1"
    );
    assert_eq!(
        base(&index, "2001:db8:f00d::1"),
        "workers of Some(512) since 100: n1/ipv6*1 n2/ipv4*1 n3/ipv6*1"
    );
    assert_eq!(members(&index, "203.0.113.1", 80), "n1/ipv4*1 n3/ipv6*1 n4/ipv4*1");
    let departed = index.snapshot().departed;
    let departed: Vec<String> = departed.iter().map(|(id, at)| format!("{id} {}", at.address)).collect();
    assert_eq!(departed, ["n2/ipv4 10.0.0.2"]);
    assert_eq!(published(&index), [("workers".to_owned(), 105)]);
    // The end.
    index.apply_node_set(chunk(0, 1, 1, &[N1, N3, N4]));
    assert_eq!(
        (base(&index, "203.0.113.1"), published(&index)),
        ("none".to_owned(), Vec::new())
    );
    assert!(index.snapshot().departed.is_empty());
}

#[test]
fn chunks_are_in_transit_each_on_its_own_and_one_that_comes_back_elsewhere_was_there() {
    let mut index = Index::new(own());
    index.apply_table(object("shop.web", 1, 20, spec(&["203.0.113.1"], &[80])));
    index.apply_node_set(moving((0, 2), &[N1], &[N2], &[], 200));
    index.apply_node_set(moving((1, 2), &[N2, N4], &[], &["n2"], 150));
    assert_eq!(
        base(&index, "203.0.113.1"),
        "workers of Some(512) since 150: n1/ipv4*1 n2/ipv4*1 n4/ipv4*1"
    );
    assert_eq!(published(&index), [("workers".to_owned(), 205)]);
}

#[test]
fn a_table_that_is_younger_than_the_transit_had_no_flows_before_it() {
    let mut index = Index::new(own());
    index.apply_node_set(moving((0, 1), &[N1], &[N2], &[], 100));
    for (name, created, address) in [
        ("a", 99, "203.0.113.1"),
        ("b", 100, "203.0.113.2"),
        ("c", 101, "203.0.113.3"),
    ] {
        index.apply_table(object(name, created, 20, spec(&[address], &[80])));
    }
    assert!(base(&index, "203.0.113.1").starts_with("workers"));
    assert!(base(&index, "203.0.113.2").starts_with("workers"));
    assert_eq!(base(&index, "203.0.113.3"), "none");
    // And a family that nobody serves goes nowhere.
    let mut unserved = spec(&["203.0.113.1"], &[80]);
    unserved.backends = Backends::NodeSet {
        name: "workers".to_owned(),
        unserved: vec![AddressFamily::IPv4],
    };
    index.apply_table(object("a", 99, 30, unserved));
    assert_eq!(base(&index, "203.0.113.1"), "none");
}

#[test]
fn a_tables_own_base_is_its_nodes_with_the_numbers_that_they_had() {
    let mut index = Index::new(own());
    index.apply_node_set(moving((0, 1), &[N1, N3], &[N2], &[], 100));
    let mut table = local(&["203.0.113.1"], &[("n1", 3, 0), ("n3", 1, 0)]);
    let Backends::Local { transit, .. } = &mut table.backends else {
        panic!("not local")
    };
    let node = |name: &str, ipv4| LocalNode {
        name: name.to_owned(),
        ipv4,
        ipv6: 0,
    };
    *transit = Some(LocalTransit {
        started: time(300),
        changed: time(310),
        table_slots: 256,
        nodes: vec![node("gone", 1), node("n1", 1), node("n2", 2), node("n3", 0)],
    });
    index.apply_table(object("shop.web", 200, 20, table.clone()));
    // Of one that nobody knows any more nothing can be kept.
    assert_eq!(
        base(&index, "203.0.113.1"),
        "shop.web of Some(256) since 300: n1/ipv4*1 n2/ipv4*2"
    );
    assert_eq!(
        published(&index),
        [("workers".to_owned(), 105), ("shop.web".to_owned(), 310)]
    );
    // Looked at again, it is no change.
    let sequence = index.sequence();
    index.apply_table(object("shop.other", 200, 21, local(&["203.0.113.2"], &[("n1", 1, 0)])));
    index.apply_table(object("shop.web", 200, 22, table));
    assert_eq!(base(&index, "203.0.113.2"), "none");
    assert_eq!(index.sequence(), sequence + 1, "for the other");
}

#[test]
fn nodes_that_are_drained_until_a_time_or_gone_are_told_by_their_backends_names() {
    let mut index = index();
    let leaving = |name: &str, deadline: Option<i64>, gone| LeavingNode {
        name: name.to_owned(),
        ipv4: Some("10.0.0.9".to_owned()).filter(|_| name == "n5"),
        ipv6: None,
        since: time(100),
        deadline: deadline.map(time),
        gone,
    };
    let mut object = moving((0, 1), &[N1], &[N2, N3, N4], &[], 100);
    // The last is in the set, whatever else is said of it.
    object.spec.as_mut().unwrap().leaving = vec![
        leaving("n2", Some(700), false),
        leaving("n3", None, true),
        leaving("n4", Some(900), true),
        leaving("n1", Some(1), true),
        leaving("n5", None, true),
    ];
    let sequence = index.sequence();
    index.apply_node_set(object.clone());
    assert!(index.sequence() > sequence);
    let told = |index: &Index| {
        let snapshot = index.snapshot();
        let drains = snapshot.drains.iter();
        let drains: Vec<(String, Drain)> = drains.map(|(id, drain)| (id.to_string(), drain)).collect();
        let gone: Vec<String> = snapshot.gone.iter().map(ToString::to_string).collect();
        (drains, gone.join(" "))
    };
    let drain = |id: &str, deadline| {
        let (since, deadline) = (100, Some(deadline));
        (id.to_owned(), Drain { since, deadline })
    };
    let drains = vec![
        drain("n2/ipv4", 700),
        drain("n2/ipv6", 700),
        drain("n4/ipv4", 900),
        drain("n4/ipv6", 900),
    ];
    assert_eq!(
        told(&index),
        (drains, "n3/ipv4 n3/ipv6 n4/ipv4 n4/ipv6 n5/ipv4 n5/ipv6".to_owned())
    );
    let departed = index.snapshot().departed;
    let departed: Vec<String> = departed.keys().map(ToString::to_string).collect();
    assert_eq!(
        departed,
        ["n2/ipv4", "n3/ipv6", "n4/ipv4", "n5/ipv4"],
        "with who left before the transit"
    );
    // Another deadline is news; the end is, too.
    object.spec.as_mut().unwrap().leaving[0].deadline = Some(time(100));
    object.revision += 1;
    index.apply_node_set(object);
    assert_eq!(told(&index).0[0], drain("n2/ipv4", 100));
    index.apply_node_set(workers());
    assert_eq!(told(&index), (Vec::new(), String::new()));
}
