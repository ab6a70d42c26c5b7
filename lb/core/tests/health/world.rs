//! Desired states and networks for the tests. Never a test.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use lb_core::{
    desired::{Backend, BackendId, BackendSet, Desired, Member, Protocol, Vip, VipKey},
    health::{Change, Check, Checks, Failure, Launch, Monitor, Outcome, Probe, Ticket, Wanted},
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn id(index: usize) -> BackendId {
    BackendId(format!("worker-{index:04}").into())
}

pub(crate) fn set(members: impl IntoIterator<Item = usize>) -> Arc<BackendSet> {
    Arc::new(BackendSet {
        members: members
            .into_iter()
            .map(|index| Member {
                backend: id(index),
                weight: 1,
            })
            .collect(),
        table_slots: None,
    })
}

pub(crate) fn vip(index: usize) -> VipKey {
    VipKey {
        address: [203, 0, (index >> 8) as u8, index as u8].into(),
        protocol: Protocol::Tcp,
        port: 80,
    }
}

/// VIPs with their sets and checks, and `backends` workers.
pub(crate) fn desired(
    backends: usize,
    vips: impl IntoIterator<Item = (VipKey, Arc<BackendSet>, Option<Arc<Checks>>)>,
) -> Desired {
    let address = |index: usize| Backend {
        address: [10, 0, (index >> 8) as u8, index as u8].into(),
    };
    let vips = vips.into_iter().map(|(key, set, checks)| {
        let vip = Vip {
            checks,
            ..Vip::new(set)
        };
        (key, vip)
    });
    Desired {
        vips: vips.collect(),
        backends: (0..backends).map(|index| (id(index), address(index))).collect(),
        ..Desired::default()
    }
}

/// A monitor and what answers it.
pub(crate) struct World {
    pub(crate) monitor: Monitor,
    pub(crate) now: Duration,
    /// Backends that do not answer as they should, and how.
    pub(crate) failing: BTreeMap<BackendId, Failure>,
    /// What changed, when.
    pub(crate) changes: Vec<(Duration, BackendId, Change)>,
    /// What was launched, when.
    pub(crate) launched: Vec<(Duration, Launch)>,
    /// With whether it is through the tunnel.
    flying: BTreeSet<(Duration, Ticket, BackendId, bool)>,
}

impl World {
    pub(crate) fn new(desired: &Desired) -> Self {
        let mut monitor = Monitor::new(42);
        monitor.watch(&Wanted::new(desired), Duration::ZERO);
        Self {
            monitor,
            now: Duration::ZERO,
            failing: BTreeMap::new(),
            changes: Vec::new(),
            launched: Vec::new(),
            flying: BTreeSet::new(),
        }
    }

    /// Lets time pass. Answers take a millisecond, silence the whole timeout. Wakes as a driver would: when something is due.
    pub(crate) fn run(&mut self, long: Duration) {
        let end = self.now + long;
        loop {
            let back = self.flying.first().map(|(at, ..)| *at);
            // A timer of a millisecond's grain is late by up to one.
            let due = self.monitor.next().map(|due| due.max(self.now) + ms(1));
            let Some(next) = back.into_iter().chain(due).min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            while let Some((_, ticket, backend, tunnel)) = self.flying.pop_first_if(self.now) {
                let outcome = match self.failing.get(&backend) {
                    None => Outcome::Success,
                    Some(_) if tunnel => Outcome::Failure(Failure::NoSynAck),
                    Some(failure) => Outcome::Failure(*failure),
                };
                if let Some((backend, _, change)) = self.monitor.finish(ticket, outcome, self.now) {
                    self.changes.push((self.now, backend, change));
                }
            }
            let swept = self.monitor.sweep(self.now);
            self.changes
                .extend(swept.into_iter().map(|(backend, change)| (self.now, backend, change)));
            while let Some(launch) = self.monitor.launch(self.now) {
                let tunnel = launch.check.probe == Probe::Tunnel;
                let silent = self
                    .failing
                    .get(&launch.backend)
                    .is_some_and(|failure| failure.is_silence());
                let long = if silent { launch.check.timing.timeout_ms } else { 1 };
                self.flying.insert((
                    self.now + ms(long.into()),
                    launch.ticket,
                    launch.backend.clone(),
                    tunnel,
                ));
                self.launched.push((self.now, launch));
            }
        }
        self.now = end;
    }

    /// Probes of a check since `since`.
    pub(crate) fn launches(&self, since: Duration, wanted: impl Fn(&Check) -> bool) -> usize {
        let of = |(at, launch): &&(Duration, Launch)| *at >= since && wanted(&launch.check);
        self.launched.iter().filter(of).count()
    }
}

trait PopFirstIf {
    fn pop_first_if(&mut self, now: Duration) -> Option<(Duration, Ticket, BackendId, bool)>;
}

impl PopFirstIf for BTreeSet<(Duration, Ticket, BackendId, bool)> {
    fn pop_first_if(&mut self, now: Duration) -> Option<(Duration, Ticket, BackendId, bool)> {
        if self.first()?.0 <= now { self.pop_first() } else { None }
    }
}
