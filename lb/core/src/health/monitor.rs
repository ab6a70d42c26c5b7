//! What is probed for a desired state: each check of each backend once, however many VIPs ask for it.
//!
//! Never probes more than [`MAX_TARGETS`] things, has more than [`MAX_FLYING`] probes in flight, or makes more than
//! [`MAX_PROBES_PER_SECOND`](super::MAX_PROBES_PER_SECOND).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    check::{Check, Checks, Probe, Timing},
    fsm::{Change, Fsm, State},
    outcome::{Failure, Fault, Outcome},
    overlay::{Health, Overlay},
    report::{CheckReport, Sums},
    schedule::Schedule,
};
use crate::{
    desired::{BackendId, BackendSet, Desired, NextHop, Protocol, Vip, VipKey},
    nexthop::{NextHopView, Unresolved},
};

/// Most checks of backends that are probed: about 500 bytes each, so 32 MiB. What is beyond is not probed, and so eligible.
pub const MAX_TARGETS: usize = 65_536;
/// Most probes in flight, each a file descriptor and at most 64 KiB of an answer's body.
pub const MAX_FLYING: usize = 1024;
/// How often the kernel's word about neighbours is looked at: those that do not answer, and those that did not.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How long a VIP must have been desired before it is asked for through the tunnel: its Service's status comes after the maps, and
/// nodes take it up after that.
pub const VIP_SETTLES: Duration = Duration::from_secs(30);
/// How long an answer shows that a check which [needs proof](Check::needs_proof) can be answered. Where nodes drop what comes through
/// the tunnel from this node's own address, or no kube-proxy serves its health port, all of them would be taken for down, one after
/// the other, and by each LB node in another order.
pub const PROOF_HOLDS: Duration = Duration::from_secs(60);
/// VIPs that a tunnel probe looks at before it gives up finding one that has settled.
const LOOKS: usize = 8;
/// Of neighbours: the kernel has asked often enough before it says that one does not answer.
const NEIGHBOUR: Timing = Timing {
    interval_ms: 1000,
    timeout_ms: 1000,
    rise: 1,
    fall: 1,
    damping_ms: 5000,
    dead_after_ms: 0,
    startup_ms: 0,
};

/// A probe to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// To be handed back with the outcome.
    pub ticket: Ticket,
    /// Of whom.
    pub backend: BackendId,
    /// Its address.
    pub address: IpAddr,
    /// What, and how long to wait.
    pub check: Arc<Check>,
    /// Through the tunnel: the VIP to ask for.
    pub vip: Option<VipKey>,
}

/// Which probe an outcome is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    target: u64,
    round: u64,
}

/// Each check of each backend: where that is, and VIPs to choose from through the tunnel.
type Asked = BTreeMap<(BackendId, Arc<Check>), (IpAddr, Vec<Arc<[VipKey]>>)>;

/// One check of one backend.
#[derive(Clone, Debug)]
struct Target {
    backend: BackendId,
    address: IpAddr,
    check: Arc<Check>,
    fsm: Fsm,
    /// The round in flight.
    flying: Option<u64>,
    /// VIPs to choose from, through the tunnel.
    vips: Vec<Arc<[VipKey]>>,
}

/// What there is to probe for a desired state; made by [`Wanted::new`] where the desired state is, and cheap to hand over.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    groups: Vec<Group>,
    addresses: BTreeMap<BackendId, IpAddr>,
    /// In no set any more, and kept for flows that may live there.
    departed: BTreeMap<BackendId, IpAddr>,
    /// Those of them that are no more, as far as the source knows.
    gone: BTreeSet<BackendId>,
}

/// VIPs with the same set and the same checks.
#[derive(Clone, Debug)]
struct Group {
    set: Arc<BackendSet>,
    checks: Arc<Checks>,
    /// Those that a probe through the tunnel may ask for.
    vips: Vec<VipKey>,
}

