//! Nodes that are drained until a time, or that the cluster does not have any more: what is published of them.

use serde_json::{Value, json};

use super::*;

const START: &str = "2026-01-01T00:00:00Z";
const DEADLINE: &str = "2026-01-01T00:10:00Z";
const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// A cluster whose API server takes what the operator wants to write.
struct Cluster {
    index: Index,
    now: Timestamp,
    version: u64,
}

impl Cluster {
    /// With nodes `n1` to `n3`.
    fn new() -> Self {
        let mut cluster = Self {
            index: index([seed_secret()]),
            now: time(START),
            version: 1_000,
        };
        cluster.index.tick(cluster.now);
        for name in ["n1", "n2", "n3"] {
            cluster.put(name, json!({}));
        }
        cluster.published();
        cluster
    }

    fn put(&mut self, name: &str, patch: Value) -> BTreeSet<Subject> {
        self.version += 1;
        let mut node = node(name, patch);
        node.metadata.resource_version = Some(self.version.to_string());
        self.index.apply(Object::Node(node))
    }

    fn delete(&mut self, name: &str) -> BTreeSet<Subject> {
        let node = node(name, json!({"metadata": {"uid": null}}));
        self.index.delete(Object::Node(node))
    }

    fn later(&mut self, hours: i64) {
        self.now += jiff::SignedDuration::from_hours(hours);
        self.index.tick(self.now);
    }

    /// Writes until nothing is left to write; how many writes, who is in the set, and who is said to leave it.
    fn published(&mut self) -> (usize, String, Vec<String>) {
        let mut writes = 0;
        while let Some(mut chunk) = self.index.next_node_set() {
            self.version += 1;
            chunk.metadata.uid = chunk.metadata.name.clone();
            chunk.metadata.resource_version = Some(self.version.to_string());
            self.index.apply(Object::NodeSet(chunk));
            writes += 1;
            assert!(writes < 10, "it never ends");
        }
        let chunks = self.index.chunks();
        let nodes: Vec<&str> = chunks[&0].nodes.iter().map(|node| &*node.name).collect();
        let leaving = chunks[&0].leaving.iter().map(|node| {
            let until = node.deadline.as_ref().map_or("-".to_owned(), |time| time.0.to_string());
            let gone = if node.gone { " gone" } else { "" };
            // One that left when nobody said anything of it is known by its name alone.
            let address = if node.ipv4.is_some() { "" } else { " somewhere" };
            format!("{}{address} since {} until {until}{gone}", node.name, node.since.0)
        });
        (writes, nodes.join(" "), leaving.collect())
    }
}

fn drained(deadline: &str) -> Value {
    json!({"metadata": {
        "labels": {EXCLUDE: "true"},
        "annotations": {"vipline.dev/drain-deadline": deadline},
    }})
}

fn news() -> BTreeSet<Subject> {
    dirty([Subject::NodeSets])
}

#[test]
fn a_deadline_is_published_with_the_exclusion_moves_with_the_annotation_and_ends_with_it() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.put("n2", drained(DEADLINE)), news());
    let drain = |deadline| vec![format!("n2 since {START} until {deadline}")];
    assert_eq!(cluster.published(), (1, "n1 n3".to_owned(), drain(DEADLINE)));
    // A heartbeat is no news; another deadline is, and it began when it began.
    assert_eq!(cluster.put("n2", drained(DEADLINE)), dirty([]));
    cluster.later(1);
    assert_eq!(cluster.put("n2", drained("2026-01-01T09:00:00+01:00")), news());
    assert_eq!(cluster.published().2, drain("2026-01-01T08:00:00Z"));
    // Without a deadline, or with one that is no time, its connections have all the time that they want.
    assert_eq!(cluster.put("n2", drained("soon")), news());
    assert_eq!(cluster.published(), (1, "n1 n3".to_owned(), vec![]));
    cluster.put("n2", drained(DEADLINE));
    assert_eq!(cluster.published().2.len(), 1);
    assert_eq!(cluster.put("n2", json!({})), news());
    assert_eq!(cluster.published(), (1, "n1 n2 n3".to_owned(), vec![]));
}

#[test]
fn a_deadline_alone_drains_nobody_and_one_of_a_node_that_left_long_ago_is_published_too() {
    let mut cluster = Cluster::new();
    let annotation = json!({"metadata": {"annotations": {"vipline.dev/drain-deadline": DEADLINE}}});
    assert_eq!(cluster.put("n2", annotation), dirty([]));
    assert_eq!(cluster.published(), (0, "n1 n2 n3".to_owned(), vec![]));
    cluster.put("n2", json!({"metadata": {"labels": {EXCLUDE: "true"}}}));
    assert_eq!(cluster.published(), (1, "n1 n3".to_owned(), vec![]));
    // Its transit is over: with a scheduler connections live there by records alone.
    cluster.later(24);
    assert_eq!(cluster.published(), (1, "n1 n3".to_owned(), vec![]));
    assert_eq!(cluster.put("n2", drained(DEADLINE)), news());
    let since = cluster.now;
    assert_eq!(
        cluster.published().2,
        [format!("n2 somewhere since {since} until {DEADLINE}")]
    );
}

#[test]
fn a_node_that_is_deleted_is_said_to_be_gone_for_a_day_or_until_it_is_back() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.delete("n2"), news());
    let gone = || vec![format!("n2 since {START} until - gone")];
    assert_eq!(cluster.published(), (1, "n1 n3".to_owned(), gone()));
    cluster.put("n2", json!({}));
    assert_eq!(cluster.published(), (1, "n1 n2 n3".to_owned(), vec![]), "back in time");
    // One that was only excluded is no more gone than it was before; when it is deleted it is.
    cluster.put("n3", drained(DEADLINE));
    let drain = format!("n3 since {START} until {DEADLINE}");
    assert_eq!(cluster.published().2, std::slice::from_ref(&drain));
    assert_eq!(cluster.delete("n3"), news());
    assert_eq!(cluster.published().2, [format!("{drain} gone")]);
    cluster.later(23);
    assert_eq!(
        cluster.published(),
        (0, "n1 n2".to_owned(), vec![format!("{drain} gone")])
    );
    cluster.later(1);
    assert_eq!(cluster.published(), (1, "n1 n2".to_owned(), vec![]), "with the transit");
    assert_eq!(cluster.published().0, 0);
}

#[test]
fn a_list_without_a_node_says_the_same_and_the_next_one_takes_it_back() {
    let mut cluster = Cluster::new();
    let list = |names: &[&str]| names.iter().map(|name| Object::Node(node(name, json!({})))).collect();
    cluster.index.reset(crate::index::Kind::Node, list(&["n1"]));
    let (_, nodes, leaving) = cluster.published();
    assert_eq!((&*nodes, leaving.len()), ("n1", 2), "{leaving:?}");
    cluster.index.reset(crate::index::Kind::Node, list(&["n1", "n2", "n3"]));
    assert_eq!(cluster.published(), (1, "n1 n2 n3".to_owned(), vec![]));
}
