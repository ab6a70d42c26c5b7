//! The statuses of BgpPeers and Announcements: LB nodes go by them.
//!
//! Never writes what is there already, and never counts what changes by itself.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use operator_api::{AnnouncementStatus, BgpPeerStatus, CONDITION_VALID};

use super::{Action, Next, quietly};
use crate::index::Index;

/// How often somebody looks whether an LB node has come, or has been gone for long enough.
const LOOK: u32 = 10;

type Fault = Option<(&'static str, String)>;

/// A BgpPeer.
pub(super) fn peer(index: &Index, name: &str, now: Timestamp) -> Next {
    let Some(peer) = index.peer(name) else {
        return Next::Done;
    };
    let before = peer.status.clone().unwrap_or_default();
    let generation = peer.metadata.generation.unwrap_or_default();
    let selected = index.nodes_of_peer(name);
    let sessions = index.sessions(name, &selected.names);
    let (established, of) = (bounded(sessions.established), bounded(sessions.of));
    let status = BgpPeerStatus {
        state: if of == 0 {
            "no LB node".to_owned()
        } else {
            format!("{established}/{of} established")
        },
        established,
        of,
        observed_generation: generation,
        conditions: valid(selected.fault, String::new(), &before.conditions, generation, now),
        nodes: selected.names,
    };
    if peer.status.as_ref() == Some(&status) {
        return Next::Wait(LOOK);
    }
    let name = name.to_owned();
    quietly(Action::ApplyPeerStatus { name, status })
}

/// An Announcement.
pub(super) fn announcement(index: &Index, name: &str, now: Timestamp) -> Next {
    let Some(announcement) = index.announcement(name) else {
        return Next::Done;
    };
    let before = announcement.status.clone().unwrap_or_default();
    let generation = announcement.metadata.generation.unwrap_or_default();
    let (nodes, peers) = (index.nodes_of_announcement(name), index.peers_of_announcement(name));
    let fault = index.selection_fault(name).or(peers.fault).or(nodes.fault);
    let words = unsaid(index, name, &peers.names);
    let status = AnnouncementStatus {
        node_count: bounded(nodes.count),
        nodes: nodes.names,
        peers: peers.names,
        l2: announcement.spec.l2.is_some(),
        observed_generation: generation,
        conditions: valid(fault, words, &before.conditions, generation, now),
    };
    if announcement.status.as_ref() == Some(&status) {
        return Next::Wait(LOOK);
    }
    let name = name.to_owned();
    quietly(Action::ApplyAnnouncementStatus { name, status })
}

/// Attributes that none of its peers is told, in words.
fn unsaid(index: &Index, name: &str, peers: &[String]) -> String {
    let Some(bgp) = index.announcement(name).and_then(|it| it.spec.bgp.as_ref()) else {
        return String::new();
    };
    let peers = || peers.iter().filter_map(|name| index.peer(name)).map(|peer| &peer.spec);
    let mut words = Vec::new();
    if bgp.local_pref.is_some() && !peers().any(|peer| peer.asn == peer.local_asn) {
        words.push("localPref is said to none of its peers: none is of the LB nodes' AS");
    }
    if bgp.prepend > 0 && !peers().any(|peer| peer.asn != peer.local_asn) {
        words.push("prepend is said to none of its peers: all are of the LB nodes' AS");
    }
    words.join("; ")
}

fn valid(fault: Fault, words: String, before: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
    let (status, reason, message) = match fault {
        None => ("True", "Accepted", words),
        Some((reason, message)) => ("False", reason, message),
    };
    let there = before
        .iter()
        .find(|it| it.type_ == CONDITION_VALID && it.status == status);
    vec![Condition {
        type_: CONDITION_VALID.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(generation),
        last_transition_time: there.map_or(Time(now), |it| it.last_transition_time.clone()),
    }]
}

fn bounded(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
