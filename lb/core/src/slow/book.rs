//! What the slow path knows beside the tables: which VIP addresses this node owns on the network, which can be reached, and what
//! their VIPs ask for. Made anew by the control side whenever something of it changes; never written in place.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use xdp_prog::{host::is_martian, verdict::Verdict};

use super::FlowKey;
use crate::{
    config::Protection,
    desired::{Desired, NextHop, NextHops, Protocol, TooBig, VipKey},
};

/// A VIP address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// This node answers for it on the network (ARP, neighbour discovery).
    pub owned: bool,
    /// Some VIP of it has a backend that takes flows and can be reached.
    pub healthy: bool,
}

/// What is known of VIP addresses and VIPs. About 100 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    addresses: BTreeMap<IpAddr, Address>,
    too_big: BTreeMap<VipKey, TooBig>,
    denied: Vec<IpNet>,
    drop_martians: bool,
    drop_source_is_vip: bool,
}

impl Book {
    /// From what is desired and how backends are reached. Addresses that this node uses itself (`own_addresses`) are its kernel's
    /// to answer for. `owned`: networks whose VIP addresses this node owns.
    pub fn new(desired: &Desired, hops: &NextHops, protection: Protection, owned: &[IpNet]) -> Self {
        let mut book = Self {
            denied: desired.denied_sources.clone(),
            drop_martians: protection.drop_martians,
            drop_source_is_vip: protection.drop_source_is_vip,
            ..Self::default()
        };
        for (key, vip) in &desired.vips {
            let reached = |id| matches!(hops.get(id), Some(NextHop::Via(_) | NextHop::Local));
            let healthy = vip
                .set
                .members
                .iter()
                .any(|member| member.weight > 0 && reached(&member.backend));
            let address = book.addresses.entry(key.address).or_insert_with(|| Address {
                owned: !desired.own_addresses.contains(&key.address)
                    && owned.iter().any(|network| network.contains(&key.address)),
                healthy: false,
            });
            address.healthy |= healthy;
            if vip.too_big != TooBig::default() {
                book.too_big.insert(*key, vip.too_big);
            }
        }
        book
    }

    /// What is known of a VIP address; `None` if it is none.
    pub fn address(&self, address: IpAddr) -> Option<Address> {
        self.addresses.get(&address).copied()
    }

    /// VIP addresses that this node owns, in order.
    pub fn owned(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses
            .iter()
            .filter(|(_, known)| known.owned)
            .map(|(address, _)| *address)
    }

    /// What to do with a flow's packets that do not fit.
    pub fn too_big(&self, flow: &FlowKey) -> TooBig {
        let protocol = match flow.protocol {
            6 => Protocol::Tcp,
            _ => Protocol::Udp,
        };
        let key = VipKey {
            address: flow.destination,
            protocol,
            port: flow.destination_port,
        };
        self.too_big.get(&key).copied().unwrap_or_default()
    }

    /// Why nothing from `source` to this VIP address is answered, whatever it is: the rules that the fast path has for all VIPs,
    /// for packets that no VIP claims.
    pub fn refuses(&self, source: IpAddr, destination: IpAddr) -> Option<Verdict> {
        if self.drop_martians && is_martian(source) {
            Some(Verdict::DropMartian)
        } else if self.drop_source_is_vip && source == destination {
            Some(Verdict::DropSourceIsVip)
        } else if self.denied.iter().any(|network| network.contains(&source)) {
            Some(Verdict::DropSourceDenied)
        } else {
            None
        }
    }
}
