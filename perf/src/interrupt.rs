//! Ctrl-C as something to look at between two measurements, so that what was measured is still printed.

use anyhow::{Context as _, Result};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

/// SIGINT and SIGTERM, held back until somebody asks.
pub(crate) struct Interrupt {
    waiting: SignalFd,
}

impl Interrupt {
    /// Holds the signals back from this thread and those that it starts.
    pub(crate) fn hold() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().context("pthread_sigmask")?;
        let waiting =
            SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("signalfd")?;
        Ok(Self { waiting })
    }

    /// Whether one has come since this was asked last.
    pub(crate) fn came(&self) -> bool {
        matches!(self.waiting.read_signal(), Ok(Some(_)))
    }
}
