//! What is published of transits: who the backends were before changes that are not over, so that an LB node that starts or joins
//! goes on where flows live.
//!
//! Never asks an LB node: which transits are over there stands in its LbNode. Never waits for one that is dead, or that is of a version
//! that says nothing of transits.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use operator_api::{
    Backends, LbNode, LocalNode, LocalTransit, MAX_LOCAL_NODES, NodeEntry, NodeSetSpec, NodeSetTransit, VipTable,
};

use super::{
    Index,
    lb_nodes::{Life, Says, says},
    store::version_of,
};

/// Longest transit: the default of LB nodes, which give up by themselves what still lives elsewhere then.
pub(super) const MAX_TRANSIT: SignedDuration = SignedDuration::from_hours(24);
const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// The transit of a chunk whose nodes become `nodes`; `slots` are those of the whole set, now and then.
pub(super) fn of_chunk(
    before: &NodeSetSpec,
    nodes: &[&NodeEntry],
    slots: (u32, u32),
    is_over: bool,
    now: Timestamp,
) -> Option<NodeSetTransit> {
    let was = before.transit.as_ref().filter(|_| !is_over);
    let had: BTreeMap<&str, &NodeEntry> = before.nodes.iter().map(|node| (&*node.name, node)).collect();
    let has: BTreeSet<&str> = nodes.iter().map(|node| &*node.name).collect();
    if slots.0 == slots.1 && had.len() == has.len() && had.keys().all(|name| has.contains(name)) {
        return was.cloned();
    }
    let mut departed: BTreeMap<&str, &NodeEntry> = BTreeMap::new();
    let mut arrived: BTreeSet<&str> = BTreeSet::new();
    if let Some(was) = was {
        departed.extend(was.departed.iter().map(|node| (&*node.name, node)));
        arrived.extend(was.arrived.iter().map(String::as_str));
    }
    for (name, node) in had.iter().filter(|(name, _)| !has.contains(*name)) {
        // Who came and went in this transit was not there before it.
        if !arrived.remove(name) {
            departed.insert(name, node);
        }
    }
    for name in has.iter().filter(|name| !had.contains_key(*name)) {
        if departed.remove(name).is_none() {
            arrived.insert(name);
        }
    }
    let (started, changed) = times(was.map(|was| (&was.started, &was.changed)), now);
    Some(NodeSetTransit {
        started,
        changed,
        table_slots: was.map_or(slots.0, |was| was.table_slots),
        // All of them were in the chunk when it began: there are no more than a chunk has.
        departed: departed.into_values().cloned().collect(),
        arrived: arrived.into_iter().map(str::to_owned).collect(),
    })
}

/// The transit of a table whose nodes become `nodes` and whose slots become `slots`. Where nobody was before, no flow lives.
pub(super) fn of_table(
    before: &VipTable,
    nodes: &[LocalNode],
    slots: u32,
    is_over: bool,
    now: Timestamp,
) -> Option<LocalTransit> {
    let Backends::Local {
        table_slots,
        nodes: had,
        transit,
        ..
    } = &before.spec.backends
    else {
        return None;
    };
    let was = transit.as_ref().filter(|_| !is_over);
    if had == nodes && *table_slots == slots {
        return was.cloned();
    }
    let by_name = |nodes: &[LocalNode]| -> BTreeMap<String, LocalNode> {
        nodes.iter().map(|node| (node.name.clone(), node.clone())).collect()
    };
    let mut former = by_name(had);
    former.extend(was.map(|was| by_name(&was.nodes)).unwrap_or_default());
    if former.values().all(|node| node.ipv4 == 0 && node.ipv6 == 0) {
        return None;
    }
    let now_there = by_name(nodes);
    for name in now_there
        .keys()
        .filter(|name| !former.contains_key(*name))
        .cloned()
        .collect::<Vec<_>>()
    {
        former.insert(name.clone(), LocalNode { name, ipv4: 0, ipv6: 0 });
    }
    let differs = |node: &LocalNode| match now_there.get(&node.name) {
        Some(now) => now != node,
        None => node.ipv4 > 0 || node.ipv6 > 0,
    };
    let (started, changed) = times(was.map(|was| (&was.started, &was.changed)), now);
    Some(LocalTransit {
        started,
        changed,
        table_slots: was.map_or(*table_slots, |was| was.table_slots),
        // Flows at those beyond break on LB nodes that start or join.
        nodes: former.into_values().filter(differs).take(MAX_LOCAL_NODES).collect(),
    })
}

