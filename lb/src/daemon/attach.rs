//! Attaching to all configured interfaces, or to none; and the way back.

use std::collections::BTreeSet;

use lb_core::config::{AttachMode, Interface};

use super::{tables::Tables, unclaimed::Unclaimed, views};
use crate::datapath::{Attachment, DatapathError, Mode, Pins, Program, refuse_if_taken};

/// Refuses interfaces that have an XDP program which is not `ours`: before anything of this node is touched, so that a second
/// daemon does the first no harm.
///
/// # Errors
///
/// [`DatapathError::Occupied`] names the program; [`DatapathError::NoInterface`].
pub(super) fn check_free(interfaces: &[Interface], ours: &BTreeSet<String>) -> Result<(), DatapathError> {
    interfaces
        .iter()
        .filter(|interface| !ours.contains(&*interface.name))
        .try_for_each(|interface| refuse_if_taken(&interface.name))
}

/// Attaches to every interface. Where one refuses, those before it are detached and the rules of this daemon taken away.
///
/// # Errors
///
/// As [`Program::attach`].
pub(super) async fn attach_all(
    program: &Program,
    interfaces: &[Interface],
    unclaimed: &Unclaimed,
) -> anyhow::Result<Vec<Attachment>> {
    let attach = |interface: &Interface| {
        program
            .attach(&interface.name, interface.mode)
            .inspect(views::say_attached)
    };
    match interfaces.iter().map(attach).collect() {
        Ok(attachments) => Ok(attachments),
        Err(error) => {
            give_up(unclaimed).await;
            Err(error.into())
        }
    }
}

/// Puts a program with its tables at every interface: in the place of what is `kept` of a process before, and anew where there is
/// nothing. Interfaces that are not configured any more are detached. Attachments come in the order of the interfaces.
///
/// # Errors
///
/// As [`Program::attach`] and [`Tables::take_over`]; then what was there before serves on.
pub(super) fn put_in_place(
    tables: &mut Tables,
    pins: &mut Option<Pins>,
    kept: Vec<Attachment>,
    interfaces: &[Interface],
) -> anyhow::Result<Vec<Attachment>> {
    let is_wanted = |at: &Attachment, wanted: &Interface| *wanted.name == *at.interface().name;
    let (mut kept, strays): (Vec<_>, Vec<_>) = kept
        .into_iter()
        .partition(|at| interfaces.iter().any(|wanted| is_wanted(at, wanted)));
    let missing = interfaces
        .iter()
        .filter(|wanted| !kept.iter().any(|at| is_wanted(at, wanted)));
    let program = &tables.balancer.program;
    let attach = |wanted: &Interface| program.attach(&wanted.name, wanted.mode).inspect(views::say_attached);
    let new: Result<Vec<Attachment>, _> = missing.map(attach).collect();
    let mut new = new?;
    // Those that are new run the program already: taking over is nothing to them.
    tables.take_over(&mut kept, pins)?;
    for at in &mut kept {
        views::say_attached(at);
        let wanted = interfaces.iter().find(|wanted| is_wanted(at, wanted));
        if let Some(wanted) = wanted.filter(|wanted| !suits(wanted.mode, at.mode())) {
            tracing::warn!(
                "{}: {} mode is asked for, and the program stays in {} mode; `vipline detach` and a start change it, with packets \
                 lost in between",
                wanted.name,
                mode_name(wanted.mode),
                at.mode()
            );
        }
    }
    if let Some(pins) = pins {
        new.iter_mut().try_for_each(|at| pins.keep(at))?;
    }
    for stray in strays {
        let name = stray.interface().name.clone();
        match stray.detach() {
            Ok(()) => tracing::info!("{name} is not configured any more: detached"),
            Err(error) => tracing::error!("{name} is not configured any more, and does not let go: {error}"),
        }
    }
    sweep(pins.as_ref());
    kept.append(&mut new);
    let place = |at: &Attachment| interfaces.iter().position(|wanted| is_wanted(at, wanted));
    kept.sort_by_key(place);
    Ok(kept)
}

/// Takes away what no link runs any more; what goes wrong is said, and tried again at the next change.
pub(super) fn sweep(pins: Option<&Pins>) {
    if let Some(Err(error)) = pins.map(Pins::sweep) {
        tracing::error!("programs that are not in place any more stay pinned: {error}");
    }
}

fn suits(asked: AttachMode, mode: Mode) -> bool {
    match asked {
        AttachMode::Auto => true,
        AttachMode::Native => mode == Mode::Native,
        AttachMode::Generic => mode == Mode::Generic,
    }
}

fn mode_name(asked: AttachMode) -> &'static str {
    match asked {
        AttachMode::Auto => "any",
        AttachMode::Native => Mode::Native.name(),
        AttachMode::Generic => Mode::Generic.name(),
    }
}

/// The end of a start that failed: the rules of this daemon go, too.
pub(super) async fn give_up(unclaimed: &Unclaimed) {
    if let Err(left) = unclaimed.remove_all().await {
        tracing::warn!("while giving up: {left}");
    }
}

/// The end of a daemon: its programs and its rules go.
///
/// # Errors
///
/// The first that did not go.
pub(super) async fn detach_all(attachments: Vec<Attachment>, unclaimed: &Unclaimed) -> anyhow::Result<()> {
    for attachment in attachments {
        attachment.detach()?;
    }
    Ok(unclaimed.remove_all().await?)
}
