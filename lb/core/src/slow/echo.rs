//! Echo requests to a VIP address (RFC 792, RFC 4443 4.1).

use super::engine::{Context, Done};
use super::{Outcome, Packet};

/// Answers an echo request.
pub(super) fn answer(_context: &mut Context<'_>, _packet: &Packet<'_>) -> Done {
    Outcome::IcmpIgnored.into()
}

/// Turns round one fragment of an echo request.
pub(super) fn answer_fragment(_context: &mut Context<'_>, _packet: &Packet<'_>) -> Done {
    Outcome::IcmpIgnored.into()
}
