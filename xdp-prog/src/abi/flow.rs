//! What a change of backends leaves behind while old flows live: slots in transit, and records of flows.
//!
//! A lookup table is *plain* (four slots in a word, see [`super::SLOTS_PER_WORD`]) or *wide*: two words a slot, [`SlotWord`] and
//! [`Activity`]. A VIP's match entry says which ([`super::VipMeta::TRANSIT`]). Flow records live in `FLOWS`, one array for all CPUs;
//! a record is two words, claimed and changed by 64-bit compare-and-swap of the first.
//!
//! Time is in *ticks*: jiffies shifted right by [`super::Config::tick_shift`], about a quarter of a second.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::machine::opaque;

/// Words of a slot of a wide table.
pub const WIDE_WORDS: usize = 2;

/// A slot of a wide table, one aligned word: `cur` (bits 0–15) takes new flows, `base` (16–31) has the TCP flows that no record
/// names, `udp_base` (32–47) those of UDP while the window is open; flags (48–63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotWord(pub u64);

impl SlotWord {
    /// TCP flows of the slot may live elsewhere than at `cur`.
    pub const TCP: u64 = 1 << 48;
    /// UDP flows of the slot may live elsewhere than at `cur`.
    pub const UDP: u64 = 1 << 49;
    /// The learning window of UDP is open: what is unrecorded lives at `udp_base` and is recorded.
    pub const LEARNING: u64 = 1 << 50;

    /// A slot of which nothing lives elsewhere.
    #[inline(always)]
    pub const fn steady(cur: u16) -> Self {
        Self::new(cur, cur, cur, 0)
    }

    /// From its parts.
    #[inline(always)]
    pub const fn new(cur: u16, base: u16, udp_base: u16, flags: u64) -> Self {
        Self(cur as u64 | (base as u64) << 16 | (udp_base as u64) << 32 | flags)
    }

    /// Where new flows go.
    #[inline(always)]
    pub const fn cur(self) -> u16 {
        self.0 as u16
    }