impl Wanted {
    /// Of a desired state.
    pub fn new(desired: &Desired) -> Self {
        let mut groups: BTreeMap<(*const BackendSet, &Checks), Group> = BTreeMap::new();
        for (key, vip) in &desired.vips {
            let Some(checks) = &vip.checks else { continue };
            let group = groups
                .entry((Arc::as_ptr(&vip.set), &**checks))
                .or_insert_with(|| Group {
                    set: Arc::clone(&vip.set),
                    checks: Arc::clone(checks),
                    vips: Vec::new(),
                });
            if can_be_asked_for(key, vip) {
                group.vips.push(*key);
            }
        }
        let addresses = if groups.is_empty() {
            BTreeMap::new()
        } else {
            let backends = desired.backends.iter();
            backends.map(|(id, backend)| (id.clone(), backend.address)).collect()
        };
        // By the first VIP of each: where things stand in memory decides nothing.
        let mut groups: Vec<Group> = groups.into_values().collect();
        groups.sort_by(|a, b| (&a.vips, &a.set, &a.checks).cmp(&(&b.vips, &b.set, &b.checks)));
        Self {
            groups,
            addresses,
            departed: BTreeMap::new(),
            gone: desired.gone.clone(),
        }
    }

    /// With backends that are in no set any more, and kept for flows that may live there: where their neighbours do not answer they are
    /// dead. Nothing is asked of them, unless the source says that they are gone: then whether they are [there](Check::presence). Of
    /// nobody where nothing is probed.
    #[must_use]
    pub fn keeping(mut self, departed: impl IntoIterator<Item = (BackendId, IpAddr)>) -> Self {
        if !self.groups.is_empty() {
            self.departed.extend(departed);
        }
        self
    }
}

/// A VIP with source ranges would not let this node in.
fn can_be_asked_for(key: &VipKey, vip: &Vip) -> bool {
    key.protocol == Protocol::Tcp && vip.allowed_sources.is_none()
}

/// Everything that is probed.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    schedule: Schedule,
    next_id: u64,
    targets: BTreeMap<u64, Target>,
    ids: BTreeMap<BackendId, BTreeMap<Arc<Check>, u64>>,
    unprobed: usize,
    flying: usize,
    late: Duration,
    /// Since when VIPs that may be asked for through the tunnel are desired.
    vips: BTreeMap<VipKey, Duration>,
    /// Backends that anybody checks, and where they are.
    backends: BTreeMap<BackendId, IpAddr>,
    /// Those that are only asked whether they are there.
    gone: BTreeSet<BackendId>,
    /// Those whose neighbour does not answer, and which neighbour that is.
    silent: BTreeMap<BackendId, IpAddr>,
    /// Those whose next hop is known.
    reached: BTreeSet<BackendId>,
    /// Of those whose neighbour ever failed to answer.
    neighbours: BTreeMap<BackendId, Fsm>,
    sweep: Duration,
    /// When checks that need proof were last answered, by anybody.
    answered: BTreeMap<Arc<Check>, Duration>,
    overlay: Overlay,
    outcomes: BTreeMap<(&'static str, &'static str), u64>,
    /// Of health, of all checks and neighbours.
    changes: u64,
}

impl Monitor {
    /// Nothing to probe. `seed`: this node's own, so that LB nodes do not probe in step.
    pub fn new(seed: u64) -> Self {
        Self {
            schedule: Schedule::new(seed),
            ..Self::default()
        }
    }

    /// Probes this from now on. What was probed before goes on as it was; what is not wanted any more is forgotten.
    pub fn watch(&mut self, wanted: &Wanted, now: Duration) {
        let mut targets = Asked::new();
        let mut vips = BTreeSet::new();
        self.backends.clone_from(&wanted.departed);
        self.unprobed = 0;
        for group in &wanted.groups {
            let asked: Arc<[VipKey]> = group.vips.as_slice().into();
            for check in &group.checks.list {
                let through_tunnel = check.probe == Probe::Tunnel;
                if through_tunnel {
                    vips.extend(group.vips.iter().copied());
                }
                for member in &group.set.members {
                    let Some(address) = wanted.addresses.get(&member.backend) else {
                        continue;
                    };
                    self.backends.insert(member.backend.clone(), *address);
                    let key = (member.backend.clone(), Arc::clone(check));
                    if targets.len() >= MAX_TARGETS && !targets.contains_key(&key) {
                        self.unprobed += 1;
                        continue;
                    }
                    let target = targets.entry(key).or_insert((*address, Vec::new()));
                    if through_tunnel && !asked.is_empty() {
                        target.1.push(Arc::clone(&asked));
                    }
                }
            }
        }
        self.gone.clear();
        let presence = Arc::new(Check::presence());
        for (backend, address) in wanted.departed.iter().filter(|(id, _)| wanted.gone.contains(*id)) {
            if targets.len() >= MAX_TARGETS {
                self.unprobed += 1;
                continue;
            }
            self.gone.insert(backend.clone());
            targets.insert((backend.clone(), Arc::clone(&presence)), (*address, Vec::new()));
        }
        self.vips.retain(|vip, _| vips.contains(vip));
        for vip in vips {
            self.vips.entry(vip).or_insert(now);
        }
        self.replace(targets, now);
        let gone: Vec<BackendId> = self.neighbours.keys().cloned().collect();
        for backend in gone.into_iter().filter(|backend| !self.backends.contains_key(backend)) {
            self.neighbours.remove(&backend);
            self.overlay.set_neighbour(&backend, Health::Eligible);
        }
    }

