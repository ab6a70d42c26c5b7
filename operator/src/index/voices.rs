//! What LB nodes say that they announce, and what that means for an address.
//!
//! Never looks at an LbNode's text twice: it is parsed when it comes. Never takes a session for lost at once: routers flap, and
//! each loss would cost a write of every Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use operator_api::{
    AnnouncementStatus, Announcing, EXCEPTION_ADDRESS_IN_USE, EXCEPTION_NO_BACKEND, EXCEPTION_WAITS, Origin,
    VipAddress, Way,
};

use super::{Index, lb_nodes::Life};

/// A session that ended is taken for established so long.
const LINGER: SignedDuration = SignedDuration::from_secs(10);
/// Networks that a message names.
const NAMED: usize = 4;

/// What an LB node says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Voice {
    pub(super) bgp: Option<Bgp>,
    l2: Option<L2>,
    exceptions: BTreeMap<(IpAddr, Way), (String, String)>,
    pub(super) is_draining: bool,
    /// When peers were lost that it had, by name.
    lost: BTreeMap<String, Timestamp>,
    /// Since when it says nothing any more: it may just have started.
    mute_since: Option<Timestamp>,
}

/// What it says of BGP.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bgp {
    pub(super) origin: Origin,
    /// Peers with which a session is established, by name, as far as it names them.
    pub(super) peers: BTreeSet<String>,
    /// Peers that it names.
    named: BTreeSet<String>,
    established: u32,
}

/// What it says of L2.
#[derive(Debug, PartialEq, Eq)]
struct L2 {
    origin: Origin,
    networks: Vec<IpNet>,
}

impl Voice {
    /// After what it said before.
    pub(super) fn after(old: Option<&Self>, said: &Announcing, now: Timestamp) -> Self {
        let bgp = said.bgp.as_ref().map(|bgp| {
            let up = bgp.peers.iter().filter(|peer| peer.established);
            Bgp {
                origin: bgp.origin,
                peers: up.map(|peer| peer.name.clone()).collect(),
                named: bgp.peers.iter().map(|peer| peer.name.clone()).collect(),
                established: bgp.established,
            }
        });
        let l2 = said.l2.as_ref().map(|l2| L2 {
            origin: l2.origin,
            networks: l2.networks.iter().filter_map(|network| network.parse().ok()).collect(),
        });
        let exceptions = said.exceptions.iter().filter_map(|it| {
            let address: IpAddr = it.address.parse().ok()?;
            Some(((address, it.way), (it.reason.clone(), it.why.clone())))
        });
        let is_up = |name: &String| bgp.as_ref().is_some_and(|bgp| bgp.peers.contains(name));
        let mut lost: BTreeMap<String, Timestamp> = BTreeMap::new();
        if let Some(old) = old {
            let since = |then: Timestamp| now.duration_since(then) < LINGER;
            lost.extend(
                old.lost
                    .iter()
                    .filter(|(_, then)| since(**then))
                    .map(|(name, then)| (name.clone(), *then)),
            );
            lost.extend(
                old.bgp
                    .iter()
                    .flat_map(|bgp| &bgp.peers)
                    .map(|name| (name.clone(), now)),
            );
            lost.retain(|name, _| !is_up(name));
        }
        Self {
            l2,
            exceptions: exceptions.collect(),
            is_draining: said.draining.is_some(),
            lost,
            mute_since: None,
            bgp,
        }
    }

    /// It says nothing of it any more.
    pub(super) fn falls_silent(&mut self, now: Timestamp) {
        self.mute_since.get_or_insert(now);
    }

    /// Whether BgpPeers and Announcements have to be looked at for what it says.
    pub(super) fn is_news_after(&self, old: Option<&Self>) -> bool {
        old.is_none_or(|old| old.bgp != self.bgp || old.is_draining != self.is_draining)
    }

    /// Whether a session with a peer is established, or was a moment ago. Of one that is not named, for want of room, it is believed
    /// where more are established than are named.
    fn has(&self, peer: &str, now: Timestamp) -> bool {
        let is_up = self.bgp.as_ref().is_some_and(|bgp| {
            let is_more = usize::try_from(bgp.established).is_ok_and(|count| count > bgp.peers.len());
            bgp.peers.contains(peer) || (is_more && !bgp.named.contains(peer))
        });
        is_up
            || self
                .lost
                .get(peer)
                .is_some_and(|then| now.duration_since(*then) < LINGER)
    }
}

