//! The slow path's workers and who restarts them. Never stands in the fast path's way: without a socket behind it, a redirect is a
//! counted drop, and nothing here is waited for.

use std::{
    fmt,
    sync::{Arc, Mutex, atomic::Ordering},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use lb_core::slow::{Counts, Event};

use super::{
    GroupStatus, MakeHandler, Register, ToKernel, WorkerStatus, XskAdvice, XskError, XskInterface, XskSettings,
    registry::Registry,
    settings::EVENTS,
    status::{Place, lock},
    team::{Common, Death, Team},
};

/// The wait before a group that died is started again: doubled each time up to the longest.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(20);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How long a start, and a restart, waits for queues that are taken.
const QUEUE_FREED_WITHIN: Duration = Duration::from_millis(500);
/// A group that has lived so long starts over with the shortest wait.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// The running slow path. Dropping it ends all its threads and closes all its sockets.
pub struct SlowPath {
    common: Arc<Common>,
    groups: Arc<Vec<Mutex<Slot>>>,
    places: Vec<Arc<Place>>,
    events: Receiver<Event>,
    /// Dropped to end the supervisor.
    stop: Option<Sender<()>>,
    supervisor: Option<JoinHandle<()>>,
}

/// A group and what becomes of it.
struct Slot {
    number: usize,
    places: Vec<Arc<Place>>,
    first_worker: usize,
    life: u64,
    team: Option<Team>,
    started: Instant,
    /// When its last life ended.
    ended: Option<Instant>,
    /// When it is to be started again, if it is not there.
    due: Option<Instant>,
    backoff: Duration,
}

impl SlowPath {
    /// Starts a worker for every receive queue of these interfaces, of the calling thread's network namespace.
    ///
    /// One interface: each queue has memory of its own, and what happens to one worker is no other's business. Several, or one with
    /// fewer queues to send by than to receive by: all share one memory, so that packets can leave by another queue than they came
    /// by without being copied.
    ///
    /// `make` makes a worker's handler, now and after every restart. `register` puts a socket into the map that XDP redirects
    /// through, now and after every restart; it is called on the workers' threads, one at a time, and should return soon.
    /// `kernel` takes frames for this node.
    ///
    /// # Errors
    ///
    /// [`XskError`], when any of them does not start; then none is left running.
    ///
    /// # Minimum kernel version
    ///
    /// 5.11; 6.6 for packets longer than a frame.
    pub fn start(
        settings: XskSettings,
        interfaces: &[XskInterface],
        make: Box<MakeHandler>,
        register: Box<Register>,
        kernel: Option<Arc<ToKernel>>,
    ) -> Result<Self, XskError> {
        settings.check()?;
        let mut grouped = grouped(interfaces)?;
        let places: Vec<_> = grouped.iter().flatten().cloned().collect();
        let (event_sender, events) = bounded(EVENTS);
        let common = Arc::new(Common {
            settings,
            make,
            registry: Mutex::new(Registry::new(register)),
            events: event_sender,
            kernel,
        });
        // At most one of each worker's lives.
        let (deaths, died) = unbounded();
        let mut first_worker = 0;
        let mut slots = Vec::with_capacity(grouped.len());
        for (number, places) in grouped.drain(..).enumerate() {
            let mut slot = Slot {
                number,
                first_worker,
                life: 0,
                team: None,
                started: Instant::now(),
                ended: None,
                due: None,
                backoff: SHORTEST_BACKOFF,
                places,
            };
            first_worker += slot.places.len();
            slot.start_patiently(&common, &deaths)?;
            slots.push(Mutex::new(slot));
        }
        // Workers register themselves: a refusal comes as a death.
        let groups = Arc::new(slots);
        let (stop, stopped) = bounded(0);
        let mut path = Self {
            common: Arc::clone(&common),
            groups: Arc::clone(&groups),
            places,
            events,
            stop: Some(stop),
            supervisor: None,
        };
        path.settle(&died)?;
        let supervisor = Supervisor {
            common,
            groups,
            deaths,
            died,
            stopped,
        };
        let name = "xsk-supervisor";
        let thread = Builder::new().name(name.to_owned()).spawn(move || supervisor.run());
        path.supervisor = Some(thread.map_err(|source| XskError::Thread {
            name: name.to_owned(),
            call: "clone",
            source,
        })?);
        Ok(path)
    }

    /// Waits until every worker runs or one has died.
    fn settle(&self, died: &Receiver<Death>) -> Result<(), XskError> {
        while !self.places.iter().all(|place| place.running.load(Ordering::Acquire)) {
            if let Ok(death) = died.recv_timeout(Duration::from_millis(1)) {
                return Err(death.error);
            }
        }
        Ok(())
    }

    /// From now on sockets are put into another map, and all that live are, before this returns: for a program that is about to
    /// take over. Sockets stay in the old map, too, until they close.
    ///
    /// # Errors
    ///
    /// [`XskError::Register`]; then some sockets are in the new map and some are not, and later ones will go there.
    pub fn register_with(&self, register: Box<Register>) -> Result<(), XskError> {
        lock(&self.common.registry).move_to(register)
    }

    /// Makes every handler take a turn: tables or a book have changed.
    pub fn poke(&self) {
        for place in &self.places {
            place.poked.store(true, Ordering::Release);
            place.wake.ring();
        }
    }

    /// Goes on counting where another slow path, which is no more, had come to: queue by queue.
    pub fn go_on_from(&self, earlier: &[WorkerStatus]) {
        for place in &self.places {
            let same = |worker: &&WorkerStatus| (worker.ifindex, worker.queue) == (place.interface.index, place.queue);
            if let Some(worker) = earlier.iter().find(same) {
                for (tally, count) in worker.tallies() {
                    place.add(tally, count);
                }
                place.restarts.fetch_add(worker.restarts, Ordering::Relaxed);
            }
        }
    }

    /// What handlers want the control side to do. Bounded by [`EVENTS`]; what did not fit was counted.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// What became of packets, of all workers since the start.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for place in &self.places {
            sum.merge(&lock(&place.counts));
        }
        sum
    }

    /// All workers, by interface in the order of the start, and by queue.
    pub fn status(&self) -> Vec<WorkerStatus> {
        self.places.iter().map(|place| place.status()).collect()
    }

    /// The memory of each group.
    pub fn groups(&self) -> Vec<GroupStatus> {
        let status = |slot: &Mutex<Slot>| {
            let (frames, free) = lock(slot).team.as_ref().map_or((0, 0), Team::frames);
            GroupStatus { frames, free }
        };
        self.groups.iter().map(status).collect()
    }

    /// Memory of all frames, rings and inboxes.
    pub fn memory_bytes(&self) -> u64 {
        self.common
            .settings
            .memory_bytes(u32::try_from(self.places.len()).unwrap_or(u32::MAX))
    }

    /// Ends all threads and closes all sockets, for good: what was counted can still be asked for, and is all that there will be.
    pub fn stop(&mut self) {
        self.stop = None;
        if let Some(supervisor) = self.supervisor.take() {
            // It has nothing that panics, and nothing that is waited for.
            let _ = supervisor.join();
        }
        for slot in self.groups.iter() {
            lock(slot).team = None;
        }
    }

    /// Kills a worker by a panic on its thread, as soon as it looks. False if there is none.
    #[doc(hidden)]
    pub fn kill_worker(&self, ifindex: u32, queue: u32) -> bool {
        let place = self
            .places
            .iter()
            .find(|place| place.interface.index == ifindex && place.queue == queue);
        if let Some(place) = place {
            place.condemned.store(true, Ordering::Release);
            place.wake.ring();
        }
        place.is_some()
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for SlowPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowPath")
            .field("workers", &self.places)
            .finish_non_exhaustive()
    }
}

