//! Packets that do not fit once encapsulated.

use super::engine::{Context, Done};
use super::{FlowKey, Outcome, Packet};

/// Tells the client, or sends the packet in pieces; `mtu` is the largest IP packet that fits.
pub(super) fn too_big(_context: &mut Context<'_>, _packet: &Packet<'_>, _flow: &FlowKey, _mtu: usize) -> Done {
    Outcome::MtuTooSmall.into()
}
