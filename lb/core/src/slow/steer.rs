//! ICMP errors about flows of a VIP, steered to the backend of the flow that they quote. Never changes one, and never answers one.
//!
//! An error is for a backend if it quotes a packet that the backend sent: from the VIP address to a client. Errors about the other
//! direction go to the client and are not ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Icmpv6Slice, checksum::Sum16BitWords};
use xdp_prog::{
    verdict::Verdict,
    wire::{IPV4_LEN, PROTO_TCP, PROTO_UDP},
};

use super::{
    FlowKey, Kind, Outcome, Packet, Way,
    answer::v6,
    engine::{Context, Done},
    forward::way_of_new,
    packet::{array, be16, byte, icmp_of, walk},
    too_big, way,
};

/// ICMP: destination unreachable, time exceeded, parameter problem (RFC 792). Source quench is no more (RFC 6633), and a redirect is
/// for who has routes.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// ICMPv6: destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443, 3).
const ERRORS_V6: [u8; 4] = [1, 2, 3, 4];
/// Bytes of an error in front of what it quotes.
const ICMP_LEN: usize = 8;

/// Whether an ICMP packet is an error that may be about a flow (RFC 792, RFC 4443 2.1).
pub(super) fn is_error(packet: &Packet<'_>) -> bool {
    let errors: &[u8] = match packet.destination {
        IpAddr::V4(_) => &ERRORS_V4,
        IpAddr::V6(_) => &ERRORS_V6,
    };
    packet.payload().first().is_some_and(|kind| errors.contains(kind))
}

/// Sends an ICMP error to the backend of the flow that it is about.
pub(super) fn steer(context: &mut Context<'_>, packet: &Packet<'_>) -> Done {
    let flow = match quoted_flow(packet) {
        Ok(flow) => flow,
        Err(outcome) => return outcome.into(),
    };
    // No token of the VIP's limits: those are for what clients ask.
    // ICMP errors are easily forged: they follow what is known of a flow, and add nothing to it.
    context.decide.only_ask(true);
    let ifindex = context.settings.ifindex;
    let way = way(context.decide, ifindex, packet, &flow, true);
    // An error comes by another way than its flow, and so to any LB node: the record of a young flow may be another one's. Where the
    // slot is in transit such a flow is where new ones go, and who began before is where this node says.
    let young = (flow.protocol == PROTO_TCP).then(|| way_of_new(context.decide, ifindex, packet, &flow));
    context.decide.only_ask(false);
    match way {
        Way::Send { to, frame, choice } => {
            context.out.forward(to, frame, choice, packet.ip.len());
            if let Some(Way::Send {
                to,
                frame,
                choice: young,
            }) = young
                && young.backend != choice.backend
            {
                context.out.forward(to, frame, young, packet.ip.len());
            }
            Outcome::Steered.into()
        }
        Way::Local { choice } => context.local(packet, choice),
        // An error is not answered with one, whatever the VIP's policy.
        Way::TooBig { mtu, .. } if !packet.dont_fragment => too_big::in_pieces(context, packet, &flow, mtu),
        Way::TooBig { mtu, .. } => too_big::too_big(context, packet, &flow, mtu),
        Way::NextHop { choice } => context.wait(Kind::IcmpError, packet, &flow, choice),
        Way::None(Verdict::PassOwnAddress) => context.pass_up(packet),
        Way::None(Verdict::PassNotVip | Verdict::SlowUnservedPort) => Outcome::QuoteUnknown.into(),
        Way::None(verdict) => Done::Refused(verdict),
    }
}

/// The flow whose reply an ICMP error quotes, as its client sends it.
fn quoted_flow(packet: &Packet<'_>) -> Result<FlowKey, Outcome> {
    let message = packet.payload();
    let quote = message.get(ICMP_LEN..).ok_or(Outcome::Malformed)?;
    let is_valid = match packet.destination {
        IpAddr::V4(_) => Sum16BitWords::new().add_slice(message).ones_complement() == 0,
        IpAddr::V6(_) => Icmpv6Slice::from_slice(message).is_ok_and(|message| {
            message.is_checksum_valid(v6(packet.source).octets(), v6(packet.destination).octets())
        }),
    };
    if !is_valid {
        return Err(Outcome::Malformed);
    }
    let quote = match packet.destination {
        IpAddr::V4(_) => Quote::ipv4(quote),
        IpAddr::V6(_) => Quote::ipv6(quote),
    };
    let quote = quote.map_err(|_| Outcome::QuoteUnknown)?;
    if quote.source != packet.destination {
        return Err(Outcome::QuoteUnknown);
    }
    if quote.protocol == icmp_of(packet.destination) {
        // An echo reply of ours.
        return Err(Outcome::IcmpIgnored);
    }
    if quote.protocol != PROTO_TCP && quote.protocol != PROTO_UDP {
        return Err(Outcome::QuoteUnknown);
    }
    let port = |at| be16(quote.transport, at).map_err(|_| Outcome::QuoteUnknown);
    Ok(FlowKey {
        source: quote.destination,
        destination: quote.source,
        protocol: quote.protocol,
        source_port: port(2)?,
        destination_port: port(0)?,
    })
}

/// The beginning of a packet, as an error quotes it: its length fields speak of what is no longer there.
struct Quote<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: &'a [u8],
}

impl<'a> Quote<'a> {
    fn ipv4(bytes: &'a [u8]) -> Result<Self, Outcome> {
        let version = byte(bytes, 0)?;
        let header_len = usize::from(version & 0xf) * 4;
        let is_later = be16(bytes, 6)? & 0x1fff != 0;
        if version >> 4 != 4 || header_len < IPV4_LEN || is_later {
            return Err(Outcome::QuoteUnknown);
        }
        Ok(Self {
            source: Ipv4Addr::from(array::<4>(bytes, 12)?).into(),
            destination: Ipv4Addr::from(array::<4>(bytes, 16)?).into(),
            protocol: byte(bytes, 9)?,
            transport: bytes.get(header_len..).ok_or(Outcome::QuoteUnknown)?,
        })
    }

    fn ipv6(bytes: &'a [u8]) -> Result<Self, Outcome> {
        let chain = walk(bytes)?;
        if byte(bytes, 0)? >> 4 != 6 || chain.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Err(Outcome::QuoteUnknown);
        }
        Ok(Self {
            source: Ipv6Addr::from(array::<16>(bytes, 8)?).into(),
            destination: Ipv6Addr::from(array::<16>(bytes, 24)?).into(),
            protocol: chain.protocol,
            transport: bytes.get(chain.len..).ok_or(Outcome::QuoteUnknown)?,
        })
    }
}
