//! Views as tables.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use super::output::{bytes, number, table};
use crate::control::{
    Affinity, BackendView, CheckView, CountedBy, CounterView, ExplainView, FlowTableView, HealthSums, InUseView,
    KubeView, MemberView, NextHopKind, PlacedBy, Role, SlowPathView, StatusView, VipView,
};

/// Addresses that other hosts have which a status lists.
const IN_USE_SHOWN: usize = 8;

pub(super) fn status(out: &mut dyn io::Write, view: &StatusView) -> io::Result<()> {
    let role = match view.role {
        Role::Lb => "LB node",
        Role::Node => "worker node",
    };
    writeln!(
        out,
        "vipline {} ({role}), pid {}, up {}",
        view.version,
        view.pid,
        duration(view.uptime_s)
    )?;
    if !view.serving {
        writeln!(out, "config     {}", view.config)?;
        writeln!(out, "serving    NOT YET: nothing is attached")?;
        return match &view.kube {
            Some(kube) => self::kube(out, kube, view),
            None => Ok(()),
        };
    }
    writeln!(out, "config     {} (revision {})", view.config, view.revision)?;
    let ago = duration(view.last_reload.seconds_ago);
    match &view.last_reload.error {
        None => writeln!(out, "reload     applied {ago} ago")?,
        Some(error) => {
            writeln!(out, "reload     REFUSED {ago} ago, the state before it stays:")?;
            for line in error.lines() {
                writeln!(out, "           {line}")?;
            }
        }
    }
    if let Some(kube) = &view.kube {
        self::kube(out, kube, view)?;
    }
    for interface in &view.interfaces {
        write!(
            out,
            "interface  {} (index {}): {}",
            interface.name, interface.ifindex, interface.mode
        )?;
        if interface.mode == "gone" {
            writeln!(out, ": nothing is balanced there; restart the daemon when it is back")?;
            continue;
        }
        match &interface.native_refused {
            Some(why) => writeln!(out, ": SLOW, because native mode was refused: {why}")?,
            None => writeln!(out)?,
        }
    }
    if let Some(pinned) = &view.pinned {
        writeln!(out, "pinned     {pinned}")?;
    }
    if !view.features.is_empty() {
        writeln!(out, "features   {}", view.features.join(", "))?;
    }
    if view.role == Role::Lb {
        writeln!(out, "tables     {} VIPs, {} lookup tables", view.vips, view.tables)?;
        if view.waiting_vips > 0 {
            writeln!(
                out,
                "           {} VIPs keep the backends that they have until transits end: there is no room for more \
                 (capacity.table_segments)",
                view.waiting_vips
            )?;
        }
        if let Some(drain) = &view.drain {
            writeln!(out, "drain      {}", super::show_drain::leaving(drain))?;
        }
        if let Some(group) = &view.group {
            let waits = if group.waits { ", waits" } else { "" };
            writeln!(
                out,
                "l2 group   {} answers for {} of {} addresses{waits}",
                group.name, group.owned, group.addresses
            )?;
            for MemberView { name, address, heard } in &group.others {
                let heard = if *heard { "is heard" } else { "is NOT HEARD" };
                writeln!(out, "           {name} ({address}) {heard}")?;
            }
        }
        for InUseView { address, mac } in view.in_use.iter().take(IN_USE_SHOWN) {
            writeln!(out, "           {address} is in use by {mac}: not answered for here")?;
        }
        let more = view.in_use.len().saturating_sub(IN_USE_SHOWN);
        if more > 0 {
            writeln!(out, "           and {more} more addresses (-o json)")?;
        }
        writeln!(out, "backends   {} of {} reachable", view.backends_ready, view.backends)?;
        if let Some(health) = &view.health {
            self::health(out, health)?;
        }
    }
    if let Some(bgp) = &view.bgp {
        super::show_bgp::status(out, bgp)?;
    }
    if let Some(table) = &view.flow_table {
        flow_table(out, table)?;
    }
    let packets: Vec<_> = view
        .packets
        .iter()
        .map(|(fate, count)| format!("{fate} {count}"))
        .collect();
    writeln!(out, "packets    {}", packets.join(", "))?;
    if let Some(metrics) = &view.metrics {
        match &metrics.error {
            None => writeln!(out, "metrics    http://{}/metrics", metrics.listen)?,
            Some(error) => writeln!(out, "metrics    DOWN: cannot listen at {}: {error}", metrics.listen)?,
        }
    }
    match &view.slow_path {
        Some(slow_path) => self::slow_path(out, slow_path),
        None => Ok(()),
    }
}

