//! What the demo does, in order, and what it says of it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lab::{LinkKind, Load, LoadKind, Reply};

use crate::{
    Report, bench,
    cleanup::Directory,
    site::{Site, WORKERS, vips},
    slow,
};

/// Connections per family: so many that a share of a third is off by a tenth only once in ten million runs.
const CONNECTIONS: usize = 3_000;
/// Datagrams per family.
const DATAGRAMS: usize = 500;
/// How far a share may be from the ideal.
const TOLERANCE: f64 = 0.10;
/// Threads of the load in the background.
const THREADS: usize = 4;

pub(crate) fn tell(report: &mut Report) -> Result<()> {
    let directory = Directory::new()?;
    report.heading("Vipline demo: client - router - LB node - 3 worker nodes, each a network namespace of its own")?;
    anyhow::ensure!(
        lab::require_root()?,
        "the demo makes network namespaces and loads XDP programs: run it as root"
    );
    let site = Site::build(directory.path())?;
    set_up(report, &site)?;
    connections(report, &site)?;
    explain(report, &site)?;
    slow::show(report, &site)?;
    change_weight(report, &site)?;
    report.heading("Cost per packet on this machine (the shipped program, by PROG_TEST_RUN, over a bare XDP_TX)")?;
    bench::cost(report)?;
    drop(site);
    let verdict = match report.failed {
        0 => "All checks passed. `make bench` measures more; docs/tutorial.md goes on from here.".to_owned(),
        failed => format!("{failed} checks FAILED."),
    };
    report.heading(&verdict)?;
    Ok(())
}

fn set_up(report: &mut Report, site: &Site) -> Result<()> {
    let status = site.status()?;
    for interface in &status.interfaces {
        let text = format!(
            "the balancer is attached to the LB node's {} in {} mode",
            interface.name, interface.mode
        );
        report.check(interface.mode == "native", &text)?;
    }
    report.line(&format!("features compiled in: {}", status.features.join(", ")))?;
    for vip in site.vips()? {
        report.line(&format!(
            "VIP {} {}: {} backends, a table of {} slots that {} VIPs share",
            vip.protocol,
            SocketAddr::new(vip.address, vip.port),
            vip.backends,
            vip.slots,
            vip.shared_by
        ))?;
    }
    Ok(())
}

fn connections(report: &mut Report, site: &Site) -> Result<()> {
    let count = 2 * CONNECTIONS + 2 * DATAGRAMS;
    report.heading(&format!(
        "{count} flows: {CONNECTIONS} HTTP connections over IPv4, as many over IPv6, {DATAGRAMS} UDP requests over each"
    ))?;
    let before = site.topology.router().counters()?;
    let [(_, http_v4), (_, http_v6), (_, udp_v4), (_, udp_v6)] = vips()?;
    let client = site.topology.client();
    let mut outcomes = client.try_http_get(http_v4, CONNECTIONS)?;
    outcomes.extend(client.try_http_get(http_v6, CONNECTIONS)?);
    outcomes.extend(client.try_udp_get(udp_v4, DATAGRAMS)?);
    outcomes.extend(client.try_udp_get(udp_v6, DATAGRAMS)?);
    let seen = site.topology.router().counters()? - &before;

    let failures: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    let first = failures
        .first()
        .map_or_else(String::new, |error| format!(" (the first: {error:#})"));
    report.check(
        failures.is_empty(),
        &format!("{} of {count} flows failed{first}", failures.len()),
    )?;
    let replies: Vec<Reply> = outcomes.into_iter().filter_map(Result::ok).collect();
    shares(report, &per_server(&replies), [1; WORKERS])?;
    let translated = replies
        .iter()
        .filter(|reply| reply.client_seen != reply.local_addr)
        .count();
    report.check(
        translated == 0,
        &format!("client addresses preserved: {translated} of {count} servers saw another"),
    )?;
    let (lb, workers) = (
        seen.from(LinkKind::Lb).replies.packets,
        seen.from(LinkKind::Worker).replies.packets,
    );
    report.check(
        lb == 0 && workers as usize >= count,
        &format!(
            "direct server return: {workers} reply packets came to the router from workers, {lb} from the LB node"
        ),
    )?;
    let (inward, tunnelled) = (
        seen.to(LinkKind::Lb).requests.packets,
        seen.from(LinkKind::Lb).tunnel.packets,
    );
    report.check(
        inward == tunnelled,
        &format!("{inward} request packets went to the LB node, {tunnelled} came back out of it, encapsulated"),
    )?;
    Ok(())
}

