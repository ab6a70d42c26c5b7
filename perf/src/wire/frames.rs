//! The frames of a benchmark, made from a number. Never stores a flow: flow, size and kind of the n-th packet are computed from `n`
//! and a seed, so ten million flows cost what one costs.
//!
//! Sizes are those of RFC 2544: with the frame check sequence, which no program sees. A frame of 64 is 60 bytes here.

use std::{net::SocketAddr, str::FromStr};

use anyhow::{Result, ensure};

use super::stamp::{STAMP_LEN, Stamp};

/// Frame check sequence.
pub(crate) const FCS: usize = 4;
/// Preamble, start of frame and the gap after a frame (IEEE 802.3): what a frame takes on the wire beside itself.
pub(crate) const PREAMBLE_AND_GAP: usize = 20;
/// Simple IMIX: 7 frames of 64, 4 of 594, 1 of 1518, spread.
const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];
/// Clients: 198.18.0.0/15 (RFC 2544, appendix C.2.2) and 2001:2::/48 (RFC 5180, section 8).
const CLIENTS_V4: u32 = 0xc612_0000;
const CLIENT_ADDRESSES: u64 = 1 << 17;
const FIRST_PORT: u64 = 1024;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
const TCP: usize = 20;
/// Flags, connection ID of 8 bytes, packet number (RFC 9000, section 17.3.1): a short header.
const QUIC: usize = 10;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// UDP datagrams
    Udp,
    /// UDP datagrams that begin like QUIC's short header, with the flow's connection ID
    Quic,
    /// TCP segments of open connections (ACK)
    Tcp,
    /// TCP SYNs, each of another flow
    Syn,
}

/// How long frames are, with the frame check sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Fixed(usize),
    Imix,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Self::Imix);
        }
        match text.parse() {
            Ok(size) if (64..=9018).contains(&size) => Ok(Self::Fixed(size)),
            Ok(_) | Err(_) => Err(format!("{text} is not `imix`, and not in 64..=9018")),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

impl Size {
    fn of(self, index: u64) -> usize {
        match self {
            Self::Fixed(size) => size,
            Self::Imix => IMIX[(index % IMIX.len() as u64) as usize],
        }
    }

    pub(crate) fn largest(self) -> usize {
        match self {
            Self::Fixed(size) => size,
            Self::Imix => 1518,
        }
    }

    fn smallest(self) -> usize {
        match self {
            Self::Fixed(size) => size,
            Self::Imix => 64,
        }
    }

    /// Mean length.
    pub(crate) fn mean(self) -> f64 {
        match self {
            Self::Fixed(size) => size as f64,
            Self::Imix => IMIX.iter().sum::<usize>() as f64 / IMIX.len() as f64,
        }
    }
}

/// The packets of a benchmark.
#[derive(Clone, Debug)]
pub(crate) struct Mix {
    pub(crate) source_mac: [u8; 6],
    pub(crate) destination_mac: [u8; 6],
    /// Where packets go, in turn.
    pub(crate) targets: Vec<SocketAddr>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) size: Size,
    pub(crate) flows: u64,
    pub(crate) seed: u64,
}

