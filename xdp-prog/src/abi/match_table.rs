//! The match table: (address, protocol, port) -> what to do, in 64-byte buckets, three choices per key.
//!
//! User space places the entries and proves the table complete; the program looks into at most three buckets and nowhere else. The first
//! depends on the address alone, so one cache line holds what most packets need: a VIP of the address, or the address entry, or
//! the knowledge that there is neither. Only where an entry of the bucket had to go to its second or third bucket does the first one say
//! so ([`VipMeta::OVERFLOW`], in the meta word of way 0), and only then are they read. These depend on the whole key: an address
//! with a thousand ports does not fill one bucket a thousand times.
//!
//! Write order for an entry: meta first, key last. Removal clears the key (the last word of an IPv6 key). A retarget is one
//! store of the meta word.

use core::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MIN_TABLE_SLOTS, TableUnit, VipIndex};
use crate::{hash, machine::opaque};

/// Entries in an IPv4 bucket.
pub const WAYS_V4: usize = 4;
/// Entries in an IPv6 bucket.
pub const WAYS_V6: usize = 2;
/// Buckets that may hold a key.
pub const CHOICES: usize = 3;

/// An IPv4 match key in one word: `address | port << 32 | protocol << 48 | 1 << 56`, address and port as on the wire.
///
/// Port 0 with protocol 0 is the *address entry*: it answers "is this one of our VIP addresses?".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyV4(pub u64);

impl KeyV4 {
    /// Key of `address:port` for an IP protocol number.
    pub const fn new(address: Ipv4Addr, protocol: u8, port: u16) -> Self {
        Self::from_wire(u32::from_ne_bytes(address.octets()), protocol, port.to_be())
    }

    /// The address entry's key.
    pub const fn address(address: Ipv4Addr) -> Self {
        Self::new(address, 0, 0)
    }

    /// Key from header fields exactly as loaded from a packet.
    #[inline(always)]
    pub const fn from_wire(address_be: u32, protocol: u8, port_be: u16) -> Self {
        Self(address_be as u64 | (port_be as u64) << 32 | (protocol as u64) << 48 | 1 << 56)
    }

    /// The first of the key's buckets, which all keys of an address share, in tables of `mask + 1` buckets.
    #[inline(always)]
    pub const fn home(self, salt: u64, mask: u64) -> u32 {
        (hash::mix(self.0 & 0xffff_ffff ^ salt) >> 32 & mask) as u32
    }

    /// All of the key's buckets, some of which may be the same; the first is [`Self::home`].
    pub const fn buckets(self, salt: u64, mask: u64) -> [u32; CHOICES] {
        [
            self.bucket_of(0, salt, mask),
            self.bucket_of(1, salt, mask),
            self.bucket_of(2, salt, mask),
        ]
    }

    /// One of [`Self::buckets`].
    #[inline(always)]
    pub const fn bucket_of(self, choice: u64, salt: u64, mask: u64) -> u32 {
        let word = if choice == 0 { self.0 & 0xffff_ffff } else { self.0 };
        pick(choice, hash::mix(word ^ salt), mask)
    }
}

/// An IPv6 match key: the address in two words as on the wire, and `port | protocol << 16 | 1 << 24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyV6 {
    /// First eight bytes of the address.
    pub high: u64,
    /// Last eight bytes of the address.
    pub low: u64,
    /// Port, protocol, and a bit that says the entry is in use.
    pub tail: u64,
}

impl KeyV6 {
    /// Key of `[address]:port` for an IP protocol number.
    pub const fn new(address: Ipv6Addr, protocol: u8, port: u16) -> Self {
        let [high, low] = halves(address);
        Self::from_wire(high, low, protocol, port.to_be())
    }

    /// The address entry's key.
    pub const fn address(address: Ipv6Addr) -> Self {
        Self::new(address, 0, 0)
    }

    /// Key from header fields exactly as loaded from a packet.
    #[inline(always)]
    pub const fn from_wire(high: u64, low: u64, protocol: u8, port_be: u16) -> Self {
        Self {
            high,
            low,
            tail: port_be as u64 | (protocol as u64) << 16 | 1 << 24,
        }
    }

    /// See [`KeyV4::home`].
    #[inline(always)]
    pub const fn home(self, salt: u64, mask: u64) -> u32 {
        (self.address_hash(salt) >> 32 & mask) as u32
    }

    /// See [`KeyV4::buckets`].
    pub const fn buckets(self, salt: u64, mask: u64) -> [u32; CHOICES] {
        [
            self.bucket_of(0, salt, mask),
            self.bucket_of(1, salt, mask),
            self.bucket_of(2, salt, mask),
        ]
    }

    /// One of [`Self::buckets`].
    #[inline(always)]
    pub const fn bucket_of(self, choice: u64, salt: u64, mask: u64) -> u32 {
        let address = self.address_hash(salt);
        let hash = if choice == 0 {
            address
        } else {
            hash::mix(address ^ self.tail)
        };
        pick(choice, hash, mask)
    }

