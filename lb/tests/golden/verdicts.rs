//! Every verdict is reached by the loaded programs: one case each, as short as it can be. What each verdict is about in depth
//! stands in the other modules.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::{collections::BTreeSet, os::fd::AsRawFd as _};

use anyhow::Result;
use xdp_prog::{
    abi::{LineMeta, VipMeta, feature, setting},
    verdict::Verdict,
};

use super::worker::with_tunnel;
use crate::support::{
    bed::Bed,
    frames::{DOT1Q, LB_MAC, Packet, ROUTER_MAC, TCP, UDP, arp, edited, framed, framed_as, tunnelled},
    kernel::Kernel,
    site::{CLIENT_V4, LOOPBACK, VIP_V4, Way, at},
    tables::Tables,
};

/// One VIP whose backend's line is this.
fn one_vip(features: u64, line: xdp_prog::abi::BackendLine) -> Tables {
    let mut tables = Tables::new(features);
    let backend = tables.backend(line);
    tables.vip_with(VIP_V4, TCP, 80, &[backend], VipMeta::OPTIONS);
    tables
}

/// Frames through the balancer, and the verdicts that its counters show.
fn balanced(tables: &Tables, frames: &[Vec<u8>]) -> Result<BTreeSet<Verdict>> {
    reached(&Kernel::balancer(tables)?, frames)
}

fn reached(kernel: &Kernel, frames: &[Vec<u8>]) -> Result<BTreeSet<Verdict>> {
    for frame in frames {
        kernel.run(frame)?;
    }
    let counts = kernel.counts()?;
    assert_eq!(counts.packets(), frames.len() as u64, "one verdict for each packet");
    Ok(counts.verdicts.into_keys().collect())
}

fn packet() -> Packet {
    Packet::tcp(CLIENT_V4, &at(VIP_V4, 80))
}

fn through_tunnel(source: &str, outer_tos: u8, packet: &Packet) -> Vec<u8> {
    let ip = tunnelled(
        source.parse().unwrap(),
        "10.0.0.11".parse().unwrap(),
        outer_tos,
        &packet.ip(),
    );
    framed(LB_MAC, ROUTER_MAC, &[], &ip)
}

/// What the balancer says, with most features off.
fn forwarding() -> Result<BTreeSet<Verdict>> {
    let way = Way::v4(1);
    let mut seen = BTreeSet::new();
    let mut tables = one_vip(0, way.line());
    tables.address("192.0.2.99", VipMeta::OWN_ADDRESS);
    tables.vip(VIP_V4, UDP, 1, &[]);
    let ip_edit = |at: usize, value: u8| edited(&packet(), |ip| ip[at] = value);
    seen.extend(balanced(
        &tables,
        &[
            packet().frame(),
            framed_as(LB_MAC, ROUTER_MAC, &[], 0x0806, &[0; 28]),
            packet().frame()[..20].to_vec(),
            Packet::tcp(CLIENT_V4, "203.0.113.9:80").frame(),
            Packet::tcp(CLIENT_V4, "192.0.2.99:80").frame(),
            ip_edit(6, 0x20),
            ip_edit(0, 0x46),
            ip_edit(9, 1),
            ip_edit(9, 132),
            Packet::tcp(CLIENT_V4, &at(VIP_V4, 81)).frame(),
            Packet::udp(CLIENT_V4, &at(VIP_V4, 1)).frame(),
            packet().ip_len(1481).frame(),
            ip_edit(0, 0x44),
        ],
    )?);
    let mut v6 = Tables::new(0);
    v6.address("2001:db8:1::80", 0);
    let extension = edited(&Packet::tcp("[2001:db8::1]:1", "[2001:db8:1::80]:1"), |ip| ip[6] = 60);
    seen.extend(balanced(&v6, &[extension])?);
    let mut redirect = one_vip(feature::REDIRECT, Way { ifindex: 99, ..way }.line());
    redirect.ports = vec!["lo"];
    seen.extend(balanced(&redirect, &[packet().frame()])?);
    seen.extend(balanced(
        &one_vip(0, way.line_with(LineMeta::LOCAL, 0, [0, 0])),
        &[packet().frame()],
    )?);
    seen.extend(balanced(&one_vip(0, way.line_with(0, 0, [0, 0])), &[packet().frame()])?);
    seen.extend(balanced(
        &one_vip(feature::SLOW_PATH, way.line_with(0, 0, [0, 0])),
        &[packet().frame()],
    )?);
    seen.extend(slow_path()?);
    // A table that names a backend for which there is no line.
    let mut beyond = one_vip(0, way.line());
    beyond.vip(VIP_V4, TCP, 82, &[u16::MAX]);
    seen.extend(balanced(&beyond, &[Packet::tcp(CLIENT_V4, &at(VIP_V4, 82)).frame()])?);
    Ok(seen)
}

