//! The bed itself, with no LB in the way: links, routes, servers, clients, counters, kube-proxy's stand-in.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use lab::{KubeProxy, LinkKind, Load, LoadKind, Mtus, Policy, Proto, Server, Topology, VipRule, require_root};

const PORT: u16 = 8080;
const VIP_V4: &str = "203.0.113.7:80";
const VIP_V6: &str = "[2001:db8:f00d::7]:80";

#[test]
fn client_reaches_a_server_on_a_worker_and_in_its_pod() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(2).build()?;
    let (client, worker) = (topology.client(), topology.worker(1));
    let on_node = Server::start(worker.ns(), worker.name(), 0)?;
    let in_pod = Server::start(worker.pod()?.ns(), "pod", PORT)?;
    for address in [
        SocketAddr::new(worker.addr_v4().into(), on_node.port()),
        SocketAddr::new(worker.addr_v6().into(), on_node.port()),
    ] {
        let replies = [client.http_get(address, 10)?, client.udp_get(address, 10)?].concat();
        assert_eq!(replies.len(), 20);
        for reply in replies {
            assert_eq!(reply.server, "worker-2");
            assert_eq!(reply.client_seen, reply.local_addr);
        }
    }
    for address in [
        SocketAddr::new(worker.pod()?.addr_v4().into(), PORT),
        SocketAddr::new(worker.pod()?.addr_v6().into(), PORT),
    ] {
        assert_eq!(client.http_get(address, 1)?[0].server, "pod");
        client.download(address, 3_000_000)?;
        client.upload(address, 3_000_000)?;
    }
    let curl = client.ns().sh(&format!(
        "curl -sS --max-time 2 http://[{}]:{PORT}/",
        worker.pod()?.addr_v6()
    ))?;
    assert!(curl.contains(r#""server":"pod""#), "{curl}");
    drop(in_pod);
    Ok(())
}

#[test]
fn jumbo_frames_pass_whole() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mtus = Mtus {
        client: 9000,
        lb: 9000,
        worker: 9000,
    };
    let topology = Topology::builder().workers(1).mtus(mtus).queues(2).build()?;
    let (client, worker, lb) = (topology.client(), topology.worker(0), topology.lb(0));
    for node in [worker, lb] {
        client.ping(node.addr_v4().into(), 9000 - 28)?;
        client.ping(node.addr_v6().into(), 9000 - 48)?;
        assert!(client.ping(node.addr_v4().into(), 9001 - 28).is_err());
    }
    let _server = Server::start(worker.pod()?.ns(), "pod", PORT)?;
    let vip = SocketAddr::new(worker.pod()?.addr_v4().into(), PORT);
    client.udp_echo(vip, 8000)?;
    client.download(vip, 5_000_000)?;
    client.upload(vip, 5_000_000)?;
    Ok(())
}

#[test]
fn two_interfaces_and_two_lbs_are_reachable() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for on_link in [false, true] {
        let mut builder = Topology::builder().workers(2).lbs(2).two_interfaces().lb_pods();
        if on_link {
            builder = builder.on_link();
        }
        let topology = builder.build()?;
        for lb in topology.lbs() {
            assert_eq!(lb.ifaces().len(), 2);
            topology.client().ping(lb.addr_v4().into(), 100)?;
            topology.client().ping(lb.pod()?.addr_v6().into(), 100)?;
            // Towards workers the LB uses its second interface.
            for worker in topology.workers() {
                assert_eq!(lb.ns().source_for(worker.addr_v4().into())?, lb.back().v4);
                assert_eq!(lb.ns().source_for(worker.addr_v6().into())?, lb.back().v6);
                lb.ns().sh(&format!("ping -n -c 1 -w 2 {}", worker.addr_v6()))?;
                topology.client().ping(worker.addr_v4().into(), 100)?;
            }
        }
    }
    Ok(())
}