/// splitmix64: the same for the same number, and spread.
pub(crate) const fn spread(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Mix {
    /// # Errors
    ///
    /// When a frame cannot be so short.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            !self.targets.is_empty() && !self.kinds.is_empty() && self.flows > 0,
            "nothing to send"
        );
        for (target, kind) in self.pairs() {
            let least = headers(target, kind) + FCS;
            ensure!(
                self.size.smallest() >= least,
                "frames of {} are too small for {kind:?} to {target}: at least {least}",
                self.size.smallest()
            );
        }
        Ok(())
    }

    /// Whether every packet has room for a stamp. Where not, packets are only counted.
    pub(crate) fn is_stamped(&self) -> bool {
        self.pairs()
            .all(|(target, kind)| self.size.smallest() >= headers(target, kind) + STAMP_LEN + FCS)
    }

    fn pairs(&self) -> impl Iterator<Item = (SocketAddr, Kind)> + '_ {
        self.targets
            .iter()
            .flat_map(|target| self.kinds.iter().map(|kind| (*target, *kind)))
    }

    /// The flow of a sender's n-th packet. Senders have flows of their own, as far as there are enough: no flow is sent by two, and so
    /// none is reordered by the generator.
    fn flow(&self, sender: u64, senders: u64, index: u64, kind: Kind) -> u64 {
        let random = spread(spread(self.seed ^ sender) ^ index);
        if kind == Kind::Syn {
            // Every SYN another flow: client addresses and ports together are 2^33.
            return random % (CLIENT_ADDRESSES * u64::from(u16::MAX - FIRST_PORT as u16));
        }
        let own = (self.flows / senders).max(1);
        (random % own * senders + sender) % self.flows
    }

    /// Writes the `index`-th frame of a sender into `buffer`, which becomes as long as it is.
    pub(crate) fn write(&self, senders: u64, stamp: Stamp, buffer: &mut Vec<u8>) {
        let (index, sender) = (stamp.sequence, u64::from(stamp.sender));
        let choice = spread(self.seed ^ index.rotate_left(17) ^ sender);
        let kind = self.kinds[(choice as usize) % self.kinds.len()];
        let flow = self.flow(sender, senders, index, kind);
        // A flow goes always to the same target.
        let target = self.targets[(spread(flow) as usize) % self.targets.len()];
        let len = self.size.of(index) - FCS;
        buffer.clear();
        buffer.resize(len, 0);
        buffer[..6].copy_from_slice(&self.destination_mac);
        buffer[6..12].copy_from_slice(&self.source_mac);
        let port = (FIRST_PORT + flow / CLIENT_ADDRESSES % (u64::from(u16::MAX) - FIRST_PORT)) as u16;
        let client = flow % CLIENT_ADDRESSES;
        let protocol = match kind {
            Kind::Udp | Kind::Quic => 17,
            Kind::Tcp | Kind::Syn => 6,
        };
        let (l4, addresses) = match target {
            SocketAddr::V4(to) => {
                let header = &mut buffer[12..ETHERNET + IPV4];
                header[..2].copy_from_slice(&[0x08, 0]);
                let ip = &mut header[2..];
                ip[0] = 0x45;
                ip[2..4].copy_from_slice(&((len - ETHERNET) as u16).to_be_bytes());
                ip[8..10].copy_from_slice(&[64, protocol]);
                ip[12..16].copy_from_slice(&(CLIENTS_V4 + client as u32).to_be_bytes());
                ip[16..20].copy_from_slice(&to.ip().octets());
                let sum = folded(sum(ip));
                ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
                (ETHERNET + IPV4, ETHERNET + 12..ETHERNET + IPV4)
            }
            SocketAddr::V6(to) => {
                let header = &mut buffer[12..ETHERNET + IPV6];
                header[..2].copy_from_slice(&[0x86, 0xdd]);
                let ip = &mut header[2..];
                ip[0] = 0x60;
                ip[4..6].copy_from_slice(&((len - ETHERNET - IPV6) as u16).to_be_bytes());
                ip[6..8].copy_from_slice(&[protocol, 64]);
                ip[8..12].copy_from_slice(&[0x20, 0x01, 0, 2]);
                ip[20..24].copy_from_slice(&(client as u32).to_be_bytes());
                ip[24..40].copy_from_slice(&to.ip().octets());
                (ETHERNET + IPV6, ETHERNET + 8..ETHERNET + IPV6)
            }
        };
        let l4_len = len - l4;
        let payload = l4 + transport(kind);
        let rest = &mut buffer[l4..];
        rest[..2].copy_from_slice(&port.to_be_bytes());
        rest[2..4].copy_from_slice(&target.port().to_be_bytes());
        let checksum_at = match kind {
            Kind::Udp | Kind::Quic => {
                rest[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
                if kind == Kind::Quic {
                    rest[UDP] = 0x40;
                    rest[UDP + 1..UDP + 9].copy_from_slice(&spread(flow).to_be_bytes());
                }
                l4 + 6
            }
            Kind::Tcp | Kind::Syn => {
                rest[4..8].copy_from_slice(&(index as u32).to_be_bytes());
                rest[12..16].copy_from_slice(&[0x50, if kind == Kind::Syn { 0x02 } else { 0x10 }, 0xff, 0xff]);
                l4 + 16
            }
        };
        let stamped = len >= payload + STAMP_LEN;
        if stamped {
            buffer[payload..payload + STAMP_LEN].copy_from_slice(&stamp.to_bytes());
        }
        // All behind the stamp is zeroes, which change no sum.
        let until = if stamped { payload + STAMP_LEN } else { len };
        let all = sum(&buffer[addresses]) + u64::from(protocol) + l4_len as u64 + sum(&buffer[l4..until]);
        // No checksum is 0 where 0 means none (RFC 768); the other way to write it means the same.
        let checksum = match !folded(all) {
            0 => u16::MAX,
            checksum => checksum,
        };
        buffer[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

const fn transport(kind: Kind) -> usize {
    match kind {
        Kind::Udp => UDP,
        Kind::Quic => UDP + QUIC,
        Kind::Tcp | Kind::Syn => TCP,
    }
}

const fn headers(target: SocketAddr, kind: Kind) -> usize {
    let ip = if target.is_ipv4() { IPV4 } else { IPV6 };
    ETHERNET + ip + transport(kind)
}

fn sum(bytes: &[u8]) -> u64 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let pairs: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    pairs + last.first().map_or(0, |byte| u64::from(*byte) << 8)
}

const fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What is behind the headers of a packet that came: behind an outer header too, which a balancer put in front.
pub(crate) fn payload(frame: &[u8]) -> Option<&[u8]> {
    let mut rest = match frame.get(12..14)? {
        [0x08, 0] | [0x86, 0xdd] => frame.get(ETHERNET..)?,
        _ => return None,
    };
    // An outer and an inner header.
    for _ in 0..2 {
        let (protocol, length) = match rest.first()? >> 4 {
            4 => (*rest.get(9)?, usize::from(rest[0] & 0xf) * 4),
            6 => (*rest.get(6)?, IPV6),
            _ => return None,
        };
        rest = rest.get(length..)?;
        match protocol {
            4 | 41 => (),
            17 => {
                let quic = rest.get(UDP) == Some(&0x40);
                return rest.get(if quic { UDP + QUIC } else { UDP }..);
            }
            6 => return rest.get(usize::from(rest.get(12)? >> 4) * 4..),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests;
