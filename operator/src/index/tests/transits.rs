//! What is published of who the backends were, and until when.

use operator_api::{Backends, LocalNode, LocalTransit, NodeSetTransit};
use serde_json::{Value, json};

use super::*;
use crate::index::Kind;

const START: &str = "2026-01-01T00:00:00Z";
const FRESH: &str = "2026-01-01T00:00:00.000000Z";

/// A cluster whose API server takes what the operator wants to write, with nodes `n1`, `n2` and so on.
struct Cluster {
    index: Index,
    now: Timestamp,
    version: u64,
    writes: usize,
}

impl Cluster {
    fn new(nodes: u32) -> Self {
        let mut cluster = Self {
            index: index([seed_secret()]),
            now: time(START),
            version: 1_000,
            writes: 0,
        };
        cluster.index.tick(cluster.now);
        for number in 1..=nodes {
            cluster.arrives(number);
        }
        cluster.settle();
        cluster.writes = 0;
        cluster
    }

    fn next_version(&mut self) -> Option<String> {
        self.version += 1;
        Some(self.version.to_string())
    }

    fn arrives(&mut self, number: u32) {
        let mut node = node(&format!("n{number}"), json!({}));
        node.metadata.resource_version = self.next_version();
        self.index.apply(Object::Node(node));
    }

    fn departs(&mut self, number: u32) {
        let node = node(&format!("n{number}"), json!({"metadata": {"uid": null}}));
        self.index.delete(Object::Node(node));
    }

    fn later(&mut self, seconds: i64) {
        self.now += jiff::SignedDuration::from_secs(seconds);
        self.index.tick(self.now);
    }

    fn settle(&mut self) {
        while let Some(mut chunk) = self.index.next_node_set() {
            chunk.metadata.uid = chunk.metadata.name.clone();
            chunk.metadata.resource_version = self.next_version();
            self.index.apply(Object::NodeSet(chunk));
            self.writes += 1;
            assert!(self.writes < 50, "it never ends");
        }
    }

    /// Writes of chunks, and what is published of the only one: since when, until when, who has left, and who has come.
    fn published(&mut self) -> (usize, Option<NodeSetTransit>) {
        self.settle();
        let chunks: Vec<_> = self.index.chunks().into_values().collect();
        assert_eq!(chunks.len(), 1);
        (std::mem::take(&mut self.writes), chunks[0].transit.clone())
    }

    /// An LB node says what it has programmed, and which transits are over there; it lives.
    fn says(&mut self, name: &str, through: u64, transits: Value) -> BTreeSet<Subject> {
        let version = self.next_version();
        let programmed = json!({"tables": through.to_string(), "nodeSets": through.to_string()});
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"programmed": programmed, "transits": transits}});
        let dirty = self.index.apply(Object::LbNode(lb_node(name, "", patch)));
        self.beats(name);
        dirty
    }

    fn beats(&mut self, name: &str) {
        let patch = json!({"metadata": {"resourceVersion": self.next_version()}});
        let renewed = self.now.to_string();
        self.index.apply(Object::Lease(lease(name, &renewed, patch)));
    }

    /// All is over that changed until now.
    fn over(&self) -> Value {
        json!({"overThrough": self.now.to_string()})
    }
}

fn words(transit: &NodeSetTransit) -> String {
    let departed: Vec<&str> = transit.departed.iter().map(|node| &*node.name).collect();
    format!(
        "{departed:?} {:?} {}",
        transit.departed.first().and_then(|node| node.ipv4.as_deref()),
        transit.arrived.join(" ")
    )
}

