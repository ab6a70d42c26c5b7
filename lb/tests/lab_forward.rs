//! Real connections through the real daemons: which way requests and replies go, who answers, and what clients' addresses become.

mod lab_support;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use lab::{
    Counters, KubeProxy, LinkKind, Mtus, Node, Policy, Proto, RawSocket, Reply, Topology, TopologyBuilder, VipRule,
    VlanTags, require_root,
};
use lab_support::{Bed, Counted, LbFile, NodeFile, assert_spread, count_servers, eventually, vip_v4, vip_v6};
use lb::control::NextHopKind;

const WORKERS: [(&str, u32); 3] = [("worker-1", 1), ("worker-2", 1), ("worker-3", 1)];
const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];

/// A VIP of each family on IPv4 backends, and another on IPv6 backends, TCP and UDP: 4in4, 6in4, 4in6, 6in6.
fn four_kinds(topology: &Topology, lb: &Node) -> LbFile {
    let on = |vips: [SocketAddr; 2]| {
        vips.into_iter()
            .flat_map(|vip| BOTH.map(|proto| (proto, vip)))
            .collect::<Vec<_>>()
    };
    LbFile::new(topology, lb)
        .vips(&on([vip_v4(4, 80), vip_v6(4, 80)]), "v4")
        .vips(&on([vip_v4(6, 80), vip_v6(6, 80)]), "v6")
}

/// Requests one after another, each from a port of its own. All VIPs end at the same pods: had two requests to different VIPs the same
/// client port, conntrack would have to give one another port.
struct Requests {
    next_port: u16,
}

impl Requests {
    fn new() -> Self {
        Self { next_port: 10_000 }
    }

    fn make(&mut self, bed: &Bed, proto: Proto, vip: SocketAddr, count: u16) -> Result<Vec<Reply>> {
        let client = bed.topology.client();
        let address: IpAddr = if vip.is_ipv4() {
            client.addr_v4().into()
        } else {
            client.addr_v6().into()
        };
        let ports = self.next_port..self.next_port + count;
        self.next_port = ports.end;
        let request = |port| match proto {
            Proto::Tcp => client.http_get_from(SocketAddr::new(address, port), vip),
            Proto::Udp => client.udp_get_from(SocketAddr::new(address, port), vip),
        };
        ports.map(request).collect()
    }
}

/// What happened since: at the LB node's program and on the router's links.
struct Since {
    counted: Counted,
    router: Counters,
}

