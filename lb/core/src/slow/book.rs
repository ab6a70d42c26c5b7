//! What the slow path knows beside the tables: which VIP addresses this node owns on the network, which can be reached, and what
//! their VIPs ask for. Made anew by the control side whenever something of it changes; never written in place.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use xdp_prog::{host::is_martian, verdict::Verdict};

use super::FlowKey;
use crate::{
    config::Protection,
    desired::{BackendSet, Desired, Member, NextHop, NextHops, Protocol, TooBig, VipKey},
    health::{Checks, Health, Overlay},
    ranges::RangeSet,
};

/// A VIP address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// This node answers for it on the network (ARP, neighbour discovery).
    pub owned: bool,
    /// Some VIP of it has a backend that takes new flows, by its weight and its health, and can be reached.
    pub healthy: bool,
}

/// What is known of VIP addresses and VIPs. About 100 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    addresses: BTreeMap<IpAddr, Address>,
    too_big: BTreeMap<VipKey, TooBig>,
    denied: RangeSet,
    drop_martians: bool,
    drop_source_is_vip: bool,
}

impl Book {
    /// From what is desired, how backends are reached and which of them are healthy. Addresses that this node uses itself (`own_addresses`) are its kernel's
    /// to answer for. `owned`: networks whose VIP addresses this node owns.
    pub fn new(desired: &Desired, hops: &NextHops, overlay: &Overlay, protection: Protection, owned: &[IpNet]) -> Self {
        let mut book = Self {
            denied: RangeSet::from_cidrs(&desired.denied_sources),
            drop_martians: protection.drop_martians,
            drop_source_is_vip: protection.drop_source_is_vip,
            ..Self::default()
        };
        let reached = |member: &Member| {
            member.weight > 0 && matches!(hops.get(&member.backend), Some(NextHop::Via(_) | NextHop::Local))
        };
        // VIPs that share a set and ask the same of it share the answer, and VIPs of one address stand side by side.
        let mut sets: BTreeMap<(*const BackendSet, Option<&Checks>), bool> = BTreeMap::new();
        let mut addresses: Vec<(IpAddr, Address)> = Vec::new();
        for (key, vip) in &desired.vips {
            let checks = vip.checks.as_deref();
            let healthy = *sets.entry((Arc::as_ptr(&vip.set), checks)).or_insert_with(|| {
                let unfit = overlay.unfit(&vip.set, checks);
                let takes = |member: &&Member| {
                    let health = unfit.as_ref().map(|unfit| unfit.health(&member.backend));
                    health.unwrap_or_default() == Health::Eligible
                };
                vip.set.members.iter().filter(takes).any(reached)
            });
            match addresses.last_mut() {
                Some((address, known)) if *address == key.address => known.healthy |= healthy,
                Some(_) | None => {
                    let owned = owned.iter().any(|network| network.contains(&key.address))
                        && !desired.own_addresses.contains(&key.address);
                    addresses.push((key.address, Address { owned, healthy }));
                }
            }
            if vip.too_big != TooBig::default() {
                book.too_big.insert(*key, vip.too_big);
            }
        }
        book.addresses = addresses.into_iter().collect();
        book
    }

    /// What is known of a VIP address; `None` if it is none.
    pub fn address(&self, address: IpAddr) -> Option<Address> {
        self.addresses.get(&address).copied()
    }

