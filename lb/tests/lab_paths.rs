//! Less usual ways of running the LB daemon: outer sources from a prefix, very many VIPs, tables with a history, no privileges.

mod lab_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use etherparse::{NetSlice, SlicedPacket};
use lab::{LinkKind, Proto, RawSocket, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, NodeFile, assert_spread, count_servers, vip_v4, vip_v6};
use lb::control::{ProtocolName, Request};

fn vip() -> SocketAddr {
    vip_v4(1, 80)
}

/// Outer source of a tunnel packet.
fn outer_source(frame: &[u8]) -> Option<IpAddr> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(ip) if [4, 41].contains(&ip.header().protocol().0) => Some(ip.header().source_addr().into()),
        NetSlice::Ipv6(ip) if [4, 41].contains(&ip.header().next_header().0) => Some(ip.header().source_addr().into()),
        NetSlice::Ipv4(_) | NetSlice::Ipv6(_) | NetSlice::Arp(_) => None,
    }
}

#[test]
fn outer_sources_from_a_prefix_tell_flows_apart() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let prefixes = ["100.64.7.0/24", "fd00:64:7::/120"];
    let topology = Topology::builder().workers(2).build()?;
    topology.route("100.64.7.0".parse()?, 24, &[topology.lb(0)])?;
    topology.route("fd00:64:7::".parse()?, 120, &[topology.lb(0)])?;
    let mut node_file = NodeFile::new(&topology);
    node_file.lb_sources = prefixes.map(ToOwned::to_owned).to_vec();
    let file = |topology: &Topology, lb: &lab::Node| {
        LbFile::new(topology, lb)
            .vips(&[(Proto::Tcp, vip_v4(4, 80)), (Proto::Tcp, vip_v6(4, 80))], "v4")
            .vips(&[(Proto::Tcp, vip_v4(6, 80)), (Proto::Tcp, vip_v6(6, 80))], "v6")
            .more(&format!(
                "encap: {{ source: prefix, prefix_v4: {}, prefix_v6: \"{}\" }}",
                prefixes[0], prefixes[1]
            ))
    };
    let bed = Bed::start_with(topology, file, &node_file)?;
    for vip in [vip_v4(4, 80), vip_v6(4, 80), vip_v4(6, 80), vip_v6(6, 80)] {
        let wire = RawSocket::open(bed.topology.router().ns(), "lb1")?;
        let replies = bed.topology.client().http_get(vip, 60)?;
        // Ports may be changed by conntrack where two VIPs end at the same pod.
        assert!(
            replies
                .iter()
                .all(|reply| reply.client_seen.ip() == reply.local_addr.ip()),
            "{vip}"
        );
        assert_spread(
            &vip.to_string(),
            &count_servers(&replies),
            &[("worker-1", 1), ("worker-2", 1)],
        );
        let frames = wire.collect(Duration::from_millis(50), |frame| outer_source(frame).is_some())?;
        let sources: BTreeSet<IpAddr> = frames.iter().filter_map(|frame| outer_source(frame)).collect();
        let starts = if vip == vip_v4(4, 80) || vip == vip_v6(4, 80) {
            "100.64.7."
        } else {
            "fd00:64:7::"
        };
        assert!(
            sources.iter().all(|source| source.to_string().starts_with(starts)),
            "{vip}: {sources:?}"
        );
        // 60 flows over 256 addresses: about 53 different ones.
        assert!(
            (40..=60).contains(&sources.len()),
            "{vip}: {} sources of 60 flows",
            sources.len()
        );
    }
    assert_eq!(bed.topology.router().counters()?.from(LinkKind::Lb).replies.packets, 0);
    Ok(())
}

