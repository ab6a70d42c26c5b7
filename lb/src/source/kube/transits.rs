//! Which published transits are over on this LB node, for the operator, who ends them when they are over everywhere.
//!
//! Never ends one itself, and never names more than so many that are not over: what is behind them in age is taken not to be, either.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use operator_api::MAX_LIVELY_TRANSITS;

use super::index::Index;

/// What is to be said of transits.
#[derive(Clone, Debug, Default)]
pub(super) struct Transits {
    /// By who publishes them.
    lively: BTreeSet<Arc<str>>,
    /// Of the index when it was looked at last; `None`: it must be.
    seen: Option<u64>,
    said: operator_api::Transits,
}

impl Transits {
    /// By these some flow may still go, as the maps stand.
    pub(super) fn are_lively(&mut self, lively: BTreeSet<Arc<str>>) {
        if self.lively != lively {
            self.lively = lively;
            self.seen = None;
        }
    }

    /// Takes in what is published now. What is not in the maps yet is not believed to be over: the operator compares resource versions.
    pub(super) fn look_at(&mut self, index: &Index) {
        if self.seen != Some(index.sequence()) {
            self.seen = Some(index.sequence());
            self.said = said(index.published_transits(), &self.lively);
        }
    }

    pub(super) fn said(&self) -> &operator_api::Transits {
        &self.said
    }
}

/// `published`: who publishes it, and the second of its last change.
fn said<'a>(
    published: impl Iterator<Item = (&'a Arc<str>, i64)>,
    lively: &BTreeSet<Arc<str>>,
) -> operator_api::Transits {
    let mut by_age: Vec<(i64, &Arc<str>)> = published.map(|(of, changed)| (changed, of)).collect();
    by_age.sort_unstable();
    let (mut through, mut still) = (None, Vec::new());
    for (changed, of) in by_age {
        if lively.contains(of) {
            if still.len() == MAX_LIVELY_TRANSITS {
                // Of those of the same second, some are not named.
                through = through.min(Some(changed - 1));
                break;
            }
            still.push(of.to_string());
        }
        through = Some(changed);
    }
    operator_api::Transits {
        over_through: through.and_then(|second| Timestamp::from_second(second).ok()).map(Time),
        but_for: still,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use operator_api::MAX_LIVELY_TRANSITS;

    use super::said;

    fn names(count: i64) -> Vec<(Arc<str>, i64)> {
        (0..count).map(|n| (format!("t{n:03}").into(), 1_000 + n)).collect()
    }

    fn of(published: &[(Arc<str>, i64)], lively: impl Fn(i64) -> bool) -> (Option<i64>, usize) {
        let lively: BTreeSet<Arc<str>> = published
            .iter()
            .filter(|(_, changed)| lively(*changed))
            .map(|(of, _)| Arc::clone(of))
            .collect();
        let said = said(published.iter().map(|(of, changed)| (of, *changed)), &lively);
        assert!(said.but_for.len() <= MAX_LIVELY_TRANSITS);
        (said.over_through.map(|time| time.0.as_second()), said.but_for.len())
    }

    #[test]
    fn what_is_over_is_said_by_age_with_exceptions() {
        assert_eq!(of(&[], |_| true), (None, 0));
        assert_eq!(of(&names(3), |_| false), (Some(1_002), 0));
        assert_eq!(of(&names(3), |changed| changed == 1_001), (Some(1_002), 1));
    }

    #[test]
    fn exceptions_are_bounded_and_what_is_behind_them_is_not_over() {
        let most = MAX_LIVELY_TRANSITS;
        assert_eq!(of(&names(200), |_| true), (Some(1_000 + most as i64 - 1), most));
        // Each second one lives: as many exceptions, twice as far.
        assert_eq!(
            of(&names(200), |changed| changed % 2 == 0),
            (Some(1_000 + 2 * most as i64 - 1), most)
        );
        let at_once: Vec<(Arc<str>, i64)> = names(200).into_iter().map(|(of, _)| (of, 1_000)).collect();
        assert_eq!(of(&at_once, |_| true), (Some(999), most));
    }
}
