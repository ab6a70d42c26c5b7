//! Datagrams in fragments reach the backend of their flow whole, whatever happens to the fragments on the way; overlaps do not.

mod lab_support;

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use lab::{KubeProxy, Mtus, Policy, Process, Proto, Topology, TopologyBuilder, VipRule, require_root};
use lab_support::{Bed, Caller, LbFile, Wire, eventually, fragment, fragments, vip_v4, vip_v6};

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
/// VIPs on the sets `v4` and `v6`.
const VIPS: [fn() -> SocketAddr; 4] = [|| vip_v4(4, 80), || vip_v6(4, 80), || vip_v4(6, 80), || vip_v6(6, 80)];
const IPERF: u16 = 5201;

fn bed(builder: TopologyBuilder, more: &str) -> Result<Bed> {
    Bed::start(builder.build()?, |topology, lb| {
        let on = |last: u8| {
            let ports = [80, IPERF].into_iter();
            let vips = ports.flat_map(|port| [vip_v4(last, port), vip_v6(last.into(), port)]);
            vips.flat_map(|vip| BOTH.map(|proto| (proto, vip))).collect::<Vec<_>>()
        };
        LbFile::new(topology, lb)
            .vips(&on(4), "v4")
            .vips(&on(6), "v6")
            .more(more)
    })
}

/// iperf3 in the only worker's pod, behind the VIPs' port of its own.
fn iperf_server(bed: &Bed) -> Result<Process> {
    let worker = bed.topology.worker(0);
    let pod = worker.pod()?;
    let mut rules = Vec::new();
    for vip in VIPS {
        let address = if vip().is_ipv4() {
            pod.addr_v4().into()
        } else {
            pod.addr_v6().into()
        };
        for proto in BOTH {
            let vip = SocketAddr::new(vip().ip(), IPERF);
            rules.push(VipRule {
                vip,
                proto,
                target: SocketAddr::new(address, IPERF),
            });
        }
    }
    KubeProxy::install(worker, &rules, Policy::Local)?;
    let mut command = pod.ns().command("iperf3");
    command
        .args(["-s", "-p", &IPERF.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let server = Process::start(command)?;
    eventually("iperf3 listens", || {
        Ok(pod.ns().sh("ss -Hltn")?.contains(&format!(":{IPERF}")))
    })?;
    Ok(server)
}

/// Datagrams that the pod's kernel had, and no room for: iperf3 was not quick enough on a busy machine.
fn overflowed(bed: &Bed) -> Result<u64> {
    let text = bed
        .topology
        .worker(0)
        .pod()?
        .ns()
        .sh("nstat -asz UdpRcvbufErrors Udp6RcvbufErrors")?;
    let counts = text.lines().filter(|line| line.contains("RcvbufErrors"));
    Ok(counts
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum())
}

/// Datagrams sent, and lost before they came to iperf3's socket, by what it says.
fn iperf(bed: &Bed, vip: SocketAddr, length: usize) -> Result<(u64, u64)> {
    let line = format!(
        "iperf3 -J -u -c {} -p {IPERF} -l {length} -b 10M -t 1 --connect-timeout 2000",
        vip.ip()
    );
    let before = overflowed(bed)?;
    let said = bed.topology.client().ns().within(Duration::from_secs(8), &line)?.said;
    let report: serde_json::Value = serde_json::from_str(&said).with_context(|| format!("{line}: {said}"))?;
    let sum = &report["end"]["sum"];
    let number = |key: &str| sum[key].as_u64().with_context(|| format!("no {key}: {said}"));
    Ok((
        number("packets")?,
        number("lost_packets")?.saturating_sub(overflowed(bed)? - before),
    ))
}

#[test]
fn iperf3_loses_none_of_its_large_datagrams() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let on = bed(Topology::builder().workers(1), "")?;
    let _server = iperf_server(&on)?;
    for (vip, lengths) in VIPS
        .into_iter()
        .zip([[4000, 8000], [4000, 8000], [4000, 1000], [8000, 1000]])
    {
        // What is no fragment is the control.
        for length in lengths {
            let before = on.lb().slow()?;
            let (sent, lost) = iperf(&on, vip(), length)?;
            let seen = on.lb().slow()?.since(&before);
            println!("{}: {length} bytes: {lost} of {sent} lost, {seen:?}", vip());
            assert!(sent > 100 && lost == 0, "{}: {lost} of {sent} lost, {seen:?}", vip());
        }
    }
    Ok(())
}

#[test]
fn without_the_slow_path_iperf3_loses_its_large_datagrams_and_only_those() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let off = bed(Topology::builder().workers(1), "slow_path: { enabled: false }")?;
    let _server = iperf_server(&off)?;
    for vip in [vip_v4(4, 80), vip_v6(6, 80)] {
        assert_eq!(iperf(&off, vip, 1000)?.1, 0);
        let lost = iperf(&off, vip, 4000).map_or(1.0, |(sent, lost)| lost as f64 / sent.max(1) as f64);
        assert!(
            lost > 0.9 || lost == 0.0 && off.lb().counted()?.of("slow fragment") > 100,
            "{lost}"
        );
    }
    Ok(())
}

