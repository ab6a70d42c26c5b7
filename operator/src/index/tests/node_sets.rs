//! The worker set: placement, epochs and slots, also while it is being changed.

use std::collections::BTreeMap;

use operator_api::{NodeEntry, NodeSet};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// An index with an API server that takes what it wants to write.
struct Cluster {
    index: Index,
    version: u64,
    writes: Vec<(u32, i64)>,
}

impl Cluster {
    fn new(nodes: impl IntoIterator<Item = u32>) -> Self {
        let mut cluster = Self {
            index: index([seed_secret()]),
            version: 1_000,
            writes: Vec::new(),
        };
        for number in nodes {
            cluster.put(number);
        }
        cluster
    }

    fn put(&mut self, number: u32) {
        self.put_with(number, json!({}));
    }

    fn put_with(&mut self, number: u32, patch: Value) {
        self.version += 1;
        let mut node = node(&name(number), patch);
        node.metadata.resource_version = Some(self.version.to_string());
        self.index.apply(Object::Node(node));
    }

    fn remove(&mut self, number: u32) {
        self.index
            .delete(Object::Node(node(&name(number), json!({"metadata": {"uid": null}}))));
    }

    /// The next write, if one is wanted.
    fn step(&mut self) -> bool {
        let Some(mut chunk) = self.index.next_node_set() else {
            return false;
        };
        self.version += 1;
        chunk.metadata.uid = chunk.metadata.name.clone();
        chunk.metadata.resource_version = Some(self.version.to_string());
        self.writes.push((chunk.spec.chunk, chunk.spec.epoch));
        self.index.apply(Object::NodeSet(chunk));
        true
    }

    /// Writes until nothing is left to write; which chunks, with which epoch.
    fn settle(&mut self) -> Vec<(u32, i64)> {
        self.writes.clear();
        while self.step() {
            assert!(self.writes.len() <= 600, "it never ends");
        }
        std::mem::take(&mut self.writes)
    }

    fn chunks(&self) -> BTreeMap<u32, NodeSet> {
        self.index
            .node_sets
            .iter()
            .map(|(_, chunk)| (chunk.spec.chunk, chunk.clone()))
            .collect()
    }

    fn place_of(&self) -> BTreeMap<String, u32> {
        let chunks = self.chunks().into_values();
        let entries = chunks.flat_map(|chunk| {
            chunk
                .spec
                .nodes
                .into_iter()
                .map(move |node| (node.name, chunk.spec.chunk))
        });
        entries.collect()
    }

    /// As LB nodes read it: `None`, unless all chunks are there with one epoch.
    fn complete(&self) -> Option<Vec<NodeEntry>> {
        let chunks = self.chunks();
        let first = &chunks.get(&0)?.spec;
        let all = chunks.len() == first.chunks as usize
            && chunks
                .values()
                .all(|chunk| chunk.spec.epoch == first.epoch && chunk.spec.chunks == first.chunks);
        let mut nodes: Vec<NodeEntry> = chunks.into_values().flat_map(|chunk| chunk.spec.nodes).collect();
        nodes.sort();
        all.then_some(nodes)
    }

    fn eligible(&self) -> Vec<NodeEntry> {
        let mut nodes: Vec<NodeEntry> = self
            .index
            .nodes
            .iter()
            .filter_map(|(_, node)| node.eligible().cloned())
            .collect();
        nodes.sort();
        nodes
    }
}

fn name(number: u32) -> String {
    format!("n{number:05}")
}

#[test]
fn a_cluster_without_nodes_has_one_empty_chunk() {
    let mut cluster = Cluster::new([]);
    assert_eq!(cluster.settle(), [(0, 1)]);
    assert_eq!(cluster.complete().unwrap(), []);
    assert_eq!(cluster.settle(), [], "a restart writes nothing");
}

