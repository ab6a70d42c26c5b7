//! A group of workers that share memory, from start to end. Never restarts itself: its supervisor does.

use std::{
    any::Any,
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
};

use crossbeam::{channel::Sender, queue::ArrayQueue};
use lb_core::slow::Event;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    MakeHandler, ToKernel, XskError, XskSettings,
    area::Area,
    registry::Registry,
    rings::Rings,
    settings::INBOX_PACKETS,
    status::{Place, lock},
    worker::{Group, Member, State, Worker},
};

/// What all workers are made with.
pub(super) struct Common {
    pub(super) settings: XskSettings,
    pub(super) make: Box<MakeHandler>,
    pub(super) registry: Mutex<Registry>,
    pub(super) events: Sender<Event>,
    pub(super) kernel: Option<Arc<ToKernel>>,
}

/// The end of a worker that was not asked to end.
pub(super) struct Death {
    /// Number of the worker's group.
    pub(super) group: usize,
    /// Which life of the group this was.
    pub(super) life: u64,
    pub(super) error: XskError,
}

/// A running group.
pub(super) struct Team {
    group: Arc<Group>,
    threads: Vec<JoinHandle<()>>,
}

impl Team {
    /// Makes memory, sockets and threads for these places, or nothing. `first_worker` is the first one's number among all, for
    /// the list of CPUs.
    pub(super) fn start(
        common: &Arc<Common>,
        places: &[Arc<Place>],
        first_worker: usize,
        (number, life): (usize, u64),
        deaths: &Sender<Death>,
    ) -> Result<Self, XskError> {
        let settings = &common.settings;
        let area = Area::new(settings, places.len())?;
        let mut rings: Vec<Rings> = Vec::with_capacity(places.len());
        for place in places {
            let first = rings.first().map(|first| first.multi_buffer);
            rings.push(Rings::open(&place.interface, place.queue, &area, settings, first)?);
        }
        let members = places
            .iter()
            .map(|place| Member {
                place: Arc::clone(place),
                inbox: ArrayQueue::new(INBOX_PACKETS),
            })
            .collect();
        let mut team = Self {
            group: Arc::new(Group {
                area,
                members,
                senders: senders(places),
                stop: AtomicBool::new(false),
            }),
            threads: Vec::with_capacity(places.len()),
        };
        for (position, (place, rings)) in places.iter().zip(rings).enumerate() {
            place.zero_copy.store(rings.zero_copy, Ordering::Relaxed);
            place.multi_buffer.store(rings.multi_buffer, Ordering::Relaxed);
            let mut interface = place.interface.clone();
            interface.mac = interface.mac_now().unwrap_or(interface.mac);
            let worker = Worker {
                mac: interface.mac,
                handler: (common.make)(&interface, place.queue),
                place: Arc::clone(place),
                group: Arc::clone(&team.group),
                position,
                rings,
                events: common.events.clone(),
                kernel: common.kernel.clone(),
                state: State::default(),
            };
            let cpus = &settings.cpus;
            let cpu = cpus.get((first_worker + position) % cpus.len().max(1)).copied();
            // What has been started ends with `team`.
            team.threads
                .push(spawn(worker, Arc::clone(common), cpu, (number, life), deaths.clone())?);
        }
        Ok(team)
    }

    /// Frames there are, and of them, free.
    pub(super) fn frames(&self) -> (u32, u32) {
        (self.group.area.frames(), self.group.area.free_frames() as u32)
    }
}

impl Drop for Team {
    /// Ends all threads and closes all sockets.
    fn drop(&mut self) {
        self.group.stop.store(true, Ordering::Release);
        for member in &self.group.members {
            member.place.wake.ring();
        }
        for thread in self.threads.drain(..) {
            // Panics are caught inside.
            let _ = thread.join();
        }
    }
}

/// By interface index, the members that have a queue to send by.
fn senders(places: &[Arc<Place>]) -> BTreeMap<u32, Vec<usize>> {
    let mut senders: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (position, place) in places.iter().enumerate() {
        if place.queue < place.interface.tx_queues {
            senders.entry(place.interface.index).or_default().push(position);
        }
    }
    senders
}

fn spawn(
    mut worker: Worker,
    common: Arc<Common>,
    cpu: Option<u32>,
    (group, life): (usize, u64),
    deaths: Sender<Death>,
) -> Result<JoinHandle<()>, XskError> {
    let name = worker.place.name.clone();
    let thread = Builder::new().name(name.clone()).spawn(move || {
        let place = Arc::clone(&worker.place);
        let end = catch_unwind(AssertUnwindSafe(|| {
            step_back(&place.name, common.settings.nice, cpu)?;
            lock(&common.registry).enter(&place, worker.rings.fd())?;
            place.running.store(true, Ordering::Release);
            worker.run().map_err(|source| XskError::Socket {
                interface: place.interface.name.clone(),
                queue: place.queue,
                call: "receive and send",
                advice: super::XskAdvice::for_socket(&source, false),
                source,
            })
        }));
        place.running.store(false, Ordering::Release);
        // While the descriptor is still ours.
        lock(&common.registry).leave(&place);
        drop(worker);
        let error = match end {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => XskError::Panicked {
                name: place.name.clone(),
                message: message(panic.as_ref()),
            },
        };
        // The supervisor may be gone: then nobody restarts anything.
        let _ = deaths.send(Death { group, life, error });
    });
    thread.map_err(|source| XskError::Thread {
        name,
        call: "clone",
        source,
    })
}

/// Makes way for the fast path, and goes where it was told to.
fn step_back(name: &str, nice: i32, cpu: Option<u32>) -> Result<(), XskError> {
    let failed = |call, source| XskError::Thread {
        name: name.to_owned(),
        call,
        source,
    };
    // SAFETY: a call with three numbers; on Linux, 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
        return Err(failed("setpriority", io::Error::last_os_error()));
    }
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu as usize)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
            .map_err(|errno| failed("sched_setaffinity", errno.into()))?;
    }
    Ok(())
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_owned()
}
