//! NodeSets: a set is used when all its chunks are there with one epoch, and stays as it was until the next time they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lb_core::{
    config::not_unicast,
    desired::{BackendId, BackendSet, Member},
    drain::Drain,
};
use operator_api::{AddressFamily, LeavingNode, NodeEntry, NodeSetSpec};

use super::{
    super::object::Object,
    room::Keyed,
    table::{self, TableError},
    transits::{self, Former},
};

/// Address families of VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl From<AddressFamily> for Family {
    fn from(family: AddressFamily) -> Self {
        match family {
            AddressFamily::IPv4 => Self::V4,
            AddressFamily::IPv6 => Self::V6,
        }
    }
}

/// What the backends at a node's two addresses are called.
fn names(node: &str) -> [BackendId; 2] {
    ["ipv4", "ipv6"].map(|family| BackendId(format!("{node}/{family}").into()))
}

/// A node's addresses, each with its backend's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    v4: Option<(BackendId, IpAddr)>,
    v6: Option<(BackendId, IpAddr)>,
}

impl Node {
    pub(super) fn new(entry: &NodeEntry) -> Option<Self> {
        let [v4, v6] = names(&entry.name);
        let address = |text: &Option<String>, family: Family, id| {
            let address: IpAddr = text.as_deref()?.parse().ok()?;
            let usable = Family::of(address) == family && not_unicast(address).is_none();
            usable.then_some((id, address))
        };
        let node = Self {
            v4: address(&entry.ipv4, Family::V4, v4),
            v6: address(&entry.ipv6, Family::V6, v6),
        };
        (node.v4.is_some() || node.v6.is_some()).then_some(node)
    }

    /// Where packets for a VIP of this family are sent: to the node's address of the same one, else of the other.
    pub(super) fn backend(&self, family: Family) -> Option<&BackendId> {
        let (own, other) = match family {
            Family::V4 => (&self.v4, &self.v6),
            Family::V6 => (&self.v6, &self.v4),
        };
        own.as_ref().or(other.as_ref()).map(|(id, _)| id)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = &(BackendId, IpAddr)> {
        self.v4.iter().chain(&self.v6)
    }
}

/// A node that is being drained until a time, or that the cluster does not have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaving {
    /// Where it was, if that is known.
    node: Option<Node>,
    drain: Option<Drain>,
    is_gone: bool,
}

impl Leaving {
    fn new(node: &LeavingNode) -> Self {
        let seconds = |time: &Time| u64::try_from(time.0.as_second()).unwrap_or(0);
        let deadline = node.deadline.as_ref();
        let entry = NodeEntry {
            name: node.name.clone(),
            ipv4: node.ipv4.clone(),
            ipv6: node.ipv6.clone(),
            zone: None,
        };
        Self {
            node: Node::new(&entry),
            drain: deadline.map(|deadline| Drain {
                since: seconds(&node.since),
                deadline: Some(seconds(deadline)),
            }),
            is_gone: node.gone,
        }
    }
}

/// A complete set.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    pub(super) nodes: BTreeMap<Arc<str>, Node>,
    pub(super) fingerprint: Arc<str>,
    /// All nodes, for VIPs of either family.
    all: [Keyed; 2],
    /// What is published of its transit.
    pub(super) transit: Option<Former>,
    /// Nodes that are in it no more, and whose flows are not to be waited for without end.
    leaving: BTreeMap<Arc<str>, Leaving>,
    /// What it was made of.
    pub(super) chunks: Vec<Arc<Object<NodeSetSpec>>>,
}

impl Nodes {
    /// The set of all nodes.
    pub(super) fn all(&self, family: Family) -> &Keyed {
        match family {
            Family::V4 => &self.all[0],
            Family::V6 => &self.all[1],
        }
    }
}

/// All chunks, and the sets that were complete last.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeSets {
    chunks: BTreeMap<Arc<str>, Arc<Object<NodeSetSpec>>>,
    sets: BTreeMap<Arc<str>, Nodes>,
    /// Sets that are not complete now, and why.
    pub(super) waiting: BTreeMap<Arc<str>, String>,
}

impl NodeSets {
    pub(super) fn get(&self, set: &str) -> Option<&Nodes> {
        self.sets.get(set)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Nodes)> {
        self.sets.iter()
    }

    pub(super) fn chunk(&self, name: &str) -> Option<&Arc<Object<NodeSetSpec>>> {
        self.chunks.get(name)
    }

