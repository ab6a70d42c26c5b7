//! What XDP leaves to the slow path, by real tools and sockets: ping, path MTU discovery, large datagrams, closed ports.
//!
//! Never believes counters alone: the client must have got what it asked for, and the LB node must have counted it.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::Client;
use lb::control::SlowPathView;

use crate::{
    Report,
    site::{LINK_MTU, Site, vips},
};

/// Pings per VIP address, as many as [`Client::ping`] sends.
const PINGS: u64 = 3;
/// Payload of a ping, ping's own default.
const PING_BYTES: usize = 56;
/// What is uploaded to each VIP.
const UPLOAD_BYTES: u64 = 4_000_000;
/// Bytes that packets may have if the outer header, IPv4 here, shall fit as well.
const ROOM: u32 = LINK_MTU - 20;
/// Payload of a large datagram, and what it needs in fragments of [`ROOM`] bytes, over IPv4 and over IPv6.
const DATAGRAM_BYTES: usize = 8_000;
const FRAGMENTS: u64 = 6;
/// A port that nobody serves.
const CLOSED: u16 = 81;
/// Longer is no refusal but a time-out. Generous, for busy machines.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Longest wait for counters to show what the client has seen already.
const COUNTED: Duration = Duration::from_secs(1);

pub(crate) fn show(report: &mut Report, site: &Site) -> Result<()> {
    report.heading(
        "A VIP address is a host: what is no plain packet of a flow goes by the slow path (AF_XDP), beside the fast one",
    )?;
    let before = slow_path(site)?;
    ping(report, site)?;
    too_big(report, site)?;
    fragments(report, site)?;
    refusals(report, site)?;
    let now = slow_path(site)?;
    let sums = Sums::of(&now) - Sums::of(&before);
    report.check(
        sums.dropped == 0,
        &format!(
            "`vipline status`: the slow path answered {}, forwarded {} and dropped {} packets meanwhile",
            sums.answered, sums.forwarded, sums.dropped
        ),
    )?;
    Ok(())
}

fn ping(report: &mut Report, site: &Site) -> Result<()> {
    let before = Sums::of_kind(site, "echo")?.answered;
    for vip in addresses()? {
        let outcome = site.topology.client().ping(vip.ip(), PING_BYTES);
        report.check(
            outcome.is_ok(),
            &format!("{PINGS} pings of {} answered{}", vip.ip(), why(&outcome)),
        )?;
    }
    let answered = counted(site, "echo", |sums| sums.answered - before, 2 * PINGS)?;
    report.check(
        answered >= 2 * PINGS,
        &format!("the LB node itself answered {answered} pings"),
    )?;
    Ok(())
}

fn too_big(report: &mut Report, site: &Site) -> Result<()> {
    let client = site.topology.client();
    for vip in addresses()? {
        let before = Sums::of_kind(site, "too_big")?.answered;
        let known = learned(client, vip.ip())?;
        let start = Instant::now();
        let outcome = client.upload(vip, UPLOAD_BYTES);
        let took = start.elapsed();
        let told = counted(site, "too_big", |sums| sums.answered - before, 1)?;
        let mtu = learned(client, vip.ip())?;
        report.check(
            outcome.is_ok() && known.is_none() && mtu == Some(ROOM) && told > 0,
            &format!(
                "{} MB sent to {vip} in {} ms; {told} packets were too big for {LINK_MTU} bytes once encapsulated, \
                 so the client learned {}{}",
                UPLOAD_BYTES / 1_000_000,
                took.as_millis(),
                mtu.map_or_else(|| "nothing".to_owned(), |mtu| mtu.to_string()),
                why(&outcome)
            ),
        )?;
    }
    Ok(())
}

fn fragments(report: &mut Report, site: &Site) -> Result<()> {
    for vip in addresses()? {
        let before = Sums::of_kind(site, "fragment")?.forwarded;
        let outcome = site.topology.client().udp_echo(vip, DATAGRAM_BYTES);
        let forwarded = counted(site, "fragment", |sums| sums.forwarded - before, FRAGMENTS)?;
        report.check(
            outcome.is_ok() && forwarded == FRAGMENTS,
            &format!(
                "a datagram of {DATAGRAM_BYTES} bytes to {vip}, {forwarded} fragments, came whole to one worker and back{}",
                why(&outcome)
            ),
        )?;
    }
    Ok(())
}

fn refusals(report: &mut Report, site: &Site) -> Result<()> {
    let client = site.topology.client();
    for vip in addresses()? {
        let closed = SocketAddr::new(vip.ip(), CLOSED);
        let start = Instant::now();
        let tcp = client.http_get(closed, 1).map(drop);
        let after_tcp = start.elapsed();
        let udp = client.udp_get(closed, 1).map(drop);
        let after_udp = start.elapsed() - after_tcp;
        report.check(
            refused(&tcp) && refused(&udp) && after_tcp < AT_ONCE && after_udp < AT_ONCE,
            &format!(
                "{closed}, which nobody serves, refuses at once: TCP after {} ms, UDP after {} ms",
                after_tcp.as_millis(),
                after_udp.as_millis()
            ),
        )?;
    }
    Ok(())
}

/// The VIPs of one protocol: one address of each family.
fn addresses() -> Result<[SocketAddr; 2]> {
    let [(_, v4), (_, v6), ..] = vips()?;
    Ok([v4, v6])
}

/// The path MTU that the client's kernel has learned for an address.
fn learned(client: &Client, address: IpAddr) -> Result<Option<u32>> {
    let text = client.ns().ip(&["route", "get", &address.to_string()])?;
    let mtu = text.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    mtu.map(|mtu| mtu.parse().with_context(|| format!("not an MTU: {text}")))
        .transpose()
}

fn refused(outcome: &Result<()>) -> bool {
    let Err(error) = outcome else {
        return false;
    };
    let cause = error.root_cause();
    cause.downcast_ref() == Some(&nix::Error::ECONNREFUSED)
        || cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn why<T>(outcome: &Result<T>) -> String {
    outcome
        .as_ref()
        .err()
        .map_or_else(String::new, |error| format!(": {error:#}"))
}

fn slow_path(site: &Site) -> Result<SlowPathView> {
    site.status()?.slow_path.context("no slow path in the LB node's status")
}

/// What became of packets.
#[derive(Clone, Copy, Default)]
struct Sums {
    answered: u64,
    forwarded: u64,
    dropped: u64,
}

impl Sums {
    fn of(slow_path: &SlowPathView) -> Self {
        let mut sums = Self::default();
        for kind in &slow_path.kinds {
            sums.answered += kind.answered;
            sums.forwarded += kind.forwarded;
            sums.dropped += kind.dropped;
        }
        sums
    }

    fn of_kind(site: &Site, name: &str) -> Result<Self> {
        let mut slow_path = slow_path(site)?;
        slow_path.kinds.retain(|kind| kind.kind == name);
        Ok(Self::of(&slow_path))
    }
}

impl std::ops::Sub for Sums {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            forwarded: self.forwarded - before.forwarded,
            dropped: self.dropped - before.dropped,
        }
    }
}

/// A figure of a kind of work once it has come to `enough`, or what it is when time is up.
fn counted(site: &Site, kind: &str, figure: impl Fn(Sums) -> u64, enough: u64) -> Result<u64> {
    let start = Instant::now();
    loop {
        let now = figure(Sums::of_kind(site, kind)?);
        if now >= enough || start.elapsed() > COUNTED {
            return Ok(now);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
