//! `bgp`: the routers that this node announces its VIPs to.
//!
//! Never reads a password's file, and never looks whether an address is this node's.

mod problem;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
};

pub use problem::BgpProblem;

use super::{
    BfdConfig, absolute_path, address, bfd as config,
    problem::Problem,
    read::{At, Fields, Spot},
    sets,
    words::Quoted,
};
use crate::{
    announce::WhenNone,
    bfd,
    bgp::{Announce, Announces, Attributes, Families, MAX_COMMUNITIES, MAX_PREPEND, PeerConfig},
};

/// Peers of a node: each has a session, a task and its routes, some 200 bytes a route.
pub const MAX_BGP_PEERS: usize = 64;
/// BGP's port.
pub const BGP_PORT: u16 = 179;
/// Default of [`PeerConfig::hold_s`].
const DEFAULT_HOLD_S: u16 = 90;
/// [`PeerConfig::hold_s`]: RFC 4271 4.2 has no shorter one.
const HOLDS_S: RangeInclusive<u16> = 3..=65535;
/// Default of [`PeerConfig::connect_retry_s`].
const DEFAULT_RETRY_S: u16 = 5;
/// Default of [`PeerConfig::restart_time_s`] where `graceful_restart` is there.
const DEFAULT_RESTART_S: u16 = 120;
/// [`PeerConfig::restart_time_s`]: twelve bits of the capability (RFC 4724 3).
const RESTARTS_S: RangeInclusive<u16> = 1..=4095;

/// `bgp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpConfig {
    /// This node's ASN.
    pub local_asn: u32,
    /// This node's name in BGP; `None`: its first IPv4 address.
    pub router_id: Option<Ipv4Addr>,
    /// Where peers may connect; `None`: nowhere.
    pub listen_port: Option<u16>,
    /// What becomes of an address without a backend.
    pub when_no_backend: WhenNone,
    /// Whom to announce to, in the order of the file; their addresses and names are different.
    pub peers: Vec<BgpPeer>,
}

/// A router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeer {
    /// How people and metrics call it.
    pub name: Arc<str>,
    /// Where it is.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// What TCP segments are signed with (RFC 2385).
    pub password: Option<Password>,
    /// Our address on the session; `None`: the one that the route there has.
    pub source: Option<IpAddr>,
    /// How far it may be away.
    pub reach: Reach,
    /// The session.
    pub session: PeerConfig,
    /// What it is told.
    pub announces: Announces,
    /// How its silence is noticed before the hold time is over; `None`: not at all.
    pub bfd: Option<BfdConfig>,
}

/// A password, of 1 to 80 bytes.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// The first line of a file; an absolute path. Read for each connection.
    File(PathBuf),
    /// Itself.
    Given(Arc<[u8]>),
    /// There is to be one, and it is not known: there is no session without it.
    Missing,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Given(_) => f.write_str("Given"),
            Self::Missing => f.write_str("Missing"),
        }
    }
}

/// How far a peer may be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Our packets live for so many hops.
    Hops(u8),
    /// Its packets must have come over no more hops than these, and say so by a TTL of 255 at first (RFC 5082).
    Secured(u8),
}

/// `bgp`.
pub(super) fn bgp(at: &At<'_>) -> Option<BgpConfig> {
    at.fields(|fields| {
        let local_asn = fields.required("local_asn").and_then(|at| at.within(1, u32::MAX));
        let router_id = fields.or("router_id", None, |at| address::unicast_v4(&at).map(Some));
        let listen_port = fields.or("listen_port", None, |at| at.within(1, u16::MAX).map(Some));
        let restart_time_s = fields.or("graceful_restart", None, |at| {
            at.fields(|fields| within(fields, "restart_time_s", DEFAULT_RESTART_S, RESTARTS_S).map(Some))
        });
        let when_no_backend = fields.or("when_no_backend", WhenNone::default(), |at| match at.text()? {
            "stay" => Some(WhenNone::Stay),
            "withdraw" => Some(WhenNone::Withdraw),
            other => at.fail(Problem::NotOneOf {
                value: Quoted::new(other),
                allowed: &["stay", "withdraw"],
            }),
        });
        let peers = fields.required("peers").and_then(|at| {
            let all = Ours {
                local_asn,
                // One that cannot be read has noted it.
                listens: listen_port.is_none_or(|port| port.is_some()),
                restart_time_s: restart_time_s.flatten(),
            };
            peers(&at, &all)
        });
        Some(BgpConfig {
            local_asn: local_asn?,
            router_id: router_id?,
            listen_port: listen_port?,
            when_no_backend: when_no_backend?,
            peers: peers?,
        })
    })
}

