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
/// While nobody has answered through the tunnel for so long, silence counts against nobody: where nodes drop what comes from this
/// node's own address, or answers do not come back, all of them would be taken for down.
pub const TUNNEL_WORKS_FOR: Duration = Duration::from_secs(60);
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
        Self { groups, addresses }
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
    ids: BTreeMap<(BackendId, Arc<Check>), u64>,
    unprobed: usize,
    flying: usize,
    late: Duration,
    /// Since when VIPs that may be asked for through the tunnel are desired.
    vips: BTreeMap<VipKey, Duration>,
    /// Backends that anybody checks.
    backends: BTreeSet<BackendId>,
    /// Those whose neighbour does not answer.
    silent: BTreeSet<BackendId>,
    /// Those whose next hop is known.
    reached: BTreeSet<BackendId>,
    /// Of those whose neighbour ever failed to answer.
    neighbours: BTreeMap<BackendId, Fsm>,
    sweep: Duration,
    /// When a probe through the tunnel was last answered, by anybody.
    answered: Option<Duration>,
    overlay: Overlay,
    outcomes: BTreeMap<(&'static str, &'static str), u64>,
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
        let mut targets: BTreeMap<(BackendId, Arc<Check>), (IpAddr, Vec<Arc<[VipKey]>>)> = BTreeMap::new();
        let mut vips = BTreeSet::new();
        self.backends.clear();
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
                    self.backends.insert(member.backend.clone());
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
        self.vips.retain(|vip, _| vips.contains(vip));
        for vip in vips {
            self.vips.entry(vip).or_insert(now);
        }
        self.replace(targets, now);
        let gone: Vec<BackendId> = self.neighbours.keys().cloned().collect();
        for backend in gone.into_iter().filter(|backend| !self.backends.contains(backend)) {
            self.neighbours.remove(&backend);
            self.overlay.set_neighbour(&backend, Health::Eligible);
        }
    }

    fn replace(&mut self, wanted: BTreeMap<(BackendId, Arc<Check>), (IpAddr, Vec<Arc<[VipKey]>>)>, now: Duration) {
        let stays = |target: &Target, key: &(BackendId, Arc<Check>)| {
            wanted.get(key).is_some_and(|(address, _)| *address == target.address)
        };
        let gone: Vec<((BackendId, Arc<Check>), u64)> = self
            .ids
            .iter()
            .filter(|(key, id)| !self.targets.get(id).is_some_and(|target| stays(target, key)))
            .map(|(key, id)| (key.clone(), *id))
            .collect();
        for (key, id) in gone {
            self.ids.remove(&key);
            self.schedule.remove(id);
            self.overlay.set(&key.0, &key.1, Health::Eligible);
            if let Some(target) = self.targets.remove(&id) {
                self.flying -= usize::from(target.flying.is_some());
            }
        }
        for ((backend, check), (address, vips)) in wanted {
            let key = (backend, check);
            if let Some(target) = self.ids.get(&key).and_then(|id| self.targets.get_mut(id)) {
                target.vips = vips;
                continue;
            }
            let (id, (backend, check)) = (self.next_id, key.clone());
            self.next_id += 1;
            let interval = Duration::from_millis(check.timing.interval_ms.into());
            self.schedule.add(id, interval, now);
            self.ids.insert(key, id);
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
        let failed = view.unresolved.iter().filter(|(_, why)| match why {
            Unresolved::NeighbourFailed(..) => true,
            Unresolved::NotLookedUp
            | Unresolved::Route(_)
            | Unresolved::EgressUnknown(_)
            | Unresolved::EgressNotConfigured(_)
            | Unresolved::EgressDown(_)
            | Unresolved::EgressNotEthernet(_)
            | Unresolved::EgressTags(_)
            | Unresolved::NoSource(_)
            | Unresolved::NeighbourResolving(..) => false,
        });
        self.silent = failed.map(|(backend, _)| backend.clone()).collect();
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
        for backend in self.silent.iter().filter(|backend| self.backends.contains(*backend)) {
            self.neighbours.entry(backend.clone()).or_insert_with(|| Fsm::new(now));
        }
        for (backend, fsm) in &mut self.neighbours {
            let result = if self.silent.contains(backend) {
                Err(Failure::NeighbourFailed)
            } else if self.reached.contains(backend) {
                Ok(())
            } else {
                continue;
            };
            if let Some(change) = fsm.step(result, now, &NEIGHBOUR) {
                self.overlay.set_neighbour(backend, change.to.health());
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
        if target.check.probe == Probe::Tunnel {
            if outcome == Outcome::Success {
                self.answered = Some(now);
            } else if self
                .answered
                .is_none_or(|then| now.saturating_sub(then) >= TUNNEL_WORKS_FOR)
            {
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
        Some((target.backend.clone(), Arc::clone(&target.check), change))
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
        }
    }

    /// All checks of every backend that has any.
    pub fn report(&self, now: Duration) -> BTreeMap<BackendId, Vec<CheckReport>> {
        let mut report: BTreeMap<BackendId, Vec<CheckReport>> = BTreeMap::new();
        let line = |check: String, fsm: &Fsm| CheckReport {
            check,
            state: fsm.state(),
            for_how_long: now.saturating_sub(fsm.since()),
            last_failure: fsm.last_failure(),
            failures: fsm.failures(),
        };
        for ((backend, check), id) in &self.ids {
            if let Some(target) = self.targets.get(id) {
                let lines = report.entry(backend.clone()).or_default();
                lines.push(line(check.to_string(), &target.fsm));
            }
        }
        let fallen = self.neighbours.iter().filter(|(_, fsm)| fsm.state() == State::Dead);
        for (backend, fsm) in fallen {
            let lines = report.entry(backend.clone()).or_default();
            lines.push(line("neighbour".to_owned(), fsm));
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
    let start = usize::try_from(u128::from(part) * count as u128 >> 64).ok()?;
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
