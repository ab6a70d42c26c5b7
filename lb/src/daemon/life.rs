//! What ends, wakes and announces a daemon: signals, the file's changes, readiness.

use std::{fmt, time::Instant};

use anyhow::Context as _;
use nix::sys::signal::SigSet;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval},
};

use crate::source::file::{LOOK_EVERY, Watch};

/// Why the main loop woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// Read the configuration again.
    Reload(Cause),
    /// Clean up and end.
    Stop(&'static str),
}

/// Why the configuration is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Signal,
    FileChanged,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal => "SIGHUP",
            Self::FileChanged => "the file changed",
        })
    }
}

/// Signals and the file, as one stream of wakes.
pub(super) struct Life {
    /// When the daemon started.
    pub(super) started: Instant,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    look: Interval,
    watch: Watch,
}

impl Life {
    /// Takes the signals that it listens to, whoever started this process with them blocked: it could not be stopped else. Before
    /// there are other threads, which inherit it.
    pub(super) fn unblock_signals() -> anyhow::Result<()> {
        let ours: SigSet = [
            nix::sys::signal::SIGTERM,
            nix::sys::signal::SIGINT,
            nix::sys::signal::SIGHUP,
        ]
        .into_iter()
        .collect();
        ours.thread_unblock().context("cannot unblock signals")
    }

    pub(super) fn new(watch: Watch) -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot handle signals");
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            started: Instant::now(),
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hang_up: on(SignalKind::hangup())?,
            look,
            watch,
        })
    }

    /// Waits for the next reason to do something. Nothing is lost when it is dropped while it waits.
    pub(super) async fn next(&mut self) -> Wake {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Wake::Stop("SIGTERM"),
                _ = self.interrupt.recv() => return Wake::Stop("SIGINT"),
                _ = self.hang_up.recv() => {
                    // What the file is now is what will be read.
                    self.watch.has_changed();
                    return Wake::Reload(Cause::Signal);
                }
                _ = self.look.tick() => {
                    if self.watch.has_changed() {
                        return Wake::Reload(Cause::FileChanged);
                    }
                }
            }
        }
    }
}

/// Tells systemd (`Type=notify-reload`) where we are; nothing happens where nobody asked.
pub(super) fn tell(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager how we are");
    }
}
