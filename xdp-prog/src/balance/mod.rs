//! The balancer: from a frame to a verdict. Never reads or writes per-flow state while nothing changes, so a million flows cost
//! what one costs and a SYN flood has nothing to fill.
//!
//! | module | step |
//! |---|---|
//! | [`crate::link`] | Ethernet and VLAN tags |
//! | `ipv4`, `ipv6` | IP and ports, flow hash |
//! | [`matching`] | match table |
//! | `policy` | who may send, and how much |
//! | `forward` | slot, backend line, encapsulation |
//! | [`transit`] | where a flow lives that is not at its slot's backend |
//! | [`schedule`] | where a new flow goes, for VIPs with a scheduler |
//! | [`unusual`] | everything that is not plain TCP or UDP over IP: why it is not forwarded, if it is for a VIP address |

mod forward;
mod ipv4;
mod ipv6;
pub mod matching;
mod policy;
pub mod schedule;
pub mod transit;
pub mod unusual;

pub(crate) use ipv4::is_martian as is_martian_v4;
pub(crate) use ipv6::is_martian as is_martian_v6;

use matching::Match;

use crate::{
    abi::{VipMeta, feature},
    link::{self, Link},
    machine::{BalancerTables, Frame, Tables, is_on, word},
    verdict::{Fate, Verdict},
    wire::{PROTO_IPIP, PROTO_IPV6, TYPE_IPV4_BE, TYPE_IPV6_BE},
};

/// A packet that a VIP claims, ready to be sent.
struct Flow {
    meta: VipMeta,
    hash: u64,
    /// Bytes from the IP header to the end of the payload.
    ip_len: u32,
    /// Type of service or traffic class.
    tos: u8,
    /// Protocol number of this packet inside another.
    inner: u8,
}

/// Decides for the packet and carries it out; returns what to count. [`Fate`] says what to tell the driver.
#[inline(always)]
pub fn run<M: Frame + BalancerTables>(machine: &mut M) -> Verdict {
    let verdict = match classify(machine) {
        Ok((link, flow)) => forward::forward(machine, &link, &flow),
        Err(verdict) => verdict,
    };
    // A match on the fate would cost the fast path a comparison per verdict.
    if is_on::<{ feature::SLOW_PATH }>(machine) && matches!(verdict.fate(), Fate::Slow) {
        return machine.to_slow_path(verdict);
    }
    verdict
}

#[inline(always)]
fn classify<M: Frame + BalancerTables>(machine: &mut M) -> Result<(Link, Flow), Verdict> {
    let link = link::parse(machine)?;
    let flow = match link.ethertype {
        TYPE_IPV4_BE => ipv4::classify(machine, &link),
        TYPE_IPV6_BE => ipv6::classify(machine, &link),
        _ if is_on::<{ feature::SLOW_PATH }>(machine) => Err(machine.unusual()),
        _ => Err(Verdict::PassNotIp),
    }?;
    Ok((link, flow))
}

/// The verdict for a packet that no VIP claims; `reason` is why, if it is for a VIP address.
#[inline(always)]
fn unclaimed(found: &Match, reason: Verdict) -> Verdict {
    match found {
        Match::Nothing => Verdict::PassNotVip,
        Match::Vip(meta) | Match::Address(meta) if meta.has(VipMeta::OWN_ADDRESS) => Verdict::PassOwnAddress,
        Match::Vip(_) | Match::Address(_) => reason,
    }
}

/// What became of a packet with this protocol number if it is a tunnel packet for this node, which is a worker node too.
#[inline(always)]
fn decapsulated<M: BalancerTables>(machine: &mut M, protocol: u8) -> Option<Verdict> {
    if !is_on::<{ feature::DECAP }>(machine) || protocol != PROTO_IPIP && protocol != PROTO_IPV6 {
        return None;
    }
    match machine.decapsulate() {
        Verdict::PassNotTunnel => None,
        verdict => Some(verdict),
    }
}

/// The four words of the seed.
#[inline(always)]
fn seed<M: Tables>(machine: &M) -> [u64; 4] {
    let seed = machine.config();
    // SAFETY: the configuration lives as long as the program.
    unsafe {
        [
            word(&raw const (*seed).seed[0]),
            word(&raw const (*seed).seed[1]),
            word(&raw const (*seed).seed[2]),
            word(&raw const (*seed).seed[3]),
        ]
    }
}
