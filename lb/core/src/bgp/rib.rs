//! Adj-RIB-Out: what a peer was told, and the messages from there to what it should know.
//!
//! Never tells the same twice, and never announces before it has withdrawn: who counts prefixes sees no more than there are.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Attributes,
    message::{Routes, Terms},
};

/// Routes and what goes with them.
pub(super) type Table = BTreeMap<IpNet, Arc<Attributes>>;

/// What a peer was told on this session.
#[derive(Debug, Default)]
pub(super) struct Rib {
    told: Table,
}

/// Routes of both families, those of each in their order.
#[derive(Debug, Default)]
struct Both {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl Both {
    fn push(&mut self, route: IpNet) {
        match route {
            IpNet::V4(route) => self.v4.push(route),
            IpNet::V6(route) => self.v6.push(route),
        }
    }
}

impl Rib {
    /// Routes that the peer knows from us.
    pub(super) fn len(&self) -> usize {
        self.told.len()
    }

    /// The UPDATEs after which the peer knows what is desired, less what cannot be announced on these terms.
    pub(super) fn reach(&mut self, desired: &Table, terms: &Terms) -> Vec<Vec<u8>> {
        let wanted: Table = desired
            .iter()
            .filter(|(route, _)| can_announce(terms, route))
            .map(|(route, attributes)| (*route, Arc::clone(attributes)))
            .collect();
        let mut gone = Both::default();
        for route in self.told.keys().filter(|route| !wanted.contains_key(route)) {
            gone.push(*route);
        }
        let mut fresh: BTreeMap<&Attributes, Both> = BTreeMap::new();
        for (route, attributes) in &wanted {
            if self.told.get(route) != Some(attributes) {
                fresh.entry(attributes).or_default().push(*route);
            }
        }
        let mut messages = Vec::new();
        pack_v4(&gone.v4, Terms::WITHDRAW_ROOM, |routes| {
            messages.push(terms.withdrawal(Routes::V4(routes)))
        });
        pack_v6(&gone.v6, Terms::WITHDRAW_ROOM, |routes| {
            messages.push(terms.withdrawal(Routes::V6(routes)))
        });
        for (attributes, routes) in fresh {
            let room = terms.room(attributes);
            pack_v4(&routes.v4, room, |routes| {
                messages.push(terms.announcement(attributes, Routes::V4(routes)))
            });
            pack_v6(&routes.v6, room, |routes| {
                messages.push(terms.announcement(attributes, Routes::V6(routes)))
            });
        }
        self.told = wanted;
        messages
    }

    /// Forgets that the peer was told of a family's routes: it asks for them again.
    pub(super) fn forget(&mut self, is_v4: bool) {
        self.told.retain(|route, _| matches!(route, IpNet::V4(_)) != is_v4);
    }
}

/// Whether there is a next hop for it.
pub(super) fn can_announce(terms: &Terms, route: &IpNet) -> bool {
    match route {
        IpNet::V4(_) => terms.v4.is_some(),
        IpNet::V6(_) => terms.v6.is_some(),
    }
}

fn pack_v4(routes: &[Ipv4Net], room: usize, message: impl FnMut(&[Ipv4Net])) {
    pack(routes, room, |route| bytes(route.prefix_len()), message);
}

fn pack_v6(routes: &[Ipv6Net], room: usize, message: impl FnMut(&[Ipv6Net])) {
    pack(routes, room, |route| bytes(route.prefix_len()), message);
}

/// Bytes of a network in a message.
fn bytes(prefix_length: u8) -> usize {
    1 + usize::from(prefix_length.div_ceil(8))
}

/// Cuts a list into parts that fit.
fn pack<T>(routes: &[T], room: usize, bytes: impl Fn(&T) -> usize, mut message: impl FnMut(&[T])) {
    let (mut start, mut used) = (0, 0);
    for (index, route) in routes.iter().enumerate() {
        let bytes = bytes(route);
        if used + bytes > room && index > start {
            message(routes.get(start..index).unwrap_or_default());
            (start, used) = (index, 0);
        }
        used += bytes;
    }
    let rest = routes.get(start..).unwrap_or_default();
    if !rest.is_empty() {
        message(rest);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{
        super::{Community, LargeCommunity, MAX_COMMUNITIES, MAX_PREPEND, message::MAX_MESSAGE_BYTES},
        *,
    };

    const TERMS: Terms = Terms {
        local_asn: 65000,
        is_ebgp: true,
        asn4: true,
        v4: Some(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
        v6: Some(std::net::Ipv6Addr::LOCALHOST),
    };

    fn table(count: u32, attributes: &Attributes) -> Table {
        let attributes = Arc::new(attributes.clone());
        let v4 = (0..count).map(|n| IpNet::from(std::net::IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))));
        let v6 = (0..count).map(|n| {
            IpNet::from(std::net::IpAddr::V6(std::net::Ipv6Addr::from(
                u128::from(n) + (0x2001 << 112),
            )))
        });
        v4.chain(v6).map(|route| (route, Arc::clone(&attributes))).collect()
    }

    #[test]
    fn ten_thousand_vips_of_both_families_are_some_fifty_messages() {
        let mut rib = Rib::default();
        let messages = rib.reach(&table(10_000, &Attributes::default()), &TERMS);
        assert_eq!(messages.len(), 13 + 43);
        assert!(messages.iter().all(|message| message.len() <= MAX_MESSAGE_BYTES));
        assert_eq!(rib.len(), 20_000);
        let messages = rib.reach(&Table::new(), &TERMS);
        assert_eq!(messages.len(), 13 + 42);
        assert!(messages.iter().all(|message| message.len() <= MAX_MESSAGE_BYTES));
    }

    #[test]
    fn the_most_attributes_there_can_be_leave_room_for_routes() {
        let attributes = Attributes {
            med: Some(1),
            prepend: MAX_PREPEND,
            communities: (0..).map(Community).take(MAX_COMMUNITIES).collect(),
            large_communities: (0..).map(|n| LargeCommunity([n, 0, 0])).take(MAX_COMMUNITIES).collect(),
            ..Attributes::default()
        };
        let messages = Rib::default().reach(&table(1000, &attributes), &TERMS);
        assert!(messages.len() < 12);
        assert!(messages.iter().all(|message| message.len() <= MAX_MESSAGE_BYTES));
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut rib = Rib::default();
        let mut desired = table(2, &Attributes::default());
        assert_eq!(rib.reach(&desired, &TERMS).len(), 2);
        assert!(rib.reach(&desired, &TERMS).is_empty());
        let other = Arc::new(Attributes {
            med: Some(1),
            ..Attributes::default()
        });
        let first = *desired.keys().next().unwrap();
        desired.insert(first, other);
        assert_eq!(rib.reach(&desired, &TERMS).len(), 1);
        rib.forget(true);
        assert_eq!(rib.reach(&desired, &TERMS).len(), 2);
    }

    #[test]
    fn without_a_next_hop_a_family_is_not_announced() {
        let mut rib = Rib::default();
        let terms = Terms { v6: None, ..TERMS };
        assert_eq!(rib.reach(&table(3, &Attributes::default()), &terms).len(), 1);
        assert_eq!(rib.len(), 3);
    }
}
