//! Sets of address ranges, searched in a bounded number of steps.

use core::net::IpAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MAX_SET_LOG2;

/// One inclusive range of addresses, as numbers. IPv4 addresses stand as IPv4-mapped IPv6 (`::ffff:a.b.c.d`), so one set and
/// one search serve both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// First address, upper half.
    pub first_high: u64,
    /// First address, lower half.
    pub first_low: u64,
    /// Last address, upper half.
    pub last_high: u64,
    /// Last address, lower half.
    pub last_low: u64,
}

const _: () = assert!(size_of::<Range>() == 32);

impl Range {
    /// The one entry of an empty set: contains nothing.
    pub const PADDING: Self = Self {
        first_high: u64::MAX,
        first_low: u64::MAX,
        last_high: 0,
        last_low: 0,
    };

    /// The range of `first` to `last`, both included; numbers as [`number`] gives them.
    pub const fn new(first: u128, last: u128) -> Self {
        Self {
            first_high: (first >> 64) as u64,
            first_low: first as u64,
            last_high: (last >> 64) as u64,
            last_low: last as u64,
        }
    }
}

/// An address as the number that ranges compare.
pub const fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Where a set stands in `RANGES`, in one word: offset (bits 0–31), log2 of its padded length (32–39), a bit that says it is
/// there (63). 0 is *no set*, which is not the same as an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetRef(pub u64);

impl SetRef {
    /// No set.
    pub const ABSENT: Self = Self(0);
    const PRESENT: u64 = 1 << 63;

    /// A set of `1 << log2` sorted ranges from `offset` on, disjoint but for the last, which fills the tail; an empty set is one
    /// [`Range::PADDING`].
    pub const fn new(offset: u32, log2: u32) -> Self {
        Self(offset as u64 | (log2 as u64 & 0xff) << 32 | Self::PRESENT)
    }

    /// Whether there is a set.
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// First range of the set.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// Padded length of the set; never above the bound of the search.
    #[inline(always)]
    pub const fn padded_len(self) -> u32 {
        let log2 = (self.0 >> 32 & 0xff) as u32;
        1 << if log2 > MAX_SET_LOG2 { MAX_SET_LOG2 } else { log2 }
    }
}
