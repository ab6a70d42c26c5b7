//! Frames from bytes: few bytes say what a frame is, so that a mutation is another frame and not another checksum error.
//! Never refuses: bytes that have run out are zeroes.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;

use super::world::{KINDS, LB_V4, LB_V6, address, vip_address};

/// Bytes, taken from the front.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    /// Whether all are taken.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub(super) fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// The next two.
    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    /// As many as there are, at most `most`.
    pub(super) fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Largest payload that is made.
const MAX_PAYLOAD: u16 = 3000;

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// Whatever the bytes say.
    Any,
    /// TCP.
    Tcp,
    /// ICMP of the family.
    Icmp,
    /// A fragment, of whatever the bytes say.
    Fragment,
}

/// A client's or a stranger's address.
fn source(bytes: &mut Bytes<'_>, v6: bool) -> IpAddr {
    let which = bytes.u8();
    let text = match (which % 16, v6) {
        (15, false) => "0.0.0.0",
        (14, false) => "255.255.255.255",
        (13, false) => "224.0.0.5",
        (12, false) => "127.0.0.1",
        (11, false) => "192.0.66.6",
        (10, false) => "203.0.113.1",
        (15, true) => "::",
        (14, true) => "ff02::1",
        (13, true) => "::ffff:192.0.2.1",
        (12, true) => "::1",
        (11, true) => "fe80::1",
        (10, true) => "2001:db8:f::1",
        (last, false) => return IpAddr::from([192, 0, 2, 100 + last]),
        (last, true) => return IpAddr::from([0x2001, 0xdb8, 0x77, 0, 0, 0, 0, u16::from(last)]),
    };
    address(text)
}

fn destination(bytes: &mut Bytes<'_>, v6: bool) -> IpAddr {
    match bytes.u8() % 16 {
        kind @ 1..=KINDS => vip_address(v6, kind),
        10 if v6 => address(LB_V6),
        10 => address(LB_V4),
        // Not a VIP's, in an owned network.
        kind @ (0 | 11..) => vip_address(v6, kind),
    }
}

