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
    Client, End, Iface, LinkKind, Netns, Node, Pod, Router, Veth, VlanTags, counters,
    program::{self, Attached},
    veth::mac_text,
    wiring,
};

/// Most workers a topology can have.
pub const MAX_WORKERS: u8 = 16;
/// Most LB nodes a topology can have.
pub const MAX_LBS: u8 = 2;

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
    workers: u8,
    lbs: u8,
    mtus: Mtus,
    queues: u32,
    two_interfaces: bool,
    on_link: bool,
    lb_pods: bool,
    vlan: Option<VlanTags>,
    vlan_back: Option<VlanTags>,
    vip_prefixes: Vec<(IpAddr, u8)>,
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
        let client = site.node("client", vec![wiring::iface(LinkKind::Client, 1, false)])?;
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

/// A topology while it is built.
struct Site<'a> {
    wish: &'a TopologyBuilder,
    router: Router,
}

impl<'a> Site<'a> {
    fn new(wish: &'a TopologyBuilder) -> Result<Self> {
        let ns = Netns::new("router")?;
        forward(&ns)?;
        ns.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
        ns.sysctl("net/ipv6/fib_multipath_hash_policy", "1")?;
        if wish.on_link {
            let (name, mac) = (wiring::BRIDGE, mac_text(wiring::BRIDGE_MAC));
            let any = wiring::iface(LinkKind::Worker, 1, true);
            let (v4, v6) = (any.gateway_v4, any.gateway_v6);
            ns.ip_batch(&format!(
                "link add name {name} address {mac} type bridge mcast_snooping 0\n\
                 addr add {v4}/{} dev {name}\n\
                 addr add {v6}/{} dev {name} nodad\n\
                 link set dev {name} up\n",
                wiring::V4_LENGTH,
                wiring::V6_LENGTH,
            ))?;
        }
        let links = Vec::new();
        Ok(Self {
            wish,
            router: Router { ns, links },
        })
    }

    /// A node with these interfaces, the default route through the first.
    fn node(&mut self, name: &str, ifaces: Vec<Iface>) -> Result<Node> {
        let ns = Netns::new(name)?;
        for iface in &ifaces {
            self.connect(&ns, iface)?;
        }
        let first = &ifaces[0];
        let (v4, v6) = (first.gateway_v4, first.gateway_v6);
        ns.ip_batch(&format!("route add default via {v4}\nroute add ::/0 via {v6}\n"))?;
        Ok(Node { ns, ifaces, pod: None })
    }

    fn connect(&mut self, ns: &Netns, iface: &Iface) -> Result<()> {
        let wish = self.wish;
        let on_segment = iface.gateway_mac == wiring::BRIDGE_MAC;
        let (mtu, queues, tags) = match iface.kind {
            LinkKind::Client => (wish.mtus.client, 1, None),
            LinkKind::Lb => (wish.mtus.lb, wish.queues, wish.vlan),
            LinkKind::LbBack => (wish.mtus.lb, wish.queues, wish.vlan_back),
            LinkKind::Worker => (wish.mtus.worker, 1, None),
        };
        // veth takes frames of its MTU plus Ethernet header plus one tag.
        let mtu = mtu + tags.map_or(0, |tags| tags.len_bytes() - 4);
        let gateway = |address| (!on_segment).then_some(address);
        let [a, b, group, index, end, _] = iface.mac;
        let router_end = End {
            ns: self.router.ns.clone(),
            name: iface.peer.clone(),
            mac: [a, b, group, index, end, 1],
            v4: gateway(()).map(|()| (iface.gateway_v4, wiring::V4_LENGTH)),
            v6: gateway(()).map(|()| (iface.gateway_v6, wiring::V6_LENGTH)),
        };
        let node_end = End {
            ns: ns.clone(),
            name: iface.name.clone(),
            mac: iface.mac,
            v4: Some((iface.v4, wiring::V4_LENGTH)),
            v6: Some((iface.v6, wiring::V6_LENGTH)),
        };
        Veth::new(router_end, node_end, mtu, queues)?;
        if on_segment {
            self.router
                .ns
                .ip(&["link", "set", "dev", &iface.peer, "master", wiring::BRIDGE])?;
        }
        self.router.links.push((iface.peer.clone(), iface.kind));
        Ok(())
    }

