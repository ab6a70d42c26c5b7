//! From a claimed packet to a sent one: slot, backend line, encapsulation (RFC 2003, RFC 2473, RFC 4213).

use super::{Flow, is_on, transit};
use crate::{
    abi::{BackendLine, LineMeta, SLOTS_PER_WORD, Traffic, VipMeta, feature},
    checksum,
    link::Link,
    machine::{BalancerTables, Frame, opaque, store, word},
    mss,
    verdict::Verdict,
    wire::{
        ETH_LEN, ETH_TYPE, IPV4_LEN, IPV6_LEN, PROTO_IPV6, TYPE_8021AD_BE, TYPE_8021Q_BE, TYPE_IPV4_BE, TYPE_IPV6_BE,
        VLAN_LEN,
    },
};

/// Bytes of an ethertype.
const ETHERTYPE_LEN: usize = 2;

#[inline(always)]
pub(super) fn forward<M: Frame + BalancerTables>(machine: &mut M, link: &Link, flow: &Flow) -> Verdict {
    let vip = flow.meta.vip().0;
    let slot = (flow.hash >> (64 - flow.meta.slots_log2())) as u32;
    let backend = if is_on::<{ feature::TRANSIT }>(machine) && flow.meta.has(VipMeta::RECORDS) {
        transit::backend(machine, link.len, flow)
    } else {
        let (segment, first) = flow.meta.unit().place();
        let Some(slots) = machine.slot_word(segment, first + slot / SLOTS_PER_WORD as u32) else {
            return Verdict::DropInternal;
        };
        // SAFETY: a pointer from a map lookup, aligned.
        (unsafe { word(slots) } >> (slot % SLOTS_PER_WORD as u32 * 16) & 0xffff) as u32
    };
    machine.chose(vip, slot, backend);
    if backend == 0 {
        return Verdict::SlowNoBackend;
    }
    let Some(line) = machine.backend(backend) else {
        return Verdict::DropInternal;
    };
    // SAFETY: a pointer from a map lookup, aligned.
    let meta = LineMeta(unsafe { word(&raw const (*line).meta) });
    let verdict = if meta.has(LineMeta::RESOLVED) {
        match send(machine, link, flow, meta, line) {
            Ok(verdict) => verdict,
            Err(verdict) => return verdict,
        }
    } else if meta.has(LineMeta::LOCAL) {
        Verdict::ForwardLocal
    } else {
        return Verdict::SlowNextHop;
    };
    count(machine, vip, backend, flow.ip_len, verdict)
}

/// Encapsulates the packet and sends it on its way.
#[inline(always)]
fn send<M: Frame + BalancerTables>(
    machine: &mut M,
    link: &Link,
    flow: &Flow,
    meta: LineMeta,
    line: *const BackendLine,
) -> Result<Verdict, Verdict> {
    let outer_len = if meta.has(LineMeta::OUTER_V6) {
        IPV6_LEN
    } else {
        IPV4_LEN
    };
    // Opaque, or the compiler chooses anew wherever it is used.
    let outer_len = opaque(outer_len as u64) as usize;
    if flow.ip_len + outer_len as u32 > meta.mtu() {
        return Err(Verdict::SlowTooBig);
    }
    if is_on::<{ feature::CLAMP_MSS }>(machine) && flow.meta.has(VipMeta::CLAMP_MSS) {
        machine.clamp_mss(link.len, mss::most(meta, flow.inner == PROTO_IPV6));
    }
    let tags = tags(meta, line, link);
    if !encapsulate(machine, link, flow, meta, line, tags, outer_len) {
        return Err(Verdict::DropInternal);
    }
    if is_on::<{ feature::REDIRECT }>(machine) && meta.ifindex() != machine.ingress_ifindex() {
        if !machine.redirect(meta.port()) {
            return Err(Verdict::DropInternal);
        }
        return Ok(Verdict::ForwardRedirect);
    }
    Ok(Verdict::ForwardTx)
}

/// The tag words to send with, as on the wire, the outermost in the lower half, and the length of a link layer with them. What
/// stands in the word beyond that length means nothing.
#[inline(always)]
fn tags(meta: LineMeta, line: *const BackendLine, link: &Link) -> (u64, usize) {
    if !meta.has(LineMeta::OWN_TAGS) {
        return (link.tags, link.len);
    }
    // SAFETY: a pointer from a map lookup, aligned.
    let (outer, inner) = unsafe {
        (
            word(&raw const (*line).destination_mac) >> 48,
            word(&raw const (*line).source_mac) >> 48,
        )
    };
    let outer_type = if meta.has(LineMeta::OUTER_TAG_8021AD) {
        TYPE_8021AD_BE
    } else {
        TYPE_8021Q_BE
    };
    let tags = u64::from(outer_type) | outer << 16 | u64::from(TYPE_8021Q_BE) << 32 | inner << 48;
    let count = if meta.tags() > 2 { 2 } else { meta.tags() };
    (tags, ETH_LEN + count * VLAN_LEN)
}

