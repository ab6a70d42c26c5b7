//! IPv6: parse, match, hash; the twin of the IPv4 room.

use super::{
    Flow, decapsulated, is_on,
    matching::{Match, find},
    policy, seed, unclaimed,
    unusual::{Answers, Question},
};
use crate::{
    abi::{KeyV6, VipMeta, feature},
    hash,
    link::Link,
    machine::{BalancerTables, Frame, load},
    verdict::Verdict,
    wire::{
        ICMPV6_SOLICITATION, IPV6_DESTINATION, IPV6_FRAGMENT_HEADER, IPV6_HOP_LIMIT, IPV6_LEN, IPV6_NEXT_HEADER,
        IPV6_PAYLOAD_LEN, IPV6_SOURCE, ON_LINK_HOP_LIMIT, PROTO_ICMPV6, PROTO_IPV6, PROTO_TCP, PROTO_UDP,
        SOLICITATION_LEN, SOLICITATION_TARGET, SOLICITED_NODE_HIGH_BE, SOLICITED_NODE_LOW_BE, SOLICITED_NODE_MASK_BE,
        TCP_LEN, UDP_LEN, is_extension_header,
    },
};

#[inline(always)]
pub(super) fn classify<M: Frame + BalancerTables>(machine: &mut M, link: &Link) -> Result<Flow, Verdict> {
    let l3 = machine.start() + link.len;
    if l3 + IPV6_LEN + UDP_LEN > machine.end() {
        return Err(machine.unusual());
    }
    // SAFETY: 48 bytes from `l3` on are inside the frame.
    let (version, next_header, destination, ports): (u8, u8, [u64; 2], u32) = unsafe {
        (
            load(l3),
            load(l3 + IPV6_NEXT_HEADER),
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
            load(l3 + IPV6_LEN),
        )
    };
    if version >> 4 != 6 || next_header != PROTO_TCP && next_header != PROTO_UDP {
        return Err(machine.unusual());
    }
    let key = KeyV6::from_wire(destination[0], destination[1], next_header, (ports >> 16) as u16);
    match find(machine, key, KeyV6::from_wire(destination[0], destination[1], 0, 0)) {
        Match::Vip(meta) => claimed(machine, link, l3, meta, next_header, ports),
        found => Err(unclaimed(&found, Verdict::SlowUnservedPort)),
    }
}

/// What a packet that is not plain TCP or UDP in one piece asks of its destination, or one behind more tags than two, or whom a
/// neighbour solicitation asks for; `l3` is where its IP header begins.
#[inline(always)]
pub(super) fn question<M: Frame + BalancerTables>(
    machine: &mut M,
    l3: usize,
    is_deep: bool,
) -> Result<Question<KeyV6>, Verdict> {
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
    let mut question = Question {
        address: KeyV6::from_wire(destination[0], destination[1], 0, 0),
        answers: Answers::not_ip(Verdict::SlowVlanTags),
    };
    if is_deep {
        return Ok(question);
    }
    if is_on::<{ feature::SLOW_PATH }>(machine)
        && next_header == PROTO_ICMPV6
        && l3 + IPV6_LEN + SOLICITATION_LEN <= end
    {
        let l4 = l3 + IPV6_LEN;
        // SAFETY: 24 bytes from `l4` on are inside the frame, and 40 in front of it.
        let (hop_limit, kind, target): (u8, u8, [u64; 2]) = unsafe {
            (
                load(l3 + IPV6_HOP_LIMIT),
                load(l4),
                [load(l4 + SOLICITATION_TARGET), load(l4 + SOLICITATION_TARGET + 8)],
            )
        };
        // What may have passed a router asks nothing (RFC 4861, 7.1.1), and must take no token of those who do.
        if hop_limit == ON_LINK_HOP_LIMIT && kind == ICMPV6_SOLICITATION {
            // Sent to the solicited-node multicast address or to the target itself (RFC 4861, 4.3).
            let is_solicited_node = destination[0] == SOLICITED_NODE_HIGH_BE
                && destination[1] & SOLICITED_NODE_MASK_BE == SOLICITED_NODE_LOW_BE;
            if is_solicited_node {
                question.address = KeyV6::from_wire(target[0], target[1], 0, 0);
                question.answers = Answers::new(Verdict::SlowNeighbour, Verdict::PassNotVip, Verdict::PassNotVip);
                return Ok(question);
            }
            if destination[0] == target[0] && destination[1] == target[1] {
                question.answers = Answers::ip(Verdict::SlowNeighbour);
                return Ok(question);
            }
        }
    }
    if let Some(verdict) = decapsulated(machine, next_header) {
        return Err(verdict);
    }
    question.answers = answers(next_header);
    Ok(question)
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
    if is_on::<{ feature::DROP_MARTIANS }>(machine) && is_martian(source) {
        return Err(Verdict::DropMartian);
    }
    if is_on::<{ feature::DROP_SOURCE_IS_VIP }>(machine) && source[0] == destination[0] && source[1] == destination[1] {
        return Err(Verdict::DropSourceIsVip);
    }
    machine.claimed(meta.vip().0);
    policy::admit(
        machine,
        meta,
        || [u64::from_be(source[0]), u64::from_be(source[1])],
        next_header,
        l3 + IPV6_LEN,
    )?;
    let hash = if is_on::<{ feature::AFFINITY }>(machine) && meta.has(VipMeta::CLIENT_AFFINITY) {
        hash::client_v6(&seed(machine), source)
    } else {
        hash::flow_v6(&seed(machine), source, destination, ports, next_header)
    };
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
fn answers(next_header: u8) -> Answers {
    Answers::ip(if next_header == IPV6_FRAGMENT_HEADER {
        Verdict::SlowFragment
    } else if is_extension_header(next_header) {
        Verdict::SlowExtensionHeader
    } else if next_header == PROTO_ICMPV6 {
        Verdict::SlowIcmp
    } else if next_header == PROTO_TCP || next_header == PROTO_UDP {
        Verdict::DropMalformed
    } else {
        Verdict::SlowProtocol
    })
}

/// Sources that no packet from the network may have: unspecified, loopback and the rest of ::/96, IPv4-mapped
/// (RFC 4291, 2.5), link-local (2.5.6: never forwarded), multicast (2.7).
#[inline(always)]
pub(crate) const fn is_martian(source: [u64; 2]) -> bool {
    let (high, low) = (u64::from_be(source[0]), u64::from_be(source[1]));
    let mapped_or_compatible = high == 0 && (low >> 32 == 0 || low >> 32 == 0xffff);
    mapped_or_compatible || high >> 56 == 0xff || high >> 54 == 0xfe80 >> 6
}