#[test]
fn five_thousand_nodes_are_ten_chunks_of_one_epoch() {
    let mut cluster = Cluster::new(0..5_000);
    assert_eq!(cluster.settle(), (0..10).map(|chunk| (chunk, 1)).collect::<Vec<_>>());
    let chunks = cluster.chunks();
    assert!(
        chunks
            .values()
            .all(|chunk| chunk.spec.nodes.len() == 500 && chunk.spec.table_slots == 65_536)
    );
    let bytes = serde_json::to_vec(&chunks[&0]).unwrap().len();
    assert!(bytes < 60_000, "a chunk is {bytes} B");
}

#[test]
fn a_change_of_one_node_is_one_write_with_the_same_epoch() {
    let mut cluster = Cluster::new(0..1_200);
    cluster.settle();
    cluster.put_with(
        700,
        json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.77.0.1"}]}}),
    );
    assert_eq!(cluster.settle(), [(1, 1)]);
    cluster.remove(3);
    assert_eq!(cluster.settle(), [(0, 1)]);
    cluster.put(5_000);
    assert_eq!(cluster.settle(), [(0, 1)], "the first chunk with room");
    assert_eq!(cluster.complete().unwrap(), cluster.eligible());
}

#[test]
fn a_change_of_several_chunks_raises_the_epoch_in_all() {
    let mut cluster = Cluster::new(0..1_200);
    cluster.settle();
    cluster.remove(3);
    cluster.remove(1_100);
    assert_eq!(cluster.settle(), [(0, 2), (1, 2), (2, 2)]);
}

#[test]
fn a_set_grows_by_a_chunk_that_completes_it_last() {
    let mut cluster = Cluster::new(0..500);
    assert_eq!(cluster.settle(), [(0, 1)]);
    cluster.put(500);
    assert!(cluster.step());
    assert_eq!(
        cluster.complete(),
        None,
        "the second chunk is announced and not there yet"
    );
    cluster.step();
    assert_eq!(cluster.complete().unwrap(), cluster.eligible());
    assert_eq!(cluster.settle(), []);
    cluster.remove(500);
    assert_eq!(cluster.settle(), [(1, 1)], "an empty chunk stays");
}

#[test]
fn a_change_amid_a_raise_is_corrected_before_the_set_is_complete() {
    let mut cluster = Cluster::new(0..1_200);
    cluster.settle();
    cluster.remove(3);
    cluster.remove(600);
    cluster.step();
    cluster.remove(4);
    cluster.remove(1_101);
    assert_eq!(cluster.settle(), [(0, 2), (1, 2), (2, 2)]);
    assert_eq!(cluster.complete().unwrap(), cluster.eligible());
}

#[test]
fn a_chunk_that_somebody_deleted_comes_back_with_its_nodes() {
    let mut cluster = Cluster::new(0..1_500);
    cluster.settle();
    let places = cluster.place_of();
    let chunk = cluster.chunks()[&1].clone();
    cluster.index.delete(Object::NodeSet(chunk));
    assert_eq!(cluster.settle(), [(1, 1)]);
    assert_eq!(cluster.place_of(), places);
}

#[test]
fn a_tainted_node_goes_with_the_next_change() {
    let mut cluster = Cluster::new(0..10);
    cluster.settle();
    cluster.put_with(
        5,
        json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}),
    );
    cluster.put(11);
    assert_eq!(cluster.settle(), [(0, 1)]);
    assert_eq!(cluster.complete().unwrap().len(), 10);
}

#[test]
fn slots_are_a_power_of_two_with_headroom_and_only_grow() {
    let slots = super::super::node_set::table_slots;
    for (members, expected) in [
        (0, 256),
        (1, 256),
        (4, 256),
        (5, 512),
        (8, 512),
        (9, 1_024),
        (1_000, 65_536),
        (1_025, 65_536),
        (usize::MAX, 65_536),
    ] {
        assert_eq!(slots(members), expected, "{members}");
    }
    let mut cluster = Cluster::new(0..9);
    cluster.settle();
    (1..9).for_each(|number| cluster.remove(number));
    cluster.settle();
    assert_eq!(cluster.chunks()[&0].spec.table_slots, 1_024);
}

