//! What nobody serves is refused at once, so that clients need not wait for it; and never more than somebody asked for.

mod lab_support;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use etherparse::PacketBuilder;
use lab::{Capture, LinkKind, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, Wire, eventually, vip_v4, vip_v6};

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
const SOON: Duration = Duration::from_millis(800);

/// Port 80 is served; port 70 is of a VIP whose only backend takes no flows; the others are nobody's.
fn bed(more: &str) -> Result<Bed> {
    let vips = |port| {
        let both = [vip_v4(1, port), vip_v6(1, port)].into_iter();
        both.flat_map(|vip| BOTH.map(|proto| (proto, vip))).collect::<Vec<_>>()
    };
    Bed::start(Topology::builder().workers(1).build()?, |topology, lb| {
        let mut file = LbFile::new(topology, lb)
            .vips(&vips(80), "v4")
            .vips(&vips(70), "idle")
            .more(more);
        file.sets.push((
            "idle",
            vec![("worker-1".to_owned(), topology.worker(0).addr_v4().into(), 0)],
        ));
        file
    })
}

/// How a TCP and a UDP request end, and how soon.
fn ask(bed: &Bed, vip: SocketAddr) -> [(String, Duration); 2] {
    let client = bed.topology.client().with_timeout(Duration::from_secs(1));
    let told = |outcome: Result<()>, start: Instant| {
        let text = outcome.map_or_else(|error| format!("{error:#}"), |()| "served".to_owned());
        (text, start.elapsed())
    };
    let start = Instant::now();
    let tcp = told(client.http_get(vip, 1).map(drop), start);
    let start = Instant::now();
    [tcp, told(client.udp_get(vip, 1).map(drop), start)]
}