/// When a transit that goes on, or begins, started and changed, in whole seconds. Time does not go back, whoever leads.
fn times(was: Option<(&Time, &Time)>, now: Timestamp) -> (Time, Time) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    match was {
        Some((started, changed)) => {
            let next = changed.0.saturating_add(SECOND).unwrap_or(changed.0);
            (started.clone(), Time(now.max(next)))
        }
        None => (Time(now), Time(now)),
    }
}

/// Whether an LB node says anything else of the transits of node sets than before.
pub(super) fn is_news(before: Option<&LbNode>, now: &LbNode) -> bool {
    let said = |node: &LbNode| {
        let status = node.status.as_ref()?;
        Some((status.transits.clone(), status.programmed.node_sets.clone()))
    };
    before.and_then(said) != said(now)
}

/// Something that publishes a transit.
struct Publisher<'a> {
    name: &'a str,
    version: Option<u128>,
    started: Timestamp,
    changed: Timestamp,
    is_table: bool,
}

impl Publisher<'_> {
    /// Whether it is over on an LB node; `None`: that one is of a version that says nothing of transits.
    fn is_over_on(&self, node: &LbNode) -> Option<bool> {
        let Some(status) = &node.status else { return Some(false) };
        let transits = status.transits.as_ref()?;
        let is_there = if self.is_table {
            says(node, self.name, self.version, true) == Says::On
        } else {
            let through = version_of(Some(&status.programmed.node_sets));
            self.version
                .zip(through)
                .is_some_and(|(version, through)| version <= through)
        };
        let through = transits.over_through.as_ref();
        let is_reached = through.is_some_and(|through| self.changed <= through.0);
        Some(is_there && is_reached && !transits.but_for.iter().any(|name| name == self.name))
    }
}

impl Index {
    /// Whether the transit of a table, if it has one, is over on all LB nodes.
    pub(super) fn is_table_over(&self, table: &VipTable) -> bool {
        let Backends::Local {
            transit: Some(transit), ..
        } = &table.spec.backends
        else {
            return true;
        };
        self.is_over(&Publisher {
            name: table.metadata.name.as_deref().unwrap_or_default(),
            version: version_of(table.metadata.resource_version.as_deref()),
            started: transit.started.0,
            changed: transit.changed.0,
            is_table: true,
        })
    }

    /// Whether the transits of a set's chunks, if they have any, are over on all LB nodes.
    pub(super) fn is_set_over(&self, set: &str) -> bool {
        let chunks = || {
            let all = self.node_sets.iter().map(|(_, chunk)| chunk);
            all.filter(|chunk| chunk.spec.set == set)
        };
        let transits = || chunks().filter_map(|chunk| chunk.spec.transit.as_ref());
        let started = transits().map(|transit| transit.started.0).min();
        let Some((started, changed)) = started.zip(transits().map(|transit| transit.changed.0).max()) else {
            return true;
        };
        self.is_over(&Publisher {
            name: set,
            version: chunks()
                .filter_map(|chunk| version_of(chunk.metadata.resource_version.as_deref()))
                .max(),
            started,
            changed,
            is_table: false,
        })
    }

    fn is_over(&self, transit: &Publisher<'_>) -> bool {
        if self.now.duration_since(transit.started) >= MAX_TRANSIT {
            return true;
        }
        let mut over = 0;
        for (key, node) in self.lb_nodes.iter() {
            match self.life(&key.name) {
                Life::Dead => continue,
                // Nobody can say yet: an operator that has just started gives each the time to show that it lives.
                Life::Unsure => return false,
                Life::Alive => {}
            }
            match transit.is_over_on(node) {
                Some(true) => over += 1,
                Some(false) => return false,
                None => {}
            }
        }
        over > 0
    }
}
