//! Conditions of a Service.
//!
//! Never gives a condition another time of transition unless its status changes, and never takes one out that somebody else may
//! have written: what an apply does not own it cannot remove.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Service,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use operator_api::PREFIX;

pub(super) use crate::index::marks::CONDITION_PORTS;

/// Longest message: what Kubernetes allows.
const MAX_MESSAGE: usize = 32_768;

/// What a condition shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// Which.
    pub(super) kind: &'static str,
    /// `None`: `Unknown`. Nobody here can tell.
    pub(super) is: Option<bool>,
    /// In UpperCamelCase.
    pub(super) reason: String,
    /// For people.
    pub(super) message: String,
}

impl Said {
    pub(super) fn new(kind: &'static str, is: bool, reason: &str, message: impl Into<String>) -> Self {
        Self::maybe(kind, Some(is), reason, message)
    }

    /// As [`Self::new`]; `None`: unknown.
    pub(super) fn maybe(kind: &'static str, is: Option<bool>, reason: &str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE)
                .rev()
                .find(|end| message.is_char_boundary(*end))
                .unwrap_or(0);
            message.truncate(end);
        }
        Self {
            kind,
            is,
            reason: reason.to_owned(),
            message,
        }
    }

    /// What a condition says already.
    pub(super) fn again(kind: &'static str, before: &Condition) -> Self {
        let is = match before.status.as_str() {
            "True" => Some(true),
            "False" => Some(false),
            _ => None,
        };
        Self::maybe(kind, is, &before.reason, before.message.clone())
    }

    /// Whether it is true.
    pub(super) fn is_true(&self) -> bool {
        self.is == Some(true)
    }

    const fn status(&self) -> &'static str {
        match self.is {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        }
    }

    /// Whether a condition says just this.
    pub(super) fn is_said_by(&self, before: &Condition) -> bool {
        before.status == self.status() && before.reason == self.reason && before.message == self.message
    }
}

/// All conditions of a Service.
pub(super) fn of(service: &Service) -> &[Condition] {
    let conditions = service.status.as_ref().and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default()
}

/// One of them.
pub(super) fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition is one that we write.
pub(super) fn is_ours(condition: &Condition) -> bool {
    condition.type_.starts_with(PREFIX) || condition.type_ == CONDITION_PORTS
}

/// Those of others, as they are.
pub(super) fn of_others(conditions: &[Condition]) -> Vec<Condition> {
    conditions
        .iter()
        .filter(|condition| !is_ours(condition))
        .cloned()
        .collect()
}

/// Whether all is said already.
pub(super) fn are_said(said: &[Said], before: &[Condition]) -> bool {
    said.iter()
        .all(|said| find(before, said.kind).is_some_and(|before| said.is_said_by(before)))
}

/// As conditions. The time of transition of one whose status stays is kept.
pub(super) fn merge(said: &[Said], before: &[Condition], now: Timestamp) -> Vec<Condition> {
    let condition = |said: &Said| {
        let unchanged = find(before, said.kind).filter(|before| before.status == said.status());
        Condition {
            type_: said.kind.to_owned(),
            status: said.status().to_owned(),
            reason: said.reason.clone(),
            message: said.message.clone(),
            observed_generation: None,
            last_transition_time: unchanged.map_or(Time(now), |before| before.last_transition_time.clone()),
        }
    };
    said.iter().map(condition).collect()
}

#[cfg(test)]
mod tests {
    use operator_api::{CONDITION_ALLOCATED, CONDITION_PROGRAMMED};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_condition_that_says_the_same_in_other_words_keeps_its_time() {
        let before = merge(
            &[Said::new(CONDITION_PROGRAMMED, true, "Programmed", "on 1 of 2")],
            &[],
            at(5),
        );
        let said = [Said::new(CONDITION_PROGRAMMED, true, "Programmed", "on 2 of 2")];
        assert!(!are_said(&said, &before));
        assert_eq!(merge(&said, &before, at(9))[0].last_transition_time, Time(at(5)));
        let fails = [Said::new(CONDITION_PROGRAMMED, false, "NoLbNode", "")];
        assert_eq!(merge(&fails, &before, at(9))[0].last_transition_time, Time(at(9)));
    }

    #[test]
    fn what_is_missing_is_not_said_and_what_others_say_does_not_matter() {
        let said = [
            Said::new(CONDITION_PROGRAMMED, true, "Programmed", ""),
            Said::new(CONDITION_ALLOCATED, true, "Allocated", ""),
        ];
        let mut before = merge(&said[..1], &[], at(5));
        assert!(!are_said(&said, &before));
        before = merge(&said, &before, at(6));
        let theirs = Condition {
            type_: "example.com/Theirs".to_owned(),
            ..before[0].clone()
        };
        before.push(theirs.clone());
        assert!(are_said(&said, &before));
        assert_eq!(of_others(&before), [theirs]);
    }

    #[test]
    fn a_message_is_cut_where_a_character_begins() {
        let said = Said::new(CONDITION_ALLOCATED, false, "AllocationFailed", "ä".repeat(MAX_MESSAGE));
        assert_eq!(said.message.len(), MAX_MESSAGE);
        assert!(said.message.ends_with('ä'));
    }
}