fn explain(report: &mut Report, site: &Site) -> Result<()> {
    report.heading("Where would this flow go? `vipline explain` runs the program's own logic on its tables")?;
    let [(_, vip), ..] = vips()?;
    let mut agreed = 0;
    let ports = 50_000..50_020;
    for port in ports.clone() {
        let source = SocketAddr::new(site.topology.client().addr_v4().into(), port);
        let view = site.explain(source, vip)?;
        let reply = site.topology.client().http_get_from(source, vip)?;
        agreed += usize::from(view.backend.as_deref() == Some(reply.server.as_str()));
        if port == ports.start {
            let (slots, slot) = view.slot.context("no slot")?;
            let backend = view.backend.unwrap_or_default();
            report.line(&format!(
                "{}: slot {slot} of {slots}, backend {backend}: {}",
                view.flow, view.meaning
            ))?;
        }
    }
    report.check(
        agreed == ports.len(),
        &format!("{agreed} of {} flows went where explain said", ports.len()),
    )?;
    Ok(())
}

fn change_weight(report: &mut Report, site: &Site) -> Result<()> {
    report.heading("A weight is changed live: worker-1 from 1 to 2, with connections being made all the while")?;
    let [(_, vip), ..] = vips()?;
    let revision = site.status()?.revision;
    let slots_before = slots(site)?;
    let load = Load::start(site.topology.client(), vip, LoadKind::NewConnections, THREADS)?;
    let lasting = Load::start(site.topology.client(), vip, LoadKind::KeepAlive, THREADS)?;
    load.wait_for(200, Duration::from_secs(10))?;
    site.configure([2, 1, 1])?;
    let took = site.wait_for_revision(revision)?;
    load.wait_for(200, Duration::from_secs(10))?;
    let (new, old) = (load.stop()?, lasting.stop()?);
    let moved: i64 = slots(site)?
        .values()
        .zip(slots_before.values())
        .map(|(now, then)| (now - then).max(0))
        .sum();
    let of: i64 = slots_before.values().sum();
    report.line(&format!(
        "in force {:.1} s after the file was replaced; {moved} of {of} slots moved ({:.1} %; from a third to a half, a sixth must)",
        took.as_secs_f64(),
        100.0 * moved as f64 / of as f64
    ))?;
    let first = new
        .errors
        .first()
        .map_or_else(String::new, |error| format!(" (the first: {error})"));
    let refused = new.failed;
    report.check(
        refused == 0,
        &format!(
            "{} connections made across the change, {refused} cut in their handshake{first}",
            new.ok
        ),
    )?;
    report.check(
        old.failed == 0 && old.moved == 0,
        &format!(
            "{THREADS} long-lived connections with {} requests: {} broke, {} were answered by another worker",
            old.ok, old.failed, old.moved
        ),
    )?;
    let replies = site.topology.client().http_get(vip, CONNECTIONS)?;
    shares(report, &per_server(&replies), [2, 1, 1])?;
    Ok(())
}

/// Slots by backend, of the one table.
fn slots(site: &Site) -> Result<BTreeMap<String, i64>> {
    let backends = site.backends()?;
    Ok(backends
        .into_iter()
        .map(|backend| (backend.name, backend.sets.first().map_or(0, |set| set.slots as i64)))
        .collect())
}

fn per_server(replies: &[Reply]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for reply in replies {
        *counts.entry(reply.server.clone()).or_default() += 1;
    }
    counts
}

fn shares(report: &mut Report, counts: &BTreeMap<String, usize>, weights: [u16; WORKERS]) -> Result<()> {
    let total: usize = counts.values().sum();
    let weight: u16 = weights.iter().sum();
    for (index, share) in (1..).zip(weights) {
        let name = format!("worker-{index}");
        let got = counts.get(&name).copied().unwrap_or_default();
        let ideal = total as f64 * f64::from(share) / f64::from(weight);
        let off = got as f64 / ideal - 1.0;
        report.check(
            off.abs() <= TOLERANCE,
            &format!(
                "{name}: {got:5} flows, ideal {ideal:6.1}, off by {:+.1} % (at most 10 %)",
                100.0 * off
            ),
        )?;
    }
    let known = (1..=WORKERS).map(|index| format!("worker-{index}"));
    let strangers = counts.len() - known.filter(|name| counts.contains_key(name)).count();
    report.check(
        strangers == 0,
        &format!("{strangers} flows were answered by somebody else"),
    )?;
    Ok(())
}
