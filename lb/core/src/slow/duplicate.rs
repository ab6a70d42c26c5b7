//! Whether somebody else has an address: the frames that ask, and those that say so. Never decides what follows
//! ([`Claims`](crate::announce::Claims) does).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, Icmpv6Slice, Icmpv6Type, Ipv6Header};
use xdp_prog::wire::{ICMPV6_SOLICITATION, ON_LINK_HOP_LIMIT, PROTO_ICMPV6};

use super::{
    Link, Packet,
    neighbour::{BROADCAST, NOBODY, message, solicited_node, untagged},
    packet::array,
    reject::{is_group, is_host},
};

/// ICMPv6 type (RFC 4861, 4.4).
const ICMPV6_ADVERTISEMENT: u8 = 136;

/// The frame that asks whether anybody has `address`, without a tag, of one that does not have it: an ARP probe (RFC 5227, 2.1.1), or a
/// neighbour solicitation without a source (RFC 4862, 5.4.2).
pub fn question(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let arp = ArpEthIpv4Packet {
                operation: ArpOperation::REQUEST,
                sender_mac: mac,
                sender_ipv4: Ipv4Addr::UNSPECIFIED.octets(),
                target_mac: NOBODY,
                target_ipv4: address.octets(),
            };
            untagged(BROADCAST, mac, Link::ARP, &arp.to_bytes())
        }
        IpAddr::V6(address) => {
            let group = solicited_node(address);
            let [.., a, b, c, d] = group.octets();
            let network = message(
                Icmpv6Type::NeighborSolicitation,
                &address.octets(),
                Ipv6Addr::UNSPECIFIED,
                group,
            );
            untagged([0x33, 0x33, a, b, c, d], mac, Link::IPV6, &network)
        }
    }
}

/// Who says in a frame that it has an address, or that it is about to (RFC 5227, 2.1.1; RFC 4862, 5.4.3 and 5.4.4); `None` of any other
/// frame. The MAC address is the frame's source.
pub fn claimed(frame: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let link = Link::parse(frame).ok()?;
    let mac = link.source_mac();
    let address: IpAddr = match link.ethertype {
        Link::ARP => {
            let arp = ArpPacketSlice::from_slice(link.payload).ok()?;
            let arp = arp.to_packet().try_eth_ipv4().ok()?;
            let (sender, target) = (arp.sender_ipv4_addr(), arp.target_ipv4_addr());
            if sender.is_unspecified() { target } else { sender }.into()
        }
        Link::IPV6 => {
            let packet = Packet::parse(frame).ok()?;
            let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
                return None;
            };
            let bytes = packet.payload();
            let message = Icmpv6Slice::from_slice(bytes).ok()?;
            let is_whole = packet.protocol == PROTO_ICMPV6
                && packet.header_len == Ipv6Header::LEN
                && packet.hop_limit == ON_LINK_HOP_LIMIT
                && message.is_checksum_valid(source.octets(), destination.octets());
            let asks = message.type_u8() == ICMPV6_SOLICITATION && source.is_unspecified();
            if !is_whole || !(asks || message.type_u8() == ICMPV6_ADVERTISEMENT) {
                return None;
            }
            Ipv6Addr::from(array::<16>(bytes, 8).ok()?).into()
        }
        _ => return None,
    };
    (!is_group(mac) && mac != NOBODY && is_host(address)).then_some((address, mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slow::announcement;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn what_is_asked_and_what_is_announced_claims_an_address() {
        for address in ["203.0.113.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            let question = question(address, MAC);
            assert_eq!(
                claimed(&question),
                Some((address, MAC)),
                "another that asks at the same time is one too many"
            );
            for frame in announcement(address, MAC) {
                assert_eq!(claimed(&frame), Some((address, MAC)));
                for length in 0..frame.len() {
                    assert_eq!(
                        claimed(&frame[..length]),
                        None,
                        "{address}: {length} bytes of {}",
                        frame.len()
                    );
                }
            }
            let mut from_group = question;
            from_group[6] |= 1;
            assert_eq!(claimed(&from_group), None);
        }
        let mut changed = question("2001:db8::1".parse().unwrap(), MAC);
        if let Some(last) = changed.last_mut() {
            *last ^= 1;
        }
        assert_eq!(claimed(&changed), None, "the checksum");
    }
}