/// MAC addresses and tags.
fn link(bytes: &mut Bytes<'_>, ethertype: u16) -> Vec<u8> {
    let how = bytes.u8();
    let mut frame = if how & 0x40 == 0 {
        vec![2, 0, 0, 0, 0, 0xaa]
    } else {
        vec![0xff; 6]
    };
    frame.extend_from_slice(&[2, 0, 0, 0, 1, how & 3]);
    let tags = if how & 0x30 == 0 { how >> 2 & 3 } else { how >> 4 & 3 };
    for tag in 0..tags + (how >> 7) * 2 {
        frame.extend_from_slice(if tag == 0 {
            &[0x88, 0xa8, 0, 9]
        } else {
            &[0x81, 0, 0, 10]
        });
    }
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

/// An IP frame.
pub(super) fn ip(bytes: &mut Bytes<'_>, carries: Carries) -> Vec<u8> {
    let how = bytes.u8();
    let v6 = how & 1 != 0;
    let mut frame = link(bytes, if v6 { 0x86dd } else { 0x0800 });
    let link_len = frame.len();
    frame.extend(packet(bytes, v6, how, carries));
    distort(bytes, how, link_len, &mut frame);
    frame
}

/// ARP, or a neighbour solicitation.
pub(super) fn question(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let how = bytes.u8();
    let v6 = how & 1 != 0;
    let mut frame = link(bytes, if v6 { 0x86dd } else { 0x0806 });
    let link_len = frame.len();
    let (from, target) = (source(bytes, v6), destination(bytes, v6));
    match (from, target) {
        (IpAddr::V4(from), IpAddr::V4(target)) => {
            frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1 + (how >> 1 & 3)]);
            frame.extend_from_slice(&[2, 0, 0, 0, 1, how >> 3 & 3]);
            frame.extend_from_slice(&from.octets());
            frame.extend_from_slice(&[0; 6]);
            frame.extend_from_slice(&target.octets());
        }
        (from, target) => {
            let target = octets(target);
            let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
            message.extend_from_slice(&target);
            if how & 2 != 0 {
                message.extend_from_slice(&[1, 1, 2, 0, 0, 0, 1, how >> 3 & 3]);
            }
            let mut group = octets(address("ff02::1:ff00:0"));
            group[13..].copy_from_slice(&target[13..]);
            let to = if how & 4 == 0 { group.to_vec() } else { target };
            let sum = sum(&octets(from), &to, 58, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            frame.extend_from_slice(&[0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
            frame.extend_from_slice(&octets(from));
            frame.extend_from_slice(&to);
            frame.extend_from_slice(&message);
        }
    }
    distort(bytes, how, link_len, &mut frame);
    frame
}

fn packet(bytes: &mut Bytes<'_>, v6: bool, how: u8, carries: Carries) -> Vec<u8> {
    let (from, to) = (source(bytes, v6), destination(bytes, v6));
    let (protocol, mut payload) = payload(bytes, from, to, carries);
    let (mut id, mut place) = (0, 0);
    if carries == Carries::Fragment || how & 2 != 0 {
        // Few datagrams, so that fragments meet.
        let which = bytes.u8();
        let offset = usize::from(bytes.u16() & 0x1fff) % (payload.len() / 8 + 2);
        let len = (usize::from(bytes.u8()) + 1) * 8;
        id = u16::from(which & 3);
        let more = (which >> 2 & 1) != 0;
        payload = payload.get(offset * 8..).unwrap_or_default().to_vec();
        if more {
            payload.truncate(len);
        }
        place = (offset as u16) | u16::from(more) << 13;
    }
    if v6 {
        packet_v6(bytes, how, (from, to), protocol, (id, place), &payload)
    } else {
        packet_v4(bytes, how, (from, to), protocol, (id, place), &payload)
    }
}

fn packet_v4(
    bytes: &mut Bytes<'_>,
    how: u8,
    (from, to): (IpAddr, IpAddr),
    protocol: u8,
    (id, place): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let words = if how & 4 == 0 { 0 } else { bytes.u8() % 11 };
    let mut options = bytes.take(usize::from(words) * 4).to_vec();
    options.resize(usize::from(words) * 4, 1);
    let total = (20 + options.len() + payload.len()) as u16;
    let place = place | if how & 8 == 0 { 0 } else { 0x4000 };
    let mut packet = vec![0x45 + words, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&place.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0]);
    packet.extend_from_slice(&octets(from));
    packet.extend_from_slice(&octets(to));
    packet.extend_from_slice(&options);
    let sum = Sum16BitWords::new().add_slice(&packet).ones_complement().to_be();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

fn packet_v6(
    bytes: &mut Bytes<'_>,
    how: u8,
    (from, to): (IpAddr, IpAddr),
    protocol: u8,
    (id, place): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    // Each as its number and its bytes; the fragment header stands last, where a host puts it.
    let mut headers: Vec<(u8, Vec<u8>)> = Vec::new();
    if how & 4 != 0 {
        for _ in 0..bytes.u8() % 10 {
            let which = bytes.u8();
            let number = [0, 43, 60, 51, 135, 139, 140, 60][usize::from(which & 7)];
            let body = [&[0, (which >> 3) & 1, 1, 4][..], bytes.take(4)].concat();
            let mut body = body;
            body.resize(8 + 8 * usize::from(which >> 3 & 1), 0);
            headers.push((number, body));
        }
    }
    if place != 0 || how & 2 != 0 {
        let word = (place & 0x1fff) << 3 | place >> 13 & 1;
        let [high, low] = word.to_be_bytes();
        headers.push((44, [&[0, 0, high, low, 0, 0][..], &id.to_be_bytes()].concat()));
    }
    let mut numbers: Vec<u8> = headers.iter().map(|(number, _)| *number).collect();
    numbers.push(protocol);
    let len: usize = headers.iter().map(|(_, body)| body.len()).sum();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&((len + payload.len()) as u16).to_be_bytes());
    packet.extend_from_slice(&[numbers[0], 64]);
    packet.extend_from_slice(&octets(from));
    packet.extend_from_slice(&octets(to));
    for ((_, mut body), next) in headers.into_iter().zip(&numbers[1..]) {
        body[0] = *next;
        packet.extend(body);
    }
    packet.extend_from_slice(payload);
    packet
}

fn payload(bytes: &mut Bytes<'_>, from: IpAddr, to: IpAddr, carries: Carries) -> (u8, Vec<u8>) {
    let which = bytes.u8();
    let len = usize::from(bytes.u16() % MAX_PAYLOAD);
    let icmp = if to.is_ipv6() { 58 } else { 1 };
    let protocol = match (carries, which & 7) {
        (Carries::Tcp, _) | (Carries::Any | Carries::Fragment, 0..=2) => 6,
        (Carries::Icmp, _) | (Carries::Any | Carries::Fragment, 5 | 6) => icmp,
        (Carries::Any | Carries::Fragment, 3 | 4) => 17,
        (Carries::Any | Carries::Fragment, _) => 132,
    };
    let served = which & 8 == 0;
    let port = |port: u16| if served { port } else { port + 1 };
    let mut message = Vec::new();
    if protocol == 6 {
        let options = usize::from(bytes.u8() % 11);
        message.extend_from_slice(&[0x30, which, 0, port(80) as u8, 0, 0, 0, 1, 0, 0, 0, 2]);
        message.extend_from_slice(&[(5 + options as u8) << 4, bytes.u8(), 1, 0, 0, 0, 0, 0]);
        let mut rest = bytes.take(options * 4).to_vec();
        rest.resize(options * 4, 0);
        message.extend(rest);
    } else if protocol == 17 {
        let total = (8 + len) as u16;
        message.extend_from_slice(&[0x30, which, 0, port(53) as u8]);
        message.extend_from_slice(&total.to_be_bytes());
        message.extend_from_slice(&[0, 0]);
    } else if protocol == icmp {
        message.extend_from_slice(&[icmp_type(bytes, icmp), bytes.u8(), 0, 0]);
        message.extend_from_slice(&[bytes.u8(), 0, bytes.u8(), bytes.u8()]);
        if which & 0x10 != 0 {
            message.extend(quote(bytes, from, to));
        }
    }
    message.resize(message.len() + len, which);
    let at = match protocol {
        6 => 16,
        17 => 6,
        _ if protocol == icmp => 2,
        _ => return (protocol, message),
    };
    let sum = if protocol == 1 {
        Sum16BitWords::new().add_slice(&message).ones_complement().to_be()
    } else {
        sum(&octets(from), &octets(to), protocol, &message)
    };
    message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    (protocol, message)
}

fn icmp_type(bytes: &mut Bytes<'_>, icmp: u8) -> u8 {
    let which = bytes.u8();
    let known: [u8; 8] = if icmp == 58 {
        [128, 1, 2, 3, 4, 129, 135, 136]
    } else {
        [8, 3, 11, 12, 5, 0, 4, 13]
    };
    known.get(usize::from(which)).copied().unwrap_or(which)
}

/// The head of a packet that a VIP address sent to a client, as an ICMP error quotes it.
fn quote(bytes: &mut Bytes<'_>, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let how = bytes.u8();
    let client = if how & 1 == 0 {
        from
    } else {
        source(bytes, to.is_ipv6())
    };
    let protocol = [6, 17, 6, 132][usize::from(how >> 1 & 3)];
    let mut transport = vec![0, if protocol == 6 { 80 } else { 53 }, 0x30, how, 0, 0, 0, 1];
    transport.extend_from_slice(bytes.take(usize::from(how >> 5) * 4));
    let place = (0, if how & 8 == 0 { 0 } else { 0x2000 });
    let mut quote = if to.is_ipv6() {
        packet_v6(bytes, how & 4, (to, client), protocol, place, &transport)
    } else {
        packet_v4(bytes, how & 4, (to, client), protocol, place, &transport)
    };
    if how & 0x10 != 0 {
        let cut = usize::from(bytes.u8());
        quote.truncate(quote.len().saturating_sub(cut));
    }
    quote
}

/// Makes some frames wrong: bytes changed, cut off, or added.
fn distort(bytes: &mut Bytes<'_>, how: u8, link_len: usize, frame: &mut Vec<u8>) {
    if how & 0x80 != 0 {
        for _ in 0..bytes.u8() % 4 {
            let (at, value) = (usize::from(bytes.u8()), bytes.u8());
            if let Some(byte) = frame.get_mut(link_len + at) {
                *byte = value;
            }
        }
    }
    if how & 0x40 != 0 {
        let cut = usize::from(bytes.u8());
        frame.truncate(frame.len().saturating_sub(cut));
    }
    if how & 0x20 != 0 {
        let added = usize::from(bytes.u8());
        frame.resize(frame.len() + added, 0);
    }
}

/// An address as it stands in a header.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Checksum with a pseudo-header (RFC 9293 3.1, RFC 8200 8.1); 0 over what carries its right checksum.
pub(super) fn sum(from: &[u8], to: &[u8], protocol: u8, message: &[u8]) -> u16 {
    let len = (message.len() as u32).to_be_bytes();
    let sum = Sum16BitWords::new().add_slice(from).add_slice(to).add_slice(&len);
    sum.add_2bytes([0, protocol])
        .add_slice(message)
        .ones_complement()
        .to_be()
}
