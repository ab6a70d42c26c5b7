//! All that this node watches, as a plain struct, and what it asks of the maps: apply, delete, reset; [`Index::snapshot`].
//!
//! Never talks to anybody and reads no clock. A table that cannot be served fails alone: what of it was in the maps stays there, and it
//! is listed with its reason. One event costs what it changes, not what there is.

mod held;
mod nodes;
mod room;
mod serve;
mod table;
#[cfg(test)]
mod tests;
mod transits;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_core::{
    config::Capacity,
    desired::{Backend, BackendId, Vip, VipKey},
    drain::Drains,
    ranges::RangeSet,
};
use operator_api::{NodeSetSpec, TunnelConfigSpec, VipTableSpec};

use self::{
    nodes::NodeSets,
    room::{Keyed, Room},
    table::Parsed,
};
use super::{
    announce::AddressNames,
    guard::{Deletions, Guard},
    object::Object,
};

pub use table::TableError;

/// What of this node the tables must agree with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// This node's name.
    pub node: Arc<str>,
    /// Room in the maps.
    pub capacity: Capacity,
    /// Outer sources that its file names: no VIP may be in them.
    pub sources: Vec<IpNet>,
    /// Flows can be recorded: `transit.enabled`.
    pub keeps_records: bool,
}

/// What the maps should say, and how far that goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// VIPs.
    pub vips: BTreeMap<VipKey, Vip>,
    /// Every backend that a set names.
    pub backends: BTreeMap<BackendId, Backend>,
    /// Nodes that have left, while flows may live there.
    pub departed: BTreeMap<BackendId, Backend>,
    /// Backends that are being drained until a time, in no set any more.
    pub drains: Drains,
    /// Backends at nodes that the cluster does not have any more.
    pub gone: BTreeSet<BackendId>,
    /// By what each VIP address is announced.
    pub names: AddressNames,
    /// What this node decapsulates, when it is itself in a node set.
    pub tunnel: Option<Accepts>,
    /// Tables that are not in the maps as they should be, with the reason.
    pub failing: Failing,
    /// How far it goes.
    pub revisions: Revisions,
    /// Counts changes: hand it to [`Index::programmed`] when the maps say this.
    pub sequence: u64,
}

/// Tables that are not in the maps as they should be, by name, with the reason.
pub type Failing = Arc<BTreeMap<Arc<str>, TableError>>;

/// Highest resource versions seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revisions {
    /// Of VipTables.
    pub tables: u64,
    /// Of NodeSets.
    pub node_sets: u64,
}

/// A TunnelConfig that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Outer sources.
    pub sources: Vec<IpNet>,
    /// Inner destinations.
    pub vip_prefixes: Vec<IpNet>,
}

impl Accepts {
    /// Reads a TunnelConfig.
    ///
    /// # Errors
    ///
    /// The first text that is no network.
    pub fn parse(spec: &TunnelConfigSpec) -> Result<Self, TableError> {
        Ok(Self {
            sources: table::networks(&spec.sources)?,
            vip_prefixes: table::networks(&spec.vip_prefixes)?,
        })
    }
}

/// A version of a table that makes sense by itself.
#[derive(Clone, Debug)]
struct Version {
    revision: u64,
    spec: Arc<VipTableSpec>,
    parsed: Arc<Parsed>,
}

/// A table and what became of it.
#[derive(Clone, Debug)]
struct Entry {
    created: i64,
    /// It is not in the last list, or was deleted by name: it may be gone.
    held: bool,
    newest: Result<Version, TableError>,
    /// The version that the maps had last, for when the newest cannot be served.
    good: Option<Version>,
    /// What is in [`Index::vips`] for it now.
    serving: Option<Version>,
    /// Sequence of the change that put it there.
    since: u64,
    /// The revision that the planner refused, and why.
    refused: Option<(u64, TableError)>,
    claims: BTreeSet<VipKey>,
    sets: Vec<Keyed>,
    ranges: Option<Arc<RangeSet>>,
    /// VIPs that it has in [`Index::vips`].
    served: BTreeSet<VipKey>,
}

/// Who goes first: what the last list has, what is older, by name.
type Rank = (bool, i64, Arc<str>);

/// Everything that is watched.
#[derive(Clone, Debug)]
pub struct Index {
    own: Own,
    tables: BTreeMap<Arc<str>, Entry>,
    node_sets: NodeSets,
    /// Addresses of all nodes: none of them can be a VIP's.
    node_addresses: BTreeSet<IpAddr>,
    tunnel: Option<(TunnelConfigSpec, Accepts)>,
    claims: BTreeMap<VipKey, BTreeSet<Rank>>,
    holders: BTreeMap<VipKey, Arc<str>>,
    vips: BTreeMap<VipKey, Vip>,
    room: Room,
    failing: Failing,
    /// Tables that changed the VIPs and are not known to be in the maps yet.
    unconfirmed: BTreeSet<Arc<str>>,
    guard: Guard,
    deletions: Deletions,
    revisions: Revisions,
    sequence: u64,
}

