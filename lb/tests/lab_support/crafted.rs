//! Packets made unusual: cut into fragments, with IPv4 options, behind IPv6 extension headers.

use etherparse::checksum::Sum16BitWords;

const FRAGMENT: u8 = 44;

/// Cuts an IP packet (without options or extension headers) into fragments with at most `size` bytes of payload, a multiple of 8.
pub(crate) fn fragments(ip: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    assert_eq!(size % 8, 0);
    let payload = &ip[header_len(ip)..];
    let starts = (0..payload.len()).step_by(size);
    starts
        .map(|start| fragment(ip, id, start, size.min(payload.len() - start)))
        .collect()
}

/// One fragment: `len` bytes of the payload from `start` on.
pub(crate) fn fragment(ip: &[u8], id: u32, start: usize, len: usize) -> Vec<u8> {
    let (header, payload) = ip.split_at(header_len(ip));
    let more = start + len < payload.len();
    let part = &payload[start..start + len];
    let offset = u16::try_from(start).expect("a packet's payload");
    let mut cut = header.to_vec();
    if ip[0] >> 4 == 4 {
        cut[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        cut[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        cut.extend(part);
        finish_v4(&mut cut);
    } else {
        let next = std::mem::replace(&mut cut[6], FRAGMENT);
        cut.extend([next, 0]);
        cut.extend((offset | u16::from(more)).to_be_bytes());
        cut.extend(id.to_be_bytes());
        cut.extend(part);
        finish_v6(&mut cut);
    }
    cut
}

/// An IPv4 packet with these options, a multiple of 4 bytes.
pub(crate) fn with_options(ip: &[u8], options: &[u8]) -> Vec<u8> {
    assert_eq!((ip[0], options.len() % 4), (0x45, 0));
    let mut packet = ip.to_vec();
    packet.splice(20..20, options.iter().copied());
    packet[0] += u8::try_from(options.len() / 4).expect("at most 40 bytes");
    finish_v4(&mut packet);
    packet
}

/// An IPv6 packet behind this extension header, whose first byte (the next header's number) is filled in here.
pub(crate) fn behind(ip: &[u8], number: u8, header: &[u8]) -> Vec<u8> {
    assert_eq!((ip[0] >> 4, header.len() % 8), (6, 0));
    let mut packet = ip.to_vec();
    packet.splice(40..40, header.iter().copied());
    packet[40] = std::mem::replace(&mut packet[6], number);
    finish_v6(&mut packet);
    packet
}

fn header_len(ip: &[u8]) -> usize {
    if ip[0] >> 4 == 4 { 20 } else { 40 }
}

/// Length and checksum.
fn finish_v4(packet: &mut [u8]) {
    let len = u16::try_from(packet.len()).expect("a packet");
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[10..12].fill(0);
    let header = usize::from(packet[0] & 15) * 4;
    let sum = Sum16BitWords::new().add_slice(&packet[..header]).ones_complement();
    packet[10..12].copy_from_slice(&sum.to_ne_bytes());
}

fn finish_v6(packet: &mut [u8]) {
    let len = u16::try_from(packet.len() - 40).expect("a packet");
    packet[4..6].copy_from_slice(&len.to_be_bytes());
}
