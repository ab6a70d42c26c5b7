//! rtnetlink messages as events of the resolver. Never decides anything; what concerns nobody gives `None`.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_core::nexthop::{
    Address, Event, Keeper, Link, Neighbour, NeighbourState, RouteAnswer, RouteRefusal, Snapshot, Vlan,
};
use nix::libc;

use super::wire::{
    Message, NDA_DST, NDA_FLAGS_EXT, NDA_LLADDR, NDA_PROTOCOL, NTF_EXT_MANAGED, OUR_PROTOCOL, address, attributes,
    u16_at, u32_at,
};

const AF_UNSPEC: u8 = libc::AF_UNSPEC as u8;
const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;
/// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`, `RTM_NEWNEXTHOPBUCKET` and on are not listened to.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
/// `RTM_F_CLONED`: an entry of a cache, not a route.
const RTM_F_CLONED: u32 = 0x200;

/// A notification as an event.
pub(super) fn event(message: Message<'_>) -> Option<Event> {
    let payload = message.payload;
    Some(match message.kind {
        libc::RTM_NEWLINK => Event::Link(link(payload)?),
        libc::RTM_DELLINK => Event::LinkGone(link(payload)?.ifindex),
        libc::RTM_NEWADDR => Event::Address(own_address(payload)?),
        libc::RTM_DELADDR => {
            let gone = own_address(payload)?;
            Event::AddressGone(gone.ifindex, gone.address)
        }
        libc::RTM_NEWNEIGH => Event::Neighbour(neighbour(payload)?),
        libc::RTM_DELNEIGH => {
            let gone = neighbour(payload)?;
            Event::NeighbourGone(gone.ifindex, gone.address)
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => Event::RoutesChanged(Some(prefix(payload)?)),
        libc::RTM_NEWRULE | libc::RTM_DELRULE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP => Event::RoutesChanged(None),
        _ => return None,
    })
}

/// Puts one message of a dump where it belongs.
pub(super) fn collect(message: Message<'_>, snapshot: &mut Snapshot) {
    match message.kind {
        libc::RTM_NEWLINK => snapshot.links.extend(link(message.payload)),
        libc::RTM_NEWADDR => snapshot.addresses.extend(own_address(message.payload)),
        libc::RTM_NEWNEIGH => snapshot.neighbours.extend(neighbour(message.payload)),
        _ => {}
    }
}

/// What RTM_GETROUTE answered: a route or an error.
pub(super) fn answer(message: Message<'_>) -> Option<RouteAnswer> {
    if let Some(errno) = errno(message) {
        return Some(RouteAnswer::Refused(match errno {
            libc::ENETUNREACH => RouteRefusal::NoRoute,
            libc::EHOSTUNREACH => RouteRefusal::Unreachable,
            libc::EINVAL => RouteRefusal::Blackhole,
            libc::EACCES => RouteRefusal::Prohibited,
            errno => RouteRefusal::Failed(errno),
        }));
    }
    (message.kind == libc::RTM_NEWROUTE)
        .then(|| route(message.payload))
        .flatten()
}

/// The errno of an `NLMSG_ERROR`, 0 in an acknowledgement; `None` for other messages.
pub(super) fn errno(message: Message<'_>) -> Option<i32> {
    const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
    (message.kind == NLMSG_ERROR).then(|| u32_at(message.payload, 0).map_or(0, |code| (code as i32).wrapping_neg()))
}

fn link(payload: &[u8]) -> Option<Link> {
    // Bridges tell of their ports in the same group: an RTM_DELLINK of that family only means "no port any more".
    if *payload.first()? != AF_UNSPEC {
        return None;
    }
    let ethernet = u16_at(payload, 2)? == libc::ARPHRD_ETHER;
    let flags = u32_at(payload, 8)?;
    let up = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
    let mut link = Link {
        ifindex: u32_at(payload, 4)?,
        name: "".into(),
        mac: None,
        mtu: 0,
        up: flags & up == up,
        vlan: None,
    };
    let (mut parent, mut parent_elsewhere, mut vlan) = (None, false, None);
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_ADDRESS if ethernet => link.mac = value.try_into().ok(),
            libc::IFLA_IFNAME => {
                link.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into();
            }
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_LINK => parent = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => parent_elsewhere = true,
            libc::IFLA_LINKINFO => vlan = vlan_of(value),
            _ => {}
        }
    }
    if let (Some(parent), false, Some((id, ad))) = (parent, parent_elsewhere, vlan) {
        link.vlan = Some(Vlan { parent, id, ad });
    }
    Some(link)
}

