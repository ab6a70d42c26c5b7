//! ICMP errors about flows of a VIP, steered to the backend of the flow that they quote.

use super::engine::{Context, Done};
use super::{Outcome, Packet};

/// Whether an ICMP packet is an error (RFC 792, RFC 4443 2.1).
pub(super) fn is_error(_packet: &Packet<'_>) -> bool {
    false
}

/// Sends an ICMP error to the backend of the flow that it is about.
pub(super) fn steer(_context: &mut Context<'_>, _packet: &Packet<'_>) -> Done {
    Outcome::QuoteUnknown.into()
}
