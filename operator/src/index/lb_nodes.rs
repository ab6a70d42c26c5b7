//! LB nodes: which are there, which live, and what they have programmed.
//!
//! Never asks an LB node: what it has stands in its LbNode, and that it lives, in its Lease. Never believes an LB node's clock: it
//! lives for its Lease's duration after we saw the Lease renewed. Only at first sight, after a restart, its time is all there is.

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
    /// LB nodes of which nobody can say yet whether they live.
    pub unsure: usize,
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

/// What a Lease says: when it was renewed, by the LB node's clock, and for how long that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    renewed: Timestamp,
    duration: SignedDuration,
}

impl Beat {
    /// The LB node's name, and its beat. `None`: another's Lease.
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
        Some((name.to_owned(), renewed.map(|renewed| Self { renewed, duration })))
    }
}

/// Whether an LB node lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Alive,
    /// It looks dead by its own clock, and had no time yet to show that it is not.
    Unsure,
    Dead,
}

/// When we saw an LB node say that it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pulse {
    beat: Beat,
    /// It lives until then, by our clock.
    until: Timestamp,
    /// And may live until then.
    unsure_until: Timestamp,
}

impl Pulse {
    /// After a Lease was seen at `now`; `old` is what was known of it.
    pub(super) fn after(old: Option<Self>, beat: Beat, now: Timestamp) -> Self {
        let end = now.saturating_add(beat.duration).unwrap_or(now);
        match old {
            Some(old) if old.beat == beat => old,
            Some(_) => Self {
                beat,
                until: end,
                unsure_until: end,
            },
            None => {
                let left = beat.duration.saturating_sub(now.duration_since(beat.renewed));
                let left = left.clamp(SignedDuration::ZERO, beat.duration);
                Self {
                    beat,
                    until: now.saturating_add(left).unwrap_or(now),
                    unsure_until: end,
                }
            }
        }
    }

    pub(super) fn at(&self, now: Timestamp) -> Life {
        if now < self.until {
            Life::Alive
        } else if now < self.unsure_until {
            Life::Unsure
        } else {
            Life::Dead
        }
    }
}
