//! The work queue: which subject is looked at next.
//!
//! Never runs two looks at one subject at a time, never forgets one that failed, never holds one twice. `kube::runtime::scheduler`
//! does as much, but hands subjects out in the order of a hash map: a fresh operator must make the seed, the node sets and the
//! tunnel before 10,000 Services, and a pool's status after them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::Subject;

/// First wait after a failure (as in cloud-provider's Service controller).
const BACKOFF_MIN: Duration = Duration::from_secs(5);
/// Longest wait after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Longest wait while the API server itself is away or busy: what waits for it shall not wait minutes after its return.
const AWAY_MAX: Duration = Duration::from_secs(15);
/// First wait after somebody else was faster: the watch brings what they wrote.
const CONFLICT_MIN: Duration = Duration::from_millis(100);
/// Longest wait of those.
const CONFLICT_MAX: Duration = Duration::from_secs(5);
/// Statuses of pools and peers and the orphan sweep gather changes for so long: one write a second, however many Services come.
const GATHER: Duration = Duration::from_secs(1);

/// How a look at a subject ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing left to do.
    Done,
    /// Ask again after so long.
    Wait(Duration),
    /// Somebody else was faster: look again when the watch has caught up.
    Conflict,
    /// The API server is away or busy.
    Away,
    /// Refused, or cannot be had.
    Failed,
}

/// The queue, shared by watches and workers.
#[derive(Debug, Default)]
pub(super) struct Queue {
    schedule: Mutex<Schedule>,
    changed: Notify,
}

impl Queue {
    /// Subjects to be looked at as soon as a worker is free.
    pub(super) fn add(&self, subjects: impl IntoIterator<Item = Subject>) {
        let now = Instant::now();
        let mut added = false;
        {
            let mut schedule = self.lock();
            for subject in subjects {
                schedule.add(subject, now);
                added = true;
            }
        }
        if added {
            self.changed.notify_one();
        }
    }

    /// Subjects to be looked at, unless they wait for their time already: what failed keeps its backoff.
    pub(super) fn add_idle(&self, subjects: impl IntoIterator<Item = Subject>) {
        let now = Instant::now();
        let mut schedule = self.lock();
        for subject in subjects {
            if schedule.is_idle(&subject) {
                schedule.add(subject, now);
            }
        }
        drop(schedule);
        self.changed.notify_one();
    }

