//! Attaching to all configured interfaces, or to none; and the way back.

use lb_core::config::Interface;

use super::{unclaimed::Unclaimed, views};
use crate::datapath::{Attachment, DatapathError, Program, refuse_if_taken};

/// Refuses interfaces that have an XDP program: before anything of this node is touched, so that a second daemon does the first no
/// harm.
///
/// # Errors
///
/// [`DatapathError::Occupied`] names the program; [`DatapathError::NoInterface`].
pub(super) fn check_free(interfaces: &[Interface]) -> Result<(), DatapathError> {
    interfaces
        .iter()
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
