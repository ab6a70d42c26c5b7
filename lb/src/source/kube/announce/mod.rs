//! What of announcing is watched, as a plain struct, and what it asks of this node: [`Announcing::said`].
//!
//! Never evaluates a selector: the operator writes which LB nodes an object is for. What cannot be used is left out alone, and named.

mod peer;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_core::{
    announce::{Member, Other, Selected, Told, WhenNone},
    bgp::{Announce, Announces, Names},
    config::{BgpConfig, BgpPeer, MAX_BGP_PEERS},
};
use operator_api::{
    AnnouncementSpec, AnnouncementStatus, BgpPeerSpec, BgpPeerStatus, LbNodeSpec, LbNodeStatus, WhenNoBackend,
};
use serde::{Deserialize, Serialize};

use self::peer::PeerError;
use super::{object::Object, watch};

/// A spec and what the operator, or the LB node itself, made of it.
pub type Both<S, T> = (S, Option<T>);
type Objects<S, T> = BTreeMap<Arc<str>, Arc<Both<S, T>>>;

/// How VIP addresses are announced, by address: names of Announcements, or `None`: by default.
pub type AddressNames = BTreeMap<IpAddr, Option<Names>>;

/// Everything that is watched of announcing.
#[derive(Clone, Debug, Default)]
pub struct Announcing {
    announcements: Objects<AnnouncementSpec, AnnouncementStatus>,
    peers: Objects<BgpPeerSpec, BgpPeerStatus>,
    nodes: BTreeMap<Arc<str>, Node>,
    /// By key of the Secret.
    passwords: BTreeMap<String, Arc<[u8]>>,
    /// Whether each was known as a whole at least once: Announcements, peers, LB nodes.
    known: [bool; 3],
}

/// What is read of another LB node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Node {
    places: Vec<IpNet>,
    is_listened_to: bool,
    unserved: Option<BTreeSet<IpAddr>>,
}

impl Node {
    fn read((_, status): &Both<LbNodeSpec, LbNodeStatus>) -> Self {
        let Some(said) = status.as_ref().and_then(|status| status.announcing.as_ref()) else {
            return Self::default();
        };
        let is_whole = usize::try_from(said.unserved_count).is_ok_and(|count| count == said.unserved.len());
        let unserved = said.unserved.iter().filter_map(|text| text.parse().ok());
        Self {
            places: said.places.iter().filter_map(|text| text.parse().ok()).collect(),
            is_listened_to: said.draining.is_none() && said.bgp.as_ref().is_some_and(|bgp| bgp.established > 0),
            unserved: is_whole.then(|| unserved.collect()),
        }
    }
}

/// What the cluster asks of announcing, but for which addresses there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// All of it is known.
    pub is_known: bool,
    /// Routers of this node; `None`: it has none.
    pub bgp: Option<BgpConfig>,
    /// Announcements by name.
    ways: BTreeMap<Arc<str>, Way>,
    /// Other LB nodes, and where they are heard.
    places: BTreeMap<Member, Vec<IpNet>>,
    others: BTreeMap<Member, Other>,
    /// What cannot be used, and why.
    pub faults: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    bgp: Option<WhenNone>,
    l2: Option<bool>,
    nodes: Arc<BTreeSet<Member>>,
}

impl Announcing {
    /// Takes in what was heard of a kind; whether it was news.
    pub(super) fn take<S>(&mut self, part: Part, told: watch::Told<S>, put: fn(&mut Self, Object<S>) -> bool) -> bool {
        match told {
            watch::Told::List(list) => {
                let listed = list.iter().map(|object| Arc::clone(&object.name)).collect();
                let mut news = false;
                for object in list {
                    news |= put(self, object);
                }
                self.keep(part, &listed) || news
            }
            watch::Told::Apply(object) => put(self, object),
            watch::Told::Delete(name, _) => self.delete(part, &name),
            watch::Told::Away(_) | watch::Told::Back => false,
        }
    }

    /// Puts an Announcement in the place of its earlier version, or takes it out; whether that is news.
    pub fn put_announcement(&mut self, object: Object<Both<AnnouncementSpec, AnnouncementStatus>>) -> bool {
        put(&mut self.announcements, object)
    }

    /// The same of a BgpPeer.
    pub fn put_peer(&mut self, object: Object<Both<BgpPeerSpec, BgpPeerStatus>>) -> bool {
        put(&mut self.peers, object)
    }

