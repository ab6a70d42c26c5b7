//! `vipline`: the LB node's daemon, the worker node's agent and the operator's-eye CLI.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb::cli::main()
}
