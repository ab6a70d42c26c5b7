//! The map ABI: the layout of everything that user space writes and the program reads.
//!
//! Nothing here does IO. Live maps are written only by aligned 8-byte stores through a mapping and read by volatile `u64`
//! loads, so every type is made of aligned `u64` words. A packet field inside a word keeps the order of its bytes on the wire:
//! words are built with `from_ne_bytes`, and the program never swaps bytes to compare.
//!
//! A change of any layout moves [`ABI_VERSION`]; a snapshot test holds that.

mod backend;
mod counters;
mod flow;
mod match_table;
mod options;
mod range;
mod sample;
mod schedule;
mod slow;

pub use backend::{BackendLine, LineMeta, OuterHeader};
pub use counters::{FlowCounts, LimitState, Traffic};
pub use flow::{
    Activity, FLOW_SYN_WAYS, FLOW_WAYS, FlowBucket, FlowLives, FlowRecord, FlowState, FlowTail, FlowWord,
    MAX_FLOW_BUCKETS, SlotWord, WIDE_WORDS,
};
pub use match_table::{BucketV4, BucketV6, CHOICES, EntryV6, KeyV4, KeyV6, VipMeta, WAYS_V4, WAYS_V6};
pub use options::VipOptions;
pub use range::{Range, SetRef, number};
pub use sample::{CaptureState, SampleHeader};
pub use schedule::{Candidate, MAX_TURNS, Method, Schedule};
pub use slow::{SlowBudget, SlowState, socket_key};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of every layout in this module; part of the path under which maps are pinned.
pub const ABI_VERSION: u64 = 6;

/// Position of a backend in `BACKENDS`: what a slot holds. 0 means *no backend*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendIndex(pub u16);

impl BackendIndex {
    /// The slot value of a table without a healthy backend.
    pub const NONE: Self = Self(0);
}

/// Position of a VIP in `VIP_COUNTERS`, `VIP_OPTIONS` and `LIMITS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipIndex(pub u32);

/// Where a lookup table begins in slot memory, in units of [`UNIT_SLOTS`] slots. Unit 0 is the empty table: all slots `NONE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableUnit(pub u32);

impl TableUnit {
    /// Segment of slot memory, and word of it, at which the table begins.
    #[inline(always)]
    pub const fn place(self) -> (u32, u32) {
        let units = SEGMENT_UNITS as u32;
        (self.0 / units, self.0 % units * (UNIT_SLOTS / SLOTS_PER_WORD) as u32)
    }
}

/// Fewest slots of a lookup table: 512 B of slot memory.
pub const MIN_TABLE_SLOTS: usize = 256;
/// Most slots of a lookup table: 128 KiB of slot memory.
pub const MAX_TABLE_SLOTS: usize = 65_536;
/// Slots in one allocation unit of slot memory.
pub const UNIT_SLOTS: usize = MIN_TABLE_SLOTS;
/// Slots packed in one `u64` word of slot memory.
pub const SLOTS_PER_WORD: usize = 4;
/// Words in one segment of slot memory: 1 MiB, eight of the largest tables.
pub const SEGMENT_WORDS: usize = 131_072;
/// Units in one segment.
pub const SEGMENT_UNITS: usize = SEGMENT_WORDS * SLOTS_PER_WORD / UNIT_SLOTS;
/// Most segments: 256 MiB of slot memory when all are in use; they are made as they are needed.
pub const MAX_SEGMENTS: usize = 256;

/// Most backends of one LB node. A line costs 64 B, a counter 16 B per possible CPU.
pub const MAX_BACKENDS: usize = 65_536;
/// Most VIPs of one LB node ([`VipMeta`] has 20 bits for the index). One costs 16–64 B of match table, 64 B of options and a
/// 16 B counter per possible CPU.
pub const MAX_VIPS: usize = 1 << 20;
/// Most buckets of a match table: 4 MiB, 262,144 IPv4 or 131,072 IPv6 entries.
pub const MAX_BUCKETS: usize = 65_536;
/// Most ranges of one set after merging; log2 of it bounds the search.
pub const MAX_SET_RANGES: usize = 1 << MAX_SET_LOG2;
/// Rounds of the range search.
pub const MAX_SET_LOG2: u32 = 10;
/// Most ranges of all sets together: 2 MiB.
pub const MAX_RANGES: usize = 65_536;
/// Most interfaces a balancer sends out of.
pub const MAX_PORTS: usize = 64;
/// Most slow-path sockets of the node, of all interfaces and queues together: 64 KiB of `XSK_INDEX`, 8 KiB of `XSKS`.
pub const MAX_QUEUES: usize = 1024;
/// Counters of verdicts, with room for more verdicts without a change of layout.
pub const MAX_VERDICTS: usize = 64;