    /// The same of an LB node.
    pub fn put_node(&mut self, object: Object<Both<LbNodeSpec, LbNodeStatus>>) -> bool {
        let Ok(both) = object.spec else { return false };
        let node = Node::read(&both);
        self.nodes.insert(object.name, node.clone()) != Some(node)
    }

    /// Takes one out by name; whether there was one.
    pub fn delete(&mut self, kind: Part, name: &str) -> bool {
        match kind {
            Part::Announcements => self.announcements.remove(name).is_some(),
            Part::Peers => self.peers.remove(name).is_some(),
            Part::Nodes => self.nodes.remove(name).is_some(),
        }
    }

    /// A whole list was put: what is not in it goes. Whether that is news.
    pub fn keep(&mut self, kind: Part, listed: &BTreeSet<Arc<str>>) -> bool {
        let known = self
            .known
            .get_mut(kind as usize)
            .map(|known| std::mem::replace(known, true));
        let gone = match kind {
            Part::Announcements => retain(&mut self.announcements, listed),
            Part::Peers => retain(&mut self.peers, listed),
            Part::Nodes => retain(&mut self.nodes, listed),
        };
        gone || known == Some(false)
    }

    /// Passwords by key; whether that is news.
    pub fn set_passwords(&mut self, passwords: BTreeMap<String, Arc<[u8]>>) -> bool {
        let is_news = self.passwords != passwords;
        self.passwords = passwords;
        is_news
    }

    /// What it asks of the LB node of this name.
    pub fn said(&self, node: &str) -> Said {
        let is_for = |nodes: &[String]| nodes.iter().any(|name| name == node);
        let mut faults = Vec::new();
        let mut ways = BTreeMap::new();
        // By peer, and by Announcement.
        let mut told: BTreeMap<&str, BTreeMap<Arc<str>, Announce>> = BTreeMap::new();
        for (name, both) in &self.announcements {
            let (spec, Some(status)) = &**both else { continue };
            let nodes: BTreeSet<Member> = status.nodes.iter().map(|name| Member::from(name.as_str())).collect();
            let way = Way {
                bgp: spec.bgp.as_ref().map(|bgp| when_none(bgp.when_no_backend)),
                l2: spec.l2.as_ref().map(|l2| l2.probe),
                nodes: Arc::new(nodes),
            };
            ways.insert(Arc::clone(name), way);
            let Some(bgp) = spec.bgp.as_ref().filter(|_| is_for(&status.nodes)) else {
                continue;
            };
            for peer in &status.peers {
                let asns = self.peers.get(peer.as_str()).map(|both| (both.0.asn, both.0.local_asn));
                match peer::announce(bgp, asns.is_some_and(|(asn, ours)| asn != ours)) {
                    Ok(announce) => {
                        told.entry(peer).or_default().insert(Arc::clone(name), announce);
                    }
                    Err(error) => faults.push(format!("Announcement {name}: {error}")),
                }
            }
        }
        let mut bgp: Option<BgpConfig> = None;
        for (name, both) in &self.peers {
            let (spec, Some(status)) = &**both else { continue };
            if !is_for(&status.nodes) {
                continue;
            }
            let announces = Announces::Named(told.remove(&**name).unwrap_or_default());
            if let Err(error) = self.add_peer(&mut bgp, name, spec, announces) {
                faults.push(format!("BgpPeer {name}: {error}"));
            }
        }
        let others = self.nodes.iter().filter(|(name, _)| &***name != node);
        let other = |(name, other): (&Arc<str>, &Node)| {
            let said = Other {
                is_listened_to: other.is_listened_to,
                unserved: other.unserved.clone(),
            };
            (Arc::clone(name), said)
        };
        Said {
            is_known: self.known == [true; 3],
            bgp,
            ways,
            places: others
                .clone()
                .map(|(name, node)| (Arc::clone(name), node.places.clone()))
                .collect(),
            others: others.map(other).collect(),
            faults,
        }
    }

