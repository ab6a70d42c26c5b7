//! BFD on the wire: sockets and a clock for [`lb_core::bfd`], on a thread of its own.
//!
//! Never decides anything, and never waits for the rest of the daemon: what that does for tens of milliseconds at a time (planning a
//! large change, say) would be silence to a peer.
//!
//! | file | what it is |
//! |---|---|
//! | `run` | the thread |
//! | `socket` | where packets come in and go out, with their TTL |

mod run;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use lb_core::bfd::{Cause, Discard, Output, Peer, PeerView, Sessions, Wanted};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What has become of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Both hear one another.
    Up,
    /// They do no more.
    Down(Cause),
}

/// Changes in the order in which they happened, none left out: whoever has this takes them as they come, or drops it.
pub type Changes = UnboundedReceiver<(Peer, Liveness)>;

/// A session as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdView {
    /// As it was asked for, and as it stands.
    pub is: PeerView,
    /// For how long it has been up, or not.
    pub lasts: Duration,
    /// Why nothing is sent or received, where that is so; tried again every second.
    pub fault: Option<String>,
}

/// One who watches peers; all watchers of a node share its sessions, sockets and thread. When it goes, peers whom nobody else watches
/// are told that this is no failure.
#[derive(Debug)]
pub struct Bfd {
    thread: Arc<Thread>,
    watcher: u64,
}

impl Bfd {
    /// The first watcher: starts the thread, without sessions, in the caller's network namespace. `seed`: another one at every start.
    ///
    /// # Errors
    ///
    /// eventfd(2)'s, and when there can be no thread.
    pub fn start(seed: u64) -> io::Result<(Self, Changes)> {
        let shared = Arc::new(Shared {
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            start: Instant::now(),
            state: Mutex::new(State {
                sessions: Sessions::new(seed),
                watchers: BTreeMap::new(),
                next_watcher: 0,
                to_do: Vec::new(),
                faults: BTreeMap::new(),
                is_set: false,
                is_over: false,
            }),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            Builder::new().name("bfd".to_owned()).spawn(move || run::run(&shared))?
        };
        Ok(Self::join(Arc::new(Thread {
            shared,
            handle: Some(thread),
        })))
    }

    /// Another watcher, of nobody yet.
    pub fn another(&self) -> (Self, Changes) {
        Self::join(Arc::clone(&self.thread))
    }

    fn join(thread: Arc<Thread>) -> (Self, Changes) {
        let (changes, told) = unbounded_channel();
        let mut state = thread.shared.lock();
        let watcher = state.next_watcher;
        state.next_watcher += 1;
        let wanted = Vec::new();
        state.watchers.insert(watcher, Watcher { wanted, changes });
        drop(state);
        (Self { thread, watcher }, told)
    }

    /// Watches these from now on; see [`Sessions::set`]. A peer that others watch, too, has the session that the first of them asked for.
    /// A session that ends because nobody asks for it any more is told to its peer, and to [`Changes`] as [`Cause::AdminDown`].
    pub fn set(&self, wanted: impl IntoIterator<Item = Wanted>) {
        let shared = &self.thread.shared;
        let mut state = shared.lock();
        let up: BTreeSet<Peer> = state
            .sessions
            .views()
            .iter()
            .filter(|view| view.session.state == lb_core::bfd::State::Up)
            .map(|view| view.wanted.peer)
            .collect();
        if let Some(watcher) = state.watchers.get_mut(&self.watcher) {
            let before: BTreeSet<Peer> = watcher.wanted.iter().map(|wanted| wanted.peer).collect();
            watcher.wanted = wanted.into_iter().collect();
            // Somebody else has watched it until now.
            let new = watcher.wanted.iter().map(|wanted| wanted.peer);
            for peer in new.filter(|peer| up.contains(peer) && !before.contains(peer)) {
                let _ = watcher.changes.send((peer, Liveness::Up));
            }
        }
        state.set(shared.now());
        drop(state);
        shared.wake();
    }

    /// All sessions, in order of addresses.
    pub fn views(&self) -> Vec<BfdView> {
        let shared = &self.thread.shared;
        let state = shared.lock();
        let now = shared.now();
        let view = |is: PeerView| BfdView {
            is,
            lasts: now.saturating_sub(is.session.since),
            fault: state.faults.get(&is.wanted.peer).cloned(),
        };
        state.sessions.views().into_iter().map(view).collect()
    }

    /// How many datagrams were discarded, and why.
    pub fn discarded(&self) -> Vec<(Discard, u64)> {
        self.thread.shared.lock().sessions.discarded().collect()
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        self.set([]);
        self.thread.shared.lock().watchers.remove(&self.watcher);
    }
}

/// Ends with the last watcher.
#[derive(Debug)]
struct Thread {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.wake();
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

#[derive(Debug)]
struct Watcher {
    wanted: Vec<Wanted>,
    changes: UnboundedSender<(Peer, Liveness)>,
}

#[derive(Debug)]
struct Shared {
    wake: EventFd,
    start: Instant,
    /// Held for as long as it takes to handle what has arrived: microseconds a packet.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sessions: Sessions,
    watchers: BTreeMap<u64, Watcher>,
    next_watcher: u64,
    /// What the thread shall do because the sessions were set.
    to_do: Vec<Output>,
    faults: BTreeMap<Peer, String>,
    /// The sockets may no longer be those of the sessions.
    is_set: bool,
    is_over: bool,
}

impl State {
    /// Makes the sessions those that anybody wants.
    fn set(&mut self, now: Duration) {
        let mut all: BTreeMap<Peer, Wanted> = BTreeMap::new();
        for wanted in self.watchers.values().flat_map(|watcher| &watcher.wanted) {
            all.entry(wanted.peer).or_insert(*wanted);
        }
        let outputs = self.sessions.set(all.into_values(), now);
        self.to_do.extend(outputs);
        self.is_set = true;
    }

    /// Tells everybody; who does not watch the peer leaves it alone.
    fn tell(&self, peer: Peer, liveness: Liveness) {
        for watcher in self.watchers.values() {
            // Who does not listen any more is about to go.
            let _ = watcher.changes.send((peer, liveness));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wake(&self) {
        // Only fails when the counter is full: then it is readable, which is what is wanted.
        let _ = self.wake.write(1);
    }
}

/// Whether an address means nothing without an interface.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
