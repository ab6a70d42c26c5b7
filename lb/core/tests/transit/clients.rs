//! Clients of one slot, attackers among them, and an operator who changes its backend.

use std::ops::Add;

use xdp_prog::balance::transit::Packet;

use crate::slot::{Flaw, TIMEOUTS, World};

/// What happens in a history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kinds {
    /// Backends change and die.
    pub(crate) changes: bool,
    /// SYNs come in the names of living flows.
    pub(crate) spoofing: bool,
}

impl Kinds {
    pub(crate) const ALL: Self = Self {
        changes: true,
        spoofing: true,
    };
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) flows: u64,
    /// Living flows whose backend lives and that were sent elsewhere: TCP, UDP.
    pub(crate) broken: [u64; 2],
    /// Packets of flows that live elsewhere than new ones go.
    pub(crate) elsewhere: u64,
    pub(crate) by_record: u64,
    pub(crate) unrecorded: u64,
    pub(crate) transits_ended: u64,
    pub(crate) spoofed: u64,
}

impl Add for Outcome {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            flows: self.flows + other.flows,
            broken: [self.broken[0] + other.broken[0], self.broken[1] + other.broken[1]],
            elsewhere: self.elsewhere + other.elsewhere,
            by_record: self.by_record + other.by_record,
            unrecorded: self.unrecorded + other.unrecorded,
            transits_ended: self.transits_ended + other.transits_ended,
            spoofed: self.spoofed + other.spoofed,
        }
    }
}

/// `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

struct Flow {
    hash: u64,
    is_udp: bool,
    backend: u16,
    sequence: u32,
    last: u32,
    next: u32,
    left: u64,
    /// Ticks between packets at most.
    pace: u64,
    is_fresh: bool,
}

/// Flows at a time; ticks of a history; ticks between changes at most.
const FLOWS: usize = 60;
const TICKS: u32 = 8_000;
const CALM: u64 = 900;

/// A history from a seed.
pub(crate) fn run(seed: u64, flaw: Option<Flaw>, kinds: Kinds) -> Outcome {
    let mut dice = Dice(seed ^ 0xface);
    let mut slot = World::new(flaw);
    let mut outcome = Outcome::default();
    let mut flows: Vec<Flow> = Vec::new();
    let mut next_change = dice.below(CALM) as u32;
    // The clock wraps within some of the histories.
    let start = if seed.is_multiple_of(3) {
        (1 << 24) - 2_000
    } else {
        1_000
    };
    for now in start..start + TICKS {
        if kinds.changes && now - start >= next_change {
            change(&mut slot, &mut dice, now);
            flows.retain(|flow| slot.alive.contains(&flow.backend));
            // Now and then a burst of changes, or a long calm.
            let calm = if dice.one_in(3) {
                60
            } else if dice.one_in(8) {
                4 * CALM
            } else {
                CALM
            };
            next_change = now - start + 1 + dice.below(calm) as u32;
        }
        if now.is_multiple_of(4) {
            slot.look(now);
        }
        if flows.len() < FLOWS {
            let flow = open(&mut slot, &mut dice, now, &mut outcome);
            flows.extend(flow);
        }
        let mut index = 0;
        while index < flows.len() {
            if flows[index].next == now && step(&mut slot, &mut flows[index], &mut dice, now, &mut outcome) {
                flows.swap_remove(index);
            } else {
                index += 1;
            }
        }
        if kinds.spoofing && dice.one_in(8) && !flows.is_empty() {
            let victim = dice.below(flows.len() as u64) as usize;
            // Far from the real number: one in 65,536 would be near enough, as documented.
            let sequence = flows[victim]
                .sequence
                .wrapping_add(1 << 30)
                .wrapping_add(dice.roll() as u32 >> 4);
            if !flows[victim].is_udp && !flows[victim].is_fresh {
                slot.packet(flows[victim].hash, Packet::Syn(sequence), now);
                outcome.spoofed += 1;
            }
        }
    }
    outcome.unrecorded = slot.found_no_room();
    outcome.transits_ended = slot.transits_ended;
    outcome
}

fn change(slot: &mut World, dice: &mut Dice, now: u32) {
    let cur = slot.word().cur();
    let others: Vec<u16> = slot.alive.iter().copied().filter(|backend| *backend != cur).collect();
    let target = if others.is_empty() || dice.one_in(3) {
        slot.add()
    } else {
        others[dice.below(others.len() as u64) as usize]
    };
    match dice.below(4) {
        // The base dies, or somebody.
        0 if slot.alive.contains(&slot.word().base()) && slot.word().base() != cur => {
            let base = slot.word().base();
            slot.bury(base, cur, now);
        }
        1 if !others.is_empty() => slot.bury(cur, others[0], now),
        _ => slot.change(target, now),
    }
}

fn open(slot: &mut World, dice: &mut Dice, now: u32, outcome: &mut Outcome) -> Option<Flow> {
    let hash = dice.roll();
    let is_udp = dice.one_in(3);
    let sequence = dice.roll() as u32;
    let packet = if is_udp {
        Packet::Datagram
    } else {
        Packet::Syn(sequence)
    };
    let (backend, by_record) = slot.packet(hash, packet, now);
    outcome.by_record += u64::from(by_record);
    outcome.flows += 1;
    if !slot.alive.contains(&backend) {
        return None;
    }
    // Most flows are short, some as silent as may be.
    let most = u64::from(if is_udp { TIMEOUTS.udp_idle } else { TIMEOUTS.tcp_idle });
    let pace = match dice.below(4) {
        0 => 3,
        1 | 2 => 30,
        _ => most - 1,
    };
    Some(Flow {
        hash,
        is_udp,
        backend,
        sequence,
        last: now,
        // The answer to a SYN comes while its record lives.
        next: now + 1 + dice.below(pace.min(20)) as u32,
        left: 1 + dice.below(if pace > 30 { 8 } else { 25 }),
        pace,
        is_fresh: true,
    })
}

/// A flow's next packet; whether it was the last.
fn step(slot: &mut World, flow: &mut Flow, dice: &mut Dice, now: u32, outcome: &mut Outcome) -> bool {
    flow.sequence = flow.sequence.wrapping_add(1 + dice.below(1_400) as u32);
    let packet = if flow.is_udp {
        Packet::Datagram
    } else {
        let flags = if flow.left > 0 {
            0x10
        } else if dice.one_in(4) {
            0x04
        } else {
            0x11
        };
        Packet::Segment {
            sequence: flow.sequence,
            flags,
        }
    };
    let (backend, by_record) = slot.packet(flow.hash, packet, now);
    outcome.by_record += u64::from(by_record);
    outcome.elsewhere += u64::from(flow.backend != slot.word().cur());
    if backend != flow.backend {
        debug_assert!(now - flow.last < TIMEOUTS.tcp_idle);
        outcome.broken[usize::from(flow.is_udp)] += 1;
        return true;
    }
    (flow.is_fresh, flow.last) = (false, now);
    if flow.left == 0 {
        return true;
    }
    flow.left -= 1;
    flow.next = now + 1 + dice.below(flow.pace) as u32;
    false
}