/// Whether and how an address is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aired {
    /// It is: by whose word, for each way.
    By {
        /// By BGP.
        bgp: Option<String>,
        /// By L2.
        l2: Option<String>,
        /// What one of them cannot do for all that.
        but: Option<String>,
    },
    /// It is not.
    Not {
        /// In UpperCamelCase.
        reason: &'static str,
        /// In words.
        why: String,
    },
    /// LB nodes are about to.
    Soon,
    /// No LB node says what it announces.
    Unsaid,
}

/// What is heard of one address; names are of Announcements.
#[derive(Default)]
struct Heard<'a> {
    alive: usize,
    silent: usize,
    drained: usize,
    /// LB nodes that are to announce it.
    meant: usize,
    bgp: BTreeSet<&'a str>,
    l2: BTreeSet<&'a str>,
    bgp_wanted: BTreeSet<&'a str>,
    l2_wanted: bool,
    in_use: Option<String>,
    waits: bool,
    except: Option<(&'static str, String)>,
    networks: BTreeSet<IpNet>,
}

const FILES: &str = "LB nodes' files";
const DEFAULT: &str = "default";

impl Index {
    /// What an LB node says, or said a moment ago.
    pub(super) fn voice(&self, lb_node: &str) -> Option<&Voice> {
        let is_heard = |voice: &&Voice| {
            let since = voice.mute_since;
            since.is_none_or(|since| self.now.duration_since(since) < LINGER)
        };
        self.voices.get(lb_node).filter(is_heard)
    }

    /// Whether and how an address of a table is announced, as LB nodes say.
    pub fn aired(&self, address: &VipAddress) -> Aired {
        let Some(ip) = address.ip() else { return Aired::Soon };
        let names = address.announcements.as_deref();
        let told = names.unwrap_or_default().iter();
        let asked = Asked {
            ip,
            told: told
                .filter_map(|name| Some((name.as_str(), self.announcement(name)?.status.as_ref()?)))
                .collect(),
            is_default: names.is_none(),
        };
        let mut heard = Heard::default();
        for (key, _) in self.lb_nodes.iter() {
            if self.life(&key.name) == Life::Dead {
                continue;
            }
            heard.alive += 1;
            match self.voice(&key.name) {
                None => heard.silent += 1,
                Some(voice) if voice.is_draining => heard.drained += 1,
                Some(voice) => heard.hear(&key.name, voice, &asked, self.now),
            }
        }
        heard.meaning(ip, names)
    }
}

/// An address, and who is to announce it.
struct Asked<'a> {
    ip: IpAddr,
    told: Vec<(&'a str, &'a AnnouncementStatus)>,
    /// No Announcement names its pool.
    is_default: bool,
}

impl<'a> Heard<'a> {
    /// What one LB node says of an address.
    fn hear(&mut self, name: &str, voice: &Voice, asked: &Asked<'a>, now: Timestamp) {
        // Their names are sorted.
        let is_for = |status: &AnnouncementStatus| status.nodes.binary_search_by(|it| it.as_str().cmp(name)).is_ok();
        let told = || asked.told.iter().filter(|(_, status)| is_for(status));

        let bgp = voice.bgp.as_ref();
        if let Some(bgp) = bgp.filter(|bgp| bgp.origin == Origin::File) {
            self.meant += 1;
            if bgp.established > 0 && !self.except(voice, asked.ip, Way::Bgp) {
                self.bgp.insert(FILES);
            }
        } else {
            for (announcement, status) in told() {
                self.meant += 1;
                if status.peers.iter().any(|peer| voice.has(peer, now)) {
                    if !self.except(voice, asked.ip, Way::Bgp) {
                        self.bgp.insert(announcement);
                    }
                } else if !status.peers.is_empty() {
                    self.bgp_wanted.insert(announcement);
                }
            }
        }

        let l2 = voice.l2.as_ref();
        let mut by: Vec<&'a str> = Vec::new();
        if l2.is_some_and(|l2| l2.origin == Origin::File) {
            by.push(FILES);
        } else if asked.is_default {
            by.push(DEFAULT);
        } else {
            by.extend(told().filter(|(_, status)| status.l2).map(|(name, _)| *name));
        }
        if by.is_empty() {
            return;
        }
        self.meant += 1;
        self.l2_wanted = true;
        let networks = l2.map(|l2| l2.networks.as_slice()).unwrap_or_default();
        if !networks.iter().any(|network| network.contains(&asked.ip)) {
            self.networks.extend(networks.iter().map(IpNet::trunc));
        } else if !self.except(voice, asked.ip, Way::L2) {
            self.l2.extend(by);
        }
    }