#[test]
fn closed_ports_and_vips_without_backends_refuse_at_once() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    for vip in [vip_v4(1, 81), vip_v6(1, 81), vip_v4(1, 70), vip_v6(1, 70)] {
        for (how, took) in ask(&bed, vip) {
            assert!(
                how.contains("Connection refused") && took < SOON,
                "{vip}: {how} after {took:?}"
            );
        }
    }
    for vip in [vip_v4(1, 80), vip_v6(1, 80)] {
        assert!(ask(&bed, vip).iter().all(|(how, _)| how == "served"));
    }
    // The twin.
    bed.lb().reload_lb(&bed.file().more("slow_path: { enabled: false }"))?;
    for vip in [vip_v4(1, 81), vip_v6(1, 70)] {
        for (how, took) in ask(&bed, vip) {
            assert!(
                !how.contains("refused") && how != "served" && took >= SOON,
                "{vip}: {how} after {took:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_port_scan_sees_closed_ports() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let client = bed.topology.client().ns();
    for (family, vip) in [("", vip_v4(1, 80)), ("-6", vip_v6(1, 80))] {
        for (scan, proto) in [
            ("-sT", "tcp"),
            ("-sS", "tcp"),
            ("-sA", "tcp"),
            ("-sF", "tcp"),
            ("-sU", "udp"),
        ] {
            let line = format!(
                "nmap {family} {scan} -Pn -n -T4 --max-retries 1 --host-timeout 8s -p 70,81,443 -oG - {}",
                vip.ip()
            );
            let said = client.within(Duration::from_secs(10), &line)?.said;
            for port in [70, 81, 443] {
                let state = if scan == "-sA" { "unfiltered" } else { "closed" };
                assert!(said.contains(&format!("{port}/{state}/{proto}")), "{line}:\n{said}");
            }
        }
        let said = client.within(
            Duration::from_secs(10),
            &format!("nmap {family} -sS -Pn -n -T4 -p 80 -oG - {}", vip.ip()),
        )?;
        assert!(said.said.contains("80/open/tcp"), "{said:?}");
    }
    Ok(())
}

/// A SYN, as an IP packet.
fn syn(source: SocketAddr, vip: SocketAddr) -> Result<Vec<u8>> {
    let builder = match (source.ip(), vip.ip()) {
        (IpAddr::V4(source), IpAddr::V4(vip)) => PacketBuilder::ipv4(source.octets(), vip.octets(), 60),
        (IpAddr::V6(source), IpAddr::V6(vip)) => PacketBuilder::ipv6(source.octets(), vip.octets(), 60),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => anyhow::bail!("mixed families"),
    };
    let builder = builder.tcp(source.port(), vip.port(), 1000, 1024).syn();
    let mut bytes = Vec::with_capacity(builder.size(0));
    builder.write(&mut bytes, &[])?;
    Ok(bytes)
}

#[test]
fn a_reset_has_the_right_numbers_and_checksums_and_comes_from_the_vip_address() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let client = bed.topology.client();
    let capture = Capture::start(client.ns(), "eth0", "tcp or udp or icmp or icmp6")?;
    ask(&bed, vip_v4(1, 81));
    ask(&bed, vip_v6(1, 81));
    let captured = capture.stop()?;
    assert_eq!(
        captured.count("tcp.flags.reset == 1 && tcp.seq_raw == 0 && tcp.ack == 1 && tcp.checksum.status == 1")?,
        2
    );
    let v4 =
        "icmp.type == 3 && icmp.code == 3 && ip.src == 203.0.113.1 && udp.dstport == 81 && icmp.checksum.status == 1";
    assert_eq!(captured.count(v4)?, 1);
    let v6 = "icmpv6.type == 1 && icmpv6.code == 4 && ipv6.src == 2001:db8:f00d::1 && udp.dstport == 81 && icmpv6.checksum.status == 1";
    assert_eq!(captured.count(v6)?, 1);
    Ok(())
}

#[test]
fn answers_to_one_source_are_bounded_and_nothing_else_leaves_the_lb_node() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const FLOOD: u16 = 2000;
    let bed = bed("")?;
    let wire = Wire::to_lb(&bed)?;
    for (source, vip) in [("198.18.0.1", vip_v4(1, 81)), ("2001:2::1", vip_v6(1, 81))] {
        let (before, router, start) = (bed.lb().slow()?, bed.topology.router().counters()?, Instant::now());
        for port in 0..FLOOD {
            wire.send(&syn(SocketAddr::new(source.parse()?, 1000 + port), vip)?)?;
            // Not more at once than a socket's ring holds while its worker waits for a CPU: what is lost there is not counted.
            if port % 200 == 199 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        eventually("all are counted", || {
            Ok(bed.lb().slow()?.since(&before).values().sum::<u64>() >= u64::from(FLOOD))
        })
        .with_context(|| format!("{:?}, {:?}", bed.lb().slow(), bed.lb().counted()))?;
        std::thread::sleep(Duration::from_millis(50));
        let most = (100.0 * (1.0 + start.elapsed().as_secs_f64())).ceil() as u64 + 1;
        let seen = bed.lb().slow()?.since(&before);
        println!("{vip}: {seen:?}");
        let resets = seen["reject/reset"];
        assert!((90..=most).contains(&resets), "{resets} of at most {most}");
        assert_eq!(seen["reject/over_source_limit"], u64::from(FLOOD) - resets, "{seen:?}");
        let router = bed.topology.router().counters()? - &router;
        assert_eq!(router.from(LinkKind::Lb).replies.packets, resets);
        assert_eq!(router.from(LinkKind::Lb).tunnel.packets, 0);
        assert_eq!(router.from(LinkKind::Lb).requests.packets, 0);
    }
    // Somebody else is still refused at once.
    for (how, took) in ask(&bed, vip_v4(1, 81)) {
        assert!(how.contains("refused") && took < SOON, "{how} after {took:?}");
    }
    Ok(())
}

#[test]
fn nothing_goes_round_between_two_vip_addresses() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let (wire, router) = (Wire::to_lb(&bed)?, bed.topology.router().counters()?);
    // From a VIP address to another: the answer comes back to the LB node.
    let pairs = [
        (vip_v4(1, 80), vip_v4(1, 81)),
        (vip_v4(1, 81), vip_v4(1, 70)),
        (vip_v6(1, 70), vip_v6(1, 82)),
        (vip_v4(99, 80), vip_v4(1, 81)),
    ];
    for (source, vip) in pairs {
        wire.send(&syn(source, vip)?)?;
        wire.send(&lab_support::Datagram::new(source, vip, "round and round").ip())?;
    }
    std::thread::sleep(Duration::from_millis(300));
    let seen = bed.topology.router().counters()? - &router;
    let (to, from) = (seen.to(LinkKind::Lb), seen.from(LinkKind::Lb));
    println!("to the LB node {to:?}, from it {from:?}");
    let most = 3 * 2 * pairs.len() as u64;
    assert!(to.requests.packets + to.replies.packets + from.requests.packets + from.replies.packets <= 2 * most);
    Ok(())
}
