//! VIP addresses that an LB node owns on its own segment: neighbours find it by ARP and neighbour discovery, and learn of it unasked.

mod lab_support;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use lab::{Capture, Captured, Netns, Proto, Topology, VlanTags, require_root};
use lab_support::{Bed, LbFile, eventually, vip_v4, vip_v6};
use nix::sys::signal::Signal;

/// Without asking first: that has tests of its own.
const OWNED: &str = "l2: { owned: [203.0.113.0/24, \"2001:db8:f00d::/64\"], probe: false }";
const PROBED: &str = "l2: { owned: [203.0.113.0/24, \"2001:db8:f00d::/64\"] }";
const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];

fn vips() -> Vec<(Proto, SocketAddr)> {
    let both = [vip_v4(1, 80), vip_v6(1, 80)].into_iter();
    both.flat_map(|vip| BOTH.map(|proto| (proto, vip))).collect()
}

/// A client, an LB node and two workers on one segment.
fn bed(more: &str) -> Result<Bed> {
    let topology = Topology::builder().workers(2).client_on_link().build()?;
    Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb).vips(&vips(), "v4").more(more)
    })
}

fn mac_of_lb(bed: &Bed) -> String {
    let mac = bed.topology.lb(0).mac();
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What `ip neigh` says of an address in a namespace.
fn neighbour(ns: &Netns, address: IpAddr) -> Result<String> {
    ns.sh(&format!("ip neigh show {address}"))
}

fn ping(ns: &Netns, address: IpAddr) -> Result<bool> {
    Ok(ns
        .within(
            Duration::from_secs(3),
            &format!("ping -n -c 2 -i 0.1 -W 0.5 -w 1 {address}"),
        )?
        .ok)
}

#[test]
fn clients_on_the_segment_find_an_owned_vip_address_and_use_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(OWNED)?;
    let client = bed.topology.client();
    for vip in [vip_v4(1, 80), vip_v6(1, 80)] {
        assert_eq!(
            neighbour(client.ns(), vip.ip())?.matches("lladdr").count(),
            0,
            "no static entry"
        );
        assert!(ping(client.ns(), vip.ip())?, "ping {vip}");
        let said = client
            .ns()
            .within(Duration::from_secs(3), &format!("curl -sS --max-time 2 http://{vip}/"))?;
        assert!(said.ok && said.said.contains("worker-"), "{said:?}");
        let entry = neighbour(client.ns(), vip.ip())?;
        assert!(entry.contains(&mac_of_lb(&bed)), "{entry}");
        client.http_get(vip, 20)?;
        client.udp_get(vip, 20)?;
        // The kernel checks what it knows by asking the neighbour itself.
        client
            .ns()
            .sh(&format!("ip neigh change {vip} dev eth0 nud probe", vip = vip.ip()))?;
        eventually("the entry is confirmed", || {
            Ok(neighbour(client.ns(), vip.ip())?.contains("REACHABLE"))
        })?;
    }
    // The node's own addresses are its kernel's.
    let lb = bed.topology.lb(0);
    for address in [IpAddr::from(lb.addr_v4()), lb.addr_v6().into()] {
        client.ns().sh(&format!("ip neigh flush to {address}"))?;
        assert!(ping(client.ns(), address)?, "ping {address}");
    }
    let slow = bed.lb().slow()?;
    assert!(slow.of("neighbour/arp_reply") > 0 && slow.of("neighbour/neighbour_advertisement") > 0);
    Ok(())
}

#[test]
fn nobody_answers_for_an_address_that_is_not_owned_or_no_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // The twins: not owned; owned, but without a slow path; owned, but no VIP.
    for (more, last) in [
        ("", 1),
        (
            "slow_path: { enabled: false }\nl2: { owned: [203.0.113.0/24, \"2001:db8:f00d::/64\"] }",
            1,
        ),
        (OWNED, 77),
    ] {
        let bed = bed(more)?;
        let client = bed.topology.client();
        for vip in [vip_v4(last, 80), vip_v6(u16::from(last), 80)] {
            assert!(!ping(client.ns(), vip.ip())?, "{more}: {vip}");
            assert!(client.with_timeout(Duration::from_millis(200)).udp_get(vip, 1).is_err());
            let entry = neighbour(client.ns(), vip.ip())?;
            assert!(!entry.contains("lladdr"), "{more}: {entry}");
        }
    }
    Ok(())
}