#[test]
fn ten_thousand_vips_are_served_and_share_one_table() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let at = |number: u16| {
        if number.is_multiple_of(2) {
            vip_v4(9, 10_000 + number)
        } else {
            vip_v6(9, 10_000 + number)
        }
    };
    let vips: Vec<_> = (0..10_000).map(|number| (Proto::Tcp, at(number))).collect();
    // The nodes serve a few of them: kube-proxy's rules are not what is tried here.
    let served = [0, 1, 4_998, 4_999, 9_998, 9_999].map(|number| (Proto::Tcp, at(number)));
    let topology = Topology::builder().workers(2).build()?;
    let _servers = topology.serve(&served)?;
    let node_file = NodeFile::new(&topology);
    let _nodes = topology
        .workers()
        .iter()
        .map(|worker| Daemon::node(worker, &node_file))
        .collect::<Result<Vec<_>>>()?;
    let file = LbFile::new(&topology, topology.lb(0)).vips(&vips, "v4");
    let start = Instant::now();
    let lb = Daemon::lb(topology.lb(0), &file)?;
    println!("10,000 VIPs served after {:?}", start.elapsed());
    let status = lb.status()?;
    assert_eq!((status.vips, status.tables), (10_000, 1));
    for (_, vip) in served {
        assert_eq!(count_servers(&topology.client().http_get(vip, 40)?).len(), 2, "{vip}");
    }
    let start = Instant::now();
    lb.reload_lb(&file.vips(&[(Proto::Udp, vip())], "v4"))?;
    println!("one more by a reload after {:?}", start.elapsed());
    assert_eq!((lb.vips()?.len(), lb.status()?.vips), (10_001, 10_001));
    Ok(())
}

#[test]
fn flows_stay_where_they_are_when_the_program_is_replaced_after_tables_have_grown() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(3).build()?;
    let small = LbFile::new(&topology, topology.lb(0)).vips(&[(Proto::Tcp, vip())], "v4");
    let mut large = small.clone();
    let more = (0..120).map(|number: u8| (format!("other-{number}"), [10, 30, 1, 100 + number].into(), 100));
    large.members("v4").extend(more);
    let lb = Daemon::lb(topology.lb(0), &small)?;
    let flows = || -> Result<BTreeMap<u16, String>> {
        (20_000..20_300)
            .map(|port| {
                let source = SocketAddr::new(topology.client().addr_v4().into(), port);
                let request = Request::Explain {
                    protocol: ProtocolName::Tcp,
                    source,
                    destination: vip(),
                };
                Ok((port, lb.explain(&request)?.backend.context("no backend")?))
            })
            .collect()
    };
    let slots = || Ok::<_, anyhow::Error>(lb.vips()?[0].slots);
    let at_first = (slots()?, flows()?);
    lb.reload_lb(&large)?;
    println!("{} slots, then {}", at_first.0, slots()?);
    assert!(slots()? > at_first.0, "the table has grown");
    lb.reload_lb(&small)?;
    let before = (slots()?, flows()?);

    // Another program over the same file: nothing about flows has changed.
    let mut limited = small.clone();
    limited.vips[0].options = ", limits: { packets_per_second_per_cpu: 1000000 }".to_owned();
    lb.reload_lb(&limited)?;
    let after = (slots()?, flows()?);
    let moved = before
        .1
        .iter()
        .filter(|(port, backend)| after.1[port] != **backend)
        .count();
    println!(
        "{} slots before, {} after; {moved} of {} flows moved",
        before.0,
        after.0,
        before.1.len()
    );
    assert_eq!(moved, 0);
    Ok(())
}

#[test]
fn without_privileges_both_daemons_say_which_ones_they_need() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let node_file = NodeFile::new(&topology);
    let lb_file = LbFile::new(&topology, topology.lb(0)).vips(&[(Proto::Tcp, vip())], "v4");
    let mut lb = Daemon::spawn_without_privileges("run", topology.lb(0), |socket| lb_file.yaml(socket))?;
    let mut node = Daemon::spawn_without_privileges("node", topology.worker(0), |socket| node_file.yaml(socket))?;
    for daemon in [&mut lb, &mut node] {
        assert_eq!(daemon.wait()?.code(), Some(1));
        let log = daemon.log()?;
        assert!(log.contains("root") && log.contains("CAP_"), "{log}");
        assert!(!daemon.socket().exists());
    }
    Ok(())
}