    fn add_peer(
        &self,
        bgp: &mut Option<BgpConfig>,
        name: &Arc<str>,
        spec: &BgpPeerSpec,
        announces: Announces,
    ) -> Result<(), PeerError> {
        let peer: BgpPeer = peer::read(name, spec, announces, &self.passwords)?;
        let bgp = bgp.get_or_insert_with(|| BgpConfig {
            local_asn: spec.local_asn,
            router_id: None,
            listen_port: None,
            when_no_backend: WhenNone::Elsewhere,
            peers: Vec::new(),
        });
        if bgp.local_asn != spec.local_asn {
            return Err(PeerError::LocalAsn {
                ours: bgp.local_asn,
                theirs: spec.local_asn,
            });
        }
        if let Some(first) = bgp.peers.iter().find(|first| first.address == peer.address) {
            return Err(PeerError::SameAddress {
                address: peer.address,
                first: Arc::clone(&first.name),
            });
        }
        if bgp.peers.len() == MAX_BGP_PEERS {
            return Err(PeerError::TooMany);
        }
        if peer.session.passive {
            bgp.listen_port = Some(lb_core::config::BGP_PORT);
        }
        bgp.peers.push(peer);
        Ok(())
    }

    /// For the cache.
    pub fn kept(&self) -> Kept {
        let text = |bytes: &Arc<[u8]>| String::from_utf8_lossy(bytes).into_owned();
        Kept {
            announcements: self.announcements.clone(),
            peers: self.peers.clone(),
            nodes: self.nodes.clone(),
            passwords: self
                .passwords
                .iter()
                .map(|(key, value)| (key.clone(), text(value)))
                .collect(),
            is_known: self.known == [true; 3],
        }
    }

    /// From the cache.
    pub fn recall(kept: Kept) -> Self {
        Self {
            announcements: kept.announcements,
            peers: kept.peers,
            nodes: kept.nodes,
            passwords: kept
                .passwords
                .into_iter()
                .map(|(key, text)| (key, text.into_bytes().into()))
                .collect(),
            known: [kept.is_known; 3],
        }
    }
}

/// A kind of what is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Announcements.
    Announcements,
    /// BgpPeers.
    Peers,
    /// LB nodes.
    Nodes,
}

