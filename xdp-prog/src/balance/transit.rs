//! Slots in transit: a packet of a flow goes where the flow lives, while the slot's backend changes.
//!
//! Never reads or writes a record of a flow whose slot is steady, and never writes on account of ICMP. What cannot be recorded goes
//! where it will be looked for without a record. A subprogram of its own in the kernel: only VIPs with a wide table pay for it.

use super::{Flow, seed};
use crate::{
    abi::{Activity, FlowLives, FlowState, SlotWord, TableUnit, VipMeta, WIDE_WORDS, feature, setting},
    flows::{self, FlowKey, FlowTable, Found, New, Unrecorded},
    hash,
    machine::{BalancerTables, Frame, is_on, load, opaque, word},
    wire::{
        IPV4_LEN, IPV4_PROTOCOL, IPV4_SOURCE, IPV6_DESTINATION, IPV6_LEN, IPV6_NEXT_HEADER, IPV6_SOURCE, PORTS_LEN,
        PROTO_IPV6, PROTO_TCP, TCP_ACK, TCP_FIN, TCP_FLAGS, TCP_LEN, TCP_RST, TCP_SEQUENCE, TCP_SYN,
    },
};

/// Furthest that the sequence number of a client's second packet is from its SYN's: what a first window holds without scaling.
const CONFIRMING: u32 = 65_536;

/// What a packet says about its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// UDP.
    Datagram,
    /// TCP: SYN without ACK, with its sequence number.
    Syn(u32),
    /// Other TCP.
    Segment {
        /// Sequence number.
        sequence: u32,
        /// Flags.
        flags: u8,
    },
}

/// What time it is, and how long records live.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Ticks.
    pub now: u32,
    /// Lives of records.
    pub lives: FlowLives,
}

/// Chooses the backend of a packet whose slot is `slot`.
#[inline(always)]
pub fn choose<T: FlowTable>(table: &T, slot: SlotWord, key: FlowKey, packet: Packet, clock: Clock) -> u16 {
    let transit = match packet {
        Packet::Datagram => SlotWord::UDP,
        Packet::Syn(_) | Packet::Segment { .. } => SlotWord::TCP,
    };
    if !slot.has(transit) {
        return slot.cur();
    }
    let Clock { now, lives } = clock;
    if let Some(found) = flows::find(table, key, now, lives) {
        return match packet {
            Packet::Datagram => {
                flows::renew(table, &found, FlowState::Datagram, now);
                found.backend()
            }
            Packet::Syn(sequence) => syn_again(table, slot, &found, sequence, now),
            Packet::Segment { sequence, flags } => segment(table, slot, &found, sequence, flags, now),
        };
    }
    // Without a record: where it goes, and what is to be recorded there; otherwise it goes where it is found without.
    let (new, otherwise) = match packet {
        Packet::Segment { .. } => return slot.base(),
        Packet::Datagram if !slot.has(SlotWord::LEARNING) => return slot.cur(),
        // Nobody takes new flows, or the flow goes where it would be found anyway: nothing to record.
        Packet::Syn(_) if slot.cur() == 0 || slot.cur() == slot.base() => return slot.cur(),
        Packet::Datagram => {
            let (backend, state) = (slot.udp_base(), FlowState::Datagram);
            (
                New {
                    backend,
                    state,
                    initial_sequence: 0,
                },
                backend,
            )
        }
        Packet::Syn(initial_sequence) => {
            let (backend, state) = (slot.cur(), FlowState::Syn);
            (
                New {
                    backend,
                    state,
                    initial_sequence,
                },
                slot.base(),
            )
        }
    };
    if flows::record(table, key, new, now, lives) {
        return new.backend;
    }
    table.unrecorded(match packet {
        Packet::Datagram => Unrecorded::Datagram,
        Packet::Syn(_) | Packet::Segment { .. } => Unrecorded::Syn,
    });
    otherwise
}

