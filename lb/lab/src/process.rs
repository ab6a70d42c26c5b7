//! Child processes that outlive the thread which asked for them, and never this process.

use std::{
    process::{Child, Command, ExitStatus},
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
};

use anyhow::{Context as _, Result};
use nix::{sys::signal::Signal, unistd::Pid};

type Request = (Command, Sender<std::io::Result<Child>>);

/// The thread that forks. `PDEATHSIG` fires when the forking *thread* ends, so this one never does.
static FORKER: OnceLock<Sender<Request>> = OnceLock::new();

/// A running child; killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command` (usually from [`Netns::command`](crate::Netns::command)) from a thread that lives as long as this
    /// process, so that the child does too unless it is dropped or ends.
    ///
    /// # Errors
    ///
    /// Those of the start.
    pub fn start(command: Command) -> Result<Self> {
        let what = format!("{command:?}");
        let forker = FORKER.get_or_init(|| {
            let (requests, inbox) = channel::<Request>();
            std::thread::spawn(move || {
                for (mut command, answer) in inbox {
                    // A caller that is gone drops the child; it was started for nobody and is killed.
                    if let Err(unwanted) = answer.send(command.spawn())
                        && let Ok(mut child) = unwanted.0
                    {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                }
            });
            requests
        });
        let (answer, outcome) = channel();
        forker
            .send((command, answer))
            .ok()
            .context("the forking thread has ended")?;
        let child = outcome
            .recv()
            .context("the forking thread has ended")?
            .with_context(|| format!("cannot start {what}"))?;
        Ok(Self { child })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// kill(2)'s.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("pid")?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("kill({pid}, {signal})"))
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    ///
    /// waitpid(2)'s.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for it to end.
    ///
    /// # Errors
    ///
    /// waitpid(2)'s.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
