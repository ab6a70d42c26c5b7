//! Who may send to a VIP and how much, on the real path: what is refused is counted and does not arrive, and nothing else suffers.

mod lab_support;

use std::{
    net::{IpAddr, SocketAddr},
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::Result;
use etherparse::PacketBuilder;
use lab::{LinkKind, Proto, RawSocket, Topology, require_root};
use lab_support::{Bed, Counted, Datagram, LbFile, eventually, framed, vip_v4, vip_v6};

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
/// Further addresses of the client, which are told apart from its first ones.
const OTHER_V4: &str = "10.10.1.66";
const OTHER_V6: &str = "fd00:10:1::66";

fn guarded(options: &str, more: &str) -> Result<Bed> {
    let vips: Vec<_> = [vip_v4(1, 80), vip_v6(1, 80)]
        .into_iter()
        .flat_map(|vip| BOTH.map(|proto| (proto, vip)))
        .collect();
    let bed = Bed::start(Topology::builder().workers(2).build()?, |topology, lb| {
        let mut file = LbFile::new(topology, lb).vips(&vips, "v4").more(more);
        for vip in &mut file.vips {
            vip.options = options.to_owned();
        }
        // A neighbour without options.
        file.vips(&[(Proto::Udp, vip_v4(2, 80))], "v4")
    })?;
    let client = bed.topology.client().ns();
    client.sh(&format!("ip addr add {OTHER_V4}/24 dev eth0"))?;
    client.sh(&format!("ip addr add {OTHER_V6}/64 dev eth0 nodad"))?;
    Ok(bed)
}

/// Asserts that a source is refused with this verdict while the other one is served, by TCP and UDP over both families; `others` are
/// the second addresses.
fn assert_refused(bed: &Bed, verdict: &str, others: bool) -> Result<()> {
    let client = bed.topology.client().with_timeout(Duration::from_millis(60));
    let own: [IpAddr; 2] = [client.addr_v4().into(), client.addr_v6().into()];
    let second: [IpAddr; 2] = [OTHER_V4.parse()?, OTHER_V6.parse()?];
    let (refused, served) = if others { (second, own) } else { (own, second) };
    let mut port = 20_000;
    for (position, vip) in [vip_v4(1, 80), vip_v6(1, 80)].into_iter().enumerate() {
        let mut next = |addresses: [IpAddr; 2]| {
            port += 1;
            SocketAddr::new(addresses[position], port)
        };
        for _ in 0..10 {
            let before = bed.lb().counted()?;
            assert!(client.udp_get_from(next(refused), vip).is_err());
            let counted = bed.lb().counted()?;
            assert_eq!(counted.of(verdict) - before.of(verdict), 1, "{vip}");
            let source = next(served);
            assert_eq!(bed.topology.client().udp_get_from(source, vip)?.client_seen, source);
            let source = next(served);
            assert_eq!(bed.topology.client().http_get_from(source, vip)?.client_seen, source);
        }
        assert!(client.http_get_from(next(refused), vip).is_err());
    }
    Ok(())
}

#[test]
fn only_allowed_sources_reach_a_vip_that_names_them() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = guarded(", allowed_sources: [10.10.1.64/26, \"fd00:10:1::60/123\"]", "")?;
    assert_refused(&bed, "drop source_not_allowed", false)?;
    // A VIP without source ranges lets everybody in, and so does this one once they are gone.
    bed.topology.client().udp_get(vip_v4(2, 80), 20)?;
    let mut file = bed.file();
    for vip in &mut file.vips {
        vip.options.clear();
    }
    bed.lb().reload_lb(&file)?;
    bed.topology.client().udp_get(vip_v4(1, 80), 20)?;
    bed.topology.client().http_get(vip_v6(1, 80), 20)?;
    Ok(())
}

#[test]
fn denied_sources_reach_no_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let denied = format!("protection: {{ denied_sources: [{OTHER_V4}/32, \"{OTHER_V6}/128\"] }}");
    let bed = guarded("", &denied)?;
    assert_refused(&bed, "drop source_denied", true)?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(60));
    assert!(
        client
            .udp_get_from(SocketAddr::new(OTHER_V4.parse()?, 30_000), vip_v4(2, 80))
            .is_err()
    );
    // Denied are packets to VIPs; the LB node's own addresses are the kernel's matter.
    client.ns().sh(&format!(
        "ping -n -c 1 -w 2 -I {OTHER_V4} {}",
        bed.topology.lb(0).addr_v4()
    ))?;
    Ok(())
}

