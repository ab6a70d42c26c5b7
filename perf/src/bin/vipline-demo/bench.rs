//! The cost per packet, from the benchmark's own binary.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::Report;

/// Rows to show.
const FILTER: &str = "demo";

pub(crate) fn cost(report: &mut Report) -> Result<()> {
    let path = std::env::current_exe()?.with_file_name("vipline-perf");
    ensure!(
        path.exists(),
        "{} is not there: run `make demo`, which builds it",
        path.display()
    );
    let output = Command::new(path)
        .args(["prog", "--quick", "--filter", FILTER])
        .output()
        .context("vipline-perf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    report.check(output.status.success(), "vipline-perf measured")?;
    for line in text.lines() {
        report.line(line)?;
    }
    Ok(())
}
