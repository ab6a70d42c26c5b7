//! IPv4: parse, match, hash. One bounds check for the common case; everything odd leaves by the address entry of the match table.

use super::{
    Flow, decapsulated, is_on,
    matching::{Match, find},
    policy, seed, unclaimed,
    unusual::{Answers, Question},
};
use crate::{
    abi::{KeyV4, VipMeta, feature},
    hash,
    link::Link,
    machine::{BalancerTables, Frame, load, opaque},
    ranges,
    verdict::Verdict,
    wire::{
        ARP_LEN, ARP_REQUEST_BE, ARP_TARGET, IPV4_DESTINATION, IPV4_FRAGMENT, IPV4_FRAGMENT_MASK_BE, IPV4_LEN,
        IPV4_PROTOCOL, IPV4_SOURCE, IPV4_TOS, IPV4_TOTAL_LEN, IPV4_VERSION, PROTO_ICMP, PROTO_IPIP, PROTO_TCP,
        PROTO_UDP, TCP_LEN, UDP_LEN,
    },
};

const VERSION_AND_LEN: u8 = 0x45;

#[inline(always)]
pub(super) fn classify<M: Frame + BalancerTables>(machine: &mut M, link: &Link) -> Result<Flow, Verdict> {
    let l3 = machine.start() + link.len;
    if l3 + IPV4_LEN + UDP_LEN > machine.end() {
        return Err(machine.unusual());
    }
    // SAFETY: 28 bytes from `l3` on are inside the frame.
    let (version, fragment, protocol, destination, ports): (u8, u16, u8, u32, u32) = unsafe {
        (
            load(l3 + IPV4_VERSION),
            load(l3 + IPV4_FRAGMENT),
            load(l3 + IPV4_PROTOCOL),
            load(l3 + IPV4_DESTINATION),
            load(l3 + IPV4_LEN),
        )
    };
    // Opaque: one mask in a whole register, not one for each of its lower halves.
    let fragment = opaque(u64::from(fragment)) & u64::from(IPV4_FRAGMENT_MASK_BE) != 0;
    if version != VERSION_AND_LEN || fragment || protocol != PROTO_TCP && protocol != PROTO_UDP {
        return Err(machine.unusual());
    }
    let key = KeyV4::from_wire(destination, protocol, (ports >> 16) as u16);
    match find(machine, key, KeyV4::from_wire(destination, 0, 0)) {
        Match::Vip(meta) => claimed(machine, link, l3, meta, protocol, ports),
        found => Err(unclaimed(&found, Verdict::SlowUnservedPort)),
    }
}

/// What a packet that is not plain TCP or UDP in one piece asks of its destination, or one behind more tags than two; `l3` is where
/// its IP header begins.
#[inline(always)]
pub(super) fn question<M: Frame + BalancerTables>(
    machine: &mut M,
    l3: usize,
    is_deep: bool,
) -> Result<Question<KeyV4>, Verdict> {
    if l3 + IPV4_LEN > machine.end() {
        return Err(Verdict::PassUnparsed);
    }
    // SAFETY: 20 bytes from `l3` on are inside the frame.
    let (version, fragment, protocol, destination): (u8, u16, u8, u32) = unsafe {
        (
            load(l3 + IPV4_VERSION),
            load(l3 + IPV4_FRAGMENT),
            load(l3 + IPV4_PROTOCOL),
            load(l3 + IPV4_DESTINATION),
        )
    };
    let address = KeyV4::from_wire(destination, 0, 0);
    if is_deep {
        return Ok(Question {
            address,
            answers: Answers::not_ip(Verdict::SlowVlanTags),
        });
    }
    if let Some(verdict) = decapsulated(machine, protocol) {
        return Err(verdict);
    }
    if version >> 4 != 4 {
        return Err(Verdict::PassUnparsed);
    }
    Ok(Question {
        address,
        answers: answers(version, fragment & IPV4_FRAGMENT_MASK_BE != 0, protocol),
    })
}