/// Frames sent to the LB node from the router's end of its link, as fast as they come.
struct Flood {
    wire: RawSocket,
    lb_mac: [u8; 6],
    router_mac: [u8; 6],
}

impl Flood {
    fn new(bed: &Bed) -> Result<Self> {
        let eth0 = bed.topology.lb(0).eth0();
        Ok(Self {
            wire: RawSocket::open(bed.topology.router().ns(), &eth0.peer)?,
            lb_mac: eth0.mac,
            router_mac: eth0.gateway_mac,
        })
    }

    fn send(&self, ip: &[u8]) -> Result<()> {
        self.wire.send(&framed(self.lb_mac, self.router_mac, ip))
    }

    /// Waits until `count` packets more have been dropped with this verdict or forwarded; how many of each.
    fn outcome(bed: &Bed, before: &Counted, verdict: &str, count: u64) -> Result<(u64, u64)> {
        let mut outcome = (0, 0);
        eventually("all packets are counted", || {
            let counted = bed.lb().counted()?;
            let grown = |verdict| counted.of(verdict) - before.of(verdict);
            outcome = (grown(verdict), grown("forward tx"));
            Ok(outcome.0 + outcome.1 >= count)
        })?;
        assert_eq!(outcome.0 + outcome.1, count);
        Ok(outcome)
    }
}

#[test]
fn packets_that_nobody_can_have_sent_are_dropped_unless_that_is_off() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let at = |address: &str, port| SocketAddr::new(address.parse().expect("an address"), port);
    let cases = [
        ("drop martian", at("127.0.0.1", 7), vip_v4(1, 80)),
        ("drop martian", at("0.1.2.3", 7), vip_v4(1, 80)),
        ("drop martian", at("224.0.0.9", 7), vip_v4(1, 80)),
        ("drop martian", at("::1", 7), vip_v6(1, 80)),
        ("drop martian", at("ff02::1", 7), vip_v6(1, 80)),
        ("drop source_is_vip", vip_v4(1, 80), vip_v4(1, 80)),
        ("drop source_is_vip", vip_v6(1, 80), vip_v6(1, 80)),
    ];
    let count = |bed: &Bed| -> Result<()> {
        let flood = Flood::new(bed)?;
        let on = bed
            .lb()
            .status()?
            .features
            .iter()
            .any(|feature| feature.contains("martian"));
        for (verdict, source, vip) in cases {
            let before = bed.lb().counted()?;
            flood.send(&Datagram::new(source, vip, "nobody's").ip())?;
            let expected = if on { verdict } else { "forward tx" };
            eventually("the packet is counted", || {
                Ok(bed.lb().counted()?.of(expected) > before.of(expected))
            })?;
            let counted = bed.lb().counted()?;
            if on {
                assert_eq!(
                    counted.since(&before).into_iter().collect::<Vec<_>>(),
                    [(verdict, 1)],
                    "{source} {vip}"
                );
            } else {
                // There may be no end of them, where the answer goes to the VIP, which answers: that is what the check is for.
                assert_eq!(counted.of(verdict), before.of(verdict), "{source} {vip}");
            }
        }
        Ok(())
    };
    let bed = guarded("", "")?;
    count(&bed)?;
    // The control: with the checks off the same packets go on their way.
    bed.lb().reload_lb(
        &bed.file()
            .more("protection: { drop_martians: false, drop_source_is_vip: false }"),
    )?;
    count(&bed)
}

/// The most that a limit may let through: each CPU's burst, and what its rate brought meanwhile.
fn most(rate: u64, burst: u64, took: Duration) -> u64 {
    let cpus = available_parallelism().map_or(1, usize::from) as u64;
    cpus * (burst + (rate as f64 * took.as_secs_f64()).ceil() as u64 + 1)
}

const RATE: u64 = 20;
const BURST: u64 = 50;
const FLOOD: u64 = 2000;

