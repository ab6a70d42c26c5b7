//! Echo requests to a VIP address (RFC 792, RFC 4443 4.1). Never puts fragments together: it turns round each on its
//! own.

use std::net::IpAddr;

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, checksum::Sum16BitWords, icmpv4, icmpv6,
};

use super::{
    Kind, Outcome, Packet,
    answer::{Place, answer as reply, v6},
    engine::{Context, Done},
    icmp::{last_extension, message_v4, message_v6},
    packet::{array, be16, byte, icmp_of},
    reject,
};

/// Number of the IPv6 fragment header, and its length.
const FRAGMENT: u8 = 44;
const FRAGMENT_LEN: usize = 8;
/// Flags in an IPv4 header's fragmentation word.
const DONT_FRAGMENT: u16 = 0x4000;

/// Answers an echo request.
pub(super) fn answer(context: &mut Context<'_>, packet: &Packet<'_>) -> Done {
    let request = match Request::parse(packet) {
        Ok(request) => request,
        Err(outcome) => return outcome.into(),
    };
    if let Err(outcome) = is_up(context, packet).and_then(|()| context.may_answer(Kind::Echo, packet)) {
        return outcome.into();
    }
    let network = match packet.destination {
        IpAddr::V4(_) => {
            let kind = Icmpv4Type::EchoReply(request.header);
            message_v4(packet, kind, packet.tos, place(packet), request.body)
        }
        IpAddr::V6(_) => message_v6(packet, Icmpv6Type::EchoReply(request.header), packet.tos, request.body),
    };
    context.answer(&packet.link, &network);
    Outcome::EchoReply.into()
}

/// Turns round one fragment of an echo request. Only the first takes of its source's share: the others are nothing
/// without it.
pub(super) fn answer_fragment(context: &mut Context<'_>, packet: &Packet<'_>) -> Done {
    let network = match turned(packet) {
        Ok(network) => network,
        Err(outcome) => return outcome.into(),
    };
    let allowed = is_up(context, packet).and_then(|()| {
        if packet.has_transport() {
            context.may_answer(Kind::Echo, packet)
        } else {
            reject::one_host(packet)
        }
    });
    match allowed {
        Ok(()) => {
            context.answer(&packet.link, &network);
            Outcome::EchoReply.into()
        }
        Err(outcome) => outcome.into(),
    }
}

/// An echo request.
struct Request<'a> {
    header: IcmpEchoHeader,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn parse(packet: &Packet<'a>) -> Result<Self, Outcome> {
        let message = packet.payload();
        if !is_request(packet)? {
            return Err(Outcome::IcmpIgnored);
        }
        let header = IcmpEchoHeader::from_bytes(array(message, 4)?);
        let body = message.get(8..).ok_or(Outcome::Malformed)?;
        let valid = match packet.destination {
            IpAddr::V4(_) => Sum16BitWords::new().add_slice(message).ones_complement() == 0,
            IpAddr::V6(_) => Icmpv6Slice::from_slice(message).is_ok_and(|message| {
                message.is_checksum_valid(v6(packet.source).octets(), v6(packet.destination).octets())
            }),
        };
        if valid {
            Ok(Self { header, body })
        } else {
            Err(Outcome::Malformed)
        }
    }
}

/// Whether what begins with an ICMP header is an echo request.
fn is_request(packet: &Packet<'_>) -> Result<bool, Outcome> {
    let kind = (byte(packet.payload(), 0)?, byte(packet.payload(), 1)?);
    Ok(match packet.destination {
        IpAddr::V4(_) => kind == (icmpv4::TYPE_ECHO_REQUEST, 0),
        IpAddr::V6(_) => kind == (icmpv6::TYPE_ECHO_REQUEST, 0),
    })
}

/// A VIP address answers as long as somebody serves something on it.
fn is_up(context: &Context<'_>, packet: &Packet<'_>) -> Result<(), Outcome> {
    match context.book.address(packet.destination) {
        None => Err(Outcome::NotVip),
        Some(address) if address.healthy => Ok(()),
        Some(_) => Err(Outcome::Unhealthy),
    }
}

/// Where the answer to an IPv4 packet stands: where the packet stood. Its identification is unique for the same two
/// addresses, the protocol and their lifetime (RFC 6864, 4), and whoever forbids fragmentation one way is likely to
/// be measuring.
fn place(packet: &Packet<'_>) -> Place {
    Place {
        id: be16(packet.ip, 4).unwrap_or_default(),
        dont_fragment: be16(packet.ip, 6).is_ok_and(|word| word & DONT_FRAGMENT != 0),
        more: packet.fragment.is_some_and(|fragment| fragment.more),
        offset: packet.fragment.map_or(0, |fragment| (fragment.offset / 8) as u16),
    }
}

/// A fragment of the request as a fragment of the reply.
fn turned(packet: &Packet<'_>) -> Result<Vec<u8>, Outcome> {
    if packet.protocol != icmp_of(packet.destination) {
        // Options behind the fragment header count for where things stand in the datagram: they cannot be left out,
        // nor sent back.
        return Err(Outcome::HeaderChain);
    }
    let mut payload = packet.payload().to_vec();
    if packet.has_transport() {
        if !is_request(packet)? {
            return Err(Outcome::IcmpIgnored);
        }
        become_reply(packet, &mut payload)?;
    }
    match packet.destination {
        IpAddr::V4(_) => Ok(reply(packet, IpNumber::ICMP, packet.tos, place(packet), &payload)),
        IpAddr::V6(_) => {
            let Some((FRAGMENT, at)) = last_extension(packet) else {
                return Err(Outcome::HeaderChain);
            };
            let header: [u8; FRAGMENT_LEN] = array(packet.ip, at)?;
            let number = IpNumber::IPV6_FRAGMENTATION_HEADER;
            Ok(reply(
                packet,
                number,
                packet.tos,
                Place::ATOMIC,
                &[&header, &payload[..]].concat(),
            ))
        }
    }
}

/// Changes the type of an ICMP message whose rest is elsewhere, and its checksum by as much (RFC 1624, 3: equation
/// 3). The sum of the pseudo-header stays, since source and destination change places.
fn become_reply(packet: &Packet<'_>, message: &mut [u8]) -> Result<(), Outcome> {
    let reply = match packet.destination {
        IpAddr::V4(_) => icmpv4::TYPE_ECHO_REPLY,
        IpAddr::V6(_) => icmpv6::TYPE_ECHO_REPLY,
    };
    let [kind, _, high, low, ..] = message else {
        return Err(Outcome::Malformed);
    };
    let sum = Sum16BitWords::new()
        .add_2bytes([!*high, !*low])
        .add_2bytes([!*kind, 0xff])
        .add_2bytes([reply, 0]);
    *kind = reply;
    // The library sums in the machine's own order (RFC 1071, 2 (B)). Of the two zeros only 0xffff is right for a
    // reply that is nothing but zeros, and it is right for all others too.
    [*high, *low] = sum.to_ones_complement_with_no_zero().to_ne_bytes();
    Ok(())
}

#[cfg(test)]
mod tests;
