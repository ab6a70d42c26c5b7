//! The operator as a program: watches, queue, writes, events, election, metrics, command line.
//!
//! Never decides what to write: [`crate::decide`] does.

use std::process::ExitCode;

/// Runs the command line.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
