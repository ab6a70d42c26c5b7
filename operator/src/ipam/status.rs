//! What a pool's status says.
//!
//! Never counts by looking at each address.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use operator_api::{AddressPoolStatus, CONDITION_CONFLICT, CONDITION_VALID, Usage};

use super::{Claims, Family, pool::Pool};

/// Faults that are written out; of more, the number.
const SHOWN_FAULTS: usize = 8;

pub(super) fn status(pool: &Pool, claims: &Claims, now: Timestamp) -> AddressPoolStatus {
    let ipv4 = usage(pool, claims, Family::V4);
    let ipv6 = usage(pool, claims, Family::V6);
    let generation = pool.object().metadata.generation.unwrap_or_default();
    let condition = |kind: &str, is: bool, reason: &str, message: String| {
        let said = if is { "True" } else { "False" };
        let before = pool.object().status.iter().flat_map(|status| &status.conditions);
        let unchanged = before
            .into_iter()
            .find(|before| before.type_ == kind && before.status == said);
        Condition {
            type_: kind.to_owned(),
            status: said.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(generation),
            last_transition_time: unchanged.map_or(Time(now), |before| before.last_transition_time.clone()),
        }
    };
    let conflict = match pool.conflict() {
        Some((with, at)) => condition(
            CONDITION_CONFLICT,
            true,
            "Overlap",
            format!("{at} is in pool {with}, too, which was there earlier: no address is handed out of this pool"),
        ),
        None => condition(CONDITION_CONFLICT, false, "NoOverlap", String::new()),
    };
    let valid = if pool.faults().is_empty() {
        condition(CONDITION_VALID, true, "Accepted", left_out(pool))
    } else {
        condition(CONDITION_VALID, false, "Malformed", faults(pool))
    };
    AddressPoolStatus {
        used: ipv4.used.saturating_add(ipv6.used),
        free: ipv4.free.saturating_add(ipv6.free),
        ipv4,
        ipv6,
        observed_generation: generation,
        conditions: vec![conflict, valid],
    }
}

fn usage(pool: &Pool, claims: &Claims, family: Family) -> Usage {
    let avoids = pool.spec().avoid_buggy_ips;
    let (mut total, mut used, mut taken) = (0_u128, 0_u128, 0_u128);
    for range in pool.ranges().iter().filter(|range| range.family() == family) {
        let (all, edges) = claims.runs().count(*range);
        used = used.saturating_add(all);
        // An address that is left out may be in use since before: it takes none of those that can be handed out.
        taken = taken.saturating_add(if avoids { all - edges } else { all });
        total = total.saturating_add(if avoids {
            range.size() - range.edges()
        } else {
            range.size()
        });
    }
    let free = if pool.usable().is_ok() {
        total.saturating_sub(taken)
    } else {
        0
    };
    let bounded = |count: u128| i64::try_from(count).unwrap_or(i64::MAX);
    Usage {
        total: bounded(total),
        used: bounded(used),
        free: bounded(free),
    }
}

fn left_out(pool: &Pool) -> String {
    if pool.left_out().is_empty() {
        return String::new();
    }
    format!(
        "without its {} addresses, which cannot be load balanced",
        pool.left_out().join(", ")
    )
}

fn faults(pool: &Pool) -> String {
    let mut message = String::from("no address is handed out of this pool");
    for fault in pool.faults().iter().take(SHOWN_FAULTS) {
        // Writing into a String cannot fail.
        let _ = write!(message, "; {fault}");
    }
    if let Some(more @ 1..) = pool.faults().len().checked_sub(SHOWN_FAULTS) {
        let _ = write!(message, "; and {more} more");
    }
    message
}