#[test]
fn fragments_that_do_not_fit_once_encapsulated_are_split_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mtus = Mtus {
        client: 1500,
        lb: 1500,
        worker: 1500,
    };
    let narrow = bed(Topology::builder().workers(1).mtus(mtus), "")?;
    let _server = iperf_server(&narrow)?;
    for vip in VIPS {
        if vip().is_ipv6() {
            // Its sender alone may fragment, and is told how: an error of its socket, which ends iperf3.
            assert!(iperf(&narrow, vip(), 4000).is_err(), "the first one tells the sender");
        }
        let outcome = iperf(&narrow, vip(), 4000)?;
        assert_eq!(outcome.1, 0, "{}: {:?}", vip(), narrow.lb().slow()?);
    }
    Ok(())
}

/// The way back has room for whatever leaves the pod: replies are large, too.
fn wide() -> TopologyBuilder {
    Topology::builder().mtus(Mtus {
        client: 1600,
        ..Mtus::default()
    })
}

/// 3,000 bytes: a datagram of three fragments of 1,400.
fn payload(name: &str) -> String {
    let mut text = format!("{name} ");
    while text.len() < 3000 {
        text += &format!("{} ", text.len());
    }
    text
}

#[test]
fn fragments_in_any_order_reach_the_flows_backend() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(wide(), "")?;
    let wire = Wire::to_lb(&bed)?;
    let orders: [&[usize]; 8] = [
        &[0, 1, 2],
        &[0, 2, 1],
        &[1, 0, 2],
        &[1, 2, 0],
        &[2, 0, 1],
        &[2, 1, 0],
        &[0, 0, 1, 1, 2, 2],
        &[2, 2, 1, 0, 1],
    ];
    let mut id = 1000;
    for vip in VIPS {
        for order in orders {
            let caller = Caller::new(&bed, vip())?;
            let plain = caller.call("plain")?;
            let text = payload(&format!("{order:?}"));
            id += 1;
            let pieces = fragments(&caller.datagram(&text)?, id, 1400);
            assert_eq!(pieces.len(), 3);
            let before = bed.lb().slow()?;
            for piece in order {
                wire.send(&pieces[*piece])?;
            }
            let answer = caller.answer(&text)?;
            let seen = bed.lb().slow()?.since(&before);
            assert_eq!(answer.as_ref(), Some(&plain), "{} {order:?}: {seen:?}", vip());
            assert!(seen["fragment/forwarded"] >= 3, "{seen:?}");
        }
    }
    Ok(())
}

