//! How a VIP that asks for state chooses the backends of new flows: read only where its match entry says
//! [`super::VipMeta::SCHEDULED`].

use super::TableUnit;

/// What chooses the backend of a flow that nothing is known of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Method {
    /// Its slot of the lookup table; there is something else to remember.
    Slot = 1,
    /// Whose turn it is.
    Turn = 2,
    /// Who has the fewest flows for its weight.
    Least = 3,
    /// Who would have the fewest for its weight with this one.
    Expected = 4,
    /// Who has none, else as [`Self::Expected`].
    Idle = 5,
}

/// Who may take new flows of a VIP, and by which method, in one word: [`Method`] (bits 0–3), where the candidates begin in slot memory
/// (4–23, a [`TableUnit`]), how many there are (24–40), turns in a round (41–57), flags (58–63).
///
/// Candidates are words of their own ([`Candidate`]) in the order of their positions; behind them, with [`Method::Turn`], stands who
/// has which turn, four in a word as in a plain lookup table. A word of 0 lets nobody take flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule(pub u64);

impl Schedule {
    /// Each datagram is a flow of its own: nothing of it is recorded.
    pub const EACH: u64 = 1 << 58;

    /// From its parts.
    pub const fn new(method: Method, unit: TableUnit, candidates: usize, turns: usize, flags: u64) -> Self {
        let (candidates, turns) = (candidates as u64 & 0x1_ffff, turns as u64 & 0x1_ffff);
        Self(method as u64 | (unit.0 as u64 & 0xf_ffff) << 4 | candidates << 24 | turns << 41 | flags)
    }

    /// The number of a [`Method`].
    #[inline(always)]
    pub const fn method(self) -> u64 {
        self.0 & 0xf
    }

    /// Where the candidates begin.
    #[inline(always)]
    pub const fn unit(self) -> TableUnit {
        TableUnit((self.0 >> 4 & 0xf_ffff) as u32)
    }

    /// How many candidates there are.
    #[inline(always)]
    pub const fn candidates(self) -> u32 {
        (self.0 >> 24 & 0x1_ffff) as u32
    }

    /// Turns in a round.
    #[inline(always)]
    pub const fn turns(self) -> u32 {
        (self.0 >> 41 & 0x1_ffff) as u32
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// Most turns in a round: 32 KiB of slot memory. Weights whose round would be longer are rounded to it.
pub const MAX_TURNS: usize = 16_384;

/// Who may take new flows: position of the backend (bits 0–15), weight (16–31), never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate(pub u64);

impl Candidate {
    /// From its parts.
    pub const fn new(backend: u16, weight: u16) -> Self {
        Self(backend as u64 | (weight as u64) << 16)
    }

    /// Position of the backend.
    #[inline(always)]
    pub const fn backend(self) -> u16 {
        self.0 as u16
    }

    /// Its share of new flows relative to the others.
    #[inline(always)]
    pub const fn weight(self) -> u64 {
        self.0 >> 16 & 0xffff
    }
}