/// The queues, by groups that share memory.
fn grouped(interfaces: &[XskInterface]) -> Result<Vec<Vec<Arc<Place>>>, XskError> {
    let mut places = Vec::new();
    for interface in interfaces {
        for queue in 0..interface.rx_queues {
            let place = Place::new(interface.clone(), queue).map_err(|source| XskError::Interface {
                interface: interface.name.clone(),
                call: "eventfd",
                source,
            })?;
            places.push(Arc::new(place));
        }
    }
    let apart = match interfaces {
        [only] => only.tx_queues >= only.rx_queues,
        [] | [_, _, ..] => false,
    };
    Ok(if apart {
        places.into_iter().map(|place| vec![place]).collect()
    } else {
        vec![places]
    })
}

impl Slot {
    fn start(&mut self, common: &Arc<Common>, deaths: &Sender<Death>, places: &[Arc<Place>]) -> Result<(), XskError> {
        self.due = None;
        self.life += 1;
        self.started = Instant::now();
        self.team = Some(Team::start(
            common,
            places,
            self.first_worker,
            (self.number, self.life),
            deaths,
        )?);
        Ok(())
    }

    /// The kernel frees the queues of closed sockets a moment after it closed them (net/xdp/xsk_buff_pool.c, `xp_put_pool`): who
    /// starts over at once finds them taken.
    fn start_patiently(&mut self, common: &Arc<Common>, deaths: &Sender<Death>) -> Result<(), XskError> {
        let end = Instant::now() + QUEUE_FREED_WITHIN;
        let places = self.places.clone();
        loop {
            match self.start(common, deaths, &places) {
                Err(XskError::Socket {
                    advice: XskAdvice::QueueTaken,
                    ..
                }) if Instant::now() < end => std::thread::sleep(SHORTEST_BACKOFF),
                result @ (Ok(()) | Err(_)) => return result,
            }
        }
    }

