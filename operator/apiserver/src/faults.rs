//! Faults on demand.
//!
//! Never loses what was stored: a fault is what a client sees, not what happened to the objects.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Faults that requests meet. Requests of [`crate::ApiServer::create`] and its like, in the process, meet none.
///
/// Verbs are `get`, `list`, `watch`, `create`, `update`, `patch`, `apply`, `delete` and `deletecollection`; resources are plural
/// names (`services`); `*` is any.
#[derive(Debug, Default)]
pub struct Faults {
    now: Mutex<Active>,
    /// Counts up when all watches are to end.
    watches_dropped: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Active {
    latency: Duration,
    planned: Vec<Planned>,
    no_bookmarks: bool,
    refusing: bool,
}

#[derive(Clone, Debug)]
struct Planned {
    verb: String,
    resource: String,
    fault: Fault,
    /// Requests left; none: until cleared.
    left: Option<u32>,
}

/// What a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An answer with this code instead of the true one; nothing is done.
    Answer(u16),
    /// The request is done and its connection cut before the answer.
    LoseAnswer,
    /// A watch gets 410 as its first event.
    Expire,
}

impl Faults {
    fn with<T>(&self, f: impl FnOnce(&mut Active) -> T) -> T {
        f(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn plan(&self, verb: &str, resource: &str, fault: Fault, left: Option<u32>) {
        let planned = Planned {
            verb: verb.into(),
            resource: resource.into(),
            fault,
            left,
        };
        self.with(|now| now.planned.push(planned));
    }

    /// Every request waits this long before anything is done.
    pub fn latency(&self, latency: Duration) {
        self.with(|now| now.latency = latency);
    }

    /// The next `count` requests of `verb` on `resource` are answered with `code` (409, 429, 500, 503, ...) and not done.
    pub fn fail_next(&self, count: u32, verb: &str, resource: &str, code: u16) {
        self.plan(verb, resource, Fault::Answer(code), Some(count));
    }

    /// All requests of `verb` on `resource` are answered with `code` (403, 404, ...) and not done, until [`Self::clear`].
    pub fn fail_always(&self, verb: &str, resource: &str, code: u16) {
        self.plan(verb, resource, Fault::Answer(code), None);
    }

    /// The next `count` requests of `verb` on `resource` are done, but the connection is cut before the answer.
    pub fn lose_answers(&self, count: u32, verb: &str, resource: &str) {
        self.plan(verb, resource, Fault::LoseAnswer, Some(count));
    }

    /// The next `count` watches of `resource` get 410 Expired as their first event.
    pub fn expire_next_watch(&self, count: u32, resource: &str) {
        self.plan("watch", resource, Fault::Expire, Some(count));
    }

    /// Ends all watches that are open, in the middle of whatever they were sending.
    pub fn drop_watches(&self) {
        self.watches_dropped.send_modify(|epoch| *epoch += 1);
    }

    /// No bookmarks are sent any more, except the one that ends initial events.
    pub fn stop_bookmarks(&self) {
        self.with(|now| now.no_bookmarks = true);
    }

    /// Connections are cut as soon as a request comes in, and watches are ended, until `refuse(false)` or [`Self::clear`].
    pub fn refuse(&self, refusing: bool) {
        self.with(|now| now.refusing = refusing);
        if refusing {
            self.drop_watches();
        }
    }

    /// Takes all faults away.
    pub fn clear(&self) {
        self.with(|now| *now = Active::default());
    }

    pub(crate) fn delay(&self) -> Duration {
        self.with(|now| now.latency)
    }

    pub(crate) fn refuses(&self) -> bool {
        self.with(|now| now.refusing)
    }

    pub(crate) fn bookmarks(&self) -> bool {
        self.with(|now| !now.no_bookmarks)
    }

    /// Changes when all watches are to end.
    pub(crate) fn watches_dropped(&self) -> watch::Receiver<u64> {
        self.watches_dropped.subscribe()
    }

    /// The fault that a request meets, which is used up by it.
    pub(crate) fn meet(&self, verb: &str, resource: &str) -> Option<Fault> {
        self.with(|now| {
            let fits = |planned: &Planned| {
                (planned.verb == "*" || planned.verb == verb)
                    && (planned.resource == "*" || planned.resource == resource)
            };
            let place = now.planned.iter().position(fits)?;
            let planned = &mut now.planned[place];
            let fault = planned.fault;
            if let Some(left) = &mut planned.left {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    now.planned.remove(place);
                }
            }
            Some(fault)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planned_fault_is_met_as_often_as_planned() {
        let faults = Faults::default();
        faults.fail_next(2, "apply", "services", 500);
        faults.fail_always("*", "nodes", 403);
        assert_eq!(faults.meet("apply", "viptables"), None);
        assert_eq!(faults.meet("apply", "services"), Some(Fault::Answer(500)));
        assert_eq!(faults.meet("apply", "services"), Some(Fault::Answer(500)));
        assert_eq!(faults.meet("apply", "services"), None);
        for _ in 0..3 {
            assert_eq!(faults.meet("list", "nodes"), Some(Fault::Answer(403)));
        }
        faults.clear();
        assert_eq!(faults.meet("list", "nodes"), None);
    }
}
