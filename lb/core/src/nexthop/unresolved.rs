//! Why a backend has no next hop. Never holds text that is not a name or a number.

use std::{net::IpAddr, sync::Arc};

use super::RouteRefusal;

/// Why a backend has no next hop: `vipline backends` shows the text, counters take [`Unresolved::label`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The kernel has not been asked yet.
    #[error("route not looked up yet")]
    NotLookedUp,
    /// The kernel has no way there.
    #[error("{0}")]
    Route(RouteRefusal),
    /// The route leads out of an interface that is gone, or is news to us.
    #[error("egress interface with index {0} is unknown")]
    EgressUnknown(u32),
    /// The route leads out of an interface that is not ours to use.
    #[error("egress interface {0} is not in interfaces")]
    EgressNotConfigured(Arc<str>),
    /// The egress interface, or the one below it, is down or has no carrier.
    #[error("egress interface {0} is down")]
    EgressDown(Arc<str>),
    /// The egress interface has no MAC address.
    #[error("egress interface {0} is not Ethernet")]
    EgressNotEthernet(Arc<str>),
    /// VLAN devices that a backend line cannot express: more than two, or 802.1ad on the inside or alone.
    #[error("egress interface {0} adds VLAN tags that are not supported")]
    EgressTags(Arc<str>),
    /// The egress interface has no address of the backend's family to send from.
    #[error("egress interface {0} has no address to send from")]
    NoSource(Arc<str>),
    /// ARP or NDP is under way.
    #[error("neighbour {0} on {1} is being resolved")]
    NeighbourResolving(IpAddr, Arc<str>),
    /// The neighbour does not answer ARP or NDP.
    #[error("neighbour {0} on {1} does not answer")]
    NeighbourFailed(IpAddr, Arc<str>),
}

impl Unresolved {
    /// The reason as a counter label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotLookedUp => "not_looked_up",
            Self::Route(refusal) => match refusal {
                RouteRefusal::NoRoute => "no_route",
                RouteRefusal::Unreachable => "route_unreachable",
                RouteRefusal::Blackhole => "route_blackhole",
                RouteRefusal::Prohibited => "route_prohibited",
                RouteRefusal::NotUnicast => "not_unicast",
                RouteRefusal::Encapsulated => "route_encapsulated",
                RouteRefusal::Failed(_) => "route_lookup_failed",
            },
            Self::EgressUnknown(_) => "egress_unknown",
            Self::EgressNotConfigured(_) => "egress_not_configured",
            Self::EgressDown(_) => "egress_down",
            Self::EgressNotEthernet(_) => "egress_not_ethernet",
            Self::EgressTags(_) => "egress_tags",
            Self::NoSource(_) => "no_source",
            Self::NeighbourResolving(..) => "neighbour_resolving",
            Self::NeighbourFailed(..) => "neighbour_failed",
        }
    }
}
