//! What the driver tells the resolver, and what the resolver asks of it. Never interprets anything.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::NextHopView;

/// Something the kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Everything there is: at the start, after lost messages, and now and then.
    Snapshot(Snapshot),
    /// An interface is new or changed.
    Link(Link),
    /// An interface, by index, is gone.
    LinkGone(u32),
    /// An address is new or changed.
    Address(Address),
    /// An address is gone from the interface with this index.
    AddressGone(u32, IpAddr),
    /// Routes to addresses in this prefix changed; `None`: any (policy rules, next-hop objects).
    RoutesChanged(Option<IpNet>),
    /// The answer to [`Command::LookUpRoute`]. Every one must be answered.
    Route {
        /// As asked.
        destination: IpAddr,
        /// What the kernel said.
        answer: RouteAnswer,
    },
    /// A neighbour entry is new or changed.
    Neighbour(Neighbour),
    /// A neighbour entry is gone from the interface with this index.
    NeighbourGone(u32, IpAddr),
}

/// The kernel's tables, read in whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All IPv4 and IPv6 neighbour entries.
    pub neighbours: Vec<Neighbour>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: Arc<str>,
    /// Its MAC address; `None` where it is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// It is set up and has a carrier (`IFF_UP` and `IFF_RUNNING`).
    pub up: bool,
    /// Set on a VLAN device.
    pub vlan: Option<Vlan>,
}

/// What makes an interface a VLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface below it.
    pub parent: u32,
    /// VLAN id, 1 to 4,094.
    pub id: u16,
    /// 802.1ad (0x88a8), else 802.1Q (0x8100).
    pub ad: bool,
}

/// An address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface it is on.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Packets may have it as their source: global scope, not secondary, not tentative, not deprecated.
    pub usable: bool,
}

/// What the kernel's FIB says about a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteAnswer {
    /// The destination is this node (`RTN_LOCAL`).
    Local,
    /// Packets go out.
    Unicast {
        /// Egress interface.
        ifindex: u32,
        /// Where they go, if not to the destination itself; may be of the other family (RFC 5549).
        gateway: Option<IpAddr>,
        /// Source address that the kernel prefers.
        source: Option<IpAddr>,
        /// MTU of the route or of the path so far as it was learned, in bytes.
        mtu: Option<u32>,
    },
    /// They do not.
    Refused(RouteRefusal),
}

/// Why packets to a destination have no way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteRefusal {
    /// ENETUNREACH.
    #[error("no route")]
    NoRoute,
    /// A route of type `unreachable`.
    #[error("route is unreachable")]
    Unreachable,
    /// A route of type `blackhole`.
    #[error("route is a blackhole")]
    Blackhole,
    /// A route of type `prohibit`.
    #[error("route is prohibited")]
    Prohibited,
    /// Broadcast, multicast or anycast.
    #[error("not a unicast address")]
    NotUnicast,
    /// The route encapsulates (`encap` of ip-route(8)), which would happen after our own encapsulation, and never does.
    #[error("route has an encapsulation of its own")]
    Encapsulated,
    /// RTM_GETROUTE failed with another errno; 0: without an answer.
    #[error("route lookup failed (errno {0})")]
    Failed(i32),
}

/// A neighbour entry, ARP or NDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface it is on.
    pub ifindex: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// State.
    pub state: NeighbourState,
    /// Its MAC address, if the kernel has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Who keeps it.
    pub keeper: Keeper,
}

/// `NUD_*` of linux/neighbour.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Just made.
    None,
    /// Being resolved for the first time.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Confirmed once.
    Stale,
    /// In use, waiting for a confirmation by other means.
    Delay,
    /// Being re-confirmed.
    Probe,
    /// Did not answer.
    Failed,
    /// Needs no resolution.
    Noarp,
    /// Configured by hand.
    Permanent,
}

impl NeighbourState {
    /// The entry's MAC address is good to use (`NUD_VALID`).
    pub const fn is_valid(self) -> bool {
        match self {
            Self::Reachable | Self::Stale | Self::Delay | Self::Probe | Self::Noarp | Self::Permanent => true,
            Self::None | Self::Incomplete | Self::Failed => false,
        }
    }
}

/// Who keeps a neighbour entry fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// Nobody: the kernel lets it go stale and collects it.
    Nobody,
    /// We made it managed, in this process or an earlier one.
    Us,
    /// Another program manages it or learned it by other means (`NTF_EXT_MANAGED`, `NTF_EXT_LEARNED`): hands off.
    Other,
}

/// What the driver is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// RTM_GETROUTE; answer with [`Event::Route`].
    LookUpRoute {
        /// Where to.
        destination: IpAddr,
        /// Source address to look up with, so that rules on sources are honoured; an address of this node.
        source: Option<IpAddr>,
    },
    /// Make the kernel resolve this neighbour if it is not resolved, and keep it fresh from now on.
    Keep {
        /// Interface it is on.
        ifindex: u32,
        /// Its IP address.
        address: IpAddr,
        /// There was no entry when this was decided: one that is there by now must stay as it is, it may be permanent.
        create: bool,
    },
    /// Stop keeping this neighbour fresh; the kernel may let it age.
    Release {
        /// Interface it is on.
        ifindex: u32,
        /// Its IP address.
        address: IpAddr,
    },
    /// The view changed.
    Changed(NextHopView),
}
