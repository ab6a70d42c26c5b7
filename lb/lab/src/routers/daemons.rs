//! A router's processes. They live in a mount namespace where `/run` and `/var/tmp` are empty and in memory, and in a PID namespace
//! whose first process dies with ours: so does all of it, whatever users the daemons become (which clears their `PDEATHSIG`).

use std::{
    ffi::CStr,
    fs::File,
    os::unix::fs::FileExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{Netns, Process, run};

/// What to write and to run.
#[derive(Debug, Default)]
pub(super) struct Recipe {
    /// Shell commands before the files are written: directories.
    pub(super) prepare: String,
    /// Path and content.
    pub(super) files: Vec<(&'static str, String)>,
    /// Command lines of daemons that stay in the foreground, in the order of their start, and what must be there before each.
    pub(super) daemons: Vec<(Option<&'static str>, String)>,
}

/// Ends the text of a file in the script; no configuration has such a line.
const END: &str = "END-OF-THE-FILE-OF-A-LAB-ROUTER";

/// Running daemons; killed, all at once, on drop.
#[derive(Debug)]
pub(super) struct Daemons {
    ns: Netns,
    /// `unshare`, whose only child is the PID namespace's first process.
    outer: Process,
    log: File,
}

impl Daemons {
    pub(super) fn start(ns: &Netns, recipe: &Recipe) -> Result<Self> {
        let name: &CStr = c"router";
        let log = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).context("memfd_create")?);
        let mut command = ns.command("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "bash", "-c"])
            .arg(recipe.script())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        Ok(Self {
            ns: ns.clone(),
            outer: Process::start(command)?,
            log,
        })
    }

    /// Fails when a daemon has ended: they go together.
    pub(super) fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.outer.ended()? {
            bail!("ended ({status}); it said:\n{}", self.said());
        }
        Ok(())
    }

    /// What the daemons wrote so far.
    pub(super) fn said(&self) -> String {
        let length = self.log.metadata().map_or(0, |metadata| metadata.len());
        let mut text = vec![0; usize::try_from(length).unwrap_or_default()];
        let read = self.log.read_at(&mut text, 0).unwrap_or_default();
        text.truncate(read);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Runs a daemon's own client where the daemon's sockets are, and returns its standard output.
    pub(super) fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = self.ns.command("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.outer.id()))
            .args(words);
        run::output(&mut command)
    }

    /// Asks them to end, the last started first, and waits.
    pub(super) fn stop(mut self, limit: Duration) -> Result<()> {
        if let Some(first) = self.first() {
            kill(first, Signal::SIGTERM).context("kill(SIGTERM)")?;
        }
        let deadline = Instant::now() + limit;
        while self.outer.ended()?.is_none() {
            if Instant::now() > deadline {
                bail!("does not end {limit:?} after SIGTERM; it said:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The PID namespace's first process: the kernel ends all others with it.
    fn first(&self) -> Option<Pid> {
        let id = self.outer.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        // Its parent waits for it, so the number is still its own; and the parent ends only when all the others have.
        if let Some(first) = self.first()
            && kill(first, Signal::SIGKILL).is_ok()
        {
            let _ = self.outer.wait();
        }
    }
}

impl Recipe {
    fn script(&self) -> String {
        let mut script = format!(
            "set -eu
started=
end() {{
  trap - TERM
  for daemon in $started; do kill -TERM \"$daemon\" && wait \"$daemon\" || :; done
  exit 0
}}
trap end TERM
mount -t tmpfs none /run
mount -t tmpfs none /var/tmp
{}
",
            self.prepare
        );
        for (path, text) in &self.files {
            script += &format!("cat >{path} <<'{END}'\n{text}\n{END}\n");
        }
        for (first, daemon) in &self.daemons {
            if let Some(first) = first {
                script += &format!("until [[ -S {first} ]]; do sleep 0.02; done\n");
            }
            script += &format!("{daemon} &\nstarted=\"$! $started\"\n");
        }
        // One that ends takes the others with it: half a router is none.
        script += "wait -n\n";
        script
    }
}
