//! Nodes that have left the worker set and whose connections are not to be waited for without end: drained until a time, or gone.
//!
//! Never says that a node is dead: which of its connections still live is for LB nodes to find out.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use operator_api::{LeavingNode, MAX_NODES_PER_CHUNK, NodeSetSpec};

use super::{nodes::Candidate, transits::MAX_TRANSIT};

/// Those of every chunk, by what the chunks say now and what there is of nodes. A node of no chunk that is drained until a time is of
/// the first one: with a scheduler connections live there by records, long after the last transit.
pub(super) fn of_chunks(
    chunks: &BTreeMap<u32, &NodeSetSpec>,
    nodes: &BTreeMap<&str, &Candidate>,
    (is_over, now): (bool, Timestamp),
) -> BTreeMap<u32, Vec<LeavingNode>> {
    let members: BTreeMap<u32, BTreeSet<&str>> = chunks
        .iter()
        .map(|(number, chunk)| (*number, names(chunk).collect()))
        .collect();
    let is_of_some = |name: &str| members.values().any(|names| names.contains(name));
    let drained = nodes.iter().filter(|(_, node)| node.deadline().is_some());
    let of_none: Vec<&str> = drained
        .map(|(name, _)| *name)
        .filter(|name| !is_of_some(name))
        .collect();
    let leaving = members.iter().enumerate().map(|(at, (number, names))| {
        let more = if at == 0 { of_none.as_slice() } else { &[] };
        let names: BTreeSet<&str> = names.iter().chain(more).copied().collect();
        let chunk = chunks.get(number);
        let of = |name: &&str| leaving_node((name, *chunk?), nodes.get(name).copied(), (is_over, now));
        (*number, names.iter().filter_map(of).take(MAX_NODES_PER_CHUNK).collect())
    });
    leaving.collect()
}

/// Whoever is of a chunk, or was while it knows of it.
fn names(chunk: &NodeSetSpec) -> impl Iterator<Item = &str> {
    let departed = chunk.transit.iter().flat_map(|transit| &transit.departed);
    let entries = chunk.nodes.iter().chain(departed).map(|node| &*node.name);
    entries.chain(chunk.leaving.iter().map(|node| &*node.name))
}

/// `None`: it is in the set, is drained without a deadline, or has been gone for so long that nothing lives there.
fn leaving_node(
    (name, chunk): (&str, &NodeSetSpec),
    node: Option<&Candidate>,
    (is_over, now): (bool, Timestamp),
) -> Option<LeavingNode> {
    let was = chunk.leaving.iter().find(|node| node.name == name);
    let since = was.map_or_else(
        || Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        |was| was.since.clone(),
    );
    let deadline = match node {
        Some(node) => Some(Time(node.deadline()?)),
        None => was.and_then(|was| was.deadline.clone()),
    };
    let is_old = now.duration_since(since.0) >= MAX_TRANSIT;
    let transit = chunk.transit.as_ref();
    let departed = transit.iter().flat_map(|transit| &transit.departed);
    let entry = chunk.nodes.iter().chain(departed).find(|node| node.name == name);
    let transit = transit.filter(|_| !is_over);
    let has_departed = transit.is_some_and(|transit| transit.departed.iter().any(|node| node.name == name));
    let is_forgotten = node.is_none() && is_old && !has_departed && !chunk.nodes.iter().any(|node| node.name == name);
    (!is_forgotten).then(|| LeavingNode {
        name: name.to_owned(),
        ipv4: entry.map_or_else(|| was?.ipv4.clone(), |node| node.ipv4.clone()),
        ipv6: entry.map_or_else(|| was?.ipv6.clone(), |node| node.ipv6.clone()),
        since,
        deadline,
        gone: node.is_none(),
    })
}
