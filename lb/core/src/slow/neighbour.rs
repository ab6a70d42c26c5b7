//! Who has a VIP address: ARP (RFC 826) and neighbour discovery (RFC 4861), asked and announced. Never asks, and
//! never remembers who asked: answers go to whom the question names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, Icmpv6Header, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv6Header,
    icmpv6::NeighborAdvertisementHeader,
};
use xdp_prog::wire::{ICMPV6_SOLICITATION, ON_LINK_HOP_LIMIT, PROTO_ICMPV6};

use super::{
    Event, Link, Outcome, Packet, To,
    duplicate::claimed,
    engine::{Context, Done},
    packet::{array, be16, byte},
    reject::{is_group, is_host},
};

pub(super) const BROADCAST: [u8; 6] = [0xff; 6];
pub(super) const NOBODY: [u8; 6] = [0; 6];
/// All nodes of a link (RFC 4291, 2.7.1), and its MAC address (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Options of neighbour discovery (RFC 4861, 4.6.1): whose link-layer address it is, and their length in units of 8
/// bytes.
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
const LINK_ADDRESS_UNITS: u8 = 1;

/// Answers a question for a VIP address that this node owns.
pub(super) fn answer(context: &mut Context<'_>, frame: &[u8]) -> Done {
    // Of one that this node asks for at the moment, perhaps.
    if let Some((address, mac)) = claimed(frame)
        && context.book.address(address).is_some_and(|address| !address.owned)
        && mac != context.settings.mac
    {
        context.out.events.push(Event::AddressConflict(address, mac));
    }
    let answered = Link::parse(frame).and_then(|link| match link.ethertype {
        Link::ARP => arp(context, &link),
        Link::IPV6 => solicitation(context, &Packet::parse(frame)?),
        _ => Err(Outcome::Malformed),
    });
    answered.unwrap_or_else(|outcome| outcome).into()
}

/// The frames that announce that `mac` has `address`, without tags: gratuitous ARP, or an unsolicited neighbour
/// advertisement.
///
/// Gratuitous ARP in both its forms (RFC 5944, 4.6): some hosts and switches learn from requests only, some from
/// replies.
pub fn announcement(address: IpAddr, mac: [u8; 6]) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            let announce = |operation, target_mac| {
                let arp = ArpEthIpv4Packet {
                    operation,
                    sender_mac: mac,
                    sender_ipv4: address.octets(),
                    target_mac,
                    target_ipv4: address.octets(),
                };
                untagged(BROADCAST, mac, Link::ARP, &arp.to_bytes())
            };
            vec![
                announce(ArpOperation::REQUEST, NOBODY),
                announce(ArpOperation::REPLY, mac),
            ]
        }
        IpAddr::V6(address) => {
            let network = advertisement(address, mac, ALL_NODES, false);
            vec![untagged(ALL_NODES_MAC, mac, Link::IPV6, &network)]
        }
    }
}

/// The multicast group that questions for an address are sent to (RFC 4291, 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

/// RFC 826, "Packet Reception"; probes (RFC 5227, 1.1) get an answer like any other.
fn arp(context: &mut Context<'_>, link: &Link<'_>) -> Result<Outcome, Outcome> {
    let arp = ArpPacketSlice::from_slice(link.payload).map_err(|_| Outcome::Malformed)?;
    let arp = arp.to_packet().try_eth_ipv4().map_err(|_| Outcome::Malformed)?;
    let (sender, target) = (arp.sender_ipv4_addr(), arp.target_ipv4_addr());
    must_own(context, target.into())?;
    check_asker(context, sender.into(), arp.sender_mac)?;
    let is_probe = sender == Ipv4Addr::UNSPECIFIED;
    if arp.operation != ArpOperation::REQUEST || !(is_probe || is_host(sender.into())) {
        return Err(Outcome::Unanswerable);
    }
    let reply = ArpEthIpv4Packet {
        operation: ArpOperation::REPLY,
        sender_mac: context.settings.mac,
        sender_ipv4: arp.target_ipv4,
        target_mac: arp.sender_mac,
        target_ipv4: arp.sender_ipv4,
    };
    send(context, link, arp.sender_mac, &reply.to_bytes());
    Ok(Outcome::ArpReply)
}

/// RFC 4861, 7.2.3 and 7.2.4; RFC 4862, 5.4.3 for who asks before it has an address.
fn solicitation(context: &mut Context<'_>, packet: &Packet<'_>) -> Result<Outcome, Outcome> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
        return Err(Outcome::Malformed);
    };
    // Fragments above all (RFC 6980, 5): nobody needs headers in front of a question on the link.
    if packet.header_len != Ipv6Header::LEN {
        return Err(Outcome::HeaderChain);
    }
    let question = Solicitation::parse(packet, source, destination)?;
    must_own(context, question.target.into())?;
    let to = question.source_mac.unwrap_or(packet.link.source_mac());
    check_asker(context, source.into(), to)?;
    let network = if source.is_unspecified() {
        advertisement(question.target, context.settings.mac, ALL_NODES, false)
    } else if is_host(source.into()) {
        advertisement(question.target, context.settings.mac, source, true)
    } else {
        return Err(Outcome::Unanswerable);
    };
    let to = if source.is_unspecified() { ALL_NODES_MAC } else { to };
    send(context, &packet.link, to, &network);
    Ok(Outcome::NeighbourAdvertisement)
}

