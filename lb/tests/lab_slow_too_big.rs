//! Packets that do not fit once encapsulated, on a path that takes 1,500 bytes everywhere: their sender is told and recovers.

mod lab_support;

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use etherparse::{PacketBuilder, TcpOptionElement};
use lab::{Capture, Client, KubeProxy, Mtus, Policy, Proto, Topology, VipRule, require_root};
use lab_support::{Bed, LbFile, Wire, vip_v4, vip_v6, with_options};

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
const NARROW: Mtus = Mtus {
    client: 1500,
    lb: 1500,
    worker: 1500,
};
/// VIPs and the MTU of the way to their backends: less an outer IPv4 or IPv6 header.
const WAYS: [(fn() -> SocketAddr, u32); 4] = [
    (|| vip_v4(4, 80), 1480),
    (|| vip_v6(4, 80), 1480),
    (|| vip_v4(6, 80), 1460),
    (|| vip_v6(6, 80), 1460),
];
const BULK: u64 = 4_000_000;

fn bed(options: [&str; 2], more: &str) -> Result<Bed> {
    let topology = Topology::builder().workers(1).mtus(NARROW).build()?;
    Bed::start(topology, |topology, lb| {
        let on = |last: u8| {
            let both = [vip_v4(last, 80), vip_v6(last.into(), 80)].into_iter();
            both.flat_map(|vip| BOTH.map(|proto| (proto, vip))).collect::<Vec<_>>()
        };
        let mut file = LbFile::new(topology, lb)
            .vips(&on(4), "v4")
            .vips(&on(6), "v6")
            .more(more);
        for vip in &mut file.vips {
            vip.options = options[usize::from(vip.proto == Proto::Udp)].to_owned();
        }
        file
    })
}

/// The MTU that the client has learned for a VIP address; its link's if none.
fn learned(client: &Client, vip: SocketAddr) -> Result<u32> {
    let text = client.ns().sh(&format!("ip route get {}", vip.ip()))?;
    let mtu = text.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    Ok(mtu.map_or(1500, |mtu| mtu.parse().expect("a number")))
}

#[test]
fn tcp_finds_the_mtu_of_the_path_and_completes_a_bulk_transfer() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(["", ""], "")?;
    let client = bed.topology.client();
    for (vip, mtu) in WAYS {
        let vip = vip();
        assert_eq!(learned(client, vip)?, 1500);
        let capture = Capture::start(client.ns(), "eth0", "icmp or icmp6")?;
        client.upload(vip, BULK)?;
        client.download(vip, BULK)?;
        assert_eq!(learned(client, vip)?, mtu, "{vip}");
        let captured = capture.stop()?;
        let told = if vip.is_ipv4() {
            format!(
                "icmp.type == 3 && icmp.code == 4 && icmp.mtu == {mtu} && icmp.checksum.status == 1 && ip.src == {}",
                vip.ip()
            )
        } else {
            format!(
                "icmpv6.type == 2 && icmpv6.mtu == {mtu} && icmpv6.checksum.status == 1 && ipv6.src == {}",
                vip.ip()
            )
        };
        let told = captured.count(&told)?;
        println!("{vip}: told {told} times");
        assert!((1..=50).contains(&told), "{vip}: told {told} times");
    }
    Ok(())
}

#[test]
fn without_the_slow_path_a_bulk_transfer_hangs() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(["", ""], "slow_path: { enabled: false }")?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(500));
    for (vip, _) in WAYS {
        assert!(client.upload(vip(), BULK).is_err(), "{}", vip());
        assert_eq!(learned(&client, vip())?, 1500);
        // What fits goes through.
        client.http_get(vip(), 3)?;
    }
    assert!(bed.lb().counted()?.of("slow too_big") + bed.lb().counted()?.of("drop no_slow_path") > 0);
    Ok(())
}

#[test]
fn the_mss_of_a_clamped_vip_fits_the_way_to_its_backend() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for (options, clamped) in [([", clamp_mss: true", ""], true), (["", ""], false)] {
        let bed = bed(options, "")?;
        let client = bed.topology.client();
        // The control is one of them.
        for (vip, mtu) in WAYS.into_iter().take(if clamped { WAYS.len() } else { 1 }) {
            let vip = vip();
            let pod = bed.topology.worker(0).pod()?.ns();
            let capture = Capture::start(pod, "eth0", "tcp port 8080 or (ip6 and tcp)")?;
            let before = bed.lb().slow()?;
            client.upload(vip, BULK / 10)?;
            client.download(vip, BULK / 10)?;
            let captured = capture.stop()?;
            let syns = captured.fields(
                "tcp.flags.syn == 1 && tcp.flags.ack == 0",
                &["tcp.options.mss_val", "tcp.checksum.status"],
            )?;
            let headers = if vip.is_ipv4() { 40 } else { 60 };
            let mss = if clamped { mtu - headers } else { 1500 - headers };
            println!("{vip}: {syns:?}, {:?}", bed.lb().slow()?.since(&before));
            assert!(
                syns.len() == 2 && syns[0][0] == mss.to_string() && syns.iter().all(|syn| syn[1] == "1"),
                "{vip}: {syns:?}"
            );
            // Nothing that the server sends is larger than that.
            let most = captured.fields("tcp.srcport == 8080 && tcp.len > 0", &["tcp.len"])?;
            let most = most.iter().filter_map(|line| line[0].parse::<u32>().ok()).max();
            assert!(most <= Some(mss), "{vip}: {most:?} of {mss}");
        }
    }
    Ok(())
}