#[test]
fn a_change_is_published_in_the_same_write_and_a_further_one_keeps_the_base() {
    let mut cluster = Cluster::new(3);
    assert_eq!(cluster.published(), (0, None), "who is there first was not before");
    cluster.later(100);
    cluster.departs(2);
    let (writes, first) = cluster.published();
    let first = first.unwrap();
    assert_eq!((writes, &*words(&first)), (1, r#"["n2"] Some("10.1.0.3") "#));
    assert_eq!(
        (first.started.0, first.changed.0, first.table_slots),
        (cluster.now, cluster.now, 256)
    );
    cluster.later(100);
    cluster.arrives(4);
    let (writes, second) = cluster.published();
    let second = second.unwrap();
    assert_eq!((writes, &*words(&second)), (1, r#"["n2"] Some("10.1.0.3") n4"#));
    assert_eq!((&second.started, second.changed.0), (&first.started, cluster.now));
    // Back where it began: not over, for flows that live elsewhere.
    cluster.departs(4);
    cluster.arrives(2);
    let (writes, third) = cluster.published();
    let third = third.unwrap();
    assert_eq!((writes, &*words(&third)), (1, "[] None "));
    assert_eq!(third.started, first.started);
    assert!(
        third.changed > second.changed,
        "of the same second: time goes on all the same"
    );
    // What is no change of members is none of flows.
    let patch = json!({"metadata": {"resourceVersion": "5000", "labels": {"topology.kubernetes.io/zone": "z"}}});
    cluster.index.apply(Object::Node(node("n1", patch)));
    assert_eq!(cluster.published(), (1, Some(third)));
}

#[test]
fn slots_that_grow_are_published_as_they_were() {
    let mut cluster = Cluster::new(4);
    cluster.arrives(5);
    let transit = cluster.published().1.unwrap();
    assert_eq!((transit.table_slots, transit.arrived.len()), (256, 1));
    assert_eq!(cluster.index.chunks()[&0].table_slots, 512);
    for number in 6..=9 {
        cluster.arrives(number);
    }
    assert_eq!(cluster.published().1.unwrap().table_slots, 256);
}

#[test]
fn the_operator_ends_it_when_every_lb_node_that_lives_says_so() {
    let mut cluster = Cluster::new(3);
    cluster.departs(2);
    assert!(cluster.published().1.is_some());
    cluster.later(10);
    assert_eq!(cluster.published().0, 0, "nobody has said anything");
    let all = cluster.version;
    let over = cluster.over();
    // One that has died does not hold it up; nor does one of an earlier version.
    cluster.says("dead", all, json!({}));
    cluster.later(3_700);
    cluster.says("old", all, Value::Null);
    for (says, why) in [
        (json!({}), "none is over"),
        (json!({"overThrough": "2025-12-31T23:59:59Z"}), "an earlier one is"),
        (
            json!({"overThrough": over["overThrough"], "butFor": ["workers"]}),
            "all but this",
        ),
    ] {
        cluster.says("lb1", all, says);
        assert_eq!(cluster.published().0, 0, "{why}");
    }
    cluster.says("lb1", 1, over.clone());
    assert_eq!(cluster.published().0, 0, "it does not know of the change yet");
    cluster.says("lb2", all, json!({}));
    assert!(cluster.says("lb1", all, over.clone()).contains(&Subject::NodeSets));
    assert_eq!(cluster.published().0, 0, "the other is not silent");
    assert!(cluster.says("lb2", all, over.clone()).contains(&Subject::NodeSets));
    assert_eq!(cluster.published(), (1, None));
    assert!(
        !cluster.says("lb2", all, json!({})).contains(&Subject::NodeSets),
        "nothing is in transit"
    );
    assert_eq!(cluster.published().0, 0);
}

#[test]
fn an_lb_node_without_a_status_is_waited_for_and_one_that_dies_is_not() {
    let mut cluster = Cluster::new(3);
    cluster.departs(2);
    cluster.settle();
    let (all, over) = (cluster.version, cluster.over());
    cluster
        .index
        .apply(Object::LbNode(lb_node("lb2", "", json!({"status": null}))));
    cluster.beats("lb2");
    cluster.says("lb1", all, over);
    cluster.writes = 0;
    assert_eq!(cluster.published().0, 0);
    cluster.later(41);
    cluster.beats("lb1");
    assert_eq!(cluster.published(), (1, None));
}

#[test]
fn nobody_to_say_so_is_not_silence_but_a_day_is_enough() {
    let mut cluster = Cluster::new(3);
    cluster.departs(2);
    cluster.settle();
    cluster.writes = 0;
    cluster.later(24 * 3_600 - 1);
    assert_eq!(cluster.published().0, 0);
    cluster.later(1);
    assert_eq!(cluster.published(), (1, None));
}

#[test]
fn another_leader_goes_on_with_what_stands_in_the_object() {
    let mut cluster = Cluster::new(3);
    cluster.later(50);
    cluster.departs(2);
    let before = cluster.published().1.unwrap();
    let all = cluster.version;
    let lists = |cluster: &Cluster| -> Vec<(Kind, Vec<Object>)> {
        let nodes = [1, 3].map(|number| Object::Node(node(&format!("n{number}"), json!({}))));
        let chunks = cluster
            .index
            .node_sets
            .iter()
            .map(|(_, chunk)| Object::NodeSet(chunk.clone()));
        vec![
            (Kind::Node, nodes.to_vec()),
            (Kind::NodeSet, chunks.collect()),
            (Kind::Seed, vec![seed_secret()]),
        ]
    };
    let mut next = Cluster::new(0);
    for (kind, objects) in lists(&cluster) {
        next.index.reset(kind, objects);
    }
    next.version = all + 100;
    // Its clock is behind, and it has heard of no LB node.
    assert_eq!(next.published(), (0, Some(before.clone())));
    next.index
        .delete(Object::Node(node("n3", json!({"metadata": {"uid": null}}))));
    let after = next.published().1.unwrap();
    assert_eq!((after.started, after.departed.len()), (before.started, 2));
    assert!(after.changed > before.changed, "whatever its clock says");
    // An LB node of which it cannot say whether it lives: it looks dead by its own clock.
    let (all, over) = (next.version, json!({"overThrough": "2026-01-02T00:00:00Z"}));
    next.later(60);
    next.index.apply(Object::Lease(lease("unsure", FRESH, json!({}))));
    next.index.apply(Object::LbNode(lb_node("unsure", "", json!({}))));
    next.says("lb1", all, over);
    assert_eq!(next.published().0, 0, "it has the time of a Lease to show that it does");
    next.later(39);
    next.beats("lb1");
    assert_eq!(next.published().0, 0);
    next.later(2);
    next.beats("lb1");
    assert_eq!(next.published(), (1, None));
}

#[test]
fn no_more_depart_than_a_chunk_had_however_many_come_and_go() {
    let mut cluster = Cluster::new(400);
    for number in 1..=400 {
        cluster.departs(number);
        cluster.arrives(1_000 + number);
    }
    let (_, transit) = cluster.published();
    assert_eq!(
        transit.map(|transit| (transit.departed.len(), transit.arrived.len())),
        Some((400, 400))
    );
    for number in 1_001..=1_400 {
        cluster.departs(number);
    }
    for number in 1..=200 {
        cluster.arrives(2_000 + number);
    }
    // Who came and went in between was not there before.
    let (_, transit) = cluster.published();
    assert_eq!(
        transit.map(|transit| (transit.departed.len(), transit.arrived.len())),
        Some((400, 200))
    );
}

/// `shop/web` with policy Local, and its table.
struct Shop {
    cluster: Cluster,
}

impl Shop {
    fn new(nodes: &[(&str, u16)]) -> Self {
        let mut cluster = Cluster::new(3);
        let local = service(json!({"spec": {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}}));
        cluster.index.apply(Object::Service(local));
        let mut shop = Self { cluster };
        shop.endpoints(nodes);
        shop.write();
        shop
    }

    fn endpoints(&mut self, nodes: &[(&str, u16)]) {
        let mut endpoints = Vec::new();
        for (node, count) in nodes {
            for _ in 0..*count {
                endpoints.push(endpoint(&format!("10.0.0.{}", endpoints.len() + 1), node));
            }
        }
        let version = self.cluster.next_version();
        let slice = slice(json!({"metadata": {"resourceVersion": version}, "endpoints": endpoints}));
        self.cluster.index.apply(Object::EndpointSlice(slice));
    }

    fn wanted(&self) -> Backends {
        let Wanted::Serve(serve) = self.cluster.index.wanted(&key("web")) else {
            panic!("not served")
        };
        self.cluster.index.backends(&serve).0
    }

    /// The operator writes what it wants, once.
    fn write(&mut self) -> Option<LocalTransit> {
        let backends = self.wanted();
        let patch = json!({"metadata": {"resourceVersion": self.cluster.next_version()}});
        let mut table = table("web", "198.51.100.1", patch);
        table.spec.backends = backends.clone();
        self.cluster.index.apply(Object::Table(table));
        assert_eq!(self.wanted(), backends, "written, it is wanted no more");
        let Backends::Local { transit, .. } = backends else {
            panic!("not local")
        };
        transit
    }
}

fn former(transit: &LocalTransit) -> Vec<(&str, u16)> {
    let nodes = transit.nodes.iter();
    nodes
        .map(|LocalNode { name, ipv4, .. }| (name.as_str(), *ipv4))
        .collect()
}

#[test]
fn a_tables_own_nodes_are_published_with_the_numbers_that_they_had() {
    let mut shop = Shop::new(&[]);
    shop.endpoints(&[("n1", 1), ("n2", 1)]);
    assert_eq!(shop.write(), None, "nobody was there before");
    shop.cluster.later(10);
    shop.endpoints(&[("n1", 2), ("n2", 1), ("n3", 1)]);
    let first = shop.write().unwrap();
    assert_eq!(former(&first), [("n1", 1), ("n3", 0)]);
    assert_eq!(
        (first.started.0, first.changed.0, first.table_slots),
        (shop.cluster.now, shop.cluster.now, 256)
    );
    shop.cluster.later(10);
    shop.endpoints(&[("n1", 1)]);
    let second = shop.write().unwrap();
    assert_eq!(former(&second), [("n2", 1)]);
    assert_eq!(
        (second.started, second.changed.0),
        (first.started.clone(), shop.cluster.now)
    );
    // All of them gone, and back where it began.
    shop.endpoints(&[]);
    assert_eq!(former(&shop.write().unwrap()), [("n1", 1), ("n2", 1)]);
    shop.endpoints(&[("n1", 1), ("n2", 1)]);
    let back = shop.write().unwrap();
    assert_eq!((former(&back), &back.started), (vec![], &first.started));

    let all = shop.cluster.version;
    let over = shop.cluster.over();
    shop.cluster.says("lb1", all, over.clone());
    assert_ne!(
        shop.write(),
        None,
        "of the same second: the last change was a second later each time"
    );
    shop.cluster.later(10);
    let (all, over) = (shop.cluster.version, shop.cluster.over());
    let failing =
        json!({"tables": all.to_string(), "failingCount": 1, "failing": [{"name": "shop.web", "why": "no room"}]});
    let patch = json!({"metadata": {"resourceVersion": "9000"}, "status": {"programmed": failing, "transits": over}});
    shop.cluster.index.apply(Object::LbNode(lb_node("lb1", "", patch)));
    assert_ne!(shop.write(), None, "it goes by an earlier table there");
    shop.cluster.version = 9_000;
    shop.cluster.says("lb1", 9_000, over.clone());
    assert_eq!(shop.write(), None);
    // A change when the last is over begins another.
    shop.endpoints(&[("n3", 1)]);
    shop.write().unwrap();
    shop.cluster.later(10);
    let all = shop.cluster.version;
    let over = shop.cluster.over();
    shop.cluster.says("lb1", all, over);
    shop.endpoints(&[("n2", 1)]);
    let other = shop.write().unwrap();
    assert_eq!(
        (former(&other), other.started.0),
        (vec![("n2", 0), ("n3", 1)], shop.cluster.now)
    );
}
