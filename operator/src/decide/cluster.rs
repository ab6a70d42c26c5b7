//! What is not about one Service: seed, node sets, tunnel, pools, orphans.
//!
//! Never makes a second seed, and never sweeps what it has known for less than a minute: its Service may not have been heard of yet.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use operator_api::{CONDITION_CONFLICT, TUNNEL_CONFIG, TunnelConfig};

use super::{About, Action, Next, Note, quietly, table};
use crate::index::{Index, Orphan, Seed};

/// How long an orphan must have been known.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// The flow-hash seed: made once. What is wrong with one that was pinned is said by metric and log: no write mends it.
pub(super) fn seed(index: &Index) -> Next {
    match index.seed() {
        Seed::Missing => quietly(Action::CreateSeed),
        Seed::Present { .. } | Seed::Lost { .. } | Seed::Differs { .. } | Seed::Malformed { .. } => Next::Done,
    }
}

/// How often somebody looks whether a transit is over because an LB node has died, or because it has lasted too long.
const TRANSIT_LOOK: u32 = 30;

/// The chunks of the worker set, one after another.
pub(super) fn node_sets(index: &Index) -> Next {
    match index.next_node_set() {
        Some(chunk) => quietly(Action::ApplyNodeSet(chunk)),
        None if index.is_node_set_in_transit() => Next::Wait(TRANSIT_LOOK),
        None => Next::Done,
    }
}

/// What workers accept, be it nothing: their agents wait until they are told. What is too large leaves the old one, and whoever
/// asks says so: [`tunnel_fault`].
pub(super) fn tunnel(index: &Index) -> Next {
    let Ok(wanted) = index.wanted_tunnel() else {
        return Next::Retry;
    };
    if index.tunnel().is_some_and(|tunnel| tunnel.spec == wanted) {
        return Next::Done;
    }
    quietly(Action::ApplyTunnel(TunnelConfig {
        metadata: ObjectMeta {
            name: Some(TUNNEL_CONFIG.to_owned()),
            namespace: Some(index.settings().namespace.clone()),
            ..ObjectMeta::default()
        },
        spec: wanted,
    }))
}

/// The Event about a TunnelConfig that cannot be written; `None`: nothing is wrong with it.
pub fn tunnel_fault(index: &Index) -> Option<Note> {
    let fault = index.wanted_tunnel().err()?;
    let there = index.tunnel().and_then(|tunnel| tunnel.metadata.uid.clone());
    Some(Note {
        about: About::Tunnel {
            namespace: index.settings().namespace.clone(),
            uid: there.unwrap_or_default(),
        },
        warning: true,
        reason: "TunnelConfigTooLarge",
        message: format!("{fault}: the TunnelConfig stays as it is, and workers accept nothing that is new"),
    })
}

/// A pool's status; an overlap is told once.
pub(super) fn pool(index: &Index, name: &str, now: Timestamp) -> Next {
    let pools = index.pools();
    let (Some(pool), Some(status)) = (pools.by_name(name), pools.status(name, index.claims(), now)) else {
        return Next::Done;
    };
    let object = pool.object();
    if object.status.as_ref() == Some(&status) {
        return Next::Done;
    }
    let said = object
        .status
        .as_ref()
        .and_then(|status| conflict(&status.conditions).cloned());
    let news = conflict(&status.conditions).filter(|conflict| {
        let before = said.as_ref().map(|said| (&said.status, &said.message));
        conflict.status == "True" && before != Some((&conflict.status, &conflict.message))
    });
    let notes = news.map(|conflict| Note {
        about: About::Pool {
            name: name.to_owned(),
            uid: object.metadata.uid.clone().unwrap_or_default(),
        },
        warning: true,
        reason: CONDITION_CONFLICT,
        message: conflict.message.clone(),
    });
    let notes = notes.into_iter().collect();
    let name = name.to_owned();
    Next::Do(Box::new(Action::ApplyPoolStatus { name, status }), notes)
}

fn conflict(conditions: &[Condition]) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == CONDITION_CONFLICT)
}

/// Tables and holders of Services that are gone, one after another.
pub(super) fn orphans(index: &Index) -> Next {
    let mut soonest = None;
    for orphan in index.orphans() {
        let age = index.known_for(orphan);
        if age < GRACE {
            let left = u32::try_from((GRACE - age).as_secs()).unwrap_or(0).saturating_add(1);
            soonest = Some(soonest.map_or(left, |soonest: u32| soonest.min(left)));
            continue;
        }
        let write = match orphan {
            Orphan::Table(table) => Some(table::deletion(table)),
            Orphan::Holder(claim, holder) => {
                let claim = crate::ipam::address_of_name(claim.metadata.name.as_deref().unwrap_or_default())
                    .and_then(|address| index.claims().by_address(address));
                claim.and_then(|claim| claim.without(&holder.service)).map(Action::from)
            }
        };
        if let Some(write) = write {
            return quietly(write);
        }
    }
    soonest.map_or(Next::Done, Next::Wait)
}
