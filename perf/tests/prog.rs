//! `vipline-perf prog` as its users run it, with as little effort as it takes.

use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::Value;

fn prog(arguments: &[&str]) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_vipline-perf"))
        .arg("prog")
        .args(arguments)
        .output()
        .context("cannot run vipline-perf")
}

fn report(arguments: &[&str]) -> Result<Value> {
    let output = prog(&[arguments, &["-o", "json"]].concat())?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON; stderr: {stderr}"))?;
    assert!(
        output.status.success(),
        "{:?}\n{}\n{stderr}",
        output.status,
        report["refused"]
    );
    Ok(report)
}

/// All fields of the report that others read.
#[test]
fn quick_run_reports_every_goal_with_what_it_was_measured_on() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let report = report(&["--quick", "--runs", "2", "--repeat", "500"])?;
    assert!(report["machine"]["cpus"].as_u64() >= Some(1), "{}", report["machine"]);
    assert!(report["machine"]["mitigations"].is_object() && report["machine"]["kernel"].is_string());
    assert!(
        report["program"]["jited_bytes"].as_u64() > Some(500),
        "{}",
        report["program"]
    );
    assert!(report["program"]["verified_insns"].as_u64() > Some(500));
    assert_eq!(report["effort"]["repeat"], 500);
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["refused"], Value::Array(Vec::new()));

    let rows = report["rows"].as_array().context("rows")?;
    assert!(rows.len() >= 6, "{}", rows.len());
    for row in rows {
        let passes = row["group"] == "not for a VIP";
        assert_eq!(row["verdict"], if passes { "not_vip" } else { "tx" }, "{row}");
        assert_eq!(row["packets"], 1_000, "{row}");
        assert!(
            row["over_tx_ns"]["median"].is_f64() && row["tx_ns"]["median"].as_f64() > Some(1.0),
            "{row}"
        );
        assert_eq!(
            row["met"],
            row["over_tx_ns"]["median"].as_f64() <= row["goal_ns"].as_f64(),
            "{row}"
        );
        for key in ["vips", "backends", "slots", "tables"] {
            assert!(row[key].as_u64() >= Some(1), "{key}: {row}");
        }
    }
    assert!(rows.iter().any(|row| row["vips"] == 10_000 && row["tables"] == 1));
    assert!(rows.iter().any(|row| row["vips"] == 512 && row["tables"] == 512));

    assert_eq!(report["floors"].as_array().map(Vec::len), Some(2));
    let live = report["live"].as_array().context("live")?;
    assert_eq!(live.len(), 3);
    for receiver in live {
        assert!(receiver["mpps"]["median"].as_f64() > Some(0.0), "{receiver}");
    }
    assert!(
        report["builds"]
            .as_array()
            .is_some_and(|builds| builds.iter().any(|build| build["slots"] == 65_536))
    );
    assert!(report["memory"]["scaled_bytes"].as_u64() > report["memory"]["total_bytes"].as_u64());
    Ok(())
}

/// Everything that `--quick` leaves out: each row's packets come to the row's verdict, or the row would be refused.
#[test]
fn packets_of_every_row_come_to_the_verdict_that_it_says() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for group in [
        "established",
        "new flows",
        "across",
        "largest",
        "mixes",
        "polluted",
        "features",
        "past 10k",
    ] {
        let report = report(&["--filter", group, "--runs", "1", "--repeat", "200"])?;
        assert!(
            report["rows"].as_array().is_some_and(|rows| rows.len() >= 2),
            "{group}: {}",
            report["rows"]
        );
    }
    Ok(())
}

#[test]
fn table_has_the_same_rows_as_people_read_them() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let output = prog(&[
        "--filter",
        "established flows: IPv4 TCP",
        "--runs",
        "1",
        "--repeat",
        "200",
    ])?;
    let table = String::from_utf8(output.stdout)?;
    assert!(output.status.success(), "{table}");
    for word in [
        "kernel",
        "CPU",
        "mitigations",
        "HZ",
        "ns over XDP_TX",
        "goal",
        "established flows",
        "64k",
    ] {
        assert!(table.contains(word), "no {word} in\n{table}");
    }
    Ok(())
}

#[test]
fn records_can_be_read_again() -> Result<()> {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/record"))? {
        let record = entry?.path().join("prog.json");
        let output = Command::new(env!("CARGO_BIN_EXE_vipline-perf"))
            .arg("show")
            .arg(&record)
            .output()?;
        let table = String::from_utf8(output.stdout)?;
        assert!(
            output.status.success(),
            "{}: {}",
            record.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            table,
            std::fs::read_to_string(record.with_extension("txt"))?,
            "{}",
            record.display()
        );
    }
    Ok(())
}

#[test]
fn closed_pipe_is_no_failure() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let line = format!(
        "{} prog --filter floors --runs 1 --repeat 100 | true; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_vipline-perf")
    );
    let output = Command::new("bash").args(["-c", &line]).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panic"));
    Ok(())
}

#[test]
fn filter_that_fits_nothing_is_an_error() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let output = prog(&["--filter", "nothing is called this"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--filter") && output.stdout.is_empty());
    Ok(())
}

#[test]
fn demo_has_rows_to_show() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let report = report(&["--quick", "--filter", "demo", "--runs", "1", "--repeat", "100"])?;
    assert_eq!(report["rows"].as_array().map(Vec::len), Some(2));
    Ok(())
}
