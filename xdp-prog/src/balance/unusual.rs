//! What is not plain TCP or UDP over IP behind at most two VLAN tags: why it is not forwarded, if it is for a VIP address; and ARP
//! requests and neighbour solicitations for one.
//!
//! Never decides whether to answer: ownership of an address is the slow path's to know. A subprogram of its own in the kernel, which
//! reads the frame anew, so that plain packets pay nothing for it.

use super::{ipv4, ipv6, matching::Match};
use crate::{
    abi::VipMeta,
    link::is_tag,
    machine::{BalancerTables, Frame, load, opaque},
    verdict::Verdict,
    wire::{ETH_LEN, ETH_TYPE, TYPE_ARP_BE, TYPE_IPV4_BE, TYPE_IPV6_BE, VLAN_LEN},
};

/// Tags that are looked behind.
const MOST_TAGS: u64 = 4;
/// Tags that the fast path looks behind.
const PLAIN_TAGS: u64 = 2;

/// What a frame asks of an address, and what is decided once it is known whose that is.
#[derive(Clone, Copy)]
pub(super) struct Question<A> {
    /// The address.
    pub(super) address: A,
    /// The verdict if it is a VIP's.
    pub(super) reason: Verdict,
    /// The verdict if the node itself uses it.
    pub(super) own: Verdict,
    /// The verdict if it is nobody's.
    pub(super) otherwise: Verdict,
}

/// The verdict for a frame that the fast path does not forward. Frames that are not IP come here only under
/// [`crate::abi::feature::SLOW_PATH`]. An address that the node itself uses is its kernel's to answer for.
#[inline(always)]
pub fn run<M: Frame + BalancerTables>(machine: &mut M) -> Verdict {
    match verdict(machine) {
        Ok(verdict) | Err(verdict) => verdict,
    }
}

#[inline(always)]
fn verdict<M: Frame + BalancerTables>(machine: &mut M) -> Result<Verdict, Verdict> {
    let (start, end) = (machine.start(), machine.end());
    let mut l3 = start + ETH_LEN;
    if l3 > end {
        return Err(Verdict::PassUnparsed);
    }
    // SAFETY: inside the frame, as just compared.
    let mut ethertype: u16 = unsafe { load(start + ETH_TYPE) };
    let mut tags = opaque(0);
    while tags < MOST_TAGS && is_tag(ethertype) {
        l3 += VLAN_LEN;
        if l3 > end {
            return Err(Verdict::PassNotIp);
        }
        // SAFETY: inside the frame, as just compared.
        ethertype = unsafe { load(l3 - 2) };
        tags = opaque(tags + 1);
    }
    let is_deep = tags > PLAIN_TAGS;
    if ethertype == TYPE_IPV6_BE {
        let question = ipv6::question(machine, l3, is_deep)?;
        let found = machine.overflow_v6(None, question.address);
        return Ok(answer(&found, &question));
    }
    let question = match ethertype {
        TYPE_IPV4_BE => ipv4::question(machine, l3, is_deep)?,
        TYPE_ARP_BE if !is_deep => ipv4::arp_question(machine, l3)?,
        _ => return Err(Verdict::PassNotIp),
    };
    let found = machine.overflow_v4(None, question.address);
    Ok(answer(&found, &question))
}

#[inline(always)]
fn answer<A>(found: &Match, question: &Question<A>) -> Verdict {
    match found {
        Match::Nothing => question.otherwise,
        Match::Vip(meta) | Match::Address(meta) if meta.has(VipMeta::OWN_ADDRESS) => question.own,
        Match::Vip(_) | Match::Address(_) => question.reason,
    }
}
