//! Frames that are cut short and headers that lie. What fits together is carried; what does not is never read past its end.

use anyhow::Result;
use xdp_prog::{host::Host, verdict::Verdict};

use crate::support::{
    bed::{Bed, Sent},
    frames::{
        DOT1AD, DOT1Q, ETHERTYPE_IPV4, ETHERTYPE_IPV6, LB_MAC, Packet, ROUTER_MAC, TCP, UDP, edited, framed_as,
        ip_header, tunnel_protocol,
    },
    site::{CLIENT_V4, CLIENT_V6, LOOPBACK, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

const WAY: fn(u8) -> Way = Way::v4;

fn bed() -> Result<Bed> {
    let mut tables = Tables::new(0);
    let backend = tables.backend(WAY(1).line());
    tables.vip(VIP_V4, TCP, 80, &[backend]);
    tables.vip(VIP_V4, UDP, 53, &[backend]);
    tables.vip(VIP_V6, TCP, 80, &[backend]);
    tables.vip(VIP_V6, UDP, 53, &[backend]);
    Bed::balancer(tables)
}

/// One packet for each of the four VIPs, with the length of the headers that must be there.
fn packets() -> [(u32, Packet, usize); 4] {
    [
        (1, Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)), 40),
        (2, Packet::udp(CLIENT_V4, &at(VIP_V4, 53)), 28),
        (3, Packet::tcp(CLIENT_V6, &at(VIP_V6, 80)), 60),
        (4, Packet::udp(CLIENT_V6, &at(VIP_V6, 53)), 48),
    ]
}

/// The frame that leaves where the IP header says `ip_len` and the frame holds more.
fn carried(frame: &[u8], ip_len: usize) -> Vec<u8> {
    let way = WAY(1);
    let ip = &frame[14..];
    let tos = 0;
    let mut outer = ip_header(way.source, way.destination, tunnel_protocol(ip), tos, 64, ip_len);
    outer.extend_from_slice(ip);
    framed_as(way.next_hop, way.egress, &[], ETHERTYPE_IPV4, &outer)
}