/// What all peers have of ours.
struct Ours {
    local_asn: Option<u32>,
    listens: bool,
    restart_time_s: Option<u16>,
}

fn peers(at: &At<'_>, ours: &Ours) -> Option<Vec<BgpPeer>> {
    let items = at.list()?;
    if items.is_empty() {
        return at.fail(Problem::EmptyList {
            hint: "list a router at least, or remove `bgp`",
        });
    }
    let count = items.len();
    if count > MAX_BGP_PEERS {
        return at.fail(BgpProblem::TooManyPeers { count }.into());
    }
    let mut addresses: BTreeMap<IpAddr, Spot> = BTreeMap::new();
    let mut names: BTreeMap<Arc<str>, Spot> = BTreeMap::new();
    let read: Vec<Option<BgpPeer>> = items
        .iter()
        .map(|at| {
            let peer = peer(at, ours)?;
            let mut right = true;
            if let Some(first) = addresses.insert(peer.address, at.spot().clone()) {
                let (address, first) = (peer.address, first.to_string());
                at.note(BgpProblem::DuplicatePeer { address, first }.into());
                right = false;
            }
            if let Some(first) = names.insert(Arc::clone(&peer.name), at.spot().clone()) {
                let (name, first) = (Quoted::new(&peer.name), first.to_string());
                at.note(BgpProblem::DuplicateName { name, first }.into());
                right = false;
            }
            right.then_some(peer)
        })
        .collect();
    read.into_iter().collect()
}

fn peer(at: &At<'_>, ours: &Ours) -> Option<BgpPeer> {
    at.fields(|fields| {
        let address = fields.required("address").and_then(|at| address::unicast(&at));
        let peer_asn = fields.required("asn").and_then(|at| at.within(1, u32::MAX));
        let name = fields.or("name", None, |at| sets::name(&at).map(|name| Some(Arc::from(name))));
        let port = fields.or("port", BGP_PORT, |at| at.within(1, u16::MAX));
        let password_file = fields.or("password_file", None, |at| absolute_path(&at).map(Some));
        let source = fields.or("source", None, |at| source(&at, address).map(Some));
        let is_ebgp = peer_asn.zip(ours.local_asn).map(|(peer, ours)| peer != ours);
        let reach = reach(fields, is_ebgp);
        let families = fields.or("families", Families { v4: true, v6: true }, |at| families(&at));
        let hold_s = within(fields, "hold_time_s", DEFAULT_HOLD_S, HOLDS_S);
        let connect_retry_s = within(fields, "connect_retry_s", DEFAULT_RETRY_S, 1..=3600);
        let passive = fields.or("passive", false, |at| {
            let passive = at.bool()?;
            if passive && !ours.listens {
                return at.fail(BgpProblem::PassiveUnheard.into());
            }
            Some(passive)
        });
        let next_hop_v4 = fields.or("next_hop_v4", None, |at| address::unicast_v4(&at).map(Some));
        let next_hop_v6 = fields.or("next_hop_v6", None, |at| address::unicast_v6(&at).map(Some));
        let announce = announce(fields, is_ebgp);
        let bfd = fields.or("bfd", None, |at| {
            let is_near = matches!(reach, Some(Reach::Hops(1) | Reach::Secured(1)));
            let reach = if is_near {
                bfd::Reach::SingleHop
            } else {
                bfd::Reach::Multihop
            };
            config::bfd(&at, reach).map(Some)
        });
        let address = address?;
        Some(BgpPeer {
            name: name?.unwrap_or_else(|| address.to_string().into()),
            address,
            port: port?,
            password: password_file?.map(Password::File),
            source: source?,
            reach: reach?,
            session: PeerConfig {
                local_asn: ours.local_asn?,
                peer_asn: peer_asn?,
                families: families?,
                hold_s: hold_s?,
                connect_retry_s: connect_retry_s?,
                passive: passive?,
                next_hop_v4: next_hop_v4?,
                next_hop_v6: next_hop_v6?,
                restart_time_s: ours.restart_time_s,
            },
            announces: Announces::All(announce?),
            bfd: bfd?,
        })
    })
}

