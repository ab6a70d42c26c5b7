//! What is not decapsulated: unknown LB nodes, other destinations than VIPs, sources that never speak through a tunnel, packets
//! that contradict themselves. On a worker node, and by the balancer's program on an LB node that is a worker node too.

use std::net::IpAddr;

use anyhow::Result;
use xdp_prog::{
    abi::{feature, setting},
    verdict::Verdict,
};

use super::worker::{NODE_V4, NODE_V6, beds, inner_frame, packets, tunnel_frame, tunnels, with_tunnel};
use crate::support::{
    bed::Bed,
    frames::{DOT1AD, DOT1Q, IPIP, IPV6, LB_MAC, Packet, ROUTER_MAC, checksummed, framed, ip_header, tunnelled},
    site::{CLIENT_V4, CLIENT_V6, LB_V4, LB_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

#[test]
fn only_known_lb_nodes_are_listened_to() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for packet in packets() {
            for source in ["10.0.0.2", "203.0.113.66", NODE_V4, "fd00::2", "2001:db8::66", NODE_V6] {
                let source: IpAddr = source.parse()?;
                let node = if source.is_ipv4() { NODE_V4 } else { NODE_V6 };
                let frame = tunnel_frame((source, node.parse()?), &[], 0, &packet.ip());
                // Whatever it carries: it may be someone's tunnel, and the stack knows.
                bed.unchanged(&format!("from {source}"), &frame, Verdict::PassForeignTunnel)?;
            }
        }
    }
    Ok(())
}

/// The sets hold IPv4 addresses in IPv4-mapped form, which an IPv6 header can carry too.
#[test]
fn ipv4_mapped_addresses_do_not_pass_for_the_ipv4_ones() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let [mut worker, mut balancer] = beds()?;
    for packet in packets() {
        for (source, node) in [("::ffff:10.0.0.1", NODE_V6), ("fd00::1", "::ffff:10.0.0.11")] {
            let frame = tunnel_frame((source.parse()?, node.parse()?), &[], 0, &packet.ip());
            worker.unchanged("a mapped outer address", &frame, Verdict::PassNotTunnel)?;
            balancer.unchanged("a mapped outer address", &frame, Verdict::PassNotVip)?;
        }
    }
    Ok(())
}

#[test]
fn without_configured_sets_nothing_is_decapsulated() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let [four, _, _, _] = packets();
    let frame = tunnel_frame(tunnels()[0], &[], 0, &four.ip());
    for (missing, verdict) in [
        (setting::TUNNEL_LOCALS, Verdict::PassNotTunnel),
        (setting::TUNNEL_SOURCES, Verdict::PassForeignTunnel),
        (setting::TUNNEL_VIPS, Verdict::DropTunnelNotVip),
    ] {
        for (absent, word) in [("absent", 0), ("empty", with_tunnel(Tables::new(0)).set(&[]))] {
            let mut tables = with_tunnel(Tables::new(0));
            tables.settings[missing as usize] = word;
            if word != 0 {
                assert_eq!(tables.set(&[]), word, "the same place");
            }
            Bed::worker(tables)?.unchanged(&format!("set {missing} {absent}"), &frame, verdict)?;
        }
    }
    Ok(())
}

#[test]
fn tunnel_packets_for_others_pass() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let [mut worker, mut balancer] = beds()?;
    for packet in packets() {
        for (source, destination) in [
            (LB_V4.into(), "10.0.0.12".parse()?),
            (LB_V6.into(), "fd00::1:2".parse()?),
        ] {
            let frame = tunnel_frame((source, destination), &[], 0, &packet.ip());
            worker.unchanged("for another node", &frame, Verdict::PassNotTunnel)?;
            balancer.unchanged("for another node", &frame, Verdict::PassNotVip)?;
        }
    }
    Ok(())
}

#[test]
fn what_is_no_tunnel_packet_passes_a_worker_as_it_came() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut worker = Bed::worker(with_tunnel(Tables::new(0)))?;
    for packet in packets() {
        worker.unchanged("a plain packet to a VIP", &packet.frame(), Verdict::PassNotTunnel)?;
    }
    for (ends, at) in [(tunnels()[0], 9), (tunnels()[1], 6)] {
        let ip = tunnelled(ends.0, ends.1, 0, &packets()[0].ip());
        for protocol in (0..=u8::MAX).filter(|&protocol| protocol != IPIP && protocol != IPV6) {
            let mut ip = ip.clone();
            ip[at] = protocol;
            let frame = framed(LB_MAC, ROUTER_MAC, &[], &checksummed(ip));
            worker.unchanged(&format!("protocol {protocol}"), &frame, Verdict::PassNotTunnel)?;
        }
    }
    worker.unchanged("ARP", &[0xff; 42], Verdict::PassNotIp)?;
    Ok(())
}

