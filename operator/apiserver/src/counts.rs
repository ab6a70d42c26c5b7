//! How often what was asked for.
//!
//! Never counts what is done in the process: seeding, and the chores of the server's own controllers.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// `create`, `update`, `patch`, `apply`, `delete`, `deletecollection`, `get`, `list`, `watch`.
    pub verb: String,
    /// `services`
    pub resource: String,
    /// `status`, or empty.
    pub subresource: String,
}

/// Numbers of requests over HTTP, those that were refused or met a fault included.
#[derive(Debug, Default)]
pub struct Counts {
    asked: Mutex<BTreeMap<Asked, u64>>,
}

impl Counts {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Asked, u64>) -> T) -> T {
        f(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn count(&self, verb: &str, resource: &str, subresource: &str) {
        let asked = Asked {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
        };
        self.with(|counts| *counts.entry(asked).or_default() += 1);
    }

    /// Of one kind; `*` is any verb, resource or subresource.
    pub fn of(&self, verb: &str, resource: &str, subresource: &str) -> u64 {
        let fits = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        self.with(|counts| {
            let fitting = counts.iter().filter(|(asked, _)| {
                fits(verb, &asked.verb) && fits(resource, &asked.resource) && fits(subresource, &asked.subresource)
            });
            fitting.map(|(_, count)| count).sum()
        })
    }

    /// All, without Events and Leases, which are written all the time.
    pub fn total(&self) -> u64 {
        self.with(|counts| {
            let counted = counts
                .iter()
                .filter(|(asked, _)| asked.resource != "events" && asked.resource != "leases");
            counted.map(|(_, count)| count).sum()
        })
    }

    /// Everything.
    pub fn all(&self) -> BTreeMap<Asked, u64> {
        self.with(|counts| counts.clone())
    }

    /// Starts from zero.
    pub fn reset(&self) {
        self.with(BTreeMap::clear);
    }
}