    /// All VIP addresses, in order.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, Address)> + '_ {
        self.addresses.iter().map(|(address, known)| (*address, *known))
    }

    /// The same, where of the addresses that this node may own it owns only those for which `owns` holds: others of its group have the
    /// rest, or hosts that have no business there.
    #[must_use]
    pub fn owning(mut self, owns: impl Fn(IpAddr) -> bool) -> Self {
        for (address, known) in &mut self.addresses {
            known.owned = known.owned && owns(*address);
        }
        self
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
        } else if self.denied.contains(source) {
            Some(Verdict::DropSourceDenied)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::Arc,
    };

    use xdp_prog::verdict::Verdict;

    use super::{Address, Book, FlowKey};
    use crate::{
        config::Protection,
        desired::{BackendId, BackendSet, Desired, Member, NextHop, NextHops, Protocol, TooBig, Vip, VipKey},
        health::{Check, Checks, Health, Overlay, WhenNone},
    };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn id(name: &str) -> BackendId {
        BackendId(Arc::from(name))
    }

    fn key(vip_address: &str, port: u16) -> VipKey {
        VipKey {
            address: address(vip_address),
            protocol: Protocol::Tcp,
            port,
        }
    }

    fn vip(members: &[(&str, u16)]) -> Vip {
        let members = members.iter().map(|(name, weight)| Member {
            backend: id(name),
            weight: *weight,
        });
        Vip::new(Arc::new(BackendSet {
            members: members.collect(),
            table_slots: None,
        }))
    }

    fn desired(vips: impl IntoIterator<Item = (VipKey, Vip)>) -> Desired {
        Desired {
            vips: vips.into_iter().collect(),
            ..Desired::default()
        }
    }

    fn hops(local: &[&str], unresolved: &[&str]) -> NextHops {
        let local = local.iter().map(|name| (id(name), NextHop::Local));
        local
            .chain(unresolved.iter().map(|name| (id(name), NextHop::Unresolved)))
            .collect()
    }

    #[test]
    fn addresses_in_owned_networks_are_owned_but_for_those_that_the_node_uses_itself() {
        let names = ["203.0.113.1", "203.0.113.2", "198.51.100.1", "2001:db8:f::1"];
        let mut desired = desired(names.map(|name| (key(name, 80), vip(&[]))));
        desired.own_addresses.insert(address("203.0.113.2"));
        let networks = ["203.0.113.0/24", "2001:db8:f::/64"].map(|network| network.parse().unwrap());
        let book = Book::new(
            &desired,
            &NextHops::new(),
            &Overlay::default(),
            Protection::default(),
            &networks,
        );
        let owned: Vec<_> = book.owned().collect();
        assert_eq!(owned, [address("203.0.113.1"), address("2001:db8:f::1")]);
        assert_eq!(book.address(address("198.51.100.1")), Some(Address::default()));
        assert_eq!(
            book.address(address("203.0.113.3")),
            None,
            "in a network, but no VIP address"
        );
    }

    #[test]
    fn an_address_is_healthy_while_some_vip_of_it_has_a_backend_with_weight_that_can_be_reached() {
        let cases: [(&[_], bool); 6] = [
            (&[("up", 1)], true),
            (&[("down", 1), ("up", 1)], true),
            (&[("up", 0)], false),
            (&[("down", 1)], false),
            (&[("unheard_of", 1)], false),
            (&[], false),
        ];
        for (members, healthy) in cases {
            let desired = desired([
                (key("203.0.113.1", 80), vip(&[])),
                (key("203.0.113.1", 443), vip(members)),
            ]);
            let book = book(&desired, &Overlay::default());
            assert_eq!(
                book.address(address("203.0.113.1")).unwrap().healthy,
                healthy,
                "{members:?}"
            );
        }
    }

    #[test]
    fn an_address_is_healthy_by_who_is_left_of_its_backends() {
        let asked = Arc::new(checks());
        let of = |members: &[(&str, u16)], fallen: &[&str], checks: Option<&Arc<Checks>>| {
            let vip = Vip {
                checks: checks.cloned(),
                ..vip(members)
            };
            let fallen: Vec<BackendId> = fallen.iter().map(|name| id(name)).collect();
            let check = &asked.list[0];
            let overlay = Overlay::of(fallen.iter().map(|backend| (backend, check, Health::Unhealthy)));
            let book = book(&desired([(key("203.0.113.1", 80), vip)]), &overlay);
            book.address(address("203.0.113.1")).unwrap().healthy
        };
        let two = [("down", 1), ("up", 1)];
        assert!(of(&two, &["down"], Some(&asked)));
        assert!(!of(&two, &["up"], Some(&asked)), "who is left cannot be reached");
        assert!(of(&two, &["up"], None), "nobody asks");
        assert!(!of(&[("up", 1)], &["up"], Some(&asked)));
        let all = Arc::new(Checks {
            when_none: WhenNone::UseAll,
            ..(*asked).clone()
        });
        assert!(of(&[("up", 1)], &["up"], Some(&all)), "it is used all the same");
    }

    fn checks() -> Checks {
        Checks::new([Check::kube(1)])
    }

    fn book(desired: &Desired, overlay: &Overlay) -> Book {
        Book::new(desired, &hops(&["up"], &["down"]), overlay, Protection::default(), &[])
    }

    #[test]
    fn sources_are_refused_by_the_rules_that_are_on() {
        let mut desired = desired([]);
        desired.denied_sources.push("198.51.100.0/24".parse().unwrap());
        let vip = address("203.0.113.1");
        let refused = |protection, source: &str| {
            Book::new(&desired, &NextHops::new(), &Overlay::default(), protection, &[]).refuses(address(source), vip)
        };
        let [on, off] = [true, false].map(|on| Protection {
            drop_martians: on,
            drop_source_is_vip: on,
        });
        assert_eq!(refused(on, "127.0.0.1"), Some(Verdict::DropMartian));
        assert_eq!(refused(on, "203.0.113.1"), Some(Verdict::DropSourceIsVip));
        for protection in [on, off] {
            assert_eq!(refused(protection, "198.51.100.9"), Some(Verdict::DropSourceDenied));
            assert_eq!(refused(protection, "192.0.2.1"), None);
        }
        assert_eq!(refused(off, "127.0.0.1"), None);
        assert_eq!(refused(off, "203.0.113.1"), None);
    }

    #[test]
    fn what_does_not_fit_is_dealt_with_as_its_vip_says() {
        let answers = Vip {
            too_big: TooBig::Answer,
            ..vip(&[])
        };
        let book = Book::new(
            &desired([(key("203.0.113.1", 80), answers), (key("203.0.113.1", 81), vip(&[]))]),
            &NextHops::new(),
            &Overlay::default(),
            Protection::default(),
            &[],
        );
        let of = |protocol, destination_port| {
            book.too_big(&FlowKey {
                source: Ipv4Addr::new(192, 0, 2, 1).into(),
                destination: address("203.0.113.1"),
                protocol,
                source_port: 1234,
                destination_port,
            })
        };
        assert_eq!(of(6, 80), TooBig::Answer);
        assert_eq!([of(17, 80), of(6, 81), of(6, 82)], [TooBig::Fragment; 3]);
    }
}
