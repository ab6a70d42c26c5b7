//! Client, router, LB nodes and workers, wired and routed: the place where tests and the demo send their packets.
//!
//! ```text
//! client ── router ── lb-1 (lb-2)          every line is a veth pair with a subnet of its own
//!             ├── worker-1 ── pod
//!             └── worker-N ── pod
//! ```

use std::net::IpAddr;

use anyhow::{Result, ensure};

use crate::{
    Client, LinkKind, Node, Router, VlanTags, counters,
    program::Attached,
    site::{Site, family, route},
    wiring,
};

/// Most workers a topology can have.
pub const MAX_WORKERS: u8 = 16;
/// Most LB nodes a topology can have.
pub const MAX_LBS: u8 = 3;

/// Link MTUs in bytes, by what the link leads to. By default the fabric has room for an outer header.
#[derive(Clone, Copy, Debug)]
pub struct Mtus {
    /// Client to router.
    pub client: u32,
    /// Router to LB nodes, all their interfaces.
    pub lb: u32,
    /// Router to workers, and workers to pods.
    pub worker: u32,
}

impl Default for Mtus {
    fn default() -> Self {
        Self {
            client: 1500,
            lb: 1600,
            worker: 1600,
        }
    }
}

/// What a [`Topology`] shall be.
#[derive(Clone, Debug)]
pub struct TopologyBuilder {
    pub(crate) workers: u8,
    pub(crate) lbs: u8,
    pub(crate) mtus: Mtus,
    pub(crate) queues: u32,
    pub(crate) two_interfaces: bool,
    pub(crate) on_link: bool,
    pub(crate) client_on_link: bool,
    pub(crate) lb_pods: bool,
    pub(crate) vlan: Option<VlanTags>,
    pub(crate) vlan_back: Option<VlanTags>,
    pub(crate) vip_prefixes: Vec<(IpAddr, u8)>,
}

/// A running test bed. Dropping it removes all of it.
#[derive(Debug)]
pub struct Topology {
    client: Client,
    router: Router,
    lbs: Vec<Node>,
    workers: Vec<Node>,
    _programs: Vec<Attached>,
}

impl Topology {
    /// One LB node with one interface, three workers, no VLANs, and the VIP prefixes 203.0.113.0/24 and 2001:db8:f00d::/64.
    #[must_use]
    pub fn builder() -> TopologyBuilder {
        TopologyBuilder {
            workers: 3,
            lbs: 1,
            mtus: Mtus::default(),
            queues: 1,
            two_interfaces: false,
            on_link: false,
            client_on_link: false,
            lb_pods: false,
            vlan: None,
            vlan_back: None,
            vip_prefixes: vec![
                ([203, 0, 113, 0].into(), 24),
                ([0x2001, 0xdb8, 0xf00d, 0, 0, 0, 0, 0].into(), 64),
            ],
        }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The router.
    #[must_use]
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// The `index`-th LB node, from 0 (its name is `lb-<index + 1>`).
    ///
    /// # Panics
    ///
    /// When there are not so many.
    #[must_use]
    pub fn lb(&self, index: usize) -> &Node {
        &self.lbs[index]
    }

    /// The `index`-th worker, from 0 (its name is `worker-<index + 1>`).
    ///
    /// # Panics
    ///
    /// When there are not so many.
    #[must_use]
    pub fn worker(&self, index: usize) -> &Node {
        &self.workers[index]
    }

    /// All LB nodes.
    #[must_use]
    pub fn lbs(&self) -> &[Node] {
        &self.lbs
    }

    /// All workers.
    #[must_use]
    pub fn workers(&self) -> &[Node] {
        &self.workers
    }

    /// Routes a prefix (of one VIP, or of an LB's `encap.source`) on the router to these nodes, with ECMP over the layer-4 hash
    /// when there are several; an empty list removes the route.
    ///
    /// # Errors
    ///
    /// ip's.
    pub fn route(&self, address: IpAddr, length: u8, via: &[&Node]) -> Result<()> {
        if via.is_empty() {
            let gone = format!("{} route del {address}/{length}", family(address));
            return self.router.ns.sh(&format!("ip {gone}")).map(drop);
        }
        route(&self.router.ns, address, length, via)
    }
}

impl TopologyBuilder {
    /// Number of workers, 1 to [`MAX_WORKERS`].
    #[must_use]
    pub fn workers(mut self, count: u8) -> Self {
        self.workers = count;
        self
    }