    /// Whether an LB node leaves an address out, for a reason that is noted.
    fn except(&mut self, voice: &Voice, ip: IpAddr, way: Way) -> bool {
        let Some((reason, why)) = voice.exceptions.get(&(ip, way)) else {
            return false;
        };
        match reason.as_str() {
            EXCEPTION_ADDRESS_IN_USE => self.in_use = Some(why.clone()),
            EXCEPTION_WAITS => self.waits = true,
            EXCEPTION_NO_BACKEND => self.except = Some((EXCEPTION_NO_BACKEND, why.clone())),
            other => {
                let why = if why.is_empty() { other.to_owned() } else { why.clone() };
                self.except.get_or_insert(("NotAnnounced", why));
            }
        }
        true
    }

    fn meaning(self, ip: IpAddr, announcements: Option<&[String]>) -> Aired {
        // Of the LB nodes on a segment one answers for it: others know of no other host.
        let by_l2 = if self.in_use.is_some() {
            BTreeSet::new()
        } else {
            self.l2
        };
        if !self.bgp.is_empty() || !by_l2.is_empty() {
            return Aired::By {
                bgp: by(&self.bgp),
                l2: by(&by_l2),
                but: self.in_use.map(|why| format!("not by L2: {why}")),
            };
        }
        let not = |reason, why: String| Aired::Not { reason, why };
        if self.alive == 0 {
            return not("NoLbNode", "no LB node is alive".to_owned());
        }
        if self.silent == self.alive {
            return Aired::Unsaid;
        }
        if let Some(why) = self.in_use {
            return not("AddressInUse", why);
        }
        if announcements.is_some_and(<[String]>::is_empty) {
            return not(
                "NoAnnouncement",
                "Announcements name its pool, and none selects this Service".to_owned(),
            );
        }
        if self.waits {
            return Aired::Soon;
        }
        if self.silent > 0 {
            return Aired::Unsaid;
        }
        if let Some((reason, why)) = self.except {
            return not(reason, why);
        }
        if self.meant == 0 {
            return if self.drained > 0 {
                not("Draining", "the LB nodes that it is for are drained".to_owned())
            } else {
                let names = announcements.unwrap_or_default().iter().map(String::as_str).collect();
                not(
                    "NoLbNode",
                    format!("no live LB node is of {}", announcements_of(&names)),
                )
            };
        }
        let unconnected = || {
            let networks: Vec<String> = self.networks.iter().take(NAMED).map(ToString::to_string).collect();
            let networks = match (networks.is_empty(), self.networks.len().checked_sub(NAMED)) {
                (true, _) => "none".to_owned(),
                (false, Some(more @ 1..)) => format!("{} and {more} more", networks.join(", ")),
                (false, _) => networks.join(", "),
            };
            format!("no LB node has a network with {ip} (they have {networks})")
        };
        if self.bgp_wanted.is_empty() {
            return not("NotConnected", unconnected());
        }
        let mut why = format!("no session is established of {}", announcements_of(&self.bgp_wanted));
        if self.l2_wanted {
            why.push_str(", and ");
            why.push_str(&unconnected());
        }
        not("NoPeer", why)
    }
}

/// By whose word, in words.
fn by(names: &BTreeSet<&str>) -> Option<String> {
    let (own, named): (BTreeSet<&str>, BTreeSet<&str>) =
        names.iter().copied().partition(|name| [FILES, DEFAULT].contains(name));
    let mut words: Vec<String> = own.into_iter().map(str::to_owned).collect();
    words.extend((!named.is_empty()).then(|| announcements_of(&named)));
    (!words.is_empty()).then(|| words.join(", "))
}

fn announcements_of(names: &BTreeSet<&str>) -> String {
    let words: Vec<&str> = names.iter().copied().collect();
    let plural = if words.len() == 1 { "" } else { "s" };
    format!("Announcement{plural} {}", words.join(", "))
}