impl Since {
    /// Once nothing moves any more: the last packets of a connection are under way when the client has its answer.
    fn now(bed: &Bed) -> Result<Self> {
        let mut last = Self {
            counted: bed.lb().counted()?,
            router: bed.topology.router().counters()?,
        };
        loop {
            std::thread::sleep(Duration::from_millis(30));
            let now = Self {
                counted: bed.lb().counted()?,
                router: bed.topology.router().counters()?,
            };
            if now.router == last.router && now.counted.since(&last.counted).is_empty() {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Asserts that every request went through the LB node and left it tunnelled, that this verdict was all it got, and that no reply
    /// came near it.
    fn assert_direct_return(&self, bed: &Bed, what: &str, verdict: &str) -> Result<()> {
        let now = Self::now(bed)?;
        let seen = now.router - &self.router;
        let (to_lb, from_lb) = (seen.to(LinkKind::Lb), seen.from(LinkKind::Lb));
        let from_back = seen.from(LinkKind::LbBack);
        let requests = seen.from(LinkKind::Client).requests.packets;
        assert!(requests > 0, "{what}");
        assert_eq!(
            to_lb.requests.packets, requests,
            "{what}: all requests go to the LB node"
        );
        assert_eq!(
            from_lb.tunnel.packets + from_back.tunnel.packets,
            requests,
            "{what}: and leave it in a tunnel"
        );
        assert_eq!(seen.to(LinkKind::Worker).tunnel.packets, requests, "{what}: to workers");
        assert_eq!(
            from_lb.replies.packets + from_back.replies.packets,
            0,
            "{what}: no reply by the LB node"
        );
        assert_eq!(
            seen.from(LinkKind::Worker).requests.packets,
            0,
            "{what}: nothing comes back"
        );
        assert_eq!(
            seen.to(LinkKind::Client).replies.packets,
            seen.from(LinkKind::Worker).replies.packets,
            "{what}"
        );
        assert!(seen.to(LinkKind::Client).replies.packets > 0, "{what}");
        assert_eq!(
            now.counted.since(&self.counted),
            BTreeMap::from([(verdict, requests)]),
            "{what}"
        );
        Ok(())
    }
}

#[test]
fn tcp_and_udp_of_both_families_spread_over_backends_of_both_families() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const COUNT: u16 = 300;
    let bed = Bed::start(Topology::builder().build()?, four_kinds)?;
    let mut requests = Requests::new();
    for vip in [vip_v4(4, 80), vip_v4(6, 80), vip_v6(4, 80), vip_v6(6, 80)] {
        for proto in BOTH {
            let what = format!("{proto:?} {vip}");
            let since = Since::now(&bed)?;
            let replies = requests.make(&bed, proto, vip, COUNT)?;
            assert_eq!(replies.len(), usize::from(COUNT), "{what}");
            for reply in &replies {
                assert_eq!(
                    reply.client_seen, reply.local_addr,
                    "{what}: the client's address is kept"
                );
            }
            let counts = count_servers(&replies);
            println!("{what}: {counts:?}");
            assert_spread(&what, &counts, &WORKERS);
            since.assert_direct_return(&bed, &what, "forward tx")?;
        }
    }
    // Packets by VIP and by backend add up to what was forwarded.
    let forwarded = bed.lb().counted()?.of("forward tx");
    assert_eq!(bed.lb().vips()?.iter().map(|vip| vip.packets).sum::<u64>(), forwarded);
    assert_eq!(
        bed.lb().backends()?.iter().map(|backend| backend.packets).sum::<u64>(),
        forwarded
    );
    Ok(())
}

#[test]
fn an_lb_node_that_serves_itself_shows_in_the_counters_that_direct_return_leaves_at_zero() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // The control of every `replies == 0`: the same bed, whose VIP the LB node's own kernel serves.
    let topology = Topology::builder().workers(1).lb_pods().build()?;
    let _servers = topology.serve(&[(Proto::Tcp, vip_v4(4, 80))])?;
    let before = topology.router().counters()?;
    for reply in topology.client().http_get(vip_v4(4, 80), 10)? {
        assert_eq!(reply.server, "lb-1");
    }
    let seen = topology.router().counters()? - &before;
    assert!(seen.from(LinkKind::Lb).replies.packets >= 10 * 4, "{seen:?}");
    assert_eq!(seen.from(LinkKind::Lb).tunnel.packets, 0);
    Ok(())
}

#[test]
fn policy_cluster_serves_from_another_node_and_the_reply_still_leaves_from_the_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start(Topology::builder().build()?, four_kinds)?;
    let mut requests = Requests::new();
    // Every node sends to the next one's pod and masquerades.
    let workers = bed.topology.workers();
    for (position, worker) in workers.iter().enumerate() {
        let pod = workers[(position + 1) % workers.len()].pod()?;
        let rules: Vec<_> = [vip_v4(4, 80), vip_v4(6, 80), vip_v6(4, 80), vip_v6(6, 80)]
            .into_iter()
            .flat_map(|vip| {
                let address = if vip.is_ipv4() {
                    pod.addr_v4().into()
                } else {
                    pod.addr_v6().into()
                };
                BOTH.map(|proto| VipRule {
                    vip,
                    proto,
                    target: SocketAddr::new(address, 8080),
                })
            })
            .collect();
        KubeProxy::install(worker, &rules, Policy::Cluster)?;
    }
    for vip in [vip_v4(4, 80), vip_v4(6, 80), vip_v6(4, 80), vip_v6(6, 80)] {
        for proto in BOTH {
            let what = format!("{proto:?} {vip}");
            let since = Since::now(&bed)?;
            let replies = requests.make(&bed, proto, vip, 60)?;
            for reply in &replies {
                // The server sees the node that masqueraded: the one before its own.
                let via = workers.iter().position(|worker| {
                    [worker.addr_v4().into(), worker.addr_v6().into()].contains(&reply.client_seen.ip())
                });
                let via = via.unwrap_or_else(|| panic!("{what}: the server saw {}", reply.client_seen));
                assert_eq!(reply.server, workers[(via + 1) % workers.len()].name(), "{what}");
            }
            assert_eq!(count_servers(&replies).len(), 3, "{what}");
            since.assert_direct_return(&bed, &what, "forward tx")?;
        }
    }
    Ok(())
}