#[test]
fn on_link_workers_are_the_lbs_neighbours() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(2).on_link().build()?;
    let (lb, worker) = (topology.lb(0), topology.worker(1));
    for address in [worker.addr_v4().to_string(), worker.addr_v6().to_string()] {
        lb.ns().sh(&format!("ping -n -c 1 -w 2 {address}"))?;
        let route = lb.ns().ip(&["route", "get", &address])?;
        assert!(!route.contains("via"), "{route}");
    }
    topology.client().ping(worker.addr_v4().into(), 100)?;
    Ok(())
}

/// The VIPs, routed straight to worker 1, as if an LB had chosen it.
fn direct(policy: Policy, target: usize) -> Result<(Topology, KubeProxy, Vec<Server>)> {
    let topology = Topology::builder().workers(2).build()?;
    let pod = topology.worker(target).pod()?;
    let mut rules = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        for (vip, address) in [(VIP_V4, pod.addr_v4().into()), (VIP_V6, pod.addr_v6().into())] {
            let target = SocketAddr::new(address, PORT);
            rules.push(VipRule {
                vip: vip.parse()?,
                proto,
                target,
            });
        }
    }
    let worker = topology.worker(0);
    topology.route([203, 0, 113, 0].into(), 24, &[worker])?;
    topology.route("2001:db8:f00d::".parse()?, 64, &[worker])?;
    let servers = topology
        .workers()
        .iter()
        .map(|worker| Server::start(worker.pod()?.ns(), worker.name(), PORT))
        .collect::<Result<_>>()?;
    let kube_proxy = KubeProxy::install(worker, &rules, policy)?;
    Ok((topology, kube_proxy, servers))
}

#[test]
fn policy_local_keeps_the_client_address_and_answers_as_the_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (topology, kube_proxy, _servers) = direct(Policy::Local, 0)?;
    let (client, router) = (topology.client(), topology.router());
    for vip in [VIP_V4.parse()?, VIP_V6.parse()?] {
        let before = router.counters()?;
        // The client's sockets are connected: a reply from another source than the VIP would not be taken.
        for reply in [client.http_get(vip, 20)?, client.udp_get(vip, 20)?].concat() {
            assert_eq!(reply.server, "worker-1");
            assert_eq!(reply.client_seen, reply.local_addr);
        }
        let seen = router.counters()? - &before;
        assert!(seen.from(LinkKind::Client).requests.packets >= 20 * 5 + 20);
        assert_eq!(seen.from(LinkKind::Client).requests, seen.links["w1"].to.requests);
        assert_eq!(seen.links["w1"].from.replies, seen.to(LinkKind::Client).replies);
        assert_eq!(seen.to(LinkKind::Lb), lab::Traffic::default());
        assert_eq!(seen.from(LinkKind::Lb), lab::Traffic::default());
    }
    kube_proxy.remove()?;
    let hasty = client.with_timeout(Duration::from_millis(200));
    assert!(hasty.http_get(VIP_V4.parse()?, 1).is_err());
    assert!(hasty.udp_get(VIP_V6.parse()?, 1).is_err());
    // Nobody claims it, so it loops between worker and router until its TTL ends: a worker agent must stop this.
    router.reset_counters()?;
    assert!(hasty.udp_get(VIP_V4.parse()?, 1).is_err());
    let counters = router.counters()?;
    assert_eq!(counters.from(LinkKind::Client).requests.packets, 1);
    assert!(counters.from(LinkKind::Worker).requests.packets > 10);
    Ok(())
}

#[test]
fn policy_cluster_masquerades_to_a_server_elsewhere() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (topology, _kube_proxy, _servers) = direct(Policy::Cluster, 1)?;
    let (client, worker) = (topology.client(), topology.worker(0));
    for (vip, node) in [
        (VIP_V4.parse()?, worker.addr_v4().into()),
        (VIP_V6.parse()?, std::net::IpAddr::from(worker.addr_v6())),
    ] {
        for reply in [client.http_get(vip, 5)?, client.udp_get(vip, 5)?].concat() {
            assert_eq!(reply.server, "worker-2");
            assert_eq!(reply.client_seen.ip(), node);
        }
    }
    Ok(())
}

