//! Packets as clients send them, and as they should look once encapsulated: etherparse, and a few bytes of our own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6Header, SingleVlanHeader, TcpHeader, UdpHeader,
};

/// One VLAN tag: TPID and TCI.
pub(crate) type Tag = (u16, u16);

/// 802.1Q.
pub(crate) const DOT1Q: u16 = 0x8100;
/// 802.1ad.
pub(crate) const DOT1AD: u16 = 0x88a8;
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const IPIP: u8 = 4;
pub(crate) const IPV6: u8 = 41;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// Where frames come to the LB node: its MAC address.
pub(crate) const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Where they come from.
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 254];

/// A packet, before it is bytes.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) tags: Vec<Tag>,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) tos: u8,
    pub(crate) hops: u8,
    pub(crate) payload: usize,
    /// Options of a TCP header, padded by whoever sets them.
    pub(crate) tcp_options: Vec<u8>,
}

impl Packet {
    /// A TCP packet of an established connection with ten bytes of payload.
    pub(crate) fn tcp(source: &str, destination: &str) -> Self {
        Self {
            tags: Vec::new(),
            source: source.parse().expect("a socket address"),
            destination: destination.parse().expect("a socket address"),
            protocol: TCP,
            tcp_flags: ACK,
            tos: 0,
            hops: 57,
            payload: 10,
            tcp_options: Vec::new(),
        }
    }

    /// A UDP packet with ten bytes of payload.
    pub(crate) fn udp(source: &str, destination: &str) -> Self {
        Self {
            protocol: UDP,
            ..Self::tcp(source, destination)
        }
    }

    pub(crate) fn tagged(mut self, tags: &[Tag]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    pub(crate) fn flags(mut self, tcp_flags: u8) -> Self {
        self.tcp_flags = tcp_flags;
        self
    }

    pub(crate) fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    pub(crate) fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    pub(crate) fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    pub(crate) fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    /// With as much payload as makes the IP packet `ip_len` bytes long.
    pub(crate) fn ip_len(self, ip_len: usize) -> Self {
        let headers = self.clone().payload(0).ip().len();
        self.payload(ip_len - headers)
    }

    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut bytes = ip_header(
            self.source.ip(),
            self.destination.ip(),
            self.protocol,
            self.tos,
            self.hops,
            segment.len(),
        );
        bytes.extend(segment);
        bytes
    }

    /// The frame, as it comes to the LB node.
    pub(crate) fn frame(&self) -> Vec<u8> {
        framed(LB_MAC, ROUTER_MAC, &self.tags, &self.ip())
    }

    /// Bytes that counters should show for it.
    pub(crate) fn bytes(&self) -> u64 {
        self.ip().len() as u64
    }

    fn segment(&self) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.payload).map(|at| (at * 7 + 3) as u8).collect();
        let ports = (self.source.port(), self.destination.port());
        let mut bytes = if self.protocol == UDP {
            let mut header = UdpHeader {
                source_port: ports.0,
                destination_port: ports.1,
                length: (8 + payload.len()) as u16,
                checksum: 0,
            };
            header.checksum = match (self.source.ip(), self.destination.ip()) {
                (IpAddr::V4(s), IpAddr::V4(d)) => header.calc_checksum_ipv4_raw(s.octets(), d.octets(), &payload),
                (IpAddr::V6(s), IpAddr::V6(d)) => header.calc_checksum_ipv6_raw(s.octets(), d.octets(), &payload),
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
            }
            .expect("a payload that fits");
            header.to_bytes().to_vec()
        } else {
            let mut header = TcpHeader::new(ports.0, ports.1, 0x1234_5678, 512);
            let flag = |bit: u8| self.tcp_flags & bit != 0;
            (header.fin, header.syn, header.rst) = (flag(0x01), flag(SYN), flag(0x04));
            (header.psh, header.ack, header.urg) = (flag(0x08), flag(ACK), flag(0x20));
            header.set_options_raw(&self.tcp_options).expect("at most 40 bytes");
            header.checksum = match (self.source.ip(), self.destination.ip()) {
                (IpAddr::V4(s), IpAddr::V4(d)) => header.calc_checksum_ipv4_raw(s.octets(), d.octets(), &payload),
                (IpAddr::V6(s), IpAddr::V6(d)) => header.calc_checksum_ipv6_raw(s.octets(), d.octets(), &payload),
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
            }
            .expect("a payload that fits");
            header.to_bytes().to_vec()
        };
        bytes.extend(payload);
        bytes
    }
}

/// An IP header for `payload` bytes, checksum included.
pub(crate) fn ip_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    tos: u8,
    hops: u8,
    payload: usize,
) -> Vec<u8> {
    let payload = u16::try_from(payload).expect("a payload that fits");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header::new(payload, hops, IpNumber(protocol), source.octets(), destination.octets())
                .expect("a payload that fits");
            header.dscp = IpDscp::try_new(tos >> 2).expect("six bits");
            header.ecn = IpEcn::try_new(tos & 3).expect("two bits");
            header.dont_fragment = true;
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
            traffic_class: tos,
            payload_length: payload,
            next_header: IpNumber(protocol),
            hop_limit: hops,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        }
        .to_bytes()
        .to_vec(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
    }
}