    /// The next subject, when there is one.
    pub(super) async fn take(&self) -> Subject {
        loop {
            let (taken, due) = {
                let mut schedule = self.lock();
                let now = Instant::now();
                (schedule.take(now), schedule.next_due())
            };
            if let Some(subject) = taken {
                // Perhaps there is more, and another worker asleep.
                self.changed.notify_one();
                return subject;
            }
            match due {
                Some(due) => drop(tokio::time::timeout_at(due, self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        }
    }

    /// A look at `subject`, which came from [`Self::take`], is over.
    pub(super) fn done(&self, subject: Subject, outcome: Outcome) {
        self.lock().done(subject, outcome, Instant::now(), fastrand::f64());
        self.changed.notify_one();
    }

    /// Subjects that wait to be looked at, now and later, and those being looked at.
    pub(super) fn depth(&self) -> Depth {
        self.lock().depth()
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Depth {
    /// A worker could take them now.
    pub(super) ready: usize,
    /// Their time has not come.
    pub(super) later: usize,
    /// A worker has them.
    pub(super) running: usize,
}

/// What comes before what: lower is earlier.
fn class(subject: &Subject) -> u8 {
    match subject {
        Subject::Seed => 0,
        Subject::NodeSets => 1,
        Subject::Tunnel => 2,
        Subject::Announcement(_) => 3,
        Subject::Service(_) => 4,
        Subject::Pool(_) => 5,
        Subject::Peer(_) => 6,
        Subject::Orphans => 7,
    }
}

/// The class of Services: nothing of it starts while something earlier is being looked at.
const SERVICES: u8 = 4;

/// The queue without its lock and its clock.
#[derive(Debug, Default)]
struct Schedule {
    entries: BTreeMap<Subject, Entry>,
    /// By class, then by time of arrival.
    ready: BTreeMap<(u8, u64), Subject>,
    later: BTreeSet<(Instant, Subject)>,
    /// Classes of the subjects being looked at, and how many.
    running: BTreeMap<u8, usize>,
    arrivals: u64,
}

#[derive(Debug, Default)]
struct Entry {
    place: Place,
    /// Looks in a row that failed.
    failures: u32,
    /// Looks in a row that met with a conflict.
    conflicts: u32,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Nowhere,
    Ready,
    Later(Instant),
    /// Being looked at; and whether it changed meanwhile.
    Running {
        again: bool,
    },
}

impl Schedule {
    fn add(&mut self, subject: Subject, now: Instant) {
        match subject {
            Subject::Seed | Subject::NodeSets | Subject::Tunnel | Subject::Announcement(_) | Subject::Service(_) => {
                self.add_ready(subject)
            }
            Subject::Pool(_) | Subject::Peer(_) | Subject::Orphans => self.add_later(subject, now + GATHER),
        }
    }

    /// Whether it is nowhere in the queue.
    fn is_idle(&self, subject: &Subject) -> bool {
        !self.entries.contains_key(subject)
    }

    fn add_ready(&mut self, subject: Subject) {
        let entry = self.entries.entry(subject.clone()).or_default();
        match &mut entry.place {
            Place::Ready => return,
            Place::Running { again } => {
                *again = true;
                return;
            }
            Place::Later(when) => {
                self.later.remove(&(*when, subject.clone()));
            }
            Place::Nowhere => {}
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        entry.place = Place::Ready;
        self.ready.insert((class(&subject), arrival), subject);
    }

    fn add_later(&mut self, subject: Subject, when: Instant) {
        let entry = self.entries.entry(subject.clone()).or_default();
        match &mut entry.place {
            Place::Ready => return,
            Place::Running { again } => {
                *again = true;
                return;
            }
            Place::Later(earlier) if *earlier <= when => return,
            Place::Later(later) => {
                self.later.remove(&(*later, subject.clone()));
            }
            Place::Nowhere => {}
        }
        entry.place = Place::Later(when);
        self.later.insert((when, subject));
    }

    fn take(&mut self, now: Instant) -> Option<Subject> {
        while let Some((when, _)) = self.later.first()
            && *when <= now
            && let Some((_, subject)) = self.later.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&subject) {
                entry.place = Place::Nowhere;
            }
            self.add_ready(subject);
        }
        let (&(class, _), _) = self.ready.first_key_value()?;
        let earlier_runs = self
            .running
            .keys()
            .next()
            .is_some_and(|running| *running < class.min(SERVICES));
        if earlier_runs {
            return None;
        }
        let (_, subject) = self.ready.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&subject) {
            entry.place = Place::Running { again: false };
        }
        *self.running.entry(class).or_default() += 1;
        Some(subject)
    }

    fn done(&mut self, subject: Subject, outcome: Outcome, now: Instant, random: f64) {
        let class = class(&subject);
        if let Some(count) = self.running.get_mut(&class) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(&class);
            }
        }
        let Some(entry) = self.entries.get_mut(&subject) else {
            return;
        };
        let again = matches!(entry.place, Place::Running { again: true });
        entry.place = Place::Nowhere;
        let delay = match outcome {
            Outcome::Done => None,
            Outcome::Wait(delay) => Some(delay),
            Outcome::Conflict => Some(jitter(doubled(CONFLICT_MIN, entry.conflicts, CONFLICT_MAX), random)),
            Outcome::Away => Some(jitter(
                doubled(Duration::from_secs(1), entry.failures, AWAY_MAX),
                random,
            )),
            Outcome::Failed => Some(jitter(doubled(BACKOFF_MIN, entry.failures, BACKOFF_MAX), random)),
        };
        match outcome {
            Outcome::Done | Outcome::Wait(_) => (entry.failures, entry.conflicts) = (0, 0),
            Outcome::Conflict => entry.conflicts = entry.conflicts.saturating_add(1),
            Outcome::Away | Outcome::Failed => entry.failures = entry.failures.saturating_add(1),
        }
        match (again, delay) {
            // What the change was may be what it waits for; a failing API server is not helped by asking sooner.
            (true, _) if outcome != Outcome::Away => self.add(subject, now),
            (_, Some(delay)) => self.add_later(subject, now + delay),
            (_, None) => {
                self.entries.remove(&subject);
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(when, _)| *when)
    }

    fn depth(&self) -> Depth {
        Depth {
            ready: self.ready.len(),
            later: self.later.len(),
            running: self.running.values().sum(),
        }
    }
}

/// `first` doubled `times` times, at most `most`.
fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first
        .saturating_mul(1_u32.checked_shl(times.min(20)).unwrap_or(u32::MAX))
        .min(most)
}

/// Three quarters to five quarters of a delay, by a random number of `0.0..1.0`: what failed together shall not come back together.
fn jitter(delay: Duration, random: f64) -> Duration {
    delay.mul_f64(0.75 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServiceKey;

    fn service(name: &str) -> Subject {
        Subject::Service(ServiceKey {
            namespace: "default".into(),
            name: name.into(),
        })
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_subject_that_is_added_twice_is_looked_at_once() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.add(service("a"), now);
        schedule.add(service("a"), now);
        assert_eq!(schedule.take(now), Some(service("a")));
        assert_eq!(schedule.take(now), None);
        schedule.done(service("a"), Outcome::Done, now, 0.5);
        assert_eq!(schedule.take(now), None);
        assert!(schedule.entries.is_empty(), "what is done leaves nothing behind");
    }

    #[test]
    fn seed_node_sets_and_tunnel_come_first_and_services_wait_for_them() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for subject in [service("a"), Subject::Tunnel, Subject::NodeSets, Subject::Seed] {
            schedule.add(subject, now);
        }
        for expected in [Subject::Seed, Subject::NodeSets, Subject::Tunnel] {
            assert_eq!(schedule.take(now), Some(expected.clone()));
            assert_eq!(schedule.take(now), None, "nothing starts beside {expected:?}");
            schedule.done(expected, Outcome::Done, now, 0.5);
        }
        assert_eq!(schedule.take(now), Some(service("a")));
    }

    #[test]
    fn a_seed_that_cannot_be_made_does_not_hold_services_up() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.add(Subject::Seed, now);
        schedule.add(service("a"), now);
        assert_eq!(schedule.take(now), Some(Subject::Seed));
        schedule.done(Subject::Seed, Outcome::Failed, now, 0.5);
        assert_eq!(schedule.take(now), Some(service("a")));
    }

