//! How things stand, in a word: for metrics and for people.
//!
//! Never changes anything.

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};
use operator_api::{CONDITION_ACCEPTED, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, CONDITION_PROGRAMMED};

use crate::{
    ServiceKey,
    index::{Index, Seed, Wanted, Why, marks::CONDITION_PORTS},
};

/// How a Service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// All is well.
    Served,
    /// Some of its ports are not served.
    PortsRefused,
    /// It asks for what is not served.
    Refused,
    /// No address.
    Unallocated,
    /// On no LB node.
    Unprogrammed,
    /// Nobody of ours tells the network.
    Unannounced,
    /// Not looked at yet.
    Pending,
    /// Not to be served any more, and something of ours is on it.
    Leaving,
}

impl State {
    /// All of them.
    pub(super) const ALL: [Self; 8] = [
        Self::Served,
        Self::PortsRefused,
        Self::Refused,
        Self::Unallocated,
        Self::Unprogrammed,
        Self::Unannounced,
        Self::Pending,
        Self::Leaving,
    ];

    /// As a label.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::PortsRefused => "ports_refused",
            Self::Refused => "refused",
            Self::Unallocated => "unallocated",
            Self::Unprogrammed => "unprogrammed",
            Self::Unannounced => "unannounced",
            Self::Pending => "pending",
            Self::Leaving => "leaving",
        }
    }
}

/// How a Service stands, and why; `None`: it is not ours, and nothing of ours is on it.
pub(super) fn of(index: &Index, key: &ServiceKey) -> Option<(State, String)> {
    let service = index.service(key)?;
    match index.wanted(key) {
        Wanted::Foreign => index
            .table(key)
            .map(|_| (State::Leaving, "not ours any more".to_owned())),
        Wanted::Nothing(why) => {
            let is_told = matches!(why, Why::Headless | Why::ExternalName);
            let told = is_told.then(|| by_conditions(service));
            let told = told.filter(|(state, _)| *state == State::Refused);
            Some(told.unwrap_or_else(|| (State::Leaving, why.word().to_owned())))
        }
        Wanted::Serve(_) => Some(by_conditions(service)),
    }
}

/// The first thing that its conditions say is wrong.
fn by_conditions(service: &Service) -> (State, String) {
    let conditions = service.status.as_ref().and_then(|status| status.conditions.as_deref());
    let conditions = conditions.unwrap_or_default();
    let faults = [
        (CONDITION_ACCEPTED, "False", State::Refused),
        (CONDITION_ALLOCATED, "False", State::Unallocated),
        (CONDITION_PROGRAMMED, "False", State::Unprogrammed),
        (CONDITION_PORTS, "True", State::PortsRefused),
        (CONDITION_ANNOUNCED, "False", State::Unannounced),
    ];
    for (kind, bad, state) in faults {
        if let Some(condition) = find(conditions, kind).filter(|condition| condition.status == bad) {
            return (state, format!("{}: {}", condition.reason, condition.message));
        }
    }
    if find(conditions, CONDITION_PROGRAMMED).is_none() {
        return (State::Pending, "not programmed yet".to_owned());
    }
    (State::Served, String::new())
}

fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// What is wrong with the seed, in words; `None`: nothing, or it is yet to be made.
pub(super) fn seed_alarm(seed: &Seed) -> Option<String> {
    match seed {
        Seed::Missing | Seed::Present { .. } => None,
        Seed::Lost { pinned } => Some(format!(
            "the Secret with the flow-hash seed is gone (fingerprint {pinned}): LB nodes go on with what they have, new ones \
             cannot start; restore it from a backup. No new one is made: it would break all flows"
        )),
        Seed::Differs { pinned, found } => Some(format!(
            "the Secret with the flow-hash seed is another one (fingerprint {found}, not {pinned}): LB nodes do not use it; \
             restore the old one"
        )),
        Seed::Malformed { .. } => Some(
            "the Secret with the flow-hash seed has no 64 hex digits under `seed`: LB nodes do not use it; restore it, or delete it \
             where no NodeSet has a fingerprint yet"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(conditions: &[(&str, &str)]) -> Service {
        let conditions = conditions.iter().map(|(kind, status)| {
            serde_json::json!({
                "type": kind, "status": status, "reason": "Why", "message": "so",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        });
        let conditions: Vec<_> = conditions.collect();
        serde_json::from_value(serde_json::json!({"metadata": {}, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn the_first_fault_on_the_way_to_being_served_is_the_state() {
        let all_bad = [
            (CONDITION_PORTS, "True"),
            (CONDITION_PROGRAMMED, "False"),
            (CONDITION_ALLOCATED, "False"),
        ];
        assert_eq!(
            by_conditions(&service(&all_bad)),
            (State::Unallocated, "Why: so".to_owned())
        );
        let ports = [(CONDITION_PORTS, "True"), (CONDITION_PROGRAMMED, "True")];
        assert_eq!(by_conditions(&service(&ports)).0, State::PortsRefused);
        let unheard = [(CONDITION_ANNOUNCED, "False"), (CONDITION_PROGRAMMED, "True")];
        assert_eq!(by_conditions(&service(&unheard)).0, State::Unannounced);
        let unknown = [(CONDITION_ANNOUNCED, "Unknown"), (CONDITION_PROGRAMMED, "True")];
        assert_eq!(by_conditions(&service(&unknown)).0, State::Served);
        let good = [(CONDITION_PORTS, "False"), (CONDITION_PROGRAMMED, "True")];
        assert_eq!(by_conditions(&service(&good)), (State::Served, String::new()));
        assert_eq!(by_conditions(&service(&[])).0, State::Pending);
        assert_eq!(by_conditions(&Service::default()).0, State::Pending);
    }
}
