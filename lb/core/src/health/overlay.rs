//! From states to members that take no new flows: what the planner is told.
//!
//! Never changes what is desired: tables are built from that, and the overlay is laid on them.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    check::{Check, Checks, WhenNone},
    slots,
};
use crate::desired::{BackendId, BackendSet, Member};

/// What becomes of a backend's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It takes new flows.
    #[default]
    Eligible,
    /// It takes no new flows; UDP moves at once, TCP that lives stays.
    Unhealthy,
    /// Confirmed: nothing of it lives, all of it moves.
    Dead,
}

impl Health {
    /// As output writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eligible => "eligible",
            Self::Unhealthy => "unhealthy",
            Self::Dead => "dead",
        }
    }
}

/// Health of every backend, for every check. What does not stand here is eligible. Cheap to clone and to compare with what it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    of: Arc<BTreeMap<BackendId, Fallen>>,
}

/// A backend that is not eligible for somebody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fallen {
    /// For everybody who checks it at all: its neighbour does not answer.
    neighbour: Health,
    /// Some check of it succeeds: whoever hears nothing hears nothing of one port, and not of a host that is dead.
    answers: bool,
    /// For those with this check.
    checks: BTreeMap<Arc<Check>, Health>,
}

impl Fallen {
    fn is_none(&self) -> bool {
        self.neighbour == Health::Eligible && self.checks.is_empty()
    }

    fn of(&self, checks: &Checks) -> Health {
        let states = checks.list.iter().filter_map(|check| self.checks.get(check).copied());
        match states.max().unwrap_or_default() {
            Health::Dead if self.answers => self.neighbour.max(Health::Unhealthy),
            health => self.neighbour.max(health),
        }
    }
}

/// Members of a set that are not eligible: sorted, never empty; all that have a weight only under [`WhenNone::Reject`]. Part of what
/// a table is known by, beside the set and its size: sets without any have `None`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unfit(Arc<[(BackendId, Health)]>);

impl Unfit {
    /// Who, and how.
    pub fn iter(&self) -> impl Iterator<Item = (&BackendId, Health)> {
        self.0.iter().map(|(backend, health)| (backend, *health))
    }

    /// Whether it is the very same as the other: equal without a look.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Where it stands in memory.
    pub(crate) fn addr(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Of a member.
    pub fn health(&self, backend: &BackendId) -> Health {
        match self.0.binary_search_by(|(other, _)| other.cmp(backend)) {
            Ok(at) => self.0[at].1,
            Err(_) => Health::Eligible,
        }
    }

    /// A set's table, as [`maglev::build`](crate::maglev::build) gives it, with the slots of these members given to others; see
    /// [`super::replaced`]. `None`: it stays as it is, because none of them has a weight, or nobody else.
    pub fn replaced(&self, members: &[Member], table: &[u16]) -> Option<Vec<u16>> {
        let health: Vec<Health> = members.iter().map(|member| self.health(&member.backend)).collect();
        slots::replaced(members, table, &health)
    }
}

/// What is left of a set's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    All,
    Some { weight: u64, of: u64 },
    None,
}

