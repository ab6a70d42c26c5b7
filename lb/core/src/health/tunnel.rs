//! A probe through the tunnel: a SYN to a VIP in the outer header that the VIP's packets have, what comes back for it, and the reset
//! that ends it.
//!
//! Never sends anything. The SYN has a source of this LB node's own, so the answer comes to it as the answer of a VIP comes to any
//! client: from the node, directly. What is asked for stands in the ports and sequence numbers; an answer to something else is none.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TcpHeader, TransportSlice};

use crate::desired::{Via, VlanTags};

/// Source ports of probes: above those that Linux gives to connections of its own (`ip_local_port_range` ends at 60999), so that no
/// connection of this host is in the way.
pub const PROBE_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

const HOP_LIMIT: u8 = 64;
const WINDOW: u16 = 65_535;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
const TAG_8021Q: u16 = 0x8100;
const TAG_8021AD: u16 = 0x88a8;

/// A probe, as it stands in its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelProbe {
    /// An address of this node's, of the VIP's family, and a port of [`PROBE_PORTS`].
    pub source: SocketAddr,
    /// Address and port of the VIP.
    pub vip: SocketAddr,
    /// Initial sequence number.
    pub isn: u32,
}

/// What came from a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who says it: the VIP.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What it acknowledges.
    pub acknowledgment: u32,
    /// A connection was begun, which wants to be ended; else it was refused.
    pub accepted: bool,
}

impl TunnelProbe {
    /// The frame of the SYN, by `via` to the node at `node`. `None` where source and VIP, or outer source and node, are of different
    /// families.
    pub fn syn(&self, via: &Via, node: IpAddr) -> Option<Vec<u8>> {
        let mut syn = TcpHeader::new(self.source.port(), self.vip.port(), self.isn, WINDOW);
        syn.syn = true;
        self.frame(syn, via, node)
    }

    /// The frame of the reset that ends the connection which the SYN began.
    pub fn reset(&self, via: &Via, node: IpAddr) -> Option<Vec<u8>> {
        let sequence = self.isn.wrapping_add(1);
        let mut reset = TcpHeader::new(self.source.port(), self.vip.port(), sequence, 0);
        reset.rst = true;
        self.frame(reset, via, node)
    }

    /// Whether this answers it.
    pub fn is_answered_by(&self, answer: &Answer) -> bool {
        answer.from == self.vip && answer.to == self.source && answer.acknowledgment == self.isn.wrapping_add(1)
    }

    fn frame(&self, mut segment: TcpHeader, via: &Via, node: IpAddr) -> Option<Vec<u8>> {
        let (source, vip) = (self.source.ip(), self.vip.ip());
        let checksum = match (source, vip) {
            (IpAddr::V4(source), IpAddr::V4(vip)) => segment.calc_checksum_ipv4_raw(source.octets(), vip.octets(), &[]),
            (IpAddr::V6(source), IpAddr::V6(vip)) => segment.calc_checksum_ipv6_raw(source.octets(), vip.octets(), &[]),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        segment.checksum = checksum.ok()?;
        let inner = packet(source, vip, IpNumber::TCP, &segment.to_bytes())?;
        let inner_is = if vip.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 };
        let outer = packet(via.source, node, inner_is, &inner)?;
        let ethertype = if node.is_ipv4() { ETHERTYPE_V4 } else { ETHERTYPE_V6 };
        Some([link(via, ethertype).as_slice(), &outer].concat())
    }
}

impl Answer {
    /// Reads a packet, from its IP header on. `None`: neither a SYN-ACK nor a reset with an acknowledgment.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ip(packet).ok()?;
        let (from, to): (IpAddr, IpAddr) = match sliced.net? {
            NetSlice::Ipv4(v4) => (v4.header().source_addr().into(), v4.header().destination_addr().into()),
            NetSlice::Ipv6(v6) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
            NetSlice::Arp(_) => return None,
        };
        let Some(TransportSlice::Tcp(segment)) = sliced.transport else {
            return None;
        };
        let is_answer = segment.ack() && (segment.syn() || segment.rst());
        is_answer.then(|| Self {
            from: SocketAddr::new(from, segment.source_port()),
            to: SocketAddr::new(to, segment.destination_port()),
            acknowledgment: segment.acknowledgment_number(),
            accepted: segment.syn() && !segment.rst(),
        })
    }
}

