//! The worker node's side: takes the outer header off before tc, netfilter and the stack see the packet.
//!
//! Never decapsulates what does not come from a known LB node, is not for this node, or is not for a VIP; and never lets one of
//! these conditions be absent by accident: a set that is missing contains nothing.

use crate::{
    abi::setting,
    balance::{is_martian_v4, is_martian_v6},
    checksum,
    link::{self, Link},
    machine::{Frame, Tables, load, store, word},
    ranges,
    verdict::Verdict,
    wire::{
        ETH_TYPE, IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_FRAGMENT, IPV4_FRAGMENT_MASK_BE, IPV4_LEN, IPV4_PROTOCOL,
        IPV4_SOURCE, IPV4_TOTAL_LEN, IPV4_TTL, IPV6_DESTINATION, IPV6_HOP_LIMIT, IPV6_LEN, IPV6_NEXT_HEADER,
        IPV6_PAYLOAD_LEN, IPV6_SOURCE, PROTO_IPIP, PROTO_IPV6, TYPE_IPV4_BE, TYPE_IPV6_BE, VLAN_LEN,
    },
};

/// An outer header, taken apart.
struct Outer {
    /// Its length in bytes.
    len: usize,
    /// Type of service or traffic class.
    tos: u8,
    /// Bytes behind it.
    payload_len: usize,
    /// Protocol number of what is behind it.
    inner: u8,
    /// Source address, upper and lower half as numbers.
    source: [u64; 2],
    /// Destination address likewise.
    destination: [u64; 2],
}

/// Decides for a packet on a worker node and carries it out; returns what to count.
#[inline(always)]
pub fn run<M: Frame + Tables>(machine: &mut M) -> Verdict {
    let link = match link::parse(machine) {
        Ok(link) => link,
        Err(verdict) => return verdict,
    };
    let verdict = match link.ethertype {
        TYPE_IPV4_BE => ipv4(machine, &link),
        TYPE_IPV6_BE => ipv6(machine, &link),
        _ => return Verdict::PassNotIp,
    };
    verdict.unwrap_or(Verdict::PassNotTunnel)
}

/// Decapsulates behind IPv4; `None`: not a tunnel packet for this node, and nothing has changed.
#[inline(always)]
fn ipv4<M: Frame + Tables>(machine: &mut M, link: &Link) -> Option<Verdict> {
    let l3 = machine.start() + link.len;
    if l3 + IPV4_LEN > machine.end() {
        return None;
    }
    // SAFETY: 20 bytes from `l3` on are inside the frame.
    let (first, total_len, fragment, inner, source, destination): (u16, u16, u16, u8, u32, u32) = unsafe {
        (
            load(l3),
            load(l3 + IPV4_TOTAL_LEN),
            load(l3 + IPV4_FRAGMENT),
            load(l3 + IPV4_PROTOCOL),
            load(l3 + IPV4_SOURCE),
            load(l3 + IPV4_DESTINATION),
        )
    };
    let [version, tos] = first.to_ne_bytes();
    if version != 0x45 || fragment & IPV4_FRAGMENT_MASK_BE != 0 || (inner != PROTO_IPIP && inner != PROTO_IPV6) {
        return None;
    }
    let outer = Outer {
        len: IPV4_LEN,
        tos,
        payload_len: (u16::from_be(total_len) as usize).saturating_sub(IPV4_LEN),
        inner,
        source: [0, ranges::mapped_low(source)],
        destination: [0, ranges::mapped_low(destination)],
    };
    open(machine, link, &outer)
}

/// Decapsulates behind IPv6; see [`ipv4`].
#[inline(always)]
fn ipv6<M: Frame + Tables>(machine: &mut M, link: &Link) -> Option<Verdict> {
    let l3 = machine.start() + link.len;
    if l3 + IPV6_LEN > machine.end() {
        return None;
    }
    // SAFETY: 40 bytes from `l3` on are inside the frame.
    let (first, payload_len, inner, source, destination): (u16, u16, u8, [u64; 2], [u64; 2]) = unsafe {
        (
            load(l3),
            load(l3 + IPV6_PAYLOAD_LEN),
            load(l3 + IPV6_NEXT_HEADER),
            [load(l3 + IPV6_SOURCE), load(l3 + IPV6_SOURCE + 8)],
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
        )
    };
    let first = u16::from_be(first);
    if first >> 12 != 6 || (inner != PROTO_IPIP && inner != PROTO_IPV6) {
        return None;
    }
    let outer = Outer {
        len: IPV6_LEN,
        tos: (first >> 4) as u8,
        payload_len: u16::from_be(payload_len) as usize,
        inner,
        source: [u64::from_be(source[0]), u64::from_be(source[1])],
        destination: [u64::from_be(destination[0]), u64::from_be(destination[1])],
    };
    if is_mapped(outer.source) || is_mapped(outer.destination) {
        return None;
    }
    open(machine, link, &outer)
}

