//! What an event changes, and what has to be looked at for it.
//!
//! Never wakes all Services for one object: a node wakes none, a slice the Service whose result it changes, an LB node those
//! that wait to be programmed, a claim its holders and some of those that wait for an address.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Secret, Service},
    discovery::v1::EndpointSlice,
};
use operator_api::{
    AddressClaim, AddressPool, Announcement, BgpPeer, LbNode, NodeSet, TunnelConfig, VipAddress, VipTable,
};

use super::{
    Index, Kind, Object,
    announcing::{Announced, Peer},
    endpoints::Slice,
    kinds::Gone,
    lb_nodes::{Beat, Life, Pulse, Says, says},
    nodes::Candidate,
    seed::Found,
    store::{Key, Stamp},
    transits,
    voices::Voice,
};
use crate::{
    Subject,
    ipam::{Claim, Owner, Pool, Range},
};

/// Large, and of no use to us.
const ANNOTATION_LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

type Dirty = BTreeSet<Subject>;

impl Index {
    /// Puts an object in the place of its earlier version; one that is not newer than what is known (by `resourceVersion`, of
    /// this or another life of its name), or that was deleted since, changes nothing. Returns what has to be looked at.
    pub fn apply(&mut self, object: Object) -> BTreeSet<Subject> {
        let mut dirty = Dirty::new();
        let Some(key) = self.key_of(&object) else {
            return dirty;
        };
        let stamp = Stamp::of(object.metadata(), self.now);
        if !self.takes(object.kind(), &key, &stamp) {
            return dirty;
        }
        let slices_of = self.put(key, stamp, object, &mut dirty);
        self.locate(slices_of, &mut dirty);
        dirty
    }

    /// Takes an object out that is gone. (One that only has a `deletionTimestamp` is still there.)
    pub fn delete(&mut self, object: Object) -> BTreeSet<Subject> {
        let mut dirty = Dirty::new();
        if let Some(key) = self.key_of(&object) {
            let stamp = Stamp::of(object.metadata(), self.now);
            let gone = self.take(object.kind(), &key, stamp);
            let slices_of = self.after_loss(gone, &mut dirty);
            self.locate(slices_of, &mut dirty);
        }
        dirty
    }

    /// Puts a whole list in the place of all that is known of a kind: what is not in it is gone, and its versions count, be they
    /// older (the API server may have been restored from a backup). Services are looked at once all kinds have been listed.
    pub fn reset(&mut self, kind: Kind, objects: Vec<Object>) -> BTreeSet<Subject> {
        let mut dirty = Dirty::new();
        self.is_filling = !self.is_complete();
        let mut listed = BTreeSet::new();
        let mut slices_of = BTreeSet::new();
        for object in objects.into_iter().filter(|object| object.kind() == kind) {
            let Some(key) = self.key_of(&object) else { continue };
            listed.insert(key.clone());
            let stamp = Stamp::of(object.metadata(), self.now);
            self.forget_deletion(kind, &stamp);
            slices_of.extend(self.put(key, stamp, object, &mut dirty));
        }
        for gone in self.keep(kind, &listed) {
            slices_of.extend(self.after_loss(gone, &mut dirty));
        }
        self.locate(slices_of, &mut dirty);
        if std::mem::take(&mut self.is_filling) && self.is_complete() {
            let services: Vec<Key> = self.services().cloned().collect();
            services.iter().for_each(|key| self.look_at(key, &mut dirty));
        }
        dirty
    }

    /// `None`: it has no name, or stands where we have no business.
    fn key_of(&mut self, object: &Object) -> Option<Key> {
        let key = object.key();
        let key = key.filter(|key| !object.kind().is_of_operator() || key.namespace == self.settings.namespace);
        if key.is_none() {
            self.ignored = self.ignored.saturating_add(1);
        }
        key
    }

