//! What stands in a topology: nodes, their interfaces and pods, and the router. Only data and typed access to it.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};

use crate::{Counters, Netns, counters};

/// What a router link leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// The client.
    Client,
    /// An LB node's first interface: from here come clients' packets.
    Lb,
    /// An LB node's second interface, towards workers, if the topology has it.
    LbBack,
    /// A worker.
    Worker,
}

/// A node's interface and what is at the router's end of it.
#[derive(Clone, Debug)]
pub struct Iface {
    /// Name inside the node: `eth0`, `eth1`.
    pub name: String,
    /// What kind of link it is on.
    pub kind: LinkKind,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// IPv4 address; the subnet is a /24.
    pub v4: Ipv4Addr,
    /// IPv6 address; the subnet is a /64.
    pub v6: Ipv6Addr,
    /// The router's IPv4 address on this link.
    pub gateway_v4: Ipv4Addr,
    /// The router's IPv6 address on this link.
    pub gateway_v6: Ipv6Addr,
    /// Name of the other end, in the router's namespace. Its capture sees what XDP takes or sends here.
    pub peer: String,
    /// Hardware address that this node's packets to its gateway carry: the other end's, or the bridge's on an L2 segment.
    pub gateway_mac: [u8; 6],
}

/// A pod: a namespace behind a node, where servers run.
#[derive(Clone, Debug)]
pub struct Pod {
    pub(crate) ns: Netns,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Pod {
    /// The pod's namespace.
    #[must_use]
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// The pod's IPv4 address.
    #[must_use]
    pub fn addr_v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// The pod's IPv6 address.
    #[must_use]
    pub fn addr_v6(&self) -> Ipv6Addr {
        self.v6
    }
}

/// A client, LB node or worker.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) ns: Netns,
    /// Never empty.
    pub(crate) ifaces: Vec<Iface>,
    pub(crate) pod: Option<Pod>,
}

impl Node {
    /// `client`, `lb-1`, `worker-1`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.ns.name()
    }

    /// The node's namespace.
    #[must_use]
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Its interfaces: `eth0`, and `eth1` on an LB node with two.
    #[must_use]
    pub fn ifaces(&self) -> &[Iface] {
        &self.ifaces
    }

    /// `eth0`.
    #[must_use]
    pub fn eth0(&self) -> &Iface {
        &self.ifaces[0]
    }

    /// The interface that leads to workers: the last one.
    #[must_use]
    pub fn back(&self) -> &Iface {
        &self.ifaces[self.ifaces.len() - 1]
    }

    /// IPv4 address of `eth0`.
    #[must_use]
    pub fn addr_v4(&self) -> Ipv4Addr {
        self.eth0().v4
    }

    /// IPv6 address of `eth0`.
    #[must_use]
    pub fn addr_v6(&self) -> Ipv6Addr {
        self.eth0().v6
    }

    /// Hardware address of `eth0`.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.eth0().mac
    }

    /// The pod behind this node.
    ///
    /// # Errors
    ///
    /// When it has none: clients have none, LB nodes only if [`lb_pods`](crate::TopologyBuilder::lb_pods) asked for it.
    pub fn pod(&self) -> Result<&Pod> {
        self.pod.as_ref().with_context(|| format!("{} has no pod", self.name()))
    }
}

/// The router in the middle.
#[derive(Clone, Debug)]
pub struct Router {
    pub(crate) ns: Netns,
    /// Name and kind of each link's router end.
    pub(crate) links: Vec<(String, LinkKind)>,
}

impl Router {
    /// The router's namespace.
    #[must_use]
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// The router's ends of all links: `client`, `lb1`, `lb1b` (the back interface), `w1`...
    pub fn links(&self) -> impl Iterator<Item = (&str, LinkKind)> {
        self.links.iter().map(|(name, kind)| (name.as_str(), *kind))
    }

    /// What went over each link so far.
    ///
    /// # Errors
    ///
    /// nft's.
    pub fn counters(&self) -> Result<Counters> {
        counters::read(self)
    }

    /// Sets all counters to zero.
    ///
    /// # Errors
    ///
    /// nft's.
    pub fn reset_counters(&self) -> Result<()> {
        counters::reset(self)
    }
}