/// Whether an IPv6 address of a packet is IPv4-mapped (RFC 4291, 2.5.5.2). The sets hold IPv4 addresses in this form, so one
/// that stands in an IPv6 header must never be looked up: it would pass for the IPv4 address.
#[inline(always)]
const fn is_mapped(address: [u64; 2]) -> bool {
    address[0] == 0 && address[1] >> 32 == 0xffff
}

/// Whether an address is in one of the node's sets.
#[inline(always)]
fn is_in<M: Tables>(machine: &M, which: u32, address: [u64; 2]) -> bool {
    match machine.setting(which) {
        // SAFETY: a pointer from a map lookup, aligned.
        Some(set) => machine.set_contains(unsafe { word(set) }, address[0], address[1]),
        None => false,
    }
}

#[inline(always)]
fn open<M: Frame + Tables>(machine: &mut M, link: &Link, outer: &Outer) -> Option<Verdict> {
    if !is_in(machine, setting::TUNNEL_LOCALS, outer.destination) {
        return None;
    }
    if !is_in(machine, setting::TUNNEL_SOURCES, outer.source) {
        return Some(Verdict::PassForeignTunnel);
    }
    if link.len + outer.len + outer.payload_len > machine.end() - machine.start()
        && link.len + outer.len + outer.payload_len > machine.total_len()
    {
        return Some(Verdict::DropTunnelMalformed);
    }
    let inner = if outer.inner == PROTO_IPIP {
        inner_v4(machine, link, outer)
    } else {
        inner_v6(machine, link, outer)
    };
    Some(match inner {
        Ok(ethertype) => strip(machine, link, outer.len, ethertype),
        Err(verdict) => verdict,
    })
}

/// The inner ECN field for an outer one (RFC 6040, figure 4); `None`: drop.
#[inline(always)]
const fn combine_ecn(outer: u8, inner: u8) -> Option<u8> {
    match (outer & 3, inner & 3) {
        (0b11, 0b00) => None,
        (0b11, _) => Some(0b11),
        (0b01, 0b10) => Some(0b01),
        (_, inner) => Some(inner),
    }
}

/// Checks an inner IPv4 packet, lowers its TTL and sets its ECN field.
#[inline(always)]
fn inner_v4<M: Frame + Tables>(machine: &M, link: &Link, outer: &Outer) -> Result<u16, Verdict> {
    let l3 = machine.start() + link.len + outer.len;
    if l3 + IPV4_LEN > machine.end() {
        return Err(Verdict::DropTunnelMalformed);
    }
    // SAFETY: 20 bytes from `l3` on are inside the frame.
    let (first, total_len, ttl, checksum, source, destination): (u16, u16, u16, u16, u32, u32) = unsafe {
        (
            load(l3),
            load(l3 + IPV4_TOTAL_LEN),
            load(l3 + IPV4_TTL),
            load(l3 + IPV4_CHECKSUM),
            load(l3 + IPV4_SOURCE),
            load(l3 + IPV4_DESTINATION),
        )
    };
    let [version, tos] = first.to_ne_bytes();
    let header_len = (version & 0xf) as usize * 4;
    let total_len = u16::from_be(total_len) as usize;
    if version >> 4 != 4 || header_len < IPV4_LEN || total_len < header_len || total_len > outer.payload_len {
        return Err(Verdict::DropTunnelMalformed);
    }
    if !is_in(machine, setting::TUNNEL_VIPS, [0, ranges::mapped_low(destination)]) {
        return Err(Verdict::DropTunnelNotVip);
    }
    if is_martian_v4(source) || is_in(machine, setting::TUNNEL_DENIED, [0, ranges::mapped_low(source)]) {
        return Err(Verdict::DropTunnelSource);
    }
    let Some(ecn) = combine_ecn(outer.tos, tos) else {
        return Err(Verdict::DropTunnelEcn);
    };
    let [hops, protocol] = ttl.to_ne_bytes();
    if hops <= 1 {
        return Err(Verdict::DropTunnelTtl);
    }
    let new_first = u16::from_ne_bytes([version, tos & !3 | ecn]);
    let new_ttl = u16::from_ne_bytes([hops - 1, protocol]);
    let new_checksum = checksum::update(checksum::update(checksum, first, new_first), ttl, new_ttl);
    // SAFETY: as above.
    unsafe {
        store(l3, new_first);
        store(l3 + IPV4_TTL, new_ttl);
        store(l3 + IPV4_CHECKSUM, new_checksum);
    }
    Ok(TYPE_IPV4_BE)
}