    fn replace(&mut self, wanted: Asked, now: Duration) {
        let stays = |target: &Target| {
            let key = (target.backend.clone(), Arc::clone(&target.check));
            wanted.get(&key).is_some_and(|(address, _)| *address == target.address)
        };
        let gone = self.targets.iter().filter(|(_, target)| !stays(target));
        let gone: Vec<u64> = gone.map(|(id, _)| *id).collect();
        for id in gone {
            let Some(target) = self.targets.remove(&id) else {
                continue;
            };
            if let Some(ids) = self.ids.get_mut(&target.backend) {
                ids.remove(&target.check);
            }
            self.schedule.remove(id);
            self.overlay.set(&target.backend, &target.check, Health::Eligible);
            self.flying -= usize::from(target.flying.is_some());
            self.note_answers(&target.backend);
        }
        self.ids.retain(|_, ids| !ids.is_empty());
        let checks: BTreeSet<&Arc<Check>> = wanted.keys().map(|(_, check)| check).collect();
        self.answered.retain(|check, _| checks.contains(check));
        for ((backend, check), (address, vips)) in wanted {
            let ids = self.ids.entry(backend.clone()).or_default();
            if let Some(target) = ids.get(&check).and_then(|id| self.targets.get_mut(id)) {
                target.vips = vips;
                continue;
            }
            let id = self.next_id;
            self.next_id += 1;
            ids.insert(Arc::clone(&check), id);
            let interval = Duration::from_millis(check.timing.interval_ms.into());
            self.schedule.add(id, interval, now);
            self.targets.insert(
                id,
                Target {
                    backend,
                    address,
                    check,
                    fsm: Fsm::new(now),
                    flying: None,
                    vips,
                },
            );
        }
    }

    /// The kernel's word about next hops.
    pub fn hear(&mut self, view: &NextHopView) {
        let failed = view.unresolved.iter().filter_map(|(backend, why)| match why {
            Unresolved::NeighbourFailed(neighbour, _) => Some((backend.clone(), *neighbour)),
            Unresolved::NotLookedUp
            | Unresolved::Route(_)
            | Unresolved::EgressUnknown(_)
            | Unresolved::EgressNotConfigured(_)
            | Unresolved::EgressDown(_)
            | Unresolved::EgressNotEthernet(_)
            | Unresolved::EgressTags(_)
            | Unresolved::NoSource(_)
            | Unresolved::NeighbourResolving(..) => None,
        });
        self.silent = failed.collect();
        let reached =
            |backend: &&BackendId| matches!(view.next_hops.get(*backend), Some(NextHop::Via(_) | NextHop::Local));
        self.reached = self.neighbours.keys().filter(reached).cloned().collect();
    }

    /// When [`Self::launch`] or [`Self::sweep`] has something to do next; while all there may be is in flight, when one comes back.
    pub fn next(&self) -> Option<Duration> {
        let sweeps = !self.silent.is_empty() || self.neighbours.values().any(|fsm| fsm.state() != State::Healthy);
        let launch = self.schedule.next().filter(|_| self.flying < MAX_FLYING);
        match (launch, sweeps.then_some(self.sweep)) {
            (Some(launch), Some(sweep)) => Some(launch.min(sweep)),
            (next, None) | (None, next) => next,
        }
    }