/// Names of the maps, as they stand in the object.
pub mod map {
    /// Match table of IPv4 VIPs: [`super::BucketV4`].
    pub const VIPS_V4: &str = "VIPS_V4";
    /// Match table of IPv6 VIPs: [`super::BucketV6`].
    pub const VIPS_V6: &str = "VIPS_V6";
    /// Slot memory: segments of [`super::SEGMENT_WORDS`] words.
    pub const LOOKUP_TABLES: &str = "LOOKUP_TABLES";
    /// Backend lines.
    pub const BACKENDS: &str = "BACKENDS";
    /// Options of VIPs that have any.
    pub const VIP_OPTIONS: &str = "VIP_OPTIONS";
    /// Ranges of all sets.
    pub const RANGES: &str = "RANGES";
    /// Words that concern the whole node, see [`super::setting`].
    pub const SETTINGS: &str = "SETTINGS";
    /// Per-CPU packets by verdict.
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU traffic by VIP.
    pub const VIP_COUNTERS: &str = "VIP_COUNTERS";
    /// Per-CPU traffic by backend.
    pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
    /// Per-CPU token buckets by VIP.
    pub const LIMITS: &str = "LIMITS";
    /// Interfaces to redirect to, by the port of a backend line.
    pub const PORTS: &str = "PORTS";
    /// Slow-path sockets.
    pub const XSKS: &str = "XSKS";
    /// Where in `XSKS` the socket of an interface's receive queue stands, by [`super::socket_key`].
    pub const XSK_INDEX: &str = "XSK_INDEX";
    /// What the slow path takes, by verdict: [`super::SlowBudget`].
    pub const SLOW_BUDGETS: &str = "SLOW_BUDGETS";
    /// Per-CPU token buckets and sheds of the slow path, by verdict: [`super::SlowState`].
    pub const SLOW_STATES: &str = "SLOW_STATES";
    /// Flow records: buckets of [`super::FlowBucket`].
    pub const FLOWS: &str = "FLOWS";
    /// Marks of the buckets of `FLOWS`: one bit each, in words of 64; set by atomic operations alone.
    pub const FLOW_MARKS: &str = "FLOW_MARKS";
    /// Per-CPU count of what found no room in `FLOWS`: one [`super::FlowCounts`].
    pub const FLOW_COUNTS: &str = "FLOW_COUNTS";
    /// Open flows of VIPs with a scheduler, by backend: one word each, written by atomic additions alone.
    pub const OPEN_FLOWS: &str = "OPEN_FLOWS";
    /// How often somebody's turn has come, by VIP: one word each, likewise.
    pub const TURNS: &str = "TURNS";
    /// Sampled packets: one perf ring per CPU.
    pub const SAMPLES: &str = "SAMPLES";
    /// This CPU's capture: one [`super::CaptureState`].
    pub const CAPTURES: &str = "CAPTURES";
    /// The read-only global [`super::Config`].
    pub const CONFIG: &str = "CONFIG";
}

/// Positions in `SETTINGS`. Those of sources and tunnels hold a [`SetRef`]; those of the capture are read only under
/// [`feature::CAPTURE`].
pub mod setting {
    /// Sources whose packets to a VIP are dropped.
    pub const DENIED_SOURCES: u32 = 0;
    /// Outer sources that may send us tunnelled packets: the LB nodes.
    pub const TUNNEL_SOURCES: u32 = 1;
    /// Inner destinations that may be decapsulated: the VIP prefixes.
    pub const TUNNEL_VIPS: u32 = 2;
    /// Outer destinations that are this node.
    pub const TUNNEL_LOCALS: u32 = 3;
    /// Inner sources that never come through a tunnel: nodes, pods, Services.
    pub const TUNNEL_DENIED: u32 = 4;
    /// Which verdicts are captured: a bit per verdict number.
    pub const CAPTURE_VERDICTS: u32 = 5;
    /// Which VIP is captured: its index plus one; 0: any packet, also those that no VIP claims.
    pub const CAPTURE_VIP: u32 = 6;
    /// One in so many of these packets is captured, by chance (32 bits count); 0 and 1: all.
    pub const CAPTURE_SAMPLE: u32 = 7;
    /// Packets captured per jiffy and CPU, in 1/65,536 packet.
    pub const CAPTURE_RATE: u32 = 8;
    /// Most that a CPU can save up of them, in 1/65,536 packet; 0: no limit.
    pub const CAPTURE_BURST: u32 = 9;
    /// Most bytes of a frame that are captured.
    pub const CAPTURE_SNAPLEN: u32 = 10;
    /// [`super::FlowLives`]: how long flow records live.
    pub const FLOW_LIVES: u32 = 11;
    /// Words in the map.
    pub const COUNT: u32 = 16;
}

