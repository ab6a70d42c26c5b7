//! Where a new flow of a VIP with a scheduler goes: its client's backend, whose turn it is, who has the fewest flows.
//!
//! Never touches the record of the flow itself ([`super::transit`] does), and never sees a packet of a flow that is known already. Two
//! subprograms in the kernel: what is remembered of clients, and the methods.
//!
//! | method | what is read |
//! |---|---|
//! | slot | nothing: the caller has read it |
//! | turn | a counter that all CPUs share, and one slot of the round |
//! | least, expected, idle | up to [`LOOKED_AT`] candidates and their open flows, counted by all CPUs together |

use super::transit::{Said, connection};
use crate::{
    abi::{Candidate, FlowLives, FlowState, Method, SLOTS_PER_WORD, Schedule, VipIndex, setting},
    flows::{self, FlowKey, New, Unrecorded},
    hash,
    machine::{BalancerTables, Frame, opaque, word},
    ranges,
};

/// Candidates that are compared: all of them where there are no more, else so many in a row, which begin one further with each flow.
pub const LOOKED_AT: u32 = 32;
/// Rounds of the search for a candidate: log2 of [`crate::abi::MAX_BACKENDS`].
const ROUNDS: u32 = 16;
/// Destination's port of the two as they stand in a packet.
const DESTINATION_PORT: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
/// Sets a client's key apart from those of flows.
const CLIENT: u64 = 0x4b1d_5eed_0c11_e275;

/// What is asked of a client, in one word: a backend (bits 0–15), offset of the packet's IP header (16–23), its protocol number inside
/// another packet (24–31), flags (32, 33), what the packet's slot says (40–55).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About(pub u64);

impl About {
    /// The flow is known and its client has proven that it is there.
    const PROVEN: u64 = 1 << 32;
    /// The method has chosen the backend.
    const CHOSEN: u64 = 1 << 33;

    /// A new flow, whose slot says this.
    #[inline(always)]
    pub const fn new_flow(slot: u16, l3: usize, inner: u8) -> Self {
        Self(slot as u64 | (l3 as u64 & 0xff) << 16 | (inner as u64) << 24 | (slot as u64) << 40)
    }

    /// The flow is known to live at its backend, and its client to be there.
    #[inline(always)]
    pub const fn proven(self) -> Self {
        Self(self.0 | Self::PROVEN)
    }

    /// The same flow, once it is known where it shall go.
    #[inline(always)]
    pub const fn chosen(self, backend: u16) -> Self {
        Self(self.0 >> 16 << 16 | backend as u64 | Self::CHOSEN)
    }