#[test]
fn overlaps_are_dropped_and_what_lacks_its_first_fragment_times_out() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(wide(), "slow_path: { fragments: { timeout_ms: 300 } }")?;
    let wire = Wire::to_lb(&bed)?;
    for (vip, id) in VIPS.into_iter().zip([71, 72, 73, 74]) {
        let caller = Caller::new(&bed, vip())?;
        let text = payload("overlap");
        let ip = caller.datagram(&text)?;
        let pieces = fragments(&ip, id, 1400);
        let before = bed.lb().slow()?;
        wire.send(&pieces[0])?;
        wire.send(&fragment(&ip, id, 1392, 1400))?;
        wire.send(&pieces[1])?;
        wire.send(&pieces[2])?;
        assert_eq!(
            caller.answer_within(&text, Duration::from_millis(200))?,
            None,
            "{}",
            vip()
        );
        let seen = bed.lb().slow()?.since(&before);
        assert!(seen.get("fragment/fragment_overlap") >= Some(&1), "{}: {seen:?}", vip());

        let before = bed.lb().slow()?;
        let pieces = fragments(&ip, id + 100, 1400);
        wire.send(&pieces[1])?;
        wire.send(&pieces[2])?;
        eventually("they time out", || {
            Ok(bed.lb().slow()?.since(&before).get("fragment/fragment_timeout") == Some(&2))
        })?;
        // The first alone is nothing; it is sent on, and the whole datagram then arrives if it comes again.
        wire.send(&pieces[0])?;
        assert_eq!(caller.answer_within(&text, Duration::from_millis(100))?, None);
        let pieces = fragments(&ip, id + 200, 1400);
        for piece in &pieces {
            wire.send(piece)?;
        }
        assert!(caller.answer(&text)?.is_some(), "{}: the control", vip());
    }
    let status = bed.lb().status()?.slow_path.context("no slow path")?;
    eventually("nothing is kept", || {
        let slow = bed.lb().status()?.slow_path.context("no slow path")?;
        Ok((slow.datagrams, slow.fragment_bytes) == (0, 0))
    })?;
    println!("{} datagrams were watched", status.datagrams);
    Ok(())
}

#[test]
fn fragments_may_come_by_different_interfaces() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(wide().two_interfaces().queues(2), "")?;
    let ifaces = bed.topology.lb(0).ifaces();
    let wires = [Wire::of(&bed, &ifaces[0])?, Wire::of(&bed, &ifaces[1])?];
    let mut id = 1;
    for vip in VIPS {
        for ways in [[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]] {
            for order in [[0, 1, 2], [2, 1, 0]] {
                let caller = Caller::new(&bed, vip())?;
                let plain = caller.call("plain")?;
                let text = payload("by two");
                id += 1;
                let pieces = fragments(&caller.datagram(&text)?, id, 1400);
                for piece in order {
                    wires[ways[piece]].send(&pieces[piece])?;
                }
                let seen = bed.lb().slow()?;
                assert_eq!(
                    caller.answer(&text)?,
                    Some(plain),
                    "{} {ways:?} {order:?} {seen:?}",
                    vip()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_driver_without_xdp_has_a_slow_path_too() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start(Topology::builder().workers(2).build()?, |topology, lb| {
        let vips = [vip_v4(4, 80), vip_v6(4, 80)].map(|vip| (Proto::Udp, vip));
        let mut file = LbFile::new(topology, lb).vips(&vips, "v4");
        file.interfaces = vec!["{ name: eth0, mode: generic }".to_owned()];
        file
    })?;
    for vip in [vip_v4(4, 80), vip_v6(4, 80)] {
        // A reply may be too large for the way back: the first one tells its pod.
        for _ in 0..4 {
            let _ = bed
                .topology
                .client()
                .with_timeout(Duration::from_millis(300))
                .udp_echo(vip, 4000);
        }
        for length in [2000, 4000, 9000] {
            for _ in 0..5 {
                let outcome = bed.topology.client().udp_echo(vip, length);
                assert!(
                    outcome.is_ok(),
                    "{length} bytes to {vip}: {outcome:?} {:?} {:?}",
                    bed.lb().slow()?,
                    bed.lb().status()?
                );
            }
        }
        let ping = format!("ping -n -c 3 -i 0.05 -W 1 -s 4000 {}", vip.ip());
        let said = bed.topology.client().ns().within(Duration::from_secs(5), &ping)?;
        assert!(said.said.contains(" 3 received"), "{said:?}");
    }
    Ok(())
}