#[test]
fn questions_are_answered_on_a_second_interface_and_behind_vlan_tags() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let shapes = [
        Topology::builder().workers(1).client_on_link().two_interfaces(),
        Topology::builder().workers(1).client_on_link().vlan(VlanTags::One(100)),
        Topology::builder()
            .workers(1)
            .client_on_link()
            .vlan(VlanTags::Two { outer: 7, inner: 300 }),
    ];
    for shape in shapes {
        let what = format!("{shape:?}");
        let bed = Bed::start(shape.build()?, |topology, lb| {
            LbFile::new(topology, lb).vips(&vips(), "v4").more(OWNED)
        })?;
        let client = bed.topology.client();
        let mac = bed
            .topology
            .lb(0)
            .back()
            .mac
            .map(|byte| format!("{byte:02x}"))
            .join(":");
        for vip in [vip_v4(1, 80), vip_v6(1, 80)] {
            // What was announced is forgotten: it asks.
            client.ns().sh(&format!("ip neigh flush to {}", vip.ip()))?;
            assert!(
                ping(client.ns(), vip.ip())?,
                "{what}: ping {vip}: {:?}",
                bed.lb().slow()?
            );
            let entry = neighbour(client.ns(), vip.ip())?;
            assert!(entry.contains(&mac), "{what}: {entry}");
            client.http_get(vip, 5)?;
        }
    }
    Ok(())
}

/// Announcements of an address: gratuitous ARP or unsolicited neighbour advertisements, by the MAC that they name.
fn announced(captured: &Captured, address: IpAddr, mac: &str) -> Result<usize> {
    captured.count(&match address {
        IpAddr::V4(_) => format!(
            "arp.src.proto_ipv4 == {address} && arp.dst.proto_ipv4 == {address} && arp.src.hw_mac == {mac} && eth.dst == ff:ff:ff:ff:ff:ff"
        ),
        IpAddr::V6(_) => format!(
            "icmpv6.type == 136 && icmpv6.nd.na.target_address == {address} && icmpv6.opt.linkaddr == {mac} \
             && icmpv6.nd.na.flag.s == 0 && icmpv6.nd.na.flag.o == 1 && icmpv6.checksum.status == 1 && ipv6.dst == ff02::1"
        ),
    })
}

#[test]
fn ownership_is_announced_at_the_start_and_when_a_reload_brings_it_and_stale_entries_give_way() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).client_on_link().build()?;
    let client = topology.client().clone();
    // Another node had the addresses: a failover.
    let stale = |last: u8| -> Result<()> {
        for vip in [vip_v4(last, 80).ip(), vip_v6(last.into(), 80).ip()] {
            client.ns().sh(&format!(
                "ip neigh replace {vip} dev eth0 lladdr 02:aa:aa:aa:aa:aa nud reachable"
            ))?;
        }
        Ok(())
    };
    // Linux ignores an announcement within a second of the entry's last change (locktime).
    client.ns().sysctl("net/ipv4/neigh/eth0/locktime", "0")?;
    client.ns().sysctl("net/ipv6/neigh/eth0/locktime", "0")?;
    stale(1)?;
    stale(2)?;
    let capture = Capture::start(client.ns(), "eth0", "arp or icmp6")?;
    let bed = Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb).vips(&vips(), "v4").more(OWNED)
    })?;
    let lb = mac_of_lb(&bed);
    let taken = |last: u8| {
        eventually("the LB node's MAC address replaces the other one's", || {
            let entry = |address| Ok::<_, anyhow::Error>(neighbour(client.ns(), address)?.contains(&lb));
            Ok(entry(vip_v4(last, 80).ip())? && entry(vip_v6(last.into(), 80).ip())?)
        })
    };
    taken(1)?;
    assert!(
        neighbour(client.ns(), vip_v4(2, 80).ip())?.contains("02:aa:aa"),
        "the control"
    );
    client.http_get(vip_v4(1, 80), 5)?;
    client.http_get(vip_v6(1, 80), 5)?;

    stale(2)?;
    let added = [(Proto::Tcp, vip_v4(2, 80)), (Proto::Tcp, vip_v6(2, 80))];
    bed.lb().reload_lb(&bed.file().vips(&added, "v4"))?;
    println!("after the reload: {:?}", taken(2)?);
    let captured = capture.stop()?;
    for vip in [vip_v4(1, 80), vip_v6(1, 80), vip_v4(2, 80), vip_v6(2, 80)] {
        let count = announced(&captured, vip.ip(), &lb)?;
        println!("{vip}: announced {count} times");
        assert!((1..=20).contains(&count), "{vip}: announced {count} times");
    }
    Ok(())
}

#[test]
fn duplicate_address_detection_finds_the_owner() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(OWNED)?;
    let client = bed.topology.client().ns();
    client.sysctl("net/ipv6/conf/all/accept_dad", "1")?;
    client.sysctl("net/ipv6/conf/eth0/accept_dad", "1")?;
    let failed = |address: &str| -> Result<bool> {
        client.sh(&format!("ip addr add {address}/128 dev eth0"))?;
        eventually("duplicate address detection ends", || {
            let text = client.sh(&format!("ip -6 addr show to {address}"))?;
            Ok(!text.contains("tentative") || text.contains("dadfailed"))
        })?;
        Ok(client
            .sh(&format!("ip -6 addr show to {address}"))?
            .contains("dadfailed"))
    };
    assert!(failed("2001:db8:f00d::1")?, "the VIP address is taken");
    assert!(!failed("2001:db8:f00d::99")?, "the control: this one is free");
    Ok(())
}

