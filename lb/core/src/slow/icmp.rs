//! ICMP and ICMPv6 messages that this node sends. Never decides whether to send one: that is
//! [`super::reject::answerable`]'s.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv6Header,
    icmpv4::DestUnreachableHeader,
    icmpv6::{DestUnreachableCode, ParameterProblemCode, ParameterProblemHeader},
};

use super::{
    Packet,
    answer::{Place, answer, v6},
    packet::byte,
};

/// Longest ICMP error, in bytes of IP packet (RFC 1812, 4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMPv6 error, in bytes of IP packet: the smallest MTU (RFC 4443, 2.4 (c)).
const LONGEST_V6: usize = 1280;
/// Bytes of an error in front of what it quotes.
const ICMP_LEN: usize = 8;
/// Internetwork control: what ICMP errors are sent with (RFC 1812, 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// Place of the next-header field in an IPv6 header.
const NEXT_HEADER: usize = 6;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// Nobody serves the port.
    PortUnreachable,
    /// Nobody serves the protocol; in IPv6 a parameter problem (RFC 4443, 3.4).
    ProtocolUnreachable,
    /// Who serves it cannot be reached.
    HostUnreachable,
    /// It does not fit: fragmentation needed (RFC 1191, 4), packet too big (RFC 4443, 3.2).
    TooBig {
        /// Largest packet that does, in bytes of IP packet.
        mtu: usize,
    },
}

/// An ICMP error about `packet`, from its VIP address to who sent it, from the IP header on. Quotes as much of it as
/// may be.
pub(super) fn error(packet: &Packet<'_>, error: Error) -> Vec<u8> {
    match packet.destination {
        IpAddr::V4(_) => {
            let quote = start(packet.ip, LONGEST_V4 - Ipv4Header::MIN_LEN - ICMP_LEN);
            message_v4(packet, error_v4(error), INTERNETWORK_CONTROL, Place::ATOMIC, quote)
        }
        IpAddr::V6(_) => {
            let quote = start(packet.ip, LONGEST_V6 - Ipv6Header::LEN - ICMP_LEN);
            message_v6(packet, error_v6(packet, error), 0, quote)
        }
    }
}

/// An ICMP message to who sent `packet`, from the IP header on.
pub(super) fn message_v4(packet: &Packet<'_>, kind: Icmpv4Type, tos: u8, place: Place, body: &[u8]) -> Vec<u8> {
    let header = Icmpv4Header::with_checksum(kind, body).to_bytes();
    answer(packet, IpNumber::ICMP, tos, place, &[header.as_slice(), body].concat())
}

/// An ICMPv6 message to who sent `packet`, from the IP header on.
pub(super) fn message_v6(packet: &Packet<'_>, kind: Icmpv6Type, class: u8, body: &[u8]) -> Vec<u8> {
    let (source, destination) = (v6(packet.destination).octets(), v6(packet.source).octets());
    let mut header = Icmpv6Header::new(kind);
    // Fails for more than 4 GiB only.
    header.checksum = kind.calc_checksum(source, destination, body).unwrap_or_default();
    let message = [header.to_bytes().as_slice(), body].concat();
    answer(packet, IpNumber::IPV6_ICMP, class, Place::ATOMIC, &message)
}

/// Whether an ICMP message is an error or a redirect, that is never answered with one; so is one too short to say
/// (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)).
pub(super) fn must_not_be_answered(packet: &Packet<'_>) -> bool {
    let kind = packet.payload().first();
    match packet.destination {
        IpAddr::V4(_) => kind.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
        // All below 128 are errors, those of tomorrow too (RFC 4443, 2.1).
        IpAddr::V6(_) => kind.is_none_or(|kind| *kind < 128 || *kind == 137),
    }
}

/// The last extension header of an IPv6 packet, if it has any: its number and where it stands.
pub(super) fn last_extension(packet: &Packet<'_>) -> Option<(u8, usize)> {
    let mut last = None;
    let mut at = Ipv6Header::LEN;
    let mut number = byte(packet.ip, NEXT_HEADER).ok()?;
    while at < packet.header_len {
        last = Some((number, at));
        let len = usize::from(byte(packet.ip, at + 1).ok()?);
        number = byte(packet.ip, at).ok()?;
        at += match last {
            Some((FRAGMENT, _)) => 8,
            Some((AUTHENTICATION, _)) => (len + 2) * 4,
            _ => (len + 1) * 8,
        };
    }
    last
}

fn error_v4(error: Error) -> Icmpv4Type {
    Icmpv4Type::DestinationUnreachable(match error {
        Error::PortUnreachable => DestUnreachableHeader::Port,
        Error::ProtocolUnreachable => DestUnreachableHeader::Protocol,
        Error::HostUnreachable => DestUnreachableHeader::Host,
        Error::TooBig { mtu } => DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        },
    })
}