/// A valid neighbour solicitation.
struct Solicitation {
    target: Ipv6Addr,
    /// Where its source says that it is.
    source_mac: Option<[u8; 6]>,
}

impl Solicitation {
    /// RFC 4861, 7.1.1.
    fn parse(packet: &Packet<'_>, source: Ipv6Addr, destination: Ipv6Addr) -> Result<Self, Outcome> {
        let bytes = packet.payload();
        let message = Icmpv6Slice::from_slice(bytes).map_err(|_| Outcome::Malformed)?;
        let is_solicitation = packet.protocol == PROTO_ICMPV6
            && (message.type_u8(), message.code_u8()) == (ICMPV6_SOLICITATION, 0)
            && packet.hop_limit == ON_LINK_HOP_LIMIT;
        if !is_solicitation || !message.is_checksum_valid(source.octets(), destination.octets()) {
            return Err(Outcome::Malformed);
        }
        let target = Ipv6Addr::from(array::<16>(bytes, 8)?);
        let source_mac = source_link_address(bytes.get(24..).unwrap_or_default())?;
        let has_no_address = source.is_unspecified();
        let is_to_group = destination == solicited_node(target);
        if target.is_multicast() || has_no_address && (!is_to_group || source_mac.is_some()) {
            return Err(Outcome::Malformed);
        }
        Ok(Self { target, source_mac })
    }
}

/// The source's link-layer address among a solicitation's options, all of which must be whole (RFC 4861, 4.6).
fn source_link_address(mut options: &[u8]) -> Result<Option<[u8; 6]>, Outcome> {
    let mut found = None;
    while !options.is_empty() {
        let units = byte(options, 1)?;
        let (option, rest) = options
            .split_at_checked(usize::from(units) * 8)
            .filter(|_| units > 0)
            .ok_or(Outcome::Malformed)?;
        if be16(option, 0)?.to_be_bytes() == [SOURCE_LINK_ADDRESS, LINK_ADDRESS_UNITS] {
            found = Some(array(option, 2)?);
        }
        options = rest;
    }
    Ok(found)
}

/// A neighbour advertisement, from the IP header on (RFC 4861, 4.4). It overrides what others remember: one node owns
/// the address.
fn advertisement(address: Ipv6Addr, mac: [u8; 6], to: Ipv6Addr, solicited: bool) -> Vec<u8> {
    let kind = Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
        router: false,
        solicited,
        r#override: true,
    });
    let option = [&[TARGET_LINK_ADDRESS, LINK_ADDRESS_UNITS], &mac[..]].concat();
    message(kind, &[&address.octets(), &option[..]].concat(), address, to)
}

/// A message of neighbour discovery, from the IP header on.
pub(super) fn message(kind: Icmpv6Type, body: &[u8], source: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut message = Icmpv6Header::new(kind);
    // Fails for more than 4 GiB only.
    let checksum = kind.calc_checksum(source.octets(), to.octets(), body);
    message.checksum = checksum.unwrap_or_default();
    let header = Ipv6Header {
        payload_length: (message.header_len() + body.len()) as u16,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: ON_LINK_HOP_LIMIT,
        source: source.octets(),
        destination: to.octets(),
        ..Ipv6Header::default()
    };
    [&header.to_bytes(), message.to_bytes().as_slice(), body].concat()
}

/// Only the owner answers.
fn must_own(context: &Context<'_>, address: IpAddr) -> Result<(), Outcome> {
    match context.book.address(address) {
        None => Err(Outcome::NotVip),
        Some(address) if address.owned => Ok(()),
        Some(_) => Err(Outcome::NotOwner),
    }
}

/// Who asks can be answered, and does not use an address of ours itself (RFC 5227, 2.4).
fn check_asker(context: &mut Context<'_>, address: IpAddr, mac: [u8; 6]) -> Result<(), Outcome> {
    // Our own announcement, come back.
    if is_group(mac) || mac == NOBODY || mac == context.settings.mac {
        return Err(Outcome::Unanswerable);
    }
    if context.book.address(address).is_some_and(|address| address.owned) {
        context.out.events.push(Event::AddressConflict(address, mac));
        return Err(Outcome::AddressConflict);
    }
    Ok(())
}

/// Sends an answer to `to`, behind the tags of the question.
fn send(context: &mut Context<'_>, link: &Link<'_>, to: [u8; 6], network: &[u8]) {
    let own = context.settings.mac;
    let behind_macs = link.bytes.get(12..).unwrap_or_default();
    let frame = [&to, &own, behind_macs, network].concat();
    context.out.send(To::Interface(context.settings.ifindex), frame);
}

pub(super) fn untagged(to: [u8; 6], from: [u8; 6], ethertype: u16, network: &[u8]) -> Vec<u8> {
    [&to, &from, &ethertype.to_be_bytes()[..], network].concat()
}
