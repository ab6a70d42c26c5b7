//! The command line: parses arguments, asks the daemon or becomes it, prints data. Never decides anything about packets.

mod args;
mod capture;
mod drain;
mod output;
mod show;
mod show_bgp;
mod show_drain;
mod top;

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;

use crate::{
    control::{
        self, AcceptView, BackendView, BgpView, ClientError, CounterView, ExplainView, Request, StatusView, VipView,
    },
    daemon,
};
use args::{Args, AskArgs, Command, Format, KubeCommand, LB_CACHE, LB_FILE, NODE_CACHE, NODE_FILE, StatusArgs};

pub use args::LogFormat;

/// Exit code for a configuration or a command line that cannot be used.
const EXIT_UNUSABLE: u8 = 2;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    // Fails only where one was installed already, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(args.command) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error leaves nothing to say and nowhere to say it.
            drop(writeln!(io::stderr(), "vipline: {}", report(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => match args.kube.settings(LB_CACHE)? {
            Some(settings) => daemon::run_kube(settings, args.config, args.log, &args.keep.keeping()),
            None => {
                let config = args.config.unwrap_or_else(|| LB_FILE.into());
                daemon::run(&config, args.log, &args.keep.keeping())
            }
        },
        Command::Node(args) => match args.kube.settings(NODE_CACHE)? {
            Some(settings) => daemon::node_kube(settings, args.config, args.log),
            None => daemon::node(&args.config.unwrap_or_else(|| NODE_FILE.into()), args.log),
        },
        Command::Detach(args) => detach(&args),
        Command::Check(args) => check(&args),
        Command::Status(args) => status(&args),
        Command::Vips(args) => print::<Vec<VipView>>(&args, &Request::Vips, |out, view| show::vips(out, view)),
        Command::Backends(args) => {
            print::<Vec<BackendView>>(&args, &Request::Backends, |out, view| show::backends(out, view))
        }
        Command::Bgp(args) => print::<Option<BgpView>>(&args, &Request::Bgp, show_bgp::bgp),
        Command::Counters(args) => {
            let all = args.all;
            print::<Vec<CounterView>>(&args.ask, &Request::Counters, |out, view| {
                show::counters(out, view, all)
            })
        }
        Command::Explain(args) => {
            let request = Request::Explain {
                protocol: args.protocol,
                source: args.source,
                destination: args.destination,
            };
            print::<ExplainView>(&args.ask, &request, show::explain)
        }
        Command::Top(args) => top::run(&args),
        Command::Capture(args) => capture::run(args),
        Command::Drain(command) => drain::run(command),
        Command::Kube(KubeCommand::Accept(args)) => accept(&args.socket),
    }
}

fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let view: StatusView = control::ask(&args.ask.socket, &Request::Status)?;
    show(args.ask.output, &view, show::status)?;
    Ok(if view.serving || !args.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Asks, and prints the answer as data or as a table.
fn print<T>(
    args: &AskArgs,
    request: &Request,
    table: impl FnOnce(&mut dyn io::Write, &T) -> io::Result<()>,
) -> anyhow::Result<ExitCode>
where
    T: serde::Serialize + serde::de::DeserializeOwned,
{
    show(args.output, &control::ask(&args.socket, request)?, table)?;
    Ok(ExitCode::SUCCESS)
}

fn show<T: serde::Serialize>(
    output: Format,
    view: &T,
    table: impl FnOnce(&mut dyn io::Write, &T) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        Format::Json => output::json(&mut out, view)?,
        Format::Table => table(&mut out, view)?,
    }
    out.flush()
}

fn detach(args: &args::PinArgs) -> anyhow::Result<ExitCode> {
    let lines = daemon::detach(&args.place())?;
    let mut out = io::stdout().lock();
    if lines.is_empty() {
        writeln!(out, "nothing is pinned for instance `{}`", args.instance)?;
    }
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    Ok(ExitCode::SUCCESS)
}

fn accept(socket: &Path) -> anyhow::Result<ExitCode> {
    let answer: AcceptView = control::ask(socket, &Request::KubeAccept)?;
    match answer.vips {
        0 => writeln!(io::stdout(), "nothing is held")?,
        vips => writeln!(io::stdout(), "{vips} VIPs go")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn check(args: &args::CheckArgs) -> anyhow::Result<ExitCode> {
    let check = match (args.node, args.kube) {
        (false, false) => daemon::check_lb,
        (false, true) => daemon::check_lb_kube,
        (true, false) => daemon::check_node,
        (true, true) => daemon::check_node_kube,
    };
    let result = check(&args.config);
    let mut out = io::stdout().lock();
    match (result, args.output) {
        (Ok(summary), Format::Table) => writeln!(out, "{}: good: {summary}", args.config.display())?,
        (Ok(summary), Format::Json) => output::json(&mut out, &serde_json::json!({"ok": true, "summary": summary}))?,
        (Err(error), Format::Table) => {
            writeln!(io::stderr(), "{}", error.report(&args.config))?;
            return Ok(ExitCode::from(EXIT_UNUSABLE));
        }
        (Err(error), Format::Json) => {
            output::json(&mut out, &serde_json::json!({"ok": false, "errors": error.lines()}))?;
            return Ok(ExitCode::from(EXIT_UNUSABLE));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An error and its causes, each once: most of ours say their cause in their own words already.
pub(crate) fn report(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

/// Whether nobody reads our output any more. A daemon that hung up is another matter.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    !error.is::<ClientError>()
        && error.chain().any(|cause| {
            cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        })
}