/// Bits of [`Config::features`]. A feature that is off is dead code to the verifier.
pub mod feature {
    /// Per-VIP packet and SYN limits.
    pub const LIMITS: u64 = 1 << 0;
    /// Per-VIP source ranges.
    pub const SOURCE_RANGES: u64 = 1 << 1;
    /// The node's source deny-list.
    pub const DENIED_SOURCES: u64 = 1 << 2;
    /// Drop packets from sources that cannot be on the Internet (RFC 1122 3.2.1.3, RFC 4291 2.5).
    pub const DROP_MARTIANS: u64 = 1 << 3;
    /// Drop packets whose source is the VIP they are sent to ("LAND").
    pub const DROP_SOURCE_IS_VIP: u64 = 1 << 4;
    /// Backends may be behind another interface than the one a packet came from.
    pub const REDIRECT: u64 = 1 << 5;
    /// Hand unusual packets to AF_XDP sockets instead of dropping them.
    pub const SLOW_PATH: u64 = 1 << 6;
    /// This LB node is a backend of others: decapsulate what is sent to it.
    pub const DECAP: u64 = 1 << 7;
    /// The outer source carries flow entropy under [`super::Config::source_mask_v4`] and [`super::Config::source_mask_v6`].
    pub const SOURCE_PREFIX: u64 = 1 << 8;
    /// Lower the MSS option of SYNs to VIPs that ask for it ([`super::VipMeta::CLAMP_MSS`]).
    pub const CLAMP_MSS: u64 = 1 << 9;
    /// Sample packets into `SAMPLES`, as the settings of the capture say.
    pub const CAPTURE: u64 = 1 << 10;
    /// Choose by the client's address alone for VIPs that ask for it ([`super::VipMeta::CLIENT_AFFINITY`]).
    pub const AFFINITY: u64 = 1 << 11;
    /// Keep flows where they live while backends change: wide tables and the flow table.
    pub const TRANSIT: u64 = 1 << 12;
    /// Schedulers and client affinity that remember: flow records of VIPs that ask for it ([`super::VipMeta::SCHEDULED`]). Only with
    /// [`TRANSIT`].
    pub const SCHEDULERS: u64 = 1 << 13;
    /// All of them.
    pub const ALL: u64 = (1 << 14) - 1;

    /// Names for people, in the order of the bits.
    pub const NAMES: [(u64, &str); 14] = [
        (LIMITS, "limits"),
        (SOURCE_RANGES, "source ranges"),
        (DENIED_SOURCES, "denied sources"),
        (DROP_MARTIANS, "drop martians"),
        (DROP_SOURCE_IS_VIP, "drop source-is-VIP"),
        (REDIRECT, "redirect"),
        (SLOW_PATH, "slow path"),
        (DECAP, "decapsulation"),
        (SOURCE_PREFIX, "source prefix"),
        (CLAMP_MSS, "MSS clamping"),
        (CAPTURE, "capture"),
        (AFFINITY, "client affinity"),
        (TRANSIT, "transit"),
        (SCHEDULERS, "schedulers"),
    ];
}

/// What is fixed for the life of a loaded program: frozen read-only data, so that the verifier sees constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// [`ABI_VERSION`] of who wrote it.
    pub abi_version: u64,
    /// See [`feature`].
    pub features: u64,
    /// Seed of the flow hash: a secret, the same on all LB nodes of a group.
    pub seed: [u64; 4],
    /// Salt of the match tables' bucket choice.
    pub match_salt: u64,
    /// Buckets of `VIPS_V4` minus one; a power of two minus one.
    pub match_mask_v4: u64,
    /// Buckets of `VIPS_V6` minus one; a power of two minus one.
    pub match_mask_v6: u64,
    /// Bits of an outer IPv4 source that carry the flow hash, as on the wire.
    pub source_mask_v4: u64,
    /// Bits of the low half of an outer IPv6 source that carry the flow hash, as on the wire.
    pub source_mask_v6: u64,
    /// Buckets of `FLOWS` minus one; a power of two minus one.
    pub flow_mask: u64,
    /// Keys the fingerprints of flow records: a secret of this node's own, for as long as `FLOWS` lives.
    pub flow_secret: u64,
    /// Jiffies are shifted right by so much to make ticks: [`tick_shift`].
    pub tick_shift: u64,
}

/// [`Config::tick_shift`] of a kernel with so many jiffies a second: ticks of a quarter of a second, or up to twice as long.
pub const fn tick_shift(hz: u32) -> u32 {
    (hz / 4 + 1).next_power_of_two().trailing_zeros()
}

impl Config {
    /// Everything off, match tables of one bucket, an all-zero seed.
    pub const EMPTY: Self = Self {
        abi_version: ABI_VERSION,
        features: 0,
        seed: [0; 4],
        match_salt: 0,
        match_mask_v4: 0,
        match_mask_v6: 0,
        source_mask_v4: 0,
        source_mask_v6: 0,
        flow_mask: 0,
        flow_secret: 0,
        tick_shift: 6,
    };
}

const _: () = assert!(size_of::<Config>() == 112);
const _: () = assert!(UNIT_SLOTS * 2 == 512 && SEGMENT_UNITS == 2048);
const _: () = assert!(
    SEGMENT_UNITS * MAX_SEGMENTS <= 1 << 20,
    "VipMeta has 20 bits for the unit"
);
