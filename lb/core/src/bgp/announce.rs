//! From the addresses that are announced to the routes that a peer is told.
//!
//! Never decides which addresses those are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{Attributes, MAX_COMMUNITIES};

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

/// By what addresses are announced: names of Announcements, which peers say of what they are told by.
pub type Names = Arc<BTreeSet<Arc<str>>>;

/// What a peer is told of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announces {
    /// Of all of them, in the same way.
    All(Announce),
    /// Of those that are announced by one of these names.
    Named(BTreeMap<Arc<str>, Announce>),
}

impl Announces {
    /// The routes for these addresses.
    pub fn routes(&self, addresses: &BTreeMap<IpAddr, Names>, draining: bool) -> BTreeMap<IpNet, Arc<Attributes>> {
        // Addresses that are announced by the same names are told in the same way.
        let mut told: BTreeMap<&Names, Option<(Announce, Arc<Attributes>)>> = BTreeMap::new();
        let mut routes = BTreeMap::new();
        for (address, names) in addresses {
            let told = told.entry(names).or_insert_with(|| {
                let announce = self.of(names)?;
                let attributes = if draining {
                    announce.attributes.draining()
                } else {
                    announce.attributes.clone()
                };
                Some((announce, Arc::new(attributes)))
            });
            if let Some((announce, attributes)) = told {
                // Of two ways to tell of one network the first address's counts.
                routes
                    .entry(announce.network(*address))
                    .or_insert_with(|| Arc::clone(attributes));
            }
        }
        routes
    }

    /// How it is told of an address that is announced by these; `None`: not at all. Of several, communities count all, and of everything
    /// else that of the first by name.
    fn of(&self, names: &Names) -> Option<Announce> {
        let named = match self {
            Self::All(announce) => return Some(announce.clone()),
            Self::Named(named) => named,
        };
        let mut all = names.iter().filter_map(|name| named.get(name));
        let mut announce = all.next()?.clone();
        let attributes = &mut announce.attributes;
        for more in all {
            attributes.communities.extend(&more.attributes.communities);
            attributes.large_communities.extend(&more.attributes.large_communities);
        }
        while attributes.communities.len() > MAX_COMMUNITIES {
            attributes.communities.pop_last();
        }
        while attributes.large_communities.len() > MAX_COMMUNITIES {
            attributes.large_communities.pop_last();
        }
        Some(announce)
    }
}

impl Announce {
    fn network(&self, address: IpAddr) -> IpNet {
        let length = if address.is_ipv4() {
            self.length_v4
        } else {
            self.length_v6
        };
        // A length of the other family cannot be configured; the address itself is never wrong.
        IpNet::new(address, length).map_or(IpNet::from(address), |network| network.trunc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Names {
        Arc::new(names.iter().map(|name| Arc::from(*name)).collect())
    }

    fn addresses(texts: &[&str]) -> BTreeMap<IpAddr, Names> {
        texts.iter().map(|text| (text.parse().unwrap(), names(&[]))).collect()
    }

    fn networks(announce: &Announce, texts: &[&str]) -> Vec<String> {
        Announces::All(announce.clone())
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
        let routes = Announces::All(Announce::default()).routes(&addresses(&["192.0.2.1"]), true);
        let attributes = routes.values().next().unwrap();
        assert_eq!(attributes.local_pref, Some(0));
        assert!(attributes.communities.contains(&super::super::GRACEFUL_SHUTDOWN));
    }

    #[test]
    fn a_peer_is_told_of_what_is_announced_by_a_name_that_is_its_own() {
        let community = |text: &str| text.parse().unwrap();
        let announce = |med, texts: &[&str], length_v4| Announce {
            length_v4,
            attributes: Attributes {
                med: Some(med),
                communities: texts.iter().map(|text| community(text)).collect(),
                ..Attributes::default()
            },
            ..Announce::default()
        };
        let named = [
            ("core", announce(7, &["65000:1"], 32)),
            ("edge", announce(9, &["65000:2"], 24)),
        ];
        let announces = Announces::Named(named.map(|(name, announce)| (name.into(), announce)).into());
        let told: BTreeMap<IpAddr, Names> = [
            ("192.0.2.1", names(&["core"])),
            ("192.0.2.2", names(&["core", "edge"])),
            ("192.0.2.3", names(&["edge"])),
            ("192.0.2.4", names(&["another"])),
            ("192.0.2.5", names(&[])),
        ]
        .map(|(address, names)| (address.parse().unwrap(), names))
        .into();
        let routes = announces.routes(&told, false);
        let said: Vec<String> = routes
            .iter()
            .map(|(network, attributes)| {
                let communities: Vec<String> = attributes.communities.iter().map(ToString::to_string).collect();
                format!("{network} {} {}", attributes.med.unwrap(), communities.join(" "))
            })
            .collect();
        assert_eq!(
            said,
            [
                "192.0.2.0/24 9 65000:2",
                "192.0.2.1/32 7 65000:1",
                "192.0.2.2/32 7 65000:1 65000:2"
            ]
        );
        assert!(Announces::Named(BTreeMap::new()).routes(&told, false).is_empty());
    }
}
