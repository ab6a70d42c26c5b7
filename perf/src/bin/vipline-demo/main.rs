//! `make demo`: real traffic through a VIP, in network namespaces of this machine, and what happened to it.
//!
//! Never says that something is so without having looked: every line with a verdict is a check, and one that fails makes the exit
//! code non-zero. Nothing is left behind, also on Ctrl-C: namespaces are anonymous, children die with their parent, and the one
//! directory is removed.

#![forbid(unsafe_code)]

mod bench;
mod cleanup;
mod site;
mod slow;
mod story;

use std::{
    io::{self, IsTerminal as _, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let mut report = Report {
        out: io::stdout().lock(),
        colour: io::stdout().is_terminal(),
        failed: 0,
    };
    match story::tell(&mut report) {
        Ok(()) if report.failed == 0 => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            // A closed standard error leaves nothing to say and nowhere to say it.
            drop(writeln!(io::stderr(), "vipline-demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints, checks and remembers what failed.
struct Report {
    out: io::StdoutLock<'static>,
    colour: bool,
    failed: u32,
}

impl Report {
    fn heading(&mut self, text: &str) -> io::Result<()> {
        if self.colour {
            writeln!(self.out, "\n\x1b[1m{text}\x1b[0m")?;
        } else {
            writeln!(self.out, "\n{text}")?;
        }
        self.out.flush()
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "  {text}")?;
        self.out.flush()
    }

    fn check(&mut self, holds: bool, text: &str) -> io::Result<()> {
        self.failed += u32::from(!holds);
        let (word, colour) = if holds {
            ("ok    ", "\x1b[32m")
        } else {
            ("FAILED", "\x1b[31m")
        };
        if self.colour {
            writeln!(self.out, "  {colour}{word}\x1b[0m {text}")?;
        } else {
            writeln!(self.out, "  {word} {text}")?;
        }
        self.out.flush()
    }
}