    /// Returns Services of which a slice has changed.
    fn put(&mut self, key: Key, stamp: Stamp, object: Object, dirty: &mut Dirty) -> BTreeSet<Key> {
        match object {
            Object::Service(service) => self.put_service(key, stamp, service, dirty),
            Object::EndpointSlice(slice) => return self.put_slice(key, stamp, &slice),
            Object::Node(node) => self.put_node(key, stamp, &node, dirty),
            Object::Namespace(namespace) => self.put_namespace(key, stamp, namespace, dirty),
            Object::Pool(pool) => self.put_pool(key, stamp, &pool, dirty),
            Object::Claim(claim) => self.put_claim(key, stamp, &claim, dirty),
            Object::Table(table) => self.put_table(key, stamp, table, dirty),
            Object::NodeSet(chunk) => self.put_node_set(key, stamp, chunk, dirty),
            Object::Tunnel(tunnel) => self.put_tunnel(key, stamp, tunnel, dirty),
            Object::LbNode(node) => self.put_lb_node(key, stamp, node, dirty),
            Object::Lease(lease) => self.put_lease(key, stamp, &lease, dirty),
            Object::Peer(peer) => self.put_peer(key, stamp, peer, dirty),
            Object::Announcement(announcement) => self.put_announcement(key, stamp, announcement, dirty),
            Object::Seed(secret) => self.put_seed(key, stamp, &secret, dirty),
        }
        BTreeSet::new()
    }

    fn put_service(&mut self, key: Key, stamp: Stamp, mut service: Service, dirty: &mut Dirty) {
        service.metadata.managed_fields = None;
        if let Some(annotations) = &mut service.metadata.annotations {
            annotations.remove(ANNOTATION_LAST_APPLIED);
        }
        let uid = service.metadata.uid.clone();
        let old = self.services.put(key.clone(), stamp, service);
        if old.is_some_and(|old| old.metadata.uid != uid) && self.claims.of_service(&key).next().is_some() {
            dirty.insert(Subject::Orphans);
        }
        self.look_at(&key, dirty);
    }

    /// Notes what a Service waits for, and says so unless it is and was none of ours.
    fn look_at(&mut self, key: &Key, dirty: &mut Dirty) {
        if self.is_filling && self.services.by_key(key).is_some() {
            return;
        }
        let was_ours = self.ours.contains(key);
        self.note(key);
        if was_ours || self.ours.contains(key) {
            dirty.insert(Subject::Service(key.clone()));
        }
    }

    fn put_slice(&mut self, key: Key, stamp: Stamp, slice: &EndpointSlice) -> BTreeSet<Key> {
        let parsed = Slice::parse(slice);
        let service = parsed.as_ref().map(|(service, _)| service.clone());
        let old = self.slices.put(key.clone(), stamp, service.clone()).flatten();
        let mut touched = BTreeSet::new();
        if let Some(old) = old.filter(|old| Some(old) != service.as_ref()) {
            self.endpoints.entry(old.clone()).or_default().remove(&key.name);
            touched.insert(old);
        }
        if let Some((service, slice)) = parsed
            && self.endpoints.entry(service.clone()).or_default().put(&key.name, slice)
        {
            touched.insert(service);
        }
        touched
    }

    /// Counts anew where the endpoints of Services are.
    fn locate(&mut self, services: BTreeSet<Key>, dirty: &mut Dirty) {
        for key in services {
            let Some(endpoints) = self.endpoints.get_mut(&key) else {
                continue;
            };
            let changes = endpoints.locate();
            if endpoints.is_empty() {
                self.endpoints.remove(&key);
            }
            let counts = changes.served || (changes.any && self.is_local(&key));
            if counts && self.ours.contains(&key) {
                dirty.insert(Subject::Service(key));
            }
        }
    }

    fn is_local(&self, key: &Key) -> bool {
        let spec = self.services.by_key(key).and_then(|service| service.spec.as_ref());
        spec.and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local")
    }

    fn put_node(&mut self, key: Key, stamp: Stamp, node: &Node, dirty: &mut Dirty) {
        let candidate = Candidate::parse(node);
        let old = self.nodes.by_key(&key);
        if candidate.is_news_after(old) {
            dirty.insert(Subject::NodeSets);
        }
        let is_otherwise =
            old.is_none_or(|old| old.labels() != candidate.labels() || old.is_drained() != candidate.is_drained());
        if is_otherwise && self.lb_nodes.by_key(&self.own(&key.name)).is_some() {
            dirty.extend(self.all_announcing());
        }
        self.eligible += usize::from(candidate.eligible().is_some());
        let old = self.nodes.put(key, stamp, candidate);
        self.eligible -= usize::from(old.is_some_and(|old| old.eligible().is_some()));
    }

    fn put_namespace(&mut self, key: Key, stamp: Stamp, namespace: Namespace, dirty: &mut Dirty) {
        let labels = namespace.metadata.labels.unwrap_or_default();
        let name = key.name.clone();
        let old = self.namespaces.put(key, stamp, labels);
        if old.unwrap_or_default() != *self.labels_of(&name) {
            self.namespace_changed(&name, dirty);
        }
    }

