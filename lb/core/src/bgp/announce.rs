//! From the addresses that are announced to the routes that a peer is told.
//!
//! Never decides which addresses those are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::Attributes;

/// How a peer is told of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// Prefix length of an IPv4 route: the addresses in one network are one route, which stays while one of them does.
    pub length_v4: u8,
    /// As [`Self::length_v4`], of IPv6.
    pub length_v6: u8,
    /// What goes with every route.
    pub attributes: Attributes,
}

impl Default for Announce {
    /// A route for each address, nothing with it.
    fn default() -> Self {
        Self {
            length_v4: 32,
            length_v6: 128,
            attributes: Attributes::default(),
        }
    }
}

impl Announce {
    /// The routes for these addresses.
    pub fn routes(&self, addresses: &BTreeSet<IpAddr>, draining: bool) -> BTreeMap<IpNet, Arc<Attributes>> {
        let attributes = if draining {
            self.attributes.draining()
        } else {
            self.attributes.clone()
        };
        let attributes = Arc::new(attributes);
        let network = |address: &IpAddr| {
            let length = if address.is_ipv4() {
                self.length_v4
            } else {
                self.length_v6
            };
            // A length of the other family cannot be configured; the address itself is never wrong.
            IpNet::new(*address, length).map_or(IpNet::from(*address), |network| network.trunc())
        };
        addresses
            .iter()
            .map(|address| (network(address), Arc::clone(&attributes)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn networks(announce: &Announce, texts: &[&str]) -> Vec<String> {
        announce
            .routes(&addresses(texts), false)
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn every_address_is_a_route_by_default() {
        let routes = networks(&Announce::default(), &["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!(routes, ["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"]);
    }

    #[test]
    fn addresses_of_one_network_are_one_route() {
        let announce = Announce {
            length_v4: 24,
            length_v6: 64,
            ..Announce::default()
        };
        let texts = ["192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1", "2001:db8::2"];
        assert_eq!(
            networks(&announce, &texts),
            ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/64"]
        );
    }

    #[test]
    fn a_draining_node_is_the_last_way() {
        let routes = Announce::default().routes(&addresses(&["192.0.2.1"]), true);
        let attributes = routes.values().next().unwrap();
        assert_eq!(attributes.local_pref, Some(0));
        assert!(attributes.communities.contains(&super::super::GRACEFUL_SHUTDOWN));
    }
}
