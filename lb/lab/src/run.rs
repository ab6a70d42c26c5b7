//! Commands whose failure says what was run, how it ended and what it said.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
///
/// When it cannot be started or ends with a non-zero status: the error holds the command line, the status and stderr.
pub fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, "")
}

/// As [`output`], with `input` as the command's standard input.
pub(crate) fn output_with_input(command: &mut Command, input: &str) -> Result<String> {
    output_fed(command, input.as_bytes())
}

/// As [`output`], with any amount of `input`.
pub(crate) fn output_fed(command: &mut Command, input: &[u8]) -> Result<String> {
    let line = command_line(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let stdin = child.stdin.take();
    let (written, output) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        let output = child.wait_with_output();
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (written, output)
    });
    let output = output.with_context(|| format!("cannot wait for `{line}`"))?;
    if !output.status.success() {
        bail!(
            "`{line}` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    if let Some(written) = written
        && !input.is_empty()
    {
        written.with_context(|| format!("cannot write to `{line}`"))?;
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
