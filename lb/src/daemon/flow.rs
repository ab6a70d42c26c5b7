//! What a sampled frame says of itself: who talks to whom, in which tunnel. For people and for the filter by address; never decides
//! what becomes of a packet, and takes frames that are cut short for what is left of them.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice, icmpv6, ip_number};

use crate::control::FlowView;

/// Tunnels inside each other that are looked into.
const DEPTH: usize = 1;

/// A frame's flow.
pub(super) fn of(frame: &[u8]) -> FlowView {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok();
    packet.map_or_else(|| unknown("cut short".to_owned()), |packet| of_packet(&packet, DEPTH))
}

fn unknown(protocol: String) -> FlowView {
    FlowView {
        protocol,
        ..FlowView::default()
    }
}

fn of_packet(packet: &LaxSlicedPacket<'_>, depth: usize) -> FlowView {
    let (source, mut destination): (IpAddr, IpAddr) = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(LaxNetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(LaxNetSlice::Arp(arp)) => return arp_flow(arp.sender_protocol_addr(), arp.target_protocol_addr()),
        None => {
            let payload = packet.ether_payload();
            let named = payload.map(|payload| format!("ethertype {:#06x}", payload.ether_type.0));
            return unknown(named.unwrap_or_else(|| "cut short".to_owned()));
        }
    };
    let payload = packet.ip_payload();
    if let Some(payload) = payload
        && matches!(payload.ip_number, ip_number::IPV4 | ip_number::IPV6)
        && !payload.fragmented
        && depth > 0
        && let Ok(inner) = LaxSlicedPacket::from_ip(payload.payload)
    {
        return FlowView {
            outer: Some((source, destination)),
            ..of_packet(&inner, depth - 1)
        };
    }
    let number = payload.map(|payload| payload.ip_number);
    let (protocol, ports) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => ("tcp".to_owned(), Some((tcp.source_port(), tcp.destination_port()))),
        Some(TransportSlice::Udp(udp)) => ("udp".to_owned(), Some((udp.source_port(), udp.destination_port()))),
        Some(TransportSlice::Icmpv4(_)) => ("icmp".to_owned(), None),
        Some(TransportSlice::Icmpv6(icmp)) => {
            // A solicitation goes to a group; who is meant stands in it (RFC 4861, 4.3).
            let target = icmp
                .slice()
                .get(8..24)
                .and_then(|octets| <[u8; 16]>::try_from(octets).ok());
            if let (icmpv6::TYPE_NEIGHBOR_SOLICITATION, Some(target)) = (icmp.type_u8(), target) {
                destination = target.into();
            }
            ("icmpv6".to_owned(), None)
        }
        // A later fragment, one cut short, or what is no transport.
        Some(TransportSlice::Igmp(_)) | None => (number.map_or_else(|| "ip".to_owned(), protocol_name), None),
    };
    let text = |address: IpAddr, port: Option<u16>| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    FlowView {
        protocol,
        source: Some(text(source, ports.map(|(port, _)| port))),
        destination: Some(text(destination, ports.map(|(_, port)| port))),
        outer: None,
    }
}

fn protocol_name(number: IpNumber) -> String {
    match number {
        ip_number::TCP => "tcp".to_owned(),
        ip_number::UDP => "udp".to_owned(),
        ip_number::ICMP => "icmp".to_owned(),
        ip_number::IPV6_ICMP => "icmpv6".to_owned(),
        other => format!("ip proto {}", other.0),
    }
}

fn arp_flow(sender: &[u8], target: &[u8]) -> FlowView {
    let text = |address: &[u8]| {
        <[u8; 4]>::try_from(address)
            .ok()
            .map(|octets| IpAddr::from(octets).to_string())
    };
    FlowView {
        protocol: "arp".to_owned(),
        source: text(sender),
        destination: text(target),
        outer: None,
    }
}

/// Whether a flow names this address: in the innermost packet or in the tunnel's header.
pub(super) fn names(flow: &FlowView, address: IpAddr) -> bool {
    let is = |text: &Option<String>| {
        text.as_deref().is_some_and(|text| {
            let parsed = text.parse::<SocketAddr>().map(|at| at.ip());
            parsed
                .or_else(|_| text.parse::<IpAddr>())
                .is_ok_and(|found| found == address)
        })
    };
    let (source, destination) = (is(&flow.source), is(&flow.destination));
    let outer = flow.outer.is_some_and(|(from, to)| from == address || to == address);
    source || destination || outer
}

#[cfg(test)]
mod tests {
    use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpNumber, PacketBuilder};

    use super::{names, of};
    use crate::control::FlowView;

    fn plain() -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([198, 51, 100, 7], [203, 0, 113, 10], 64);
        builder.tcp(40_000, 80, 1, 1000).write(&mut frame, b"hello").unwrap();
        frame
    }

    fn tunnelled() -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64);
        builder.write(&mut frame, IpNumber::IPV4, &plain()[14..]).unwrap();
        frame
    }

    #[test]
    fn a_tunnelled_packet_is_seen_with_its_tunnel() {
        let flow = of(&tunnelled());
        assert_eq!(
            flow,
            FlowView {
                protocol: "tcp".to_owned(),
                source: Some("198.51.100.7:40000".to_owned()),
                destination: Some("203.0.113.10:80".to_owned()),
                outer: Some(([10, 0, 0, 9].into(), [10, 0, 0, 1].into())),
            }
        );
        for address in [[203, 0, 113, 10], [198, 51, 100, 7], [10, 0, 0, 1]] {
            assert!(names(&flow, address.into()), "{address:?}");
        }
        assert!(!names(&flow, [203, 0, 113, 1].into()));
    }

    #[test]
    fn arp_and_strangers_have_their_names() {
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REQUEST,
            &[2; 6],
            &[198, 51, 100, 7],
            &[0; 6],
            &[203, 0, 113, 10],
        );
        let mut frame = vec![2; 12];
        frame.extend([8, 6]);
        frame.extend(arp.unwrap().to_bytes());
        let flow = of(&frame);
        assert_eq!(
            (flow.protocol.as_str(), flow.destination.as_deref()),
            ("arp", Some("203.0.113.10"))
        );
        assert!(names(&flow, [203, 0, 113, 10].into()));

        let mut strange = vec![2; 12];
        strange.extend([0x88, 0xcc, 1, 2]);
        assert_eq!(of(&strange).protocol, "ethertype 0x88cc");
    }

    #[test]
    fn frames_cut_anywhere_are_taken_for_what_is_left() {
        for whole in [plain(), tunnelled()] {
            for length in 0..whole.len() {
                let flow = of(&whole[..length]);
                assert!(!flow.protocol.is_empty(), "{length} bytes: {flow:?}");
            }
        }
    }
}