    fn namespace_changed(&mut self, name: &str, dirty: &mut Dirty) {
        let first = Key {
            namespace: name.to_owned(),
            name: String::new(),
        };
        let ours = self.ours.range(first..).take_while(|key| key.namespace == name);
        dirty.extend(ours.cloned().map(Subject::Service));
    }

    fn put_pool(&mut self, key: Key, stamp: Stamp, pool: &AddressPool, dirty: &mut Dirty) {
        let name = key.name.clone();
        let old = self.pools.by_name(&name);
        let ranges = old.map(Pool::ranges).unwrap_or_default().to_vec();
        let is_new = old.is_none();
        let is_otherwise = old.is_some_and(|old| old.object().metadata.labels != pool.metadata.labels);
        self.pool_versions.put(key, stamp, ());
        dirty.insert(Subject::Pool(name.clone()));
        if is_new {
            dirty.extend(self.all_announcing());
        }
        if self.pools.apply(pool) || (is_otherwise && self.selects_pools_by_labels()) {
            self.pool_changed(&name, ranges, dirty);
        }
    }

    /// What waits may fit now, what was covered may not be any more, and others' conflicts may have come or gone.
    fn pool_changed(&mut self, name: &str, mut ranges: Vec<Range>, dirty: &mut Dirty) {
        ranges.extend(self.pools.by_name(name).map(Pool::ranges).unwrap_or_default());
        let of_pool = self.claims.iter().filter(|claim| claim.object().spec.pool == name);
        let in_ranges = ranges.iter().flat_map(|range| self.claims.in_range(*range));
        for claim in of_pool.chain(in_ranges) {
            dirty.extend(holders_of(claim).map(Subject::Service));
        }
        dirty.extend(self.waiting.keys().cloned().map(Subject::Service));
        dirty.extend(self.pools.iter().map(|pool| Subject::Pool(pool.name().to_owned())));
        dirty.insert(Subject::Tunnel);
    }

    fn put_claim(&mut self, key: Key, stamp: Stamp, claim: &AddressClaim, dirty: &mut Dirty) {
        let name = key.name.clone();
        let old = self.claim_of_name(&name).cloned();
        self.claim_versions.put(key, stamp, ());
        if self.claims.apply(claim) {
            self.claim_changed(&name, old, dirty);
        } else {
            self.ignored = self.ignored.saturating_add(1);
        }
    }

    fn claim_changed(&mut self, name: &str, old: Option<Claim>, dirty: &mut Dirty) {
        let new = self.claim_of_name(name).cloned();
        let Some(address) = old.as_ref().or(new.as_ref()).map(Claim::address) else {
            return;
        };
        let covering = self.pools.covering(address).map(|pool| pool.name().to_owned());
        let owner = |claim: &Option<Claim>| claim.as_ref().map(Claim::owner);
        if covering.is_none() && owner(&old) != owner(&new) {
            dirty.insert(Subject::Tunnel);
        }
        dirty.extend(covering.map(Subject::Pool));
        for claim in [&old, &new].into_iter().flatten() {
            let pool = &claim.object().spec.pool;
            if self.pools.by_name(pool).is_some() {
                dirty.insert(Subject::Pool(pool.clone()));
            }
            for holder in holders_of(claim).collect::<Vec<_>>() {
                if self.services.by_key(&holder).is_some() {
                    self.look_at(&holder, dirty);
                }
            }
        }
        if new
            .as_ref()
            .filter(|claim| claim.owner() != Owner::Others)
            .is_some_and(|claim| claim.holders().any(|holder| !self.lives(&holder.service)))
        {
            dirty.insert(Subject::Orphans);
        }
        if let Some(old) = &old
            && frees(old, new.as_ref())
        {
            dirty.extend(
                self.who_could_use(address, &old.object().spec.pool)
                    .map(Subject::Service),
            );
        }
    }

    fn put_table(&mut self, key: Key, stamp: Stamp, table: VipTable, dirty: &mut Dirty) {
        let name = key.name.clone();
        let known = self.tables.by_key(&key);
        let is_same = known.is_some_and(|known| {
            let same =
                |(one, other): (&VipAddress, &VipAddress)| one.address == other.address && one.pool == other.pool;
            let (known_addresses, addresses) = (&known.spec.addresses, &table.spec.addresses);
            known.metadata.uid == table.metadata.uid
                && known_addresses.len() == addresses.len()
                && known_addresses.iter().zip(addresses).all(same)
        });
        if !is_same {
            self.addressed.insert(key.clone(), self.now);
        }
        self.tables.put(key, stamp, table);
        self.table_changed(&name, dirty);
    }

