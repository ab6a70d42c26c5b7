//! Slots in transit, and VIPs with a scheduler: a packet of a flow goes where the flow lives, although the slot says otherwise.
//!
//! Never reads or writes a record of a flow whose slot is steady, unless a scheduler placed it, and never writes on account of ICMP.
//! What cannot be recorded goes where it will be looked for without a record. A subprogram of its own in the kernel: only VIPs with a
//! wide table or a scheduler pay for it.

use super::{Flow, schedule::About, seed};
use crate::{
    abi::{Activity, FlowLives, FlowState, SLOTS_PER_WORD, Schedule, SlotWord, VipMeta, WIDE_WORDS, feature, setting},
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

/// Where a packet goes, and what is known by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Position of the backend.
    pub backend: u16,
    /// A record said so, or says so from now on.
    pub is_recorded: bool,
    /// The flow was known, and this packet says something new of it: the client is there, and not a name on a SYN.
    pub is_proven: bool,
    /// Nothing is decided: the scheduler shall say where this new flow goes. The backend is that of its slot.
    pub is_open: bool,
}

impl Decision {
    #[inline(always)]
    const fn unrecorded(backend: u16) -> Self {
        Self {
            backend,
            is_recorded: false,
            is_proven: false,
            is_open: false,
        }
    }

    #[inline(always)]
    const fn recorded(backend: u16) -> Self {
        Self {
            is_recorded: true,
            ..Self::unrecorded(backend)
        }
    }
}

/// Who says where new flows of a VIP go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Their slot: there is no scheduler.
    Nobody,
    /// A scheduler, if the flow is new.
    Scheduler,
    /// A scheduler, which has been asked and says this backend: the flow is new.
    Said(u16),
}

/// Chooses the backend of a packet whose slot is `slot`, for a VIP without a scheduler.
#[inline(always)]
pub fn choose<T: FlowTable>(table: &T, slot: SlotWord, key: FlowKey, packet: Packet, clock: Clock) -> u16 {
    decide(table, slot, key, packet, clock, Asked::Nobody).backend
}

/// Chooses the backend of a packet whose slot is `slot`. With a scheduler, all flows are recorded.
#[inline(always)]
pub fn decide<T: FlowTable>(
    table: &T,
    slot: SlotWord,
    key: FlowKey,
    packet: Packet,
    clock: Clock,
    asked: Asked,
) -> Decision {
    let transit = match packet {
        Packet::Datagram => SlotWord::UDP,
        Packet::Syn(_) | Packet::Segment { .. } => SlotWord::TCP,
    };
    let is_scheduled = asked != Asked::Nobody;
    if !is_scheduled && !slot.has(transit) {
        return Decision::unrecorded(slot.cur());
    }
    let Clock { now, lives } = clock;
    if !matches!(asked, Asked::Said(_))
        && let Some(found) = flows::find(table, key, now, lives)
    {
        return match packet {
            Packet::Datagram => Decision {
                is_proven: flows::renew(table, &found, FlowState::Datagram, now),
                ..Decision::recorded(found.backend())
            },
            Packet::Syn(sequence) => syn_again(table, slot, &found, sequence, now),
            Packet::Segment { sequence, flags } => segment(table, slot, &found, sequence, flags, now),
        };
    }
    // Without a record: where it goes, and what is to be recorded there; otherwise it goes where it is found without.
    let is_learning = slot.has(SlotWord::LEARNING);
    let (mut backend, state, initial_sequence, otherwise) = match packet {
        Packet::Segment { .. } => return Decision::unrecorded(slot.base()),
        Packet::Datagram if is_learning => (slot.udp_base(), FlowState::Datagram, 0, slot.udp_base()),
        Packet::Datagram if is_scheduled => (slot.cur(), FlowState::Datagram, 0, slot.cur()),
        Packet::Datagram => return Decision::unrecorded(slot.cur()),
        // Nobody takes new flows, or the flow goes where it would be found anyway: nothing to record.
        Packet::Syn(_) if !is_scheduled && (slot.cur() == 0 || slot.cur() == slot.base()) => {
            return Decision::unrecorded(slot.cur());
        }
        Packet::Syn(sequence) => (slot.cur(), FlowState::Syn, sequence, slot.base()),
    };
    let is_window = is_learning && matches!(packet, Packet::Datagram);
    match asked {
        Asked::Scheduler if !is_window => {
            return Decision {
                is_open: true,
                ..Decision::unrecorded(backend)
            };
        }
        Asked::Said(0) => return Decision::unrecorded(0),
        Asked::Said(said) => backend = said,
        Asked::Scheduler | Asked::Nobody => {}
    }
    let new = New {
        backend,
        state,
        mark: if is_scheduled { FlowState::SCHEDULED } else { 0 },
        tick: now,
        initial_sequence,
    };
    if flows::record(table, key, new, now, lives) {
        return Decision::recorded(backend);
    }
    table.unrecorded(if is_window {
        Unrecorded::Datagram
    } else if is_scheduled {
        Unrecorded::Scheduled
    } else {
        Unrecorded::Syn
    });
    Decision::unrecorded(otherwise)
}

