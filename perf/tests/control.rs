//! `vipline-perf control` as its users run it, with as few Services as it takes. Counts are what is asserted, never times: those are
//! for a quiet machine and 10,000 Services.

use std::{
    fs,
    process::{Command, Output},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

fn perf(arguments: &[&str]) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_vipline-perf"))
        .args(arguments)
        .output()
        .context("cannot run vipline-perf")
}

/// Writes to a resource, with whatever verb.
fn writes_to(writes: &Value, resource: &str) -> u64 {
    let rows = writes.as_array().into_iter().flatten();
    let fitting = rows.filter(|row| row["resource"] == resource);
    fitting.filter_map(|row| row["count"].as_u64()).sum()
}

#[test]
fn fifty_services_are_created_found_again_and_changed_with_as_few_writes_as_promised() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let output = perf(&[
        "control",
        "--services",
        "50",
        "--local",
        "10",
        "--nodes",
        "8",
        "--changes",
        "20",
        "--rate",
        "10",
        "--restarts",
        "1",
        "-o",
        "json",
    ])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON; stderr: {stderr}"))?;
    assert_eq!(report["failed"], Value::Array(Vec::new()), "{report:#}");
    assert!(output.status.success(), "{:?}\n{stderr}", output.status);

    let creation = &report["creation"];
    let per_service = creation["per_service"].as_f64().context("writes of a Service")?;
    assert!((1.0..=4.0).contains(&per_service), "{creation:#}");
    // The table first, and the status once it is programmed: both are there for each.
    assert!(writes_to(&creation["writes"], "services/status") >= 50, "{creation:#}");
    assert!(writes_to(&creation["writes"], "viptables") >= 50, "{creation:#}");

    let restarts = report["restarts"].as_array().context("restarts")?;
    assert_eq!(restarts.len(), 3);
    for restart in restarts {
        assert_eq!(
            restart["writes"],
            Value::Array(Vec::new()),
            "a restart writes nothing: {restart:#}"
        );
        assert!(restart["found_s"][0].as_f64() > Some(0.0), "{restart:#}");
    }

    let changes = &report["changes"];
    assert_eq!(
        (&changes["latency"]["seen"], &changes["latency"]["lost"]),
        (&20.into(), &0.into()),
        "{changes:#}"
    );
    assert_eq!(
        writes_to(&changes["writes"], "viptables"),
        20,
        "one write for each: {changes:#}"
    );
    assert_eq!(
        changes["writes"].as_array().map(Vec::len),
        Some(1),
        "and nothing else: {changes:#}"
    );

    for change in report["node_changes"].as_array().context("node changes")? {
        assert_eq!(writes_to(&change["writes"], "nodesets"), 1, "{change:#}");
        assert_eq!(writes_to(&change["writes"], "viptables"), 0, "{change:#}");
    }
    for row in report["memory"].as_array().context("memory")? {
        for process in ["operator", "lb"] {
            let most = row[process]["most"].as_u64();
            assert!(
                most >= row[process]["resident"].as_u64() && most > Some(1 << 20),
                "{row}"
            );
        }
    }

    let record = tempfile::NamedTempFile::new()?;
    fs::write(record.path(), &output.stdout)?;
    let shown = perf(&["show", record.path().to_str().context("a path")?])?;
    let text = String::from_utf8(shown.stdout)?;
    for part in [
        "FIGURE",
        "cold sync",
        "EndpointSlice change to map write",
        "RESTART",
        "a node leaves",
    ] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    Ok(())
}
