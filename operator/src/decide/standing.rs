//! On which LB nodes a table is, who tells the network of its addresses, and what that means for its Service.
//!
//! Never takes an LB node that has only not caught up yet for one that fails, and never names an LB node in what it says of
//! announcing: each LB node that comes or goes would cost a write of every Service.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use operator_api::{CONDITION_ANNOUNCED, CONDITION_PROGRAMMED, VipTableSpec};

use super::conditions::Said;
use crate::index::{Aired, Coverage, Index};

/// A table with new addresses is waited for so long on the LB nodes that do not have it yet while others do: clients then meet them
/// on all of them, and the condition needs no second write.
const FOR_THE_REST: SignedDuration = SignedDuration::from_secs(2);
/// And so long while none has it, before that is said.
const FOR_THE_FIRST: SignedDuration = SignedDuration::from_secs(5);
/// LB nodes that a message names.
const NAMED: usize = 3;
/// Most characters of what an LB node says.
const QUOTED: usize = 160;

/// Reason of the condition where no LB node is there.
pub(super) const NO_LB_NODE: &str = "NoLbNode";
/// Reason of the condition where those that are there cannot program it.
pub(super) const FAILING: &str = "Failing";
/// Reason of the condition about announcing where LB nodes say nothing of it.
pub(super) const NOT_REPORTED: &str = "NotReported";

/// Whether clients may be told of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// LB nodes have it.
    Ready,
    /// They are about to.
    Soon,
    /// None has it.
    Not,
}

pub(super) fn standing(coverage: &Coverage, age: SignedDuration) -> Standing {
    let pending = pending(coverage);
    if coverage.on > 0 {
        if pending == 0 || age >= FOR_THE_REST {
            Standing::Ready
        } else {
            Standing::Soon
        }
    } else if coverage.unsure > 0 || (pending > 0 && age < FOR_THE_FIRST) {
        Standing::Soon
    } else {
        Standing::Not
    }
}

/// LB nodes that have not got so far, or may be there.
fn pending(coverage: &Coverage) -> usize {
    let behind = coverage.of.saturating_sub(coverage.on + coverage.failing.len());
    behind + coverage.unsure
}

/// The condition. One that was true stays so while LB nodes are catching up with a change, and its words stay as well.
pub(super) fn said(coverage: &Coverage, before: Option<&Condition>) -> Said {
    let on = format!("on {} of {} LB nodes", coverage.on, coverage.of);
    let kind = CONDITION_PROGRAMMED;
    let says = if coverage.of == 0 {
        Said::new(kind, false, NO_LB_NODE, "no LB node is alive")
    } else if coverage.on > 0 {
        Said::new(kind, true, "Programmed", on + &failing(coverage))
    } else if coverage.failing.is_empty() {
        Said::new(kind, false, "Pending", on)
    } else {
        Said::new(kind, false, FAILING, on + &failing(coverage))
    };
    match before {
        Some(before) if pending(coverage) > 0 && (before.status == "True" || !says.is_true()) => {
            Said::again(kind, before)
        }
        Some(_) | None => says,
    }
}

/// The condition about announcing, of the addresses that a table has or shall have; `programmed` is what is said of LB nodes that
/// have it.
pub(super) fn announced(
    index: &Index,
    wanted: Option<&VipTableSpec>,
    programmed: &Said,
    before: Option<&Condition>,
) -> Said {
    let kind = CONDITION_ANNOUNCED;
    let not = |reason: &str, why: &str| Said::new(kind, false, reason, why);
    let Some(wanted) = wanted else {
        return not("NotAllocated", "there is nothing to announce");
    };
    if !programmed.is_true() {
        return not("NotProgrammed", "no LB node has it in its maps");
    }
    let aired: Vec<(&str, Aired)> = wanted
        .addresses
        .iter()
        .map(|address| (address.address.as_str(), index.aired(address)))
        .collect();
    let is_not = |(_, aired): &&(&str, Aired)| matches!(aired, Aired::Not { .. });
    if let Some((_, Aired::Not { reason, .. })) = aired.iter().find(is_not) {
        return not(reason, &words(aired.iter().filter(is_not)));
    }
    if aired.iter().any(|(_, aired)| *aired == Aired::Soon) {
        let words = "LB nodes ask whether the address is free, or wait for each other";
        return before.map_or_else(
            || Said::maybe(kind, None, "Pending", words),
            |before| Said::again(kind, before),
        );
    }
    if aired.iter().any(|(_, aired)| *aired == Aired::Unsaid) {
        let words = "no LB node says what it announces: they have just started, or are of an earlier version";
        return Said::maybe(kind, None, NOT_REPORTED, words);
    }
    let by = |way: fn(&Aired) -> bool| aired.iter().any(|(_, aired)| way(aired));
    let bgp = by(|aired| matches!(aired, Aired::By { bgp: Some(_), .. }));
    let l2 = by(|aired| matches!(aired, Aired::By { l2: Some(_), .. }));
    let reason = match (bgp, l2) {
        (true, true) => "BGPAndL2",
        (true, false) => "BGP",
        (false, _) => "L2",
    };
    Said::new(kind, true, reason, words(aired.iter()))
}

