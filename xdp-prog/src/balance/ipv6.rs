//! IPv6: parse, match, hash; the twin of the IPv4 room.

use super::{Flow, Link, is_on, policy, seed, unclaimed};
use crate::{
    abi::{BucketV6, KeyV6, VipMeta, WAYS_V6, feature},
    decap, hash,
    machine::{BalancerTables, Frame, load, word},
    verdict::Verdict,
    wire::{
        IPV6_DESTINATION, IPV6_FRAGMENT_HEADER, IPV6_LEN, IPV6_NEXT_HEADER, IPV6_PAYLOAD_LEN, IPV6_SOURCE,
        PROTO_ICMPV6, PROTO_IPIP, PROTO_IPV6, PROTO_TCP, PROTO_UDP, TCP_LEN, UDP_LEN, is_extension_header,
    },
};

#[inline(always)]
pub(super) fn classify<M: Frame + BalancerTables>(machine: &mut M, link: &Link) -> Result<Flow, Verdict> {
    let l3 = machine.start() + link.len;
    let end = machine.end();
    if l3 + IPV6_LEN + UDP_LEN > end {
        return Err(short(machine, l3, end));
    }
    // SAFETY: 48 bytes from `l3` on are inside the frame.
    let (first, next_header, destination): (u16, u8, [u64; 2]) = unsafe {
        (
            load(l3),
            load(l3 + IPV6_NEXT_HEADER),
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
        )
    };
    let first = u16::from_be(first);
    let transport = next_header == PROTO_TCP || next_header == PROTO_UDP;
    if first >> 12 != 6 || !transport {
        return Err(odd(machine, link, first >> 12 == 6, next_header, destination));
    }
    // SAFETY: as above.
    let ports: u32 = unsafe { load(l3 + IPV6_LEN) };
    let key = KeyV6::from_wire(destination[0], destination[1], next_header, (ports >> 16) as u16);
    let Some(meta) = find(machine, key) else {
        return Err(unclaimed(find_address(machine, destination), Verdict::SlowUnservedPort));
    };

    // SAFETY: as above.
    let (payload_len, source): (u16, [u64; 2]) =
        unsafe { (load(l3 + IPV6_PAYLOAD_LEN), [load(l3 + IPV6_SOURCE), load(l3 + IPV6_SOURCE + 8)]) };
    let payload_len = u32::from(u16::from_be(payload_len));
    let ip_len = payload_len + IPV6_LEN as u32;
    let least = if next_header == PROTO_TCP { TCP_LEN } else { UDP_LEN };
    if (payload_len as usize) < least || l3 + ip_len as usize > end && link.len + ip_len as usize > machine.total_len()
    {
        return Err(Verdict::DropMalformed);
    }
    if is_on(machine, feature::DROP_MARTIANS) && is_martian(source) {
        return Err(Verdict::DropMartian);
    }
    if is_on(machine, feature::DROP_SOURCE_IS_VIP) && source[0] == destination[0] && source[1] == destination[1] {
        return Err(Verdict::DropSourceIsVip);
    }
    policy::admit(machine, meta, || [u64::from_be(source[0]), u64::from_be(source[1])], next_header, l3 + IPV6_LEN)?;
    let hash = hash::flow_v6(&seed(machine), source, destination, ports, next_header);
    Ok(Flow { meta, hash, ip_len, tos: (first >> 4) as u8, inner: PROTO_IPV6 })
}

/// A frame that ends before the ports.
#[inline(always)]
fn short<M: BalancerTables>(machine: &M, l3: usize, end: usize) -> Verdict {
    if l3 + IPV6_LEN > end {
        return Verdict::PassUnparsed;
    }
    // SAFETY: 40 bytes from `l3` on are inside the frame.
    let (first, next_header, destination): (u8, u8, [u64; 2]) = unsafe {
        (
            load(l3),
            load(l3 + IPV6_NEXT_HEADER),
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
        )
    };
    if first >> 4 != 6 {
        return Verdict::PassUnparsed;
    }
    unclaimed(find_address(machine, destination), reason(next_header))
}

/// A packet that the fast path does not forward.
#[inline(always)]
fn odd<M: Frame + BalancerTables>(
    machine: &mut M,
    link: &Link,
    is_ipv6: bool,
    next_header: u8,
    destination: [u64; 2],
) -> Verdict {
    if !is_ipv6 {
        return Verdict::PassUnparsed;
    }
    if is_on(machine, feature::DECAP)
        && (next_header == PROTO_IPIP || next_header == PROTO_IPV6)
        && let Some(verdict) = decap::ipv6(machine, link)
    {
        return verdict;
    }
    unclaimed(find_address(machine, destination), reason(next_header))
}

/// Why the fast path does not forward a packet to a VIP address.
#[inline(always)]
fn reason(next_header: u8) -> Verdict {
    if next_header == IPV6_FRAGMENT_HEADER {
        Verdict::SlowFragment
    } else if is_extension_header(next_header) {
        Verdict::SlowExtensionHeader
    } else if next_header == PROTO_ICMPV6 {
        Verdict::SlowIcmp
    } else if next_header == PROTO_TCP || next_header == PROTO_UDP {
        Verdict::DropMalformed
    } else {
        Verdict::SlowProtocol
    }
}

#[inline(always)]
fn find_address<M: BalancerTables>(machine: &M, address: [u64; 2]) -> Option<VipMeta> {
    find(machine, KeyV6::from_wire(address[0], address[1], 0, 0))
}

/// Looks a key up in its two buckets.
#[inline(always)]
fn find<M: BalancerTables>(machine: &M, key: KeyV6) -> Option<VipMeta> {
    let config = machine.config();
    // SAFETY: the configuration lives as long as the program.
    let (salt, mask) =
        unsafe { (word(&raw const (*config).match_salt), word(&raw const (*config).match_mask_v6)) };
    let (first, second) = key.buckets(salt, mask);
    in_bucket(machine.bucket_v6(first)?, key).or_else(|| in_bucket(machine.bucket_v6(second)?, key))
}

#[inline(always)]
fn in_bucket(bucket: *const BucketV6, key: KeyV6) -> Option<VipMeta> {
    let mut way = 0;
    while way < WAYS_V6 {
        // SAFETY: a pointer from a map lookup, words aligned. The tail is read first: it is written last, and a removal
        // clears it, so an entry whose tail fits was whole.
        unsafe {
            let entry = &raw const (*bucket).entries[way];
            if word(&raw const (*entry).tail) == key.tail
                && word(&raw const (*entry).low) == key.low
                && word(&raw const (*entry).high) == key.high
            {
                return Some(VipMeta(word(&raw const (*entry).meta)));
            }
        }
        way += 1;
    }
    None
}

/// Sources that no packet from the network may have: unspecified, loopback and the rest of ::/96, IPv4-mapped
/// (RFC 4291, 2.5), link-local (2.5.6: never forwarded), multicast (2.7).
#[inline(always)]
pub(crate) const fn is_martian(source: [u64; 2]) -> bool {
    let (high, low) = (u64::from_be(source[0]), u64::from_be(source[1]));
    let mapped_or_compatible = high == 0 && (low >> 32 == 0 || low >> 32 == 0xffff);
    mapped_or_compatible || high >> 56 == 0xff || high >> 54 == 0xfe80 >> 6
}