/// Protocol number of an IP packet inside another, by its version.
pub(crate) fn tunnel_protocol(ip: &[u8]) -> u8 {
    if ip[0] >> 4 == 4 { IPIP } else { IPV6 }
}

/// An IP packet inside another (RFC 2003, 2473, 4213): TTL 64, DF, type of service as given.
pub(crate) fn tunnelled(source: IpAddr, destination: IpAddr, tos: u8, ip: &[u8]) -> Vec<u8> {
    let mut bytes = ip_header(source, destination, tunnel_protocol(ip), tos, 64, ip.len());
    bytes.extend_from_slice(ip);
    bytes
}

/// Ethernet, tags (outermost first) and whatever IP packet.
pub(crate) fn framed(destination: [u8; 6], source: [u8; 6], tags: &[Tag], ip: &[u8]) -> Vec<u8> {
    let ethertype = if ip.first().is_some_and(|first| first >> 4 == 6) {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    framed_as(destination, source, tags, ethertype, ip)
}

/// As [`framed`], with the ethertype said.
pub(crate) fn framed_as(destination: [u8; 6], source: [u8; 6], tags: &[Tag], ethertype: u16, rest: &[u8]) -> Vec<u8> {
    let types: Vec<u16> = tags.iter().map(|tag| tag.0).chain([ethertype]).collect();
    let mut bytes = Ethernet2Header {
        source,
        destination,
        ether_type: EtherType(types[0]),
    }
    .to_bytes()
    .to_vec();
    for (position, (_, tci)) in tags.iter().enumerate() {
        let next = types[position + 1].to_be_bytes();
        let header = SingleVlanHeader::from_bytes([(tci >> 8) as u8, *tci as u8, next[0], next[1]]);
        bytes.extend(header.to_bytes());
    }
    bytes.extend_from_slice(rest);
    bytes
}

/// A frame whose IP packet was changed by hand: `edit` gets the bytes from the IP header on, and the IPv4 checksum is made right
/// again.
pub(crate) fn edited(packet: &Packet, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut ip = packet.ip();
    edit(&mut ip);
    framed(LB_MAC, ROUTER_MAC, &packet.tags, &checksummed(ip))
}

/// The IP packet with a right IPv4 header checksum, as far as there is a header.
pub(crate) fn checksummed(mut ip: Vec<u8>) -> Vec<u8> {
    if let Ok((mut header, _)) = Ipv4Header::from_slice(&ip) {
        header.header_checksum = header.calc_header_checksum();
        ip[10..12].copy_from_slice(&header.header_checksum.to_be_bytes());
    }
    ip
}

/// Whether the IPv4 header at the front has the checksum that etherparse would give it.
pub(crate) fn checksum_is_right(ip: &[u8]) -> bool {
    let (header, _) = Ipv4Header::from_slice(ip).expect("an IPv4 header");
    header.calc_header_checksum() == header.header_checksum
}

/// ARP for IPv4 over Ethernet (RFC 826), behind tags: `operation` from `sender` about `target`.
pub(crate) fn arp(tags: &[Tag], operation: u16, sender: &str, target: &str) -> Vec<u8> {
    let v4 = |address: &str| address.parse::<Ipv4Addr>().expect("an IPv4 address").octets();
    let mut body = vec![0, 1, 0x08, 0x00, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend(ROUTER_MAC);
    body.extend(v4(sender));
    body.extend([0; 6]);
    body.extend(v4(target));
    // As Ethernet pads it.
    body.resize(46, 0);
    framed_as([0xff; 6], ROUTER_MAC, tags, 0x0806, &body)
}

/// A neighbour solicitation (RFC 4861, 4.3) with the sender's link-layer address, sent to `destination`.
pub(crate) fn solicitation(tags: &[Tag], source: &str, destination: &str, target: &str) -> Vec<u8> {
    neighbour_message(tags, 135, source, destination, target)
}

/// An ICMPv6 message about a target: 135 asks, 136 answers. The checksum is right.
pub(crate) fn neighbour_message(tags: &[Tag], kind: u8, source: &str, destination: &str, target: &str) -> Vec<u8> {
    let v6 = |address: &str| address.parse::<Ipv6Addr>().expect("an IPv6 address");
    let mut body = vec![0; 4];
    body.extend(v6(target).octets());
    body.extend([1, 1]);
    body.extend(ROUTER_MAC);
    let message = etherparse::Icmpv6Type::Unknown {
        type_u8: kind,
        code_u8: 0,
        bytes5to8: [0; 4],
    };
    let payload = &body[4..];
    let header =
        etherparse::Icmpv6Header::with_checksum(message, v6(source).octets(), v6(destination).octets(), payload)
            .expect("a short message");
    let mut segment = header.to_bytes().to_vec();
    segment.extend(payload);
    let mut ip = ip_header(v6(source).into(), v6(destination).into(), 58, 0, 255, segment.len());
    ip.extend(segment);
    framed(LB_MAC, ROUTER_MAC, tags, &ip)
}