    #[inline(always)]
    const fn backend(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    const fn slot(self) -> u16 {
        (self.0 >> 40) as u16
    }

    #[inline(always)]
    const fn l3(self) -> usize {
        (self.0 >> 16 & 0xff) as usize
    }

    #[inline(always)]
    const fn inner(self) -> u8 {
        (self.0 >> 24) as u8
    }

    #[inline(always)]
    const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// Where a client's new flow goes, if that is remembered; or remembers where it goes, and where a client is that has proven to be there.
/// What cannot be remembered goes by its slot.
///
/// A SYN alone, which may be spoofed, is remembered for as long as a SYN, and in as few places.
#[inline(always)]
pub fn client<M: Frame + BalancerTables>(machine: &M, vip: u32, about: About) -> Said {
    let slot = about.slot();
    let (Some(options), Some(client)) = (
        machine.options(vip),
        connection(machine, about.l3(), about.inner(), DESTINATION_PORT),
    ) else {
        return Said::goes(slot);
    };
    // SAFETY: a pointer from a map lookup, aligned.
    let (schedule, timeout) = unsafe {
        (
            Schedule(word(&raw const (*options).schedule)),
            word(&raw const (*options).affinity) as u32,
        )
    };
    let config = machine.config();
    // SAFETY: the configuration lives as long as the program; a pointer from a map lookup, aligned.
    let (secret, mask, shift, lives) = unsafe {
        (
            word(&raw const (*config).flow_secret),
            word(&raw const (*config).flow_mask),
            word(&raw const (*config).tick_shift),
            FlowLives(machine.setting(setting::FLOW_LIVES).map_or(0, |lives| word(lives))),
        )
    };
    let key = FlowKey::new(client ^ CLIENT, secret, mask);
    let now = (machine.jiffies() >> (shift & 63)) as u32;
    // As if its last packet had come so long ago that it lives for the rest of the timeout.
    let until = now
        .wrapping_add(timeout)
        .wrapping_sub(lives.of(FlowState::Client as u64));
    if !about.has(About::CHOSEN) {
        match flows::find(machine, key, now, lives) {
            Some(found) if about.has(About::PROVEN) => {
                // Where it names another backend, the client's flows are at two: the next new one will find this record.
                if found.backend() == about.backend() {
                    flows::renew(machine, &found, FlowState::Client, until);
                }
                return Said::goes(slot);
            }
            None if about.has(About::PROVEN) => {}
            Some(found) if is_candidate(machine, schedule, found.backend()) => {
                machine.relied();
                return Said::goes(found.backend());
            }
            Some(_) | None => return Said::asks(slot),
        }
    }
    let (state, tick) = if about.has(About::CHOSEN) {
        (FlowState::Syn, now)
    } else {
        (FlowState::Client, until)
    };
    let new = New {
        backend: about.backend(),
        state,
        mark: 0,
        tick,
        initial_sequence: 0,
    };
    if new.backend != 0 && !flows::record(machine, key, new, now, lives) {
        machine.unrecorded(Unrecorded::Client);
        return Said::goes(slot);
    }
    Said::goes(new.backend)
}

/// The backend that a VIP's method says; that of the slot where there is no better, 0 where there is none.
#[inline(always)]
pub fn pick<M: BalancerTables>(machine: &M, vip: u32, slot: u16) -> u16 {
    let Some(options) = machine.options(vip) else {
        return slot;
    };
    // SAFETY: a pointer from a map lookup, aligned.
    let schedule = Schedule(unsafe { word(&raw const (*options).schedule) });
    let method = schedule.method();
    if method <= Method::Slot as u64 || schedule.candidates() == 0 {
        return slot;
    }
    let turn = machine.turn(vip);
    let picked = if method == Method::Turn as u64 {
        whose_turn(machine, schedule, turn)
    } else {
        least(machine, schedule, method, turn)
    };
    // Whoever is dead, or was never there, is not sent anything.
    match picked {
        Some(backend) if flows::lives_on(machine, backend) => backend,
        Some(_) | None => slot,
    }
}

/// Who has a turn.
#[inline(always)]
fn whose_turn<M: BalancerTables>(machine: &M, schedule: Schedule, turn: u64) -> Option<u16> {
    let turn = turn.checked_rem(u64::from(schedule.turns()))? as u32;
    let (segment, first) = schedule.unit().place();
    let at = first + schedule.candidates() + turn / SLOTS_PER_WORD as u32;
    // SAFETY: a pointer from a map lookup, aligned.
    let four = unsafe { word(machine.slot_word(segment, at)?) };
    Some((four >> (turn % SLOTS_PER_WORD as u32 * 16)) as u16)
}

/// Who has the least to do, by open flows and weight: of equal ones the first after the turn.
#[inline(always)]
fn least<M: BalancerTables>(machine: &M, schedule: Schedule, method: u64, turn: u64) -> Option<u16> {
    let candidates = u64::from(schedule.candidates());
    let (segment, first) = schedule.unit().place();
    // 0 or 1: whether the new flow counts.
    let with_it = opaque(u64::from(method != Method::Least as u64));
    let idle_first = opaque(u64::from(method == Method::Idle as u64));
    let mut at = opaque(turn.checked_rem(candidates)?);
    // Nobody yet: more than anybody has.
    let (mut best, mut best_load, mut best_weight) = (opaque(0), opaque(u64::from(u32::MAX)), opaque(1));
    let mut looked_at = opaque(0);
    while looked_at < u64::from(LOOKED_AT) {
        if looked_at >= candidates {
            break;
        }
        // SAFETY: a pointer from a map lookup, aligned.
        let candidate = Candidate(unsafe { word(machine.slot_word(segment, first + at as u32)?) });
        let open = machine.open_flows(u32::from(candidate.backend()))?;
        // SAFETY: as above.
        let open = unsafe { word(open) } & u64::from(u32::MAX);
        // Without branches: the verifier walks every way through them.
        let is_idle = at_most(open, 0);
        let load = opaque((open + with_it) * (1 - (idle_first & is_idle)));
        let is_better = opaque(1 - at_most(best_load * candidate.weight(), load * best_weight));
        let keep = opaque(is_better.wrapping_sub(1));
        best = opaque(u64::from(candidate.backend()) & !keep | best & keep);
        best_load = opaque(load & !keep | best_load & keep);
        best_weight = opaque(candidate.weight() & !keep | best_weight & keep);
        at = opaque((at + 1) * (1 - at_most(candidates, at + 1)));
        looked_at = opaque(looked_at + 1);
    }
    Some(best as u16)
}

/// Whether a backend is one of those that take new flows.
#[inline(always)]
fn is_candidate<M: BalancerTables>(machine: &M, schedule: Schedule, backend: u16) -> bool {
    let candidates = schedule.candidates();
    if candidates == 0 {
        return false;
    }
    let (segment, first) = schedule.unit().place();
    // How many have a lower position, found bit by bit.
    let mut lower = 0_u32;
    let mut round = opaque(u64::from(ROUNDS) + 1);
    while round > 0 {
        round = opaque(round - 1);
        let next = lower + (1 << (round & 31));
        let inside = at_most(u64::from(next), u64::from(candidates));
        let Some(at) = machine.slot_word(segment, first + (next - 1) * inside as u32) else {
            return false;
        };
        // SAFETY: a pointer from a map lookup, aligned.
        let candidate = Candidate(unsafe { word(at) });
        let below = 1 - at_most(u64::from(backend), u64::from(candidate.backend()));
        lower = opaque(u64::from(lower + (below & inside) as u32 * (1 << (round & 31)))) as u32;
    }
    if lower >= candidates {
        return false;
    }
    match machine.slot_word(segment, first + lower) {
        // SAFETY: as above.
        Some(at) => Candidate(unsafe { word(at) }).backend() == backend,
        None => false,
    }
}

/// 1 where a <= b, else 0. Opaque, or the compiler knows that both are small and makes a branch, and the verifier walks 2^17 ways.
#[inline(always)]
fn at_most(a: u64, b: u64) -> u64 {
    ranges::at_most(opaque(a), opaque(b))
}

/// Where a VIP's turns begin: not with the same candidate on every LB node and for every VIP.
#[inline(always)]
pub const fn first_turn(secret: u64, vip: VipIndex) -> u64 {
    hash::mix(secret ^ vip.0 as u64) >> 40
}