#[test]
fn a_flood_of_syns_is_cut_and_open_connections_do_not_notice() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for limited in [true, false] {
        let limits = format!(", limits: {{ syns_per_second_per_cpu: {RATE}, syns_burst: {BURST} }}");
        let vips = [(Proto::Tcp, vip_v4(1, 80)), (Proto::Tcp, vip_v4(2, 80))];
        let bed = Bed::start(Topology::builder().workers(2).build()?, |topology, lb| {
            let mut file = LbFile::new(topology, lb).vips(&vips, "v4");
            if limited {
                file.vips[0].options = limits.clone();
            }
            file
        })?;
        let client = bed.topology.client();
        let mut open = (0..5)
            .map(|_| client.connect(vip_v4(1, 80)))
            .collect::<Result<Vec<_>>>()?;
        let flood = Flood::new(&bed)?;
        let (before, start) = (bed.lb().counted()?, Instant::now());
        for number in 0..FLOOD {
            // From nobody's address: the answers die on the router.
            let source = [198, 18, (number >> 8) as u8, number as u8];
            let packet = PacketBuilder::ipv4(source, [203, 0, 113, 1], 60)
                .tcp(4000, 80, 1, 1024)
                .syn();
            let mut bytes = Vec::with_capacity(packet.size(0));
            packet.write(&mut bytes, &[])?;
            flood.send(&bytes)?;
        }
        let took = start.elapsed();
        let (dropped, forwarded) = Flood::outcome(&bed, &before, "drop syn_limit", FLOOD)?;
        println!("limited: {limited}: {dropped} of {FLOOD} dropped in {took:?}");
        if limited {
            assert!(
                forwarded <= most(RATE, BURST, took),
                "{forwarded} went through in {took:?}"
            );
        } else {
            assert_eq!(dropped, 0, "the control");
        }
        for connection in &mut open {
            connection.get()?;
            connection.upload(100_000)?;
        }
        client.http_get(vip_v4(2, 80), 30)?;
    }
    Ok(())
}

#[test]
fn a_packet_limit_holds_for_its_vip_alone_and_can_be_lifted() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = guarded(
        &format!(", limits: {{ packets_per_second_per_cpu: {RATE}, packets_burst: {BURST} }}"),
        "",
    )?;
    let flood = |vip: SocketAddr| {
        let flood = Flood::new(&bed)?;
        let (before, start) = (bed.lb().counted()?, Instant::now());
        let client: IpAddr = if vip.is_ipv4() {
            "198.18.0.1".parse()?
        } else {
            "2001:2::1".parse()?
        };
        for number in 0..FLOOD {
            flood.send(&Datagram::new(SocketAddr::new(client, 1000 + number as u16), vip, "flood").ip())?;
        }
        let took = start.elapsed();
        let (dropped, forwarded) = Flood::outcome(&bed, &before, "drop packet_limit", FLOOD)?;
        println!("{vip}: {dropped} of {FLOOD} dropped in {took:?}");
        Ok::<_, anyhow::Error>((forwarded, most(RATE, BURST, took)))
    };
    for vip in [vip_v4(1, 80), vip_v6(1, 80)] {
        let (forwarded, most) = flood(vip)?;
        assert!(forwarded <= most, "{forwarded} of at most {most} to {vip}");
    }
    assert_eq!(flood(vip_v4(2, 80))?.0, FLOOD, "another VIP has no limit");
    assert!(bed.lb().cli(&["vips"])?.contains("limits"));

    let mut file = bed.file();
    for vip in &mut file.vips {
        vip.options = ", limits: { packets_per_second_per_cpu: 1000000 }".to_owned();
    }
    bed.lb().reload_lb(&file)?;
    assert_eq!(flood(vip_v4(1, 80))?.0, FLOOD, "a wider limit holds at once");
    // What is dropped at the LB node does not reach a worker, and what is forwarded does.
    // A burst may find the bench's own link full, and what is counted here is on its way there for a moment.
    let (mut seen, mut sent) = (0, 0);
    eventually("what is forwarded reaches the router", || {
        seen = bed.topology.router().counters()?.from(LinkKind::Lb).tunnel.packets;
        // Routers tell of clients that are not there: those errors go to the workers, too.
        let steered = bed.lb().slow()?.of("icmp_error/steered");
        sent = bed.lb().counted()?.of("forward tx") + steered;
        Ok(seen * 10 >= sent * 8)
    })?;
    assert!(seen <= sent && seen >= FLOOD, "{seen} of {sent}");
    Ok(())
}
