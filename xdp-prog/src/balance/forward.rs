//! From a claimed packet to a sent one: slot, backend line, encapsulation (RFC 2003, RFC 2473, RFC 4213).

use super::{Flow, is_on};
use crate::{
    abi::{BackendLine, LineMeta, SEGMENT_UNITS, SLOTS_PER_WORD, Traffic, UNIT_SLOTS, VipMeta, feature},
    checksum,
    link::Link,
    machine::{BalancerTables, Frame, store, word},
    mss,
    verdict::Verdict,
    wire::{
        ETH_LEN, ETH_TYPE, IPV4_LEN, IPV6_LEN, PROTO_IPV6, TYPE_8021AD_BE, TYPE_8021Q_BE, TYPE_IPV4_BE, TYPE_IPV6_BE,
        VLAN_LEN,
    },
};

#[inline(always)]
pub(super) fn forward<M: Frame + BalancerTables>(machine: &mut M, link: &Link, flow: &Flow) -> Verdict {
    let vip = flow.meta.vip().0;
    let unit = flow.meta.unit().0;
    let slot = (flow.hash >> (64 - flow.meta.slots_log2())) as u32;
    let position = (unit % SEGMENT_UNITS as u32) * UNIT_SLOTS as u32 + slot;
    let Some(slots) = machine.slot_word(unit / SEGMENT_UNITS as u32, position / SLOTS_PER_WORD as u32) else {
        return Verdict::DropInternal;
    };
    // SAFETY: a pointer from a map lookup, aligned.
    let backend = (unsafe { word(slots) } >> (position % SLOTS_PER_WORD as u32 * 16) & 0xffff) as u32;
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
    if flow.ip_len + outer_len as u32 > meta.mtu() {
        return Err(Verdict::SlowTooBig);
    }
    if is_on(machine, feature::CLAMP_MSS) && flow.meta.has(VipMeta::CLAMP_MSS) {
        machine.clamp_mss(link.len, mss::most(meta, flow.inner == PROTO_IPV6));
    }
    let tags = tags(meta, line, link);
    if !encapsulate(machine, link, flow, meta, line, tags) {
        return Err(Verdict::DropInternal);
    }
    if is_on(machine, feature::REDIRECT) && meta.ifindex() != machine.ingress_ifindex() {
        if !machine.redirect(meta.port()) {
            return Err(Verdict::DropInternal);
        }
        return Ok(Verdict::ForwardRedirect);
    }
    Ok(Verdict::ForwardTx)
}

/// The tag words to send with, as on the wire.
#[inline(always)]
fn tags(meta: LineMeta, line: *const BackendLine, link: &Link) -> [u32; 2] {
    if !meta.has(LineMeta::OWN_TAGS) {
        return link.tags;
    }
    // SAFETY: a pointer from a map lookup, aligned.
    let (outer, inner) = unsafe {
        (
            (word(&raw const (*line).destination_mac) >> 48) as u32,
            (word(&raw const (*line).source_mac) >> 48) as u32,
        )
    };
    let outer_type = if meta.has(LineMeta::OUTER_TAG_8021AD) {
        TYPE_8021AD_BE
    } else {
        TYPE_8021Q_BE
    };
    match meta.tags() {
        0 => [0, 0],
        1 => [u32::from(outer_type) | outer << 16, 0],
        _ => [
            u32::from(outer_type) | outer << 16,
            u32::from(TYPE_8021Q_BE) | inner << 16,
        ],
    }
}

/// Puts the new link layer and the outer header in front of the packet.
#[inline(always)]
fn encapsulate<M: Frame + BalancerTables>(
    machine: &mut M,
    link: &Link,
    flow: &Flow,
    meta: LineMeta,
    line: *const BackendLine,
    tags: [u32; 2],
) -> bool {
    let link_len = if tags[0] == 0 {
        ETH_LEN
    } else if tags[1] == 0 {
        ETH_LEN + VLAN_LEN
    } else {
        ETH_LEN + 2 * VLAN_LEN
    };
    let outer_len = if meta.has(LineMeta::OUTER_V6) {
        IPV6_LEN
    } else {
        IPV4_LEN
    };
    let longer = (outer_len + link_len) as i32 - link.len as i32;
    if !machine.move_start(-longer) {
        return false;
    }
    let (start, end) = (machine.start(), machine.end());
    if start + ETH_LEN + 2 * VLAN_LEN > end {
        return false;
    }
    let outer_type = if meta.has(LineMeta::OUTER_V6) {
        TYPE_IPV6_BE
    } else {
        TYPE_IPV4_BE
    };
    // SAFETY: `line` is a pointer from a map lookup, aligned; 22 bytes from `start` on are inside the frame.
    unsafe {
        let destination = word(&raw const (*line).destination_mac) & 0xffff_ffff_ffff;
        let source = word(&raw const (*line).source_mac) & 0xffff_ffff_ffff;
        store(start, destination | source << 48);
        store(start + 8, (source >> 16) as u32);
        if tags[0] == 0 {
            store(start + ETH_TYPE, outer_type);
        } else if tags[1] == 0 {
            store(start + ETH_TYPE, tags[0]);
            store(start + ETH_TYPE + VLAN_LEN, outer_type);
        } else {
            store(start + ETH_TYPE, tags[0]);
            store(start + ETH_TYPE + VLAN_LEN, tags[1]);
            store(start + ETH_TYPE + 2 * VLAN_LEN, outer_type);
        }
    }
    let l3 = start + link_len;
    if meta.has(LineMeta::OUTER_V6) {
        if l3 + IPV6_LEN > end {
            return false;
        }
        // SAFETY: 40 bytes from `l3` on are inside the frame.
        unsafe { outer_v6(machine, l3, flow, line) };
    } else {
        if l3 + IPV4_LEN > end {
            return false;
        }
        // SAFETY: 20 bytes from `l3` on are inside the frame.
        unsafe { outer_v4(machine, l3, flow, line) };
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
        if is_on(machine, feature::SOURCE_PREFIX) {
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
        if is_on(machine, feature::SOURCE_PREFIX) {
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
