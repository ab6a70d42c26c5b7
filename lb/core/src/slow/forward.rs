//! An unusual packet, forwarded like the plain packet of its flow. Never decides for itself: it asks the fast path's own function
//! about a plain packet of the flow, and puts the outer header that this one got in front of the packet in hand.

use std::net::IpAddr;

use etherparse::Ipv4HeaderSlice;
use xdp_prog::{
    abi::{BackendLine, LineMeta},
    host::Choice,
    verdict::Verdict,
    wire::{ETH_LEN, IPV4_LEN, IPV6_LEN, PROTO_TCP, TCP_ACK, TCP_LEN, TCP_SYN, UDP_LEN, VLAN_LEN},
};

use super::{Decide, Link, Packet, To};

/// What the balancer hashes: who talks to which VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    /// The client.
    pub source: IpAddr,
    /// The VIP address; of the same family.
    pub destination: IpAddr,
    /// TCP or UDP.
    pub protocol: u8,
    /// The client's port.
    pub source_port: u16,
    /// The VIP's port.
    pub destination_port: u16,
}

impl FlowKey {
    /// The flow of a packet that begins with a transport header.
    pub fn of(packet: &Packet<'_>) -> Option<Self> {
        let (source_port, destination_port) = packet.ports()?;
        Some(Self {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            source_port,
            destination_port,
        })
    }
}

/// What the fast path says about a packet's flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Send this frame there.
    Send {
        /// Where to.
        to: To,
        /// The packet, encapsulated.
        frame: Vec<u8>,
        /// What was chosen.
        choice: Choice,
    },
    /// The backend is this node: hand the packet to its kernel as it came.
    Local {
        /// What was chosen.
        choice: Choice,
    },
    /// It does not fit: largest packet that does, in bytes without the outer header.
    TooBig {
        /// Bytes of IP packet.
        mtu: usize,
        /// What was chosen.
        choice: Choice,
    },
    /// The backend's next hop is not known.
    NextHop {
        /// What was chosen.
        choice: Choice,
    },
    /// Any other verdict: there is no way.
    None(Verdict),
}

/// Asks for the way of `packet`, which belongs to `flow`. `admitted`: it has passed the VIP's limits. `ifindex` is where it came in.
pub fn way(decide: &mut dyn Decide, ifindex: u32, packet: &Packet<'_>, flow: &FlowKey, admitted: bool) -> Way {
    // Neither a SYN nor anything else that starts or ends a flow.
    way_of(decide, ifindex, packet, (flow, TCP_ACK), admitted)
}

/// As [`way`], if the TCP flow began now.
pub(super) fn way_of_new(decide: &mut dyn Decide, ifindex: u32, packet: &Packet<'_>, flow: &FlowKey) -> Way {
    way_of(decide, ifindex, packet, (flow, TCP_SYN), true)
}

/// `flags`: of the plain packet's TCP header, where it is not the packet's own.
fn way_of(
    decide: &mut dyn Decide,
    ifindex: u32,
    packet: &Packet<'_>,
    (flow, flags): (&FlowKey, u8),
    admitted: bool,
) -> Way {
    let plain = Plain::of(packet, flow, flags);
    let outcome = decide.balance(&plain.frame, admitted);
    let Some(choice) = outcome.choice else {
        return Way::None(outcome.verdict);
    };
    match outcome.verdict {
        Verdict::ForwardLocal => return Way::Local { choice },
        Verdict::SlowNextHop => return Way::NextHop { choice },
        Verdict::ForwardTx | Verdict::ForwardRedirect | Verdict::SlowTooBig => {}
        verdict => return Way::None(verdict),
    }
    let Some(line) = decide.line(choice.backend) else {
        return Way::None(Verdict::DropInternal);
    };
    let meta = LineMeta(line.meta);
    if !meta.has(LineMeta::RESOLVED) {
        // The live line has changed since: what it says now is no longer what was decided by.
        return Way::NextHop { choice };
    }
    if outcome.verdict == Verdict::SlowTooBig {
        let mtu = (meta.mtu() as usize).saturating_sub(outer_len(&line));
        return Way::TooBig { mtu, choice };
    }
    let to = match outcome.verdict {
        Verdict::ForwardRedirect => meta.ifindex(),
        _ => ifindex,
    };
    match plain.around(packet, &outcome.frame, meta.has(LineMeta::OWN_TAGS)) {
        Some(frame) => Way::Send {
            to: To::Interface(to),
            frame,
            choice,
        },
        None => Way::None(Verdict::DropInternal),
    }
}

/// Bytes of a line's outer header.
pub fn outer_len(line: &BackendLine) -> usize {
    if LineMeta(line.meta).has(LineMeta::OUTER_V6) {
        IPV6_LEN
    } else {
        IPV4_LEN
    }
}

/// The plain packet of a flow: no options, no extension headers, no fragment, at most two tags, and as long as the packet in hand.
struct Plain {
    frame: Vec<u8>,
    /// Bytes of its link layer.
    link_len: usize,
    /// Bytes of its IP header.
    header_len: usize,
    /// Bytes of its IP packet.
    ip_len: usize,
    /// Its transport header is the packet's own.
    own: bool,
}