#[test]
fn node_sets_of_other_names_are_not_of_the_set() {
    let mut cluster = Cluster::new(0..3);
    for patch in [
        json!({"spec": {"set": "others"}}),
        json!({"metadata": {"name": "workers-7"}}),
        json!({"spec": {"chunk": 5_000}}),
    ] {
        cluster.index.apply(Object::NodeSet(node_set(0, patch)));
    }
    assert_eq!(cluster.index.next_node_set().unwrap().spec.chunks, 1);
}

#[test]
fn a_node_that_stands_in_two_chunks_stays_in_the_first() {
    let chunks = |chunk| {
        node_set(
            chunk,
            json!({"spec": {"chunks": 2, "nodes": [{"name": "n00001", "ipv4": "10.1.0.2"}]}}),
        )
    };
    let mut cluster = Cluster::new([1]);
    cluster.index.apply(Object::NodeSet(chunks(0)));
    cluster.index.apply(Object::NodeSet(chunks(1)));
    assert_eq!(cluster.settle(), [(1, 1)]);
    assert_eq!(cluster.place_of(), BTreeMap::from([(name(1), 0)]));
}

#[derive(Clone, Debug)]
enum Step {
    Add(u32),
    Remove(u32),
    Move(u32),
    Write(usize),
    LoseChunk(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..1_600_u32;
    let step = prop_oneof![
        4 => node.clone().prop_map(Step::Add),
        4 => node.clone().prop_map(Step::Remove),
        2 => node.prop_map(Step::Move),
        6 => (1..5_usize).prop_map(Step::Write),
        1 => (0..4_u32).prop_map(Step::LoseChunk),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever happens between two writes, also a kill: a complete set is never half of a change, no node moves, epochs and
    /// slots never go back, and it ends.
    #[test]
    fn only_complete_sets_and_no_node_ever_moves(steps in steps(), size in 990..1_010_u32) {
        let mut cluster = Cluster::new(0..size);
        cluster.settle();
        let mut lost = false;
        let mut places = cluster.place_of();
        let (mut epoch, mut slots) = (1, 256);
        for step in steps {
            match step {
                Step::Add(number) => cluster.put(number),
                Step::Remove(number) => cluster.remove(number),
                Step::Move(number) => {
                    let address = format!("10.77.{}.{}", number / 250, number % 250);
                    cluster.put_with(number, json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}}));
                }
                Step::LoseChunk(number) => {
                    if let Some(chunk) = cluster.chunks().get(&number) {
                        cluster.index.delete(Object::NodeSet(chunk.clone()));
                        lost = true;
                    }
                }
                Step::Write(count) => {
                    for _ in 0..count {
                        if !cluster.step() {
                            break;
                        }
                        if let Some(nodes) = cluster.complete() {
                            prop_assert_eq!(nodes, cluster.eligible());
                        }
                        let now = cluster.place_of();
                        if !lost {
                            for (name, chunk) in &now {
                                prop_assert_eq!(places.get(name).unwrap_or(chunk), chunk, "{} moved", name);
                            }
                        }
                        places = now;
                        let chunks = cluster.chunks();
                        let highest = chunks.values().map(|chunk| chunk.spec.epoch).max().unwrap();
                        let most = chunks.values().map(|chunk| chunk.spec.table_slots).max().unwrap();
                        prop_assert!(lost || (highest >= epoch && most >= slots));
                        (epoch, slots) = (highest, most);
                    }
                }
            }
        }
        let before = cluster.chunks();
        let was_complete = cluster.complete().is_some();
        let written = cluster.settle();
        let changed = cluster.chunks().values().filter(|chunk| before.get(&chunk.spec.chunk) != Some(chunk)).count();
        prop_assert!(written.len() >= changed);
        if was_complete && written.len() == 1 {
            let chunk = written[0].0;
            prop_assert_eq!(before[&chunk].spec.epoch, written[0].1, "one chunk needs no new epoch");
        }
        prop_assert_eq!(cluster.complete(), Some(cluster.eligible()));
        prop_assert!(cluster.chunks().values().all(|chunk| chunk.spec.nodes.len() <= 500));
    }
}