    fn table_changed(&mut self, name: &str, dirty: &mut Dirty) {
        let service = service_of_table(name).filter(|key| self.services.by_key(key).is_some());
        match service {
            Some(key) => self.look_at(&key, dirty),
            None => {
                dirty.insert(Subject::Orphans);
            }
        }
    }

    fn put_node_set(&mut self, key: Key, stamp: Stamp, chunk: NodeSet, dirty: &mut Dirty) {
        let pinned = self.pinned().map(str::to_owned);
        self.node_sets.put(key, stamp, chunk);
        dirty.insert(Subject::NodeSets);
        if self.pinned() != pinned.as_deref() {
            dirty.insert(Subject::Seed);
        }
    }

    fn put_tunnel(&mut self, key: Key, stamp: Stamp, tunnel: TunnelConfig, dirty: &mut Dirty) {
        self.tunnels.put(key, stamp, tunnel);
        dirty.insert(Subject::Tunnel);
    }

    fn put_lb_node(&mut self, key: Key, stamp: Stamp, node: LbNode, dirty: &mut Dirty) {
        let old = self.lb_nodes.put(key.clone(), stamp, node);
        let Some(node) = self.lb_nodes.by_key(&key) else { return };
        if old.as_ref().is_none_or(|old| old.spec != node.spec) {
            dirty.insert(Subject::Tunnel);
        }
        let labels = |node: &LbNode| node.metadata.labels.clone().unwrap_or_default();
        if old.as_ref().is_none_or(|old| labels(old) != labels(node)) {
            dirty.extend(self.all_announcing());
        }
        // Tables in transit are found by the slow round over all Services: their end is in no hurry.
        if self.is_node_set_in_transit() && transits::is_news(old.as_ref(), node) {
            dirty.insert(Subject::NodeSets);
        }
        for service in &self.unpublished {
            let said = old.as_ref().map_or(Says::NotYet, |old| self.says(old, service));
            if said != self.says(node, service) {
                dirty.insert(Subject::Service(service.clone()));
            }
        }
        self.listen_to(&key, dirty);
    }

    /// What an LB node says that it announces, parsed, and whom that concerns.
    fn listen_to(&mut self, key: &Key, dirty: &mut Dirty) {
        let said = self
            .lb_nodes
            .by_key(key)
            .and_then(|node| node.status.as_ref()?.announcing.as_ref());
        let old = self.voices.get(&key.name);
        let Some(voice) = said.map(|said| Voice::after(old, said, self.now)) else {
            let now = self.now;
            if let Some(old) = self.voices.get_mut(&key.name) {
                old.falls_silent(now);
            }
            return;
        };
        if voice.is_news_after(old) {
            dirty.extend(self.all_announcing());
        }
        self.voices.insert(key.name.clone(), voice);
    }

    fn put_peer(&mut self, key: Key, stamp: Stamp, peer: BgpPeer, dirty: &mut Dirty) {
        dirty.insert(Subject::Peer(key.name.clone()));
        let peer = Peer::parse(peer);
        let old = self.peers.by_key(&key).map(|old| &old.object);
        // What others may have beside it, and who tells it.
        let is_same =
            old.is_some_and(|old| old.spec == peer.object.spec && old.metadata.labels == peer.object.metadata.labels);
        self.peers.put(key, stamp, peer);
        if !is_same {
            dirty.extend(self.all_announcing());
        }
    }

    /// An edit of what it selects is an edit of tables; all else is read from it by LB nodes.
    fn put_announcement(&mut self, key: Key, stamp: Stamp, announcement: Announcement, dirty: &mut Dirty) {
        dirty.insert(Subject::Announcement(key.name.clone()));
        let announcement = Announced::parse(announcement);
        let is_same = self
            .announcements
            .by_key(&key)
            .is_some_and(|old| old.selects_as(&announcement));
        self.announcements.put(key, stamp, announcement);
        if !is_same {
            dirty.extend(self.all_ours());
        }
    }

