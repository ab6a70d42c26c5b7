//! Tables that may be gone: deleted by name, or not in a list that dropped too much to be believed.
//!
//! Never in the way of what is there: what may be gone gives way to it.

use std::{sync::Arc, time::Duration};

use super::{Entry, Index};
use crate::source::kube::guard::Held;

impl Index {
    /// A table was deleted by name. It gives way to others at once, and goes a moment later, unless too many are deleted by then: see
    /// [`Self::deletions_due`], [`Self::held`]. `now`: time since any beginning.
    pub fn delete_table(&mut self, name: &str, revision: u64, now: Duration) {
        self.revisions.tables = self.revisions.tables.max(revision);
        let Some((name, _)) = self.tables.get_key_value(name) else {
            return;
        };
        let name = Arc::clone(name);
        self.hold(&name, true);
        let vips = self.tables.get(&name).map_or(0, |entry| entry.served.len());
        if vips == 0 {
            self.drop_table(&name);
        } else if self.guard.held().is_none() {
            let (too_much, present) = self.deletions.add(name, vips, self.vips.len(), now);
            if too_much {
                self.deletions.forget_waiting();
                self.guard.hold(self.held_vips(), present, now);
            }
            return;
        }
        self.look_at_guard();
    }

    /// When [`Self::carry_out_deletions`] has something to do.
    pub fn deletions_due(&self) -> Option<Duration> {
        self.deletions.due()
    }

    /// Takes out what was deleted by name a moment ago.
    pub fn carry_out_deletions(&mut self, now: Duration) {
        for name in self.deletions.take(now) {
            self.drop_table(&name);
        }
    }

    /// What is held, if anything.
    pub fn held(&self) -> Option<Held> {
        self.guard.held()
    }

    /// When what is held goes through by itself.
    pub fn held_until(&self) -> Option<Duration> {
        self.guard.deadline()
    }

    /// Lets what is held through; how many tables go.
    pub fn let_go(&mut self) -> usize {
        self.guard.let_go();
        self.deletions.forget_waiting();
        let gone: Vec<Arc<str>> = self.held_tables().map(|(name, _)| Arc::clone(name)).collect();
        gone.iter().for_each(|name| self.drop_table(name));
        gone.len()
    }

    /// A table is (no longer) one that may be gone.
    pub(super) fn hold(&mut self, name: &Arc<str>, held: bool) {
        let is_other = self.tables.get(name).is_some_and(|entry| entry.held != held);
        if is_other {
            self.disclaim(name);
            if let Some(entry) = self.tables.get_mut(name) {
                entry.held = held;
            }
            let dirty = self.claim(name);
            self.resolve(dirty);
        }
    }

    fn held_tables(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.tables.iter().filter(|(_, entry)| entry.held)
    }

    pub(super) fn held_vips(&self) -> usize {
        self.held_tables().map(|(_, entry)| entry.served.len()).sum()
    }

    /// After something that was held may have come back, or gone by name.
    pub(super) fn look_at_guard(&mut self) {
        if self.guard.held().is_some() {
            self.guard.now_holds(self.held_vips());
            if self.guard.held().is_none() {
                self.let_go();
            }
        }
    }
}