/// What is said of addresses; where it is the same of all of them, once.
fn words<'a>(aired: impl Iterator<Item = &'a (&'a str, Aired)>) -> String {
    let all: Vec<(&str, String)> = aired.map(|(address, aired)| (*address, word(aired))).collect();
    let first = all.first().map(|(_, word)| word.clone()).unwrap_or_default();
    if all.iter().all(|(_, word)| *word == first) {
        return first;
    }
    let mut words: Vec<String> = all
        .iter()
        .take(NAMED)
        .map(|(address, word)| format!("{address} {word}"))
        .collect();
    if let Some(more @ 1..) = all.len().checked_sub(NAMED) {
        words.push(format!("and {more} more"));
    }
    words.join("; ")
}

fn word(aired: &Aired) -> String {
    match aired {
        Aired::By { bgp, l2, but } => {
            let ways = [("BGP", bgp), ("L2", l2)];
            let ways = ways
                .into_iter()
                .filter_map(|(way, by)| Some(format!("{way} ({})", by.as_ref()?)));
            let but = but.as_ref().map(|but| format!("; {but}")).unwrap_or_default();
            format!("by {}{but}", ways.collect::<Vec<_>>().join(" and "))
        }
        Aired::Not { why, .. } => why.clone(),
        Aired::Soon | Aired::Unsaid => String::new(),
    }
}

/// The same for an Event about the Service's addresses.
pub(super) fn announced_words(said: &Said) -> String {
    match said.is {
        Some(true) => format!("announced {}", said.message),
        Some(false) => format!("not announced: {}", said.message),
        None => format!("whether it is announced is not known: {}", said.message),
    }
}

fn failing(coverage: &Coverage) -> String {
    let mut words = String::new();
    for (index, (name, why)) in coverage.failing.iter().take(NAMED).enumerate() {
        words.push_str(if index == 0 { "; failing on " } else { ", " });
        words.push_str(name);
        words.push_str(": ");
        words.extend(why.chars().take(QUOTED));
    }
    if let Some(more @ 1..) = coverage.failing.len().checked_sub(NAMED) {
        words.push_str(&format!(", and {more} more"));
    }
    words
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::decide::conditions::merge;

    fn coverage(on: usize, of: usize, failing: &[&str]) -> Coverage {
        let failing = failing.iter().map(|name| ((*name).to_owned(), "no room".to_owned()));
        Coverage {
            on,
            of,
            failing: failing.collect(),
            ..Coverage::default()
        }
    }

    #[test]
    fn a_table_is_ready_on_all_at_once_and_on_some_after_a_while() {
        let young = SignedDuration::from_secs(1);
        let old = SignedDuration::from_secs(9);
        assert_eq!(standing(&coverage(3, 3, &[]), young), Standing::Ready);
        assert_eq!(standing(&coverage(1, 3, &[]), young), Standing::Soon);
        assert_eq!(standing(&coverage(1, 3, &[]), old), Standing::Ready);
        assert_eq!(standing(&coverage(2, 3, &["lb-3"]), young), Standing::Ready);
        assert_eq!(standing(&coverage(0, 3, &[]), young), Standing::Soon);
        assert_eq!(standing(&coverage(0, 3, &[]), old), Standing::Not);
        assert_eq!(standing(&coverage(0, 1, &["lb-1"]), young), Standing::Not);
        assert_eq!(standing(&coverage(0, 0, &[]), young), Standing::Not);
    }

    #[test]
    fn a_true_condition_outlives_that_lb_nodes_catch_up_but_not_that_they_fail() {
        let good = said(&coverage(3, 3, &[]), None);
        assert_eq!(good.message, "on 3 of 3 LB nodes");
        let before = merge(std::slice::from_ref(&good), &[], Timestamp::UNIX_EPOCH);
        let before = before.first();
        assert_eq!(said(&coverage(0, 3, &[]), before), good);
        assert_eq!(said(&coverage(2, 3, &[]), before), good);
        let failing = said(&coverage(2, 3, &["lb-3"]), before);
        assert_eq!(failing.message, "on 2 of 3 LB nodes; failing on lb-3: no room");
        assert!(failing.is_true());
        assert!(!said(&coverage(0, 0, &[]), before).is_true());
        let five = said(&coverage(0, 5, &["a", "b", "c", "d", "e"]), before);
        assert!(
            !five.is_true() && five.message.ends_with("c: no room, and 2 more"),
            "{five:?}"
        );
    }
}