#[test]
fn load_accounts_for_every_request_and_every_break() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (topology, _kube_proxy, mut servers) = direct(Policy::Local, 0)?;
    let vip = VIP_V4.parse()?;
    let kinds = [
        LoadKind::NewConnections,
        LoadKind::KeepAlive,
        LoadKind::NewDatagramFlows,
        LoadKind::DatagramFlow,
    ];
    for kind in kinds {
        let load = Load::start(topology.client(), vip, kind, 3)?;
        load.wait_for(50, Duration::from_secs(5))?;
        let report = load.stop()?;
        assert!(
            report.ok >= 50 && report.failed == 0 && report.moved == 0,
            "{kind:?}: {report:?}"
        );
        assert_eq!(report.translated, 0);
        assert_eq!(report.per_server["worker-1"], report.ok);
    }
    // The twin that must fail: the server goes away under open connections.
    let hasty = topology.client().with_timeout(Duration::from_millis(200));
    let load = Load::start(&hasty, vip, LoadKind::KeepAlive, 3)?;
    load.wait_for(10, Duration::from_secs(5))?;
    assert_eq!(servers[0].connections(), 3);
    servers.remove(0);
    std::thread::sleep(Duration::from_millis(300));
    let report = load.stop()?;
    assert!(report.failed >= 3 && !report.errors.is_empty(), "{report:?}");
    Ok(())
}

#[test]
fn requests_come_from_the_port_asked_for() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (topology, _kube_proxy, _servers) = direct(Policy::Local, 0)?;
    let client = topology.client();
    let local = SocketAddr::new(client.addr_v4().into(), 40_123);
    let vip = VIP_V4.parse()?;
    for _ in 0..3 {
        assert_eq!(client.http_get_from(local, vip)?.client_seen, local);
        assert_eq!(client.udp_get_from(local, vip)?.client_seen, local);
    }
    let mut conn = client.connect(vip)?;
    for _ in 0..3 {
        assert_eq!(conn.get()?.client_seen, conn.local_addr());
        conn.download(100_000)?;
        conn.upload(100_000)?;
    }
    Ok(())
}

#[test]
fn an_lb_node_can_be_a_worker() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).lb_pods().build()?;
    let (v4, v6) = (VIP_V4.parse()?, VIP_V6.parse()?);
    let servers = topology.serve(&[(Proto::Tcp, v4), (Proto::Udp, v6)])?;
    assert_eq!(
        servers.iter().map(Server::name).collect::<Vec<_>>(),
        ["worker-1", "lb-1"]
    );
    // The router sends VIPs to the LB, and without a balancer its own kernel serves them.
    let client = topology.client();
    for reply in [client.http_get(v4, 5)?, client.udp_get(v6, 5)?].concat() {
        assert_eq!(reply.server, "lb-1");
        assert_eq!(reply.client_seen, reply.local_addr);
    }
    let seen = topology.router().counters()?;
    assert_eq!(seen.to(LinkKind::Lb).requests, seen.from(LinkKind::Client).requests);
    assert_eq!(seen.from(LinkKind::Lb).replies, seen.to(LinkKind::Client).replies);
    Ok(())
}

#[test]
fn the_router_spreads_flows_over_two_lbs() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).lbs(2).build()?;
    let hasty = topology.client().with_timeout(Duration::from_millis(5));
    for vip in [VIP_V4.parse()?, VIP_V6.parse()?] {
        topology.router().reset_counters()?;
        let outcomes = hasty.try_udp_get(vip, 64)?;
        assert!(outcomes.iter().all(Result::is_err), "nobody is there to answer");
        let seen = topology.router().counters()?;
        assert_eq!(seen.to(LinkKind::Lb).requests.packets, 64);
        for lb in ["lb1", "lb2"] {
            assert!(seen.links[lb].to.requests.packets > 10, "{seen:?}");
        }
    }
    topology.route([203, 0, 113, 0].into(), 24, &[])?;
    assert!(hasty.udp_get(VIP_V4.parse()?, 1).is_err());
    Ok(())
}
