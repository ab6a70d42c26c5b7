//! The MSS option of SYNs (RFC 9293, 3.7.1; RFC 6691): lowered to what the way to a backend carries.
//!
//! Never raises it, never adds one, and leaves alone what it does not understand.

use crate::{
    abi::LineMeta,
    checksum,
    machine::{load, opaque, store},
    wire::{
        IPV4_LEN, IPV4_PROTOCOL, IPV6_LEN, IPV6_NEXT_HEADER, PROTO_TCP, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_FLAGS,
        TCP_LEN, TCP_SYN,
    },
};

/// Bytes that options can have: the data offset has four bits.
const MOST_OPTIONS: u64 = 40;
/// End of option list.
const END: u8 = 0;
/// No operation.
const NOP: u8 = 1;
/// Maximum segment size: four bytes, kind and length included.
const MSS: u8 = 2;
const MSS_LEN: u8 = 4;

/// The largest MSS whose segments reach the backend of a line in one piece: its MTU without the outer header, the inner one
/// (without options, RFC 6691) and a TCP header. 0 where the MTU leaves no room: then there is nothing to clamp to.
#[inline(always)]
pub const fn most(line: LineMeta, inner_v6: bool) -> u16 {
    let outer = if line.has(LineMeta::OUTER_V6) {
        IPV6_LEN
    } else {
        IPV4_LEN
    };
    let inner = if inner_v6 { IPV6_LEN } else { IPV4_LEN };
    let headers = (outer + inner + TCP_LEN) as u32;
    // `saturating_sub` would be twice the code.
    if line.mtu() > headers {
        (line.mtu() - headers) as u16
    } else {
        0
    }
}

/// Clamps the SYN in an IP packet without options or extension headers; other packets stay as they are. Says whether it changed
/// anything.
///
/// # Safety
///
/// `l3..end` is the packet in hand, readable and writable.
#[inline(always)]
pub unsafe fn clamp_syn(l3: usize, end: usize, most: u16) -> bool {
    if l3 + IPV6_LEN > end {
        return false;
    }
    // SAFETY: 40 bytes from `l3` on are inside the frame: a TCP packet has as many in either family.
    unsafe {
        let version: u8 = load(l3);
        let (protocol, len): (u8, usize) = if version >> 4 == 6 {
            (load(l3 + IPV6_NEXT_HEADER), IPV6_LEN)
        } else {
            (load(l3 + IPV4_PROTOCOL), IPV4_LEN)
        };
        protocol == PROTO_TCP && clamp(l3 + len, end, most)
    }
}

/// Clamps a TCP segment in memory: for segments that stand behind more than the fast path reads. `tcp` begins with the TCP header.
/// Says whether it changed anything: not where it is no SYN, where `most` is 0, where there is no MSS option or it is low enough,
/// and where the options are garbled before it.
#[cfg(not(target_arch = "bpf"))]
pub fn clamp_segment(tcp: &mut [u8], most: u16) -> bool {
    let start = tcp.as_mut_ptr().expose_provenance();
    // SAFETY: the slice's own memory, borrowed for writing.
    unsafe { clamp(start, start + tcp.len(), most) }
}

/// As [`clamp_segment`], on addresses.
///
/// # Safety
///
/// `l4..end` is readable and writable; `l4` may lie behind `end`.
#[inline(always)]
unsafe fn clamp(l4: usize, end: usize, most: u16) -> bool {
    if most == 0 || l4 + TCP_LEN > end {
        return false;
    }
    // SAFETY: 20 bytes from `l4` on are inside the frame.
    let (flags, data_offset): (u8, u8) = unsafe { (load(l4 + TCP_FLAGS), load(l4 + TCP_DATA_OFFSET)) };
    if flags & TCP_SYN == 0 {
        return false;
    }
    let header_len = u64::from(data_offset >> 4) * 4;
    let mut at = opaque(TCP_LEN as u64);
    let mut round = opaque(0);
    // Every option but the first two kinds has at least two bytes, and the walk ends with the header: 40 rounds are enough. The
    // masks say to the verifier what the comparisons said, once and for all rounds, so that their states are one.
    while round < MOST_OPTIONS {
        at = opaque(at & 63);
        let option = l4 + at as usize;
        if at + 2 > header_len || option + 2 > end {
            return false;
        }
        // SAFETY: two bytes from `option` on are inside the frame.
        let (kind, len): (u8, u8) = unsafe { (load(option), load(option + 1)) };
        if kind == END {
            return false;
        }
        if kind == MSS {
            if len != MSS_LEN || at + u64::from(MSS_LEN) > header_len || option + MSS_LEN as usize > end {
                return false;
            }
            // SAFETY: four bytes from `option` on are inside the frame, and so is the header in front of it.
            return unsafe { lower(l4, option + 2, at & 1 != 0, most) };
        }
        at += if kind == NOP {
            1
        } else if len >= 2 {
            u64::from(len)
        } else {
            return false;
        };
        // Before the mask wraps it.
        if at >= header_len {
            return false;
        }
        round = opaque(round + 1);
    }
    false
}

/// Writes the field where it is larger than `most`, and the checksum with it (RFC 1624).
///
/// # Safety
///
/// 20 bytes from `l4` on and two from `field` on are inside the frame.
#[inline(always)]
unsafe fn lower(l4: usize, field: usize, is_odd: bool, most: u16) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let old: u16 = load(field);
        if u16::from_be(old) <= most {
            return false;
        }
        let new = most.to_be();
        let checksum: u16 = load(l4 + TCP_CHECKSUM);
        // At an odd offset the field's bytes belong to two words of the sum, each on the other side.
        let updated = if is_odd {
            checksum::update(checksum, old.swap_bytes(), new.swap_bytes())
        } else {
            checksum::update(checksum, old, new)
        };
        store(field, new);
        store(l4 + TCP_CHECKSUM, updated);
    }
    true
}
