//! What NodeSets and VipTables publish of transits: who the members were before changes that are not over.
//!
//! Never refuses anything for it: what makes no sense here makes a table that only newcomers go by, and the planner looks at it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lb_core::desired::{Backend, BackendId, BackendSet, Base, Member};
use operator_api::{LocalNode, LocalTransit, NodeSetSpec};

use super::{
    Index,
    nodes::{Family, Node, Nodes},
    table::{self, To},
};

/// A set as it was.
#[derive(Clone, Debug)]
pub(super) struct Former {
    /// Nodes that have left.
    pub(super) departed: BTreeMap<Arc<str>, Node>,
    /// For VIPs of either family.
    bases: [Arc<Base>; 2],
    changed_s: i64,
}

impl Former {
    fn base(&self, family: Family) -> &Arc<Base> {
        match family {
            Family::V4 => &self.bases[0],
            Family::V6 => &self.bases[1],
        }
    }
}

/// Seconds since 1970; nothing was before.
fn seconds(time: &Time) -> u64 {
    u64::try_from(time.0.as_second()).unwrap_or(0)
}

/// A set as it was before the first of its changes that are not over: who has arrived was not there, who has departed was. Chunks
/// change each on their own, and the set is in transit while one is.
pub(super) fn of_set(
    specs: &[&NodeSetSpec],
    nodes: &BTreeMap<Arc<str>, Node>,
    before: Option<&Former>,
) -> Option<Former> {
    let transits = || specs.iter().filter_map(|spec| spec.transit.as_ref());
    let since_s = transits().map(|transit| seconds(&transit.started)).min()?;
    let changed_s = transits().map(|transit| transit.changed.0.as_second()).max()?;
    let slots = transits().map(|transit| transit.table_slots).min()?;
    let of: Arc<str> = specs.first()?.set.as_str().into();
    let arrived: BTreeSet<&str> = transits()
        .flat_map(|transit| transit.arrived.iter().map(String::as_str))
        .collect();
    let departed: BTreeMap<Arc<str>, Node> = transits()
        .flat_map(|transit| &transit.departed)
        .filter_map(|entry| Some((Arc::from(&*entry.name), Node::new(entry)?)))
        .collect();
    let base = |family| {
        let stayed = nodes.iter().filter(|(name, _)| !arrived.contains(&***name));
        // One that has left and come back is where it is now.
        let left = departed
            .iter()
            .map(|(name, node)| (name, nodes.get(name).unwrap_or(node)));
        let all: BTreeMap<_, _> = stayed.chain(left).collect();
        let members = all.values().filter_map(|node| node.backend(family));
        let mut members: Vec<Member> = members
            .map(|backend| Member {
                backend: backend.clone(),
                weight: 1,
            })
            .collect();
        members.sort_unstable();
        let base = Base {
            set: Arc::new(BackendSet {
                members,
                table_slots: table::slots(slots).ok(),
            }),
            of: Arc::clone(&of),
            since_s,
        };
        // One that says the same stays the same, so that VIPs that have it make one move.
        let same = before.map(|before| before.base(family)).filter(|same| ***same == base);
        same.cloned().unwrap_or_else(|| Arc::new(base))
    };
    let (v4, v6) = (base(Family::V4), base(Family::V6));
    let v6 = if v4 == v6 { Arc::clone(&v4) } else { v6 };
    Some(Former {
        bases: [v4, v6],
        departed,
        changed_s,
    })
}

impl Index {
    /// Who publishes a transit, and the second of its last change.
    pub fn published_transits(&self) -> impl Iterator<Item = (&Arc<str>, i64)> {
        let sets = self.node_sets.iter();
        let sets = sets.filter_map(|(name, set)| Some((name, set.transit.as_ref()?.changed_s)));
        let tables = self.tables.iter().filter_map(|(name, entry)| {
            let serving = entry.serving.as_ref()?;
            match &serving.parsed.to {
                To::Some { transit, .. } => Some((name, transit.as_ref()?.changed.0.as_second())),
                To::All { .. } => None,
            }
        });
        sets.chain(tables)
    }

    /// Backends at nodes that have left, while flows may live there.
    pub(super) fn departed(&self) -> BTreeMap<BackendId, Backend> {
        let departed = self.node_sets.departed();
        departed
            .map(|(id, address)| (id.clone(), Backend { address: *address }))
            .collect()
    }

    /// Where flows of a table's VIPs of a family lived, as far as it is published. Of a set it holds for tables that are as old as its
    /// transit: what was made later had no flows before.
    pub(super) fn base_of(&self, name: &Arc<str>, to: &To, family: Family) -> Option<Arc<Base>> {
        match to {
            To::All { set, unserved } => {
                let nobody = unserved.iter().any(|unserved| Family::from(*unserved) == family);
                let base = self.node_sets.get(set)?.transit.as_ref()?.base(family);
                let created = u64::try_from(self.tables.get(name)?.created).unwrap_or(0);
                (!nobody && created <= base.since_s).then(|| Arc::clone(base))
            }
            To::Some {
                set, nodes, transit, ..
            } => {
                let known = self.node_sets.get(set)?;
                let transit = transit.as_ref()?;
                Some(Arc::new(Base {
                    set: Arc::new(former_of(known, nodes, transit, family)),
                    of: Arc::clone(name),
                    since_s: seconds(&transit.started),
                }))
            }
        }
    }
}

/// The nodes of a table as they were.
fn former_of(known: &Nodes, now: &[LocalNode], transit: &LocalTransit, family: Family) -> BackendSet {
    let departed = known.transit.as_ref().map(|former| &former.departed);
    let mut nodes: BTreeMap<&str, &LocalNode> = now.iter().map(|node| (&*node.name, node)).collect();
    nodes.extend(transit.nodes.iter().map(|node| (&*node.name, node)));
    let member = |node: &&LocalNode| {
        let weight = match family {
            Family::V4 => node.ipv4,
            Family::V6 => node.ipv6,
        };
        let at = known.nodes.get(&*node.name);
        let at = at.or_else(|| departed?.get(&*node.name));
        let backend = at?.backend(family)?.clone();
        (weight > 0).then_some(Member { backend, weight })
    };
    let mut members: Vec<Member> = nodes.values().filter_map(member).collect();
    members.sort_unstable();
    members.dedup_by(|a, b| a.backend == b.backend);
    BackendSet {
        members,
        table_slots: table::slots(transit.table_slots).ok(),
    }
}
