//! Addresses and ways to backends that tests talk about. What a way looks like on the wire is said here twice: as a backend line
//! for the maps, and as the frame that etherparse would build.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xdp_prog::abi::{BackendLine, LineMeta, OuterHeader};

use super::frames::{Packet, Tag, framed, tunnelled};

pub(crate) const CLIENT_V4: &str = "198.51.100.7:40000";
pub(crate) const CLIENT_V6: &str = "[2001:db8:c::7]:40000";
pub(crate) const VIP_V4: &str = "192.0.2.80";
pub(crate) const VIP_V6: &str = "2001:db8:1::80";
pub(crate) const LB_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const LB_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// Index of the loopback device, where test frames come from.
pub(crate) const LOOPBACK: u32 = 1;

/// `address:port`, with brackets where they belong.
pub(crate) fn at(address: &str, port: u16) -> String {
    match address.parse().expect("an address") {
        IpAddr::V4(v4) => format!("{v4}:{port}"),
        IpAddr::V6(v6) => format!("[{v6}]:{port}"),
    }
}

/// How packets reach a backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) next_hop: [u8; 6],
    pub(crate) egress: [u8; 6],
    pub(crate) ifindex: u32,
    pub(crate) port: u8,
    pub(crate) mtu: u16,
}

impl Way {
    /// To node `number` through IPv4, out of the interface that frames come from.
    pub(crate) fn v4(number: u8) -> Self {
        Self {
            source: LB_V4.into(),
            destination: Ipv4Addr::new(10, 0, 0, 10 + number).into(),
            next_hop: [2, 0, 0, 0, 4, number],
            egress: [2, 0, 0, 0, 0, 1],
            ifindex: LOOPBACK,
            port: 0,
            mtu: 1500,
        }
    }

    /// To node `number` through IPv6.
    pub(crate) fn v6(number: u8) -> Self {
        Self {
            source: LB_V6.into(),
            destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, u16::from(number)).into(),
            next_hop: [2, 0, 0, 0, 6, number],
            ..Self::v4(number)
        }
    }

    pub(crate) fn mtu(self, mtu: u16) -> Self {
        Self { mtu, ..self }
    }

    /// Bytes that the outer header adds.
    pub(crate) fn overhead(&self) -> usize {
        if self.destination.is_ipv4() { 20 } else { 40 }
    }

    /// The line with these flags beside those that the way itself has; the next hop is known.
    pub(crate) fn line(&self) -> BackendLine {
        self.line_with(LineMeta::RESOLVED, 0, [0, 0])
    }

    /// As [`Way::line`], of a backend at which flows may live.
    pub(crate) fn alive_line(&self) -> BackendLine {
        self.line_with(LineMeta::RESOLVED | LineMeta::ALIVE, 0, [0, 0])
    }

    /// A line that sends with tags of its own.
    pub(crate) fn tagged_line(&self, tags: &[Tag]) -> BackendLine {
        let mut flags = LineMeta::RESOLVED | LineMeta::OWN_TAGS;
        if tags.first().is_some_and(|tag| tag.0 == 0x88a8) {
            flags |= LineMeta::OUTER_TAG_8021AD;
        }
        let tci = |position: usize| tags.get(position).map_or(0, |tag| tag.1);
        self.line_with(flags, tags.len() as u8, [tci(0), tci(1)])
    }

    /// The line with all its parts said.
    pub(crate) fn line_with(&self, mut flags: u64, tags: u8, tcis: [u16; 2]) -> BackendLine {
        let outer = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => OuterHeader::v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                flags |= LineMeta::OUTER_V6;
                OuterHeader::v6(source, destination)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
        };
        BackendLine {
            meta: LineMeta::new(flags, tags, self.port, self.mtu, self.ifindex).0,
            destination_mac: BackendLine::mac_word(self.next_hop, tcis[0]),
            source_mac: BackendLine::mac_word(self.egress, tcis[1]),
            outer: outer.0,
        }
    }

    /// The frame that should leave for a packet, with the tags it came with.
    pub(crate) fn carries(&self, packet: &Packet) -> Vec<u8> {
        self.carries_with(packet, &packet.tags)
    }

    /// The frame that should leave for a packet, with these tags.
    pub(crate) fn carries_with(&self, packet: &Packet, tags: &[Tag]) -> Vec<u8> {
        self.frame(tags, packet.tos, &packet.ip())
    }

    /// The frame that should leave for an IP packet.
    pub(crate) fn frame(&self, tags: &[Tag], tos: u8, ip: &[u8]) -> Vec<u8> {
        framed(
            self.next_hop,
            self.egress,
            tags,
            &tunnelled(self.source, self.destination, tos, ip),
        )
    }
}