    /// Where TCP flows without a record live.
    #[inline(always)]
    pub const fn base(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Where UDP flows without a record live while the window is open.
    #[inline(always)]
    pub const fn udp_base(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Its flags.
    #[inline(always)]
    pub const fn flags(self) -> u64 {
        self.0 & !0xffff_ffff_ffff
    }

    /// Whether one of these flags is set.
    #[inline(always)]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }
}

/// When a packet of a slot last went elsewhere than to `cur`, in ticks: TCP (bits 0–31), UDP (32–63). The program writes a half at a
/// time; user space writes the word only before the table is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity(pub u64);

impl Activity {
    /// From its halves.
    pub const fn new(tcp: u32, udp: u32) -> Self {
        Self(tcp as u64 | (udp as u64) << 32)
    }

    /// Last tick of TCP.
    pub const fn tcp(self) -> u32 {
        self.0 as u32
    }

    /// Last tick of UDP.
    pub const fn udp(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Records in a bucket.
pub const FLOW_WAYS: usize = 4;
/// Records in a bucket that may be of SYNs alone: a flood of them leaves room for what is known to live.
pub const FLOW_SYN_WAYS: u64 = 2;
/// Most buckets of `FLOWS`: 256 MiB, 16M records.
pub const MAX_FLOW_BUCKETS: usize = 1 << 22;

/// Four records in a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct FlowBucket {
    /// The ways.
    pub records: [FlowRecord; FLOW_WAYS],
}

/// A flow and where it lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowRecord {
    /// [`FlowWord`]; 0 has never been used.
    pub word: u64,
    /// [`FlowTail`].
    pub tail: u64,
}

const _: () = assert!(size_of::<FlowBucket>() == 64);

/// First word of a record, changed by compare-and-swap alone: tick of the last packet modulo 2^24 (bits 0–23), [`FlowState`]
/// (24–27), backend (28–43), upper bits of the fingerprint (44–63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowWord(pub u64);

impl FlowWord {
    const TICKS: u32 = 24;
    const STATE: u32 = 24;
    const BACKEND: u32 = 28;
    /// First bit of the fingerprint.
    pub const FINGERPRINT: u32 = 44;

    /// A record of the flow whose fingerprint's upper bits are `high`, in place ([`crate::flows::FlowKey`]).
    #[inline(always)]
    pub const fn new(high: u64, backend: u16, state: FlowState, now: u32) -> Self {
        Self(high | (backend as u64) << Self::BACKEND | (state as u64) << Self::STATE | (now & 0xff_ffff) as u64)
    }

    /// With [`FlowState::SCHEDULED`] beside its state, or with nothing (0).
    #[inline(always)]
    pub const fn marked(self, mark: u64) -> Self {
        Self(self.0 | mark << Self::STATE)
    }

    /// The same flow at the same backend, in this state, now; scheduled if it was.
    #[inline(always)]
    pub const fn renewed(self, state: FlowState, now: u32) -> Self {
        let state = (state as u64) << Self::STATE | self.0 & FlowState::SCHEDULED << Self::STATE;
        Self(self.0 >> Self::BACKEND << Self::BACKEND | state | (now & 0xff_ffff) as u64)
    }

    /// 1 for a flow that is counted as its backend's, else 0.
    #[inline(always)]
    pub const fn counts(self) -> u64 {
        FlowState::COUNTED >> self.state() & 1
    }

    /// Where the flow lives.
    #[inline(always)]
    pub const fn backend(self) -> u16 {
        (self.0 >> Self::BACKEND) as u16
    }

    /// What is known of the flow: the number of a [`FlowState`], with or without [`FlowState::SCHEDULED`].
    #[inline(always)]
    pub const fn state(self) -> u64 {
        self.0 >> Self::STATE & 0xf
    }

    /// Ticks since the last packet; below 0 for one that another CPU has seen a moment later, and, wrongly, for what is older than 2^23
    /// ticks (24 days).
    #[inline(always)]
    pub const fn age(self, now: u32) -> i64 {
        let age = (now as u64).wrapping_sub(self.0) << (64 - Self::TICKS);
        age as i64 >> (64 - Self::TICKS)
    }

    /// Whether nothing has come for longer than `lives` gives a record of its state.
    #[inline(always)]
    pub fn is_expired(self, now: u32, lives: FlowLives) -> bool {
        self.expired(now, lives) != 0
    }

    /// 1 if [`Self::is_expired`], else 0, without a branch.
    #[inline(always)]
    pub fn expired(self, now: u32, lives: FlowLives) -> u64 {
        opaque((i64::from(lives.of(self.state())) - self.age(now)) as u64) >> 63
    }
}

/// Second word of a record, written by who claimed the record and by nobody else: initial sequence number (bits 0–31), lower bits of
/// the fingerprint (32–63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTail(pub u64);

impl FlowTail {
    /// From its halves.
    #[inline(always)]
    pub const fn new(low: u32, initial_sequence: u32) -> Self {
        Self(initial_sequence as u64 | (low as u64) << 32)
    }

    /// The SYN's sequence number.
    #[inline(always)]
    pub const fn initial_sequence(self) -> u32 {
        self.0 as u32
    }

    /// Lower bits of the fingerprint.
    #[inline(always)]
    pub const fn low(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What is known of a recorded flow. The upper two bits choose its life in [`FlowLives`]; [`FlowState::SCHEDULED`] may stand beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// A TCP connection of which only SYNs have come: it may be spoofed.
    Syn = 0b0001,
    /// A TCP connection whose client has answered its backend.
    Confirmed = 0b0100,
    /// A TCP connection whose client has sent FIN.
    Closing = 0b1000,
    /// A TCP connection whose client, or somebody in its name, has sent RST.
    Reset = 0b1001,
    /// A UDP flow.
    Datagram = 0b1100,
    /// Not a flow: a client, and where its flows go. Its tick is set back or forward, so that it lives as long as its VIP says and not as
    /// long as a connection.
    Client = 0b0101,
    /// Nobody's: swept away. Not 0, which would say that the way has never been used.
    Swept = 0b0010,
}

impl FlowState {
    /// Beside a state: the flow is of a VIP with a scheduler, and counted as its backend's while it is open.
    pub const SCHEDULED: u64 = 0b0010;
    /// A bit for each state of a flow that is counted: with [`Self::SCHEDULED`], and neither closing nor reset.
    const COUNTED: u64 = 1 << (Self::Syn as u64 | Self::SCHEDULED)
        | 1 << (Self::Confirmed as u64 | Self::SCHEDULED)
        | 1 << (Self::Datagram as u64 | Self::SCHEDULED);
}

/// How long records live without packets, one word: four lives of 16 bits, each in [`FlowLives::UNIT`] ticks: SYN alone, TCP, TCP
/// after FIN or RST, UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowLives(pub u64);

impl FlowLives {
    /// Ticks in a unit: two seconds, so that 16 bits hold 37 hours.
    pub const UNIT: u32 = 8;

    /// From ticks, rounded up; at most what 16 bits hold.
    pub const fn new(syn: u32, tcp: u32, closing: u32, udp: u32) -> Self {
        const fn units(ticks: u32) -> u64 {
            let units = ticks.div_ceil(FlowLives::UNIT);
            if units > 0xffff { 0xffff } else { units as u64 }
        }
        Self(units(syn) | units(tcp) << 16 | units(closing) << 32 | units(udp) << 48)
    }

    /// Ticks that a record of this state lives.
    #[inline(always)]
    pub const fn of(self, state: u64) -> u32 {
        ((self.0 >> (state >> 2 << 4 & 48)) as u16 as u32) * Self::UNIT
    }
}