impl Index {
    /// Without any object.
    pub fn new(own: Own) -> Self {
        Self {
            room: Room::new(own.capacity),
            own,
            tables: BTreeMap::new(),
            node_sets: NodeSets::default(),
            node_addresses: BTreeSet::new(),
            tunnel: None,
            claims: BTreeMap::new(),
            holders: BTreeMap::new(),
            vips: BTreeMap::new(),
            failing: Arc::default(),
            unconfirmed: BTreeSet::new(),
            guard: Guard::default(),
            deletions: Deletions::default(),
            revisions: Revisions::default(),
            sequence: 0,
        }
    }

    /// This node's own settings changed.
    pub fn set_own(&mut self, own: Own) {
        if own != self.own {
            self.room.set_capacity(own.capacity);
            self.own = own;
            self.look_again_at_all();
        }
    }

    /// Puts a table in the place of its earlier version.
    pub fn apply_table(&mut self, object: Object<VipTableSpec>) {
        self.revisions.tables = self.revisions.tables.max(object.revision);
        self.put_table(object);
        self.look_at_guard();
    }

    /// Puts a whole list in the place of all tables; what is not in it is gone, unless that is too much to be believed: see
    /// [`Self::held`]. `now`: time since any beginning.
    pub fn reset_tables(&mut self, mut objects: Vec<Object<VipTableSpec>>, now: Duration) {
        let present = self.vips.len();
        self.deletions.forget_waiting();
        // Not the highest that was ever seen: a cluster that was restored from a backup counts from there.
        self.revisions.tables = 0;
        let listed: BTreeSet<Arc<str>> = objects.iter().map(|object| Arc::clone(&object.name)).collect();
        let gone: Vec<Arc<str>> = self
            .tables
            .keys()
            .filter(|name| !listed.contains(*name))
            .cloned()
            .collect();
        // What may be gone gives way to what is there.
        gone.iter().for_each(|name| self.hold(name, true));
        objects.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        for object in objects {
            self.revisions.tables = self.revisions.tables.max(object.revision);
            self.put_table(object);
        }
        if !self.guard.judge(self.held_vips(), present, now) {
            gone.iter().for_each(|name| self.drop_table(name));
        }
    }

    /// Puts a chunk in the place of its earlier version.
    pub fn apply_node_set(&mut self, object: Object<NodeSetSpec>) {
        self.revisions.node_sets = self.revisions.node_sets.max(object.revision);
        let name = Arc::clone(&object.name);
        if self.node_sets.chunk(&name).is_some_and(|known| **known == object) {
            return;
        }
        if self.node_sets.put(&name, Some(object)) {
            self.node_sets_changed();
        }
    }

    /// Takes a chunk out. Its set stays as it was when it was complete.
    pub fn delete_node_set(&mut self, name: &str, revision: u64) {
        self.revisions.node_sets = self.revisions.node_sets.max(revision);
        if self.node_sets.put(&name.into(), None) {
            self.node_sets_changed();
        }
    }

    /// Puts a whole list in the place of all chunks.
    pub fn reset_node_sets(&mut self, objects: Vec<Object<NodeSetSpec>>) {
        let listed: BTreeSet<Arc<str>> = objects.iter().map(|object| Arc::clone(&object.name)).collect();
        let names = self.node_sets.chunk_names();
        let gone: Vec<Arc<str>> = names.filter(|name| !listed.contains(*name)).cloned().collect();
        let mut changed = false;
        self.revisions.node_sets = 0;
        for object in objects {
            self.revisions.node_sets = self.revisions.node_sets.max(object.revision);
            let name = Arc::clone(&object.name);
            if self.node_sets.chunk(&name).is_none_or(|known| **known != object) {
                changed |= self.node_sets.put(&name, Some(object));
            }
        }
        for name in gone {
            changed |= self.node_sets.put(&name, None);
        }
        if changed {
            self.node_sets_changed();
        }
    }

    /// Takes a TunnelConfig in. One that cannot be read changes nothing; nor does its deletion.
    ///
    /// # Errors
    ///
    /// Why it cannot be read.
    pub fn apply_tunnel(&mut self, spec: TunnelConfigSpec) -> Result<(), TableError> {
        let accepts = Accepts::parse(&spec)?;
        if self.tunnel.as_ref().is_none_or(|(_, known)| *known != accepts) {
            self.tunnel = Some((spec, accepts));
            self.sequence += 1;
        }
        Ok(())
    }