#[test]
fn outer_fragments_and_options_are_left_to_the_stack() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let [mut worker, mut balancer] = beds()?;
    let ip = tunnelled(tunnels()[0].0, tunnels()[0].1, 0, &packets()[0].ip());
    for flags in [0x2000_u16, 0x0001, 0x1fff, 0x6000] {
        let mut ip = ip.clone();
        ip[6..8].copy_from_slice(&flags.to_be_bytes());
        let frame = framed(LB_MAC, ROUTER_MAC, &[], &checksummed(ip));
        worker.unchanged("an outer fragment", &frame, Verdict::PassNotTunnel)?;
        balancer.unchanged("an outer fragment", &frame, Verdict::PassNotVip)?;
    }
    let mut ip = ip.clone();
    ip.splice(20..20, [1, 1, 1, 0]);
    ip[0] = 0x46;
    ip[3] += 4;
    let frame = framed(LB_MAC, ROUTER_MAC, &[], &checksummed(ip));
    worker.unchanged("outer options", &frame, Verdict::PassNotTunnel)?;
    balancer.unchanged("outer options", &frame, Verdict::PassNotVip)?;
    Ok(())
}

#[test]
fn only_vips_are_reached_through_the_tunnel() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for ends in tunnels() {
            for destination in ["192.0.1.255", "192.0.3.0", "10.0.0.11", "127.0.0.1", "255.255.255.255"] {
                let ip = Packet::tcp(CLIENT_V4, &at(destination, 80)).ip();
                bed.unchanged(destination, &tunnel_frame(ends, &[], 0, &ip), Verdict::DropTunnelNotVip)?;
            }
            // The last one is how the sets hold an IPv4 VIP; on the wire it is no VIP's address.
            for destination in [
                "2001:db8:0:ffff::1",
                "2001:db8:2::",
                "::1",
                "fd00::1:1",
                "ff02::1",
                "::ffff:192.0.2.80",
            ] {
                let ip = Packet::tcp(CLIENT_V6, &at(destination, 80)).ip();
                bed.unchanged(destination, &tunnel_frame(ends, &[], 0, &ip), Verdict::DropTunnelNotVip)?;
            }
            // First and last address of the prefixes.
            for packet in [
                Packet::udp(CLIENT_V4, &at("192.0.2.0", 9)),
                Packet::udp(CLIENT_V4, &at("192.0.2.255", 9)),
                Packet::udp(CLIENT_V6, &at("2001:db8:1::", 9)),
                Packet::udp(CLIENT_V6, &at("2001:db8:1:ffff:ffff:ffff:ffff:ffff", 9)),
            ] {
                let frame = tunnel_frame(ends, &[], 0, &packet.ip());
                let expected = inner_frame(&[], &packet.hops(56));
                bed.becomes("a VIP prefix", &frame, Verdict::PassDecapsulated, None, &expected)?;
            }
        }
    }
    Ok(())
}

#[test]
fn martians_nodes_pods_and_services_do_not_speak_through_the_tunnel() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for ends in tunnels() {
            for source in [
                "0.0.0.0",
                "127.0.0.1",
                "169.254.1.1",
                "224.0.0.1",
                "255.255.255.255",
                "10.0.0.11",
                "10.244.3.4",
            ] {
                let ip = Packet::tcp(&at(source, 1), &at(VIP_V4, 80)).ip();
                bed.unchanged(source, &tunnel_frame(ends, &[], 0, &ip), Verdict::DropTunnelSource)?;
            }
            for source in [
                "::",
                "::1",
                "::ffff:198.51.100.7",
                "fe80::1",
                "ff02::1",
                "fd00::1:1",
                "fd12::5",
            ] {
                let ip = Packet::tcp(&at(source, 1), &at(VIP_V6, 80)).ip();
                bed.unchanged(source, &tunnel_frame(ends, &[], 0, &ip), Verdict::DropTunnelSource)?;
            }
        }
    }
    Ok(())
}