/// What needs a socket to be said, and what a budget sheds.
fn slow_path() -> Result<BTreeSet<Verdict>> {
    let socket = super::slow_path::socket()?;
    let kernel = Kernel::balancer(&one_vip(feature::SLOW_PATH, Way::v4(1).line()))?;
    let Kernel::Balancer(balancer) = &kernel else {
        panic!("a balancer")
    };
    balancer.sockets.lock().unwrap().set(LOOPBACK, 0, socket.as_raw_fd())?;
    balancer.set_budget(Verdict::SlowFragment, 0, 1)?;
    reached(
        &kernel,
        &[
            arp(&[], 1, "192.0.2.1", VIP_V4),
            packet().tagged(&[(DOT1Q, 1), (DOT1Q, 2), (DOT1Q, 3)]).frame(),
            edited(&packet(), |ip| ip[6] = 0x20),
        ],
    )
}

fn policy() -> Result<BTreeSet<Verdict>> {
    let rules = feature::DROP_MARTIANS
        | feature::DROP_SOURCE_IS_VIP
        | feature::DENIED_SOURCES
        | feature::SOURCE_RANGES
        | feature::LIMITS;
    let mut tables = one_vip(rules, Way::v4(1).line());
    tables.settings[setting::DENIED_SOURCES as usize] = tables.set(&[("203.0.113.1", "203.0.113.1")]);
    tables.options[1].allowed_sources = tables.set(&[("198.51.100.0", "198.51.100.255")]);
    (tables.options[1].syn_rate, tables.options[1].syn_burst) = (1, 0);
    let mut seen = balanced(
        &tables,
        &[
            Packet::tcp("127.0.0.1:1", &at(VIP_V4, 80)).frame(),
            Packet::tcp(&at(VIP_V4, 1), &at(VIP_V4, 80)).frame(),
            Packet::tcp("203.0.113.1:1", &at(VIP_V4, 80)).frame(),
            Packet::tcp("203.0.113.2:1", &at(VIP_V4, 80)).frame(),
            packet().flags(0x02).frame(),
        ],
    )?;
    (tables.options[1].packet_rate, tables.options[1].packet_burst) = (1, 0);
    seen.extend(balanced(&tables, &[packet().frame()])?);
    Ok(seen)
}

fn tunnels() -> Result<BTreeSet<Verdict>> {
    let worker = Kernel::worker(&with_tunnel(Tables::new(0)))?;
    let mut short = through_tunnel("10.0.0.1", 0, &packet());
    short.truncate(60);
    reached(
        &worker,
        &[
            through_tunnel("10.0.0.1", 0, &packet()),
            packet().frame(),
            through_tunnel("203.0.113.9", 0, &packet()),
            through_tunnel("10.0.0.1", 0, &Packet::tcp(CLIENT_V4, "203.0.113.9:80")),
            through_tunnel("10.0.0.1", 0, &Packet::tcp("10.244.0.1:1", &at(VIP_V4, 80))),
            short,
            through_tunnel("10.0.0.1", 0, &packet().hops(1)),
            through_tunnel("10.0.0.1", 3, &packet()),
        ],
    )
}

#[test]
fn every_verdict_is_reached() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut seen = forwarding()?;
    seen.extend(policy()?);
    seen.extend(tunnels()?);
    let missing: Vec<&str> = Verdict::ALL
        .iter()
        .filter(|verdict| !seen.contains(verdict))
        .map(|v| v.reason())
        .collect();
    assert!(
        missing.is_empty(),
        "no case reaches {missing:?}: add one here, and a test of its own in the module it belongs to"
    );
    Ok(())
}

/// The twin that must fail: a counter that no packet moves is told from one that is moved.
#[test]
fn a_program_that_saw_nothing_has_counted_nothing() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::balancer(one_vip(0, Way::v4(1).line()))?;
    assert_eq!(&bed.kernel.counts()?, bed.counted());
    assert_eq!(bed.kernel.counts()?.packets(), 0);
    Ok(())
}
