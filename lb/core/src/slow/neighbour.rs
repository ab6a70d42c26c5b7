//! Who has a VIP address: ARP (RFC 826) and neighbour discovery (RFC 4861), asked and announced.

use super::Outcome;
use super::engine::{Context, Done};

/// Answers a question for a VIP address that this node owns.
pub(super) fn answer(_context: &mut Context<'_>, _frame: &[u8]) -> Done {
    Outcome::NotOwner.into()
}

/// The frames that announce an address.
pub fn announcement(_address: std::net::IpAddr, _mac: [u8; 6]) -> Vec<Vec<u8>> {
    Vec::new()
}
