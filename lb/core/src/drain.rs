//! Backends that are drained by a word of an operator's: they keep the flows that live there and take no new ones, until a deadline.
//!
//! Never writes a table and knows no clock. A drain is weight 0 in every set ([`Drains::apply`]); transit keeps the flows of the slots
//! that move by it. A deadline that has passed makes the backend one at which nothing lives any more ([`Drains::removed`]).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::desired::{BackendId, BackendSet, Desired, VipKey};

/// VIPs that a refusal lists.
const LISTED_VIPS: usize = 4;

/// A backend that is being drained. Times are seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When it began.
    pub since: u64,
    /// When flows that still live there are given up; `None`: never, they end by themselves.
    pub deadline: Option<u64>,
}

/// Why a backend is not drained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    /// Nobody has this name.
    #[error("no backend is called {backend}; `vipline backends` lists them")]
    Unknown {
        /// As asked for.
        backend: BackendId,
    },
    /// Nobody would be left.
    #[error(
        "{backend} is the last backend that takes new connections of {}; give --force if that is meant",
        listed(.vips)
    )]
    Last {
        /// As asked for.
        backend: BackendId,
        /// VIPs that would have none.
        vips: Vec<VipKey>,
    },
}

/// `tcp 203.0.113.10:80, tcp 203.0.113.10:443 and 3 more`.
fn listed(vips: &[VipKey]) -> String {
    let names: Vec<String> = vips.iter().take(LISTED_VIPS).map(ToString::to_string).collect();
    let names = names.join(", ");
    match vips.len().saturating_sub(LISTED_VIPS) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// All backends that are being drained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drains(BTreeMap<BackendId, Drain>);

impl Drains {
    /// From what was kept.
    pub fn new(drains: impl IntoIterator<Item = (BackendId, Drain)>) -> Self {
        Self(drains.into_iter().collect())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&BackendId, Drain)> {
        self.0.iter().map(|(id, drain)| (id, *drain))
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this one is.
    pub fn of(&self, backend: &BackendId) -> Option<Drain> {
        self.0.get(backend).copied()
    }

    /// Drains a backend from `now` on, until `deadline`: one of `desired`, or one that is known (`has_flows`) because flows may live
    /// there. One that is drained already gets the new deadline, and keeps the old one where there is no new one.
    ///
    /// # Errors
    ///
    /// When nobody has this name; unless `force`, when a VIP would be left without a backend that takes new flows.
    pub fn begin(
        &mut self,
        backend: &BackendId,
        desired: &Desired,
        (now, deadline): (u64, Option<u64>),
        (force, has_flows): (bool, bool),
    ) -> Result<(), DrainError> {
        let before = self.of(backend);
        if !desired.backends.contains_key(backend) && !has_flows && before.is_none() {
            return Err(DrainError::Unknown {
                backend: backend.clone(),
            });
        }
        let last_of = self.last_of(backend, desired);
        if !force && !last_of.is_empty() && before.is_none() {
            return Err(DrainError::Last {
                backend: backend.clone(),
                vips: last_of,
            });
        }
        let since = before.map_or(now, |drain| drain.since);
        let deadline = deadline.or(before.and_then(|drain| drain.deadline));
        self.0.insert(backend.clone(), Drain { since, deadline });
        Ok(())
    }

    /// VIPs that only this backend takes new flows of.
    fn last_of(&self, backend: &BackendId, desired: &Desired) -> Vec<VipKey> {
        let takes = |set: &BackendSet, is_it: &dyn Fn(&BackendId) -> bool| {
            let mut takers = set.members.iter().filter(|member| member.weight > 0);
            takers.any(|member| is_it(&member.backend) && !self.0.contains_key(&member.backend))
        };
        let vips = desired.vips.iter();
        let only =
            vips.filter(|(_, vip)| takes(&vip.set, &|id| id == backend) && !takes(&vip.set, &|id| id != backend));
        only.map(|(key, _)| *key).collect()
    }

    /// The backend takes new flows again; whether it was drained.
    pub fn end(&mut self, backend: &BackendId) -> bool {
        self.0.remove(backend).is_some()
    }

    /// Forgets drains of backends that nothing names any more; whether there were some.
    pub fn forget(&mut self, is_known: impl Fn(&BackendId) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|id, _| is_known(id));
        self.0.len() != before
    }

    /// Gives those that are drained weight 0 in every set.
    pub fn apply(&self, desired: &mut Desired) {
        if self.is_empty() {
            return;
        }
        // Sets are shared by VIPs: what was one stays one.
        let mut known: BTreeMap<Arc<BackendSet>, Arc<BackendSet>> = BTreeMap::new();
        for vip in desired.vips.values_mut() {
            if !known.contains_key(&vip.set) {
                known.insert(Arc::clone(&vip.set), self.drained(&vip.set));
            }
            if let Some(set) = known.get(&vip.set) {
                vip.set = Arc::clone(set);
            }
        }
    }

    /// As [`Self::apply`]; a copy is made only where somebody is drained.
    pub fn applied<'a>(&self, desired: &'a Desired) -> Cow<'a, Desired> {
        let mut desired = Cow::Borrowed(desired);
        if !self.is_empty() {
            self.apply(desired.to_mut());
        }
        desired
    }

    fn drained(&self, set: &Arc<BackendSet>) -> Arc<BackendSet> {
        if !set.members.iter().any(|member| self.0.contains_key(&member.backend)) {
            return Arc::clone(set);
        }
        let mut drained = BackendSet::clone(set);
        for member in &mut drained.members {
            if self.0.contains_key(&member.backend) {
                member.weight = 0;
            }
        }
        Arc::new(drained)
    }

    /// Backends whose deadline has passed at `now`: flows that still live there go elsewhere.
    pub fn removed(&self, now: u64) -> BTreeSet<BackendId> {
        let removed = self.iter().filter(|(_, drain)| drain.is_over(now));
        removed.map(|(id, _)| id.clone()).collect()
    }
}