fn flow_table(out: &mut dyn io::Write, view: &FlowTableView) -> io::Result<()> {
    let flows = view
        .flows
        .map_or_else(|| "not counted yet".to_owned(), |flows| flows.to_string());
    write!(out, "flows      {flows} of {} recorded", view.records)?;
    let unrecorded: Vec<_> = view
        .unrecorded
        .iter()
        .filter(|(_, count)| *count > 0)
        .cloned()
        .collect();
    if unrecorded.is_empty() {
        writeln!(out)
    } else {
        writeln!(out, "; NO ROOM for {}", listed(&unrecorded))
    }
}

fn health(out: &mut dyn io::Write, view: &HealthSums) -> io::Result<()> {
    writeln!(
        out,
        "health     {} healthy, {} unknown, {} unhealthy, {} dead; {} checks, a probe waits {} ms",
        view.healthy, view.unknown, view.unhealthy, view.dead, view.checks, view.late_ms
    )?;
    if view.vips_in_panic > 0 {
        writeln!(
            out,
            "           PANIC: of {} VIPs so few backends are eligible that all are used",
            view.vips_in_panic
        )?;
    }
    if view.vips_refused > 0 {
        writeln!(
            out,
            "           of {} VIPs NO BACKEND is eligible: new flows are refused",
            view.vips_refused
        )?;
    }
    if view.unprobed > 0 {
        writeln!(
            out,
            "           {} checks are NOT MADE: there are too many",
            view.unprobed
        )?;
    }
    if !view.probes.is_empty() {
        writeln!(out, "           probes: {}", listed(&view.probes))?;
    }
    Ok(())
}

fn kube(out: &mut dyn io::Write, view: &KubeView, status: &StatusView) -> io::Result<()> {
    let state = match (view.connected_s, view.from_cache, status.serving) {
        (Some(seconds), _, _) => format!("connected for {}", duration(seconds)),
        (None, true, _) => "AWAY since the start: served from the cache".to_owned(),
        (None, false, true) => "AWAY, what it said last holds".to_owned(),
        (None, false, false) if view.away.is_empty() => "not heard yet".to_owned(),
        (None, false, false) => "AWAY".to_owned(),
    };
    writeln!(
        out,
        "cluster    {} (namespace {}): {state}",
        view.server, view.namespace
    )?;
    for away in &view.away {
        writeln!(
            out,
            "           {} for {}: {}",
            away.what,
            duration(away.seconds),
            away.why
        )?;
    }
    for waiting in &view.waiting {
        writeln!(
            out,
            "           WAITS for {}, for {}",
            waiting.what,
            duration(waiting.seconds)
        )?;
    }
    for alarm in [&view.seed_alarm, &view.trouble].into_iter().flatten() {
        writeln!(out, "           ALARM: {alarm}")?;
    }
    if let Some(held) = &view.held {
        writeln!(
            out,
            "           ALARM: {} of {} VIPs are gone from the API server at once, and held for {} more; `vipline kube accept` lets them go",
            held.vips,
            held.of,
            duration(held.seconds_left)
        )?;
    }
    if status.role == Role::Node || !status.serving {
        return Ok(());
    }
    writeln!(
        out,
        "           in the maps up to VipTables {} and NodeSets {}; {} tables fail",
        view.tables_revision, view.node_sets_revision, view.failing_count
    )?;
    for (name, why) in view.failing.iter().take(10) {
        writeln!(out, "           FAILS {name}: {why}")?;
    }
    if let (Some(p50), Some(p99)) = (view.delay_p50_ms, view.delay_p99_ms) {
        writeln!(
            out,
            "           {} changes, to the maps in {p50:.1} ms (half of them), {p99:.1} ms (99 %)",
            view.changes
        )?;
    }
    Ok(())
}