/// Questions for an address by one that does not have it, by this MAC address.
fn asked(captured: &Captured, address: IpAddr, mac: &str) -> Result<usize> {
    captured.count(&match address {
        IpAddr::V4(_) => format!(
            "arp.opcode == 1 && arp.src.proto_ipv4 == 0.0.0.0 && arp.dst.proto_ipv4 == {address} && arp.src.hw_mac == {mac}"
        ),
        IpAddr::V6(_) => format!(
            "icmpv6.type == 135 && ipv6.src == :: && icmpv6.nd.ns.target_address == {address} && eth.src == {mac} \
             && icmpv6.checksum.status == 1"
        ),
    })
}

#[test]
fn addresses_are_asked_for_before_they_are_answered_for_and_not_again_after_a_restart() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).client_on_link().build()?;
    let client = topology.client().clone();
    let capture = Capture::start(client.ns(), "eth0", "arp or icmp6")?;
    let mut bed = Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb).vips(&vips(), "v4").more(PROBED)
    })?;
    let lb = mac_of_lb(&bed);
    eventually("the addresses are answered for", || {
        Ok(ping(client.ns(), vip_v4(1, 80).ip())? && ping(client.ns(), vip_v6(1, 80).ip())?)
    })?;
    let captured = capture.stop()?;
    for vip in [vip_v4(1, 80).ip(), vip_v6(1, 80).ip()] {
        assert_eq!(asked(&captured, vip, &lb)?, 3, "{vip}");
        assert!(announced(&captured, vip, &lb)? > 0, "{vip}");
    }

    let capture = Capture::start(client.ns(), "eth0", "arp or icmp6")?;
    bed.lbs[0].end(Signal::SIGKILL)?;
    bed.lbs[0].start_again()?;
    assert!(ping(client.ns(), vip_v4(1, 80).ip())?, "it goes on at once");
    let captured = capture.stop()?;
    for vip in [vip_v4(1, 80).ip(), vip_v6(1, 80).ip()] {
        assert_eq!(asked(&captured, vip, &lb)?, 0, "{vip}");
    }
    Ok(())
}

#[test]
fn an_address_that_another_host_has_is_left_alone_until_it_has_it_no_more() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).client_on_link().build()?;
    let client = topology.client().clone();
    // The client itself is that host, with one address of each family; the other VIP address is free.
    client.ns().sh("ip addr add 203.0.113.1/32 dev eth0")?;
    client.ns().sh("ip addr add 2001:db8:f00d::1/128 dev eth0 nodad")?;
    let capture = Capture::start(client.ns(), "eth0", "arp or icmp6")?;
    let free = vip_v4(2, 80);
    let bed = Bed::start(topology, |topology, lb| {
        let vips = [vips(), vec![(Proto::Tcp, free)]].concat();
        LbFile::new(topology, lb).vips(&vips, "v4").more(PROBED)
    })?;
    let lb = mac_of_lb(&bed);
    let in_use = || -> Result<Vec<IpAddr>> {
        let status = bed.lb().status()?;
        Ok(status.in_use.iter().map(|in_use| in_use.address).collect())
    };
    eventually("both are found to be in use", || Ok(in_use()?.len() == 2))?;
    eventually("the free one is answered for", || ping(client.ns(), free.ip()))?;
    let link = client.ns().sh("ip -br link show eth0")?;
    assert_eq!(in_use()?, [vip_v4(1, 80).ip(), vip_v6(1, 80).ip()]);
    let mac = bed.lb().status()?.in_use[0].mac.clone();
    assert!(link.contains(&mac), "{mac} in {link}");
    let said = bed.lb().cli(&["status"])?;
    assert!(said.contains(&format!("203.0.113.1 is in use by {}", mac)), "{said}");
    assert!(bed.lb().log()?.contains("AddressInUse"));
    let captured = capture.stop()?;
    for vip in [vip_v4(1, 80).ip(), vip_v6(1, 80).ip()] {
        assert!(asked(&captured, vip, &lb)? > 0, "{vip}");
        assert_eq!(announced(&captured, vip, &lb)?, 0, "{vip}");
    }

    client.ns().sh("ip addr del 203.0.113.1/32 dev eth0")?;
    client.ns().sh("ip addr del 2001:db8:f00d::1/128 dev eth0")?;
    // It would be asked for again in time; a reload asks at once.
    bed.lb().reload_lb(&bed.file())?;
    eventually("nothing is in use any more", || Ok(in_use()?.is_empty()))?;
    eventually("both are answered for", || {
        Ok(ping(client.ns(), vip_v4(1, 80).ip())? && ping(client.ns(), vip_v6(1, 80).ip())?)
    })?;
    Ok(())
}
