//! From where a VIP is reached, in both layouts: from outside, from hosts of LB nodes and of workers, and from pods.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{LinkKind, Netns, Topology, TopologyBuilder, require_root};
use serde::Deserialize;
use serde_json::json;

use crate::{
    PROXY_DELAY,
    lab_support::eventually,
    site::{Pod, Site},
};

const PORTS: [(&str, u16); 2] = [("TCP", 80), ("UDP", 53)];
/// Requests of each kind from each place.
const TRIES: usize = 5;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Somewhere that somebody dials from.
struct Place {
    name: String,
    ns: Netns,
}

/// What a lab server says.
#[derive(Debug, Deserialize)]
struct Answer {
    server: String,
    client: SocketAddr,
}

impl Place {
    fn new(ns: &Netns) -> Self {
        Self {
            name: ns.name().to_owned(),
            ns: ns.clone(),
        }
    }

    fn ask(&self, protocol: &str, at: SocketAddr) -> Result<Answer> {
        let text = match protocol {
            "UDP" => self.ns.run(|| datagram(at))?,
            _ => self.ns.sh(&format!("curl -sS --max-time 2 http://{at}/"))?,
        };
        serde_json::from_str(&text).with_context(|| format!("{}: {text:?} of {protocol} {at}", self.name))
    }

    /// Asks some times on every port of every address; who answered.
    fn ask_all(&self, addresses: &[IpAddr]) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        for address in addresses {
            for (protocol, port) in PORTS {
                for _ in 0..TRIES {
                    let answer = self.ask(protocol, SocketAddr::new(*address, port));
                    answers.push(answer.with_context(|| format!("from {}: {protocol} {address}", self.name))?);
                }
            }
        }
        Ok(answers)
    }
}

/// One datagram, and the line that comes back before it.
fn datagram(at: SocketAddr) -> Result<String> {
    let any: SocketAddr = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(at)?;
    socket.send(b"ask")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).context("no reply")?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    let line = text.lines().next().context("an empty reply")?;
    Ok(line.to_owned())
}

impl Site {
    fn pod_nodes(&self) -> Vec<Pod<'_>> {
        let nodes = self.topology.workers().iter().chain(self.topology.lbs());
        nodes.filter(|node| node.pod().is_ok()).map(Pod::ready).collect()
    }

    /// Hosts of all nodes, and all pods.
    fn inside(&self) -> Result<Vec<Place>> {
        let nodes = self.topology.lbs().iter().chain(self.topology.workers());
        let mut places: Vec<Place> = nodes.map(|node| Place::new(node.ns())).collect();
        for pod in self.pod_nodes() {
            places.push(Place::new(pod.node.pod()?.ns()));
        }
        Ok(places)
    }

    /// A dual-stack Service on TCP and UDP; its addresses.
    fn dual(&self, name: &str, policy: &str, pods: &[Pod<'_>]) -> Result<Vec<IpAddr>> {
        self.set_pods(name, &PORTS, pods)?;
        let spec = json!({"ipFamilyPolicy": "RequireDualStack", "externalTrafficPolicy": policy});
        self.create_service(name, &PORTS, spec)?;
        self.wait_for_addresses(name, 2)
    }

    /// Requests that went over any of the router's links.
    fn requests(&self) -> Result<u64> {
        let counters = self.topology.router().counters()?;
        let links = counters.links.values();
        Ok(links
            .map(|link| link.from.requests.packets + link.to.requests.packets)
            .sum())
    }
}

/// All of it is answered from `place`, in the end and then always.
fn is_reached(site: &Site, name: &str, place: &Place, addresses: &[IpAddr]) -> Result<Vec<Answer>> {
    let what = format!("{} reaches {name}", place.name);
    eventually(&what, || Ok(place.ask_all(addresses).is_ok()))
        .with_context(|| format!("{:?}\n{}", place.ask_all(addresses), site.describe(name)))?;
    place.ask_all(addresses)
}

fn servers(answers: &[Answer]) -> BTreeSet<&str> {
    answers.iter().map(|answer| answer.server.as_str()).collect()
}

/// Services of both policies are reached from everywhere; nothing that is dialled in the cluster goes to an LB node.
fn from_everywhere(builder: TopologyBuilder) -> Result<()> {
    let site = Site::start(builder.build()?, PROXY_DELAY)?;
    let all = site.pod_nodes();
    let names: BTreeSet<&str> = all.iter().map(|pod| pod.node.name()).collect();
    let cluster = site.dual("cluster", "Cluster", &all)?;
    // With policy Local there are hosts and pods whose node has no endpoint.
    let first = [all[0], all[all.len() - 1]];
    let few: BTreeSet<&str> = first.iter().map(|pod| pod.node.name()).collect();
    let local = site.dual("local", "Local", &first)?;
    let (inside, outside) = (site.inside()?, Place::new(site.topology.client().ns()));
    for (name, addresses, all_servers) in [("cluster", &cluster, &names), ("local", &local, &few)] {
        let answers = is_reached(&site, name, &outside, addresses)?;
        ensure!(servers(&answers).is_subset(all_servers), "{answers:?}");
        let own = [
            IpAddr::from(site.topology.client().addr_v4()),
            site.topology.client().addr_v6().into(),
        ];
        let kept = answers.iter().all(|answer| own.contains(&answer.client.ip()));
        assert_eq!(
            kept,
            name == "local",
            "policy Local keeps the client's address: {answers:?}"
        );
        for place in &inside {
            let answers = is_reached(&site, name, place, addresses)?;
            ensure!(servers(&answers).is_subset(all_servers), "{}: {answers:?}", place.name);
        }
        // What is asked from inside is answered by the kube-proxy of where it is asked; the control: from outside it is not.
        let before = site.requests()?;
        for place in &inside {
            place.ask_all(addresses)?;
        }
        assert_eq!(site.requests()?, before, "{name}: nothing for a VIP leaves a node");
        outside.ask_all(addresses)?;
        assert!(site.requests()? > before, "{name}");
    }
    Ok(())
}