/// Whom an ARP request asks for, a gratuitous one and a probe (RFC 5227) included; `l3` is where it begins.
#[inline(always)]
pub(super) fn arp_question<M: Frame>(machine: &M, l3: usize) -> Result<Question<KeyV4>, Verdict> {
    if l3 + ARP_LEN > machine.end() {
        return Err(Verdict::PassNotIp);
    }
    // SAFETY: 28 bytes from `l3` on are inside the frame.
    let (head, target): (u64, u32) = unsafe { (load(l3), load(l3 + ARP_TARGET)) };
    if head != ARP_REQUEST_BE {
        return Err(Verdict::PassNotIp);
    }
    Ok(Question {
        address: KeyV4::from_wire(target, 0, 0),
        answers: Answers::not_ip(Verdict::SlowNeighbour),
    })
}

/// A packet that a VIP claims: may it pass, and by which hash does it choose? The caller has compared: header and ports are inside
/// the frame.
#[inline(always)]
fn claimed<M: Frame + BalancerTables>(
    machine: &mut M,
    link: &Link,
    l3: usize,
    meta: VipMeta,
    protocol: u8,
    ports: u32,
) -> Result<Flow, Verdict> {
    // SAFETY: 28 bytes from `l3` on are inside the frame.
    let (tos, total_len, addresses): (u8, u16, u64) =
        unsafe { (load(l3 + IPV4_TOS), load(l3 + IPV4_TOTAL_LEN), load(l3 + IPV4_SOURCE)) };
    let (source, destination) = (addresses as u32, (addresses >> 32) as u32);
    let ip_len = u32::from(u16::from_be(total_len));
    let least = IPV4_LEN + if protocol == PROTO_TCP { TCP_LEN } else { UDP_LEN };
    if (ip_len as usize) < least || !machine.holds(link.len + ip_len as usize) {
        return Err(Verdict::DropMalformed);
    }
    if is_on::<{ feature::DROP_MARTIANS }>(machine) && is_martian(source) {
        return Err(Verdict::DropMartian);
    }
    if is_on::<{ feature::DROP_SOURCE_IS_VIP }>(machine) && source == destination {
        return Err(Verdict::DropSourceIsVip);
    }
    machine.claimed(meta.vip().0);
    policy::admit(
        machine,
        meta,
        || [0, ranges::mapped_low(source)],
        protocol,
        l3 + IPV4_LEN,
    )?;
    let hash = if is_on::<{ feature::AFFINITY }>(machine) && meta.has(VipMeta::CLIENT_AFFINITY) {
        hash::client_v4(&seed(machine), source)
    } else {
        hash::flow_v4(&seed(machine), addresses, ports, protocol)
    };
    Ok(Flow {
        meta,
        hash,
        ip_len,
        tos,
        inner: PROTO_IPIP,
    })
}

/// Why the fast path does not forward a packet to a VIP address.
#[inline(always)]
fn answers(version: u8, fragment: bool, protocol: u8) -> Answers {
    Answers::ip(if version < VERSION_AND_LEN {
        Verdict::DropMalformed
    } else if fragment {
        Verdict::SlowFragment
    } else if version > VERSION_AND_LEN {
        Verdict::SlowIpOptions
    } else if protocol == PROTO_ICMP {
        Verdict::SlowIcmp
    } else if protocol == PROTO_TCP || protocol == PROTO_UDP {
        Verdict::DropMalformed
    } else {
        Verdict::SlowProtocol
    })
}

/// Sources that no packet from the network may have: 0/8, 127/8 (RFC 1122, 3.2.1.3), 169.254/16 (RFC 3927, 2.7: never
/// forwarded), multicast, reserved and broadcast (224/3).
#[inline(always)]
pub(crate) const fn is_martian(source_be: u32) -> bool {
    let source = u32::from_be(source_be);
    let network = source >> 24;
    network == 0 || network == 127 || network >= 224 || source >> 16 == 0xa9fe
}
