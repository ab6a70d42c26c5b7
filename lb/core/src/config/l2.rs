//! Which VIP addresses this node answers for on its own segments.
//!
//! Never makes an address of a network answered that is no VIP address.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{address, read::At};

/// `l2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Config {
    /// Networks whose VIP addresses this node owns: it answers ARP and neighbour discovery for them. Sorted; empty: VIPs are routed.
    pub owned: Vec<IpNet>,
    /// Whether it asks for an address before it answers for it, and leaves it alone where somebody else has it.
    pub probe: bool,
}

impl Default for L2Config {
    /// Nothing is owned; what would be is asked for.
    fn default() -> Self {
        Self {
            owned: Vec::new(),
            probe: true,
        }
    }
}

impl L2Config {
    /// Whether this node answers for an address, given that it is a VIP address.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.owned.iter().any(|network| network.contains(&address))
    }
}

/// `l2`.
pub(super) fn l2(at: &At<'_>) -> Option<L2Config> {
    at.fields(|fields| {
        Some(L2Config {
            owned: fields.or("owned", Vec::new(), |at| address::networks(&at))?,
            probe: fields.or("probe", true, |at| at.bool())?,
        })
    })
}