/// Connections of all kinds through a bed of this shape, and large transfers both ways.
fn through(builder: TopologyBuilder, verdict: &str) -> Result<()> {
    let bed = Bed::start(builder.build()?, four_kinds)?;
    let mut requests = Requests::new();
    for vip in [vip_v4(4, 80), vip_v4(6, 80), vip_v6(4, 80), vip_v6(6, 80)] {
        for proto in BOTH {
            let what = format!("{proto:?} {vip}");
            let since = Since::now(&bed)?;
            let replies = requests.make(&bed, proto, vip, 60)?;
            assert!(
                replies.iter().all(|reply| reply.client_seen == reply.local_addr),
                "{what}"
            );
            assert_spread(&what, &count_servers(&replies), &WORKERS);
            since.assert_direct_return(&bed, &what, verdict)?;
        }
        let since = Since::now(&bed)?;
        bed.topology.client().download(vip, 3_000_000)?;
        bed.topology.client().upload(vip, 3_000_000)?;
        since.assert_direct_return(&bed, &format!("bulk to {vip}"), verdict)?;
    }
    Ok(())
}

#[test]
fn one_vlan_tag_is_kept() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    through(Topology::builder().vlan(VlanTags::One(100)), "forward tx")
}

#[test]
fn two_vlan_tags_are_kept() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    through(
        Topology::builder().vlan(VlanTags::Two { outer: 7, inner: 300 }),
        "forward tx",
    )
}

#[test]
fn a_second_interface_leads_to_routed_workers() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    through(Topology::builder().two_interfaces(), "forward redirect")
}

#[test]
fn a_second_interface_leads_to_workers_on_the_same_segment() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    through(Topology::builder().two_interfaces().on_link(), "forward redirect")
}

#[test]
fn workers_may_be_neighbours_on_the_interface_that_clients_come_by() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    through(Topology::builder().on_link(), "forward tx")
}

#[test]
fn several_queues_serve_as_one_does() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    through(Topology::builder().queues(2), "forward tx")
}

#[test]
fn jumbo_frames_go_through_whole() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // The client's MTU leaves room for the largest outer header.
    let mtus = Mtus {
        client: 8960,
        lb: 9000,
        worker: 9000,
    };
    let bed = Bed::start(Topology::builder().mtus(mtus).build()?, four_kinds)?;
    for vip in [vip_v4(4, 80), vip_v4(6, 80), vip_v6(4, 80), vip_v6(6, 80)] {
        let since = Since::now(&bed)?;
        bed.topology.client().upload(vip, 20_000_000)?;
        let packets = (bed.topology.router().counters()? - &since.router)
            .to(LinkKind::Worker)
            .tunnel
            .packets;
        assert!(packets < 5000, "20 MB in {packets} packets: they were not jumbo");
        bed.topology.client().download(vip, 20_000_000)?;
        since.assert_direct_return(&bed, &format!("{vip}"), "forward tx")?;

        // Its reply is longer than the request.
        const PAYLOAD: usize = 8700;
        let tunnel = RawSocket::open(bed.topology.router().ns(), "lb1")?;
        bed.topology.client().udp_echo(vip, PAYLOAD)?;
        let outer = if vip == vip_v4(4, 80) || vip == vip_v6(4, 80) {
            20
        } else {
            40
        };
        let length = 14 + outer + if vip.is_ipv4() { 28 } else { 48 } + PAYLOAD;
        let whole = tunnel.next(Duration::from_secs(2), |frame| frame.len() == length)?;
        assert!(whole.is_some(), "no frame of {length} bytes to {vip}");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_once_encapsulated_is_counted_and_what_just_fits_goes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mtus = Mtus {
        client: 1500,
        lb: 1500,
        worker: 1500,
    };
    let bed = Bed::start(Topology::builder().mtus(mtus).build()?, four_kinds)?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(100));
    for (vip, outer) in [
        (vip_v4(4, 80), 20),
        (vip_v4(6, 80), 40),
        (vip_v6(4, 80), 20),
        (vip_v6(6, 80), 40),
    ] {
        let headers = if vip.is_ipv4() { 28 } else { 48 };
        let room = 1500 - outer - headers;
        for (payload, verdict) in [(room, "forward tx"), (room + 1, "slow too_big")] {
            let before = bed.lb().counted()?;
            // Whether the reply fits is another matter.
            let _ = client.udp_echo(vip, payload);
            let counted = bed.lb().counted()?;
            assert_eq!(
                counted.since(&before),
                BTreeMap::from([(verdict, 1)]),
                "{payload} bytes to {vip}"
            );
        }
        for backend in bed.lb().backends()? {
            let NextHopKind::Via { mtu, .. } = backend.next_hop else {
                panic!("{backend:?}")
            };
            assert_eq!(mtu, 1500);
        }
    }
    // Small requests go on, and answers of any size come by another way.
    for vip in [vip_v4(4, 80), vip_v6(6, 80)] {
        bed.topology.client().download(vip, 1_000_000)?;
    }
    Ok(())
}

