//! rtnetlink messages as bytes: the requests we make and the few attributes we read. Never fails on what it does not know, so
//! that a newer kernel's messages are still read; never trusts a length.
//!
//! Layouts: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h. All integers are in the
//! machine's byte order unless a name ends in `_be`.

use std::net::IpAddr;

use nix::libc;

/// `RTPROT_*` of neighbour entries that we keep: by it they are known again after a restart. Not in use by others in
/// linux/rtnetlink.h or iproute2's rt_protos.
pub(super) const OUR_PROTOCOL: u8 = b'v';

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `NTF_EXT_MANAGED`, Linux 5.16.
pub(super) const NTF_EXT_MANAGED: u32 = 1;
/// `IFLA_EXT_MASK` and `RTEXT_FILTER_SKIP_STATS`: a dump of links without 300 B of counters each.
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// `RTM_*` or `NLMSG_*`.
    pub(super) kind: u16,
    /// `NLM_F_*`.
    pub(super) flags: u16,
    /// Sequence number of the request that it answers; 0 in notifications.
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

/// The messages of a datagram; ends at the first that does not fit.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            payload: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

/// Type (without its flag bits) and value of each attribute; ends at the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute = (u16_at(bytes, 2)? & TYPE_MASK, bytes.get(4..length)?);
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(attribute)
    })
}

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// An address attribute of 4 or 16 bytes.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Requests of one datagram.
#[derive(Debug, Default)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// The datagram.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A dump of all interfaces.
    pub(super) fn dump_links(sequence: u32) -> Self {
        let mut this = Self::default();
        this.message(libc::RTM_GETLINK, REQUEST | DUMP, sequence, |body| {
            body.extend_from_slice(&[0; 16]);
            attribute(body, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        });
        this
    }

    /// A dump of all addresses of both families.
    pub(super) fn dump_addresses(sequence: u32) -> Self {
        let mut this = Self::default();
        this.message(libc::RTM_GETADDR, REQUEST | DUMP, sequence, |body| {
            body.extend_from_slice(&[0; 8])
        });
        this
    }

    /// A dump of all neighbour entries of all families.
    pub(super) fn dump_neighbours(sequence: u32) -> Self {
        let mut this = Self::default();
        this.message(libc::RTM_GETNEIGH, REQUEST | DUMP, sequence, |body| {
            body.extend_from_slice(&[0; 12])
        });
        this
    }

    /// Adds a FIB lookup; about 36 B, 60 B for IPv6.
    pub(super) fn add_route_lookup(&mut self, sequence: u32, destination: IpAddr, source: Option<IpAddr>) {
        self.message(libc::RTM_GETROUTE, REQUEST, sequence, |body| {
            let source_bits = source.map_or(0, bits);
            body.extend_from_slice(&[family(destination), bits(destination), source_bits, 0, 0, 0, 0, 0]);
            body.extend_from_slice(&0_u32.to_ne_bytes());
            address_attribute(body, libc::RTA_DST, destination);
            if let Some(source) = source {
                address_attribute(body, libc::RTA_SRC, source);
            }
        });
    }

    /// Adds: make this entry managed, creating it if it is not there. With `create`, leave one that is there alone.
    ///
    /// `NTF_USE` is what kernels before 5.16 understand of it: they resolve the entry or re-probe it, once.
    /// `NTF_EXT_LEARNED` exempts it from garbage collection when the table is full.
    pub(super) fn add_keep(&mut self, sequence: u32, ifindex: u32, neighbour: IpAddr, create: bool) {
        let how = CREATE | if create { EXCLUSIVE } else { REPLACE };
        self.message(libc::RTM_NEWNEIGH, REQUEST | ACK | how, sequence, |body| {
            neighbour_header(
                body,
                ifindex,
                neighbour,
                libc::NUD_NONE,
                libc::NTF_USE | libc::NTF_EXT_LEARNED,
            );
            attribute(body, NDA_PROTOCOL, &[OUR_PROTOCOL]);
            attribute(body, NDA_FLAGS_EXT, &NTF_EXT_MANAGED.to_ne_bytes());
        });
    }

    /// Adds: take the flags of [`Self::add_keep`] from this entry and let it age. Fails where it is not resolved.
    pub(super) fn add_release(&mut self, sequence: u32, ifindex: u32, neighbour: IpAddr) {
        self.message(libc::RTM_NEWNEIGH, REQUEST | ACK | REPLACE, sequence, |body| {
            neighbour_header(body, ifindex, neighbour, libc::NUD_STALE, 0);
        });
    }

    /// Adds: delete this entry.
    pub(super) fn add_delete(&mut self, sequence: u32, ifindex: u32, neighbour: IpAddr) {
        self.message(libc::RTM_DELNEIGH, REQUEST | ACK, sequence, |body| {
            neighbour_header(body, ifindex, neighbour, libc::NUD_NONE, 0);
        });
    }

    fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        body(&mut self.bytes);
        let length = self.bytes.len() - start;
        // A message of ours has a few dozen bytes.
        self.bytes[start..start + 4].copy_from_slice(&(length as u32).to_ne_bytes());
        self.bytes.resize(start + aligned(length), 0);
    }
}

/// `NDA_DST`, `NDA_LLADDR`, `NDA_PROTOCOL`, `NDA_FLAGS_EXT` of linux/neighbour.h.
pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
pub(super) const NDA_PROTOCOL: u16 = 12;
pub(super) const NDA_FLAGS_EXT: u16 = 15;

fn neighbour_header(body: &mut Vec<u8>, ifindex: u32, neighbour: IpAddr, state: u16, flags: u8) {
    body.extend_from_slice(&[family(neighbour), 0, 0, 0]);
    body.extend_from_slice(&ifindex.to_ne_bytes());
    body.extend_from_slice(&state.to_ne_bytes());
    body.extend_from_slice(&[flags, 0]);
    address_attribute(body, NDA_DST, neighbour);
}

fn address_attribute(body: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => attribute(body, kind, &v4.octets()),
        IpAddr::V6(v6) => attribute(body, kind, &v6.octets()),
    }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values of ours have at most 16 bytes.
    body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(aligned(body.len()), 0);
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}
