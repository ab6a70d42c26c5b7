//! From answers to states, and what is shown of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::require_root;

use crate::{
    lab_support::{LbFile, eventually},
    site::{PORT, QUICK, Says, Site},
};

#[test]
fn a_backend_whose_server_dies_is_unhealthy_after_so_many_probes_and_comes_back() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = Site::start(&format!("type: tcp, port: {PORT}, {QUICK}"))?;
    // The control: nothing happens.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(site.changes(1)?, 0, "{}", site.lb().log()?);

    site.says[1] = None;
    // Seen from outside, whenever one looks: not unhealthy before the third failure, not healthy after it.
    let start = Instant::now();
    loop {
        let check = site.check(1)?;
        let unhealthy = check.state == "unhealthy";
        assert_eq!(unhealthy, check.failures >= 3, "{check:?}");
        if unhealthy {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(20), "{check:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    println!(
        "unhealthy {:?} after its server was closed, at an interval of 300 ms",
        start.elapsed()
    );
    assert_eq!(site.check(1)?.reason.as_deref(), Some("connection refused"));
    let shown = site.lb().cli(&["backends"])?;
    assert!(
        shown.contains("UNHEALTHY for") && shown.contains("tcp :9100: connection refused"),
        "{shown}"
    );
    let sums = site.lb().status()?.health.context("health")?;
    assert_eq!(
        (sums.healthy, sums.unhealthy, sums.dead, sums.vips_in_panic),
        (3, 1, 0, 0)
    );

    // Refused for longer than it takes to die of silence: it is not dead.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(site.check(1)?.state, "unhealthy");
    let again = Says::start(site.bed.topology.worker(1))?;
    site.says[1] = Some(again);
    let check = site.is(1, "healthy")?;
    assert_eq!(check.reason, None);
    Ok(())
}

#[test]
fn a_host_that_falls_silent_is_dead_in_time_and_alive_again_when_it_answers() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(&format!("type: tcp, port: {PORT}, {QUICK}, dead_after_ms: 1000"))?;
    let node = site.bed.topology.worker(2).ns();
    node.nft("table inet silent { chain in { type filter hook input priority 0; tcp dport 9100 drop; }; }")?;
    let check = site.is(2, "dead")?;
    assert_eq!(check.reason.as_deref(), Some("no connection in time"));
    assert!(site.lb().cli(&["backends"])?.contains("DEAD for"));
    node.nft("delete table inet silent")?;
    site.is(2, "healthy")?;
    Ok(())
}

#[test]
fn another_status_and_another_body_are_failures() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start(&format!(
        "type: http, port: {PORT}, path: /healthz, body: worker, {QUICK}"
    ))?;
    for (worker, status, why) in [
        (0, 503, "status 503"),
        (1, 404, "status 404"),
        (2, 0, "connection closed before the answer"),
    ] {
        site.says(worker, status)?;
        assert_eq!(site.is(worker, "unhealthy")?.reason.as_deref(), Some(why));
        site.says(worker, 200)?;
        site.is(worker, "healthy")?;
    }
    // A text that only one of them has: a reload changes what is asked, and forgets what was.
    let file = LbFile {
        more: format!("health: {{ type: http, port: {PORT}, body: worker-2, panic_percent: 0, {QUICK} }}\n"),
        ..site.bed.file()
    };
    site.lb().reload_lb(&file)?;
    for worker in [0, 2, 3] {
        let check = site.is(worker, "unhealthy")?;
        assert_eq!(check.reason.as_deref(), Some("the body does not have the text"));
    }
    site.is(1, "healthy")?;
    // And without `health` nothing is probed.
    site.lb().reload_lb(&LbFile {
        more: String::new(),
        ..site.bed.file()
    })?;
    eventually("nothing is probed", || Ok(site.lb().status()?.health.is_none()))?;
    assert!(site.lb().backends()?.iter().all(|backend| backend.checks.is_empty()));
    Ok(())
}

#[test]
fn flapping_is_damped() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // As fast as probes can tell, but no faster than every 2 s.
    let site = Site::start(&format!(
        "type: http, port: {PORT}, interval_ms: 100, timeout_ms: 100, rise: 1, fall: 1, damping_ms: 2000"
    ))?;
    let (before, start) = (site.changes(3)?, Instant::now());
    let mut turns = 0;
    while start.elapsed() < Duration::from_secs(12) {
        site.says(3, if turns % 2 == 0 { 500 } else { 200 })?;
        turns += 1;
        std::thread::sleep(Duration::from_millis(400));
    }
    let changes = site.changes(3)? - before;
    println!(
        "{turns} turns of the server in {:?}: {changes} changes of its health",
        start.elapsed()
    );
    assert!(changes >= 2, "it does change");
    assert!(
        changes as u64 <= start.elapsed().as_secs() / 2 + 1,
        "{changes} changes:\n{}",
        site.lb().log()?
    );
    Ok(())
}