/// What of it stands in the cache, which only root reads.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Kept {
    announcements: Objects<AnnouncementSpec, AnnouncementStatus>,
    peers: Objects<BgpPeerSpec, BgpPeerStatus>,
    nodes: BTreeMap<Arc<str>, Node>,
    passwords: BTreeMap<String, String>,
    is_known: bool,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl Said {
    /// By what addresses are announced, where what is watched apart is not known together yet: an address with the name of an
    /// Announcement that is new here stays with those that it had `before`, until that one is known. One that has ended is none.
    #[must_use]
    pub fn settled(&self, mut names: AddressNames, before: &AddressNames) -> AddressNames {
        for (address, of) in &mut names {
            let (Some(new), Some(old)) = (of.as_ref(), before.get(address)) else {
                continue;
            };
            let had = |name: &Arc<str>| old.as_ref().is_some_and(|old| old.contains(name));
            if new.iter().any(|name| !self.ways.contains_key(name) && !had(name)) {
                of.clone_from(old);
            }
        }
        names
    }

    /// What is announced of these addresses by the LB node of this name, which has these places; and with whom it shares segments.
    pub fn told(&self, node: &Member, names: &AddressNames, places: &BTreeSet<IpNet>) -> Shared {
        let everybody: BTreeSet<Member> = self.places.keys().cloned().chain([Arc::clone(node)]).collect();
        let everybody = Arc::new(everybody);
        let (mut routers, mut segments) = (BTreeMap::new(), BTreeMap::new());
        let mut probes = false;
        let is_connected = |address: &IpAddr| places.iter().any(|place| place.contains(address));
        let networks = self.networks();
        // Few: as many as there are Announcements and networks.
        let mut on_network: BTreeMap<Where, Arc<BTreeSet<Member>>> = BTreeMap::new();
        // Addresses with the same names have the same of everything.
        let mut of_names: BTreeMap<&Names, (Option<Selected>, Option<L2Way>)> = BTreeMap::new();
        for (address, names) in names.iter().filter(|_| self.is_known) {
            let (router, segment) = match names {
                None => (None, Some((Arc::clone(&everybody), true))),
                Some(names) => of_names.entry(names).or_insert_with(|| self.of(names, node)).clone(),
            };
            if let Some(selected) = router {
                routers.insert(*address, selected);
            }
            if let Some((candidates, probe)) = segment.filter(|_| is_connected(address)) {
                probes |= probe;
                let of_address = networks.iter().filter(|(network, _)| network.contains(address));
                let of_address: Vec<IpNet> = of_address.map(|(network, _)| *network).collect();
                let there = on_network.entry((Arc::as_ptr(&candidates), of_address));
                let there = there.or_insert_with_key(|(_, of_address)| {
                    let is_there = |name: &&Member| {
                        let mut networks = of_address.iter().filter_map(|network| networks.get(network));
                        *name == node || networks.any(|there| there.contains(*name))
                    };
                    Arc::new(candidates.iter().filter(is_there).cloned().collect())
                });
                segments.insert(*address, Arc::clone(there));
            }
        }
        // The first network of both, and the first address of each there: both say the same of each other.
        let shared = |theirs: &Vec<IpNet>| {
            let ours = places
                .iter()
                .filter(|place| place.prefix_len() < place.max_prefix_len());
            let both = |ours: &IpNet| {
                let theirs = theirs.iter().filter(|place| place.trunc() == ours.trunc());
                Some((theirs.map(IpNet::addr).min()?, ours.addr()))
            };
            ours.filter_map(both).next()
        };
        let members = self
            .places
            .iter()
            .filter_map(|(name, theirs)| Some((Arc::clone(name), shared(theirs)?)));
        Shared {
            told: Told {
                routers: Some(routers),
                segments: Some(segments),
                is_awaited: !self.is_known,
                others: self.others.clone(),
            },
            members: members.collect(),
            probes,
        }
    }

    /// Networks that other LB nodes are on, and who.
    fn networks(&self) -> BTreeMap<IpNet, BTreeSet<&Member>> {
        let mut networks: BTreeMap<IpNet, BTreeSet<&Member>> = BTreeMap::new();
        for (name, places) in &self.places {
            for place in places {
                networks.entry(place.trunc()).or_default().insert(name);
            }
        }
        networks
    }

    fn of(&self, names: &Names, node: &Member) -> (Option<Selected>, Option<L2Way>) {
        let ways = || names.iter().filter_map(|name| self.ways.get(name));
        let united = |ways: Vec<&Way>| -> Arc<BTreeSet<Member>> {
            match ways.as_slice() {
                [one] => Arc::clone(&one.nodes),
                many => Arc::new(many.iter().flat_map(|way| way.nodes.iter().cloned()).collect()),
            }
        };
        // Those of other LB nodes only are not this one's.
        let mut by_bgp = ways().filter(|way| way.nodes.contains(node)).filter_map(|way| way.bgp);
        let router = by_bgp.next().map(|when_none| Selected {
            names: Arc::clone(names),
            when_none,
            nodes: united(ways().filter(|way| way.bgp.is_some()).collect()),
        });
        let by_l2: Vec<&Way> = ways().filter(|way| way.l2.is_some()).collect();
        let probe = by_l2.iter().any(|way| way.l2 == Some(true));
        let segment = (!by_l2.is_empty()).then(|| (united(by_l2), probe));
        (router, segment.filter(|(nodes, _)| nodes.contains(node)))
    }
}

/// Of which LB nodes, and on which networks: those are the candidates of all addresses that have both in common.
type Where = (*const BTreeSet<Member>, Vec<IpNet>);

/// Who may have an address on a segment, and whether it is asked for before.
type L2Way = (Arc<BTreeSet<Member>>, bool);

/// What is announced, and with whom segments are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// What is announced.
    pub told: Told,
    /// Other LB nodes on this node's segments, where they are heard, and this node's own address there.
    pub members: BTreeMap<Member, (IpAddr, IpAddr)>,
    /// Addresses are asked for before they are answered for.
    pub probes: bool,
}

const fn when_none(said: WhenNoBackend) -> WhenNone {
    match said {
        WhenNoBackend::Elsewhere => WhenNone::Elsewhere,
        WhenNoBackend::Stay => WhenNone::Stay,
        WhenNoBackend::Withdraw => WhenNone::Withdraw,
    }
}

fn put<S: PartialEq, T: PartialEq>(objects: &mut Objects<S, T>, object: Object<Both<S, T>>) -> bool {
    // One that cannot be read, of a later version perhaps, changes nothing.
    let Ok(both) = object.spec else { return false };
    let is_news = objects.get(&object.name).is_none_or(|known| **known != both);
    if is_news {
        objects.insert(object.name, Arc::new(both));
    }
    is_news
}

fn retain<V>(objects: &mut BTreeMap<Arc<str>, V>, listed: &BTreeSet<Arc<str>>) -> bool {
    let before = objects.len();
    objects.retain(|name, _| listed.contains(name));
    objects.len() != before
}
