//! Health laid on what is desired: which members of a set take no new flows, in this plan.
//!
//! Never part of a set: a table that health has changed is known by its set and by who is out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Moment, Planning, write::Write};
use crate::{
    desired::{BackendId, BackendSet, Desired, Protocol, Vip},
    health::{Checks, Health, Unfit},
};

/// What the overlay comes to.
pub(super) struct Laid<'a> {
    /// By where the set stands in memory, and what is asked of its members.
    unfit: BTreeMap<(*const BackendSet, &'a Checks), Option<Unfit>>,
    /// Backends of which nothing lives any more, for somebody who believes the probes.
    dead: BTreeSet<BackendId>,
}

impl<'a> Laid<'a> {
    /// `known`: those of the plan before. Equal ones are mostly the same one, and so compare by where they stand.
    pub(super) fn new(desired: &'a Desired, moment: &Moment<'_>, known: &BTreeSet<Unfit>) -> Self {
        let mut laid = Self {
            unfit: BTreeMap::new(),
            dead: moment.dead.clone(),
        };
        let Some(overlay) = moment.overlay.filter(|overlay| !overlay.is_empty()) else {
            return laid;
        };
        for vip in desired.vips.values() {
            let Some(checks) = vip.checks.as_deref() else { continue };
            laid.unfit.entry((Arc::as_ptr(&vip.set), checks)).or_insert_with(|| {
                let unfit = overlay.unfit(&vip.set, Some(checks))?;
                Some(known.get(&unfit).cloned().unwrap_or(unfit))
            });
        }
        for unfit in laid.unfit.values().flatten() {
            let dead = unfit.iter().filter(|(_, health)| *health == Health::Dead);
            laid.dead.extend(dead.map(|(backend, _)| backend.clone()));
        }
        laid
    }

    /// Members of a VIP's set that take none of its new flows.
    pub(super) fn of<'v>(&'v self, vip: &'v Vip) -> Option<&'v Unfit> {
        if self.unfit.is_empty() {
            return None;
        }
        self.unfit
            .get(&(Arc::as_ptr(&vip.set), vip.checks.as_deref()?))?
            .as_ref()
    }

    /// Whether nothing of a backend lives any more.
    pub(super) fn is_dead(&self, backend: &BackendId) -> bool {
        self.dead.contains(backend)
    }

    /// All of them.
    pub(super) fn known(&self) -> BTreeSet<Unfit> {
        self.unfit.values().flatten().cloned().collect()
    }

    /// Backends at which no VIP keeps UDP flows any more: out of the set of every one that would. A record does not say whose flow it is.
    fn without_datagrams(&self, desired: &Desired) -> BTreeSet<BackendId> {
        if self.unfit.values().all(Option::is_none) {
            return BTreeSet::new();
        }
        let keep = desired
            .vips
            .iter()
            .filter(|(key, vip)| key.protocol == Protocol::Udp && vip.keeps_datagrams);
        let groups: BTreeMap<_, (&BackendSet, Option<&Unfit>)> = keep
            .map(|(_, vip)| {
                let key = (Arc::as_ptr(&vip.set), vip.checks.as_deref());
                (key, (&*vip.set, self.of(vip)))
            })
            .collect();
        let out = groups.values().filter_map(|(_, unfit)| *unfit);
        let mut without: BTreeSet<BackendId> = out.flat_map(Unfit::iter).map(|(backend, _)| backend.clone()).collect();
        without.retain(|backend| {
            groups.values().all(|(set, unfit)| {
                let is_out = unfit.is_some_and(|unfit| unfit.health(backend) != Health::Eligible);
                is_out
                    || set
                        .members
                        .binary_search_by(|member| member.backend.cmp(backend))
                        .is_err()
            })
        });
        without
    }
}

impl Planning<'_> {
    /// Forgets the records of UDP flows at backends that have come to be unhealthy: such flows move at once. By now nothing makes new
    /// ones, once nobody has an older table in hand. Whether that was waited for.
    pub(super) fn forget_datagrams(&mut self, waited: bool) -> bool {
        let without = self.laid.without_datagrams(self.desired);
        let before = std::mem::replace(&mut self.books.without_datagrams, without);
        if !self.keeps_flows || !self.had_transits {
            return waited;
        }
        let new = self.books.without_datagrams.difference(&before);
        let indexes: Box<[_]> = new.filter_map(|id| Some(self.books.backends.get(id)?.index)).collect();
        if indexes.is_empty() {
            return waited;
        }
        if !waited {
            self.draft.grace();
        }
        self.draft.zero(Write::ForgetDatagrams(indexes));
        true
    }
}