impl Plain {
    fn of(packet: &Packet<'_>, flow: &FlowKey, flags: u8) -> Self {
        let tags = packet.link.tags().min(2);
        let link_len = ETH_LEN + tags * VLAN_LEN;
        let mut frame = Vec::with_capacity(link_len + packet.ip.len() + IPV6_LEN + TCP_LEN);
        frame.extend_from_slice(packet.link.bytes.get(..link_len - 2).unwrap_or_default());
        frame.extend_from_slice(&packet.link.ethertype.to_be_bytes());
        let header_len = match flow.destination {
            IpAddr::V4(_) => IPV4_LEN,
            IpAddr::V6(_) => IPV6_LEN,
        };
        let transport_len = if flow.protocol == PROTO_TCP { TCP_LEN } else { UDP_LEN };
        // Later fragments may be shorter than a packet of the flow can be; the outer header is corrected then.
        let ip_len = packet.ip.len().max(header_len + transport_len);
        // The packet's own transport header, so that what the fast path does to a SYN is done to this one.
        let own = FlowKey::of(packet).filter(|own| packet.has_transport() && own == flow);
        header(&mut frame, packet, flow, ip_len);
        let own = own.is_some() && packet.payload().len() >= transport_len;
        if own {
            frame.extend_from_slice(packet.payload());
        } else {
            frame.extend_from_slice(&flow.source_port.to_be_bytes());
            frame.extend_from_slice(&flow.destination_port.to_be_bytes());
            if flow.protocol == PROTO_TCP {
                frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags]);
            }
        }
        frame.resize(link_len + ip_len, 0);
        Self {
            frame,
            link_len,
            header_len,
            ip_len,
            own,
        }
    }

    /// The packet in hand behind the headers that the plain one left with; `None` if that is not the plain one.
    fn around(&self, packet: &Packet<'_>, sent: &[u8], own_tags: bool) -> Option<Vec<u8>> {
        let front_len = sent.len().checked_sub(self.ip_len)?;
        let (front, inner) = sent.split_at_checked(front_len)?;
        let link = Link::parse(front).ok()?.bytes;
        let outer = front.get(link.len()..)?;
        let (link, ethertype) = link.split_at_checked(link.len() - 2)?;
        // Tags beyond the second stand behind those that the plain packet kept.
        let deep = packet.link.bytes.get(self.link_len - 2..packet.link.bytes.len() - 2)?;
        let deep = if own_tags { &[][..] } else { deep };
        let mut frame = Vec::with_capacity(front_len + deep.len() + packet.ip.len());
        for part in [link, deep, ethertype] {
            frame.extend_from_slice(part);
        }
        let l3 = frame.len();
        frame.extend_from_slice(outer);
        if packet.ip.len() < self.ip_len {
            shorten(frame.get_mut(l3..)?, self.ip_len - packet.ip.len());
        }
        let payload = packet.payload();
        frame.extend_from_slice(packet.ip.get(..packet.header_len)?);
        if self.own {
            // What the fast path did to a SYN.
            frame.extend_from_slice(inner.get(self.header_len..self.header_len + payload.len())?);
        } else {
            frame.extend_from_slice(payload);
        }
        Some(frame)
    }
}

/// Writes the plain packet's IP header; its checksum is nobody's business.
fn header(frame: &mut Vec<u8>, packet: &Packet<'_>, flow: &FlowKey, ip_len: usize) {
    match (flow.source, flow.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total_len = u16::try_from(ip_len).unwrap_or(u16::MAX).to_be_bytes();
            frame.extend_from_slice(&[0x45, packet.tos, total_len[0], total_len[1], 0, 0, 0, 0]);
            frame.extend_from_slice(&[packet.hop_limit, flow.protocol, 0, 0]);
            frame.extend_from_slice(&source.octets());
            frame.extend_from_slice(&destination.octets());
        }
        (source, destination) => {
            let payload_len = u16::try_from(ip_len - IPV6_LEN).unwrap_or(u16::MAX).to_be_bytes();
            let class = (0x6000 | u16::from(packet.tos) << 4).to_be_bytes();
            frame.extend_from_slice(&[class[0], class[1], 0, 0, payload_len[0], payload_len[1]]);
            frame.extend_from_slice(&[flow.protocol, packet.hop_limit]);
            frame.extend_from_slice(&v6(source));
            frame.extend_from_slice(&v6(destination));
        }
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Takes `by` bytes off the length that an outer header says.
fn shorten(outer: &mut [u8], by: usize) {
    let by = u16::try_from(by).unwrap_or(u16::MAX);
    if let Ok(header) = Ipv4HeaderSlice::from_slice(outer) {
        let mut header = header.to_header();
        header.total_len = header.total_len.saturating_sub(by);
        header.header_checksum = header.calc_header_checksum();
        if let Some(place) = outer.get_mut(..IPV4_LEN) {
            place.copy_from_slice(&header.to_bytes());
        }
    } else if let Some(place) = outer.get_mut(4..6) {
        let len = u16::from_be_bytes([place[0], place[1]]).saturating_sub(by);
        place.copy_from_slice(&len.to_be_bytes());
    }
}
