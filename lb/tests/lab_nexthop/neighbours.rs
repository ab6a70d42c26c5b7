//! Neighbours that change, fall silent, vanish or are not ours.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::require_root;
use lb_core::nexthop::NextHopView;

use super::bed::*;

#[test]
fn gateway_that_tells_its_new_mac_address_is_followed_at_once() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    // As a router does that takes over an address.
    bed.gateways[0].sysctl("net/ipv4/conf/gw0/arp_notify", "1")?;
    bed.gateways[0].sysctl("net/ipv6/conf/gw0/ndisc_notify", "1")?;
    // The kernel ignores a second MAC address within this time.
    bed.lb.sysctl("net/ipv4/neigh/eth0/locktime", "0")?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    let start = Instant::now();
    bed.gateway_mac("02:00:00:00:00:99")?;
    followed.until_via("v4", [2, 0, 0, 0, 0, 0x99])?;
    report("gratuitous ARP with a new MAC address, `ip` included", start.elapsed());
    followed.until_via("v6", [2, 0, 0, 0, 0, 0x99])?;
    report("unsolicited neighbour advertisement, `ip` included", start.elapsed());
    Ok(())
}

#[test]
fn gateway_that_changes_its_mac_address_in_silence_is_found_out_without_traffic() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    bed.hurry()?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    bed.gateway_mac("02:00:00:00:00:99")?;
    // Confirmed for up to 1.5 s, looked at every 5 s, probed for 3 s.
    let limit = Duration::from_secs(15);
    let new = [2, 0, 0, 0, 0, 0x99];
    report(
        "silent change of MAC address",
        followed.until_within(limit, "v4", |view| is_via(view, "v4", new))?,
    );
    followed.until_within(limit, "v6", |view| is_via(view, "v6", new))?;
    Ok(())
}

#[test]
fn neighbours_stay_fresh_without_traffic_and_only_because_they_are_kept() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    bed.hurry()?;
    // The twin: an entry that nobody keeps.
    bed.gateways[0].ip(&["addr", "add", "10.0.0.3/24", "dev", "gw0"])?;
    bed.lb.sh("ping -c1 -W1 10.0.0.3")?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    let state = |address: &str| bed.lb.ip(&["neigh", "show", address]);
    ensure!(state("10.0.0.2")?.contains("managed"), "{}", state("10.0.0.2")?);
    // Many times what an entry stays confirmed, and twice the kernel's round over managed entries.
    followed.unchanged_for(Duration::from_secs(12))?;
    let confirmed_s = |address: &str| -> Result<Option<u64>> {
        let shown = bed.lb.ip(&["-s", "-j", "neigh", "show", address])?;
        let entries: serde_json::Value = serde_json::from_str(&shown)?;
        Ok(entries.pointer("/0/confirmed").and_then(serde_json::Value::as_u64))
    };
    for address in ["10.0.0.2", "fd00:0::2"] {
        let age = confirmed_s(address)?;
        ensure!(age.is_some_and(|age| age <= 8), "{address} was confirmed {age:?} s ago");
    }
    let age = confirmed_s("10.0.0.3")?;
    ensure!(
        age.is_none_or(|age| age >= 11),
        "the twin was confirmed {age:?} s ago: {}",
        state("10.0.0.3")?
    );
    // The gateway falls silent, and nobody sends: only what keeps the entries can find out.
    bed.gateways[0].ip(&["link", "set", "gw0", "arp", "off"])?;
    bed.gateways[0].ip(&["addr", "del", "fd00:0::2/64", "dev", "gw0"])?;
    let limit = Duration::from_secs(15);
    for backend in ["v4", "v6"] {
        let silent = |view: &NextHopView| reason(view, backend) == Some("neighbour_failed");
        report(
            &format!("{backend} gateway fell silent"),
            followed.until_within(limit, backend, silent)?,
        );
    }
    let twin = state("10.0.0.3")?;
    ensure!(
        !twin.contains("FAILED"),
        "for the twin it was noticed too, by something else: {twin}"
    );
    bed.gateways[0].ip(&["link", "set", "gw0", "arp", "on"])?;
    bed.gateways[0].ip(&["addr", "add", "fd00:0::2/64", "dev", "gw0", "nodad"])?;
    for backend in ["v4", "v6"] {
        let back = |view: &NextHopView| is_via(view, backend, GW_MACS[0]);
        report(
            &format!("{backend} gateway is back"),
            followed.until_within(limit, backend, back)?,
        );
    }
    Ok(())
}

#[test]
fn flushed_neighbours_change_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("v6", "fd00:0::2")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("v6", GW_MACS[0])?;
    for _ in 0..3 {
        bed.lb
            .ip_batch("neigh del 10.0.0.2 dev eth0\nneigh del fd00:0::2 dev eth0\n")?;
        followed.unchanged_for(Duration::from_millis(1_500))?;
        let entries = bed.lb.ip(&["neigh", "show", "dev", "eth0"])?;
        ensure!(
            entries.lines().filter(|line| line.contains("managed")).count() == 2,
            "kept again: {entries}"
        );
    }
    // The control: where the gateway is gone too, it does change.
    bed.gateways[0].ip(&["link", "set", "gw0", "arp", "off"])?;
    bed.lb.ip_batch("neigh del 10.0.0.2 dev eth0\n")?;
    followed.until_within(Duration::from_secs(6), "v4 fails", |view| reason(view, "v4").is_some())?;
    Ok(())
}

#[test]
fn neighbours_are_let_go_at_the_end_and_permanent_ones_are_never_touched() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::new()?;
    bed.lb
        .ip_batch("neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent\n")?;
    let mut followed = bed.start(&[("v4", "10.0.0.2"), ("static", "10.0.0.9"), ("dead", "10.0.0.77")])?;
    followed.until_via("v4", GW_MACS[0])?;
    followed.until_via("static", [2, 0, 0, 0, 0, 9])?;
    let entries = || bed.lb.ip(&["neigh", "show", "dev", "eth0"]);
    ensure!(
        entries()?.contains("10.0.0.2 lladdr 02:00:00:00:00:02 managed extern_learn"),
        "{}",
        entries()?
    );
    followed
        .driver
        .set_backends(set(&[("static", "10.0.0.9"), ("dead", "10.0.0.77")])?);
    followed.until("v4 is gone", |view| !view.next_hops.contains_key(&id("v4")))?;
    let start = Instant::now();
    while entries()?.contains("10.0.0.2 lladdr 02:00:00:00:00:02 managed") {
        ensure!(start.elapsed() < SOON, "{}", entries()?);
    }
    let start = Instant::now();
    drop(followed);
    report("stop", start.elapsed());
    let left = entries()?;
    ensure!(left.contains("10.0.0.9 lladdr 02:00:00:00:00:09 PERMANENT"), "{left}");
    ensure!(!left.contains("managed") && !left.contains("extern_learn"), "{left}");
    Ok(())
}
