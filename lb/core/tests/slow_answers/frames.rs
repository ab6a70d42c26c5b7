//! Frames, made and checked by hand: nothing here is shared with what is tested.

use std::net::IpAddr;

/// Whom tests ask as.
pub(crate) const HIM: [u8; 6] = [2, 0, 0, 0, 0, 0xc1];

/// The Internet checksum as RFC 1071, 4.1 writes it down: over two bytes at a time, odd ones padded.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293, 3.1; RFC 8200, 8.1).
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let rest = match source {
        IpAddr::V4(_) => vec![0, protocol, (len >> 8) as u8, len as u8],
        IpAddr::V6(_) => [&(len as u32).to_be_bytes(), &[0, 0, 0, protocol][..]].concat(),
    };
    [octets(source), octets(destination), rest].concat()
}

/// A frame to `destination` from [`HIM`]; the header has no options and asks for no fragmentation.
pub(crate) fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut frame = [&crate::bed::MAC, &HIM[..]].concat();
    if source.is_ipv4() {
        let len = (20 + payload.len()) as u16;
        let mut header = vec![
            0x45,
            0,
            (len >> 8) as u8,
            len as u8,
            0x12,
            0x34,
            0x40,
            0,
            64,
            protocol,
            0,
            0,
        ];
        header.extend(octets(source));
        header.extend(octets(destination));
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((payload.len() as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend(octets(source));
        frame.extend(octets(destination));
    }
    frame.extend_from_slice(payload);
    frame
}

/// An echo request from `source`, with a right checksum.
pub(crate) fn echo(source: &str, destination: &str, data: &[u8]) -> Vec<u8> {
    let is_v6 = destination.contains(':');
    let mut message = [&[if is_v6 { 128 } else { 8 }, 0, 0, 0, 0xab, 0xcd, 0, 1], data].concat();
    let front = match is_v6 {
        true => pseudo(source.parse().unwrap(), destination.parse().unwrap(), 58, message.len()),
        false => Vec::new(),
    };
    let sum = checksum(&[&front, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(source, destination, if is_v6 { 58 } else { 1 }, &message)
}

/// What stands in an answer: protocol and what is behind the IP header. Panics unless lengths and all checksums are
/// right.
pub(crate) fn opened(frame: &[u8]) -> (u8, &[u8]) {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let ip = &frame[at + 2..];
    let (protocol, payload, source, destination): (u8, &[u8], IpAddr, IpAddr) = match frame[at..at + 2] {
        [8, 0] => {
            assert_eq!(ip[0], 0x45, "no options");
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len(), "length");
            assert_eq!(checksum(&[&ip[..20]]), 0, "header checksum");
            let address = |at: usize| <[u8; 4]>::try_from(&ip[at..at + 4]).unwrap().into();
            (ip[9], &ip[20..], address(12), address(16))
        }
        [0x86, 0xdd] => {
            assert_eq!(ip[0] >> 4, 6, "version");
            assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip.len() - 40, "length");
            let address = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).unwrap().into();
            (ip[6], &ip[40..], address(8), address(24))
        }
        [8, 6] => {
            assert_eq!(ip.len(), 28, "ARP");
            return (0, ip);
        }
        _ => panic!("no ethertype that is answered with: {:x?}", &frame[at..at + 2]),
    };
    let front = match protocol {
        1 => Vec::new(),
        _ => pseudo(source, destination, protocol, payload.len()),
    };
    let is_part = source.is_ipv4() && u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 || protocol == 44;
    if !is_part {
        assert_eq!(checksum(&[&front, payload]), 0, "checksum of protocol {protocol}");
    }
    (protocol, payload)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
