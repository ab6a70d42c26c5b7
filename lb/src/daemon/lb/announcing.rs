//! What the cluster is told of announcing.
//!
//! Never decides what is announced, and never looks through all addresses while nothing has changed.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lb_core::announce::Reason;
use operator_api::{
    AnnounceException, Announcing, BgpAnnouncing, EXCEPTION_ADDRESS_IN_USE, EXCEPTION_NO_BACKEND, EXCEPTION_WAITS,
    L2Announcing, L2Member, LbDraining, Origin, PeerStatus, Way,
};

use super::{Lb, Source};
use crate::{
    announce::bgp::PeerStanding,
    control::NodeDrainView,
    daemon::{cluster, tables::unix_now},
    source::kube::agent::Word,
};

/// What was said, and what it was made of.
#[derive(Debug, Default)]
pub(super) struct Said {
    of: Option<Of>,
}

/// Where it is the same, so is what is to be said.
#[derive(Debug, PartialEq)]
struct Of {
    slow: u64,
    peers: Vec<PeerStatus>,
    drain: Option<NodeDrainView>,
    revision: u64,
}

impl Lb {
    /// Tells the cluster what has changed of what this node announces.
    pub(super) fn say_announcing(&mut self) {
        let Source::Kube(kube) = &self.source else { return };
        let drain = self.node_drain_view().map(|view| NodeDrainView {
            // Times pass by themselves.
            seconds: 0,
            deadline_s: None,
            ..view
        });
        let of = Of {
            slow: self.slow.changes(),
            peers: self.peers(),
            drain,
            revision: self.revision,
        };
        if self.said.of.as_ref() == Some(&of) {
            return;
        }
        kube.tell(Word::Announcing(Box::new(self.announcing(of.peers.clone()))));
        self.said.of = Some(of);
    }

    fn announcing(&self, peers: Vec<PeerStatus>) -> Announcing {
        let config = &self.file.config;
        let names = config.interfaces.iter().map(|interface| &*interface.name).collect();
        let places = cluster::places(&names).unwrap_or_else(|error| {
            tracing::error!("cannot list this node's addresses: {error}");
            Default::default()
        });
        let group = self.slow.group();
        let members = group.into_iter().flat_map(|group| group.others);
        let (by_bgp, by_l2) = match &self.source {
            Source::File(_) => (Origin::File, Origin::File),
            Source::Kube(kube) => kube.origins(),
        };
        let l2 = (!config.l2.owned.is_empty()).then(|| L2Announcing {
            origin: by_l2,
            networks: config.l2.owned.iter().map(ToString::to_string).collect(),
            owned: u32::try_from(self.slow.owned()).unwrap_or(u32::MAX),
            members: members
                .map(|member| L2Member {
                    name: member.name,
                    heard: member.heard,
                })
                .collect(),
        });
        let bgp = config.bgp.as_ref().map(|bgp| BgpAnnouncing {
            origin: by_bgp,
            local_asn: bgp.local_asn,
            peers,
            ..BgpAnnouncing::default()
        });
        let decided = self.decided();
        let mut exceptions = exceptions(Way::L2, &decided.segments);
        exceptions.extend(exceptions_of_routers(&decided.routers));
        exceptions.sort();
        let unserved = self.slow.towards_routers().filter(|(_, facts)| !facts.has_backend);
        Announcing {
            bgp,
            l2,
            exceptions,
            unserved: unserved.map(|(address, _)| address.to_string()).collect(),
            draining: self.node_drain_view().map(|view| draining(&view)),
            places: places.iter().map(ToString::to_string).collect(),
            // Counts are made where lists are cut.
            ..Announcing::default()
        }
    }

    /// All BGP peers, by name.
    fn peers(&self) -> Vec<PeerStatus> {
        let Some(standing) = self.bgp.standing() else {
            return Vec::new();
        };
        let mut peers: Vec<PeerStatus> = standing.peers.into_values().map(peer).collect();
        peers.sort_by(|one, other| one.name.cmp(&other.name));
        peers
    }
}

fn peer(PeerStanding { peer, session }: PeerStanding) -> PeerStatus {
    let is_up = session.connection.is_some();
    PeerStatus {
        name: peer.name.to_string(),
        address: peer.address.to_string(),
        // While it is tried again and again, the steps of that are no news.
        state: if is_up { "Established" } else { "Down" }.to_owned(),
        established: is_up,
        announced: u32::try_from(session.announced).unwrap_or(u32::MAX),
        last_error: session
            .last_error
            .filter(|_| !is_up)
            .map(|(_, error)| error.to_string()),
    }
}

fn exceptions_of_routers(decided: &Option<BTreeMap<IpAddr, Reason>>) -> Vec<AnnounceException> {
    decided
        .as_ref()
        .map(|decided| exceptions(Way::Bgp, decided))
        .unwrap_or_default()
}

/// Addresses that have a way and are not announced by it, but for those that another member of the group has, and for a drain, which
/// is about all of them.
fn exceptions(way: Way, decided: &BTreeMap<IpAddr, Reason>) -> Vec<AnnounceException> {
    let exception = |(address, reason): (&IpAddr, &Reason)| {
        let name = match reason {
            Reason::InUse(_) => EXCEPTION_ADDRESS_IN_USE,
            Reason::NoBackend => EXCEPTION_NO_BACKEND,
            Reason::Waits => EXCEPTION_WAITS,
            Reason::NotProgrammed
            | Reason::NoWay
            | Reason::Draining
            | Reason::Other(_)
            | Reason::StaysWithoutBackend
            | Reason::Serves => return None,
        };
        Some(AnnounceException {
            address: address.to_string(),
            way,
            reason: name.to_owned(),
            why: reason.to_string(),
        })
    };
    decided.iter().filter_map(exception).collect()
}

fn draining(view: &NodeDrainView) -> LbDraining {
    let time = |unix: u64| {
        let seconds = i64::try_from(unix).unwrap_or(i64::MAX);
        Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
    };
    let now = unix_now();
    LbDraining {
        since: time(now.saturating_sub(view.seconds)),
        deadline: view.deadline_s.map(|seconds| time(now.saturating_add(seconds))),
        packets_per_second: u32::try_from(view.packets_per_second).unwrap_or(u32::MAX),
        done: view.left,
    }
}