#[test]
fn what_is_not_for_a_vip_passes_untouched() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start(Topology::builder().workers(1).build()?, four_kinds)?;
    let lb = bed.topology.lb(0);
    let own = lab::Server::start(lb.ns(), "lb-1", 0)?;
    for address in [lb.addr_v4().into(), lb.addr_v6().into()] {
        bed.topology.client().ping(address, 1000)?;
        let at = SocketAddr::new(address, own.port());
        for reply in [
            bed.topology.client().http_get(at, 20)?,
            bed.topology.client().udp_get(at, 20)?,
        ]
        .concat()
        {
            assert_eq!((reply.server.as_str(), reply.client_seen), ("lb-1", reply.local_addr));
        }
    }
    let before = bed.lb().counted()?;
    assert_eq!(before.fate("forward"), 0);
    // A VIP address with a port that nobody serves is neither served nor looped.
    let router = bed.topology.router().counters()?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(200));
    assert!(client.http_get(vip_v4(4, 81), 1).is_err());
    eventually("the unserved port is counted", || {
        Ok(bed.lb().counted()?.of("slow unserved_port") > 0)
    })?;
    let seen = bed.topology.router().counters()? - &router;
    assert_eq!(
        seen.from(LinkKind::Lb).tunnel.packets + seen.from(LinkKind::Lb).requests.packets,
        0
    );
    Ok(())
}

#[test]
fn a_vip_on_the_lb_nodes_own_address_leaves_the_other_ports_to_its_kernel() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(2).build()?;
    let lb = topology.lb(0).clone();
    let own = [
        SocketAddr::new(lb.addr_v4().into(), 80),
        SocketAddr::new(lb.addr_v6().into(), 80),
    ];
    let mut node_file = NodeFile::new(&topology);
    node_file.vip_prefixes = own
        .map(|vip| format!("{}/{}", vip.ip(), if vip.is_ipv4() { 32 } else { 128 }))
        .to_vec();
    let vips = own.map(|vip| (Proto::Tcp, vip));
    let bed = Bed::start_with(
        topology,
        |topology, lb| LbFile::new(topology, lb).vips(&vips, "v4"),
        &node_file,
    )?;
    let kernel = lab::Server::start(lb.ns(), "lb-1", 0)?;
    for vip in own {
        let counts = count_servers(&bed.topology.client().http_get(vip, 40)?);
        assert_spread(&vip.to_string(), &counts, &WORKERS[..2]);
        let before = bed.lb().counted()?;
        for reply in bed
            .topology
            .client()
            .http_get(SocketAddr::new(vip.ip(), kernel.port()), 20)?
        {
            assert_eq!(reply.server, "lb-1");
        }
        bed.topology.client().ping(vip.ip(), 100)?;
        let counted = bed.lb().counted()?;
        assert!(
            counted.of("pass own_address") - before.of("pass own_address") >= 20 * 4 + 3,
            "{vip}"
        );
    }
    Ok(())
}
