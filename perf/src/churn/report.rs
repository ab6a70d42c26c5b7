//! What was found, and how it is shown.

use std::io;

use serde::{Deserialize, Serialize};

use super::{
    scenario::Scenario,
    world::{Design, Outcome},
};

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Real connections, not simulated ones.
    pub(crate) is_lab: bool,
    /// Flows open at a time, backends, LB nodes, histories of each scenario.
    pub(crate) flows: u32,
    pub(crate) backends: u32,
    pub(crate) lbs: u32,
    pub(crate) runs: u32,
    pub(crate) rows: Vec<Row>,
    pub(crate) interrupted: bool,
}

/// A scenario and a design: sums over the histories, peaks of any.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    /// One kind of thing changes: no flow may break whose backend lives.
    pub(crate) is_single_cause: bool,
    pub(crate) design: String,
    /// Flows that there were.
    pub(crate) flows: usize,
    /// Of them, broken although their backend lived.
    pub(crate) broken: usize,
    /// Of them, those whose backend died.
    pub(crate) died: usize,
    /// Most flows, and bytes, that all LB nodes together remembered.
    pub(crate) remembered: usize,
    pub(crate) bytes: usize,
}

impl Row {
    pub(super) fn new(scenario: &Scenario, design: Design) -> Self {
        Self {
            scenario: scenario.name.to_owned(),
            is_single_cause: scenario.is_single_cause,
            design: design.name().to_owned(),
            flows: 0,
            broken: 0,
            died: 0,
            remembered: 0,
            bytes: 0,
        }
    }

    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.flows += outcome.flows;
        self.broken += outcome.broken;
        self.died += outcome.died;
        self.remembered = self.remembered.max(outcome.remembered);
        self.bytes = self.bytes.max(outcome.bytes);
    }
}

impl Report {
    /// Whether a living flow of Vipline's broke where none may.
    pub(crate) fn has_failed(&self) -> bool {
        let vipline = Design::Vipline.name();
        let mut rows = self.rows.iter();
        rows.any(|row| row.is_single_cause && row.design == vipline && row.broken > 0)
    }
}

/// As a table.
pub(crate) fn write_table(report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
    if report.is_lab {
        writeln!(
            out,
            "real connections: {} flows before the first change and a tenth of that after each, {} backends, {} LB nodes behind ECMP.\n\
             broken: answered by another backend, or not at all. What is remembered is not looked at here.",
            report.flows, report.backends, report.lbs
        )?;
    } else {
        writeln!(
            out,
            "simulated: {} flows open at a time, {} backends, {} LB nodes behind ECMP modulo their number; sums of {} histories.\n\
         broken: sent elsewhere although the backend lived. died: the backend did. remembered: most at a time, all nodes.",
            report.flows, report.backends, report.lbs, report.runs
        )?;
    }
    for (title, is_single) in [
        ("one cause (goal: 0 broken by Vipline)", true),
        ("backends and LB nodes at once", false),
    ] {
        let mut last = "";
        for row in report.rows.iter().filter(|row| row.is_single_cause == is_single) {
            if last.is_empty() {
                writeln!(
                    out,
                    "\n{title:<52} {:<18} {:>8} {:>7} {:>8} {:>6} {:>10} {:>9}",
                    "DESIGN", "FLOWS", "BROKEN", "%", "DIED", "REMEMBERED", "KiB"
                )?;
            }
            let scenario = if last == row.scenario { "" } else { &row.scenario };
            last = &row.scenario;
            let remembered = if report.is_lab {
                ["-".to_owned(), "-".to_owned()]
            } else {
                [row.remembered.to_string(), format!("{:.1}", row.bytes as f64 / 1024.0)]
            };
            writeln!(
                out,
                "  {scenario:<50} {:<18} {:>8} {:>7} {:>8.3} {:>6} {:>10} {:>9}",
                row.design,
                row.flows,
                row.broken,
                100.0 * row.broken as f64 / row.flows.max(1) as f64,
                row.died,
                remembered[0],
                remembered[1]
            )?;
        }
    }
    if report.interrupted {
        writeln!(out, "\ninterrupted: the rest was not run")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_flow_of_vipline_that_breaks_by_one_cause_is_a_failure_and_others_are_not() {
        let row = |design: Design, is_single_cause, broken| Row {
            scenario: "a backend is added".to_owned(),
            is_single_cause,
            design: design.name().to_owned(),
            flows: 100,
            broken,
            died: 5,
            remembered: 0,
            bytes: 0,
        };
        let report = |row| Report {
            is_lab: false,
            flows: 100,
            backends: 4,
            lbs: 2,
            runs: 1,
            rows: vec![row],
            interrupted: false,
        };
        assert!(report(row(Design::Vipline, true, 1)).has_failed());
        for fine in [
            row(Design::Vipline, true, 0),
            row(Design::Vipline, false, 1),
            row(Design::Stateless, true, 50),
            row(Design::Lru, true, 50),
        ] {
            assert!(!report(fine.clone()).has_failed(), "{fine:?}");
        }
    }
}
