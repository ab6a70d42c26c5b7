//! Decapsulation: on a worker node, and by the balancer's program on an LB node that is a worker node too.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::net::IpAddr;

use anyhow::Result;
use xdp_prog::{
    abi::{feature, setting},
    verdict::Verdict,
};

use crate::support::{
    bed::Bed,
    frames::{
        DOT1AD, DOT1Q, LB_MAC, Packet, ROUTER_MAC, SYN, TCP, Tag, UDP, checksum_is_right, checksummed, framed,
        tunnelled,
    },
    site::{CLIENT_V4, CLIENT_V6, LB_V4, LB_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

pub(super) const NODE_V4: &str = "10.0.0.11";
pub(super) const NODE_V6: &str = "fd00::1:1";

/// The sets of a worker node: its addresses, the LB nodes, the VIP prefixes, and who never speaks through a tunnel.
pub(super) fn with_tunnel(mut tables: Tables) -> Tables {
    let (lb_v4, lb_v6) = (LB_V4.to_string(), LB_V6.to_string());
    for (which, ranges) in [
        (setting::TUNNEL_LOCALS, &[(NODE_V4, NODE_V4), (NODE_V6, NODE_V6)][..]),
        (
            setting::TUNNEL_SOURCES,
            &[(lb_v4.as_str(), lb_v4.as_str()), (lb_v6.as_str(), lb_v6.as_str())],
        ),
        (
            setting::TUNNEL_VIPS,
            &[
                ("192.0.2.0", "192.0.2.255"),
                ("2001:db8:1::", "2001:db8:1:ffff:ffff:ffff:ffff:ffff"),
            ],
        ),
        (
            setting::TUNNEL_DENIED,
            &[
                ("10.0.0.0", "10.0.0.255"),
                ("10.244.0.0", "10.244.255.255"),
                ("fd00::", "fdff:ffff:ffff:ffff::"),
            ],
        ),
    ] {
        tables.settings[which as usize] = tables.set(ranges);
    }
    tables
}

/// Both programs that decapsulate. The balancer has VIPs on what the tunnel carries, so that a packet balanced again would show.
pub(super) fn beds() -> Result<[Bed; 2]> {
    let worker = Bed::worker(with_tunnel(Tables::new(0)))?;
    let mut tables = with_tunnel(Tables::new(feature::DECAP));
    let backend = tables.backend(Way::v4(2).line());
    tables.vip(VIP_V4, TCP, 80, &[backend]);
    tables.vip(VIP_V4, UDP, 53, &[backend]);
    tables.vip(VIP_V6, TCP, 80, &[backend]);
    tables.vip(VIP_V6, UDP, 53, &[backend]);
    Ok([worker, Bed::balancer(tables)?])
}

pub(super) fn packets() -> [Packet; 4] {
    [
        Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)),
        Packet::udp(CLIENT_V4, &at(VIP_V4, 53)),
        Packet::tcp(CLIENT_V6, &at(VIP_V6, 80)),
        Packet::udp(CLIENT_V6, &at(VIP_V6, 53)),
    ]
}

/// LB node and this node, of either family.
pub(super) fn tunnels() -> [(IpAddr, IpAddr); 2] {
    [
        (LB_V4.into(), NODE_V4.parse().unwrap()),
        (LB_V6.into(), NODE_V6.parse().unwrap()),
    ]
}

/// The frame that comes by a tunnel.
pub(super) fn tunnel_frame(ends: (IpAddr, IpAddr), tags: &[Tag], outer_tos: u8, ip: &[u8]) -> Vec<u8> {
    framed(LB_MAC, ROUTER_MAC, tags, &tunnelled(ends.0, ends.1, outer_tos, ip))
}

/// The frame that the node's kernel should see.
pub(super) fn inner_frame(tags: &[Tag], packet: &Packet) -> Vec<u8> {
    framed(LB_MAC, ROUTER_MAC, tags, &packet.ip())
}

#[test]
fn four_kinds_of_tunnel_are_taken_off() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for ends in tunnels() {
            for tags in [&[][..], &[(DOT1Q, 100)], &[(DOT1AD, 200), (DOT1Q, 300)]] {
                for packet in packets() {
                    for packet in [
                        packet.clone().payload(0),
                        packet.clone().payload(700),
                        packet.flags(SYN).tos(0xb8),
                    ] {
                        let frame = tunnel_frame(ends, tags, packet.tos, &packet.ip());
                        let expected = inner_frame(tags, &packet.clone().hops(56));
                        let what = format!("{packet:?} through {ends:?}");
                        bed.becomes(&what, &frame, Verdict::PassDecapsulated, None, &expected)?;
                    }
                }
            }
        }
        assert!(
            bed.counted().vips.is_empty(),
            "what was taken off is not balanced again"
        );
    }
    Ok(())
}

