//! One frame of every kind of slow-path work, and the fast path's. Never more than bytes: they are sent as they are.

use std::net::Ipv4Addr;

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4Options, PacketBuilder};

/// Who sends: as many sources as a flood has, so that none reaches what one source is answered.
const SOURCES: u32 = 1 << 16;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Plain datagrams of many flows.
    Fast,
    /// Echo requests of 64 bytes.
    Echo,
    /// SYNs to a port that nobody serves.
    Reject,
    /// Datagrams behind four bytes of IPv4 options.
    Options,
    /// Datagrams in two fragments.
    Fragments,
    /// Datagrams with DF that do not fit once encapsulated.
    TooBig,
}

impl Traffic {
    pub(crate) const SLOW: [Self; 5] = [Self::Echo, Self::Reject, Self::Options, Self::Fragments, Self::TooBig];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fast => "plain datagrams",
            Self::Echo => "echo requests, 64 B",
            Self::Reject => "SYNs to a closed port",
            Self::Options => "IPv4 options",
            Self::Fragments => "fragments, two a datagram",
            Self::TooBig => "too big, DF",
        }
    }

    /// The frames of the `number`th packet.
    pub(crate) fn frames(self, site: &Addresses, number: u32) -> Vec<Vec<u8>> {
        let source = Ipv4Addr::from_bits(u32::from_be_bytes([198, 18, 0, 0]) + number % SOURCES);
        let port = 1024 + (number / SOURCES % 60_000) as u16;
        let ethernet = || PacketBuilder::ethernet2(site.generator, site.balancer);
        let ip = || ethernet().ipv4(source.octets(), site.vip.octets(), 64);
        let written = |size: usize, write: &dyn Fn(&mut Vec<u8>) -> bool| {
            let mut frame = Vec::with_capacity(size + 64);
            // An in-memory writer takes everything.
            let _ = write(&mut frame);
            frame
        };
        match self {
            Self::Fast => vec![written(64, &|frame| {
                ip().udp(port, site.port).write(frame, &[0; 18]).is_ok()
            })],
            Self::Echo => vec![written(64, &|frame| {
                ip().icmpv4_echo_request(port, 1).write(frame, &[0; 36]).is_ok()
            })],
            Self::Reject => vec![written(64, &|frame| {
                ip().tcp(port, site.port + 1, 1, 1024).syn().write(frame, &[]).is_ok()
            })],
            Self::TooBig => vec![written(1500, &|frame| {
                ip().udp(port, site.port).write(frame, &[0; 1472]).is_ok()
            })],
            Self::Options => {
                let mut header = Self::header(source, site, 26);
                header.options = Ipv4Options::from([1, 1, 1, 0]);
                vec![Self::raw(site, &mut header, &Self::datagram(port, site.port, 18))]
            }
            Self::Fragments => {
                let datagram = Self::datagram(port, site.port, 1000);
                let (first, last) = datagram.split_at(512);
                let mut header = Self::header(source, site, 0);
                header.identification = number as u16;
                header.more_fragments = true;
                let first = Self::raw(site, &mut header, first);
                header.more_fragments = false;
                if let Ok(offset) = 64_u16.try_into() {
                    header.fragment_offset = offset;
                }
                vec![first, Self::raw(site, &mut header, last)]
            }
        }
    }

    fn header(source: Ipv4Addr, site: &Addresses, payload: u16) -> Ipv4Header {
        // The addresses fit, and the payload is set again.
        Ipv4Header::new(payload, 64, IpNumber::UDP, source.octets(), site.vip.octets()).unwrap_or_default()
    }

    fn datagram(source: u16, destination: u16, payload: usize) -> Vec<u8> {
        let len = (payload + 8) as u16;
        let ports = [
            source.to_be_bytes(),
            destination.to_be_bytes(),
            len.to_be_bytes(),
            [0, 0],
        ]
        .concat();
        [ports, vec![0; payload]].concat()
    }

    fn raw(site: &Addresses, header: &mut Ipv4Header, payload: &[u8]) -> Vec<u8> {
        header.dont_fragment = false;
        header.total_len = (header.header_len() + payload.len()) as u16;
        header.header_checksum = header.calc_header_checksum();
        let ethernet = Ethernet2Header {
            source: site.generator,
            destination: site.balancer,
            ether_type: EtherType::IPV4,
        };
        [&ethernet.to_bytes()[..], &header.to_bytes(), payload].concat()
    }
}

/// Who is who.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) generator: [u8; 6],
    pub(crate) balancer: [u8; 6],
    pub(crate) vip: Ipv4Addr,
    /// A UDP port that is served; the next one is not.
    pub(crate) port: u16,
}
