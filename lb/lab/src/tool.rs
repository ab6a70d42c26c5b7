//! Other people's tools in a namespace, bounded in time: what they said, however they ended. Never judges what they said.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::Netns;

/// How a tool ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Exit status 0, within the time.
    pub ok: bool,
    /// Standard output.
    pub said: String,
    /// Standard error.
    pub complained: String,
}

impl Netns {
    /// Runs a command line (words separated by blanks, no quoting, no shell) that is killed after `limit`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn within(&self, limit: Duration, line: &str) -> Result<Ended> {
        let mut command: Command = self.command("timeout");
        command.args(["-s", "KILL", &format!("{:.3}", limit.as_secs_f64())]);
        let output = command
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{line}` in {}", self.name()))?;
        Ok(Ended {
            ok: output.status.success(),
            said: String::from_utf8_lossy(&output.stdout).into_owned(),
            complained: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
