//! What the planner asks for: stores, in an order of which every prefix is a safe state.

use std::fmt;

use xdp_prog::abi::{BackendIndex, BackendLine, BucketV4, BucketV6, Range, SEGMENT_WORDS, VipIndex, VipOptions, map};

/// A map that the planner writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MapId {
    /// Match table of IPv4 VIPs; 8 words an element.
    VipsV4,
    /// Match table of IPv6 VIPs; 8 words an element.
    VipsV6,
    /// Slot memory; an element is a segment, of [`xdp_prog::abi::SEGMENT_WORDS`] words.
    LookupTables,
    /// Backend lines; 8 words an element.
    Backends,
    /// Options of VIPs; 8 words an element.
    VipOptions,
    /// Ranges; 4 words an element.
    Ranges,
    /// Settings; 1 word an element.
    Settings,
}

impl MapId {
    /// All of them, with the words of an element.
    pub const ALL: [(Self, usize); 7] = [
        (Self::VipsV4, size_of::<BucketV4>() / 8),
        (Self::VipsV6, size_of::<BucketV6>() / 8),
        (Self::LookupTables, SEGMENT_WORDS),
        (Self::Backends, size_of::<BackendLine>() / 8),
        (Self::VipOptions, size_of::<VipOptions>() / 8),
        (Self::Ranges, size_of::<Range>() / 8),
        (Self::Settings, 1),
    ];

    /// The map's name in the object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::VipsV4 => map::VIPS_V4,
            Self::VipsV6 => map::VIPS_V6,
            Self::LookupTables => map::LOOKUP_TABLES,
            Self::Backends => map::BACKENDS,
            Self::VipOptions => map::VIP_OPTIONS,
            Self::Ranges => map::RANGES,
            Self::Settings => map::SETTINGS,
        }
    }
}

impl fmt::Display for MapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Make and publish the segment of slot memory at this position, all zeroes. Positions come in order, from 0 on.
    AddSegment(u32),
    /// One aligned 8-byte store.
    Store {
        /// Which map.
        map: MapId,
        /// Which element; for slot memory the segment.
        index: u32,
        /// Which 8-byte word of the element.
        word: u32,
        /// What to store.
        value: u64,
    },
    /// Consecutive 8-byte stores from there on, into memory that no packet reads yet. May run on into the elements that follow;
    /// never past the end of a segment.
    Fill {
        /// Which map.
        map: MapId,
        /// Element of the first word; for slot memory the segment.
        index: u32,
        /// First word in that element.
        word: u32,
        /// What to store.
        values: Box<[u64]>,
    },
    /// Wait until every packet that may have seen what stood before has left the program.
    Grace,
    /// Zero a VIP's counter on all CPUs, before it is used.
    ZeroVipCounter(VipIndex),
    /// Zero a backend's counter on all CPUs, before it is used.
    ZeroBackendCounter(BackendIndex),
    /// Zero a VIP's token buckets on all CPUs, before they are used: all-zero counts as full.
    ZeroLimits(VipIndex),
    /// Forget where UDP flows are recorded to live at these backends.
    ForgetDatagrams(Box<[BackendIndex]>),
}
