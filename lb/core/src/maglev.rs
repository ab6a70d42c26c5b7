//! Weighted Maglev lookup tables: which backend each slot names.
//!
//! Never uses the seed of the flow hash, a clock, or a hasher that differs between machines: the same members and number of
//! slots give the same bytes everywhere. The method is Maglev's (Eisenbud et al., NSDI 2016, 3.4): each member has a
//! permutation of the slots, drawn from its name; in turns, in order of identity, each takes the first slot of its permutation
//! that is still free, until its quota is full. Beside the paper:
//!
//! - The number of slots is a power of two and the skip odd, which is always coprime to it: a permutation without a prime.
//! - Quotas are the weights' shares by largest remainder, so the shares are exact to one slot, and nobody with a weight is left
//!   out while there are slots.
//! - The last slots, which the paper's search finds by trying most of the table again and again, are found from the other
//!   side: `(slot - offset) / skip` is a free slot's turn in a permutation, and the least of those is the answer. The table is
//!   the same, in under half the time.
//!
//! # Growth
//!
//! The flow hash's top bits choose the slot, so flows of slot `i` of a table grown by 2^k were flows of slot `i >> k` before:
//! [`base_slot`]. The grown table's own content is a fresh build: growing moves about as many flows as it likes, and transit
//! keeps those that live.

use xdp_prog::abi::{MAX_TABLE_SLOTS, MIN_TABLE_SLOTS};

use crate::desired::Member;

/// What a slot holds when no member has a weight.
pub const NO_MEMBER: u16 = u16::MAX;

/// Most members that a table can tell apart.
pub const MAX_MEMBERS: usize = NO_MEMBER as usize;

/// Slots that a table has unless its set says otherwise: the power of two that gives 64 to 128 per member, within
/// [`MIN_TABLE_SLOTS`] and [`MAX_TABLE_SLOTS`].
pub fn default_slots(members: usize) -> usize {
    (members.min(MAX_TABLE_SLOTS) * 64)
        .next_power_of_two()
        .clamp(MIN_TABLE_SLOTS, MAX_TABLE_SLOTS)
}

/// Whether a lookup table can have this many slots.
pub const fn is_table_size(slots: usize) -> bool {
    slots.is_power_of_two() && slots >= MIN_TABLE_SLOTS && slots <= MAX_TABLE_SLOTS
}

/// The slot of a table of `base_slots` slots whose flows include those of `slot` in a table of `slots` slots, grown from it.
/// Both are powers of two and `slots` is the larger or equal one.
pub const fn base_slot(slot: usize, slots: usize, base_slots: usize) -> usize {
    slot >> (slots.trailing_zeros() - base_slots.trailing_zeros())
}

/// Builds a table: for each slot the position in `members` of the backend that it names, or [`NO_MEMBER`] throughout when no
/// member has a weight.
///
/// The order of `members` does not matter to who gets which slot, but equal names do: each name may stand there once.
/// `slots` is rounded to what [`is_table_size`] allows, and members beyond [`MAX_MEMBERS`] take no part; the planner refuses
/// both.
pub fn build(members: &[Member], slots: usize) -> Vec<u16> {
    let slots = slots.clamp(MIN_TABLE_SLOTS, MAX_TABLE_SLOTS).next_power_of_two();
    let members = &members[..members.len().min(MAX_MEMBERS)];
    let mut order: Vec<u16> = (0..members.len() as u16).collect();
    if !members.is_sorted_by(|a, b| a.backend < b.backend) {
        order.sort_by(|a, b| members[usize::from(*a)].backend.cmp(&members[usize::from(*b)].backend));
    }
    let weights: Vec<u16> = order
        .iter()
        .map(|position| members[usize::from(*position)].weight)
        .collect();
    let takers = order
        .into_iter()
        .zip(quotas(&weights, slots))
        .filter(|(_, quota)| *quota > 0)
        .map(|(position, quota)| Taker::new(position, &members[usize::from(position)].backend.0, quota, slots))
        .collect();
    Filling::new(takers, slots).fill()
}

/// Slots that each of `weights` gets of `slots`: shares by largest remainder, the earlier of equal ones first; at least one for
/// each weight above 0 (the heaviest, if there are fewer slots than those).
pub fn quotas(weights: &[u16], slots: usize) -> Vec<u32> {
    let mut quotas = vec![0u32; weights.len()];
    let mut open: Vec<usize> = (0..weights.len()).filter(|index| weights[*index] > 0).collect();
    if open.len() > slots {
        open.sort_by_key(|index| std::cmp::Reverse(weights[*index]));
        open[..slots].iter().for_each(|index| quotas[*index] = 1);
        return quotas;
    }
    // Whoever's share is under one slot gets one, which lowers the others' shares: repeat until nobody falls under.
    let mut left = slots as u64;
    let total = loop {
        let total: u64 = open.iter().map(|index| u64::from(weights[*index])).sum();
        let before = open.len();
        let pool = left;
        open.retain(|index| {
            let enough = u64::from(weights[*index]) * pool >= total;
            if !enough {
                quotas[*index] = 1;
                left -= 1;
            }
            enough
        });
        if open.len() == before {
            break total;
        }
    };
    if open.is_empty() {
        return quotas;
    }
    let pool = left;
    let mut remainders = Vec::with_capacity(open.len());
    for index in open {
        let share = u64::from(weights[index]) * pool;
        quotas[index] = (share / total) as u32;
        left -= share / total;
        remainders.push((std::cmp::Reverse(share % total), index));
    }
    // What is left is fewer than the members: floors lose less than one each.
    let extra = left as usize;
    if extra > 0 {
        remainders.select_nth_unstable(extra - 1);
        remainders[..extra].iter().for_each(|(_, index)| quotas[*index] += 1);
    }
    quotas
}