/// Ethernet, with the tags of the way.
fn link(via: &Via, ethertype: u16) -> Vec<u8> {
    let mut link = [via.destination_mac, via.source_mac].concat();
    let mut push = |word: u16| link.extend_from_slice(&word.to_be_bytes());
    match via.tags {
        // A probe came with none.
        None | Some(VlanTags::Untagged) => {}
        Some(VlanTags::One(tci)) => [TAG_8021Q, tci].into_iter().for_each(&mut push),
        Some(VlanTags::Two { outer, inner, ad }) => {
            let first = if ad { TAG_8021AD } else { TAG_8021Q };
            [first, outer, TAG_8021Q, inner].into_iter().for_each(&mut push);
        }
    }
    push(ethertype);
    link
}

/// A packet that nobody on the way may fragment.
fn packet(source: IpAddr, destination: IpAddr, protocol: IpNumber, payload: &[u8]) -> Option<Vec<u8>> {
    let header = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(payload.len()).ok()?;
            let mut header =
                Ipv4Header::new(length, HOP_LIMIT, protocol, source.octets(), destination.octets()).ok()?;
            header.dont_fragment = true;
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => v6(source, destination, protocol, payload.len())?,
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    Some([header.as_slice(), payload].concat())
}

fn v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: IpNumber, length: usize) -> Option<Vec<u8>> {
    let header = Ipv6Header {
        payload_length: u16::try_from(length).ok()?,
        next_header: protocol,
        hop_limit: HOP_LIMIT,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    };
    Some(header.to_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use etherparse::{LinkSlice, PacketBuilder, TcpOptionElement};

    use super::*;

    const V4: [&str; 3] = ["192.0.2.10:61234", "203.0.113.7:443", "192.0.2.77"];
    const V6: [&str; 3] = ["[2001:db8::10]:61234", "[2001:db8:f00d::7]:443", "2001:db8::77"];

    fn via(source: &str, tags: Option<VlanTags>) -> Via {
        Via {
            ifindex: 3,
            port: 0,
            destination_mac: [2, 0, 0, 0, 0, 1],
            source_mac: [2, 0, 0, 0, 0, 2],
            source: source.parse().unwrap(),
            mtu: 1500,
            tags,
        }
    }

    fn probe([source, vip, _]: [&str; 3]) -> TunnelProbe {
        TunnelProbe {
            source: source.parse().unwrap(),
            vip: vip.parse().unwrap(),
            isn: u32::MAX,
        }
    }

    /// Addresses, the inner packet and whether its checksums hold, of a packet from its IP header on.
    fn opened(packet: &[u8]) -> (IpAddr, IpAddr, IpNumber, Vec<u8>) {
        match SlicedPacket::from_ip(packet).unwrap().net.unwrap() {
            NetSlice::Ipv4(v4) => {
                let header = v4.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert!(header.dont_fragment);
                let payload = packet[header.header_len()..].to_vec();
                (
                    header.source.into(),
                    header.destination.into(),
                    header.protocol,
                    payload,
                )
            }
            NetSlice::Ipv6(v6) => {
                let header = v6.header().to_header();
                assert_eq!(usize::from(header.payload_length), packet.len() - 40);
                (
                    header.source.into(),
                    header.destination.into(),
                    header.next_header,
                    packet[40..].to_vec(),
                )
            }
            NetSlice::Arp(_) => panic!("no ARP"),
        }
    }

    #[test]
    fn a_probe_is_a_syn_to_the_vip_in_the_outer_header_of_either_family() {
        for (inside, outside) in [(V4, V4), (V6, V6), (V4, V6), (V6, V4)] {
            let probe = probe(inside);
            let node: IpAddr = outside[2].parse().unwrap();
            let outer_source: SocketAddr = outside[0].parse().unwrap();
            let via = via(&outer_source.ip().to_string(), None);
            let frame = probe.syn(&via, node).unwrap();
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(LinkSlice::Ethernet2(ethernet)) = sliced.link else {
                panic!("{sliced:?}")
            };
            assert_eq!(
                (ethernet.destination(), ethernet.source()),
                (via.destination_mac, via.source_mac)
            );
            let (from, to, protocol, inner) = opened(&frame[14..]);
            assert_eq!((from, to), (via.source, node));
            assert_eq!(
                protocol,
                if probe.vip.is_ipv4() {
                    IpNumber::IPV4
                } else {
                    IpNumber::IPV6
                }
            );
            let (from, to, protocol, segment) = opened(&inner);
            assert_eq!((from, to, protocol), (probe.source.ip(), probe.vip.ip(), IpNumber::TCP));
            let (header, rest) = TcpHeader::from_slice(&segment).unwrap();
            assert!(header.syn && !header.ack && !header.rst && rest.is_empty());
            assert_eq!(
                (header.source_port, header.destination_port, header.sequence_number),
                (61_234, 443, u32::MAX)
            );
            let checksum = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[]),
                (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[]),
                _ => panic!("families"),
            };
            assert_eq!(header.checksum, checksum.unwrap());
            let (_, _, _, inner) = opened(&probe.reset(&via, node).unwrap()[14..]);
            let (header, _) = TcpHeader::from_slice(&opened(&inner).3).unwrap();
            assert!(header.rst && !header.syn && !header.ack);
            assert_eq!(header.sequence_number, 0, "after the SYN, round the end");
        }
    }

    #[test]
    fn families_that_do_not_go_together_make_no_frame() {
        let node: IpAddr = V4[2].parse().unwrap();
        assert_eq!(probe(V4).syn(&via("2001:db8::1", None), node), None);
        let mixed = TunnelProbe {
            vip: V6[1].parse().unwrap(),
            ..probe(V4)
        };
        assert_eq!(mixed.syn(&via("192.0.2.10", None), node), None);
    }

    #[test]
    fn tags_of_the_way_are_sent() {
        let node: IpAddr = V4[2].parse().unwrap();
        let ids = |tags| {
            let frame = probe(V4).syn(&via("192.0.2.10", tags), node).unwrap();
            let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
            let ids: Vec<u16> = sliced.vlan_ids().iter().map(|id| id.value()).collect();
            assert!(matches!(sliced.net, Some(NetSlice::Ipv4(_))));
            (ids, u16::from_be_bytes([frame[12], frame[13]]))
        };
        let two = |ad| VlanTags::Two {
            outer: 100,
            inner: 200,
            ad,
        };
        assert_eq!(ids(Some(VlanTags::Untagged)), (vec![], ETHERTYPE_V4));
        assert_eq!(ids(Some(VlanTags::One(100))), (vec![100], TAG_8021Q));
        assert_eq!(ids(Some(two(true))), (vec![100, 200], TAG_8021AD));
        assert_eq!(ids(Some(two(false))), (vec![100, 200], TAG_8021Q));
    }

    fn reply(flags: &str, acknowledgment: u32) -> Vec<u8> {
        let builder = PacketBuilder::ipv4([203, 0, 113, 7], [192, 0, 2, 10], 60).tcp(443, 61_234, 7, 1000);
        let builder = match flags {
            "syn-ack" => builder.syn().ack(acknowledgment),
            "rst-ack" => builder.rst().ack(acknowledgment),
            "rst" => builder.rst(),
            "ack" => builder.ack(acknowledgment),
            _ => builder.syn(),
        };
        let builder = builder.options(&[TcpOptionElement::MaximumSegmentSize(1460)]).unwrap();
        let mut packet = Vec::new();
        builder.write(&mut packet, &[]).unwrap();
        packet
    }

    #[test]
    fn an_answer_is_known_by_addresses_ports_and_number() {
        let probe = probe(V4);
        let read = |flags, acknowledgment| Answer::read(&reply(flags, acknowledgment));
        let accepted = read("syn-ack", 0).unwrap();
        assert!(probe.is_answered_by(&accepted) && accepted.accepted);
        let refused = read("rst-ack", 0).unwrap();
        assert!(probe.is_answered_by(&refused) && !refused.accepted);
        assert!(!probe.is_answered_by(&read("syn-ack", 1).unwrap()), "another SYN's");
        for (other, what) in [
            (
                Answer {
                    from: "203.0.113.8:443".parse().unwrap(),
                    ..accepted
                },
                "another VIP",
            ),
            (
                Answer {
                    from: "203.0.113.7:444".parse().unwrap(),
                    ..accepted
                },
                "another port",
            ),
            (
                Answer {
                    to: "192.0.2.10:61235".parse().unwrap(),
                    ..accepted
                },
                "another probe",
            ),
        ] {
            assert!(!probe.is_answered_by(&other), "{what}");
        }
        for flags in ["rst", "ack", "syn"] {
            assert_eq!(read(flags, 0), None, "{flags}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = reply("syn-ack", 0);
        for end in 0..whole.len() {
            let _ = Answer::read(&whole[..end]);
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[end] ^= 1 << bit;
                let _ = Answer::read(&damaged);
            }
        }
    }
}