    /// Looks at neighbours, if it is time; what changed.
    pub fn sweep(&mut self, now: Duration) -> Vec<(BackendId, Change)> {
        let mut changes = Vec::new();
        if now < self.sweep {
            return changes;
        }
        self.sweep = now + SWEEP_EVERY;
        // A gateway that does not answer is nobody's death: probes find out who is behind it, by another way perhaps.
        let (silent, backends) = (&self.silent, &self.backends);
        let is_silent = |backend: &BackendId| {
            let neighbour = silent.get(backend);
            neighbour.is_some() && neighbour == backends.get(backend)
        };
        for backend in silent.keys().filter(|backend| is_silent(backend)) {
            self.neighbours.entry(backend.clone()).or_insert_with(|| Fsm::new(now));
        }
        for (backend, fsm) in &mut self.neighbours {
            let result = if is_silent(backend) {
                Err(Failure::NeighbourFailed)
            } else if self.reached.contains(backend) {
                Ok(())
            } else {
                continue;
            };
            if let Some(change) = fsm.step(result, now, &NEIGHBOUR) {
                self.overlay.set_neighbour(backend, change.to.health());
                self.changes += u64::from(change.is_of_health());
                changes.push((backend.clone(), change));
            }
        }
        changes
    }

    /// A probe that is to be made now. Every one must come back by [`Self::finish`].
    pub fn launch(&mut self, now: Duration) -> Option<Launch> {
        while self.flying < MAX_FLYING {
            let due = self.schedule.take(now)?;
            self.late = (self.late * 7 + due.late) / 8;
            let from = self.schedule.random(due.id, u64::MAX);
            let Some(target) = self.targets.get_mut(&due.id) else {
                continue;
            };
            let vip = match target.check.probe {
                Probe::Tunnel => match choose(&target.vips, (from, due.round), &self.vips, now) {
                    Some(vip) => Some(vip),
                    None => {
                        let label = (target.check.probe.name(), Outcome::Skipped(Fault::NoVip).name());
                        *self.outcomes.entry(label).or_default() += 1;
                        self.schedule.put_back(due.id, now);
                        continue;
                    }
                },
                Probe::Tcp { .. } | Probe::Http(_) => None,
            };
            target.flying = Some(due.round);
            self.flying += 1;
            return Some(Launch {
                ticket: Ticket {
                    target: due.id,
                    round: due.round,
                },
                backend: target.backend.clone(),
                address: target.address,
                check: Arc::clone(&target.check),
                vip,
            });
        }
        None
    }

    /// What came of a probe; what that changed, and of whom. That of a probe which nobody wants any more changes nothing.
    pub fn finish(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Duration,
    ) -> Option<(BackendId, Arc<Check>, Change)> {
        let target = self.targets.get_mut(&ticket.target)?;
        if target.flying != Some(ticket.round) {
            return None;
        }
        target.flying = None;
        self.flying -= 1;
        self.schedule.put_back(ticket.target, now);
        let mut outcome = outcome;
        if target.check.needs_proof {
            let answered = self.answered.get(&target.check);
            if outcome.is_answer() {
                self.answered.insert(Arc::clone(&target.check), now);
            } else if answered.is_none_or(|then| now.saturating_sub(*then) >= PROOF_HOLDS) {
                outcome = Outcome::Skipped(Fault::NobodyAnswers);
            }
        }
        let label = (target.check.probe.name(), outcome.name());
        *self.outcomes.entry(label).or_default() += 1;
        let result = match outcome {
            Outcome::Success => Ok(()),
            Outcome::Failure(failure) => Err(failure),
            Outcome::Skipped(_) => return None,
        };
        let change = target.fsm.step(result, now, &target.check.timing)?;
        self.overlay.set(&target.backend, &target.check, change.to.health());
        let (backend, check) = (target.backend.clone(), Arc::clone(&target.check));
        self.changes += u64::from(change.is_of_health());
        self.note_answers(&backend);
        Some((backend, check, change))
    }