/// A SYN of a recorded flow.
#[inline(always)]
fn syn_again<T: FlowTable>(table: &T, slot: SlotWord, found: &Found, sequence: u32, now: u32) -> u16 {
    let state = found.state();
    if state != FlowState::Syn as u64 {
        // A new connection by the same ports, or a retransmission that was overtaken: it lives where the old one does.
        flows::renew(table, found, FlowState::Confirmed, now);
        return found.backend();
    }
    if found.initial_sequence() != sequence {
        // Another connection than the recorded one: of the two at most one is real. Its next packet will not fit the record either, so
        // both go where packets without a record go.
        return slot.base();
    }
    flows::renew(table, found, FlowState::Syn, now);
    found.backend()
}

/// Any other packet of a recorded TCP flow.
#[inline(always)]
fn segment<T: FlowTable>(table: &T, slot: SlotWord, found: &Found, sequence: u32, flags: u8, now: u32) -> u16 {
    let state = found.state();
    if state == FlowState::Syn as u64 {
        // A spoofed SYN must not move a flow that lives at the base: who answers a SYN-ACK knows the SYN's sequence number.
        let distance = sequence.wrapping_sub(found.initial_sequence());
        if distance == 0 || distance > CONFIRMING {
            return slot.base();
        }
    }
    let after = if flags & TCP_RST != 0 {
        FlowState::Reset
    } else if flags & TCP_FIN != 0 || state == FlowState::Closing as u64 {
        FlowState::Closing
    } else {
        FlowState::Confirmed
    };
    flows::renew(table, found, after, now);
    found.backend()
}

/// The backend of a packet that a VIP with a wide table claims. `l3` is the offset of the IP header.
#[inline(always)]
pub fn run<M: Frame + BalancerTables>(machine: &mut M, hash: u64, meta: VipMeta, l3: usize, inner: u8) -> u64 {
    let Some((at, slot)) = slot(machine, meta.unit(), (hash >> (64 - meta.slots_log2())) as u32) else {
        return 0;
    };
    let Some(packet) = packet(machine, l3, inner) else {
        return u64::from(slot.base());
    };
    // Clients with affinity share a slot, and each of their connections lives where it began.
    let hash = if is_on::<{ feature::AFFINITY }>(machine) && meta.has(VipMeta::CLIENT_AFFINITY) {
        match connection(machine, l3, inner) {
            Some(hash) => hash,
            None => return u64::from(slot.base()),
        }
    } else {
        hash
    };
    let config = machine.config();
    // SAFETY: the configuration lives as long as the program.
    let (secret, mask, shift) = unsafe {
        (
            word(&raw const (*config).flow_secret),
            word(&raw const (*config).flow_mask),
            word(&raw const (*config).tick_shift),
        )
    };
    let lives = machine.setting(setting::FLOW_LIVES);
    let clock = Clock {
        now: (machine.jiffies() >> (shift & 63)) as u32,
        // SAFETY: a pointer from a map lookup, aligned.
        lives: FlowLives(lives.map_or(0, |lives| unsafe { word(lives) })),
    };
    let backend = choose(machine, slot, FlowKey::new(hash, secret, mask), packet, clock);
    if backend != slot.cur() {
        note(machine, at, packet, clock.now);
    }
    u64::from(backend)
}

/// A slot of the wide table at `unit`, and where it stands.
#[inline(always)]
fn slot<M: BalancerTables>(machine: &M, unit: TableUnit, slot: u32) -> Option<((u32, u32), SlotWord)> {
    let (segment, first) = unit.place();
    let at = first + slot * WIDE_WORDS as u32;
    // SAFETY: a pointer from a map lookup, aligned.
    let slot = unsafe { word(machine.slot_word(segment, at)?) };
    Some(((segment, at + 1), SlotWord(slot)))
}

