//! Packets that do not fit once encapsulated. Never sends a part of one: all pieces go, or none.

use std::net::IpAddr;

use super::{
    FlowKey, Kind, Outcome, Packet, Way,
    engine::{Context, Done},
    icmp::{Error, error},
    split::split,
    way,
};
use crate::desired::TooBig;

/// The smallest MTU of an IPv6 link (RFC 8200, 5): a sender need not go below it (RFC 8201, 4).
const LEAST_V6: usize = 1280;
/// What every IPv4 link must carry (RFC 791, 3.2).
const LEAST_V4: usize = 68;

/// Tells the client, or sends the packet in pieces; `mtu` is the largest IP packet that fits.
pub(super) fn too_big(context: &mut Context<'_>, packet: &Packet<'_>, flow: &FlowKey, mtu: usize) -> Done {
    let least = match packet.destination {
        IpAddr::V4(_) => LEAST_V4,
        IpAddr::V6(_) => LEAST_V6,
    };
    // A sender of IPv6 can be brought down to the least, but not below it.
    if mtu < least && (packet.destination.is_ipv4() || packet.ip.len() <= least) {
        return Outcome::MtuTooSmall.into();
    }
    if packet.dont_fragment {
        return answer(context, packet, mtu.max(least));
    }
    match context.book.too_big(flow) {
        TooBig::Answer => answer(context, packet, mtu),
        TooBig::Fragment => in_pieces(context, packet, flow, mtu),
    }
}

fn answer(context: &mut Context<'_>, packet: &Packet<'_>, mtu: usize) -> Done {
    if let Err(outcome) = context.may_answer(Kind::TooBig, packet) {
        return outcome.into();
    }
    context.answer(&packet.link, &error(packet, Error::TooBig { mtu }));
    Outcome::TooBig.into()
}

/// Sends a packet that may be split in pieces.
pub(super) fn in_pieces(context: &mut Context<'_>, packet: &Packet<'_>, flow: &FlowKey, mtu: usize) -> Done {
    if !packet.is_header_whole() {
        // Pieces get checksums of their own, which would make it good.
        return Outcome::Malformed.into();
    }
    let Some(pieces) = split(packet, mtu, || context.common.fragments().fresh_id()) else {
        return Outcome::MtuTooSmall.into();
    };
    let mut ready = Vec::with_capacity(pieces.len());
    for piece in &pieces {
        let piece = match Packet::parse(piece) {
            Ok(piece) => piece,
            Err(outcome) => return outcome.into(),
        };
        // The packet has been admitted already: the fast path looks at its size last.
        match way(context.decide, context.settings.ifindex, &piece, flow, true) {
            Way::Send { to, frame, choice } => ready.push((to, frame, choice, piece.ip.len())),
            // The tables change under our hands: the next hop is lost, or the MTU was lowered.
            Way::NextHop { choice } => return context.wait(Kind::TooBig, packet, flow, choice),
            Way::Local { choice } => return context.local(packet, choice),
            Way::TooBig { .. } => return Outcome::MtuTooSmall.into(),
            Way::None(verdict) => return Done::Refused(verdict),
        }
    }
    for (to, frame, choice, bytes) in ready {
        context.out.forward(to, frame, choice, bytes);
    }
    Outcome::Split.into()
}