/// Puts the new link layer and the outer header in front of the packet. `tags` and `link_len` as [`tags`] returns
/// them.
#[inline(always)]
fn encapsulate<M: Frame + BalancerTables>(
    machine: &mut M,
    link: &Link,
    flow: &Flow,
    meta: LineMeta,
    line: *const BackendLine,
    (tags, link_len): (u64, usize),
    outer_len: usize,
) -> bool {
    let longer = (outer_len + link_len) as i32 - link.len as i32;
    if !machine.move_start(-longer) {
        return false;
    }
    let (start, end) = (machine.start(), machine.end());
    if start + ETH_TYPE + 2 * VLAN_LEN > end {
        return false;
    }
    // SAFETY: `line` is a pointer from a map lookup, aligned; 20 bytes from `start` on are inside the frame. What is written
    // behind the last tag, the ethertype and the outer header overwrite.
    unsafe {
        let destination = word(&raw const (*line).destination_mac) & 0xffff_ffff_ffff;
        let source = word(&raw const (*line).source_mac) & 0xffff_ffff_ffff;
        store(start, destination | source << 48);
        store(start + 8, (source >> 16) as u32);
        store(start + ETH_TYPE, tags);
    }
    // Opaque, or the compiler reckons from behind it, where the verifier allows no way back.
    let ethertype = start + opaque((link_len - ETHERTYPE_LEN) as u64) as usize;
    let l3 = ethertype + ETHERTYPE_LEN;
    if meta.has(LineMeta::OUTER_V6) {
        if l3 + IPV6_LEN > end {
            return false;
        }
        // SAFETY: 40 bytes from `l3` on are inside the frame, and two in front of it.
        unsafe {
            store(ethertype, TYPE_IPV6_BE);
            outer_v6(machine, l3, flow, line);
        }
    } else {
        if l3 + IPV4_LEN > end {
            return false;
        }
        // SAFETY: 20 bytes from `l3` on are inside the frame, and two in front of it.
        unsafe {
            store(ethertype, TYPE_IPV4_BE);
            outer_v4(machine, l3, flow, line);
        }
    }
    true
}

/// Writes an outer IPv4 header: the template with type of service, length, protocol and checksum.
///
/// # Safety
///
/// 20 bytes from `l3` on are inside the frame and `line` points to a live line.
#[inline(always)]
unsafe fn outer_v4<M: BalancerTables>(machine: &M, l3: usize, flow: &Flow, line: *const BackendLine) {
    // SAFETY: the caller's promise.
    unsafe {
        let len_be = ((flow.ip_len + IPV4_LEN as u32) as u16).to_be();
        let tos = u64::from(flow.tos) << 8;
        let protocol = u64::from(flow.inner) << 8;
        let third = word(&raw const (*line).outer[2]);
        let mut sum = (third >> 32) + tos + u64::from(len_be) + protocol;
        let mut second = word(&raw const (*line).outer[1]) | protocol;
        if is_on::<{ feature::SOURCE_PREFIX }>(machine) {
            let mask = word(&raw const (*machine.config()).source_mask_v4);
            let entropy = flow.hash >> 16 & mask;
            sum += checksum::sum64(entropy);
            second |= entropy << 32;
        }
        store(l3, word(&raw const (*line).outer[0]) | tos | u64::from(len_be) << 16);
        store(l3 + 8, second | u64::from(checksum::finish(sum)) << 16);
        store(l3 + 16, third as u32);
    }
}

/// Writes an outer IPv6 header: the template with traffic class, payload length and next header.
///
/// # Safety
///
/// 40 bytes from `l3` on are inside the frame and `line` points to a live line.
#[inline(always)]
unsafe fn outer_v6<M: BalancerTables>(machine: &M, l3: usize, flow: &Flow, line: *const BackendLine) {
    // SAFETY: the caller's promise.
    unsafe {
        let class = u64::from((u16::from(flow.tos) << 4).to_be());
        let len_be = u64::from((flow.ip_len as u16).to_be());
        let mut source_low = word(&raw const (*line).outer[2]);
        if is_on::<{ feature::SOURCE_PREFIX }>(machine) {
            // The hash's top bits chose the slot: for one backend they hardly differ. The bits below them go into the
            // address's last bytes, where a prefix leaves room first.
            source_low |= flow.hash << 16 & word(&raw const (*machine.config()).source_mask_v6);
        }
        store(
            l3,
            word(&raw const (*line).outer[0]) | class | len_be << 32 | u64::from(flow.inner) << 48,
        );
        store(l3 + 8, word(&raw const (*line).outer[1]));
        store(l3 + 16, source_low);
        store(l3 + 24, word(&raw const (*line).outer[3]));
        store(l3 + 32, word(&raw const (*line).outer[4]));
    }
}

/// Counts a forwarded packet for its VIP and its backend.
#[inline(always)]
fn count<M: BalancerTables>(machine: &M, vip: u32, backend: u32, ip_len: u32, verdict: Verdict) -> Verdict {
    let (Some(of_vip), Some(of_backend)) = (machine.vip_traffic(vip), machine.backend_traffic(backend)) else {
        return Verdict::DropInternal;
    };
    add(of_vip, ip_len);
    add(of_backend, ip_len);
    verdict
}

#[inline(always)]
fn add(traffic: *mut Traffic, ip_len: u32) {
    // SAFETY: a pointer from a map lookup to this CPU's own value.
    unsafe {
        (*traffic).packets = (*traffic).packets.wrapping_add(1);
        (*traffic).bytes = (*traffic).bytes.wrapping_add(u64::from(ip_len));
    }
}

#[cfg(target_endian = "big")]
compile_error!("the packet path builds header words for little-endian CPUs");