/// What a packet says; `None` for TCP whose header is not in the frame's linear part.
#[inline(always)]
fn packet<M: Frame>(machine: &M, l3: usize, inner: u8) -> Option<Packet> {
    let l3 = machine.start() + (l3 & 0xff);
    let (len, protocol) = if inner == PROTO_IPV6 {
        (IPV6_LEN, IPV6_NEXT_HEADER)
    } else {
        (IPV4_LEN, IPV4_PROTOCOL)
    };
    // Opaque: one way through what follows and not one for each family.
    let (len, protocol) = (
        opaque(len as u64) as usize & 0x3f,
        opaque(protocol as u64) as usize & 0x3f,
    );
    let at = l3 + protocol;
    if at + 1 > machine.end() {
        return None;
    }
    // SAFETY: inside the frame, as just compared.
    if unsafe { load::<u8>(at) } != PROTO_TCP {
        return Some(Packet::Datagram);
    }
    let l4 = l3 + len;
    if l4 + TCP_LEN > machine.end() {
        return None;
    }
    // SAFETY: 20 bytes from `l4` on are inside the frame.
    let (sequence, flags): (u32, u8) = unsafe { (load(l4 + TCP_SEQUENCE), load(l4 + TCP_FLAGS)) };
    let sequence = u32::from_be(sequence);
    if flags & (TCP_SYN | TCP_ACK) == TCP_SYN {
        return Some(Packet::Syn(sequence));
    }
    Some(Packet::Segment { sequence, flags })
}

/// The hash of a packet's own flow, whatever chose its slot.
#[inline(always)]
fn connection<M: Frame + BalancerTables>(machine: &M, l3: usize, inner: u8) -> Option<u64> {
    let l3 = machine.start() + (l3 & 0xff);
    if inner == PROTO_IPV6 {
        if l3 + IPV6_LEN + PORTS_LEN > machine.end() {
            return None;
        }
        // SAFETY: 44 bytes from `l3` on are inside the frame.
        return Some(unsafe {
            let source = [load(l3 + IPV6_SOURCE), load(l3 + IPV6_SOURCE + 8)];
            let destination = [load(l3 + IPV6_DESTINATION), load(l3 + IPV6_DESTINATION + 8)];
            hash::flow_v6(
                &seed(machine),
                source,
                destination,
                load(l3 + IPV6_LEN),
                load(l3 + IPV6_NEXT_HEADER),
            )
        });
    }
    if l3 + IPV4_LEN + PORTS_LEN > machine.end() {
        return None;
    }
    // SAFETY: 24 bytes from `l3` on are inside the frame.
    Some(unsafe {
        hash::flow_v4(
            &seed(machine),
            load(l3 + IPV4_SOURCE),
            load(l3 + IPV4_LEN),
            load(l3 + IPV4_PROTOCOL),
        )
    })
}

/// Notes that something of a slot went elsewhere than to `cur`, unless it was a reset: stray packets do not keep a slot in transit.
#[inline(always)]
fn note<M: BalancerTables>(machine: &M, (segment, at): (u32, u32), packet: Packet, now: u32) {
    let half = match packet {
        Packet::Datagram => 1,
        Packet::Segment { flags, .. } if flags & TCP_RST != 0 => return,
        Packet::Syn(_) | Packet::Segment { .. } => 0,
    };
    let Some(activity) = machine.activity(segment, at) else {
        return;
    };
    // SAFETY: a word of slot memory, whose halves are numbers of their own (little-endian: the lower first).
    unsafe {
        let half = activity.cast::<u32>().add(half);
        if half.read_volatile() != now {
            half.write_volatile(now);
        }
    }
}

/// The bounds that `note` relies on.
const _: () = assert!(size_of::<Activity>() == 8 && WIDE_WORDS == 2);

/// The backend of a flow in transit.
#[inline(always)]
pub(super) fn backend<M: Frame + BalancerTables>(machine: &mut M, l3: usize, flow: &Flow) -> u32 {
    machine.transit(flow.hash, flow.meta, l3, flow.inner) as u32
}