    #[inline(always)]
    const fn address_hash(self, salt: u64) -> u64 {
        hash::mix(hash::mix(self.high ^ salt) ^ self.low)
    }
}

/// A bucket from a hash of the address (choice 0) or of the whole key.
#[inline(always)]
const fn pick(choice: u64, hash: u64, mask: u64) -> u32 {
    let hash = if choice == 1 {
        hash >> 16
    } else if choice == 2 {
        hash::mix(hash)
    } else {
        hash
    };
    (hash >> 32 & mask) as u32
}

/// The two halves of an IPv6 address as a packet holds them.
pub(crate) const fn halves(address: Ipv6Addr) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// Four IPv4 entries in one cache line; a key of 0 is a free way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct BucketV4 {
    /// [`KeyV4`] of each way.
    pub keys: [u64; WAYS_V4],
    /// [`VipMeta`] of each way.
    pub metas: [u64; WAYS_V4],
}

/// One IPv6 entry; a tail of 0 is a free way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EntryV6 {
    /// [`KeyV6::high`].
    pub high: u64,
    /// [`KeyV6::low`].
    pub low: u64,
    /// [`KeyV6::tail`], written last.
    pub tail: u64,
    /// [`VipMeta`].
    pub meta: u64,
}

/// Two IPv6 entries in one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct BucketV6 {
    /// The ways.
    pub entries: [EntryV6; WAYS_V6],
}

const _: () = assert!(size_of::<BucketV4>() == 64 && size_of::<BucketV6>() == 64);

/// What the match table says of a VIP, in one word: VIP index (bits 0–19), table unit (20–39), log2 of the table's slots minus
/// 8 (40–43), flags (44–63).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipMeta(pub u64);

impl VipMeta {
    /// The VIP has options: limits or source ranges.
    pub const OPTIONS: u64 = 1 << 44;
    /// Address entry of an address that this node also uses itself: what no VIP port claims passes to the kernel.
    pub const OWN_ADDRESS: u64 = 1 << 45;

    /// In the meta word of a bucket's way 0, whether or not that way is in use: an entry whose first bucket this is stands in
    /// another. Set before the first such entry is published, and left set.
    pub const OVERFLOW: u64 = 1 << 46;

    /// Lower the MSS option of SYNs to this VIP to what its backend's way carries.
    pub const CLAMP_MSS: u64 = 1 << 47;

    /// All flows of a client's address go to one backend: see [`crate::hash::client_v4`].
    pub const CLIENT_AFFINITY: u64 = 1 << 48;

    /// The VIP's table is wide: [`super::SlotWord`] and [`super::Activity`] for each slot. Always with [`Self::RECORDS`].
    pub const TRANSIT: u64 = 1 << 49;

    /// Flow records are asked: slots are in transit, or there is a scheduler. The one flag that plain VIPs pay for.
    pub const RECORDS: u64 = 1 << 50;

    /// New flows go where the VIP's [`super::Schedule`] says, and are recorded. Always with [`Self::RECORDS`].
    pub const SCHEDULED: u64 = 1 << 51;

    /// A VIP that spreads over the table at `unit` of `slots` slots (a power of two, 256 to 65,536).
    pub const fn new(vip: VipIndex, unit: TableUnit, slots: usize, flags: u64) -> Self {
        let log2 = slots.trailing_zeros() - MIN_TABLE_SLOTS.trailing_zeros();
        Self(vip.0 as u64 & 0xf_ffff | (unit.0 as u64 & 0xf_ffff) << 20 | (log2 as u64 & 0xf) << 40 | flags)
    }

    /// The VIP's index.
    #[inline(always)]
    pub const fn vip(self) -> VipIndex {
        VipIndex((self.0 & 0xf_ffff) as u32)
    }

    /// Where the VIP's table begins.
    #[inline(always)]
    pub const fn unit(self) -> TableUnit {
        TableUnit((self.0 >> 20 & 0xf_ffff) as u32)
    }

    /// log2 of the number of slots of the VIP's table: 8 to 16 (up to 23 in a word that no one of us wrote).
    #[inline(always)]
    pub const fn slots_log2(self) -> u32 {
        (self.0 >> 40 & 0xf) as u32 + MIN_TABLE_SLOTS.trailing_zeros()
    }

    /// Slots of the VIP's table.
    pub const fn slots(self) -> usize {
        1 << self.slots_log2()
    }

    /// Whether a flag, which is one bit, is set.
    #[inline(always)]
    pub fn has(self, flag: u64) -> bool {
        // As the sign: a mask of these bits would be ten bytes of machine code.
        (opaque(self.0 << flag.leading_zeros()) as i64) < 0
    }
}
