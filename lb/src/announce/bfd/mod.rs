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
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use lb_core::bfd::{Cause, Discard, Output, Peer, PeerView, Sessions, Wanted};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

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

/// The sessions of this node. When it goes, their peers are told that this is no failure.
#[derive(Debug)]
pub struct Bfd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Bfd {
    /// Starts the thread, without sessions, in the caller's network namespace. `seed`: another one at every start.
    ///
    /// # Errors
    ///
    /// eventfd(2)'s, and when there can be no thread.
    pub fn start(seed: u64) -> io::Result<(Self, Changes)> {
        let (changes, told) = unbounded_channel();
        let shared = Arc::new(Shared {
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            start: Instant::now(),
            state: Mutex::new(State {
                sessions: Sessions::new(seed),
                to_do: Vec::new(),
                faults: BTreeMap::new(),
                is_set: false,
                is_over: false,
            }),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            Builder::new()
                .name("bfd".to_owned())
                .spawn(move || run::run(&shared, &changes))?
        };
        let thread = Some(thread);
        Ok((Self { shared, thread }, told))
    }

    /// Makes the sessions these; see [`Sessions::set`]. A session that ends because nobody asks for it any more is told to its peer, and
    /// to [`Changes`] as [`Cause::AdminDown`].
    pub fn set(&self, wanted: impl IntoIterator<Item = Wanted>) {
        let mut state = self.shared.lock();
        let now = self.shared.now();
        let outputs = state.sessions.set(wanted, now);
        state.to_do.extend(outputs);
        state.is_set = true;
        drop(state);
        self.shared.wake();
    }

    /// All sessions, in order of addresses.
    pub fn views(&self) -> Vec<BfdView> {
        let state = self.shared.lock();
        let now = self.shared.now();
        let view = |is: PeerView| BfdView {
            is,
            lasts: now.saturating_sub(is.session.since),
            fault: state.faults.get(&is.wanted.peer).cloned(),
        };
        state.sessions.views().into_iter().map(view).collect()
    }

    /// How many datagrams were discarded, and why.
    pub fn discarded(&self) -> Vec<(Discard, u64)> {
        self.shared.lock().sessions.discarded().collect()
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        self.set([]);
        self.shared.lock().is_over = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
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
    /// What the thread shall do because the sessions were set.
    to_do: Vec<Output>,
    faults: BTreeMap<Peer, String>,
    /// The sockets may no longer be those of the sessions.
    is_set: bool,
    is_over: bool,
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