/// Identity hash: FNV-1a over the name's bytes, spread by SplitMix64's finaliser. Fixed for ever: every LB node of a group must
/// draw the same permutations, whatever version it runs.
fn identity_hash(name: &str) -> u64 {
    let fnv = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (fnv ^ fnv >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

/// A member that still has slots to take.
#[derive(Clone, Copy)]
struct Taker {
    /// Next slot of its permutation.
    next: u32,
    /// Distance between slots of its permutation; odd.
    skip: u32,
    /// Slots it has yet to take, at least 1.
    quota: u32,
    position: u16,
}

impl Taker {
    fn new(position: u16, name: &str, quota: u32, slots: usize) -> Self {
        let hash = identity_hash(name);
        let mask = slots as u32 - 1;
        Self {
            next: hash as u32 & mask,
            skip: ((hash >> 32) as u32 | 1) & mask,
            quota,
            position,
        }
    }
}

/// Which slots are free: 1 or 0. A byte each, because a look at a bit costs more than the cache misses of a larger map.
type Free = [u8; MAX_TABLE_SLOTS];

/// A table being filled. `takers` is in order of identity; `turn` is whose turn it is.
struct Filling {
    takers: Vec<Taker>,
    turn: usize,
    table: Vec<u16>,
    mask: u32,
}

impl Filling {
    fn new(takers: Vec<Taker>, slots: usize) -> Self {
        Self {
            takers,
            turn: 0,
            table: vec![NO_MEMBER; slots],
            mask: slots as u32 - 1,
        }
    }

    fn fill(mut self) -> Vec<u16> {
        if self.takers.is_empty() {
            return self.table;
        }
        let slots = self.table.len();
        let mut free: Free = [0; MAX_TABLE_SLOTS];
        free[..slots].fill(1);
        // Finding a slot costs `slots / free` looks forwards, and `free / 8` steps of vector code from the other side.
        let tail = (8 * slots).isqrt();
        // The branch predictor cannot know which look finds a free slot: so many are taken together that the first round
        // mostly does.
        self.search::<2>(&mut free, slots / 2);
        self.search::<8>(&mut free, slots / 2 - tail);
        self.finish(&free);
        self.table
    }

    /// Gives out `count` slots by walking the permutations, looking at `LOOKS` slots together.
    fn search<const LOOKS: u32>(&mut self, free: &mut Free, mut count: usize) {
        let mask = self.mask;
        while count > 0 {
            let end = self.takers.len().min(self.turn + count);
            count -= end - self.turn;
            let mut kept = self.turn;
            for index in self.turn..end {
                let mut taker = self.takers[index];
                let slot = loop {
                    let mut found = 0;
                    let mut slot = taker.next;
                    for look in 0..LOOKS {
                        found |= u32::from(free[slot as usize % MAX_TABLE_SLOTS]) << look;
                        slot = (slot + taker.skip) & mask;
                    }
                    if found != 0 {
                        break (taker.next + found.trailing_zeros() * taker.skip) & mask;
                    }
                    taker.next = slot;
                };
                free[slot as usize % MAX_TABLE_SLOTS] = 0;
                self.take(&mut taker, slot);
                self.takers[kept] = taker;
                kept += usize::from(taker.quota > 0);
            }
            self.end_round(kept, end);
        }
    }

    /// Gives out the rest. While a slot is free, the table holds its place in the list of free slots.
    fn finish(&mut self, free: &Free) {
        let mask = self.mask as u16;
        let mut rest: Vec<u16> = (0..=mask).filter(|slot| free[usize::from(*slot)] == 1).collect();
        rest.iter()
            .zip(0..)
            .for_each(|(slot, place)| self.table[usize::from(*slot)] = place);
        while !rest.is_empty() {
            let end = self.takers.len().min(self.turn + rest.len());
            let mut kept = self.turn;
            for index in self.turn..end {
                let mut taker = self.takers[index];
                let inverse = inverse(taker.skip) as u16;
                let next = taker.next as u16;
                let turn = |slot: &u16| slot.wrapping_sub(next).wrapping_mul(inverse) & mask;
                let steps = rest.iter().fold(mask, |least, slot| least.min(turn(slot)));
                let slot = (taker.next + u32::from(steps) * taker.skip) & self.mask;
                let place = usize::from(self.table[slot as usize]);
                rest.swap_remove(place);
                if let Some(moved) = rest.get(place) {
                    self.table[usize::from(*moved)] = place as u16;
                }
                self.take(&mut taker, slot);
                self.takers[kept] = taker;
                kept += usize::from(taker.quota > 0);
            }
            self.end_round(kept, end);
        }
    }

    fn take(&mut self, taker: &mut Taker, slot: u32) {
        self.table[slot as usize] = taker.position;
        taker.next = (slot + taker.skip) & self.mask;
        taker.quota -= 1;
    }

    /// Takers from `kept` to `end` have their quota; those from `end` on had no turn yet in this round.
    fn end_round(&mut self, kept: usize, end: usize) {
        self.takers.drain(kept..end);
        self.turn = if kept < self.takers.len() { kept } else { 0 };
    }
}

/// Inverse of an odd number modulo 2^32, by Newton's iteration: each round doubles the bits that are right, from three.
fn inverse(odd: u32) -> u32 {
    (0..4).fold(odd, |inverse, _| {
        inverse.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(inverse)))
    })
}