/// VLAN id, and whether it is 802.1ad, of a VLAN device's `IFLA_LINKINFO`.
fn vlan_of(info: &[u8]) -> Option<(u16, bool)> {
    const IFLA_VLAN_ID: u16 = 1;
    const IFLA_VLAN_PROTOCOL: u16 = 5;
    const ETH_P_8021AD_BE: [u8; 2] = [0x88, 0xa8];
    let find = |bytes, wanted| {
        attributes(bytes)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let kind: &[u8] = find(info, libc::IFLA_INFO_KIND)?;
    if kind.strip_suffix(&[0]).unwrap_or(kind) != b"vlan" {
        return None;
    }
    let data: &[u8] = find(info, libc::IFLA_INFO_DATA)?;
    let ad = find(data, IFLA_VLAN_PROTOCOL).is_some_and(|protocol| protocol == ETH_P_8021AD_BE);
    Some((u16_at(find(data, IFLA_VLAN_ID)?, 0)?, ad))
}

fn own_address(payload: &[u8]) -> Option<Address> {
    const UNUSABLE: u32 =
        libc::IFA_F_SECONDARY | libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED | libc::IFA_F_DEPRECATED;
    let mut flags = u32::from(*payload.get(2)?);
    let scope = *payload.get(3)?;
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(payload.get(8..)?) {
        match kind {
            libc::IFA_LOCAL => local = address(value),
            libc::IFA_ADDRESS => peer = address(value),
            libc::IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(Address {
        ifindex: u32_at(payload, 4)?,
        address: local.or(peer)?,
        usable: scope == libc::RT_SCOPE_UNIVERSE && flags & UNUSABLE == 0,
    })
}

fn neighbour(payload: &[u8]) -> Option<Neighbour> {
    // The same group carries the forwarding tables of bridges.
    if !matches!(*payload.first()?, AF_INET | AF_INET6) {
        return None;
    }
    let state = match u16_at(payload, 8)? {
        libc::NUD_NONE => NeighbourState::None,
        libc::NUD_INCOMPLETE => NeighbourState::Incomplete,
        libc::NUD_REACHABLE => NeighbourState::Reachable,
        libc::NUD_STALE => NeighbourState::Stale,
        libc::NUD_DELAY => NeighbourState::Delay,
        libc::NUD_PROBE => NeighbourState::Probe,
        libc::NUD_FAILED => NeighbourState::Failed,
        libc::NUD_NOARP => NeighbourState::Noarp,
        libc::NUD_PERMANENT => NeighbourState::Permanent,
        _ => return None,
    };
    let learned = *payload.get(10)? & libc::NTF_EXT_LEARNED != 0;
    let (mut destination, mut mac, mut protocol, mut managed) = (None, None, 0, false);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            NDA_DST => destination = address(value),
            NDA_LLADDR => mac = value.try_into().ok(),
            NDA_PROTOCOL => protocol = *value.first()?,
            NDA_FLAGS_EXT => managed = u32_at(value, 0)? & NTF_EXT_MANAGED != 0,
            _ => {}
        }
    }
    Some(Neighbour {
        ifindex: u32_at(payload, 4)?,
        address: destination?,
        state,
        mac,
        keeper: match (managed, learned) {
            // Learned but not managed and still ours: a kernel that does not know managed entries.
            (false, true) if protocol == OUR_PROTOCOL => Keeper::Nobody,
            (true, _) if protocol == OUR_PROTOCOL => Keeper::Us,
            (false, false) => Keeper::Nobody,
            (true, _) | (false, true) => Keeper::Other,
        },
    })
}

/// The destinations of a route.
fn prefix(payload: &[u8]) -> Option<IpNet> {
    let unspecified: IpAddr = match *payload.first()? {
        AF_INET => [0; 4].into(),
        AF_INET6 => [0; 16].into(),
        _ => return None,
    };
    if u32_at(payload, 8)? & RTM_F_CLONED != 0 {
        return None;
    }
    let destination = attributes(payload.get(12..)?).find(|(kind, _)| *kind == libc::RTA_DST);
    let destination = destination.map_or(Some(unspecified), |(_, value)| address(value))?;
    IpNet::new(destination, *payload.get(1)?).ok()
}

fn route(payload: &[u8]) -> Option<RouteAnswer> {
    match *payload.get(7)? {
        libc::RTN_LOCAL => return Some(RouteAnswer::Local),
        libc::RTN_UNICAST => {}
        libc::RTN_BLACKHOLE => return Some(RouteAnswer::Refused(RouteRefusal::Blackhole)),
        libc::RTN_UNREACHABLE => return Some(RouteAnswer::Refused(RouteRefusal::Unreachable)),
        libc::RTN_PROHIBIT => return Some(RouteAnswer::Refused(RouteRefusal::Prohibited)),
        _ => return Some(RouteAnswer::Refused(RouteRefusal::NotUnicast)),
    }
    let (mut ifindex, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_OIF => ifindex = u32_at(value, 0),
            libc::RTA_GATEWAY => gateway = address(value),
            // struct rtvia: the family, then an address that may be of another family than the route.
            libc::RTA_VIA => gateway = address(value.get(2..)?),
            libc::RTA_PREFSRC => source = address(value),
            libc::RTA_METRICS => {
                const RTAX_MTU: u16 = 2;
                let metric = attributes(value).find(|(kind, _)| *kind == RTAX_MTU);
                mtu = metric.and_then(|(_, value)| u32_at(value, 0)).filter(|mtu| *mtu != 0);
            }
            libc::RTA_ENCAP_TYPE => return Some(RouteAnswer::Refused(RouteRefusal::Encapsulated)),
            _ => {}
        }
    }
    Some(RouteAnswer::Unicast {
        ifindex: ifindex?,
        gateway,
        source,
        mtu,
    })
}