#[test]
fn a_syn_that_takes_the_slow_path_is_clamped_too() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed([", clamp_mss: true", ""], "")?;
    let (wire, pod) = (Wire::to_lb(&bed)?, bed.topology.worker(0).pod()?.ns());
    let capture = Capture::start(pod, "eth0", "tcp port 8080")?;
    for (vip, port) in [([203, 0, 113, 4], 5004), ([203, 0, 113, 6], 5006)] {
        let options = [
            TcpOptionElement::MaximumSegmentSize(1460),
            TcpOptionElement::SelectiveAcknowledgementPermitted,
        ];
        let source = bed.topology.client().addr_v4().octets();
        let syn = PacketBuilder::ipv4(source, vip, 60)
            .tcp(port, 80, 1, 1024)
            .syn()
            .options(&options)?;
        let mut bytes = Vec::with_capacity(syn.size(0));
        syn.write(&mut bytes, &[])?;
        wire.send(&with_options(&bytes, &[1, 1, 1, 0]))?;
    }
    std::thread::sleep(Duration::from_millis(300));
    let fields = [
        "tcp.srcport",
        "tcp.options.mss_val",
        "ip.hdr_len",
        "tcp.checksum.status",
    ];
    let mut syns = capture
        .stop()?
        .fields("tcp.flags.syn == 1 && tcp.flags.ack == 0", &fields)?;
    syns.sort();
    assert_eq!(syns, [["5004", "1440", "24", "1"], ["5006", "1420", "24", "1"]]);
    Ok(())
}

#[test]
fn tracepath_reports_the_mtu_of_the_path() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const FIRST: u16 = 44_000;
    let topology = Topology::builder().workers(1).mtus(NARROW).build()?;
    // It takes another port for every probe.
    let ports = FIRST..FIRST + 70;
    let vips = |last: u8| -> Vec<(Proto, SocketAddr)> {
        let ports = ports.clone();
        ports
            .flat_map(|port| [vip_v4(last, port), vip_v6(last.into(), port)])
            .map(|vip| (Proto::Udp, vip))
            .collect()
    };
    let bed = Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb).vips(&vips(4), "v4").vips(&vips(6), "v6")
    })?;
    // A port that nobody has open: the pod says so, and its word comes back from the VIP.
    let pod = bed.topology.worker(0).pod()?;
    let rules: Vec<_> = [vips(4), vips(6)]
        .concat()
        .into_iter()
        .map(|(proto, vip)| {
            let address = if vip.is_ipv4() {
                pod.addr_v4().into()
            } else {
                pod.addr_v6().into()
            };
            VipRule {
                vip,
                proto,
                target: SocketAddr::new(address, 9),
            }
        })
        .collect();
    KubeProxy::install(bed.topology.worker(0), &rules, Policy::Local)?;
    let client = bed.topology.client().ns();
    // Each waits some seconds for the hop that the tunnel takes and that nobody speaks for.
    std::thread::scope(|scope| {
        let paths = WAYS.map(|(vip, mtu)| {
            let line = format!("tracepath -n -m 8 -p {FIRST} {}", vip().ip());
            (
                scope.spawn(move || client.within(Duration::from_secs(15), &line)),
                vip,
                mtu,
            )
        });
        for (path, vip, mtu) in paths {
            let said = path.join().expect("a thread")?.said;
            println!("{said}");
            assert!(said.contains(&format!("pmtu {mtu}")), "{}: {said}", vip());
            assert!(said.contains("reached"), "{}: {said}", vip());
        }
        Ok(())
    })
}

#[test]
fn what_may_be_fragmented_is_split_or_answered_as_the_vip_says() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for (option, split) in [(", too_big: fragment", true), (", too_big: answer", false)] {
        let bed = bed([option, option], "")?;
        let client = bed.topology.client().with_timeout(Duration::from_millis(500));
        // Without DF.
        client.ns().sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
        for vip in [vip_v4(4, 80), vip_v4(6, 80)] {
            let capture = Capture::start(client.ns(), "eth0", "icmp")?;
            let before = bed.lb().slow()?;
            let outcome = client.udp_echo(vip, 1472);
            let seen = bed.lb().slow()?.since(&before);
            let told = capture.stop()?.count("icmp.type == 3 && icmp.code == 4")?;
            assert_eq!(outcome.is_ok(), split, "{option} {vip}: {outcome:?} {seen:?}");
            assert_eq!(told, usize::from(!split), "{option} {vip}");
            let what = if split { "too_big/split" } else { "too_big/too_big" };
            assert_eq!(seen.get(what), Some(&1), "{option} {vip}: {seen:?}");
            if split {
                for length in 1440..1472 {
                    client.udp_echo(vip, length)?;
                }
                client.upload(vip, BULK / 4)?;
            }
        }
    }
    Ok(())
}
