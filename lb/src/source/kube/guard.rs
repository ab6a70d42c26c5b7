//! What stands between a list of tables that has grown suspiciously short, or deletions that come suspiciously fast, and the maps.
//!
//! Never keeps a change out for good: after [`HOLD`], or at a word of the operator of this node, it goes through. Never stands in the
//! way of tables that are new or changed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// How long what drops too many is not believed.
pub const HOLD: Duration = Duration::from_secs(300);
/// Fewest tables whose deletion by name is doubted: one Service, or some, anybody deletes.
pub const LEAST_DELETED: usize = 4;
/// How long a deletion waits for others: somebody who deletes a definition or a namespace deletes table after table.
pub const SETTLE: Duration = Duration::from_secs(1);
/// Deletions within this time are judged together.
pub const WINDOW: Duration = Duration::from_secs(60);

/// Whether what takes so many VIPs away is to be doubted.
pub fn is_too_much(dropped: usize, present: usize) -> bool {
    dropped > present / 2
}

/// Tables that were deleted by name.
#[derive(Clone, Debug, Default)]
pub struct Deletions {
    /// Not carried out yet: when it came, and its VIPs.
    waiting: BTreeMap<Arc<str>, (Duration, usize)>,
    waiting_vips: usize,
    /// Carried out: when, and their VIPs. At most those of [`WINDOW`].
    done: VecDeque<(Duration, usize)>,
    done_vips: usize,
}

impl Deletions {
    /// One came. Whether all of late are too much for a node that serves `vips`, those that wait among them; and what it had served.
    pub fn add(&mut self, name: Arc<str>, its: usize, vips: usize, now: Duration) -> (bool, usize) {
        self.cancel(&name);
        self.waiting.insert(name, (now, its));
        self.waiting_vips += its;
        while let Some((_, before)) = self
            .done
            .front()
            .copied()
            .filter(|(at, _)| now.saturating_sub(*at) > WINDOW)
        {
            self.done.pop_front();
            self.done_vips -= before;
        }
        let (tables, present) = (self.waiting.len() + self.done.len(), vips + self.done_vips);
        let dropped = self.waiting_vips + self.done_vips;
        (tables >= LEAST_DELETED && is_too_much(dropped, present), present)
    }

    /// The table is there again.
    pub fn cancel(&mut self, name: &str) {
        if let Some((_, vips)) = self.waiting.remove(name) {
            self.waiting_vips -= vips;
        }
    }

    /// When the first of them is to be carried out.
    pub fn due(&self) -> Option<Duration> {
        self.waiting.values().map(|(at, _)| *at + SETTLE).min()
    }

    /// Those that waited long enough: they are carried out now.
    pub fn take(&mut self, now: Duration) -> Vec<Arc<str>> {
        let due = |(at, _): &(Duration, usize)| *at + SETTLE <= now;
        let names: Vec<Arc<str>> = self
            .waiting
            .iter()
            .filter(|(_, waits)| due(waits))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in &names {
            if let Some((_, vips)) = self.waiting.remove(name) {
                self.waiting_vips -= vips;
                self.done.push_back((now, vips));
                self.done_vips += vips;
            }
        }
        names
    }

    /// Those that wait are held, or gone, or back: whoever asks knows which.
    pub fn forget_waiting(&mut self) {
        self.waiting.clear();
        self.waiting_vips = 0;
    }
}

/// Since when, and how much, is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// When it began; what comes later does not prolong it. Time since any beginning.
    pub since: Duration,
    /// VIPs that are kept.
    pub vips: usize,
    /// VIPs that there were.
    pub of: usize,
}

/// The guard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard {
    held: Option<Held>,
}

impl Guard {
    /// Judges a list that would take `dropped` of `present` VIPs away; whether they are to be kept for now.
    pub fn judge(&mut self, dropped: usize, present: usize, now: Duration) -> bool {
        if !is_too_much(dropped, present) {
            self.held = None;
            return false;
        }
        self.hold(dropped, present, now);
        true
    }

    /// Holds `dropped` of `present` VIPs.
    pub fn hold(&mut self, dropped: usize, present: usize, now: Duration) {
        let since = self.held.map_or(now, |held| held.since);
        self.held = Some(Held {
            since,
            vips: dropped,
            of: present,
        });
    }

