//! Four kinds of tunnel, TCP and UDP, with and without VLAN tags: the whole frame, byte for byte.

use anyhow::Result;
use xdp_prog::{abi::BackendLine, verdict::Verdict};

use crate::support::{
    bed::{Bed, Sent},
    frames::{self, DOT1AD, DOT1Q, Packet, SYN, TCP, Tag, UDP},
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// A VIP of each family and protocol for each kind of way: port 1004 through IPv4, port 1006 through IPv6.
struct Grid {
    bed: Bed,
    cells: Vec<Cell>,
}

#[derive(Clone)]
struct Cell {
    packet: Packet,
    vip: u32,
    backend: u16,
    way: Way,
}

fn grid(line: impl Fn(&Way) -> BackendLine) -> Result<Grid> {
    let mut tables = Tables::new(0);
    let mut cells = Vec::new();
    let mut number = 0;
    for (client, address) in [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)] {
        for protocol in [TCP, UDP] {
            for (port, v6) in [(1004, false), (1006, true)] {
                number += 1;
                let way = if v6 { Way::v6(number) } else { Way::v4(number) };
                let backend = tables.backend(line(&way));
                let vip = tables.vip(address, protocol, port, &[backend]);
                let packet = if protocol == TCP { Packet::tcp } else { Packet::udp }(client, &at(address, port));
                cells.push(Cell {
                    packet,
                    vip,
                    backend,
                    way,
                });
            }
        }
    }
    Ok(Grid {
        bed: Bed::balancer(tables)?,
        cells,
    })
}

#[test]
fn every_kind_of_tunnel_carries_tcp_and_udp() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let Grid { mut bed, cells } = grid(Way::line)?;
    for Cell {
        packet,
        vip,
        backend,
        way,
    } in cells
    {
        bed.forwards(&packet, vip, backend, &way)?;
        bed.forwards(&packet.flags(SYN).payload(0), vip, backend, &way)?;
    }
    Ok(())
}

#[test]
fn vlan_tags_of_the_packet_are_kept() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let Grid { mut bed, cells } = grid(Way::line)?;
    let kinds: [&[Tag]; 6] = [
        &[],
        &[(DOT1Q, 100)],
        &[(DOT1Q, 0xefff)],
        &[(DOT1AD, 7)],
        &[(DOT1AD, 200), (DOT1Q, 300)],
        &[(DOT1Q, 0x2001), (DOT1Q, 1)],
    ];
    for tags in kinds {
        for Cell {
            packet,
            vip,
            backend,
            way,
        } in cells.clone()
        {
            bed.forwards(&packet.tagged(tags), vip, backend, &way)?;
        }
    }
    Ok(())
}

#[test]
fn tags_of_the_way_replace_those_of_the_packet() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let own: [&[Tag]; 5] = [
        &[],
        &[(DOT1Q, 0x6123)],
        &[(DOT1AD, 0x0456)],
        &[(DOT1Q, 11), (DOT1Q, 22)],
        &[(DOT1AD, 0xf00f), (DOT1Q, 0x0ff0)],
    ];
    let came: [&[Tag]; 3] = [&[], &[(DOT1Q, 100)], &[(DOT1AD, 200), (DOT1Q, 300)]];
    for tags in own {
        let Grid { mut bed, cells } = grid(|way| way.tagged_line(tags))?;
        for with in came {
            for Cell {
                packet,
                vip,
                backend,
                way,
            } in cells.clone()
            {
                let packet = packet.tagged(with);
                let sent = Sent {
                    vip,
                    backend,
                    bytes: packet.bytes(),
                };
                let what = format!("{packet:?} to a way with {tags:?}");
                let expected = way.carries_with(&packet, tags);
                bed.becomes(&what, &packet.frame(), Verdict::ForwardTx, Some(sent), &expected)?;
            }
        }
    }
    Ok(())
}

#[test]
fn type_of_service_and_traffic_class_are_copied_whatever_they_are() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let Grid { mut bed, cells } = grid(Way::line)?;
    for Cell {
        packet,
        vip,
        backend,
        way,
    } in cells
    {
        for tos in 0..=u8::MAX {
            bed.forwards(&packet.clone().tos(tos), vip, backend, &way)?;
        }
    }
    Ok(())
}

#[test]
fn lengths_and_the_outer_checksum_are_right_for_every_size_that_fits() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let Grid { mut bed, cells } = grid(Way::line)?;
    for Cell {
        packet,
        vip,
        backend,
        way,
    } in cells
    {
        let most = 1500 - way.overhead();
        let least = packet.clone().payload(0).ip().len();
        // Every size up to where one byte has wrapped, then strides, then the last ones.
        for ip_len in (least..340).chain((340..most).step_by(37)).chain(most - 3..=most) {
            let packet = packet.clone().ip_len(ip_len);
            let left = bed.forwards(&packet, vip, backend, &way)?;
            assert!(
                way.destination.is_ipv6() || frames::checksum_is_right(&left[14..]),
                "{ip_len} bytes"
            );
        }
    }
    Ok(())
}

#[test]
fn padding_behind_the_ip_packet_is_carried_and_not_counted() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let Grid { mut bed, cells } = grid(Way::line)?;
    for Cell {
        packet,
        vip,
        backend,
        way,
    } in cells
    {
        let packet = packet.payload(0);
        for padding in [1, 6, 18, 100] {
            let mut frame = packet.frame();
            frame.resize(frame.len() + padding, 0xa5);
            let mut expected = way.carries(&packet);
            expected.resize(expected.len() + padding, 0xa5);
            let sent = Sent {
                vip,
                backend,
                bytes: packet.bytes(),
            };
            let what = format!("{padding} bytes behind {packet:?}");
            bed.becomes(&what, &frame, Verdict::ForwardTx, Some(sent), &expected)?;
        }
    }
    Ok(())
}

#[test]
fn the_outer_header_is_what_rfc_2003_and_2473_ask_for() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let Grid { bed, cells } = grid(Way::line)?;
    for Cell { packet, way, .. } in cells {
        let left = bed.kernel.run(&packet.clone().tos(0xb8).hops(3).frame())?.frame;
        let sliced = etherparse::SlicedPacket::from_ethernet(&left)?;
        match sliced.net {
            Some(etherparse::NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                assert_eq!(header.source_addr(), way.source);
                assert_eq!(header.destination_addr(), way.destination);
                assert!(header.dont_fragment() && !header.more_fragments(), "DF is set");
                assert_eq!((header.ttl(), header.identification()), (64, 0));
                assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
                assert_eq!(usize::from(header.total_len()), 20 + packet.ip().len());
            }
            Some(etherparse::NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                assert_eq!(header.source_addr(), way.source);
                assert_eq!(header.destination_addr(), way.destination);
                assert_eq!((header.hop_limit(), header.traffic_class()), (64, 0xb8));
                assert_eq!(header.flow_label().value(), 0);
                assert_eq!(usize::from(header.payload_length()), packet.ip().len());
            }
            Some(etherparse::NetSlice::Arp(_)) | None => panic!("no IP packet left"),
        }
    }
    Ok(())
}