/// Checks an inner IPv6 packet, lowers its hop limit and sets its ECN field.
#[inline(always)]
fn inner_v6<M: Frame + Tables>(machine: &M, link: &Link, outer: &Outer) -> Result<u16, Verdict> {
    let l3 = machine.start() + link.len + outer.len;
    if l3 + IPV6_LEN > machine.end() {
        return Err(Verdict::DropTunnelMalformed);
    }
    // SAFETY: 40 bytes from `l3` on are inside the frame.
    let (first, payload_len, hops, source, destination): (u16, u16, u8, [u64; 2], [u64; 2]) = unsafe {
        (
            load(l3),
            load(l3 + IPV6_PAYLOAD_LEN),
            load(l3 + IPV6_HOP_LIMIT),
            [load(l3 + IPV6_SOURCE), load(l3 + IPV6_SOURCE + 8)],
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
        )
    };
    let first = u16::from_be(first);
    if first >> 12 != 6 || u16::from_be(payload_len) as usize + IPV6_LEN > outer.payload_len {
        return Err(Verdict::DropTunnelMalformed);
    }
    let destination = [u64::from_be(destination[0]), u64::from_be(destination[1])];
    if is_mapped(destination) || !is_in(machine, setting::TUNNEL_VIPS, destination) {
        return Err(Verdict::DropTunnelNotVip);
    }
    if is_martian_v6(source)
        || is_in(
            machine,
            setting::TUNNEL_DENIED,
            [u64::from_be(source[0]), u64::from_be(source[1])],
        )
    {
        return Err(Verdict::DropTunnelSource);
    }
    let class = (first >> 4) as u8;
    let Some(ecn) = combine_ecn(outer.tos, class) else {
        return Err(Verdict::DropTunnelEcn);
    };
    if hops <= 1 {
        return Err(Verdict::DropTunnelTtl);
    }
    let new_class = class & !3 | ecn;
    // SAFETY: as above.
    unsafe {
        store(l3, (first & 0xf00f | u16::from(new_class) << 4).to_be());
        store(l3 + IPV6_HOP_LIMIT, hops - 1);
    }
    Ok(TYPE_IPV6_BE)
}

/// Takes the outer header away from behind the link layer.
#[inline(always)]
fn strip<M: Frame>(machine: &mut M, link: &Link, outer_len: usize, ethertype: u16) -> Verdict {
    let start = machine.start();
    if start + ETH_TYPE > machine.end() {
        return Verdict::DropInternal;
    }
    // SAFETY: 12 bytes from `start` on are inside the frame.
    let (macs_low, macs_high): (u64, u32) = unsafe { (load(start), load(start + 8)) };
    if !machine.move_start(outer_len as i32) {
        return Verdict::DropInternal;
    }
    let start = machine.start();
    if start + ETH_TYPE + 2 * VLAN_LEN + 2 > machine.end() {
        return Verdict::DropInternal;
    }
    // SAFETY: 22 bytes from `start` on are inside the frame (the inner header is at least 20 bytes long).
    unsafe {
        store(start, macs_low);
        store(start + 8, macs_high);
        if link.tags == 0 {
            store(start + ETH_TYPE, ethertype);
        } else if link.tags >> 32 == 0 {
            store(start + ETH_TYPE, link.tags as u32);
            store(start + ETH_TYPE + VLAN_LEN, ethertype);
        } else {
            store(start + ETH_TYPE, link.tags);
            store(start + ETH_TYPE + 2 * VLAN_LEN, ethertype);
        }
    }
    Verdict::PassDecapsulated
}

#[cfg(test)]
mod tests {
    use super::combine_ecn;

    #[test]
    fn ecn_is_combined_as_rfc_6040_figure_4_says() {
        const NOT_ECT: u8 = 0b00;
        const ECT_1: u8 = 0b01;
        const ECT_0: u8 = 0b10;
        const CE: u8 = 0b11;
        // Rows: inner; columns: outer Not-ECT, ECT(0), ECT(1), CE.
        for (inner, expected) in [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ] {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(expected) {
                assert_eq!(
                    combine_ecn(outer, inner),
                    expected,
                    "outer {outer:02b}, inner {inner:02b}"
                );
            }
        }
    }
}
