//! So few healthy backends that probes are not believed, or none at all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::require_root;

use crate::{
    lab_support::{count_servers, eventually},
    site::{PORT, QUICK, Says, Site, VIP},
};

#[test]
fn when_too_few_are_left_all_are_used_and_that_is_said() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut site = Site::start(&format!("type: tcp, port: {PORT}, panic_percent: 50, {QUICK}"))?;
    for worker in 0..2 {
        site.says[worker] = None;
        site.is(worker, "unhealthy")?;
    }
    // A half is not too few.
    assert_eq!(site.too_few()?, (0, 0));
    let client = site.bed.topology.client();
    eventually("the other two serve", || {
        Ok(count_servers(&client.http_get(VIP, 40)?).len() == 2)
    })?;
    site.says[2] = None;
    site.is(2, "unhealthy")?;
    eventually("all are used", || Ok(site.too_few()? == (2, 0)))?;
    let shown = site.lb().cli(&["status"])?;
    assert!(
        shown.contains("PANIC: of 2 VIPs so few backends are eligible"),
        "{shown}"
    );
    assert!(site.lb().log()?.contains("the probes are not believed"));
    // Nothing is lost by that: who serves goes on to.
    eventually("all four serve", || {
        Ok(count_servers(&client.http_get(VIP, 40)?).len() == 4)
    })?;
    let again = Says::start(site.bed.topology.worker(0))?;
    site.says[0] = Some(again);
    site.is(0, "healthy")?;
    eventually("it is over", || Ok(site.too_few()? == (0, 0)))?;
    eventually("the healthy two serve", || {
        Ok(count_servers(&client.http_get(VIP, 40)?).len() == 2)
    })?;
    Ok(())
}

#[test]
fn when_none_is_left_new_flows_are_refused_at_once_and_old_connections_stay() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let health = format!("type: http, port: {PORT}, {QUICK}");
    let site = Site::start(&health)?;
    let client = site.bed.topology.client().with_timeout(Duration::from_secs(1));
    let mut connections = (0..20).map(|_| client.connect(VIP)).collect::<Result<Vec<_>>>()?;
    let served = |connections: &mut Vec<lab::Conn>| connections.iter_mut().filter_map(|conn| conn.get().ok()).count();
    assert_eq!(served(&mut connections), 20, "the control");
    client.ping(VIP.ip(), 56)?;
    for worker in 0..4 {
        site.says(worker, 500)?;
    }
    site.all("unhealthy")?;
    eventually("both VIPs refuse", || Ok(site.too_few()? == (0, 2)))?;
    assert!(site.lb().cli(&["status"])?.contains("of 2 VIPs NO BACKEND is eligible"));
    let refused = || -> Result<(bool, Duration)> {
        let start = Instant::now();
        let error = client.http_get(VIP, 1).err().context("it is served")?;
        Ok((format!("{error:#}").contains("refused"), start.elapsed()))
    };
    eventually("new connections are refused", || {
        Ok(refused().is_ok_and(|(refused, _)| refused))
    })?;
    let (_, took) = refused()?;
    assert!(took < Duration::from_millis(800), "{took:?}");
    let error = client.udp_get(VIP, 1).err().context("it is served")?;
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    assert!(client.ping(VIP.ip(), 56).is_err(), "an echo says that it is well");
    assert_eq!(served(&mut connections), 20, "nobody has died");

    // The twin: all are used.
    let file = site.bed.file();
    let all = |when_none: &str| format!("health: {{ {health}, when_none: {when_none} }}\n");
    site.lb().reload_lb(&crate::lab_support::LbFile {
        more: all("use_all"),
        ..file.clone()
    })?;
    eventually("all are used", || Ok(site.too_few()? == (2, 0)))?;
    eventually("new connections are served", || Ok(client.http_get(VIP, 4).is_ok()))?;
    assert_eq!(served(&mut connections), 20);

    site.lb().reload_lb(&file)?;
    site.says(3, 200)?;
    site.is(3, "healthy")?;
    eventually("the one that is back serves", || {
        let replies = client.http_get(VIP, 10);
        Ok(replies.is_ok_and(|replies| replies.iter().all(|reply| reply.server == "worker-4")))
    })?;
    client.ping(VIP.ip(), 56)?;
    assert_eq!(served(&mut connections), 20);
    Ok(())
}