    /// What is held.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// When what is held goes through by itself.
    pub fn deadline(&self) -> Option<Duration> {
        self.held.map(|held| held.since + HOLD)
    }

    /// Others are held: some came back, or were deleted, too.
    pub fn now_holds(&mut self, vips: usize) {
        match &mut self.held {
            Some(held) if vips > 0 => held.vips = vips,
            Some(_) => self.held = None,
            None => {}
        }
    }

    /// Somebody said that it is right, or time is up.
    pub fn let_go(&mut self) {
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Deletions, Guard, HOLD, LEAST_DELETED, SETTLE, WINDOW, is_too_much};

    #[test]
    fn more_than_half_is_too_much_of_few_as_of_many() {
        for (dropped, present, held) in [
            (5, 9, true),
            (5, 10, false),
            (6, 10, true),
            (10, 10, true),
            (1, 1, true),
            (1, 2, false),
            (2, 3, true),
            (0, 0, false),
            (0, 100, false),
            (usize::MAX, usize::MAX, true),
        ] {
            assert_eq!(is_too_much(dropped, present), held, "{dropped} of {present}");
        }
    }

    #[test]
    fn later_lists_do_not_prolong_what_is_held_and_a_good_one_ends_it() {
        let seconds = Duration::from_secs;
        let mut guard = Guard::default();
        assert!(guard.judge(60, 100, seconds(10)));
        assert!(guard.judge(70, 100, seconds(200)));
        assert_eq!(guard.deadline(), Some(seconds(10) + HOLD));
        assert_eq!(guard.held().map(|held| (held.vips, held.of)), Some((70, 100)));
        assert!(!guard.judge(10, 100, seconds(250)));
        assert_eq!(guard.held(), None);
        assert!(guard.judge(60, 100, seconds(260)));
        assert_eq!(
            guard.deadline(),
            Some(seconds(260) + HOLD),
            "a new one has its own time"
        );
        guard.now_holds(3);
        assert_eq!(guard.held().map(|held| held.vips), Some(3));
        guard.now_holds(0);
        assert_eq!(guard.held(), None);
    }

    /// Deletes tables of one VIP each, of `present`, so far apart; how many went before it was too much.
    fn delete(tables: usize, present: usize, apart: Duration) -> Option<usize> {
        let mut deletions = Deletions::default();
        let mut gone = 0;
        for n in 0..tables {
            let now = apart * u32::try_from(n).unwrap();
            gone += deletions.take(now).len();
            if deletions.add(format!("t{n}").into(), 1, present - gone, now).0 {
                return Some(gone);
            }
        }
        None
    }

    #[test]
    fn many_deletions_at_once_are_too_much_and_a_few_or_slow_ones_never_are() {
        let fast = Duration::from_millis(1);
        assert_eq!(delete(10, 10, fast), Some(0), "none of them went");
        assert_eq!(delete(5, 10, fast), None, "half of them");
        assert_eq!(
            delete(LEAST_DELETED - 1, LEAST_DELETED - 1, fast),
            None,
            "somebody cleans up"
        );
        assert_eq!(delete(LEAST_DELETED, LEAST_DELETED, fast), Some(0));
        // A definition with thousands of tables takes its time to go: half of them never do.
        let gone = delete(10_000, 10_000, fast).unwrap();
        assert!((3_000..5_000).contains(&gone), "{gone}");
        assert_eq!(delete(100, 200, WINDOW / 10), None, "people clean up");
    }

    #[test]
    fn a_deletion_waits_a_moment_and_one_that_is_taken_back_is_none() {
        let mut deletions = Deletions::default();
        let seconds = Duration::from_secs;
        assert_eq!(deletions.add("a".into(), 3, 3, seconds(5)), (false, 3));
        assert_eq!(deletions.add("b".into(), 3, 3, seconds(5)), (false, 3));
        assert_eq!(deletions.due(), Some(seconds(5) + SETTLE));
        deletions.cancel("a");
        assert_eq!(deletions.take(seconds(5)).len(), 0);
        let names: Vec<String> = deletions.take(seconds(6)).iter().map(ToString::to_string).collect();
        assert_eq!((names, deletions.due()), (vec!["b".to_owned()], None));
    }
}
