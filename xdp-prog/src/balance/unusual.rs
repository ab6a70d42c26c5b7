//! What is not plain IP behind at most two VLAN tags, and is for a VIP address all the same: ARP requests, neighbour solicitations,
//! packets with more tags.
//!
//! Never decides whether to answer: ownership of an address is the slow path's to know. A subprogram of its own in the kernel, which
//! reads the frame anew, so that plain packets pay nothing.

use super::matching::Match;
use crate::{
    abi::{KeyV4, KeyV6, VipMeta},
    link::is_tag,
    machine::{BalancerTables, Frame, load},
    verdict::Verdict,
    wire::{
        ARP_LEN, ARP_REQUEST_BE, ARP_TARGET, ETH_LEN, ETH_TYPE, ICMPV6_SOLICITATION, IPV4_DESTINATION, IPV4_LEN,
        IPV6_DESTINATION, IPV6_LEN, IPV6_NEXT_HEADER, PROTO_ICMPV6, SOLICITATION_LEN, SOLICITATION_TARGET,
        SOLICITED_NODE_HIGH_BE, SOLICITED_NODE_LOW_BE, SOLICITED_NODE_MASK_BE, TYPE_ARP_BE, TYPE_IPV4_BE, TYPE_IPV6_BE,
        VLAN_LEN,
    },
};

/// Tags that are looked behind.
const MOST_TAGS: usize = 4;
/// Tags that the fast path looks behind.
const PLAIN_TAGS: usize = 2;

/// [`Verdict::SlowNeighbour`] for who asks for a VIP address, [`Verdict::SlowVlanTags`] for IP to one behind three or four tags,
/// else [`Verdict::PassNotIp`], which means nothing for a packet that is IP. An address that the node itself uses is its kernel's.
#[inline(always)]
pub fn run<M: Frame + BalancerTables>(machine: &M) -> Verdict {
    let (start, end) = (machine.start(), machine.end());
    let mut l3 = start + ETH_LEN;
    if l3 > end {
        return Verdict::PassNotIp;
    }
    // SAFETY: inside the frame, as just compared.
    let mut ethertype: u16 = unsafe { load(start + ETH_TYPE) };
    let mut tags = 0;
    while tags < MOST_TAGS && is_tag(ethertype) {
        l3 += VLAN_LEN;
        if l3 > end {
            return Verdict::PassNotIp;
        }
        // SAFETY: inside the frame, as just compared.
        ethertype = unsafe { load(l3 - 2) };
        tags += 1;
    }
    let is_deep = tags > PLAIN_TAGS;
    let (found, verdict) = match ethertype {
        TYPE_ARP_BE if !is_deep => (arp_target(machine, l3, end), Verdict::SlowNeighbour),
        TYPE_IPV4_BE if is_deep => (destination_v4(machine, l3, end), Verdict::SlowVlanTags),
        TYPE_IPV6_BE if is_deep => (destination_v6(machine, l3, end), Verdict::SlowVlanTags),
        TYPE_IPV6_BE => (solicited_target(machine, l3, end), Verdict::SlowNeighbour),
        _ => return Verdict::PassNotIp,
    };
    match found {
        Match::Vip(meta) | Match::Address(meta) if !meta.has(VipMeta::OWN_ADDRESS) => verdict,
        Match::Vip(_) | Match::Address(_) | Match::Nothing => Verdict::PassNotIp,
    }
}

/// Whom an ARP request asks for, a gratuitous one and a probe (RFC 5227) included.
#[inline(always)]
fn arp_target<M: BalancerTables>(machine: &M, l3: usize, end: usize) -> Match {
    if l3 + ARP_LEN > end {
        return Match::Nothing;
    }
    // SAFETY: 28 bytes from `l3` on are inside the frame.
    let (head, target): (u64, u32) = unsafe { (load(l3), load(l3 + ARP_TARGET)) };
    if head != ARP_REQUEST_BE {
        return Match::Nothing;
    }
    machine.overflow_v4(None, KeyV4::from_wire(target, 0, 0))
}

/// Whom a neighbour solicitation asks for, sent to where one is sent to (RFC 4861, 4.3).
#[inline(always)]
fn solicited_target<M: BalancerTables>(machine: &M, l3: usize, end: usize) -> Match {
    let l4 = l3 + IPV6_LEN;
    if l4 + SOLICITATION_LEN > end {
        return Match::Nothing;
    }
    // SAFETY: 64 bytes from `l3` on are inside the frame.
    let (next_header, kind, destination, target): (u8, u8, [u64; 2], [u64; 2]) = unsafe {
        (
            load(l3 + IPV6_NEXT_HEADER),
            load(l4),
            [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)],
            [load(l4 + SOLICITATION_TARGET), load(l4 + SOLICITATION_TARGET + 8)],
        )
    };
    let is_multicast = destination[0] & 0xff == 0xff;
    let is_solicited_node =
        destination[0] == SOLICITED_NODE_HIGH_BE && destination[1] & SOLICITED_NODE_MASK_BE == SOLICITED_NODE_LOW_BE;
    if next_header != PROTO_ICMPV6 || kind != ICMPV6_SOLICITATION || is_multicast && !is_solicited_node {
        return Match::Nothing;
    }
    machine.overflow_v6(None, KeyV6::from_wire(target[0], target[1], 0, 0))
}

#[inline(always)]
fn destination_v4<M: BalancerTables>(machine: &M, l3: usize, end: usize) -> Match {
    if l3 + IPV4_LEN > end {
        return Match::Nothing;
    }
    // SAFETY: 20 bytes from `l3` on are inside the frame.
    let destination: u32 = unsafe { load(l3 + IPV4_DESTINATION) };
    machine.overflow_v4(None, KeyV4::from_wire(destination, 0, 0))
}

#[inline(always)]
fn destination_v6<M: BalancerTables>(machine: &M, l3: usize, end: usize) -> Match {
    if l3 + IPV6_LEN > end {
        return Match::Nothing;
    }
    // SAFETY: 40 bytes from `l3` on are inside the frame.
    let [high, low]: [u64; 2] = unsafe { [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)] };
    machine.overflow_v6(None, KeyV6::from_wire(high, low, 0, 0))
}