    /// Looks whether any check of a backend succeeds.
    fn note_answers(&mut self, backend: &BackendId) {
        let targets = self.ids.get(backend).into_iter().flat_map(BTreeMap::values);
        let answers = targets
            .filter_map(|id| self.targets.get(id))
            .any(|target| target.fsm.state() == State::Healthy);
        self.overlay.set_answers(backend, answers);
    }

    /// What the planner is told.
    pub const fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Probes by kind and outcome.
    pub const fn outcomes(&self) -> &BTreeMap<(&'static str, &'static str), u64> {
        &self.outcomes
    }

    /// All checks together.
    pub fn sums(&self) -> Sums {
        Sums {
            checks: self.targets.len(),
            unprobed: self.unprobed,
            flying: self.flying,
            late: self.late,
            changes: self.changes,
        }
    }

    /// Of every backend that may take flows and is probed the worst of what is known of it.
    pub fn states(&self) -> BTreeMap<BackendId, State> {
        let worst = |(backend, ids): (&BackendId, &BTreeMap<Arc<Check>, u64>)| {
            let neighbour = self.neighbours.get(backend).map(Fsm::state);
            let checks = self.states_of(ids).map(|(_, state)| state);
            let worst = neighbour.into_iter().chain(checks).max_by_key(|state| state.rank());
            Some((backend.clone(), worst?))
        };
        let may_take = |(backend, _): &(&BackendId, _)| !self.gone.contains(*backend);
        self.ids.iter().filter(may_take).filter_map(worst).collect()
    }

    /// The checks of one backend, each with what is made of it: while one succeeds, the silence of another is no death.
    fn states_of(&self, ids: &BTreeMap<Arc<Check>, u64>) -> impl Iterator<Item = (&Target, State)> {
        let targets: Vec<&Target> = ids.values().filter_map(|id| self.targets.get(id)).collect();
        let answers = targets.iter().any(|target| target.fsm.state() == State::Healthy);
        targets.into_iter().map(move |target| match target.fsm.state() {
            State::Dead if answers => (target, State::Unhealthy),
            state => (target, state),
        })
    }

    /// All checks of every backend that has any.
    pub fn report(&self, now: Duration) -> BTreeMap<BackendId, Vec<CheckReport>> {
        let mut report: BTreeMap<BackendId, Vec<CheckReport>> = BTreeMap::new();
        let line = |check: String, fsm: &Fsm, state: State| CheckReport {
            check,
            state,
            for_how_long: now.saturating_sub(fsm.since()),
            last_failure: fsm.last_failure(),
            failures: fsm.failures(),
        };
        for (backend, ids) in &self.ids {
            let targets = self.states_of(ids);
            let lines = targets.map(|(target, state)| line(target.check.to_string(), &target.fsm, state));
            report.entry(backend.clone()).or_default().extend(lines);
        }
        let fallen = self.neighbours.iter().filter(|(_, fsm)| fsm.state() == State::Dead);
        for (backend, fsm) in fallen {
            let lines = report.entry(backend.clone()).or_default();
            lines.push(line("neighbour".to_owned(), fsm, fsm.state()));
        }
        report
    }
}

/// One of these VIPs that has settled. From round to round it goes on by the golden ratio of all of them: no VIP, and none of its
/// neighbours, which are mostly of the same Service, is asked for twice running, and all have their turn.
fn choose(
    groups: &[Arc<[VipKey]>],
    (from, round): (u64, u64),
    vips: &BTreeMap<VipKey, Duration>,
    now: Duration,
) -> Option<VipKey> {
    /// 2^64 divided by the golden ratio.
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let count: usize = groups.iter().map(|group| group.len()).sum();
    let part = from.wrapping_add(round.wrapping_mul(GOLDEN));
    let start = usize::try_from((u128::from(part) * count as u128) >> 64).ok()?;
    let at = |look: usize| {
        let mut position = (start + look) % count.max(1);
        let group = groups.iter().find(|group| {
            let here = position < group.len();
            position -= if here { 0 } else { group.len() };
            here
        });
        group.and_then(|group| group.get(position))
    };
    let settled = |vip: &&VipKey| {
        let since = vips.get(vip);
        since.is_some_and(|since| now.saturating_sub(*since) >= VIP_SETTLES)
    };
    (0..count.min(LOOKS)).filter_map(at).find(settled).copied()
}
