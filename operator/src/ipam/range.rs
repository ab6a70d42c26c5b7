//! Ranges of addresses of one family, and what is done with them without looking at each address.
//!
//! Never iterates over addresses: an IPv6 pool may have 2^128 of them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use thiserror::Error;

use super::Family;

/// Addresses of one family, from `first` to `last`, both in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// What is wrong with an entry of `spec.addresses`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RangeFault {
    /// Neither of the two forms.
    #[error("\"{0}\" is neither a CIDR block nor a range FIRST-LAST")]
    Malformed(String),
    /// One end is IPv4, the other IPv6.
    #[error("\"{0}\" begins in one address family and ends in the other")]
    MixedFamilies(String),
    /// It ends before it begins.
    #[error("\"{0}\" ends before it begins")]
    Reversed(String),
    /// Nothing in it can be a VIP address.
    #[error("\"{entry}\" has only {what} addresses, which cannot be load balanced")]
    Special {
        /// The entry.
        entry: String,
        /// What these addresses are.
        what: &'static str,
    },
}

impl Range {
    /// From `first` to `last`; `None` where they are of different families, or in the wrong order.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// An entry of `spec.addresses`: `203.0.113.0/24` (host bits do not count), `203.0.113.10-203.0.113.20`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(entry: &str) -> Result<Self, RangeFault> {
        let malformed = || RangeFault::Malformed(shown(entry));
        if let Some((first, last)) = entry.split_once('-') {
            let first: IpAddr = first.trim().parse().map_err(|_| malformed())?;
            let last: IpAddr = last.trim().parse().map_err(|_| malformed())?;
            if Family::of(first) != Family::of(last) {
                return Err(RangeFault::MixedFamilies(shown(entry)));
            }
            return Self::new(first, last).ok_or_else(|| RangeFault::Reversed(shown(entry)));
        }
        let block: IpNet = entry.trim().parse().map_err(|_| malformed())?;
        Self::new(block.network(), block.broadcast()).ok_or_else(malformed)
    }

    /// Its first address.
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// Its last address.
    pub const fn last(self) -> IpAddr {
        self.last
    }

    /// Its family.
    pub const fn family(self) -> Family {
        Family::of(self.first)
    }

    /// Whether an address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.first <= address && address <= self.last
    }

    /// Number of addresses; all of IPv6 counts as 2^128-1.
    pub fn size(self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Number of addresses that end in .0 or .255; IPv6 has none.
    pub fn edges(self) -> u128 {
        let up_to = |last: u128| (last / 256 + 1) + (last + 1) / 256;
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let before = u128::from(first.to_bits()).checked_sub(1).map_or(0, up_to);
                up_to(u128::from(last.to_bits())) - before
            }
            _ => 0,
        }
    }

    /// What both have.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// What `other` leaves of it: at most two ranges.
    pub fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let [left, right] = match self.intersection(other) {
            None => [Some(self), None],
            Some(common) => [
                before(common.first).and_then(|last| Self::new(self.first, last)),
                after(common.last).and_then(|first| Self::new(first, self.last)),
            ],
        };
        left.into_iter().chain(right)
    }

    /// What is left of it once [`special`] addresses are out, and the kinds of those.
    pub fn without_special(self) -> (Vec<Self>, Vec<&'static str>) {
        let mut left = vec![self];
        let mut kinds = Vec::new();
        for (what, block) in special_ranges() {
            if self.intersection(block).is_some() {
                kinds.push(what);
                left = left.into_iter().flat_map(|range| range.without(block)).collect();
            }
        }
        (left, kinds)
    }

    /// The fewest CIDR blocks that are this range.
    fn blocks(self) -> Vec<IpNet> {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
            (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.blocks().as_slice() {
            [block] => write!(f, "{block}"),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// The same addresses in the fewest ranges, in order.
pub(super) fn merge(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            // `after` never goes from IPv4 to IPv6, and all of IPv4 sorts before.
            Some(open) if range.first <= open.last || after(open.last) == Some(range.first) => {
                open.last = open.last.max(range.last);
            }
            Some(_) | None => merged.push(range),
        }
    }
    merged
}

/// The fewest CIDR blocks that have these addresses and no others, in order.
pub(super) fn blocks(ranges: Vec<Range>) -> Vec<IpNet> {
    merge(ranges).into_iter().flat_map(Range::blocks).collect()
}

/// What an address is that can be no VIP address: what routers or hosts treat in a way of their own.
pub fn special(address: IpAddr) -> Option<&'static str> {
    special_ranges()
        .find(|(_, range)| range.contains(address))
        .map(|(what, _)| what)
}

fn special_ranges() -> impl Iterator<Item = (&'static str, Range)> {
    let v4 = |first: [u8; 4], last: [u8; 4]| Range {
        first: first.into(),
        last: last.into(),
    };
    let v6 = |first: u128, last: u128| Range {
        first: Ipv6Addr::from_bits(first).into(),
        last: Ipv6Addr::from_bits(last).into(),
    };
    [
        ("unspecified", v4([0, 0, 0, 0], [0, 255, 255, 255])),
        ("loopback", v4([127, 0, 0, 0], [127, 255, 255, 255])),
        ("link-local", v4([169, 254, 0, 0], [169, 254, 255, 255])),
        ("multicast", v4([224, 0, 0, 0], [239, 255, 255, 255])),
        ("broadcast", v4([255; 4], [255; 4])),
        ("unspecified", v6(0, 0)),
        ("loopback", v6(1, 1)),
        ("IPv4-mapped", v6(0xffff << 32, (0xffff << 32) | 0xffff_ffff)),
        ("link-local", v6(0xfe80 << 112, (0xfebf << 112) | (u128::MAX >> 16))),
        ("multicast", v6(0xff << 120, u128::MAX)),
    ]
    .into_iter()
}

/// Whether broken middleboxes take it for a network's or a broadcast address.
pub(super) fn is_edge(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => matches!(address.octets()[3], 0 | 255),
        IpAddr::V6(_) => false,
    }
}

/// The next address of the family.
pub(super) fn after(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into(),
    })
}

/// The previous address of the family.
pub(super) fn before(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().checked_sub(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().checked_sub(1)?).into(),
    })
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// What is shown of an entry that may be anything.
fn shown(entry: &str) -> String {
    entry.chars().take(90).collect()
}
