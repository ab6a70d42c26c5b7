//! An IPv4 packet in pieces (RFC 791, 3.2). Never touches the payload, and never splits what says that it must not be split.

use etherparse::Ipv4HeaderSlice;
use xdp_prog::wire::IPV4_LEN;

use super::{Packet, fragments::MAX_FRAGMENTS, packet::be16};

/// More fragments, in the word of flags and offset.
const MORE: u16 = 0x2000;
/// Options of one byte: end of list, no operation.
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
/// Set in the type of options that every fragment carries.
const OPTION_COPIED: u8 = 0x80;

/// `packet` as frames of its own link layer with IP packets of at most `mtu` bytes, in order. A fragment's pieces are fragments of
/// the same datagram. A whole packet with identification 0 gets `fresh_id()`: 0 is what senders write who never mean it to be split
/// (RFC 6864, 4.1), and pieces of two such packets would be taken for one.
///
/// `None` where it cannot be: no IPv4, not to be split, no room for 8 bytes behind the header, or more than [`MAX_FRAGMENTS`] pieces.
pub(super) fn split(packet: &Packet<'_>, mtu: usize, fresh_id: impl FnOnce() -> u16) -> Option<Vec<Vec<u8>>> {
    if packet.dont_fragment || packet.destination.is_ipv6() {
        return None;
    }
    let first = packet.ip.get(..packet.header_len)?;
    let later = later_header(first)?;
    let (offset, more) = packet.fragment.map_or((0, false), |place| (place.offset, place.more));
    let id = match be16(packet.ip, 4).ok()? {
        0 if packet.fragment.is_none() => fresh_id(),
        id => id,
    };
    let payload = packet.payload();
    let mut frames = Vec::new();
    let mut done = 0;
    while done < payload.len() {
        if frames.len() == MAX_FRAGMENTS {
            return None;
        }
        let header = if done == 0 { first } else { &later };
        let room = mtu.checked_sub(header.len())?;
        let rest = payload.len() - done;
        let len = if rest <= room { rest } else { room / 8 * 8 };
        if len == 0 {
            return None;
        }
        let place = ((offset + done) / 8) as u16 | if more || len < rest { MORE } else { 0 };
        let header = finish(header, header.len() + len, id, place)?;
        frames.push([packet.link.bytes, &header, payload.get(done..done + len)?].concat());
        done += len;
    }
    Some(frames)
}

/// The header of all pieces but the first: with those options only that every fragment carries (RFC 791, 3.1).
fn later_header(first: &[u8]) -> Option<Vec<u8>> {
    let (fixed, mut options) = first.split_at_checked(IPV4_LEN)?;
    let mut header = fixed.to_vec();
    while let Some((kind, rest)) = options.split_first() {
        match *kind {
            OPTION_END => break,
            OPTION_NOP => options = rest,
            kind => {
                let len = usize::from(*rest.first()?).max(2);
                let (option, behind) = options.split_at_checked(len)?;
                if kind & OPTION_COPIED != 0 {
                    header.extend_from_slice(option);
                }
                options = behind;
            }
        }
    }
    header.resize(header.len().next_multiple_of(4), OPTION_END);
    let words = u8::try_from(header.len() / 4).ok()?;
    *header.first_mut()? = 0x40 | words;
    Some(header)
}

/// A piece's header with its own length, place and checksum.
fn finish(header: &[u8], total_len: usize, id: u16, place: u16) -> Option<Vec<u8>> {
    let mut header = header.to_vec();
    header
        .get_mut(2..4)?
        .copy_from_slice(&u16::try_from(total_len).ok()?.to_be_bytes());
    header.get_mut(4..6)?.copy_from_slice(&id.to_be_bytes());
    header.get_mut(6..8)?.copy_from_slice(&place.to_be_bytes());
    let checksum = Ipv4HeaderSlice::from_slice(&header)
        .ok()?
        .to_header()
        .calc_header_checksum();
    header.get_mut(10..12)?.copy_from_slice(&checksum.to_be_bytes());
    Some(header)
}
