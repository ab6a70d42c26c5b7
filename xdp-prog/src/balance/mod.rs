//! The balancer: from a frame to a verdict. Never reads or writes per-flow state while nothing changes, so a million flows cost
//! what one costs and a SYN flood has nothing to fill.
//!
//! | module | step |
//! |---|---|
//! | here | Ethernet and VLAN tags |
//! | [`ipv4`], [`ipv6`] | IP and ports, match table, flow hash |
//! | [`policy`] | who may send, and how much |
//! | [`forward`] | slot, backend line, encapsulation |

mod forward;
mod ipv4;
mod ipv6;
mod policy;

pub(crate) use ipv4::is_martian as is_martian_v4;
pub(crate) use ipv6::is_martian as is_martian_v6;

use crate::{
    abi::{VipMeta, feature},
    machine::{BalancerTables, Frame, Tables, load, word},
    verdict::{Fate, Verdict},
    wire::{ETH_LEN, ETH_TYPE, TYPE_8021AD_BE, TYPE_8021Q_BE, TYPE_IPV4_BE, TYPE_IPV6_BE, VLAN_LEN},
};

/// The link layer of a frame: 14 to 22 bytes.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// Bytes before the IP header.
    pub(crate) len: usize,
    /// Ethertype as on the wire.
    pub(crate) ethertype: u16,
    /// Tag words (TPID and TCI) as on the wire, outermost first; 0 where there is none.
    pub(crate) tags: [u32; 2],
}

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
    if is_on(machine, feature::SLOW_PATH) && matches!(verdict.fate(), Fate::Slow) && !machine.to_slow_path(verdict) {
        return Verdict::DropNoSlowPath;
    }
    verdict
}

#[inline(always)]
fn classify<M: Frame + BalancerTables>(machine: &mut M) -> Result<(Link, Flow), Verdict> {
    let link = link(machine)?;
    let flow = match link.ethertype {
        TYPE_IPV4_BE => ipv4::classify(machine, &link),
        TYPE_IPV6_BE => ipv6::classify(machine, &link),
        _ => Err(Verdict::PassNotIp),
    }?;
    Ok((link, flow))
}

/// Parses Ethernet and up to two VLAN tags.
#[inline(always)]
pub(crate) fn link<F: Frame>(frame: &F) -> Result<Link, Verdict> {
    let (start, end) = (frame.start(), frame.end());
    if start + ETH_LEN > end {
        return Err(Verdict::PassUnparsed);
    }
    // SAFETY: inside the frame, as just compared.
    let ethertype: u16 = unsafe { load(start + ETH_TYPE) };
    let mut link = Link { len: ETH_LEN, ethertype, tags: [0; 2] };
    if is_tag(ethertype) {
        if start + ETH_LEN + VLAN_LEN > end {
            return Err(Verdict::PassUnparsed);
        }
        // SAFETY: inside the frame, as just compared.
        unsafe {
            link.tags[0] = load(start + ETH_TYPE);
            link.ethertype = load(start + ETH_TYPE + VLAN_LEN);
        }
        link.len = ETH_LEN + VLAN_LEN;
        if is_tag(link.ethertype) {
            if start + ETH_LEN + 2 * VLAN_LEN > end {
                return Err(Verdict::PassUnparsed);
            }
            // SAFETY: inside the frame, as just compared.
            unsafe {
                link.tags[1] = load(start + ETH_TYPE + VLAN_LEN);
                link.ethertype = load(start + ETH_TYPE + 2 * VLAN_LEN);
            }
            link.len = ETH_LEN + 2 * VLAN_LEN;
        }
    }
    Ok(link)
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == TYPE_8021Q_BE || ethertype == TYPE_8021AD_BE
}

/// Whether a feature is compiled in, so to speak: a constant to the verifier.
#[inline(always)]
fn is_on<M: Tables + ?Sized>(machine: &M, feature: u64) -> bool {
    // SAFETY: the configuration lives as long as the program.
    unsafe { word(&raw const (*machine.config()).features) & feature != 0 }
}

/// The verdict for a packet to a VIP address that no VIP claims.
#[inline(always)]
fn unclaimed(address_entry: Option<VipMeta>, reason: Verdict) -> Verdict {
    match address_entry {
        None => Verdict::PassNotVip,
        Some(meta) if meta.has(VipMeta::OWN_ADDRESS) => Verdict::PassOwnAddress,
        Some(_) => reason,
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
