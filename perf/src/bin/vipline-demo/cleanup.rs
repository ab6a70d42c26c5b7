//! The demo's directory, gone however the demo ends.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::sys::{
    signal::{SigSet, Signal},
    signal::{SigmaskHow, pthread_sigmask},
};

/// Exit code of a process ended by SIGINT, as shells count it.
const EXIT_INTERRUPTED: i32 = 130;

/// A directory for configuration files and control sockets; removed when dropped and on SIGINT and SIGTERM.
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes it. Call before any other thread starts: they inherit the signal mask.
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("vipline-demo-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).context("pthread_sigmask")?;
        let doomed = path.clone();
        std::thread::spawn(move || {
            if signals.wait().is_ok() {
                // Best effort: there is nobody left to tell.
                drop(fs::remove_dir_all(&doomed));
                std::process::exit(EXIT_INTERRUPTED);
            }
        });
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}