#[test]
fn inner_packets_that_contradict_themselves_or_the_outer_one_are_dropped() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for ends in tunnels() {
            for packet in packets() {
                let is_v4 = packet.source.is_ipv4();
                let ip = packet.ip();
                let has = ip.len();
                // The inner length, from nothing to beyond the outer packet.
                for says in (0..=has + 2).chain([0x7fff, 0xffff]) {
                    let least = if is_v4 { 20 } else { 40 };
                    if !is_v4 && says < 40 {
                        continue;
                    }
                    let length = |mut ip: Vec<u8>| {
                        let field = (if is_v4 { says } else { says - 40 }) as u16;
                        let at = if is_v4 { 2 } else { 4 };
                        ip[at..at + 2].copy_from_slice(&field.to_be_bytes());
                        checksummed(ip)
                    };
                    let frame = tunnel_frame(ends, &[], 0, &length(ip.clone()));
                    let what = format!("an inner packet that says it has {says} of {has} bytes, {packet:?}");
                    if (least..=has).contains(&says) {
                        let expected = framed(LB_MAC, ROUTER_MAC, &[], &length(packet.clone().hops(56).ip()));
                        bed.becomes(&what, &frame, Verdict::PassDecapsulated, None, &expected)?;
                    } else {
                        bed.unchanged(&what, &frame, Verdict::DropTunnelMalformed)?;
                    }
                }
                // A version that is not what the outer protocol number says.
                for version in (0..=15_u8).filter(|&version| version != if is_v4 { 4 } else { 6 }) {
                    let mut ip = ip.clone();
                    ip[0] = version << 4 | ip[0] & 0xf;
                    let protocol = if is_v4 { IPIP } else { IPV6 };
                    let mut outer = ip_header(ends.0, ends.1, protocol, 0, 64, ip.len());
                    outer.extend(ip);
                    let frame = framed(LB_MAC, ROUTER_MAC, &[], &outer);
                    bed.unchanged(&format!("version {version}"), &frame, Verdict::DropTunnelMalformed)?;
                }
            }
            // Inner header lengths: too short, longer than the packet; options as such are the stack's business.
            for ihl in 0..=15_u8 {
                // 40 bytes: ten words.
                let mut ip = packets()[0].clone().payload(0).ip();
                ip[0] = 0x40 | ihl;
                let frame = tunnel_frame(ends, &[], 0, &checksummed(ip));
                let verdict = if (5..=10).contains(&ihl) {
                    Verdict::PassDecapsulated
                } else {
                    Verdict::DropTunnelMalformed
                };
                bed.step(&format!("an inner header of {ihl} words"), &frame, verdict, None)?;
            }
        }
    }
    Ok(())
}

#[test]
fn tunnel_packets_cut_short_anywhere_are_dropped_or_passed() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let [mut worker, mut balancer] = beds()?;
    for (ends, outer) in tunnels().into_iter().zip([20, 40]) {
        for packet in packets() {
            for tags in [&[][..], &[(DOT1AD, 2), (DOT1Q, 3)]] {
                let frame = tunnel_frame(ends, tags, 0, &packet.ip());
                let link = 14 + 4 * tags.len();
                for len in 14..frame.len() {
                    let (on_worker, on_balancer) = if len < link {
                        (Verdict::PassUnparsed, Verdict::PassUnparsed)
                    } else if len < link + outer {
                        (Verdict::PassNotTunnel, Verdict::PassUnparsed)
                    } else {
                        (Verdict::DropTunnelMalformed, Verdict::DropTunnelMalformed)
                    };
                    let what = format!("the first {len} bytes through {ends:?}");
                    worker.unchanged(&what, &frame[..len], on_worker)?;
                    balancer.unchanged(&what, &frame[..len], on_balancer)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_lb_node_that_is_no_worker_does_not_decapsulate() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(with_tunnel(Tables::new(
        feature::ALL & !feature::DECAP & !feature::SLOW_PATH,
    )))?;
    for ends in tunnels() {
        for packet in packets() {
            bed.unchanged(
                "a tunnel packet",
                &tunnel_frame(ends, &[], 0, &packet.ip()),
                Verdict::PassNotVip,
            )?;
        }
    }
    Ok(())
}

#[test]
fn a_worker_that_balances_still_balances() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let [_, mut balancer] = beds()?;
    for (vip, packet) in (1..).zip(packets()) {
        balancer.forwards(&packet, vip, 1, &Way::v4(2))?;
    }
    Ok(())
}