fn error_v6(packet: &Packet<'_>, error: Error) -> Icmpv6Type {
    match error {
        Error::PortUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Error::HostUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address),
        Error::TooBig { mtu } => Icmpv6Type::PacketTooBig {
            mtu: u32::try_from(mtu).unwrap_or(u32::MAX),
        },
        // The field that names the protocol: an extension header's first byte, or the IPv6 header's own.
        Error::ProtocolUnreachable => Icmpv6Type::ParameterProblem(ParameterProblemHeader {
            code: ParameterProblemCode::UnrecognizedNextHeader,
            pointer: last_extension(packet).map_or(NEXT_HEADER as u32, |(_, at)| at as u32),
        }),
    }
}

fn start(bytes: &[u8], longest: usize) -> &[u8] {
    bytes.get(..longest).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::{Error, Packet, error, last_extension};

    /// A UDP datagram of seven bytes, as it comes.
    const IPV4: [u8; 35] = [
        0x45, 0x00, 0x00, 0x23, 0x00, 0x03, 0x40, 0x00, 0x40, 0x11, 0xd4, 0x81, 198, 51, 100, 7, 203, 0, 113,
        10, //
        0x9c, 0x40, 0x00, 0x35, 0x00, 0x0f, 0x50, 0x1b, 0x74, 0x6f, 0x6f, 0x20, 0x62, 0x69, 0x67,
    ];
    const IPV6: [u8; 55] = [
        0x60, 0x00, 0x00, 0x00, 0x00, 0x0f, 0x11, 0x40, // UDP, hop limit 64
        0x20, 0x01, 0x0d, 0xb8, 0x00, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, // 2001:db8:c::7
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, // 2001:db8::10
        0x9c, 0x40, 0x00, 0x35, 0x00, 0x0f, 0x5a, 0xcc, 0x74, 0x6f, 0x6f, 0x20, 0x62, 0x69, 0x67,
    ];

    fn frame(ethertype: [u8; 2], network: &[u8]) -> Vec<u8> {
        [&[2; 12], &ethertype[..], network].concat()
    }

    #[test]
    fn fragmentation_needed_says_the_mtu() {
        let frame = frame([8, 0], &IPV4);
        let answer = error(&Packet::parse(&frame).unwrap(), Error::TooBig { mtu: 1480 });
        let front = [
            0x45, 0xc0, 0, 63, 0, 0, 0x40, 0, 64, 1, 0xd3, 0xb8, // internetwork control, 63 bytes, DF
            203, 0, 113, 10, 198, 51, 100, 7, //
            3, 4, 0x5d, 0x9a, 0, 0, 0x05, 0xc8, // 1,480 bytes
        ];
        assert_eq!(answer, [&front, &IPV4[..]].concat());
    }

    #[test]
    fn packet_too_big_says_the_mtu() {
        let frame = frame([0x86, 0xdd], &IPV6);
        let answer = error(&Packet::parse(&frame).unwrap(), Error::TooBig { mtu: 1460 });
        let front = [
            0x60, 0, 0, 0, 0, 63, 58, 64, //
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, //
            0x20, 0x01, 0x0d, 0xb8, 0x00, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, //
            2, 0, 0x2b, 0x0e, 0, 0, 0x05, 0xb4, // 1,460 bytes
        ];
        assert_eq!(answer, [&front, &IPV6[..]].concat());
    }

    #[test]
    fn an_mtu_that_has_no_place_in_the_message_is_the_largest_that_has() {
        let frame = frame([8, 0], &IPV4);
        let answer = error(&Packet::parse(&frame).unwrap(), Error::TooBig { mtu: 70_000 });
        assert_eq!(answer[26..28], [0xff, 0xff]);
    }

    #[test]
    fn the_last_extension_header_is_found_behind_all_others() {
        let headers = [
            &[43, 0, 1, 4, 0, 0, 0, 0][..],         // hop-by-hop, then
            &[60, 2, 4, 0, 0, 0, 0, 0],             // routing, 24 bytes, done with, then
            &[0; 16],                               //
            &[51, 0, 1, 4, 0, 0, 0, 0],             // destination options, then
            &[44, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1], // authentication, 12 bytes, then
            &[17, 0, 0, 0, 0, 0, 0, 9],             // an atomic fragment, then UDP
        ]
        .concat();
        let mut ip = [&IPV6[..40], &headers, &IPV6[40..]].concat();
        ip[5] += headers.len() as u8;
        ip[6] = 0;
        let frame = frame([0x86, 0xdd], &ip);
        let packet = Packet::parse(&frame).unwrap();
        assert_eq!(packet.protocol, 17);
        assert_eq!(last_extension(&packet), Some((44, 40 + headers.len() - 8)));
        let plain = self::frame([0x86, 0xdd], &IPV6);
        assert_eq!(last_extension(&Packet::parse(&plain).unwrap()), None);
    }
}