#[test]
fn frames_cut_short_anywhere_are_dropped_or_passed_and_never_sent() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    for tags in [&[][..], &[(DOT1Q, 3)], &[(DOT1AD, 3), (DOT1Q, 4)]] {
        for (_, packet, _) in packets() {
            let packet = packet.tagged(tags);
            let frame = packet.frame();
            let network = 14 + 4 * tags.len() + if packet.source.is_ipv4() { 20 } else { 40 };
            for len in 0..frame.len() {
                let what = format!("the first {len} bytes of {packet:?}");
                // Less than an IP header says nothing; more than one says that it is for a VIP.
                let verdict = if len < network {
                    Verdict::PassUnparsed
                } else {
                    Verdict::DropMalformed
                };
                if len < 14 {
                    assert!(
                        bed.kernel.run(&frame[..len]).is_err(),
                        "{what}: the kernel takes no such frame"
                    );
                    let outcome = Host::new(bed.tables.view(), LOOPBACK).balance(&frame[..len]);
                    assert_eq!(
                        (outcome.verdict, &outcome.frame[..]),
                        (verdict, &frame[..len]),
                        "{what}"
                    );
                } else {
                    bed.unchanged(&what, &frame[..len], verdict)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_length_in_the_ip_header_is_believed_where_the_frame_bears_it_out() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    for (vip, packet, headers) in packets() {
        let packet = packet.payload(30);
        let has = packet.ip().len();
        let lengths = (0..=has + 3).chain([255, 256, 1480, 0x7fff, 0x8000, 0xff00, 0xffff]);
        for says in lengths {
            let is_v4 = packet.source.is_ipv4();
            if !is_v4 && says < 40 {
                continue; // IPv6 counts from behind its header.
            }
            let frame = edited(&packet, |ip| {
                let field = (if is_v4 { says } else { says - 40 }) as u16;
                let at = if is_v4 { 2 } else { 4 };
                ip[at..at + 2].copy_from_slice(&field.to_be_bytes());
            });
            let what = format!("{packet:?} that says it has {says} of {has} bytes");
            if (headers..=has).contains(&says) {
                let sent = Sent {
                    vip,
                    backend: 1,
                    bytes: says as u64,
                };
                bed.becomes(&what, &frame, Verdict::ForwardTx, Some(sent), &carried(&frame, says))?;
            } else {
                bed.unchanged(&what, &frame, Verdict::DropMalformed)?;
            }
        }
    }
    Ok(())
}

#[test]
fn header_lengths_that_cannot_be_are_malformed() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    for (vip, packet, _) in &packets()[..2] {
        for ihl in 0..=15_u8 {
            let frame = edited(&packet.clone().payload(60), |ip| ip[0] = 0x40 | ihl);
            let what = format!("a header of {ihl} words");
            match ihl {
                0..=4 => bed.unchanged(&what, &frame, Verdict::DropMalformed)?,
                5 => {
                    let bytes = packet.clone().payload(60).bytes();
                    let sent = Sent {
                        vip: *vip,
                        backend: 1,
                        bytes,
                    };
                    bed.becomes(
                        &what,
                        &frame,
                        Verdict::ForwardTx,
                        Some(sent),
                        &carried(&frame, bytes as usize),
                    )?
                }
                _ => bed.unchanged(&what, &frame, Verdict::SlowIpOptions)?,
            };
        }
    }
    Ok(())
}

#[test]
fn a_version_that_contradicts_the_ethertype_is_not_ours_to_judge() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    for (vip, packet, _) in packets() {
        let (right, ethertype) = if packet.source.is_ipv4() {
            (4, ETHERTYPE_IPV4)
        } else {
            (6, ETHERTYPE_IPV6)
        };
        for version in 0..=15_u8 {
            let mut ip = packet.ip();
            ip[0] = version << 4 | ip[0] & 0xf;
            let frame = framed_as(LB_MAC, ROUTER_MAC, &[], ethertype, &ip);
            if version == right {
                let sent = Sent {
                    vip,
                    backend: 1,
                    bytes: packet.bytes(),
                };
                bed.becomes(
                    "right",
                    &frame,
                    Verdict::ForwardTx,
                    Some(sent),
                    &carried(&frame, ip.len()),
                )?;
            } else {
                bed.unchanged(&format!("version {version}"), &frame, Verdict::PassUnparsed)?;
            }
        }
        // And the other family's ethertype on a packet that is long enough for both.
        let other = if right == 4 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        let frame = framed_as(LB_MAC, ROUTER_MAC, &[], other, &packet.payload(60).ip());
        bed.unchanged("the other ethertype", &frame, Verdict::PassUnparsed)?;
    }
    Ok(())
}

/// The worker's stack checks these; an L4 balancer that did would pay for it with every packet.
#[test]
fn what_the_balancer_does_not_read_is_carried_as_it_is() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    for (vip, packet, headers) in packets() {
        let l4 = if packet.source.is_ipv4() { 20 } else { 40 };
        let mut edits: Vec<(&str, usize, u8)> = vec![("the transport checksum", headers - 2, 0xff)];
        if packet.protocol == TCP {
            edits.push(("a data offset of 0", l4 + 12, 0x00));
            edits.push(("a data offset of 15 words", l4 + 12, 0xf0));
        } else {
            edits.push(("a UDP length of 0", l4 + 5, 0));
            edits.push(("a UDP length beyond the packet", l4 + 4, 0xff));
        }
        if l4 == 20 {
            edits.push(("a TTL of 0", 8, 0));
            edits.push(("an identification", 5, 0x77));
        } else {
            edits.push(("a hop limit of 0", 7, 0));
            edits.push(("a flow label", 3, 0x77));
        }
        for (what, at, value) in edits {
            let frame = edited(&packet, |ip| ip[at] = value);
            let sent = Sent {
                vip,
                backend: 1,
                bytes: packet.bytes(),
            };
            let expected = carried(&frame, packet.ip().len());
            bed.becomes(what, &frame, Verdict::ForwardTx, Some(sent), &expected)?;
        }
    }
    // Nor the checksum of the IP header: the worker's stack drops such a packet.
    let (vip, packet, _) = &packets()[0];
    let mut frame = packet.frame();
    frame[14 + 10] ^= 0x55;
    let sent = Sent {
        vip: *vip,
        backend: 1,
        bytes: packet.bytes(),
    };
    bed.becomes(
        "a wrong checksum",
        &frame,
        Verdict::ForwardTx,
        Some(sent),
        &carried(&frame, packet.ip().len()),
    )?;
    Ok(())
}
