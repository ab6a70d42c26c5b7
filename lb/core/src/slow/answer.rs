//! The IP header of what this node says itself. Never forwards: source and destination of the packet in hand, turned
//! round.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header};

use super::Packet;

/// TTL and hop limit of answers (RFC 1700: the recommended default).
pub(super) const HOP_LIMIT: u8 = 64;

/// An IPv4 header's fragmentation fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Identification.
    pub(super) id: u16,
    /// Nobody on the way may fragment it.
    pub(super) dont_fragment: bool,
    /// Others follow.
    pub(super) more: bool,
    /// Where the payload stands in the datagram's, in units of 8 bytes.
    pub(super) offset: u16,
}

impl Place {
    /// Whole, and stays so: its identification means nothing (RFC 6864, 4.1).
    pub(super) const ATOMIC: Self = Self {
        id: 0,
        dont_fragment: true,
        more: false,
        offset: 0,
    };
}

/// An IPv4 packet, or an IPv6 packet without extension headers, from the VIP address that `packet` was sent to and
/// back to who sent it. `place` is for IPv4 only. `payload` fits: it is no longer than what a packet brought, or
/// bounded by its maker.
pub(super) fn answer(packet: &Packet<'_>, protocol: IpNumber, tos: u8, place: Place, payload: &[u8]) -> Vec<u8> {
    match (packet.destination, packet.source) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header {
                dscp: IpDscp::try_new(tos >> 2).unwrap_or_default(),
                ecn: IpEcn::try_new(tos & 3).unwrap_or_default(),
                total_len: length(Ipv4Header::MIN_LEN + payload.len()),
                identification: place.id,
                dont_fragment: place.dont_fragment,
                more_fragments: place.more,
                fragment_offset: IpFragOffset::try_new(place.offset).unwrap_or_default(),
                time_to_live: HOP_LIMIT,
                protocol,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            header.header_checksum = header.calc_header_checksum();
            [header.to_bytes().as_slice(), payload].concat()
        }
        (source, destination) => {
            let header = Ipv6Header {
                traffic_class: tos,
                payload_length: length(payload.len()),
                next_header: protocol,
                hop_limit: HOP_LIMIT,
                source: v6(source).octets(),
                destination: v6(destination).octets(),
                ..Ipv6Header::default()
            };
            [header.to_bytes().as_slice(), payload].concat()
        }
    }
}

/// An address as IPv6; packets never mix families.
pub(super) fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}