#[test]
fn frames_of_several_buffers_and_padded_ones_are_taken_off_whole() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for ends in tunnels() {
            for packet in packets() {
                for ip_len in [3400, 3450, 3500, 4096, 9000, 40_000] {
                    let packet = packet.clone().ip_len(ip_len);
                    let frame = tunnel_frame(ends, &[], 0, &packet.ip());
                    let expected = inner_frame(&[], &packet.hops(56));
                    bed.becomes(
                        &format!("{ip_len} bytes"),
                        &frame,
                        Verdict::PassDecapsulated,
                        None,
                        &expected,
                    )?;
                }
                let mut frame = tunnel_frame(ends, &[], 0, &packet.ip());
                let mut expected = inner_frame(&[], &packet.clone().hops(56));
                for bytes in [&mut frame, &mut expected] {
                    bytes.extend([0xa5; 11]);
                }
                bed.becomes("padding", &frame, Verdict::PassDecapsulated, None, &expected)?;
            }
        }
    }
    Ok(())
}

/// RFC 6040, figure 4: what leaves for an inner and an outer field; `None`: drop.
fn rfc_6040(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0b00;
    const ECT_1: u8 = 0b01;
    const ECT_0: u8 = 0b10;
    const CE: u8 = 0b11;
    let row = match inner {
        NOT_ECT => [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
        ECT_0 => [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
        ECT_1 => [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
        _ => [Some(CE), Some(CE), Some(CE), Some(CE)],
    };
    let column = match outer {
        NOT_ECT => 0,
        ECT_0 => 1,
        ECT_1 => 2,
        _ => 3,
    };
    row[column]
}

#[test]
fn ecn_is_combined_as_rfc_6040_says_and_the_checksum_stays_right() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for ends in tunnels() {
            for packet in packets() {
                for inner_dscp in [0, 0b10_1110, 0b11_1111] {
                    for (inner, outer) in (0..4).flat_map(|inner| (0..4).map(move |outer| (inner, outer))) {
                        let packet = packet.clone().tos(inner_dscp << 2 | inner);
                        // Another DSCP outside: the inner one stays.
                        let frame = tunnel_frame(ends, &[], 0b01_0101 << 2 | outer, &packet.ip());
                        let what = format!("inner {inner:02b}, outer {outer:02b}, {packet:?}");
                        match rfc_6040(inner, outer) {
                            None => bed.unchanged(&what, &frame, Verdict::DropTunnelEcn)?,
                            Some(ecn) => {
                                let expected = inner_frame(&[], &packet.clone().tos(inner_dscp << 2 | ecn).hops(56));
                                bed.becomes(&what, &frame, Verdict::PassDecapsulated, None, &expected)?
                            }
                        };
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_inner_ttl_is_lowered_by_one_and_never_to_nothing() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    for mut bed in beds()? {
        for ends in tunnels() {
            for packet in packets() {
                for hops in 0..=u8::MAX {
                    let frame = tunnel_frame(ends, &[], 0, &packet.clone().hops(hops).ip());
                    if hops <= 1 {
                        bed.unchanged(&format!("TTL {hops}"), &frame, Verdict::DropTunnelTtl)?;
                        continue;
                    }
                    let expected = inner_frame(&[], &packet.clone().hops(hops - 1));
                    let left = bed.becomes(
                        &format!("TTL {hops}"),
                        &frame,
                        Verdict::PassDecapsulated,
                        None,
                        &expected,
                    )?;
                    assert!(packet.source.is_ipv6() || checksum_is_right(&left[14..]));
                }
            }
        }
    }
    Ok(())
}

/// The update of a checksum has corners at 0x0000 and 0xffff.
#[test]
fn the_inner_checksum_is_right_whatever_it_was() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::worker(with_tunnel(Tables::new(0)))?;
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)).payload(0).tos(0b10);
    for identification in (0..=u16::MAX).step_by(7).chain(0xff00..=u16::MAX) {
        let with = |packet: Packet| {
            let mut ip = packet.ip();
            ip[4..6].copy_from_slice(&identification.to_be_bytes());
            checksummed(ip)
        };
        let frame = tunnel_frame(tunnels()[0], &[], 0b11, &with(packet.clone()));
        let expected = with(packet.clone().tos(0b11).hops(56));
        let ran = bed.kernel.run(&frame)?;
        let mut left = ran.frame[14..].to_vec();
        // Of the two zeroes of one's complement either is right (RFC 1624, 3).
        let checksum = u16::from_be_bytes([left[10], left[11]]);
        if checksum == 0xffff && expected[10..12] == [0, 0] {
            left[10..12].copy_from_slice(&[0, 0]);
        }
        assert_eq!(left, expected, "identification {identification:#06x}");
    }
    bed.recount()
}