    pub(super) fn chunk_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.chunks.keys()
    }

    /// Addresses of nodes that have left, as long as flows may live there; one that is back has the address that it has now.
    pub(super) fn departed(&self) -> impl Iterator<Item = &(BackendId, IpAddr)> {
        let transits = self.sets.values().filter_map(|set| set.transit.as_ref());
        let departed = transits.flat_map(|transit| transit.departed.values());
        // With a scheduler flows may live at one long after the last transit.
        let leaving = self.leaving().filter_map(|(_, leaving)| leaving.node.as_ref());
        leaving.chain(departed).flat_map(Node::addresses)
    }

    /// Backends at nodes that are being drained until a time.
    pub(super) fn drains(&self) -> impl Iterator<Item = (BackendId, Drain)> {
        let drains = self
            .leaving()
            .filter_map(|(name, leaving)| Some((name, leaving.drain?)));
        drains.flat_map(|(name, drain)| names(name).map(|id| (id, drain)))
    }

    /// Backends at nodes that the cluster does not have any more.
    pub(super) fn gone(&self) -> impl Iterator<Item = BackendId> {
        let gone = self.leaving().filter(|(_, leaving)| leaving.is_gone);
        gone.flat_map(|(name, _)| names(name))
    }

    fn leaving(&self) -> impl Iterator<Item = (&Arc<str>, &Leaving)> {
        self.sets.values().flat_map(|set| &set.leaving)
    }

    /// The address of a backend.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &(BackendId, IpAddr)> {
        self.sets
            .values()
            .flat_map(|set| set.nodes.values().flat_map(Node::addresses))
    }

    /// Puts a chunk in place; `None` takes it away. Whether a set changed.
    pub(super) fn put(&mut self, name: &Arc<str>, chunk: Option<Object<NodeSetSpec>>) -> bool {
        let of = |chunk: &Object<NodeSetSpec>| chunk.spec.as_ref().ok().map(|spec| Arc::<str>::from(&*spec.set));
        let mut touched: BTreeSet<Arc<str>> = BTreeSet::new();
        touched.extend(self.chunks.get(name).and_then(|chunk| of(chunk)));
        match chunk {
            Some(chunk) => {
                touched.extend(of(&chunk));
                self.chunks.insert(Arc::clone(name), Arc::new(chunk));
            }
            None => {
                self.chunks.remove(name);
            }
        }
        // One that cannot be read says nothing of its set: what it was before counts.
        // All of them, whatever becomes of the first.
        let changed: Vec<bool> = touched.into_iter().map(|set| self.complete(&set)).collect();
        changed.contains(&true)
    }

    fn complete(&mut self, set: &Arc<str>) -> bool {
        let chunks = self.chunks.values();
        let chunks: Vec<_> = chunks
            .filter(|chunk| chunk.spec.as_ref().is_ok_and(|spec| *spec.set == **set))
            .cloned()
            .collect();
        match assemble(&chunks, self.sets.get(set)) {
            Ok(nodes) => {
                self.waiting.remove(set);
                self.sets.insert(Arc::clone(set), nodes);
                true
            }
            Err(why) => {
                self.waiting.insert(Arc::clone(set), why);
                false
            }
        }
    }
}

/// A set from its chunks, or what is missing.
fn assemble(chunks: &[Arc<Object<NodeSetSpec>>], before: Option<&Nodes>) -> Result<Nodes, String> {
    let specs: Vec<&NodeSetSpec> = chunks.iter().filter_map(|chunk| chunk.spec.as_ref().ok()).collect();
    let Some(first) = specs.first() else {
        return Err("all its chunks are gone".to_owned());
    };
    let numbers: BTreeSet<u32> = specs.iter().map(|spec| spec.chunk).collect();
    if specs
        .iter()
        .any(|spec| spec.epoch != first.epoch || spec.chunks != first.chunks)
    {
        return Err("its chunks are of different epochs".to_owned());
    }
    let wanted = first.chunks;
    if numbers.len() as u64 != u64::from(wanted) || numbers.len() != specs.len() || numbers.iter().any(|n| *n >= wanted)
    {
        return Err(format!("{} of its {wanted} chunks are there", numbers.len()));
    }
    if specs.iter().any(|spec| spec.seed_fingerprint != first.seed_fingerprint) {
        return Err("its chunks are of different seeds".to_owned());
    }
    let largest = specs.iter().map(|spec| spec.table_slots).max().unwrap_or_default();
    let slots = table::slots(largest).map_err(|error: TableError| error.to_string())?;
    let entries = specs.iter().flat_map(|spec| &spec.nodes);
    let nodes: BTreeMap<Arc<str>, Node> = entries
        .filter_map(|entry| Some((Arc::from(&*entry.name), Node::new(entry)?)))
        .collect();
    if nodes.len() > slots {
        let error = TableError::TooFewSlots {
            slots,
            members: nodes.len(),
        };
        return Err(error.to_string());
    }
    let all = |family| {
        let mut members: Vec<Member> = nodes
            .values()
            .filter_map(|node| node.backend(family))
            .map(|backend| Member {
                backend: backend.clone(),
                weight: 1,
            })
            .collect();
        members.sort_unstable();
        let set = Keyed::new(BackendSet {
            members,
            table_slots: Some(slots),
        });
        // One that says the same stays the same: whoever compares sees it at once.
        let same = before.map(|before| before.all(family)).filter(|same| **same == set);
        same.cloned().unwrap_or(set)
    };
    let transit = transits::of_set(&specs, &nodes, before.and_then(|before| before.transit.as_ref()));
    let all_v4 = all(Family::V4);
    let all_v6 = all(Family::V6);
    let leaving = specs.iter().flat_map(|spec| &spec.leaving);
    let leaving = leaving.map(|node| (Arc::<str>::from(&*node.name), Leaving::new(node)));
    let leaving = leaving.filter(|(name, _)| !nodes.contains_key(name)).collect();
    Ok(Nodes {
        leaving,
        fingerprint: Arc::from(&*first.seed_fingerprint),
        all: if all_v4 == all_v6 {
            [all_v4.clone(), all_v4]
        } else {
            [all_v4, all_v6]
        },
        chunks: chunks.to_vec(),
        transit,
        nodes,
    })
}