    /// Number of LB nodes, 1 to [`MAX_LBS`]. The router spreads flows over two by ECMP.
    #[must_use]
    pub fn lbs(mut self, count: u8) -> Self {
        self.lbs = count;
        self
    }

    /// Link MTUs.
    #[must_use]
    pub fn mtus(mut self, mtus: Mtus) -> Self {
        self.mtus = mtus;
        self
    }

    /// Receive and transmit queues of each LB interface (both ends).
    #[must_use]
    pub fn queues(mut self, count: u32) -> Self {
        self.queues = count;
        self
    }

    /// LB nodes get a second interface, and reach workers only through it: forwarding needs a redirect.
    #[must_use]
    pub fn two_interfaces(mut self) -> Self {
        self.two_interfaces = true;
        self
    }

    /// LB nodes (their last interface) and workers share one subnet on a bridge: next hops are on-link.
    #[must_use]
    pub fn on_link(mut self) -> Self {
        self.on_link = true;
        self
    }

    /// LB nodes, workers and the client share one subnet on a bridge, and VIPs are on-link for the client: it asks for them by ARP
    /// and neighbour discovery.
    #[must_use]
    pub fn client_on_link(mut self) -> Self {
        self.on_link = true;
        self.client_on_link = true;
        self
    }

    /// LB nodes are workers too: they forward, and have a pod each.
    #[must_use]
    pub fn lb_pods(mut self) -> Self {
        self.lb_pods = true;
        self
    }

    /// Frames between router and the LB nodes' `eth0` carry these tags; untagged ones are dropped. The LB's kernel gets and sends
    /// them through the test bed's tc programs; an XDP program sees the tags in the packet and must send them itself.
    /// One tag costs nothing; with two, the LB links' MTU is raised by the 4 bytes that veth does not grant.
    #[must_use]
    pub fn vlan(mut self, tags: VlanTags) -> Self {
        self.vlan = Some(tags);
        self
    }

    /// As [`vlan`](Self::vlan), for the LB nodes' second interface.
    #[must_use]
    pub fn vlan_back(mut self, tags: VlanTags) -> Self {
        self.vlan_back = Some(tags);
        self
    }

    /// The prefixes that the router routes to the LB nodes and whose packets it counts.
    #[must_use]
    pub fn vip_prefixes(mut self, prefixes: &[(IpAddr, u8)]) -> Self {
        self.vip_prefixes = prefixes.to_vec();
        self
    }

    /// Builds it.
    ///
    /// # Errors
    ///
    /// When a count is out of bounds, and those of the kernel and of `ip`, `ethtool`, `nft`.
    pub fn build(self) -> Result<Topology> {
        let (workers, lbs) = (self.workers, self.lbs);
        ensure!(
            (1..=MAX_WORKERS).contains(&workers),
            "{workers} workers: not in 1..={MAX_WORKERS}"
        );
        ensure!((1..=MAX_LBS).contains(&lbs), "{lbs} LB nodes: not in 1..={MAX_LBS}");
        ensure!(
            self.vlan_back.is_none() || self.two_interfaces,
            "tags for a second interface that is not there"
        );
        let mut site = Site::new(&self)?;
        let client = site.node("client", vec![wiring::iface(LinkKind::Client, 1, self.client_on_link)])?;
        if self.client_on_link {
            for (address, length) in &self.vip_prefixes {
                let route = format!("ip {} route add {address}/{length} dev eth0", family(*address));
                client.ns.sh(&route)?;
            }
        }
        let lbs = (1..=lbs).map(|index| site.lb(index)).collect::<Result<Vec<_>>>()?;
        let workers = (1..=workers)
            .map(|index| site.worker(index))
            .collect::<Result<Vec<_>>>()?;
        for (address, length) in &self.vip_prefixes {
            route(&site.router.ns, *address, *length, &lbs.iter().collect::<Vec<_>>())?;
        }
        counters::install(&site.router, &self.vip_prefixes)?;
        let programs = site.programs(&lbs)?;
        Ok(Topology {
            client: Client::new(client),
            router: site.router,
            lbs,
            workers,
            _programs: programs,
        })
    }
}