    /// Counts changes of what [`Self::snapshot`] says.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How far it goes, whether or not that changed anything.
    pub fn revisions(&self) -> Revisions {
        self.revisions
    }

    /// Tables that fail now.
    pub fn failing(&self) -> &Failing {
        &self.failing
    }

    /// Fingerprint of the seed of any set that was ever complete: the first one's, by name.
    pub fn fingerprint(&self) -> Option<&Arc<str>> {
        self.node_sets.iter().next().map(|(_, nodes)| &nodes.fingerprint)
    }

    /// Node sets that are not complete, with what is missing.
    pub fn waiting(&self) -> impl Iterator<Item = (&Arc<str>, &String)> {
        self.node_sets.waiting.iter()
    }

    /// VIPs, backends and tables that there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.vips.len(), self.room.backend_count(), self.tables.len())
    }

    /// What the maps should say.
    pub fn snapshot(&self) -> Snapshot {
        let is_worker = self
            .node_sets
            .iter()
            .any(|(_, set)| set.nodes.contains_key(&self.own.node));
        let tunnel = self.tunnel.as_ref().filter(|_| is_worker);
        Snapshot {
            vips: self.vips.clone(),
            backends: self.room.backends(),
            departed: self.departed(),
            drains: Drains::new(self.node_sets.drains()),
            gone: self.node_sets.gone().collect(),
            names: self.names(),
            tunnel: tunnel.map(|(_, accepts)| accepts.clone()),
            failing: Arc::clone(&self.failing),
            revisions: self.revisions,
            sequence: self.sequence,
        }
    }

    /// By what VIP addresses are announced: a shared one by whatever announces it for one of its tables.
    fn names(&self) -> AddressNames {
        let mut all = AddressNames::new();
        let serving = self.tables.values().filter_map(|entry| entry.serving.as_ref());
        for (address, names) in serving.flat_map(|version| &version.parsed.announced) {
            let known = all.entry(*address).or_insert_with(|| names.clone());
            match (&mut *known, names) {
                (_, None) => {}
                (None, Some(_)) => known.clone_from(names),
                (Some(known), Some(names)) if known != names => Arc::make_mut(known).extend(names.iter().cloned()),
                (Some(_), Some(_)) => {}
            }
        }
        all
    }

    /// The maps say what [`Self::snapshot`] said at this sequence.
    pub fn programmed(&mut self, sequence: u64) {
        let names = std::mem::take(&mut self.unconfirmed);
        for name in names {
            match self.tables.get_mut(&name) {
                Some(entry) if entry.since <= sequence => entry.good.clone_from(&entry.serving),
                Some(_) => {
                    self.unconfirmed.insert(name);
                }
                None => {}
            }
        }
    }

    /// The planner has no room for a VIP: its table goes back to what it was. `false` where no table has that VIP, or has nothing to go
    /// back to: nothing helps then.
    pub fn refuse(&mut self, vip: VipKey, why: &str) -> bool {
        let Some(name) = self.holders.get(&vip).cloned() else {
            return false;
        };
        let Some(entry) = self.tables.get_mut(&name) else {
            return false;
        };
        let Some(serving) = entry.serving.take() else {
            return false;
        };
        let error = TableError::Refused { why: why.into() };
        entry.refused = Some((serving.revision, error));
        if entry
            .good
            .as_ref()
            .is_some_and(|good| good.revision == serving.revision)
        {
            entry.good = None;
        }
        self.resolve(BTreeSet::from([name]));
        true
    }

    /// What would have to be known to come to the same without an API server: versions that are in the maps, and complete sets.
    pub fn kept(&self) -> Kept {
        let tables = self.tables.iter().filter_map(|(name, entry)| {
            let version = entry.good.as_ref().or(entry.serving.as_ref())?;
            Some((
                Arc::clone(name),
                entry.created,
                version.revision,
                Arc::clone(&version.spec),
            ))
        });
        let chunks = self.node_sets.iter().flat_map(|(_, nodes)| &nodes.chunks).cloned();
        Kept {
            tables: tables.collect(),
            chunks: chunks.collect(),
            tunnel: self.tunnel.as_ref().map(|(spec, _)| spec.clone()),
        }
    }

    /// What was recalled says nothing of how far the API server is.
    pub fn forget_revisions(&mut self) {
        self.revisions = Revisions::default();
    }

    /// Tries again what the planner refused.
    pub fn try_refused_again(&mut self) {
        let refused: BTreeSet<Arc<str>> = self.starving().collect();
        for name in &refused {
            if let Some(entry) = self.tables.get_mut(name) {
                entry.refused = None;
            }
        }
        self.resolve(refused);
    }

    fn put_table(&mut self, object: Object<VipTableSpec>) {
        let Object {
            name,
            created,
            revision,
            spec,
        } = object;
        self.deletions.cancel(&name);
        let newest = match spec {
            Err(why) => Err(TableError::Unreadable { why }),
            Ok(spec) => table::parse(&spec).map(|parsed| Version {
                revision,
                spec: Arc::new(spec),
                parsed: Arc::new(parsed),
            }),
        };
        let entry = self.tables.entry(Arc::clone(&name)).or_insert_with(|| Entry {
            created,
            held: false,
            newest: Err(TableError::Nothing { what: "version" }),
            good: None,
            serving: None,
            since: 0,
            refused: None,
            claims: BTreeSet::new(),
            sets: Vec::new(),
            ranges: None,
            served: BTreeSet::new(),
        });
        // A list tells much that is known: what was parsed once is the same again.
        let same = match (&entry.newest, &newest) {
            (Ok(before), Ok(after)) => before.spec == after.spec,
            (Err(before), Err(after)) => before == after,
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        };
        let rank_stays = entry.created == created && !entry.held;
        if same && rank_stays {
            if let (Ok(version), Ok(newest)) = (&mut entry.newest, newest) {
                version.revision = newest.revision;
            }
            return;
        }
        self.disclaim(&name);
        if let Some(entry) = self.tables.get_mut(&name) {
            entry.created = created;
            entry.held = false;
            entry.newest = newest;
            entry.refused = None;
        }
        let dirty = self.claim(&name);
        self.resolve(dirty);
    }

    fn drop_table(&mut self, name: &str) {
        let Some((name, _)) = self.tables.get_key_value(name) else {
            return;
        };
        let name = Arc::clone(name);
        let mut dirty = self.disclaim(&name);
        self.withdraw(&name);
        self.tables.remove(&name);
        self.unconfirmed.remove(&name);
        if self.failing.contains_key(&name) {
            Arc::make_mut(&mut self.failing).remove(&name);
        }
        self.sequence += 1;
        dirty.extend(self.starving());
        dirty.remove(&name);
        self.resolve(dirty);
    }

    fn starving(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        let starving = self.failing.iter().filter(|(_, why)| why.is_want_of_room());
        starving.map(|(name, _)| Arc::clone(name))
    }

    fn node_sets_changed(&mut self) {
        let addresses = self.node_sets.addresses().map(|(_, address)| *address);
        self.node_addresses = addresses.collect();
        self.sequence += 1;
        self.room.readdress(self.node_sets.addresses());
        self.look_again_at_all();
    }

    fn look_again_at_all(&mut self) {
        for entry in self.tables.values_mut() {
            entry.refused = None;
        }
        self.resolve(self.tables.keys().cloned().collect());
    }

    /// Gives up what a table claims; who else claims any of it.
    fn disclaim(&mut self, name: &Arc<str>) -> BTreeSet<Arc<str>> {
        let mut dirty = BTreeSet::from([Arc::clone(name)]);
        let Some(entry) = self.tables.get_mut(name) else {
            return dirty;
        };
        let rank: Rank = (entry.held, entry.created, Arc::clone(name));
        for key in std::mem::take(&mut entry.claims) {
            if let Some(ranks) = self.claims.get_mut(&key) {
                ranks.remove(&rank);
                dirty.extend(ranks.iter().map(|(_, _, name)| Arc::clone(name)));
                if ranks.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
        dirty
    }

    /// Claims what a table's newest version wants and what it serves still; who else claims any of it.
    fn claim(&mut self, name: &Arc<str>) -> BTreeSet<Arc<str>> {
        let mut dirty = BTreeSet::from([Arc::clone(name)]);
        let Some(entry) = self.tables.get_mut(name) else {
            return dirty;
        };
        let mut keys: BTreeSet<VipKey> = entry.served.clone();
        if let Ok(version) = &entry.newest {
            keys.extend(&version.parsed.keys);
        }
        let rank: Rank = (entry.held, entry.created, Arc::clone(name));
        for key in &keys {
            let ranks = self.claims.entry(*key).or_default();
            dirty.extend(ranks.iter().map(|(_, _, name)| Arc::clone(name)));
            ranks.insert(rank.clone());
        }
        entry.claims = keys;
        dirty
    }

    /// Whose a VIP is, where it is not this table's.
    fn taken(&self, key: &VipKey, name: &Arc<str>) -> Option<&Arc<str>> {
        let (_, _, first) = self.claims.get(key)?.first()?;
        (first != name).then_some(first)
    }
}

/// What a cache keeps of an index: names, creation times, revisions and specs of tables; chunks of complete sets; the tunnel.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Tables as they are in the maps.
    pub tables: Vec<(Arc<str>, i64, u64, Arc<VipTableSpec>)>,
    /// Chunks.
    pub chunks: Vec<Arc<Object<NodeSetSpec>>>,
    /// The tunnel.
    pub tunnel: Option<TunnelConfigSpec>,
}
