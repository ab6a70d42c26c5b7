//! LB nodes: which are there, which live, and what they have programmed.
//!
//! Never asks an LB node: what it has stands in its LbNode, and that it lives, in its Lease.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use operator_api::{LB_LEASE_PREFIX, LbNode};

use super::store::version_of;

/// Duration of a Lease that names none.
const DEFAULT_LEASE_SECONDS: i32 = 40;
/// Longest duration that is believed.
const MAX_LEASE_SECONDS: i32 = 3_600;

/// On which LB nodes a table is in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Live LB nodes that have it.
    pub on: usize,
    /// Live LB nodes.
    pub of: usize,
    /// Live LB nodes that cannot program it, by name, and why.
    pub failing: Vec<(String, String)>,
}

/// What an LB node says of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says<'a> {
    On,
    NotYet,
    Failing(&'a str),
}

/// What an LB node says of a table, of which clients know already or not.
pub(super) fn says<'a>(node: &'a LbNode, table: &str, version: Option<u128>, published: bool) -> Says<'a> {
    let Some(status) = &node.status else {
        return Says::NotYet;
    };
    let programmed = &status.programmed;
    if let Some(failing) = programmed.failing.iter().find(|failing| failing.name == table) {
        return Says::Failing(&failing.why);
    }
    let through = version_of(Some(&programmed.tables));
    let reached = version
        .zip(through)
        .is_some_and(|(version, through)| version <= through);
    // More fail than are listed: it may be one of them. Those that clients know of were programmed once, and stay so.
    let listed = usize::try_from(programmed.failing_count).is_ok_and(|count| count <= programmed.failing.len());
    if reached && (listed || published) {
        Says::On
    } else {
        Says::NotYet
    }
}

/// When an LB node last said that it lives, and for how long that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pulse {
    pub(super) renewed: Timestamp,
    pub(super) until: Timestamp,
}

impl Pulse {
    /// The LB node's name, and its pulse. `None`: another's Lease.
    pub(super) fn parse(lease: &Lease) -> Option<(String, Option<Self>)> {
        let name = lease
            .metadata
            .name
            .as_deref()?
            .strip_prefix(LB_LEASE_PREFIX)
            .filter(|name| !name.is_empty())?;
        let spec = lease.spec.as_ref();
        let seconds = spec
            .and_then(|spec| spec.lease_duration_seconds)
            .unwrap_or(DEFAULT_LEASE_SECONDS);
        let duration = SignedDuration::from_secs(seconds.clamp(0, MAX_LEASE_SECONDS).into());
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
        let pulse = renewed.and_then(|renewed| {
            let until = renewed.checked_add(duration).ok()?;
            Some(Self { renewed, until })
        });
        Some((name.to_owned(), pulse))
    }

    pub(super) fn lives_at(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// Whether there was a time between two pulses when it did not live.
    pub(super) fn is_revival_of(&self, old: Option<&Self>) -> bool {
        old.is_none_or(|old| old.until < self.renewed)
    }
}
