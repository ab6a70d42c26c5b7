//! What stands between a list of tables that has grown suspiciously short and the maps.
//!
//! Never keeps a change out for good: after [`HOLD`], or at a word of the operator of this node, it goes through. Never stands in the
//! way of tables that are new or changed.

use std::time::Duration;

/// Fewest VIPs whose loss is held.
pub const LEAST: usize = 4;
/// How long a list that drops too many is not believed.
pub const HOLD: Duration = Duration::from_secs(300);

/// Whether a list that takes so many VIPs away is one to be believed at once.
pub fn is_too_much(dropped: usize, present: usize) -> bool {
    dropped >= LEAST && dropped > present / 2
}

/// Since when, and how much, is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// When the first such list came; later ones do not prolong it. Time since any beginning.
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
        let since = self.held.map_or(now, |held| held.since);
        self.held = Some(Held {
            since,
            vips: dropped,
            of: present,
        });
        true
    }

    /// What is held.
    pub fn held(&self) -> Option<Held> {
        self.held
    }

    /// When what is held goes through by itself.
    pub fn deadline(&self) -> Option<Duration> {
        self.held.map(|held| held.since + HOLD)
    }

    /// Fewer are held: some of them came back, or were deleted by name.
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

    use super::{Guard, HOLD, LEAST, is_too_much};

    #[test]
    fn more_than_half_is_too_much_and_a_few_never_are() {
        for (dropped, present, held) in [
            (5, 9, true),
            (5, 10, false),
            (6, 10, true),
            (10, 10, true),
            (LEAST, LEAST, true),
            (LEAST - 1, LEAST - 1, false),
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
}
