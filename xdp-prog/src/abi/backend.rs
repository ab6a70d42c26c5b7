//! The backend line: one cache line with everything needed to send a packet to a backend.

use core::net::{Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::match_table::halves;
use crate::{checksum, wire};

/// How to reach a backend. Words 0–2 may each change alone; words 3–7 (the outer header) change only after word 0 says
/// *unresolved* and a grace period has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct BackendLine {
    /// [`LineMeta`].
    pub meta: u64,
    /// Next hop's MAC address (bytes 0–5) and the outer VLAN tag's TCI as on the wire (bytes 6–7).
    pub destination_mac: u64,
    /// Egress interface's MAC address (bytes 0–5) and the inner VLAN tag's TCI as on the wire (bytes 6–7).
    pub source_mac: u64,
    /// Outer header template, see [`OuterHeader`].
    pub outer: [u64; 5],
}

const _: () = assert!(size_of::<BackendLine>() == 64);

/// First word of a line: flags (bits 0–7), port in `PORTS` (8–15), MTU of the way to the backend in bytes (16–31), egress
/// interface index (32–63).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineMeta(pub u64);

impl LineMeta {
    /// The next hop's MAC address is known.
    pub const RESOLVED: u64 = 1 << 0;
    /// The outer header is IPv6, else IPv4.
    pub const OUTER_V6: u64 = 1 << 1;
    /// The backend is this node: pass up without encapsulation.
    pub const LOCAL: u64 = 1 << 2;
    /// Send with the line's VLAN tags; without it, with the tags the packet came with.
    pub const OWN_TAGS: u64 = 1 << 3;
    /// Flows may live there: known and not dead. Whether packets reach it now is another matter.
    pub const ALIVE: u64 = 1 << 7;
    /// The outer of two VLAN tags is 802.1ad (0x88a8), else 802.1Q (0x8100).
    pub const OUTER_TAG_8021AD: u64 = 1 << 6;

    /// Builds the word. `tags` is the number of VLAN tags to send with under [`Self::OWN_TAGS`], 0 to 2.
    pub const fn new(flags: u64, tags: u8, port: u8, mtu: u16, ifindex: u32) -> Self {
        Self(flags & 0xcf | (tags as u64 & 3) << 4 | (port as u64) << 8 | (mtu as u64) << 16 | (ifindex as u64) << 32)
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// VLAN tags to send with under [`Self::OWN_TAGS`].
    #[inline(always)]
    pub const fn tags(self) -> usize {
        (self.0 >> 4 & 3) as usize
    }

    /// Position in `PORTS`.
    #[inline(always)]
    pub const fn port(self) -> u32 {
        (self.0 >> 8 & 0xff) as u32
    }

    /// Largest IP packet, outer header included, that reaches the backend, in bytes.
    #[inline(always)]
    pub const fn mtu(self) -> u32 {
        (self.0 >> 16 & 0xffff) as u32
    }

    /// Egress interface index.
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The five words of an outer header.
///
/// IPv4: the 20 header bytes with total length, protocol and checksum 0, then four bytes with the unfolded one's-complement
/// sum of the header so far. IPv6: the 40 header bytes with payload length and next header 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterHeader(pub [u64; 5]);

impl OuterHeader {
    /// Outer IPv4 header; TTL 64, DF set, identification 0 (reserved for a transit mark).
    pub const fn v4(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        let s = source.octets();
        let d = destination.octets();
        let first = u64::from_ne_bytes([0x45, 0, 0, 0, 0, 0, 0x40, 0]);
        let second = u64::from_ne_bytes([wire::OUTER_HOP_LIMIT, 0, 0, 0, s[0], s[1], s[2], s[3]]);
        let third = u32::from_ne_bytes(d);
        let sum = checksum::sum64(first) + checksum::sum64(second) + checksum::sum64(third as u64);
        Self([first, second, third as u64 | sum << 32, 0, 0])
    }

    /// Outer IPv6 header; hop limit 64, flow label 0 (reserved for a transit mark).
    pub const fn v6(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        let [s0, s1] = halves(source);
        let [d0, d1] = halves(destination);
        let first = u64::from_ne_bytes([0x60, 0, 0, 0, 0, 0, 0, wire::OUTER_HOP_LIMIT]);
        Self([first, s0, s1, d0, d1])
    }
}

impl BackendLine {
    /// A line whose next hop is not known yet.
    pub const fn unresolved(outer: OuterHeader) -> Self {
        Self {
            meta: 0,
            destination_mac: 0,
            source_mac: 0,
            outer: outer.0,
        }
    }

    /// The word of a MAC address with a VLAN TCI (host order) beside it.
    pub const fn mac_word(mac: [u8; 6], tci: u16) -> u64 {
        let [a, b, c, d, e, f] = mac;
        let [g, h] = tci.to_be_bytes();
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}
