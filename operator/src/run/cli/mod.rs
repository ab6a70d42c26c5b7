//! The command line: parses arguments, runs the operator or asks the API server, prints data. Never decides anything about Services.

mod args;
mod cluster;
mod output;
mod selector;
mod show;
mod show_announcing;
mod uninstall;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use self::args::{Args, Command, LogFormat, RunArgs};
use super::{Error, Options, serve};
use crate::index::Settings;

/// Exit code for a command line or a kubeconfig that cannot be used.
const EXIT_UNUSABLE: u8 = 2;

/// What cannot be used as it was given: the command line or the kubeconfig.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unusable(String);

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    // Fails only where one was installed already, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error leaves nothing to say and nowhere to say it.
            drop(writeln!(io::stderr(), "vipline-operator: {}", report(&error)));
            if error.is::<Unusable>() {
                ExitCode::from(EXIT_UNUSABLE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Crds => output::crds(&mut io::stdout().lock()),
        Command::Run(args) => {
            start_logging(args.log);
            runtime()?.block_on(run(args))
        }
        Command::Services(args) => runtime()?.block_on(show::services(&args)),
        Command::Peers(args) => runtime()?.block_on(show_announcing::peers(&args)),
        Command::Announcements(args) => runtime()?.block_on(show_announcing::announcements(&args)),
        Command::Pools(args) => runtime()?.block_on(show::pools(&args)),
        Command::Uninstall(args) => runtime()?.block_on(uninstall::run(&args)),
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let client: Client = args.api.client().await?;
    let identity = args
        .identity
        .clone()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(identity);
    let options = Options {
        settings: Settings {
            namespace: args.api.namespace.clone(),
            class: args.class.class.clone(),
            default_class: args.class.default_class,
            service_selector: args.class.service_selector.clone(),
        },
        identity,
        leader_elect: args.leader_elect,
        listen: Some(args.listen),
        workers: Options::WORKERS,
        fault: None,
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        namespace = options.settings.namespace,
        class = options.settings.class,
        default_class = options.settings.default_class,
        identity = options.identity,
        listen = %args.listen,
        "starting"
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: what was begun is finished");
    };
    match serve(client, options, shutdown).await {
        Ok(()) => Ok(()),
        Err(error @ (Error::LeaseLost | Error::Stopped | Error::Fault | Error::Listen { .. } | Error::Start(_))) => {
            Err(error.into())
        }
    }
}

/// The host's name (in a pod: the pod's) and some random digits: two on one host must differ.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() {
        "vipline-operator"
    } else {
        host.trim()
    };
    format!("{host}_{:08x}", fastrand::u32(..))
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_env_var("VIPLINE_LOG")
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    // The watches say what went wrong in words of their own.
    let quiet = ["kube_runtime=error", "kube_client=error"].map(str::parse);
    let filter = quiet.into_iter().flatten().fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colours).with_target(false).init();
        }
        LogFormat::Json => builder.json().init(),
    }
}

/// An error and its causes, each once.
fn report(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

/// Whether nobody reads our output any more. An API server that hung up is another matter.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