/// A SYN of a recorded flow.
#[inline(always)]
fn syn_again<T: FlowTable>(table: &T, slot: SlotWord, found: &Found, sequence: u32, now: u32) -> Decision {
    let state = found.state();
    let recorded = Decision::recorded(found.backend());
    if state != FlowState::Syn as u64 {
        // A new connection by the same ports, or a retransmission that was overtaken: it lives where the old one does.
        flows::renew(table, found, FlowState::Confirmed, now);
        return recorded;
    }
    if found.initial_sequence() != sequence {
        // Another connection than the recorded one: of the two at most one is real. Its next packet will not fit the record either, so
        // both go where packets without a record go.
        return Decision::unrecorded(slot.base());
    }
    flows::renew(table, found, FlowState::Syn, now);
    recorded
}

/// Any other packet of a recorded TCP flow.
#[inline(always)]
fn segment<T: FlowTable>(table: &T, slot: SlotWord, found: &Found, sequence: u32, flags: u8, now: u32) -> Decision {
    let state = found.state();
    let is_proven = state == FlowState::Syn as u64;
    if is_proven {
        // A spoofed SYN must not move a flow that lives at the base: who answers a SYN-ACK knows the SYN's sequence number.
        let distance = sequence.wrapping_sub(found.initial_sequence());
        if distance == 0 || distance > CONFIRMING {
            return Decision::unrecorded(slot.base());
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
    Decision {
        is_proven,
        ..Decision::recorded(found.backend())
    }
}

/// What the subprogram is asked beside hash and match entry, in one word: offset of the packet's IP header (bits 0–7), its protocol
/// number inside another packet (8–15), what the scheduler said (16–31) if it was asked (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest(pub u64);

impl Rest {
    const SAID: u64 = 1 << 32;

    /// Of a packet.
    #[inline(always)]
    pub const fn new(l3: usize, inner: u8) -> Self {
        Self(l3 as u64 & 0xff | (inner as u64) << 8)
    }

    /// The same packet, once the scheduler has said that it shall go to `backend`.
    #[inline(always)]
    const fn said(self, backend: u16) -> Self {
        Self(self.0 | (backend as u64) << 16 | Self::SAID)
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub const fn l3(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// Protocol number inside another packet.
    #[inline(always)]
    pub const fn inner(self) -> u8 {
        (self.0 >> 8) as u8
    }
}

/// What the subprogram says, in one word: a backend (bits 0–15), and what is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said(pub u64);

impl Said {
    /// The flow is new, and the scheduler shall say where it goes.
    const ASK: u64 = 1 << 16;
    /// Where it says so, the flow shall be recorded.
    const PLACE: u64 = 1 << 17;
    /// The flow's client has proven that it is there.
    const PROVEN: u64 = 1 << 18;

    /// The packet goes to this backend.
    #[inline(always)]
    pub(super) const fn goes(backend: u16) -> Self {
        Self(backend as u64)
    }

    /// Where it goes the scheduler shall say; its slot says this.
    #[inline(always)]
    pub(super) const fn asks(slot: u16) -> Self {
        Self(slot as u64 | Self::ASK)
    }

    /// Position of the backend.
    #[inline(always)]
    const fn backend(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// What is known of a packet that a VIP with a wide table or a scheduler claims.
#[inline(always)]
pub fn run<M: Frame + BalancerTables>(machine: &mut M, hash: u64, meta: VipMeta, rest: Rest) -> Said {
    let (l3, inner) = (rest.l3(), rest.inner());
    let Some((at, slot)) = slot(machine, meta, (hash >> (64 - meta.slots_log2())) as u32) else {
        return Said::goes(0);
    };
    let Some(packet) = packet(machine, l3, inner) else {
        return Said::goes(slot.base());
    };
    // Clients with affinity share a slot, and each of their connections lives where it began.
    let hash = if is_on::<{ feature::AFFINITY }>(machine) && meta.has(VipMeta::CLIENT_AFFINITY) {
        match connection(machine, l3, inner, u32::MAX) {
            Some(hash) => hash,
            None => return Said::goes(slot.base()),
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
    let key = FlowKey::new(hash, secret, mask);
    let is_scheduled = is_on::<{ feature::SCHEDULERS }>(machine) && meta.has(VipMeta::SCHEDULED);
    let asked = if !is_scheduled {
        Asked::Nobody
    } else if rest.0 & Rest::SAID == 0 {
        if packet == Packet::Datagram && is_each(machine, meta) {
            return Said::asks(slot.cur());
        }
        Asked::Scheduler
    } else {
        Asked::Said((rest.0 >> 16) as u16)
    };
    let decision = decide(machine, slot, key, packet, clock, asked);
    let mut said = u64::from(decision.backend);
    if decision.is_open {
        return Said(said | Said::ASK | Said::PLACE);
    }
    if is_scheduled && decision.is_proven {
        said |= Said::PROVEN;
    }
    // With a scheduler records are asked whatever the slot is in: only what has none keeps it in transit.
    let keeps = !is_scheduled || !decision.is_recorded && meta.has(VipMeta::TRANSIT);
    if keeps && decision.backend != slot.cur() {
        note(machine, at, packet, clock.now);
    }
    Said(said)
}

/// Whether each datagram of a VIP is a flow of its own.
#[inline(always)]
fn is_each<M: BalancerTables>(machine: &M, meta: VipMeta) -> bool {
    match machine.options(meta.vip().0) {
        // SAFETY: a pointer from a map lookup, aligned.
        Some(options) => Schedule(unsafe { word(&raw const (*options).schedule) }).has(Schedule::EACH),
        None => false,
    }
}

/// A slot of a VIP's table, wide or plain, and where a wide one's activity stands.
#[inline(always)]
fn slot<M: BalancerTables>(machine: &M, meta: VipMeta, slot: u32) -> Option<((u32, u32), SlotWord)> {
    let (segment, first) = meta.unit().place();
    let is_wide = meta.has(VipMeta::TRANSIT);
    // Opaque: one look-up for both.
    let at = opaque(u64::from(if is_wide {
        first + slot * WIDE_WORDS as u32
    } else {
        first + slot / SLOTS_PER_WORD as u32
    })) as u32;
    // SAFETY: a pointer from a map lookup, aligned.
    let found = unsafe { word(machine.slot_word(segment, at)?) };
    let slot = if is_wide {
        SlotWord(found)
    } else {
        SlotWord::steady((found >> (slot % SLOTS_PER_WORD as u32 * 16)) as u16)
    };
    Some(((segment, at + 1), SlotWord(opaque(slot.0))))
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

/// The hash of a packet's own flow, whatever chose its slot; of its ports as they stand in the packet, only what `ports` lets through.
#[inline(always)]
pub(super) fn connection<M: Frame + BalancerTables>(machine: &M, l3: usize, inner: u8, ports: u32) -> Option<u64> {
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
                load::<u32>(l3 + IPV6_LEN) & ports,
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
            load::<u32>(l3 + IPV4_LEN) & ports,
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

/// The backend of a flow for which records are asked. The subprograms that this calls one after the other have the stack each for
/// itself: together they would not fit.
#[inline(always)]
pub(super) fn backend<M: Frame + BalancerTables>(machine: &mut M, l3: usize, flow: &Flow) -> u32 {
    let rest = Rest::new(l3, flow.inner);
    let said = machine.transit(flow.hash, flow.meta, rest);
    let mut backend = said.backend();
    if !is_on::<{ feature::SCHEDULERS }>(machine) || !said.has(Said::ASK | Said::PROVEN) {
        return u32::from(backend);
    }
    let vip = flow.meta.vip().0;
    // With a scheduler, this says that clients are remembered: the hash alone needs no scheduler.
    let has_clients = flow.meta.has(VipMeta::CLIENT_AFFINITY);
    let about = About::new_flow(backend, l3, flow.inner);
    if !said.has(Said::ASK) {
        if has_clients {
            machine.client(vip, about.proven());
        }
        return u32::from(backend);
    }
    let mut asks = true;
    if has_clients {
        let known = machine.client(vip, about);
        (backend, asks) = (known.backend(), known.has(Said::ASK));
    }
    if asks {
        backend = machine.pick(vip, backend);
        if has_clients {
            backend = machine.client(vip, about.chosen(backend)).backend();
        }
    }
    if said.has(Said::PLACE) {
        backend = machine.transit(flow.hash, flow.meta, rest.said(backend)).backend();
    }
    u32::from(backend)
}
