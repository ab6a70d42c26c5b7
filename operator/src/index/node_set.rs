//! The worker set in chunks: the next chunk to write.
//!
//! Never moves a node to another chunk, never shrinks the number of chunks or of slots, and never completes a set that is half
//! changed: LB nodes build tables only from a complete set, which has all chunks with one epoch.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use operator_api::{MAX_NODES_PER_CHUNK, NodeEntry, NodeSet, NodeSetSpec, WORKERS};

use super::{leaving, nodes::Candidate, transits};

/// Most chunks of a set: 128,000 nodes.
const MAX_CHUNKS: u32 = 256;
/// Fewest and most slots of a lookup table.
const MIN_SLOTS: usize = 256;
const MAX_SLOTS: usize = 65_536;
/// Fewest slots for a member, until the table has the most.
const SLOTS_PER_MEMBER: usize = 64;

/// A power of two with 64 to 128 slots for each member, from 256 to 65,536.
pub(super) fn table_slots(members: usize) -> u32 {
    let slots = members.saturating_mul(SLOTS_PER_MEMBER).clamp(MIN_SLOTS, MAX_SLOTS);
    u32::try_from(slots.next_power_of_two()).unwrap_or(u32::MAX)
}

/// Chunks of the worker set among all node sets, by their number. What has another set's name or no chunk's name is not of it.
pub(super) fn chunks<'a>(all: impl Iterator<Item = &'a NodeSet>) -> BTreeMap<u32, &'a NodeSetSpec> {
    let ours = all.filter(|chunk| {
        let spec = &chunk.spec;
        let name = chunk.metadata.name.as_deref();
        spec.set == WORKERS && spec.chunk < MAX_CHUNKS && name == Some(NodeSet::name_of(WORKERS, spec.chunk).as_str())
    });
    ours.map(|chunk| (chunk.spec.chunk, &chunk.spec)).collect()
}

/// The next chunk to write so that the set is what `nodes` say, all that there are by name; `None`: it is.
///
/// A change of one chunk is one write with the same epoch. One of several raises the epoch in all: while some are behind, those
/// that have the new epoch already are corrected first and the last one that is behind completes the set. What a chunk was before a
/// change is published with it; when that `is_over`, taking it out is a write of its own.
pub(super) fn next(
    namespace: &str,
    chunks: &BTreeMap<u32, &NodeSetSpec>,
    nodes: &BTreeMap<&str, &Candidate>,
    fingerprint: &str,
    (is_over, now): (bool, Timestamp),
) -> Option<NodeSet> {
    let eligible = nodes.iter().filter_map(|(name, node)| Some((*name, node.eligible()?)));
    let wanted = place(chunks, &eligible.collect());
    let mut leaving = leaving::of_chunks(chunks, nodes, (is_over, now));
    let count = u32::try_from(wanted.len()).unwrap_or(MAX_CHUNKS);
    let members = wanted.iter().map(Vec::len).sum();
    let slots_now = chunks.values().map(|chunk| chunk.table_slots).max().unwrap_or(0);
    let slots = table_slots(members).max(slots_now);
    let epoch_now = chunks.values().map(|chunk| chunk.epoch).max().unwrap_or(1).max(1);

    let content_differs = |number: &u32| {
        let nodes = wanted.get(*number as usize).map(Vec::as_slice).unwrap_or_default();
        chunks.get(number).is_none_or(|chunk| {
            chunk.chunks != count
                || chunk.seed_fingerprint != fingerprint
                || !nodes.iter().copied().eq(&chunk.nodes)
                || leaving.get(number).is_some_and(|leaving| *leaving != chunk.leaving)
        })
    };
    let is_behind = |number: &u32| chunks.get(number).is_none_or(|chunk| chunk.epoch < epoch_now);
    let behind: Vec<u32> = (0..count).filter(is_behind).collect();
    let differing: Vec<u32> = (0..count).filter(content_differs).collect();
    let (number, epoch) = if behind.is_empty() {
        match differing.as_slice() {
            [] if slots > slots_now => (0, epoch_now),
            [] => {
                let ends = |(_, chunk): &(&u32, &&NodeSetSpec)| is_over && chunk.transit.is_some();
                (*chunks.iter().find(ends)?.0, epoch_now)
            }
            [one] => (*one, epoch_now),
            [first, ..] => (*first, epoch_now.saturating_add(1)),
        }
    } else {
        let corrected_first = differing.iter().find(|number| !behind.contains(number));
        (*corrected_first.or(behind.first())?, epoch_now)
    };
    let nodes = wanted.into_iter().nth(number as usize).unwrap_or_default();
    let had_nobody = chunks
        .values()
        .all(|chunk| chunk.nodes.is_empty() && chunk.transit.is_none());
    let before = chunks.get(&number).filter(|_| !had_nobody);
    let transit = before.and_then(|before| transits::of_chunk(before, &nodes, (slots_now, slots), is_over, now));
    Some(NodeSet {
        metadata: ObjectMeta {
            name: Some(NodeSet::name_of(WORKERS, number)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: NodeSetSpec {
            set: WORKERS.to_owned(),
            chunk: number,
            chunks: count,
            epoch,
            table_slots: slots,
            seed_fingerprint: fingerprint.to_owned(),
            nodes: nodes.into_iter().cloned().collect(),
            transit,
            leaving: leaving.remove(&number).unwrap_or_default(),
        },
    })
}

/// Which node is in which chunk: where it is already; a new one in the first chunk that has room, first of all in one that is
/// missing and has to be written anyway. Nodes beyond all chunks are left out.
fn place<'a>(
    chunks: &BTreeMap<u32, &NodeSetSpec>,
    eligible: &BTreeMap<&str, &'a NodeEntry>,
) -> Vec<Vec<&'a NodeEntry>> {
    let told = chunks.values().map(|chunk| chunk.chunks).max().unwrap_or(1);
    let there = chunks.keys().next_back().map_or(1, |last| last + 1);
    let count = told.max(there).min(MAX_CHUNKS) as usize;
    let mut placed = vec![Vec::new(); count];
    let mut seen = BTreeSet::new();
    for (number, chunk) in chunks {
        let Some(nodes) = placed.get_mut(*number as usize) else {
            continue;
        };
        for node in &chunk.nodes {
            if let Some(entry) = eligible.get(node.name.as_str())
                && nodes.len() < MAX_NODES_PER_CHUNK
                && seen.insert(node.name.as_str())
            {
                nodes.push(*entry);
            }
        }
    }
    let is_missing = |number: &usize| u32::try_from(*number).is_ok_and(|number| !chunks.contains_key(&number));
    let mut order: Vec<usize> = (0..count).filter(is_missing).collect();
    order.extend((0..count).filter(|number| !is_missing(number)));
    let mut order = order.into_iter().peekable();
    for (name, entry) in eligible {
        if seen.contains(name) {
            continue;
        }
        while order
            .next_if(|number| {
                placed
                    .get(*number)
                    .is_none_or(|nodes| nodes.len() >= MAX_NODES_PER_CHUNK)
            })
            .is_some()
        {}
        if let Some(nodes) = order.peek().and_then(|number| placed.get_mut(*number)) {
            nodes.push(*entry);
        } else if let Some(last) = placed.last_mut().filter(|last| last.len() < MAX_NODES_PER_CHUNK) {
            last.push(*entry);
        } else if placed.len() < MAX_CHUNKS as usize {
            placed.push(vec![*entry]);
        }
    }
    for nodes in &mut placed {
        nodes.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    }
    placed
}