fn slow_path(out: &mut dyn io::Write, view: &SlowPathView) -> io::Result<()> {
    writeln!(
        out,
        "slow path  {} workers, at most {}; watching {} datagrams, holding {} of fragments",
        view.workers.len(),
        bytes(view.memory_bytes as f64),
        view.datagrams,
        bytes(view.fragment_bytes as f64),
    )?;
    if !view.shed_by_fast_path.is_empty() {
        writeln!(
            out,
            "           shed by the fast path: {}",
            listed(&view.shed_by_fast_path)
        )?;
    }
    writeln!(out)?;
    let rows = view.workers.iter().map(|worker| {
        let state = match (&worker.last_error, worker.running) {
            (_, true) => worker.mode.clone(),
            (Some(error), false) => format!("DOWN: {error}"),
            (None, false) => "DOWN".to_owned(),
        };
        vec![
            format!("{}/{}", worker.interface, worker.queue),
            state,
            worker.restarts.to_string(),
            number(worker.received as f64),
            number(worker.sent as f64),
            worker.queued.to_string(),
            worker.sending.to_string(),
            listed(&worker.dropped),
        ]
    });
    let headings = [
        "WORKER",
        "STATE",
        ">RESTARTS",
        ">RECEIVED",
        ">SENT",
        ">QUEUED",
        ">SENDING",
        "DROPPED",
    ];
    table(out, &headings, rows.collect())?;
    writeln!(out)?;
    let rows = view.kinds.iter().map(|kind| {
        vec![
            kind.kind.clone(),
            number(kind.answered as f64),
            number(kind.forwarded as f64),
            number(kind.dropped as f64),
            number(kind.shed as f64),
            listed(&kind.outcomes),
        ]
    });
    let headings = ["SLOW PATH", ">ANSWERED", ">FORWARDED", ">DROPPED", ">SHED", "OUTCOMES"];
    table(out, &headings, rows.collect())
}

/// `name count, name count`, or `-`.
fn listed(counts: &[(String, u64)]) -> String {
    if counts.is_empty() {
        return "-".to_owned();
    }
    let words: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    words.join(", ")
}

pub(super) fn vips(out: &mut dyn io::Write, views: &[VipView]) -> io::Result<()> {
    let rows = views.iter().map(|view| {
        vec![
            format!("{} {}", view.protocol, socket(view.address, view.port)),
            format!("{}/{}", view.ready, view.backends),
            view.slots.to_string(),
            view.shared_by.to_string(),
            announced(view),
            options(view),
            number(view.packets as f64),
            bytes(view.bytes as f64),
        ]
    });
    let headings = [
        "VIP",
        ">READY",
        ">SLOTS",
        ">SHARED BY",
        "ANNOUNCED",
        "OPTIONS",
        ">PACKETS",
        ">BYTES",
    ];
    table(out, &headings, rows.collect())
}

/// By what, or why not.
fn announced(view: &VipView) -> String {
    let ways = [("bgp", &view.bgp), ("l2", &view.l2)];
    let ways = ways.into_iter().filter_map(|(way, told)| {
        let told = told.as_ref()?;
        Some(match (told.announced, told.reason.as_str()) {
            (true, "serves") => way.to_owned(),
            (true, _) => format!("{way}: {}", told.why),
            (false, _) => format!("not by {way}: {}", told.why),
        })
    });
    let ways: Vec<String> = ways.collect();
    if ways.is_empty() {
        "-".to_owned()
    } else {
        ways.join(", ")
    }
}

fn options(view: &VipView) -> String {
    let mut words = Vec::new();
    if view.limited {
        words.push("limits".to_owned());
    }
    if let Some(ranges) = &view.allowed_sources {
        words.push(format!("{} source ranges", ranges.len()));
    }
    if view.scheduler != "mh" {
        words.push(format!("scheduler {}", view.scheduler));
    }
    match (view.affinity, view.affinity_timeout_s) {
        (_, Some(seconds)) => words.push(format!("client affinity for {seconds} s")),
        (Affinity::ClientIp, None) if view.scheduler == "mh" => words.push("client affinity".to_owned()),
        (Affinity::ClientIp | Affinity::None, None) => {}
    }
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(", ")
    }
}