impl Drain {
    /// Whether its deadline has passed.
    pub fn is_over(&self, now: u64) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// Flows that `active` of `slots` slots mean, if flows choose slots at random: `-slots ln(1 - active/slots)`, the most likely number of
/// balls that leave so many bins empty. `None` when all are active: many.
pub fn flows_behind(active: usize, slots: usize) -> Option<u64> {
    if active >= slots {
        return (slots == 0).then_some(0);
    }
    let empty = 1.0 - active as f64 / slots as f64;
    Some((-(slots as f64) * empty.ln()).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Backend, Member, Protocol, Vip};

    fn id(name: &str) -> BackendId {
        BackendId(name.into())
    }

    fn key(port: u16) -> VipKey {
        VipKey {
            address: [203, 0, 113, 1].into(),
            protocol: Protocol::Tcp,
            port,
        }
    }

    /// VIPs by port, each with its members.
    fn world(vips: &[(u16, &[(&str, u16)])]) -> Desired {
        let mut desired = Desired::default();
        for (port, members) in vips {
            let members = members.iter().map(|(name, weight)| Member {
                backend: id(name),
                weight: *weight,
            });
            let set = BackendSet {
                members: members.collect(),
                table_slots: None,
            };
            for member in &set.members {
                let address = [192, 0, 2, 1].into();
                desired.backends.insert(member.backend.clone(), Backend { address });
            }
            desired.vips.insert(key(*port), Vip::new(Arc::new(set)));
        }
        desired
    }

    fn weights(desired: &Desired, port: u16) -> Vec<u16> {
        let set = &desired.vips[&key(port)].set;
        set.members.iter().map(|member| member.weight).collect()
    }

    #[test]
    fn a_drained_backend_has_weight_0_in_every_set_and_gets_its_weight_back() {
        let before = world(&[
            (80, &[("a", 10), ("b", 20)]),
            (443, &[("b", 5), ("c", 5)]),
            (53, &[("c", 1)]),
        ]);
        let mut drains = Drains::default();
        drains.begin(&id("b"), &before, (100, None), (false, false)).unwrap();
        let mut now = before.clone();
        drains.apply(&mut now);
        assert_eq!(weights(&now, 80), [10, 0]);
        assert_eq!(weights(&now, 443), [0, 5]);
        assert!(Arc::ptr_eq(&now.vips[&key(53)].set, &before.vips[&key(53)].set));
        assert_eq!(now.backends, before.backends, "it is still a backend: flows live there");
        assert!(drains.end(&id("b")) && !drains.end(&id("b")));
        let mut after = before.clone();
        drains.apply(&mut after);
        assert_eq!(after, before);
    }

    #[test]
    fn the_last_that_takes_new_flows_is_drained_by_force_only() {
        let desired = world(&[(80, &[("a", 1), ("b", 1), ("c", 0)]), (443, &[("a", 1), ("d", 1)])]);
        let mut drains = Drains::default();
        drains.begin(&id("a"), &desired, (0, None), (false, false)).unwrap();
        let refused = drains.begin(&id("b"), &desired, (0, None), (false, false));
        assert_eq!(
            refused,
            Err(DrainError::Last {
                backend: id("b"),
                vips: vec![key(80)]
            })
        );
        assert!(refused.unwrap_err().to_string().contains("tcp 203.0.113.1:80"));
        assert_eq!(drains.of(&id("b")), None, "nothing is half done");
        // One that takes none is nobody's last.
        drains.begin(&id("c"), &desired, (0, None), (false, false)).unwrap();
        drains.begin(&id("b"), &desired, (0, None), (true, false)).unwrap();
        let nobody = drains.begin(&id("x"), &desired, (0, None), (true, false));
        assert_eq!(nobody, Err(DrainError::Unknown { backend: id("x") }));
    }

    #[test]
    fn a_second_word_changes_the_deadline_and_not_the_beginning() {
        let desired = world(&[(80, &[("a", 1), ("b", 1)])]);
        let mut drains = Drains::default();
        drains
            .begin(&id("a"), &desired, (100, Some(700)), (false, false))
            .unwrap();
        assert_eq!(drains.removed(699), BTreeSet::new());
        assert_eq!(drains.removed(700), BTreeSet::from([id("a")]));
        // To look at it changes nothing.
        drains.begin(&id("a"), &desired, (650, None), (false, false)).unwrap();
        let drain = |drains: &Drains| {
            let drain = drains.of(&id("a")).unwrap();
            (drain.since, drain.deadline)
        };
        assert_eq!(drain(&drains), (100, Some(700)));
        drains
            .begin(&id("a"), &desired, (650, Some(900)), (false, false))
            .unwrap();
        assert_eq!(drain(&drains), (100, Some(900)));
        assert_eq!(drains.removed(899), BTreeSet::new());
        // One that has left may still have flows, which can be given up.
        let gone = Desired::default();
        drains.begin(&id("a"), &gone, (650, Some(650)), (false, false)).unwrap();
        drains.begin(&id("z"), &gone, (650, Some(650)), (false, true)).unwrap();
        assert_eq!(drains.removed(650), BTreeSet::from([id("a"), id("z")]));
        assert!(!drains.forget(|_| true) && drains.forget(|_| false) && drains.is_empty());
    }

    #[test]
    fn flows_are_estimated_from_the_slots_that_are_active() {
        assert_eq!(flows_behind(0, 0), Some(0));
        assert_eq!(flows_behind(0, 100), Some(0));
        assert_eq!(flows_behind(1, 100), Some(1));
        assert_eq!(flows_behind(50, 100), Some(69));
        assert_eq!(flows_behind(100, 100), None);
    }
}