    fn put_lease(&mut self, key: Key, stamp: Stamp, lease: &Lease, dirty: &mut Dirty) {
        let Some((name, beat)) = Beat::parse(lease) else {
            return;
        };
        let now = self.now;
        let old = self.leases.by_key(&key).copied().flatten();
        let pulse = beat.map(|beat| Pulse::after(old, beat, now));
        self.leases.put(key, stamp, pulse);
        let lives = |pulse: Option<Pulse>| pulse.is_some_and(|pulse| pulse.at(now) == Life::Alive);
        if lives(pulse) && !lives(old) {
            dirty.extend(self.all_announcing());
        }
        if lives(pulse)
            && !lives(old)
            && let Some(node) = self.lb_nodes.by_key(&self.own(&name))
        {
            let woken = self
                .unpublished
                .iter()
                .filter(|service| self.says(node, service) == Says::On);
            dirty.extend(woken.cloned().map(Subject::Service));
        }
    }

    /// What an LB node says of the table of a Service of which clients do not know yet.
    fn says<'a>(&self, node: &'a LbNode, service: &Key) -> Says<'a> {
        let key = self.own(&VipTable::name_of(&service.namespace, &service.name));
        says(node, &key.name, self.tables.version(&key), false)
    }

    fn put_seed(&mut self, key: Key, stamp: Stamp, secret: &Secret, dirty: &mut Dirty) {
        if key.name != operator_api::SEED_SECRET {
            return;
        }
        let found = Found::parse(secret);
        if self.seeds.put(key.clone(), stamp, found).as_ref() != self.seeds.by_key(&key) {
            dirty.extend([Subject::Seed, Subject::NodeSets]);
        }
    }

    fn after_loss(&mut self, gone: Gone, dirty: &mut Dirty) -> BTreeSet<Key> {
        match gone {
            Gone::Nothing => {}
            Gone::Service(key) => {
                if self.table(&key).is_some() || self.claims.of_service(&key).next().is_some() {
                    dirty.insert(Subject::Orphans);
                }
                self.look_at(&key, dirty);
            }
            Gone::EndpointSlice(key, service) => {
                if let Some(service) = service {
                    self.endpoints.entry(service.clone()).or_default().remove(&key.name);
                    return BTreeSet::from([service]);
                }
            }
            Gone::Node(candidate) => {
                self.eligible -= usize::from(candidate.eligible().is_some());
                if candidate.may_have_connections() {
                    dirty.insert(Subject::NodeSets);
                }
            }
            Gone::Namespace(key, labels) => {
                if !labels.is_empty() {
                    self.namespace_changed(&key.name, dirty);
                }
            }
            Gone::Pool(key) => {
                let ranges = self
                    .pools
                    .by_name(&key.name)
                    .map(Pool::ranges)
                    .unwrap_or_default()
                    .to_vec();
                if self.pools.delete(&key.name) {
                    dirty.extend(self.all_announcing());
                    self.pool_changed(&key.name, ranges, dirty);
                }
            }
            Gone::Claim(key) => {
                let old = self.claim_of_name(&key.name).cloned();
                if self.claims.delete(&key.name) {
                    self.claim_changed(&key.name, old, dirty);
                }
            }
            Gone::Table(key) => {
                self.addressed.remove(&key);
                if let Some(service) = service_of_table(&key.name) {
                    self.look_at(&service, dirty);
                }
            }
            Gone::NodeSet => dirty.extend([Subject::NodeSets, Subject::Seed]),
            Gone::Tunnel => {
                dirty.insert(Subject::Tunnel);
            }
            Gone::LbNode(key) => {
                self.voices.remove(&key.name);
                dirty.insert(Subject::Tunnel);
                dirty.extend(self.all_announcing());
            }
            Gone::Peer => dirty.extend(self.all_announcing()),
            Gone::Announcement => dirty.extend(self.all_ours()),
            // What it programmed is programmed: the next look at each Service says on how many.
            Gone::Lease => {}
            Gone::Seed => dirty.extend([Subject::Seed, Subject::NodeSets]),
        }
        BTreeSet::new()
    }
}

fn holders_of(claim: &Claim) -> impl Iterator<Item = Key> {
    claim.holders().map(|holder| crate::ipam::key_of(&holder.service))
}

/// Whether a claim leaves anything that it had: a holder, or a port of one.
fn frees(old: &Claim, new: Option<&Claim>) -> bool {
    old.holders().any(|holder| {
        let kept = new.and_then(|new| new.holder(&holder.service));
        kept.is_none_or(|kept| holder.ports.iter().any(|port| !kept.ports.contains(port)))
    })
}

/// `None`: no table of ours has such a name.
pub(super) fn service_of_table(name: &str) -> Option<Key> {
    let (namespace, name) = name.split_once('.')?;
    Some(Key {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}
