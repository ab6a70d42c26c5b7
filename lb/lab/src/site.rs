//! The building of a topology: namespaces, links, routes and programs, in the order they need each other.

use std::net::IpAddr;

use anyhow::Result;

use crate::{
    End, Iface, LinkKind, Netns, Node, Pod, Router, TopologyBuilder, Veth,
    program::{self, Attached},
    veth::mac_text,
    wiring,
};

/// A topology while it is built.
pub(crate) struct Site<'a> {
    wish: &'a TopologyBuilder,
    pub(crate) router: Router,
}

impl<'a> Site<'a> {
    pub(crate) fn new(wish: &'a TopologyBuilder) -> Result<Self> {
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
    pub(crate) fn node(&mut self, name: &str, ifaces: Vec<Iface>) -> Result<Node> {
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

    pub(crate) fn lb(&mut self, index: u8) -> Result<Node> {
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

    pub(crate) fn worker(&mut self, index: u8) -> Result<Node> {
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

    /// A pod behind `node`, reachable from everywhere: `10.244.<index>.10` and `fd00:244:<index>::10`.
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
    pub(crate) fn programs(&self, lbs: &[Node]) -> Result<Vec<Attached>> {
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

pub(crate) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

pub(crate) fn route(router: &Netns, address: IpAddr, length: u8, via: &[&Node]) -> Result<()> {
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