impl Overlay {
    /// With these backends fallen, each for those who have the check.
    pub fn of<'a>(fallen: impl IntoIterator<Item = (&'a BackendId, &'a Arc<Check>, Health)>) -> Self {
        let mut overlay = Self::default();
        for (backend, check, health) in fallen {
            overlay.set(backend, check, health);
        }
        overlay
    }

    /// Whether all are eligible.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Health of a backend for those who have these checks, whatever becomes of the set.
    pub fn health(&self, backend: &BackendId, checks: &Checks) -> Health {
        self.of
            .get(backend)
            .map_or(Health::Eligible, |fallen| fallen.of(checks))
    }

    /// Members of a set that are not eligible, for VIPs with these checks. `None`: all are; or less of the set's weight is left than
    /// the panic threshold and so all are taken for it: it is likelier then that the probes err, and the rest could not carry all; or
    /// nobody is left, and the checks say that all are used then. Who has weight 0 counts for nothing, and may be unfit all the same:
    /// flows may live there.
    pub fn unfit(&self, set: &BackendSet, checks: Option<&Checks>) -> Option<Unfit> {
        let checks = checks?;
        let fallen = self.fallen(set, checks);
        let is_believed = match Self::left(set, &fallen) {
            Left::All => !fallen.is_empty(),
            Left::None => checks.when_none == WhenNone::Reject,
            Left::Some { weight, of } => weight * 100 >= of * u64::from(checks.panic_percent),
        };
        let named = fallen
            .into_iter()
            .map(|(member, health)| (member.backend.clone(), health));
        is_believed.then(|| Unfit(named.collect()))
    }

    /// Whether nearly nobody of a set is left, so that the overlay is not believed.
    pub fn is_panic(&self, set: &BackendSet, checks: &Checks) -> bool {
        !self.fallen(set, checks).is_empty() && self.unfit(set, Some(checks)).is_none()
    }

    /// Whether nobody of a set that has anybody is left, so that its VIPs' new flows are refused.
    pub fn is_refused(&self, set: &BackendSet, checks: &Checks) -> bool {
        Self::left(set, &self.fallen(set, checks)) == Left::None && self.unfit(set, Some(checks)).is_some()
    }

    /// Whether a backend is dead for everybody: its neighbour does not answer, or it is silent where it was only asked whether it is
    /// [there](Check::presence).
    pub fn is_gone(&self, backend: &BackendId) -> bool {
        let Some(fallen) = self.of.get(backend) else {
            return false;
        };
        let is_silent = || fallen.checks.get(&Check::presence()) == Some(&Health::Dead);
        fallen.neighbour == Health::Dead || is_silent()
    }

    /// Members that are not eligible, in the set's order. Looks through the shorter of the two lists.
    fn fallen<'a>(&self, set: &'a BackendSet, checks: &Checks) -> Vec<(&'a Member, Health)> {
        let is_out = |(_, health): &(&Member, Health)| *health != Health::Eligible;
        if set.members.len() <= self.of.len() {
            let healths = set
                .members
                .iter()
                .map(|member| (member, self.health(&member.backend, checks)));
            return healths.filter(is_out).collect();
        }
        let member = |backend: &BackendId| {
            let at = set
                .members
                .binary_search_by(|member| member.backend.cmp(backend))
                .ok()?;
            set.members.get(at)
        };
        let healths = self
            .of
            .iter()
            .filter_map(|(backend, fallen)| Some((member(backend)?, fallen.of(checks))));
        healths.filter(is_out).collect()
    }

    fn left(set: &BackendSet, fallen: &[(&Member, Health)]) -> Left {
        let weight = |member: &Member| u64::from(member.weight);
        let of: u64 = set.members.iter().map(weight).sum();
        let lost: u64 = fallen.iter().map(|(member, _)| weight(member)).sum();
        match of - lost {
            _ if lost == 0 => Left::All,
            0 => Left::None,
            weight => Left::Some { weight, of },
        }
    }

    /// A check of a backend came to be this; whether that is news.
    pub(super) fn set(&mut self, backend: &BackendId, check: &Arc<Check>, health: Health) -> bool {
        self.change(backend, |fallen| match health {
            Health::Eligible => fallen.checks.remove(check).is_some(),
            Health::Unhealthy | Health::Dead => fallen.checks.insert(Arc::clone(check), health) != Some(health),
        })
    }

    /// Whether any check of a backend succeeds; nothing where none has fallen.
    pub(super) fn set_answers(&mut self, backend: &BackendId, answers: bool) -> bool {
        if !self.of.contains_key(backend) {
            return false;
        }
        self.change(backend, |fallen| {
            std::mem::replace(&mut fallen.answers, answers) != answers
        })
    }

    /// A backend's neighbour came to be this; whether that is news.
    pub(super) fn set_neighbour(&mut self, backend: &BackendId, health: Health) -> bool {
        self.change(backend, |fallen| {
            std::mem::replace(&mut fallen.neighbour, health) != health
        })
    }

    fn change(&mut self, backend: &BackendId, change: impl FnOnce(&mut Fallen) -> bool) -> bool {
        let mut fallen = self.of.get(backend).cloned().unwrap_or_default();
        if !change(&mut fallen) {
            return false;
        }
        let of = Arc::make_mut(&mut self.of);
        if fallen.is_none() {
            of.remove(backend);
        } else {
            of.insert(backend.clone(), fallen);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> BackendId {
        BackendId(name.into())
    }

    fn set(members: &[(&str, u16)]) -> BackendSet {
        let member = |(name, weight): &(&str, u16)| Member {
            backend: id(name),
            weight: *weight,
        };
        BackendSet {
            members: members.iter().map(member).collect(),
            table_slots: None,
        }
    }

    fn overlay(checks: &Checks, fallen: &[(&str, Health)]) -> Overlay {
        let mut overlay = Overlay::default();
        for (name, health) in fallen {
            assert!(overlay.set(&id(name), &checks.list[0], *health));
        }
        overlay
    }

    fn named(unfit: Option<Unfit>) -> Vec<(String, Health)> {
        let named = |unfit: Unfit| unfit.iter().map(|(id, health)| (id.to_string(), health)).collect();
        unfit.map(named).unwrap_or_default()
    }

    #[test]
    fn a_check_concerns_those_who_have_it_and_the_worst_of_them_counts() {
        let (one, other) = (Check::kube(1), Check::kube(2));
        let [first, second, both] = [vec![one.clone()], vec![other.clone()], vec![one, other]].map(Checks::new);
        let mut overlay = overlay(&first, &[("a", Health::Unhealthy)]);
        assert!(!overlay.set(&id("a"), &first.list[0], Health::Unhealthy), "no news");
        let of = |overlay: &Overlay| [&first, &second, &both].map(|checks| overlay.health(&id("a"), checks));
        assert_eq!(of(&overlay), [Health::Unhealthy, Health::Eligible, Health::Unhealthy]);
        overlay.set(&id("a"), &second.list[0], Health::Dead);
        assert_eq!(of(&overlay), [Health::Unhealthy, Health::Dead, Health::Dead]);
        overlay.set(&id("a"), &first.list[0], Health::Eligible);
        overlay.set(&id("a"), &second.list[0], Health::Eligible);
        assert!(overlay.is_empty());
        overlay.set_neighbour(&id("a"), Health::Dead);
        assert_eq!(of(&overlay), [Health::Dead; 3]);
        let unchecked = set(&[("a", 1), ("b", 1)]);
        assert_eq!(
            overlay.unfit(&unchecked, None),
            None,
            "who asks for no checks hears of none"
        );
    }

    #[test]
    fn below_the_threshold_and_with_nobody_left_the_overlay_is_not_believed() {
        let five = set(&[("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]);
        let fall_when_none = |count: usize, percent, when_none| {
            let mut checks = Checks::new([Check::kube(1)]);
            checks.panic_percent = percent;
            checks.when_none = when_none;
            let names = ["a", "b", "c", "d", "e"].map(|name| (name, Health::Dead));
            let overlay = overlay(&checks, &names[..count]);
            let unfit = named(overlay.unfit(&five, Some(&checks))).len();
            assert_eq!(overlay.is_panic(&five, &checks), count > 0 && unfit == 0);
            assert_eq!(overlay.is_refused(&five, &checks), unfit == 5);
            unfit
        };
        let fall = |count, percent| fall_when_none(count, percent, WhenNone::UseAll);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|count| fall(count, 0)), [0, 1, 2, 3, 4, 0]);
        assert_eq!([1, 3, 4, 5].map(|count| fall(count, DEFAULT_PANIC)), [1, 3, 0, 0]);
        assert_eq!([2, 3].map(|count| fall(count, 50)), [2, 0]);
        assert_eq!([1, 5].map(|count| fall(count, 100)), [0, 0]);
        // Unless flows are refused when nobody is left.
        let refuses = |count| fall_when_none(count, DEFAULT_PANIC, WhenNone::Reject);
        assert_eq!([1, 3, 4, 5].map(refuses), [1, 3, 0, 5]);
    }

    #[test]
    fn who_answers_any_check_is_not_dead_for_those_who_hear_nothing() {
        let (one, other) = (Check::kube(1), Check::kube(2));
        let [first, both] = [vec![one.clone()], vec![one, other]].map(Checks::new);
        let mut overlay = overlay(&first, &[("a", Health::Dead)]);
        let of = |overlay: &Overlay| [&first, &both].map(|checks| overlay.health(&id("a"), checks));
        assert_eq!(of(&overlay), [Health::Dead; 2]);
        assert!(overlay.set_answers(&id("a"), true));
        assert_eq!(of(&overlay), [Health::Unhealthy; 2]);
        overlay.set_neighbour(&id("a"), Health::Dead);
        assert_eq!(of(&overlay), [Health::Dead; 2], "the kernel knows better");
        overlay.set_neighbour(&id("a"), Health::Eligible);
        overlay.set(&id("a"), &first.list[0], Health::Eligible);
        assert!(overlay.is_empty());
        assert!(
            !overlay.set_answers(&id("a"), true),
            "of one that has not fallen nothing is kept"
        );
    }

    const DEFAULT_PANIC: u8 = super::super::check::DEFAULT_PANIC_PERCENT;

    #[test]
    fn shares_count_by_weight_and_the_drained_not_at_all() {
        let checks = Checks {
            panic_percent: 50,
            ..Checks::new([Check::kube(1)])
        };
        let heavy = set(&[("a", 10), ("b", 1), ("c", 1), ("drained", 0)]);
        let fall = |names: &[&str]| {
            let fallen: Vec<_> = names.iter().map(|name| (*name, Health::Unhealthy)).collect();
            named(overlay(&checks, &fallen).unfit(&heavy, Some(&checks)))
        };
        assert_eq!(fall(&["a"]), [], "2 of 12 are left");
        assert_eq!(fall(&["b", "c"]).len(), 2);
        // It takes nothing anyway; what lives there is another matter.
        let unhealthy = |names: &[&str]| -> Vec<_> {
            let named = names.iter().map(|name| ((*name).to_owned(), Health::Unhealthy));
            named.collect()
        };
        assert_eq!(fall(&["drained"]), unhealthy(&["drained"]));
        assert_eq!(fall(&["b", "drained", "stranger"]), unhealthy(&["b", "drained"]));
    }

    proptest! {
        #[test]
        fn a_set_is_emptied_only_where_that_is_asked_for_and_nothing_moves_but_what_fell(
            weights in proptest::collection::vec(0..5u16, 1..12),
            fallen in proptest::collection::vec(0..3u8, 12),
            panic_percent in 0..=100u8,
            refuses in any::<bool>(),
        ) {
            let names: Vec<String> = (0..weights.len()).map(|at| format!("worker-{at:02}")).collect();
            let members: Vec<(&str, u16)> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
            let set = set(&members);
            let when_none = if refuses { WhenNone::Reject } else { WhenNone::UseAll };
            let checks = Checks { panic_percent, when_none, ..Checks::new([Check::kube(1)]) };
            let mut overlay = Overlay::default();
            for (name, fallen) in names.iter().zip(&fallen) {
                let health = [Health::Eligible, Health::Unhealthy, Health::Dead][usize::from(*fallen)];
                overlay.set(&id(name), &checks.list[0], health);
            }
            let table = crate::maglev::build(&set.members, 256);
            let unfit = overlay.unfit(&set, Some(&checks));
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let left: u64 = weights.iter().zip(&fallen).filter(|(_, fallen)| **fallen == 0).map(|(w, _)| u64::from(*w)).sum();
            let any = fallen.iter().take(weights.len()).any(|fallen| *fallen != 0);
            let enough = if left == 0 { refuses } else { left * 100 >= total * u64::from(panic_percent) };
            let believed = any && (left == total || enough);
            prop_assert_eq!(unfit.is_some(), believed);
            prop_assert_eq!(overlay.is_refused(&set, &checks), believed && left == 0 && total > 0);
            prop_assert_eq!(overlay.is_panic(&set, &checks), any && !believed);
            let Some(unfit) = unfit else { return Ok(()) };
            let Some(after) = unfit.replaced(&set.members, &table) else {
                prop_assert!(left == 0 || left == total);
                return Ok(());
            };
            for (before, after) in table.iter().zip(&after) {
                let fell = fallen[usize::from(*before)] != 0;
                prop_assert_eq!(fell, before != after);
                prop_assert_eq!(fallen[usize::from(*after)], 0);
            }
        }
    }
}
