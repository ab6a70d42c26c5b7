//! Drains as a table and as lines.

use std::io;

use super::{output::table, show::duration};
use crate::control::{DrainCause, DrainView, NodeDrainView};

pub(super) fn drains(out: &mut dyn io::Write, views: &[DrainView]) -> io::Result<()> {
    if views.is_empty() {
        return writeln!(out, "no backend is drained");
    }
    let rows = views.iter().map(|view| {
        let deadline = match view.deadline_s {
            None => "-".to_owned(),
            Some(0) => "passed".to_owned(),
            Some(seconds) => format!("in {}", duration(seconds)),
        };
        vec![
            view.backend.clone(),
            view.address
                .map_or_else(|| "-".to_owned(), |address| address.to_string()),
            match (view.cause, view.seconds) {
                (DrainCause::Word, Some(seconds)) => format!("drained {} ago", duration(seconds)),
                (DrainCause::Word, None) => "drained".to_owned(),
                (DrainCause::Weight, _) => "weight 0".to_owned(),
                (DrainCause::Left, _) => "in no set".to_owned(),
            },
            deadline,
            remains(view),
        ]
    });
    table(
        out,
        &["BACKEND", "ADDRESS", "WHY", "DEADLINE", "LIVES THERE"],
        rows.collect(),
    )
}

/// How far an LB node is with giving its VIP addresses away.
pub(super) fn leaving(view: &NodeDrainView) -> String {
    let how = match (view.phase.as_str(), view.quiet) {
        ("last_choice", _) => "routers are asked to take another way".to_owned(),
        ("left", true) => "drained: nothing comes any more".to_owned(),
        ("left", false) => {
            "NOT EMPTY: nothing is announced, and packets still come: by a route that is not Vipline's, or for want \
                            of another way"
                .to_owned()
        }
        _ => "nothing is announced".to_owned(),
    };
    let mut line = format!("{how}; {} VIP packets a second are forwarded", view.packets_per_second);
    if let (Some(seconds @ 1..), false) = (view.deadline_s, view.left) {
        line.push_str(&format!("; waits {} more", duration(seconds)));
    }
    if let Some(first) = view.unowned.first() {
        line.push_str(&format!("; NOBODY ELSE answers for {first}"));
        if view.unowned.len() > 1 {
            line.push_str(&format!(" and {} more", view.unowned.len() - 1));
        }
    }
    line
}

/// What still lives at a backend that is being drained.
pub(super) fn remains(view: &DrainView) -> String {
    if view.empty {
        return "nothing".to_owned();
    }
    let older = match view.flows {
        None => "many older flows".to_owned(),
        Some(flows) => format!("about {flows} older flows"),
    };
    let silent = match view.silent_s {
        None => "no packet of theirs seen".to_owned(),
        Some(seconds) => format!("last packet {} ago", duration(seconds)),
    };
    format!("{older} ({} recorded); {silent}", view.recorded)
}
