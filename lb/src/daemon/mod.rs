//! The two daemons: [`run`] for LB nodes, [`node()`] for worker nodes. Here is what they share; never anything about packets.

mod attach;
mod capture;
mod cluster;
mod detach;
mod explain;
mod flow;
mod lb;
mod left;
mod life;
mod node;
mod slow;
mod strict_arp;
mod tables;
mod unclaimed;
mod views;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

pub use self::{detach::detach, left::Keeping};
pub use crate::cli::LogFormat;
use crate::source::{
    file::{self, FileError},
    kube::KubeSettings,
};

/// Exit code for a configuration that cannot be used: nothing was attached.
const EXIT_UNUSABLE: u8 = 2;

/// Runs the LB node's daemon until SIGTERM or Ctrl-C. What is pinned serves on then.
///
/// # Errors
///
/// When the node cannot be taken over: not root, no such interface, another XDP program there.
pub fn run(config: &Path, log: LogFormat, keeping: &Keeping) -> anyhow::Result<ExitCode> {
    start_logging(log);
    life::Life::unblock_signals()?;
    // Watched before it is read, so that no change is missed in between.
    let watch = file::Watch::new(vec![config.to_owned()]);
    match file::read_lb(config) {
        Ok(file) => runtime()?.block_on(lb::serve(config, file, watch, keeping)),
        Err(error) => unusable(&error, config),
    }
}

/// As [`run`], told by a cluster; the file has this node's own settings.
///
/// # Errors
///
/// As [`run`]; when there is no way to an API server at all, or no interface.
pub fn run_kube(
    settings: KubeSettings,
    config: Option<PathBuf>,
    log: LogFormat,
    keeping: &Keeping,
) -> anyhow::Result<ExitCode> {
    start_logging(log);
    life::Life::unblock_signals()?;
    let watch = file::Watch::new(config.iter().cloned().collect());
    match file::read_lb_kube(config.as_deref()) {
        Ok(local) => runtime()?.block_on(lb::serve_kube(settings, config, local, watch, keeping)),
        Err(error) => unusable(&error, config.as_deref().unwrap_or(Path::new("-"))),
    }
}

/// As [`node()`], told by a cluster; the file has this node's own settings.
///
/// # Errors
///
/// As [`run_kube`].
pub fn node_kube(settings: KubeSettings, config: Option<PathBuf>, log: LogFormat) -> anyhow::Result<ExitCode> {
    start_logging(log);
    life::Life::unblock_signals()?;
    let watch = file::Watch::new(config.iter().cloned().collect());
    match file::read_node_kube(config.as_deref()) {
        Ok(local) => runtime()?.block_on(node::serve_kube(settings, config, local, watch)),
        Err(error) => unusable(&error, config.as_deref().unwrap_or(Path::new("-"))),
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

/// As [`check_lb`], of a file for `--kube`.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn check_lb_kube(config: &Path) -> Result<String, FileError> {
    Ok(own_settings(file::read_lb_kube(Some(config))?.interfaces.len()))
}

/// As [`check_node`], of a file for `--kube`.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn check_node_kube(config: &Path) -> Result<String, FileError> {
    Ok(own_settings(file::read_node_kube(Some(config))?.interfaces.len()))
}

fn own_settings(interfaces: usize) -> String {
    match interfaces {
        0 => "for --kube, the default route's interfaces".to_owned(),
        interfaces => format!("for --kube, {interfaces} interfaces"),
    }
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
    // What a watch stumbles over is said in our words, once.
    let filter = ["kube_runtime=off", "kube_client=off"]
        .into_iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
