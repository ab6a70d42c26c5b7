//! Crafted packets: datagrams in tunnels, as an LB node sends them and as none should.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket,
    TransportSlice, UdpHeader,
};

/// A UDP datagram, whole: also what is left of one when it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// TTL or hop limit.
    pub(crate) hops: u8,
    /// Type of service or traffic class.
    pub(crate) tos: u8,
    pub(crate) payload: Vec<u8>,
}

impl Datagram {
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr, payload: &str) -> Self {
        Self {
            source,
            destination,
            hops: 64,
            tos: 0,
            payload: payload.as_bytes().to_vec(),
        }
    }

    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let (source, destination) = (self.source, self.destination);
        let udp = match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = (from.octets(), to.octets());
                let header = UdpHeader::without_ipv4_checksum(source.port(), destination.port(), self.payload.len());
                let mut header = header.expect("a payload that fits");
                header.checksum = header
                    .calc_checksum_ipv4_raw(from, to, &self.payload)
                    .expect("a payload that fits");
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let header = UdpHeader::without_ipv4_checksum(source.port(), destination.port(), self.payload.len());
                let mut header = header.expect("a payload that fits");
                let (from, to) = (from.octets(), to.octets());
                header.checksum = header
                    .calc_checksum_ipv6_raw(from, to, &self.payload)
                    .expect("a payload that fits");
                header
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
        };
        let mut rest = udp.to_bytes().to_vec();
        rest.extend(&self.payload);
        behind_ip(source.ip(), destination.ip(), 17, (self.hops, self.tos), &rest)
    }

    /// The datagram in a frame; `None` for anything else, tunnelled datagrams included.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (source, destination, hops, tos): (IpAddr, IpAddr, u8, u8) = match packet.net? {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header();
                let tos = ip.dcp().value() << 2 | ip.ecn().value();
                (ip.source_addr().into(), ip.destination_addr().into(), ip.ttl(), tos)
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header();
                (
                    ip.source_addr().into(),
                    ip.destination_addr().into(),
                    ip.hop_limit(),
                    ip.traffic_class(),
                )
            }
            NetSlice::Arp(_) => return None,
        };
        let TransportSlice::Udp(udp) = packet.transport? else {
            return None;
        };
        Some(Self {
            source: SocketAddr::new(source, udp.source_port()),
            destination: SocketAddr::new(destination, udp.destination_port()),
            hops,
            tos,
            payload: udp.payload().to_vec(),
        })
    }
}

/// `inner` (an IP packet) inside an outer header: RFC 2003, 2473, 4213.
pub(crate) fn tunnelled(source: IpAddr, destination: IpAddr, tos: u8, inner: &[u8]) -> Vec<u8> {
    let protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
    behind_ip(source, destination, protocol, (64, tos), inner)
}

/// An IP packet in a frame.
pub(crate) fn framed(destination: [u8; 6], source: [u8; 6], ip: &[u8]) -> Vec<u8> {
    let ether_type = if ip[0] >> 4 == 4 {
        EtherType::IPV4
    } else {
        EtherType::IPV6
    };
    let mut frame = Ethernet2Header {
        source,
        destination,
        ether_type,
    }
    .to_bytes()
    .to_vec();
    frame.extend(ip);
    frame
}

fn behind_ip(source: IpAddr, destination: IpAddr, protocol: u8, (hops, tos): (u8, u8), rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a payload that fits");
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header::new(length, hops, IpNumber(protocol), source.octets(), destination.octets());
            let mut header = header.expect("a payload that fits");
            header.dscp = IpDscp::try_new(tos >> 2).expect("six bits");
            header.ecn = IpEcn::try_new(tos & 3).expect("two bits");
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
            traffic_class: tos,
            payload_length: length,
            next_header: IpNumber(protocol),
            hop_limit: hops,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        }
        .to_bytes()
        .to_vec(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
    };
    packet.extend(rest);
    packet
}