fn within(fields: &mut Fields<'_>, key: &'static str, default: u16, range: RangeInclusive<u16>) -> Option<u16> {
    fields.or(key, default, |at| at.within(*range.start(), *range.end()))
}

/// An address of the peer's family.
fn source(at: &At<'_>, peer: Option<IpAddr>) -> Option<IpAddr> {
    match peer {
        None => address::unicast(at),
        Some(IpAddr::V4(_)) => address::unicast_v4(at).map(IpAddr::V4),
        Some(IpAddr::V6(_)) => address::unicast_v6(at).map(IpAddr::V6),
    }
}

/// `multihop` and `ttl_security`. `is_ebgp`: where it is known.
fn reach(fields: &mut Fields<'_>, is_ebgp: Option<bool>) -> Option<Reach> {
    let security = fields.or("ttl_security", false, |at| at.bool());
    let hops = fields.or("multihop", None, |at| {
        let hops: u8 = at.within(1, u8::MAX)?;
        if is_ebgp == Some(false) && security == Some(false) {
            return at.fail(BgpProblem::MultihopOfOurs.into());
        }
        Some(Some(hops))
    });
    // What Linux gives a packet of its own.
    let far = if is_ebgp == Some(false) { 64 } else { 1 };
    Some(match (security?, hops?) {
        (true, hops) => Reach::Secured(hops.unwrap_or(1)),
        (false, hops) => Reach::Hops(hops.unwrap_or(far)),
    })
}

fn families(at: &At<'_>) -> Option<Families> {
    let items = at.list()?;
    if items.is_empty() {
        return at.fail(Problem::EmptyList {
            hint: "list ipv4, ipv6 or both",
        });
    }
    let mut families = Families { v4: false, v6: false };
    let mut right = true;
    for at in &items {
        match at.text() {
            Some("ipv4") => families.v4 = true,
            Some("ipv6") => families.v6 = true,
            Some(other) => {
                at.note(Problem::NotOneOf {
                    value: Quoted::new(other),
                    allowed: &["ipv4", "ipv6"],
                });
                right = false;
            }
            None => right = false,
        }
    }
    right.then_some(families)
}

/// What a peer is told.
fn announce(fields: &mut Fields<'_>, is_ebgp: Option<bool>) -> Option<Announce> {
    let length_v4 = fields.or("aggregation_length_v4", 32, |at| at.within(1, 32));
    let length_v6 = fields.or("aggregation_length_v6", 128, |at| at.within(1, 128));
    let local_pref = fields.or("local_pref", None, |at| {
        if is_ebgp == Some(true) {
            return at.fail(BgpProblem::PreferenceOfOthers.into());
        }
        at.within(0, u32::MAX).map(Some)
    });
    let med = fields.or("med", None, |at| at.within(0, u32::MAX).map(Some));
    let prepend = fields.or("prepend", 0, |at| {
        if is_ebgp == Some(false) {
            return at.fail(BgpProblem::PrependOfOurs.into());
        }
        at.within(0, MAX_PREPEND)
    });
    let standard = communities(fields, "communities", |value| BgpProblem::NotACommunity { value });
    let large = communities(fields, "large_communities", |value| BgpProblem::NotALargeCommunity {
        value,
    });
    Some(Announce {
        length_v4: length_v4?,
        length_v6: length_v6?,
        attributes: Attributes {
            local_pref: local_pref?,
            med: med?,
            prepend: prepend?,
            communities: standard?,
            large_communities: large?,
        },
    })
}

fn communities<T: std::str::FromStr + Ord>(
    fields: &mut Fields<'_>,
    key: &'static str,
    problem: impl Fn(Quoted) -> BgpProblem,
) -> Option<std::collections::BTreeSet<T>> {
    fields.or(key, Default::default(), |at| {
        let items = at.list()?;
        let count = items.len();
        if count > MAX_COMMUNITIES {
            return at.fail(BgpProblem::TooManyCommunities { count }.into());
        }
        let one = |at: &At<'_>| {
            let text = at.text()?;
            text.parse().ok().or_else(|| at.fail(problem(Quoted::new(text)).into()))
        };
        let read: Vec<Option<T>> = items.iter().map(one).collect();
        read.into_iter().collect()
    })
}
