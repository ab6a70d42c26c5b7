//! What nobody serves: resets and unreachables.

use super::engine::{Context, Done};
use super::{Outcome, Packet};

/// Whether a packet may be answered with an error or a reset at all (RFC 1122 3.2.2, RFC 4443 2.4).
pub(super) fn answerable(_packet: &Packet<'_>) -> Result<(), Outcome> {
    Ok(())
}

/// Nobody serves the port.
pub(super) fn port(_context: &mut Context<'_>, _packet: &Packet<'_>) -> Done {
    Outcome::Unanswerable.into()
}

/// Nobody serves the protocol.
pub(super) fn protocol(_context: &mut Context<'_>, _packet: &Packet<'_>) -> Done {
    Outcome::Unanswerable.into()
}

/// The backend cannot be reached.
pub(super) fn host(_context: &mut Context<'_>, _packet: &Packet<'_>) -> Done {
    Outcome::HoldTimeout.into()
}
