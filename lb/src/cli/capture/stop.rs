//! What ends a capture from this side: signals, and a reader of our output who has enough. Never ends the process by itself before a
//! second signal: the daemon is asked, and says when it is over.

use std::{
    io, mem,
    os::fd::AsFd as _,
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigSet, Signal},
};

/// Exit code after a second Ctrl-C: 128 and the signal's number, as shells have it.
const EXIT_INTERRUPTED: i32 = 130;

/// Ctrl-C and its like: the first asks the daemon to come to an end, as soon as there is something to end; the second does not wait.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<Mutex<Asked>>);

#[derive(Default)]
enum Asked {
    /// Not yet, and the capture has not begun.
    #[default]
    No,
    /// Not yet; this does it.
    With(Box<dyn FnOnce() + Send>),
    /// Yes, perhaps before the capture began.
    Yes,
}

impl Stop {
    /// Waits for signals in a thread of their own; this one, and those that are made after this, hold them back.
    pub(super) fn on_signals() -> anyhow::Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().context("cannot handle signals")?;
        let stop = Self::default();
        let stopper = stop.clone();
        let wait = move || {
            while signals.wait().is_ok() {
                if stopper.ask() {
                    process::exit(EXIT_INTERRUPTED);
                }
            }
        };
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(wait);
        thread.context("cannot handle signals")?;
        Ok(stop)
    }

    /// Has the first signal do this, at once if it has come already.
    pub(super) fn with(&self, stop: impl FnOnce() + Send + 'static) {
        let mut asked = self.asked();
        match *asked {
            Asked::No | Asked::With(_) => *asked = Asked::With(Box::new(stop)),
            Asked::Yes => stop(),
        }
    }

    /// Does it as well when nobody reads our standard output any more: with few packets that would be noticed late.
    pub(super) fn on_closed_output(&self) -> anyhow::Result<()> {
        let stopper = self.clone();
        let wait = move || {
            let output = io::stdout();
            // Errors come without being asked for; a file or a terminal has none.
            let mut fds = [PollFd::new(output.as_fd(), PollFlags::empty())];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            stopper.ask();
        };
        let thread = thread::Builder::new().name("output".to_owned()).spawn(wait);
        thread.context("cannot watch the output")?;
        Ok(())
    }

    /// Asks the daemon to come to an end; whether that has been done before.
    fn ask(&self) -> bool {
        match mem::replace(&mut *self.asked(), Asked::Yes) {
            Asked::No => false,
            Asked::With(stop) => {
                stop();
                false
            }
            Asked::Yes => true,
        }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
