//! A frame from the network, taken apart as far as the slow path needs it. Never trusts a length: what does not fit is
//! [`Outcome::Malformed`], and nothing here can panic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use xdp_prog::wire::{ETH_LEN, IPV4_LEN, IPV6_FRAGMENT_HEADER, IPV6_LEN, PROTO_ICMPV6, VLAN_LEN, is_extension_header};

use super::Outcome;

/// Most VLAN tags in front of IP.
pub const MAX_TAGS: usize = 4;
/// Most IPv6 extension headers that are walked (RFC 8504, 5.3 allows a host to bound them).
pub const MAX_EXTENSION_HEADERS: usize = 8;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_8021Q: u16 = 0x8100;
const TYPE_8021AD: u16 = 0x88a8;

/// IPv4 options by their type byte (RFC 791, 3.1).
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

/// IPv6 extension headers by their number.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
/// Bytes of an IPv6 fragment header.
const FRAGMENT_LEN: usize = 8;

/// The link layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link<'a> {
    /// Everything in front of the network header: MAC addresses, tags, ethertype.
    pub bytes: &'a [u8],
    /// What is behind it.
    pub payload: &'a [u8],
    /// Ethertype of what is behind it, host order.
    pub ethertype: u16,
}

impl<'a> Link<'a> {
    /// Ethertype of ARP.
    pub const ARP: u16 = TYPE_ARP;
    /// Ethertype of IPv4.
    pub const IPV4: u16 = TYPE_IPV4;
    /// Ethertype of IPv6.
    pub const IPV6: u16 = TYPE_IPV6;

    /// Ethernet and up to [`MAX_TAGS`] tags (IEEE 802.1Q, 802.1ad).
    ///
    /// # Errors
    ///
    /// [`Outcome::Malformed`] where the frame is too short or has more tags.
    pub fn parse(frame: &'a [u8]) -> Result<Self, Outcome> {
        for tags in 0..=MAX_TAGS {
            let len = ETH_LEN + tags * VLAN_LEN;
            let ethertype = be16(frame, len - 2)?;
            if ethertype != TYPE_8021Q && ethertype != TYPE_8021AD {
                let (bytes, payload) = frame.split_at_checked(len).ok_or(Outcome::Malformed)?;
                return Ok(Self {
                    bytes,
                    payload,
                    ethertype,
                });
            }
        }
        Err(Outcome::Malformed)
    }

    /// Who sent the frame.
    pub fn source_mac(&self) -> [u8; 6] {
        array(self.bytes, 6).unwrap_or_default()
    }

    /// Who it was sent to.
    pub fn destination_mac(&self) -> [u8; 6] {
        array(self.bytes, 0).unwrap_or_default()
    }

    /// VLAN tags in front of the ethertype.
    pub fn tags(&self) -> usize {
        self.bytes.len().saturating_sub(ETH_LEN) / VLAN_LEN
    }

    /// The link layer of an answer: back to who sent it, from `mac`, with the same tags.
    pub fn answer(&self, mac: [u8; 6]) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        bytes.splice(..12, self.source_mac().into_iter().chain(mac));
        bytes
    }
}

/// Place of a fragment in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Where its part stands in the datagram, in bytes.
    pub offset: usize,
    /// Bytes of its part: all behind the IPv4 header, or behind the IPv6 fragment header.
    pub len: usize,
    /// Whether others follow.
    pub more: bool,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The link layer in front of it.
    pub link: Link<'a>,
    /// The packet, without what pads the frame.
    pub ip: &'a [u8],
    /// Bytes of its headers: options, extension headers, fragment header included.
    pub header_len: usize,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol of the payload; of a later fragment, what the fragment header says.
    pub protocol: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Nobody on the way may fragment it: DF, or IPv6.
    pub dont_fragment: bool,
    /// Its place, if it is a fragment.
    pub fragment: Option<Fragment>,
}

impl<'a> Packet<'a> {
    /// Takes a frame apart.
    ///
    /// # Errors
    ///
    /// [`Outcome::Malformed`], [`Outcome::SourceRoute`] or [`Outcome::HeaderChain`].
    pub fn parse(frame: &'a [u8]) -> Result<Self, Outcome> {
        let link = Link::parse(frame)?;
        match link.ethertype {
            TYPE_IPV4 => Self::ipv4(link),
            TYPE_IPV6 => Self::ipv6(link),
            _ => Err(Outcome::Malformed),
        }
    }