    /// The queues of interfaces that are there: one that is gone takes only its own workers along. All, if there is none, for the
    /// error's sake.
    fn left(&self) -> Vec<Arc<Place>> {
        let there = |place: &&Arc<Place>| place.interface.is_there();
        let left: Vec<_> = self.places.iter().filter(there).cloned().collect();
        if left.is_empty() { self.places.clone() } else { left }
    }

    /// Whether the kernel has not freed the queues of this group's last life yet: no news, and nobody else's doing.
    fn is_early(&self, error: &XskError) -> bool {
        let taken = matches!(
            error,
            XskError::Socket {
                advice: XskAdvice::QueueTaken,
                ..
            }
        );
        taken && self.ended.is_some_and(|ended| ended.elapsed() < QUEUE_FREED_WITHIN)
    }

    /// Ends what is left of the group and says when to start it again.
    fn bury(&mut self, error: &XskError) {
        let lived = self.started.elapsed();
        if self.team.take().is_some() {
            self.ended = Some(Instant::now());
        }
        if lived >= HEALTHY_AFTER {
            self.backoff = SHORTEST_BACKOFF;
        }
        for place in &self.places {
            *lock(&place.last_error) = Some(error.to_string());
        }
        let backoff = self.backoff;
        tracing::warn!(%error, retry_in_ms = backoff.as_millis() as u64, "slow path: workers end");
        self.due = Some(Instant::now() + backoff);
        self.backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

/// Restarts groups that died.
struct Supervisor {
    common: Arc<Common>,
    groups: Arc<Vec<Mutex<Slot>>>,
    deaths: Sender<Death>,
    died: Receiver<Death>,
    stopped: Receiver<()>,
}

impl Supervisor {
    fn run(&self) {
        loop {
            let next = self.groups.iter().filter_map(|slot| lock(slot).due).min();
            let wait = next.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
            crossbeam::select! {
                recv(self.died) -> death => if let Ok(death) = death { self.mourn(&death) },
                recv(self.stopped) -> _ => return,
                default(wait.min(Duration::from_secs(3600))) => {}
            }
            self.revive();
        }
    }

    fn mourn(&self, death: &Death) {
        if let Some(slot) = self.groups.get(death.group) {
            let mut slot = lock(slot);
            // Others of the same life may have died, too.
            if slot.life == death.life && slot.team.is_some() {
                slot.bury(&death.error);
            }
        }
    }

    fn revive(&self) {
        let now = Instant::now();
        for slot in self.groups.iter() {
            let mut slot = lock(slot);
            if slot.due.is_some_and(|due| due <= now) {
                let places = slot.left();
                match slot.start(&self.common, &self.deaths, &places) {
                    Ok(()) => {
                        for place in &places {
                            place.restarts.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Err(error) if slot.is_early(&error) => slot.due = Some(Instant::now() + SHORTEST_BACKOFF),
                    Err(error) => slot.bury(&error),
                }
            }
        }
    }
}
