//! What every frame that leaves must be, whatever came in. Never looks at how it was made.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use lb_core::slow::{Link, Outcome, Output, Packet, To};

use super::{
    frames::{octets, sum},
    world::{IFINDEX, LB_V4, LB_V6, MAC, NEXT_HOP_MAC, address},
};

/// Most bytes that an answer or an outer header adds.
const MOST_ADDED: usize = 64;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Checks what came of a step; `input` is the frame that caused it, `None` for what was due.
pub(super) fn output(out: &Output, input: Option<&[u8]>) {
    // A fragment may let go others that waited for it.
    let alone = |frame: &[u8]| Packet::parse(frame).map_or(true, |packet| packet.fragment.is_none());
    let one = out.frames.len() == 1 && input.is_some_and(alone);
    for sent in &out.frames {
        match sent.to {
            To::Kernel => kernel(&sent.frame, input.filter(|_| one)),
            To::Interface(ifindex) => {
                assert!(ifindex == IFINDEX || ifindex == IFINDEX + 1, "sent out of {ifindex}");
                let link = Link::parse(&sent.frame).unwrap();
                if link.destination_mac() == NEXT_HOP_MAC {
                    forwarded(&sent.frame, 0);
                } else {
                    assert_eq!(ifindex, IFINDEX, "an answer goes where the question came from");
                    answer(&link, input);
                }
            }
        }
        if let Some(input) = input.filter(|_| one) {
            assert!(
                sent.frame.len() <= input.len() + MOST_ADDED,
                "{} bytes of {}",
                sent.frame.len(),
                input.len()
            );
        }
    }
    let counted = |outcome: Outcome| out.counts.iter().filter(|(_, counted, _)| *counted == outcome).count();
    let split = counted(Outcome::Split) > 0;
    // Each packet leaves once, but for those in pieces.
    let left: u64 = out
        .counts
        .iter()
        .filter(|(_, outcome, _)| leaves(*outcome))
        .map(|(_, _, count)| count)
        .sum();
    assert!(
        split || out.frames.len() as u64 == left,
        "{} frames of {left} packets",
        out.frames.len()
    );
}

/// Whether a packet with this outcome makes a frame.
fn leaves(outcome: Outcome) -> bool {
    use lb_core::slow::End;
    outcome.end() != End::Dropped
}

fn kernel(frame: &[u8], input: Option<&[u8]>) {
    assert!(
        input.is_none_or(|input| input.starts_with(frame)),
        "the kernel gets what came"
    );
    Packet::parse(frame).unwrap();
}

/// Bytes of the largest IP packet on the way to a backend.
fn mtu(backend: IpAddr) -> usize {
    match backend {
        IpAddr::V4(backend) => match backend.octets()[3] {
            2 => 9000,
            4 => 600,
            5 => 1400,
            _ => 1500,
        },
        IpAddr::V6(_) => 1500,
    }
}

/// Checks a frame that goes to a backend, and gives the inner packet. `padding`: bytes behind it, which the program leaves there.
pub(super) fn forwarded(frame: &[u8], padding: usize) -> &[u8] {
    let outer = Packet::parse(frame).unwrap();
    assert_eq!(outer.link.source_mac(), MAC);
    assert_eq!(
        outer.ip.len() + padding,
        outer.link.payload.len(),
        "bytes behind the packet"
    );
    assert!(
        outer.source == address(LB_V4) || outer.source == address(LB_V6),
        "{outer:?}"
    );
    assert!(
        outer.ip.len() <= mtu(outer.destination),
        "{} bytes to {}",
        outer.ip.len(),
        outer.destination
    );
    assert!(outer.fragment.is_none(), "workers cannot put outer fragments together");
    header_sum(&outer);
    let inner = outer.payload();
    match (outer.protocol, inner.first().map(|first| first >> 4)) {
        (4, Some(4)) => assert_eq!(inner.len(), usize::from(u16::from_be_bytes([inner[2], inner[3]]))),
        (41, Some(6)) => assert_eq!(inner.len(), 40 + usize::from(u16::from_be_bytes([inner[4], inner[5]]))),
        (protocol, version) => panic!("IP version {version:?} as protocol {protocol}"),
    }
    let to = match outer.protocol {
        4 => IpAddr::from(<[u8; 4]>::try_from(&inner[16..20]).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&inner[24..40]).unwrap()),
    };
    assert!(is_vip(to), "to {to}");
    inner
}

fn answer(link: &Link<'_>, input: Option<&[u8]>) {
    assert_eq!(link.source_mac(), MAC);
    if link.ethertype == Link::ARP {
        let arp = link.payload;
        assert!(!is_group(link.destination_mac()));
        assert_eq!(&arp[..8], [0, 1, 8, 0, 6, 4, 0, 2]);
        assert_eq!(arp[8..14], MAC);
        assert!(is_vip(IpAddr::from([arp[14], arp[15], arp[16], arp[17]])));
        assert_eq!(&arp[18..24], link.destination_mac());
        return;
    }
    let frame = [link.bytes, link.payload].concat();
    let packet = Packet::parse(&frame).unwrap();
    let (source, to) = (packet.source, packet.destination);
    assert_eq!(packet.ip.len(), link.payload.len(), "nothing behind the packet");
    assert!(is_vip(source), "from {source}");
    let message = packet.payload();
    let advertisement = packet.protocol == 58 && message.first() == Some(&136);
    if advertisement {
        assert_eq!(packet.hop_limit, 255);
    }
    if !(advertisement && to == ALL_NODES) {
        assert!(
            !to.is_multicast() && !to.is_unspecified() && to != address("255.255.255.255"),
            "to {to}"
        );
        assert!(!is_group(link.destination_mac()), "{:x?}", link.destination_mac());
    }
    assert_ne!(source, to);
    header_sum(&packet);
    let is_echo = |message: &[u8]| matches!((packet.protocol, message.first()), (1, Some(0)) | (58, Some(129)));
    if packet.fragment.is_none() && (!is_echo(message) || input.is_some_and(sums_right)) {
        assert_eq!(transport_sum(&packet), 0, "{packet:?}");
    }
}

/// Whether a whole packet's own checksum is right: an echo reply carries on what was wrong with the request.
fn sums_right(frame: &[u8]) -> bool {
    Packet::parse(frame).is_ok_and(|packet| packet.fragment.is_none() && transport_sum(&packet) == 0)
}

/// 0 where the checksum is right.
pub(super) fn transport_sum(packet: &Packet<'_>) -> u16 {
    if packet.protocol == 1 {
        Sum16BitWords::new()
            .add_slice(packet.payload())
            .ones_complement()
            .to_be()
    } else {
        sum(
            &octets(packet.source),
            &octets(packet.destination),
            packet.protocol,
            packet.payload(),
        )
    }
}

fn header_sum(packet: &Packet<'_>) {
    if packet.destination.is_ipv4() {
        let header = &packet.ip[..packet.header_len];
        assert_eq!(
            Sum16BitWords::new().add_slice(header).ones_complement(),
            0,
            "{header:x?}"
        );
    }
}

fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}

fn is_vip(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [203, 0, 113],
        IpAddr::V6(address) => address.segments()[..3] == [0x2001, 0xdb8, 0xf],
    }
}
