//! `vipline-perf churn` as its users run it, with as few flows as still tell the designs apart.

use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::Value;

fn perf(arguments: &[&str]) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_vipline-perf"))
        .args(arguments)
        .output()
        .context("cannot run vipline-perf")
}

fn broken(report: &Value, scenario: &str, design: &str) -> Result<u64> {
    let rows = report["rows"].as_array().context("rows")?;
    let mut rows = rows.iter();
    let row = rows.find(|row| row["scenario"] == scenario && row["design"] == design);
    let row = row.with_context(|| format!("no row of {scenario}, {design}"))?;
    assert!(row["flows"].as_u64().is_some_and(|flows| flows >= 400), "{row}");
    row["broken"].as_u64().context("broken")
}

#[test]
fn no_living_flow_breaks_by_one_cause_where_the_two_other_designs_break_some() -> Result<()> {
    let output = perf(&["churn", "--flows", "400", "--runs", "1", "-o", "json"])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON; stderr: {stderr}"))?;
    assert!(output.status.success(), "{report:#}");
    let rows = report["rows"].as_array().context("rows")?;
    let single = |row: &&Value| row["is_single_cause"] == true && row["design"] == "Vipline";
    assert!(rows.iter().filter(single).count() >= 15, "{rows:?}");
    assert!(rows.iter().filter(single).all(|row| row["broken"] == 0), "{rows:?}");
    // The control, and that the others are tried hard enough.
    for design in ["Vipline", "stateless Maglev", "LRU of all flows"] {
        assert_eq!(broken(&report, "nothing changes", design)?, 0);
    }
    assert!(broken(&report, "a tenth is replaced", "stateless Maglev")? > 20);
    assert!(broken(&report, "receive queues, in a transit", "LRU of all flows")? > 20);
    assert!(broken(&report, "a SYN flood, and a tenth is replaced", "LRU of all flows")? > 20);
    // What is known not to hold yet is measured, not hidden.
    for what in ["in a transit an LB node joins", "in a transit an LB node reboots"] {
        let (unknown, known) = (what.to_owned(), format!("{what}, knows its base"));
        let (unknown, known) = (
            broken(&report, &unknown, "Vipline")?,
            broken(&report, &known, "Vipline")?,
        );
        assert!(known < unknown && unknown > 0, "{what}: {known} and {unknown}");
    }
    Ok(())
}

#[test]
fn a_name_that_no_scenario_has_is_refused() -> Result<()> {
    let output = perf(&["churn", "--filter", "no such thing"])?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no scenario has such a name"));
    Ok(())
}

#[test]
fn real_connections_stay_where_a_plain_maglev_breaks_some() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let scenario = "in a transit a daemon is killed and started again";
    let output = perf(&["churn", "--lab", "--flows", "400", "--filter", scenario, "-o", "json"])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON; stderr: {stderr}"))?;
    assert!(output.status.success(), "{report:#}");
    assert_eq!(broken(&report, scenario, "Vipline")?, 0);
    assert!(broken(&report, scenario, "stateless Maglev")? > 20);
    Ok(())
}

#[test]
fn real_connections_of_the_others_stay_where_a_backend_dies() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let scenario = "a backend dies, and is taken out";
    let output = perf(&["churn", "--lab", "--flows", "400", "--filter", scenario, "-o", "json"])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON; stderr: {stderr}"))?;
    assert!(output.status.success(), "{report:#}");
    assert_eq!(broken(&report, scenario, "Vipline")?, 0);
    let rows = report["rows"].as_array().context("rows")?;
    assert!(
        rows.iter().all(|row| row["died"].as_u64() > Some(400 / 12)),
        "a sixth of them: {rows:?}"
    );
    Ok(())
}