    fn lb(&mut self, index: u8) -> Result<Node> {
        let wish = self.wish;
        let mut ifaces = vec![wiring::iface(LinkKind::Lb, index, wish.on_link && !wish.two_interfaces)];
        if wish.two_interfaces {
            ifaces.push(wiring::iface(LinkKind::LbBack, index, wish.on_link));
        }
        let mut lb = self.node(&format!("lb-{index}"), ifaces)?;
        if wish.two_interfaces && !wish.on_link {
            let (v4, v6) = (lb.back().gateway_v4, lb.back().gateway_v6);
            lb.ns.ip_batch(&format!(
                "route add {} via {v4}\nroute add {} via {v6}\n",
                wiring::WORKERS_V4,
                wiring::WORKERS_V6
            ))?;
        }
        if wish.lb_pods {
            forward(&lb.ns)?;
            self.pod(&mut lb, 100 + index, wish.mtus.lb)?;
        }
        Ok(lb)
    }

    fn worker(&mut self, index: u8) -> Result<Node> {
        let iface = wiring::iface(LinkKind::Worker, index, self.wish.on_link);
        let mut worker = self.node(&format!("worker-{index}"), vec![iface])?;
        forward(&worker.ns)?;
        // Strict, as many distributions set it: what is decapsulated on eth0 leaves by eth0.
        for scope in ["all", "default", "eth0"] {
            worker.ns.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "1")?;
        }
        self.pod(&mut worker, index, self.wish.mtus.worker)?;
        Ok(worker)
    }

    /// A pod behind `node`, reachable from everywhere: 10.244.<index>.10 and fd00:244:<index>::10.
    fn pod(&mut self, node: &mut Node, index: u8, mtu: u32) -> Result<()> {
        const GROUP: u8 = 244;
        let name = format!("{}-pod", node.name());
        let pod = Pod {
            ns: Netns::new(&name)?,
            v4: wiring::v4(GROUP, index, 10),
            v6: wiring::v6(GROUP, index, 10),
        };
        let end = |ns: &Netns, name: &str, host: u8| End {
            ns: ns.clone(),
            name: name.to_owned(),
            mac: [0x02, 0x1b, GROUP, index, 0, host],
            v4: Some((wiring::v4(GROUP, index, host), wiring::V4_LENGTH)),
            v6: Some((wiring::v6(GROUP, index, host), wiring::V6_LENGTH)),
        };
        Veth::new(end(&node.ns, "pod", 1), end(&pod.ns, "eth0", 10), mtu, 1)?;
        let (v4, v6) = (wiring::v4(GROUP, index, 1), wiring::v6(GROUP, index, 1));
        pod.ns
            .ip_batch(&format!("route add default via {v4}\nroute add ::/0 via {v6}\n"))?;
        let (net_v4, net_v6) = (wiring::v4(GROUP, index, 0), wiring::v6(GROUP, index, 0));
        route(&self.router.ns, net_v4.into(), wiring::V4_LENGTH, &[node])?;
        route(&self.router.ns, net_v6.into(), wiring::V6_LENGTH, &[node])?;
        node.pod = Some(pod);
        Ok(())
    }

    /// `pass` where an XDP program may transmit from the other end; tags where asked for.
    fn programs(&self, lbs: &[Node]) -> Result<Vec<Attached>> {
        let peers: Vec<&str> = self
            .router
            .links()
            .filter(|(_, kind)| *kind != LinkKind::Client)
            .map(|(name, _)| name)
            .collect();
        let mut programs = vec![program::pass(&self.router.ns, &peers)?];
        for (kind, tags) in [(LinkKind::Lb, self.wish.vlan), (LinkKind::LbBack, self.wish.vlan_back)] {
            let Some(tags) = tags else { continue };
            let ends: Vec<(&Netns, &str)> = lbs
                .iter()
                .flat_map(|lb| lb.ifaces.iter().map(move |iface| (lb, iface)))
                .filter(|(_, iface)| iface.kind == kind)
                .flat_map(|(lb, iface)| [(&lb.ns, iface.name.as_str()), (&self.router.ns, iface.peer.as_str())])
                .collect();
            programs.push(program::vlan(&ends, tags)?);
        }
        Ok(programs)
    }
}

fn forward(ns: &Netns) -> Result<()> {
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    ns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

fn route(router: &Netns, address: IpAddr, length: u8, via: &[&Node]) -> Result<()> {
    let hops: String = via
        .iter()
        .map(|node| match address {
            IpAddr::V4(_) => format!(" nexthop via {}", node.addr_v4()),
            IpAddr::V6(_) => format!(" nexthop via {}", node.addr_v6()),
        })
        .collect();
    router
        .sh(&format!(
            "ip {} route replace {address}/{length}{hops}",
            family(address)
        ))
        .map(drop)
}