pub(super) fn backends(out: &mut dyn io::Write, views: &[BackendView]) -> io::Result<()> {
    let rows = views.iter().map(|view| {
        let shares: Vec<_> = view
            .sets
            .iter()
            .map(|set| {
                format!(
                    "{:.1} % of {} VIPs",
                    100.0 * set.slots as f64 / set.of.max(1) as f64,
                    set.vips
                )
            })
            .collect();
        vec![
            view.name.clone(),
            view.address.to_string(),
            next_hop(&view.next_hop),
            checks(&view.checks),
            if view.has_departed {
                "older flows only".to_owned()
            } else if view.is_drained {
                "drained".to_owned()
            } else if shares.is_empty() {
                "-".to_owned()
            } else {
                shares.join("; ")
            },
            view.open_flows.to_string(),
            number(view.packets as f64),
            bytes(view.bytes as f64),
        ]
    });
    table(
        out,
        &[
            "BACKEND",
            "ADDRESS",
            "NEXT HOP",
            "HEALTH",
            "SHARE",
            ">OPEN FLOWS",
            ">PACKETS",
            ">BYTES",
        ],
        rows.collect(),
    )
}

/// What is not healthy, and why; else for how long all is.
fn checks(views: &[CheckView]) -> String {
    let of = |view: &CheckView| {
        let since = duration(view.seconds);
        let why = view.reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        match view.state.as_str() {
            "unknown" => format!("unknown for {since} ({}{why})", view.check),
            state => format!("{} for {since} ({}{why})", state.to_uppercase(), view.check),
        }
    };
    let bad: Vec<String> = views.iter().filter(|view| view.state != "healthy").map(of).collect();
    match (views.iter().map(|view| view.seconds).min(), bad.is_empty()) {
        (None, _) => "-".to_owned(),
        (Some(seconds), true) => format!("healthy for {}", duration(seconds)),
        (Some(_), false) => bad.join("; "),
    }
}

fn next_hop(kind: &NextHopKind) -> String {
    match kind {
        NextHopKind::Via {
            interface, mac, mtu, ..
        } => format!("{mac} on {interface}, MTU {mtu}"),
        NextHopKind::Local => "this node".to_owned(),
        NextHopKind::Unresolved { reason } => format!("UNRESOLVED: {reason}"),
    }
}

pub(super) fn counters(out: &mut dyn io::Write, views: &[CounterView], all: bool) -> io::Result<()> {
    let (fast, slow): (Vec<_>, Vec<_>) = views.iter().partition(|view| view.path == CountedBy::Fast);
    counted(out, "VERDICT", &fast, all)?;
    if slow.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    counted(out, "SLOW PATH", &slow, all)
}

fn counted(out: &mut dyn io::Write, heading: &str, views: &[&CounterView], all: bool) -> io::Result<()> {
    let rows = views.iter().filter(|view| all || view.packets > 0).map(|view| {
        vec![
            view.fate.clone(),
            view.reason.clone(),
            view.packets.to_string(),
            view.meaning.clone(),
        ]
    });
    table(out, &[heading, "REASON", ">PACKETS", "MEANING"], rows.collect())
}

pub(super) fn explain(out: &mut dyn io::Write, view: &ExplainView) -> io::Result<()> {
    writeln!(out, "flow      {}", view.flow)?;
    if let Some(vip) = &view.vip {
        writeln!(out, "VIP       {vip}")?;
    }
    if let Some((slots, slot)) = view.slot {
        let by = match view.affinity.unwrap_or_default() {
            Affinity::None => "",
            Affinity::ClientIp => ", by the client's address alone",
        };
        writeln!(out, "slot      {slot} of {slots}{by}")?;
    }
    if let Some(scheduler) = &view.scheduler {
        let by = match view.placed_by {
            None => "",
            Some(PlacedBy::Slot) => "; this flow goes by its slot",
            Some(PlacedBy::Record) => "; this flow, or its client, is known: it goes by its record",
            Some(PlacedBy::Scheduler) => "; this flow is new: the scheduler chose",
        };
        writeln!(out, "scheduler {scheduler}{by}")?;
    }
    if let (Some(backend), Some(address)) = (&view.backend, view.address) {
        let health = view
            .health
            .as_ref()
            .map_or_else(String::new, |health| format!(", {health}"));
        writeln!(out, "backend   {backend} ({address}){health}")?;
    }
    if let Some(kind) = &view.next_hop {
        writeln!(out, "next hop  {}", next_hop(kind))?;
    }
    writeln!(out, "verdict   {}: {}: {}", view.fate, view.reason, view.meaning)
}

fn socket(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
