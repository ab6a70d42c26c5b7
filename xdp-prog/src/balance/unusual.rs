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
    /// The verdicts.
    pub(super) answers: Answers,
}

/// Three verdicts in one word: one constant for each kind of frame, and one shift to choose.
#[derive(Clone, Copy)]
pub(super) struct Answers(u64);

impl Answers {
    const BITS: u32 = u8::BITS;

    /// The verdict if the address is a VIP's, if the node itself uses it, and if it is nobody's.
    pub(super) const fn new(reason: Verdict, own: Verdict, otherwise: Verdict) -> Self {
        Self(reason as u64 | (own as u64) << Self::BITS | (otherwise as u64) << (2 * Self::BITS))
    }

    /// Those of an IP packet.
    #[inline(always)]
    pub(super) const fn ip(reason: Verdict) -> Self {
        Self::new(reason, Verdict::PassOwnAddress, Verdict::PassNotVip)
    }

    /// Those of a frame that is not IP to the fast path.
    #[inline(always)]
    pub(super) const fn not_ip(reason: Verdict) -> Self {
        Self::new(reason, Verdict::PassNotIp, Verdict::PassNotIp)
    }

    #[inline(always)]
    fn choose(self, found: &Match) -> Verdict {
        let shift = match found {
            Match::Nothing => 2 * Self::BITS,
            Match::Vip(meta) | Match::Address(meta) if meta.has(VipMeta::OWN_ADDRESS) => Self::BITS,
            Match::Vip(_) | Match::Address(_) => 0,
        };
        // SAFETY: each of the three bytes is a verdict's number.
        unsafe { core::mem::transmute::<u8, Verdict>((self.0 >> opaque(u64::from(shift))) as u8) }
    }
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
    let mut ethertype = opaque(u64::from(unsafe { load::<u16>(start + ETH_TYPE) }));
    let mut tags = opaque(0);
    while tags < MOST_TAGS && is_tag(ethertype) {
        l3 += VLAN_LEN;
        if l3 > end {
            return Err(Verdict::PassNotIp);
        }
        // SAFETY: inside the frame, as just compared.
        ethertype = opaque(u64::from(unsafe { load::<u16>(l3 - 2) }));
        tags = opaque(tags + 1);
    }
    let is_deep = tags > PLAIN_TAGS;
    let (answers, found) = if ethertype == u64::from(TYPE_IPV6_BE) {
        let question = ipv6::question(machine, l3, is_deep)?;
        (question.answers, machine.overflow_v6(None, question.address))
    } else {
        let question = if ethertype == u64::from(TYPE_IPV4_BE) {
            ipv4::question(machine, l3, is_deep)?
        } else if ethertype == u64::from(TYPE_ARP_BE) && !is_deep {
            ipv4::arp_question(machine, l3)?
        } else {
            return Err(Verdict::PassNotIp);
        };
        (question.answers, machine.overflow_v4(None, question.address))
    };
    // Opaque: one copy for both families.
    Ok(answers.choose(&Match::from_word(opaque(found))))
}
