//! The two daemons: [`run`] for LB nodes, [`node()`] for worker nodes. Here is what they share; never anything about packets.

mod attach;
mod capture;
mod explain;
mod flow;
mod lb;
mod life;
mod node;
mod slow;
mod tables;
mod unclaimed;
mod views;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

pub use crate::cli::LogFormat;
use crate::source::file::{self, FileError};

/// Exit code for a configuration that cannot be used: nothing was attached.
const EXIT_UNUSABLE: u8 = 2;

/// Runs the LB node's daemon until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// When the node cannot be taken over: not root, no such interface, another XDP program there.
pub fn run(config: &Path, log: LogFormat) -> anyhow::Result<ExitCode> {
    start_logging(log);
    life::Life::unblock_signals()?;
    // Watched before it is read, so that no change is missed in between.
    let watch = file::Watch::new(vec![config.to_owned()]);
    match file::read_lb(config) {
        Ok(file) => runtime()?.block_on(lb::serve(config, file, watch)),
        Err(error) => unusable(&error, config),
    }
}

/// Runs the worker node's agent until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// As [`run`].
pub fn node(config: &Path, log: LogFormat) -> anyhow::Result<ExitCode> {
    start_logging(log);
    life::Life::unblock_signals()?;
    let watch = file::Watch::new(vec![config.to_owned()]);
    match file::read_node(config) {
        Ok(parsed) => runtime()?.block_on(node::serve(config, parsed, watch)),
        Err(error) => unusable(&error, config),
    }
}

/// Validates an LB node's configuration; says what it describes.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn check_lb(config: &Path) -> Result<String, FileError> {
    let lb_core::config::LbConfig {
        desired, interfaces, ..
    } = file::read_lb(config)?.config;
    let (vips, backends) = (desired.vips.len(), desired.backends.len());
    Ok(format!(
        "{vips} VIPs, {backends} backends, {} interfaces",
        interfaces.len()
    ))
}

/// Validates a worker node's configuration; says what it describes.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn check_node(config: &Path) -> Result<String, FileError> {
    let config = file::read_node(config)?;
    let (sources, prefixes) = (config.lb_sources.len(), config.vip_prefixes.len());
    Ok(format!(
        "{sources} LB sources, {prefixes} VIP prefixes, {} interfaces",
        config.interfaces.len()
    ))
}

fn unusable(error: &FileError, config: &Path) -> anyhow::Result<ExitCode> {
    writeln!(io::stderr(), "{}", error.report(config))?;
    Ok(ExitCode::from(EXIT_UNUSABLE))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_env_var("VIPLINE_LOG")
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