    #[test]
    fn a_change_during_a_look_means_another_look_and_never_two_at_a_time() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.add(service("a"), now);
        assert_eq!(schedule.take(now), Some(service("a")));
        schedule.add(service("a"), now);
        assert_eq!(schedule.take(now), None);
        schedule.done(service("a"), Outcome::Done, now, 0.5);
        assert_eq!(schedule.take(now), Some(service("a")));
    }

    #[test]
    fn failures_back_off_from_5_to_300_seconds_and_success_forgets_them() {
        let mut now = Instant::now();
        let mut schedule = Schedule::default();
        let mut waits = Vec::new();
        schedule.add(service("a"), now);
        for _ in 0..9 {
            assert_eq!(schedule.take(now), Some(service("a")));
            schedule.done(service("a"), Outcome::Failed, now, 0.5);
            assert_eq!(schedule.take(now), None);
            let due = schedule.next_due().unwrap();
            waits.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(schedule.take(now), Some(service("a")));
        schedule.done(service("a"), Outcome::Done, now, 0.5);
        schedule.add(service("a"), now);
        assert_eq!(schedule.take(now), Some(service("a")));
        schedule.done(service("a"), Outcome::Failed, now, 0.5);
        assert_eq!(schedule.next_due(), Some(now + seconds(5)));
    }

    #[test]
    fn waits_after_an_outage_are_short() {
        let mut now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.add(service("a"), now);
        for _ in 0..20 {
            assert_eq!(schedule.take(now), Some(service("a")));
            schedule.done(service("a"), Outcome::Away, now, 1.0);
            let due = schedule.next_due().unwrap();
            assert!(due - now <= seconds(19), "{:?}", due - now);
            now = due;
        }
    }

    #[test]
    fn a_change_ends_a_backoff() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.add(service("a"), now);
        assert_eq!(schedule.take(now), Some(service("a")));
        schedule.done(service("a"), Outcome::Failed, now, 0.5);
        assert_eq!(schedule.take(now), None);
        schedule.add(service("a"), now);
        assert_eq!(schedule.take(now), Some(service("a")));
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn pools_gather_changes_for_a_second() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.add(Subject::Pool("p".into()), now);
        schedule.add(Subject::Pool("p".into()), now + seconds(1) / 2);
        assert_eq!(schedule.take(now), None);
        assert_eq!(schedule.take(now + seconds(1)), Some(Subject::Pool("p".into())));
        schedule.add(Subject::Pool("p".into()), now + seconds(1));
        schedule.done(Subject::Pool("p".into()), Outcome::Done, now + seconds(1), 0.5);
        assert_eq!(schedule.take(now + seconds(1)), None);
        assert_eq!(schedule.take(now + seconds(2)), Some(Subject::Pool("p".into())));
    }

    #[test]
    fn services_come_in_the_order_of_their_arrival() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        for name in ["c", "a", "b"] {
            schedule.add(service(name), now);
        }
        let taken: Vec<_> = std::iter::from_fn(|| schedule.take(now)).collect();
        assert_eq!(taken, [service("c"), service("a"), service("b")]);
    }
}
