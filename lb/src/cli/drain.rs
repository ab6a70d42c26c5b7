//! `vipline drain`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    args::{AskArgs, DrainArgs, DrainCommand, DrainNodeArgs, Format},
    output, show, show_drain,
};
use crate::{
    control::{self, BackendView, DrainView, NodeDrainView, Request, UndrainView},
    source::kube::{self, Outcome, Wish},
};

/// Between two looks while it waits.
const LOOK: Duration = Duration::from_secs(1);

pub(super) fn run(command: DrainCommand) -> anyhow::Result<ExitCode> {
    match command {
        DrainCommand::List(args) => list(&args),
        DrainCommand::Backend(args) if args.kube => of_cluster(&args),
        DrainCommand::Backend(args) if args.undo => undo(&args),
        DrainCommand::Backend(args) => backend(&args),
        DrainCommand::Node(args) if args.undo => undo_node(&args.ask),
        DrainCommand::Node(args) => node(&args),
    }
}

fn list(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let views: Vec<DrainView> = control::ask(&args.socket, &Request::Drains)?;
    show(args.output, &views, |out, views| show_drain::drains(out, views))?;
    Ok(ExitCode::SUCCESS)
}

fn backend(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let deadline = if args.now { Some(Duration::ZERO) } else { args.deadline };
    let request = Request::Drain {
        backend: args.name.clone(),
        deadline_s: deadline.map(|deadline| deadline.as_secs()),
        force: args.force,
    };
    let mut view: DrainView = control::ask(&args.ask.socket, &request)?;
    if args.wait {
        match wait(args, view)? {
            Some(last) => view = last,
            None => return Ok(ExitCode::FAILURE),
        }
    }
    let views = [view];
    match args.ask.output {
        Format::Json => show(Format::Json, &views[0], |_, _| Ok(()))?,
        Format::Table => show(Format::Table, &views, |out, views| show_drain::drains(out, views))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How it goes, on standard error: on a terminal one line that changes, elsewhere a line whenever it would be another.
struct Progress {
    terminal: bool,
    said: String,
}

impl Progress {
    fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            said: String::new(),
        }
    }

    /// `key`: what makes it another line.
    fn say(&mut self, line: &str, key: String) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        } else if self.said != key {
            let _ = writeln!(io::stderr(), "{line}");
            self.said = key;
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Until nothing lives there, nothing has been heard for long enough, or the deadline has come; how it was then. `None`: somebody
/// has ended the drain.
fn wait(args: &DrainArgs, mut view: DrainView) -> anyhow::Result<Option<DrainView>> {
    let start = Instant::now();
    let mut progress = Progress::new();
    loop {
        let silent = view.silent_s.map_or(start.elapsed(), Duration::from_secs);
        let is_quiet = silent.min(start.elapsed()) >= args.quiet && view.recorded == 0;
        if view.empty || is_quiet || view.deadline_s == Some(0) {
            progress.clear();
            return Ok(Some(view));
        }
        let line = format!("{}: {}", view.backend, show_drain::remains(&view));
        let without_times = format!("{} {:?} {}", view.active_slots, view.flows, view.recorded);
        progress.say(&line, without_times);
        thread::sleep(LOOK);
        let views: Vec<DrainView> = control::ask(&args.ask.socket, &Request::Drains)?;
        match views.into_iter().find(|found| found.backend == args.name) {
            Some(found) => view = found,
            None => {
                let backends: Vec<BackendView> = control::ask(&args.ask.socket, &Request::Backends)?;
                if backends.iter().any(|backend| backend.name == args.name) {
                    writeln!(io::stderr(), "{} is not being drained any more", args.name)?;
                    return Ok(None);
                }
                // It was taken out of the configuration, and nothing was left there.
                return Ok(Some(DrainView { empty: true, ..view }));
            }
        }
    }
}

fn node(args: &DrainNodeArgs) -> anyhow::Result<ExitCode> {
    let request = Request::DrainNode {
        deadline_s: args.deadline.map(|deadline| deadline.as_secs()),
        force: args.force,
    };
    let mut view: NodeDrainView = control::ask(&args.ask.socket, &request)?;
    let mut progress = Progress::new();
    while !args.no_wait && !view.left {
        progress.say(
            &show_drain::leaving(&view),
            format!("{} {}", view.phase, view.packets_per_second),
        );
        thread::sleep(LOOK / 4);
        match control::ask(&args.ask.socket, &Request::NodeDrain)? {
            Some(now) => view = now,
            None => {
                progress.clear();
                writeln!(io::stderr(), "this node is not being drained any more")?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    progress.clear();
    show(args.ask.output, &view, |out, view| {
        writeln!(out, "{}", show_drain::leaving(view))
    })?;
    Ok(if view.quiet || args.no_wait {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn undo_node(args: &AskArgs) -> anyhow::Result<ExitCode> {
    let view: UndrainView = control::ask(&args.socket, &Request::UndrainNode)?;
    show(args.output, &view, |out, view| {
        writeln!(
            out,
            "{}",
            if view.was_drained {
                "this node takes its part of the VIP addresses again"
            } else {
                "this node was not being drained"
            }
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn undo(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let request = Request::Undrain {
        backend: args.name.clone(),
    };
    let view: UndrainView = control::ask(&args.ask.socket, &request)?;
    show(args.ask.output, &view, |out, view| {
        if view.was_drained {
            writeln!(out, "{} takes new connections again", args.name)
        } else {
            writeln!(out, "{} was not being drained", args.name)
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn of_cluster(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let after = if args.now { Some(Duration::ZERO) } else { args.deadline };
    // In whole seconds, as LB nodes count.
    let at =
        |after: Duration| Timestamp::from_second(Timestamp::now().as_second().saturating_add_unsigned(after.as_secs()));
    let wish = if args.undo {
        Wish::In
    } else {
        Wish::Out {
            deadline: after.map(at).transpose()?,
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (kubeconfig, context) = (args.kubeconfig.as_deref(), args.context.as_deref());
    let Outcome { changed, deadline } = runtime.block_on(kube::exclude(kubeconfig, context, &args.name, wish))?;
    let mut out = io::stdout().lock();
    let words = match (changed, args.undo) {
        (true, false) => "is excluded: LB nodes send it no new connections, and keep those that it has",
        (true, true) => "is excluded no more",
        (false, false) => "was excluded already",
        (false, true) => "was not excluded",
    };
    let until = deadline.map_or_else(String::new, |time| format!(" until {time}"));
    match args.ask.output {
        Format::Json => {
            let mut said = serde_json::json!({"node": args.name, "excluded": !args.undo, "changed": changed});
            if let Some(deadline) = deadline {
                said["deadline"] = deadline.to_string().into();
            }
            output::json(&mut out, &said)?;
        }
        Format::Table => writeln!(out, "{} {words}{until}", args.name)?,
    }
    Ok(ExitCode::SUCCESS)
}