    /// What is behind the headers.
    pub fn payload(&self) -> &'a [u8] {
        self.ip.get(self.header_len..).unwrap_or_default()
    }

    /// Whether the payload begins with the transport header: it is whole, or the first fragment.
    pub fn has_transport(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0)
    }

    /// Whether the IPv4 header is as it was sent, by its checksum (RFC 1122, 3.2.1.2); IPv6 has none. Backends look for themselves:
    /// this is for what is answered, or made anew.
    pub fn is_header_whole(&self) -> bool {
        let header = self.ip.get(..self.header_len).unwrap_or_default();
        self.destination.is_ipv6() || Sum16BitWords::new().add_slice(header).ones_complement() == 0
    }

    /// Source and destination port, host order, of a packet that begins with a transport header.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let payload = self.payload();
        Some((be16(payload, 0).ok()?, be16(payload, 2).ok()?))
    }

    fn ipv4(link: Link<'a>) -> Result<Self, Outcome> {
        let bytes = link.payload;
        let version = byte(bytes, 0)?;
        let header_len = usize::from(version & 0xf) * 4;
        let total_len = usize::from(be16(bytes, 2)?);
        if version >> 4 != 4 || header_len < IPV4_LEN || total_len < header_len {
            return Err(Outcome::Malformed);
        }
        let ip = bytes.get(..total_len).ok_or(Outcome::Malformed)?;
        check_options(ip.get(IPV4_LEN..header_len).ok_or(Outcome::Malformed)?)?;
        let place = be16(ip, 6)?;
        let offset = usize::from(place & 0x1fff) * 8;
        let more = place & 0x2000 != 0;
        let fragment = (more || offset > 0).then_some(Fragment {
            id: be16(ip, 4)?.into(),
            offset,
            len: total_len - header_len,
            more,
        });
        let packet = Self {
            link,
            ip,
            header_len,
            source: Ipv4Addr::from(array::<4>(ip, 12)?).into(),
            destination: Ipv4Addr::from(array::<4>(ip, 16)?).into(),
            protocol: byte(ip, 9)?,
            tos: byte(ip, 1)?,
            hop_limit: byte(ip, 8)?,
            dont_fragment: place & 0x4000 != 0,
            fragment,
        };
        packet.checked()
    }

    fn ipv6(link: Link<'a>) -> Result<Self, Outcome> {
        let bytes = link.payload;
        let first = be16(bytes, 0)?;
        let ip = bytes
            .get(..IPV6_LEN + usize::from(be16(bytes, 4)?))
            .ok_or(Outcome::Malformed)?;
        if first >> 12 != 6 {
            return Err(Outcome::Malformed);
        }
        let chain = walk(ip)?;
        let packet = Self {
            link,
            ip,
            header_len: chain.len,
            source: Ipv6Addr::from(array::<16>(ip, 8)?).into(),
            destination: Ipv6Addr::from(array::<16>(ip, 24)?).into(),
            protocol: chain.protocol,
            tos: (first >> 4) as u8,
            hop_limit: byte(ip, 7)?,
            dont_fragment: true,
            fragment: chain.fragment,
        };
        packet.checked()
    }

    /// A fragment ends inside a datagram, and all but the last are multiples of 8 bytes (RFC 791, 3.2; RFC 8200, 4.5).
    fn checked(self) -> Result<Self, Outcome> {
        let Some(fragment) = self.fragment else {
            return Ok(self);
        };
        let uneven = fragment.more && !fragment.len.is_multiple_of(8);
        // What every fragment repeats counts for the length of the whole: in IPv6, without the header and the fragment header.
        let repeated = match self.destination {
            IpAddr::V4(_) => self.ip.len() - fragment.len,
            IpAddr::V6(_) => self.ip.len() - fragment.len - IPV6_LEN - FRAGMENT_LEN,
        };
        if fragment.len == 0 || uneven || repeated + fragment.offset + fragment.len > usize::from(u16::MAX) {
            return Err(Outcome::Malformed);
        }
        Ok(self)
    }
}

