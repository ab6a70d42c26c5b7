//! IPv6: parse, match, hash; the twin of the IPv4 room.

use super::{Flow, Match, decapsulated, is_on, policy, seed, unclaimed};
use crate::{
    abi::{BucketV6, CHOICES, KeyV6, VipMeta, WAYS_V6, feature},
    hash,
    link::Link,
    machine::{BalancerTables, Frame, MatchTables, load, opaque, word},
    verdict::Verdict,
    wire::{
        IPV6_DESTINATION, IPV6_FRAGMENT_HEADER, IPV6_LEN, IPV6_NEXT_HEADER, IPV6_PAYLOAD_LEN, IPV6_SOURCE,
        PROTO_ICMPV6, PROTO_IPV6, PROTO_TCP, PROTO_UDP, TCP_LEN, UDP_LEN, is_extension_header,
    },
};

#[inline(always)]
pub(super) fn classify<M: Frame + BalancerTables>(machine: &mut M, link: &Link) -> Result<Flow, Verdict> {
    let l3 = machine.start() + link.len;
    let end = machine.end();
    if l3 + IPV6_LEN > end {
        return Err(Verdict::PassUnparsed);
    }
    // SAFETY: 40 bytes from `l3` on are inside the frame.
    let (version, next_header, destination): (u8, u8, [u64; 2]) = unsafe {
        (
            load(l3),
            load(l3 + IPV6_NEXT_HEADER),
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
        )
    };
    if version >> 4 != 6 {
        return Err(Verdict::PassUnparsed);
    }
    let transport = next_header == PROTO_TCP || next_header == PROTO_UDP;
    let whole = l3 + IPV6_LEN + UDP_LEN <= end;
    let address = KeyV6::from_wire(destination[0], destination[1], 0, 0);
    let (key, ports, reason) = if transport && whole {
        // SAFETY: 48 bytes from `l3` on are inside the frame.
        let ports: u32 = unsafe { load(l3 + IPV6_LEN) };
        let key = KeyV6::from_wire(destination[0], destination[1], next_header, (ports >> 16) as u16);
        (Some(key), ports, Verdict::SlowUnservedPort)
    } else {
        if let Some(verdict) = decapsulated(machine, next_header) {
            return Err(verdict);
        }
        (None, 0, reason(next_header))
    };
    match find(machine, key, address) {
        Match::Vip(meta) => claimed(machine, link, l3, meta, next_header, ports),
        found => Err(unclaimed(&found, reason)),
    }
}

/// A packet that a VIP claims: may it pass, and by which hash does it choose? The caller has compared: header and ports are inside
/// the frame.
#[inline(always)]
fn claimed<M: Frame + BalancerTables>(
    machine: &mut M,
    link: &Link,
    l3: usize,
    meta: VipMeta,
    next_header: u8,
    ports: u32,
) -> Result<Flow, Verdict> {
    // SAFETY: 48 bytes from `l3` on are inside the frame.
    let (first, payload_len, source, destination): (u16, u16, [u64; 2], [u64; 2]) = unsafe {
        (
            load(l3),
            load(l3 + IPV6_PAYLOAD_LEN),
            [load(l3 + IPV6_SOURCE), load(l3 + IPV6_SOURCE + 8)],
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
        )
    };
    let payload_len = u32::from(u16::from_be(payload_len));
    let ip_len = payload_len + IPV6_LEN as u32;
    let least = if next_header == PROTO_TCP { TCP_LEN } else { UDP_LEN };
    if (payload_len as usize) < least || !machine.holds(link.len + ip_len as usize) {
        return Err(Verdict::DropMalformed);
    }
    if is_on(machine, feature::DROP_MARTIANS) && is_martian(source) {
        return Err(Verdict::DropMartian);
    }
    if is_on(machine, feature::DROP_SOURCE_IS_VIP) && source[0] == destination[0] && source[1] == destination[1] {
        return Err(Verdict::DropSourceIsVip);
    }
    policy::admit(
        machine,
        meta,
        || [u64::from_be(source[0]), u64::from_be(source[1])],
        next_header,
        l3 + IPV6_LEN,
    )?;
    let hash = hash::flow_v6(&seed(machine), source, destination, ports, next_header);
    Ok(Flow {
        meta,
        hash,
        ip_len,
        tos: (u16::from_be(first) >> 4) as u8,
        inner: PROTO_IPV6,
    })
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

/// Looks for `key`, if there is one, and for the address entry where it is not there. One cache line answers, unless that says
/// that something of it stands elsewhere.
#[inline(always)]
fn find<M: BalancerTables>(machine: &M, key: Option<KeyV6>, address: KeyV6) -> Match {
    let (salt, mask) = hashing(machine);
    let Some(bucket) = machine.bucket_v6(address.home(salt, mask)) else {
        return Match::Nothing;
    };
    if let Some(key) = key
        && let Some(found) = in_bucket(bucket, key)
    {
        return Match::Vip(found);
    }
    // SAFETY: a pointer from a map lookup, words aligned.
    if VipMeta(unsafe { word(&raw const (*bucket).entries[0].meta) }).has(VipMeta::OVERFLOW) {
        return machine.overflow_v6(key, address);
    }
    in_bucket(bucket, address).map_or(Match::Nothing, Match::Address)
}

/// The long way of the same: looks into all buckets of both keys. One loop and not six copies of its body.
#[inline(always)]
pub fn overflow<M: MatchTables>(machine: &M, key: Option<KeyV6>, address: KeyV6) -> Match {
    let (salt, mask) = hashing(machine);
    let mut round = opaque(if key.is_some() { 0 } else { CHOICES as u64 });
    // The compiler does not see the count, so it neither peels nor unrolls the loop; the verifier does.
    while round < 2 * CHOICES as u64 {
        let (wanted, choice) = match key {
            Some(key) if round < CHOICES as u64 => (key, round),
            Some(_) | None => (address, round - CHOICES as u64),
        };
        let [first, second, third] = wanted.buckets(salt, mask);
        let index = if choice == 0 {
            first
        } else if choice == 1 {
            second
        } else {
            third
        };
        if let Some(found) = machine.bucket_v6(index).and_then(|bucket| in_bucket(bucket, wanted)) {
            return if round < CHOICES as u64 {
                Match::Vip(found)
            } else {
                Match::Address(found)
            };
        }
        round = opaque(round + 1);
    }
    Match::Nothing
}

/// Salt and mask of the match table.
#[inline(always)]
fn hashing<M: MatchTables>(machine: &M) -> (u64, u64) {
    let config = machine.config();
    // SAFETY: the configuration lives as long as the program.
    unsafe {
        (
            word(&raw const (*config).match_salt),
            word(&raw const (*config).match_mask_v6),
        )
    }
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