#[test]
fn a_vip_is_reached_from_everywhere_with_dedicated_lb_nodes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    from_everywhere(Topology::builder().workers(3).lbs(2))
}

#[test]
fn a_vip_is_reached_from_everywhere_with_lb_nodes_that_run_pods() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    from_everywhere(Topology::builder().workers(2).lbs(2).lb_pods())
}

#[test]
fn lb_nodes_that_run_pods_are_backends_and_decapsulate_for_each_other() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).lbs(2).lb_pods().build()?;
    let site = Site::start(topology, PROXY_DELAY)?;
    let all = site.pod_nodes();
    let addresses = site.dual("web", "Local", &all)?;
    let outside = Place::new(site.topology.client().ns());
    is_reached(&site, "web", &outside, &addresses)?;
    for address in &addresses {
        let vip = SocketAddr::new(*address, 80);
        let expected: BTreeSet<String> = all.iter().map(|pod| pod.node.name().to_owned()).collect();
        eventually(&format!("all three nodes serve {vip}"), || {
            Ok(site.servers(vip).is_ok_and(|servers| servers == expected))
        })
        .with_context(|| site.describe("web"))?;
    }
    for lb in &site.lbs {
        let counted = lb.counted()?;
        for verdict in ["forward local", "forward tx", "pass decapsulated"] {
            assert!(counted.of(verdict) > 0, "{verdict}: {counted:?}");
        }
        assert_eq!(lb.backends()?.len(), 6, "three nodes of two families");
    }
    // A pod of an LB node goes away: nobody is sent there any more.
    site.set_pods("web", &PORTS, &all[..2])?;
    let expected: BTreeSet<String> = all[..2].iter().map(|pod| pod.node.name().to_owned()).collect();
    let vip = SocketAddr::new(addresses[0], 80);
    eventually("two nodes serve", || {
        Ok(site.servers(vip).is_ok_and(|servers| servers == expected))
    })
    .with_context(|| site.describe("web"))?;
    Ok(())
}

/// A dedicated LB node is no node of the cluster's, or kube-proxy is kept from it: its own packets do not pass its own XDP program.
/// They go to the router, and come back, where the network routes VIPs; else there is nobody to answer.
#[test]
fn an_lb_host_without_kube_proxy_reaches_a_vip_only_by_way_of_the_router() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(2).build()?;
    let site = Site::start_with(topology, PROXY_DELAY, false)?;
    let all = site.pod_nodes();
    let cluster = site.dual("cluster", "Cluster", &all)?;
    let local = site.dual("local", "Local", &all)?;
    let lb = site.topology.lb(0);
    let host = Place::new(lb.ns());
    for (name, addresses) in [("cluster", &cluster), ("local", &local)] {
        is_reached(&site, name, &host, addresses)?;
        let before = site.topology.router().counters()?;
        let answers = host.ask_all(addresses)?;
        let seen = site.topology.router().counters()? - &before;
        let (up, down) = (
            seen.from(LinkKind::Lb).requests.packets,
            seen.to(LinkKind::Lb).requests.packets,
        );
        let asked = answers.len() as u64;
        assert!(up >= asked && down >= asked, "{name}: {up} up, {down} back");
        let own = [IpAddr::from(lb.addr_v4()), lb.addr_v6().into()];
        let kept = answers.iter().all(|answer| own.contains(&answer.client.ip()));
        assert_eq!(kept, name == "local", "{answers:?}");
    }
    // On the VIPs' own segment it asks for the address by ARP, and does not hear itself.
    let vip = cluster[0];
    lb.ns().sh(&format!("ip route add {vip}/32 dev eth0"))?;
    let Err(error) = host.ask("TCP", SocketAddr::new(vip, 80)) else {
        bail!("answered without a way to the router");
    };
    let why = format!("{error:#}");
    assert!(why.contains("curl: (7)") || why.contains("curl: (28)"), "{why}");
    // A route through the router is the way out.
    lb.ns()
        .sh(&format!("ip route replace {vip}/32 via {}", lb.eth0().gateway_v4))?;
    is_reached(&site, "cluster", &host, &cluster[..1])?;
    Ok(())
}