/// Goes over IPv4 options (RFC 791, 3.1).
fn check_options(mut options: &[u8]) -> Result<(), Outcome> {
    while let Some((kind, rest)) = options.split_first() {
        match *kind {
            OPTION_END => break,
            OPTION_NOP => options = rest,
            OPTION_LOOSE_SOURCE_ROUTE | OPTION_STRICT_SOURCE_ROUTE => return Err(Outcome::SourceRoute),
            _ => {
                let len = usize::from(byte(rest, 0)?);
                if len < 2 {
                    return Err(Outcome::Malformed);
                }
                options = options.get(len..).ok_or(Outcome::Malformed)?;
            }
        }
    }
    Ok(())
}

/// What stands behind an IPv6 header.
pub(super) struct Chain {
    /// Bytes of all headers.
    pub(super) len: usize,
    /// What is behind them.
    pub(super) protocol: u8,
    /// What the fragment header says.
    pub(super) fragment: Option<Fragment>,
}

/// Goes over the extension headers of an IPv6 packet, or of as much as there is of one (RFC 8200, 4).
pub(super) fn walk(ip: &[u8]) -> Result<Chain, Outcome> {
    let mut chain = Chain {
        len: IPV6_LEN,
        protocol: byte(ip, 6)?,
        fragment: None,
    };
    for _ in 0..=MAX_EXTENSION_HEADERS {
        if !is_extension_header(chain.protocol) && chain.protocol != IPV6_FRAGMENT_HEADER {
            return Ok(chain);
        }
        // A first fragment holds all headers (RFC 7112).
        let in_fragment = chain.fragment.is_some();
        pass(ip, &mut chain).map_err(|outcome| match outcome {
            Outcome::Malformed if in_fragment => Outcome::FragmentTiny,
            outcome => outcome,
        })?;
        if chain.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Ok(chain);
        }
    }
    Err(Outcome::HeaderChain)
}

/// Goes over one extension header.
fn pass(ip: &[u8], chain: &mut Chain) -> Result<(), Outcome> {
    let at = chain.len;
    let units = |unit: usize, more: usize| byte(ip, at + 1).map(|len| (usize::from(len) + more) * unit);
    let len = match chain.protocol {
        // Nowhere but behind the IPv6 header (RFC 8200, 4.1).
        HOP_BY_HOP if at > IPV6_LEN => return Err(Outcome::HeaderChain),
        HOP_BY_HOP | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => units(8, 1)?,
        ROUTING => {
            if byte(ip, at + 3)? != 0 {
                return Err(Outcome::SourceRoute);
            }
            units(8, 1)?
        }
        AUTHENTICATION => units(4, 2)?,
        IPV6_FRAGMENT_HEADER => {
            // A fragment of a fragment is nothing that a host sends.
            if chain.fragment.is_some() {
                return Err(Outcome::HeaderChain);
            }
            let place = be16(ip, at + 2)?;
            let fragment = Fragment {
                id: u32::from_be_bytes(array(ip, at + 4)?),
                offset: usize::from(place & 0xfff8),
                len: ip.len().saturating_sub(at + FRAGMENT_LEN),
                more: place & 1 != 0,
            };
            // An atomic fragment is a whole packet (RFC 6946); it keeps its header all the same.
            if fragment.more || fragment.offset > 0 {
                chain.fragment = Some(fragment);
            }
            FRAGMENT_LEN
        }
        // What cannot be looked behind: ESP, no next header.
        _ => return Err(Outcome::HeaderChain),
    };
    chain.protocol = byte(ip, at)?;
    chain.len = at + len;
    if chain.len > ip.len() {
        return Err(Outcome::Malformed);
    }
    Ok(())
}

/// Protocol number of ICMP of a packet's family.
pub(super) fn icmp_of(destination: IpAddr) -> u8 {
    match destination {
        IpAddr::V4(_) => xdp_prog::wire::PROTO_ICMP,
        IpAddr::V6(_) => PROTO_ICMPV6,
    }
}

/// A byte; out of bounds is [`Outcome::Malformed`], here and below.
pub(super) fn byte(bytes: &[u8], at: usize) -> Result<u8, Outcome> {
    bytes.get(at).copied().ok_or(Outcome::Malformed)
}

/// A 16-bit number in network order.
pub(super) fn be16(bytes: &[u8], at: usize) -> Result<u16, Outcome> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// So many bytes.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Outcome> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.copied().ok_or(Outcome::Malformed)
}
