//! Addresses and networks as configuration writes them.
//!
//! Never resolves a name. Addresses are unicast ones that routers forward; networks are written exactly.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    problem::Problem,
    read::At,
    words::{NotUnicast, Quoted},
};
use crate::ranges::RangeSet;

/// An ordinary unicast address, of a VIP, a backend or an outer source.
pub(super) fn unicast(at: &At<'_>) -> Option<IpAddr> {
    let text = at.text()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let hint = if text.parse::<IpNet>().is_ok() {
            Some("; remove the prefix length")
        } else if text.parse::<std::net::SocketAddr>().is_ok() {
            Some("; the port has a key of its own")
        } else if text.contains('%') {
            Some("; zones (`%eth0`) go with link-local addresses, which are not routable")
        } else {
            None
        };
        return at.fail(Problem::NotAnAddress {
            value: Quoted::new(text),
            hint,
        });
    };
    match not_unicast(address) {
        Some(why) => at.fail(Problem::NotUnicast { address, why }),
        None => Some(address),
    }
}

/// A unicast IPv4 address.
pub(super) fn unicast_v4(at: &At<'_>) -> Option<Ipv4Addr> {
    match unicast(at)? {
        IpAddr::V4(address) => Some(address),
        address @ IpAddr::V6(_) => at.fail(Problem::WrongFamily {
            address,
            family: "IPv4",
        }),
    }
}

/// A unicast IPv6 address.
pub(super) fn unicast_v6(at: &At<'_>) -> Option<Ipv6Addr> {
    match unicast(at)? {
        IpAddr::V6(address) => Some(address),
        address @ IpAddr::V4(_) => at.fail(Problem::WrongFamily {
            address,
            family: "IPv6",
        }),
    }
}

/// Why an address is not an ordinary unicast one; `None` if it is.
pub fn not_unicast(address: IpAddr) -> Option<NotUnicast> {
    let mapped = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    let (broadcast, link_local, this_network) = match address {
        IpAddr::V4(v4) => (v4.is_broadcast(), v4.is_link_local(), v4.octets().first() == Some(&0)),
        IpAddr::V6(v6) => (false, v6.is_unicast_link_local(), false),
    };
    [
        (mapped, NotUnicast::V4Mapped),
        (address.is_unspecified() || this_network, NotUnicast::Unspecified),
        (address.is_loopback(), NotUnicast::Loopback),
        (address.is_multicast(), NotUnicast::Multicast),
        (broadcast, NotUnicast::Broadcast),
        (link_local, NotUnicast::LinkLocal),
    ]
    .into_iter()
    .find_map(|(is, why)| is.then_some(why))
}

/// A network without host bits; an address alone is a network of one.
pub(super) fn network(at: &At<'_>) -> Option<IpNet> {
    let text = at.text()?;
    let Ok(network) = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
    else {
        return at.fail(Problem::NotANetwork {
            value: Quoted::new(text),
        });
    };
    if network != network.trunc() {
        return at.fail(Problem::HostBits { network });
    }
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some() => {
            at.fail(Problem::MappedNetwork { network })
        }
        IpNet::V4(_) | IpNet::V6(_) => Some(network),
    }
}

/// An IPv4 network with its length written.
pub(super) fn network_v4(at: &At<'_>) -> Option<Ipv4Net> {
    let text = at.text()?;
    if !text.contains('/') {
        return at.fail(Problem::NotANetwork {
            value: Quoted::new(text),
        });
    }
    match network(at)? {
        IpNet::V4(network) => Some(network),
        IpNet::V6(network) => at.fail(Problem::WrongFamily {
            address: network.addr().into(),
            family: "IPv4",
        }),
    }
}

/// An IPv6 network with its length written.
pub(super) fn network_v6(at: &At<'_>) -> Option<Ipv6Net> {
    let text = at.text()?;
    if !text.contains('/') {
        return at.fail(Problem::NotANetwork {
            value: Quoted::new(text),
        });
    }
    match network(at)? {
        IpNet::V6(network) => Some(network),
        IpNet::V4(network) => at.fail(Problem::WrongFamily {
            address: network.addr().into(),
            family: "IPv6",
        }),
    }
}

/// A list of networks, sorted and without duplicates, that fits one set of the program.
pub(super) fn networks(at: &At<'_>) -> Option<Vec<IpNet>> {
    let items = at.list()?;
    let read: Vec<Option<IpNet>> = items.iter().map(network).collect();
    let mut networks = read.into_iter().collect::<Option<Vec<_>>>()?;
    networks.sort_unstable();
    networks.dedup();
    let ranges = RangeSet::from_cidrs(&networks);
    if ranges.fits() {
        Some(networks)
    } else {
        at.fail(Problem::TooManyRanges { ranges: ranges.len() })
    }
}

/// A list of networks none of which is a whole family: where everything would mean nothing is checked. `instead` goes on where
/// "list the networks you mean" ends.
pub(super) fn networks_but_not_all(at: &At<'_>, instead: &'static str) -> Option<Vec<IpNet>> {
    let networks = networks(at)?;
    match networks.iter().find(|network| network.prefix_len() == 0) {
        Some(&network) => at.fail(Problem::EveryAddress { network, instead }),
        None => Some(networks),
    }
}
