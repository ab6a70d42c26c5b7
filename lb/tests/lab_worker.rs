//! `vipline node` on a real worker: crafted tunnel packets from where the LB node stands, and what becomes of each.

mod lab_support;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, bail};
use lab::{KubeProxy, LinkKind, Policy, Proto, RawSocket, Server, Topology, require_root};
use lab_support::{Bed, Daemon, Datagram, LbFile, NodeFile, eventually, framed, tunnelled, vip_v4, vip_v6};
use lb::datapath::holders;
use nix::sys::signal::Signal;

const PORT: u16 = 53;
/// Not the client's own ports: nothing of the kernel's stands there.
const FIRST_PORT: u16 = 20_000;

/// One worker with its agent and pod; in the LB node's place there is only a socket.
struct Rig {
    agent: Daemon,
    /// On the LB node's interface.
    wire: RawSocket,
    /// On the client's interface.
    client: RawSocket,
    _servers: Vec<Server>,
    topology: Topology,
}

impl Rig {
    fn new(file: impl FnOnce(NodeFile) -> NodeFile) -> Result<Self> {
        let topology = Topology::builder().workers(1).build()?;
        let _servers = topology.serve(&[(Proto::Udp, vip_v4(1, PORT)), (Proto::Udp, vip_v6(1, PORT))])?;
        let agent = Daemon::node(topology.worker(0), &file(NodeFile::new(&topology)))?;
        let wire = RawSocket::open(topology.lb(0).ns(), "eth0")?;
        let client = RawSocket::open(topology.client().ns(), "eth0")?;
        Ok(Self {
            agent,
            wire,
            client,
            _servers,
            topology,
        })
    }

    fn lb(&self, v4: bool) -> IpAddr {
        let lb = self.topology.lb(0);
        if v4 { lb.addr_v4().into() } else { lb.addr_v6().into() }
    }

    fn worker(&self, v4: bool) -> IpAddr {
        let worker = self.topology.worker(0);
        if v4 {
            worker.addr_v4().into()
        } else {
            worker.addr_v6().into()
        }
    }

    /// A datagram from the client to the VIP.
    fn request(&self, v4: bool, port: u16, payload: &str) -> Datagram {
        let client = self.topology.client();
        let (address, vip): (IpAddr, SocketAddr) = if v4 {
            (client.addr_v4().into(), vip_v4(1, PORT))
        } else {
            (client.addr_v6().into(), vip_v6(1, PORT))
        };
        Datagram::new(SocketAddr::new(address, port), vip, payload)
    }

    /// Sends an IP packet from the LB node's interface to the router.
    fn send(&self, ip: &[u8]) -> Result<()> {
        let lb = self.topology.lb(0);
        self.wire.send(&framed(lb.eth0().gateway_mac, lb.mac(), ip))
    }

    /// Sends a datagram through a tunnel from the LB node to the worker.
    fn tunnel(&self, v4: bool, tos: u8, inner: &Datagram) -> Result<()> {
        self.send(&tunnelled(self.lb(v4), self.worker(v4), tos, &inner.ip()))
    }

    /// Replies to `expected` different ports that arrive at the client from the VIP: port by port.
    fn replies(&self, expected: usize) -> Result<BTreeMap<u16, Datagram>> {
        let mut replies = BTreeMap::new();
        while replies.len() < expected {
            let from_vip = |frame: &[u8]| Datagram::of(frame).is_some_and(|reply| reply.source.port() == PORT);
            let Some(frame) = self.client.next(Duration::from_secs(5), from_vip)? else {
                bail!("{} of {expected} replies", replies.len());
            };
            let reply = Datagram::of(&frame).expect("a datagram");
            replies.insert(reply.destination.port(), reply);
        }
        Ok(replies)
    }

    /// Asserts that the client hears nothing from a VIP for a while: all that was sent has died.
    fn assert_silence(&self, what: &str) -> Result<()> {
        let reply = self.client.next(Duration::from_millis(300), |frame| {
            Datagram::of(frame).is_some_and(|reply| reply.source.port() == PORT)
        })?;
        assert_eq!(reply, None, "{what}");
        Ok(())
    }
}

#[test]
fn four_kinds_of_tunnel_reach_the_pod_and_replies_leave_from_the_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const COUNT: u16 = 100;
    let rig = Rig::new(|file| file)?;
    for (kind, (outer_v4, inner_v4)) in (0_u16..).zip([(true, true), (false, false), (true, false), (false, true)]) {
        let what = format!("outer v4: {outer_v4}, inner v4: {inner_v4}");
        let (counted, router) = (rig.agent.counted()?, rig.topology.router().counters()?);
        for port in 0..COUNT {
            let request = rig.request(inner_v4, FIRST_PORT + kind * COUNT + port, &format!("{kind}/{port}"));
            rig.tunnel(outer_v4, 0, &request)?;
        }
        for (port, reply) in rig.replies(COUNT.into())? {
            let request = rig.request(inner_v4, port, "");
            assert_eq!(reply.source, request.destination, "{what}: the reply is the VIP's");
            let text = String::from_utf8(reply.payload)?;
            let (head, payload) = text.split_once('\n').expect("a lab server's answer");
            assert_eq!(
                payload,
                format!("{kind}/{}", port - FIRST_PORT - kind * COUNT),
                "{what}"
            );
            assert!(
                head.contains(&format!("\"client\":\"{}\"", request.source)),
                "{what}: address kept: {head}"
            );
        }
        let counted_now = rig.agent.counted()?;
        assert_eq!(
            counted_now.since(&counted),
            BTreeMap::from([("pass decapsulated", u64::from(COUNT))]),
            "{what}"
        );
        let seen = rig.topology.router().counters()? - &router;
        assert_eq!(seen.to(LinkKind::Worker).tunnel.packets, u64::from(COUNT), "{what}");
        assert_eq!(seen.from(LinkKind::Worker).replies.packets, u64::from(COUNT), "{what}");
        assert_eq!(
            seen.from(LinkKind::Worker).requests.packets,
            0,
            "{what}: none comes back"
        );
        assert_eq!(
            seen.to(LinkKind::Lb).replies.packets,
            0,
            "{what}: none goes by the LB node"
        );
    }
    Ok(())
}

#[test]
fn the_tunnel_costs_one_hop_and_a_congestion_mark_comes_through() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let rig = Rig::new(|file| file)?;
    let pod = RawSocket::open(rig.topology.worker(0).pod()?.ns(), "eth0")?;
    // RFC 6040, figure 4: outer, inner, and what the pod shall see. DSCP is the inner packet's own.
    const DSCP: u8 = 0x28;
    let cases = [
        (0, 0, 0),
        (2, 0, 0),
        (3, 2, 3),
        (3, 1, 3),
        (3, 3, 3),
        (1, 2, 1),
        (2, 1, 1),
        (0, 2, 2),
    ];
    let mut port = FIRST_PORT;
    for v4 in [true, false] {
        for (outer, inner, seen) in cases {
            port += 1;
            let request = Datagram {
                tos: DSCP | inner,
                ..rig.request(v4, port, "mark")
            };
            rig.tunnel(v4, 0xb8 | outer, &request)?;
            let arrived = pod.next(Duration::from_secs(5), |frame| {
                Datagram::of(frame).is_some_and(|datagram| datagram.source.port() == port)
            })?;
            let Some(arrived) = arrived.as_deref().and_then(Datagram::of) else {
                bail!("outer {outer}, inner {inner}: nothing arrived");
            };
            assert_eq!(arrived.tos, DSCP | seen, "outer {outer}, inner {inner}");
            // One for the tunnel, one because the node routes to its pod.
            assert_eq!(arrived.hops, 64 - 2);
            assert_eq!(arrived.source, request.source);
        }
    }
    Ok(())
}

#[test]
fn what_is_not_a_known_lb_nodes_packet_for_a_vip_is_not_let_through() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let rig = Rig::new(|file| file.more("denied_inner_sources: [10.244.0.0/16, \"fd00:244::/32\"]"))?;
    let mut next_port = FIRST_PORT;
    for v4 in [true, false] {
        let mut request = || {
            next_port += 1;
            rig.request(v4, next_port, "no")
        };
        let from = |address: &str, request: Datagram| Datagram {
            source: SocketAddr::new(address.parse().expect("an address"), request.source.port()),
            ..request
        };
        let (lb, worker) = (rig.lb(v4), rig.worker(v4));
        let (stranger, no_vip) = if v4 {
            ("10.20.1.99", "10.30.1.9")
        } else {
            ("fd00:20:1::99", "fd00:30:1::9")
        };
        let (martian, pod) = if v4 {
            ("127.0.0.1", "10.244.1.10")
        } else {
            ("::1", "fd00:244:1::10")
        };
        let elsewhere = |request: Datagram| Datagram {
            destination: SocketAddr::new(no_vip.parse().expect("an address"), PORT),
            ..request
        };
        let good = request().ip();
        let longer_than_it_is = {
            let mut ip = good.clone();
            let at = if v4 { 2 } else { 4 };
            ip[at] = 0x7f;
            ip
        };
        let headless = &good[..good.len().min(12)];
        let cases: Vec<(&str, Vec<u8>)> = vec![
            (
                "pass foreign_tunnel",
                tunnelled(stranger.parse()?, worker, 0, &request().ip()),
            ),
            (
                "drop tunnel_not_vip",
                tunnelled(lb, worker, 0, &elsewhere(request()).ip()),
            ),
            (
                "drop tunnel_source",
                tunnelled(lb, worker, 0, &from(martian, request()).ip()),
            ),
            (
                "drop tunnel_source",
                tunnelled(lb, worker, 0, &from(pod, request()).ip()),
            ),
            (
                "drop tunnel_ttl",
                tunnelled(lb, worker, 0, &Datagram { hops: 1, ..request() }.ip()),
            ),
            (
                "drop tunnel_ttl",
                tunnelled(lb, worker, 0, &Datagram { hops: 0, ..request() }.ip()),
            ),
            ("drop tunnel_ecn", tunnelled(lb, worker, 3, &request().ip())),
            ("drop tunnel_malformed", tunnelled(lb, worker, 0, &longer_than_it_is)),
            ("drop tunnel_malformed", tunnelled(lb, worker, 0, headless)),
        ];
        for (position, (verdict, packet)) in cases.iter().enumerate() {
            let before = rig.agent.counted()?;
            rig.send(packet)?;
            eventually("the packet is counted", || {
                Ok(rig.agent.counted()?.of(verdict) > before.of(verdict))
            })?;
            let counted = rig.agent.counted()?;
            assert_eq!(
                counted.since(&before),
                BTreeMap::from([(*verdict, 1)]),
                "v4: {v4}, case {position}"
            );
        }
    }
    rig.assert_silence("none of these is answered")?;
    // The bed is not deaf: what is in order is answered.
    rig.tunnel(true, 0, &rig.request(true, 30_000, "yes"))?;
    rig.replies(1)?;
    Ok(())
}

#[test]
fn checks_that_are_off_are_off_and_said_loudly() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let file = |file: NodeFile| NodeFile {
        lb_sources: Vec::new(),
        ..file.more("check_source: false")
    };
    let rig = Rig::new(file)?;
    let inner = rig.request(true, FIRST_PORT, "from anyone");
    rig.send(&tunnelled("10.20.1.99".parse()?, rig.worker(true), 0, &inner.ip()))?;
    rig.replies(1)?;
    assert!(rig.agent.log()?.contains("check_source is off"), "{}", rig.agent.log()?);
    assert_eq!(rig.agent.counted()?.of("pass foreign_tunnel"), 0);
    Ok(())
}

/// Requests for a VIP that nothing on the node claims any more: tunnel packets in, VIP requests back out of the worker, and at the
/// LB node.
fn unclaimed(file: impl FnOnce(NodeFile) -> NodeFile) -> Result<[u64; 3]> {
    const COUNT: u16 = 20;
    let rig = Rig::new(file)?;
    KubeProxy::install(rig.topology.worker(0), &[], Policy::Local)?;
    let before = rig.topology.router().counters()?;
    let counted = rig.agent.counted()?;
    for port in 0..COUNT {
        rig.tunnel(true, 0, &rig.request(true, FIRST_PORT + port, "unclaimed"))?;
        rig.tunnel(false, 0, &rig.request(false, FIRST_PORT + port, "unclaimed"))?;
    }
    rig.assert_silence("nobody serves")?;
    let now = rig.agent.counted()?;
    assert_eq!(
        now.since(&counted),
        BTreeMap::from([("pass decapsulated", 2 * u64::from(COUNT))]),
        "all were for us"
    );
    let seen = rig.topology.router().counters()? - &before;
    let worker = (seen.to(LinkKind::Worker).tunnel, seen.from(LinkKind::Worker).requests);
    Ok([
        worker.0.packets,
        worker.1.packets,
        seen.to(LinkKind::Lb).requests.packets,
    ])
}

#[test]
fn what_the_node_does_not_claim_dies_there() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    assert_eq!(
        unclaimed(|file| file)?,
        [40, 0, 0],
        "tunnelled to the worker, back out of it, back to the LB node"
    );
    // The twin, without the rules: all of it comes back to the LB node, which would send it to the worker again.
    assert_eq!(unclaimed(|file| file.more("blackhole_unclaimed: false"))?, [40, 40, 40]);
    Ok(())
}

#[test]
fn a_reload_changes_what_is_let_through_and_a_bad_file_changes_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let rig = Rig::new(|file| file)?;
    let file = NodeFile::new(&rig.topology);
    let stranger: IpAddr = "10.20.1.99".parse()?;
    let from_stranger = |port| {
        let inner = rig.request(true, port, "hello");
        rig.send(&tunnelled(stranger, rig.worker(true), 0, &inner.ip()))
    };
    from_stranger(FIRST_PORT)?;
    rig.assert_silence("not known yet")?;

    let mut wider = file.clone();
    wider.lb_sources.push(stranger.to_string());
    wider.vip_prefixes.push("198.18.7.0/24".to_owned());
    rig.agent.reload_node(&wider)?;
    from_stranger(FIRST_PORT + 1)?;
    rig.replies(1)?;
    let rules = || rig.topology.worker(0).ns().sh("ip -4 rule");
    assert!(rules()?.contains("198.18.7.0/24"), "{}", rules()?);

    for (bad, why) in [
        ("lb_sources: [10.0.0.0/99]\n", "lb_sources"),
        (
            "interfaces: [eth1]\nlb_sources: [10.0.0.1]\nvip_prefixes: [203.0.113.0/24]\n",
            "needs a restart",
        ),
    ] {
        let error = rig.agent.reload(bad).expect_err("a bad file").to_string();
        assert!(error.contains(why), "{error}");
        assert!(rig.agent.log()?.contains("configuration refused"));
    }
    from_stranger(FIRST_PORT + 2)?;
    rig.replies(1)?;
    assert!(rules()?.contains("198.18.7.0/24"), "{}", rules()?);

    // Seen without a signal, too.
    rig.agent.reload_by_itself(&file.yaml(&rig.agent.socket()))?;
    from_stranger(FIRST_PORT + 3)?;
    rig.assert_silence("not known any more")?;
    assert!(!rules()?.contains("198.18.7.0/24"), "{}", rules()?);
    assert!(rules()?.contains("203.0.113.0/24"), "{}", rules()?);
    Ok(())
}

#[test]
fn an_address_that_the_node_gains_is_one_to_decapsulate_for() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let rig = Rig::new(|file| file)?;
    let worker = rig.topology.worker(0).ns();
    let new: IpAddr = "10.30.1.77".parse()?;
    let mut port = FIRST_PORT;
    let mut answered = || {
        port += 1;
        let before = rig.agent.counted()?;
        rig.send(&tunnelled(rig.lb(true), new, 0, &rig.request(true, port, "new").ip()))?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(rig.agent.counted()?.of("pass decapsulated") > before.of("pass decapsulated"))
    };
    worker.sh("ip addr add 10.30.1.77/24 dev eth0")?;
    let took = eventually("packets to the new address are decapsulated", &mut answered)?;
    println!("decapsulated for a new address after {took:?}");
    worker.sh("ip addr del 10.30.1.77/24 dev eth0")?;
    eventually("packets to the address that is gone are not", || Ok(!answered()?))?;
    Ok(())
}

#[test]
fn an_agent_that_ends_leaves_nothing_and_one_that_is_killed_leaves_only_what_is_safe() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut rig = Rig::new(|file| file)?;
    let worker = rig.topology.worker(0).ns().clone();
    let programs = || worker.run(|| Ok(holders("eth0")?.len()));
    let rules = || Ok::<_, anyhow::Error>(worker.sh("ip -4 rule")? + &worker.sh("ip -6 rule")?);
    assert_eq!(programs()?, 1);
    assert_eq!(rules()?.matches("blackhole").count(), 2, "{}", rules()?);

    assert!(rig.agent.end(Signal::SIGTERM)?.success());
    assert_eq!(programs()?, 0);
    assert_eq!(rules()?.matches("blackhole").count(), 0, "{}", rules()?);
    assert!(!rig.agent.socket().exists(), "the control socket is gone");

    rig.agent.start_again()?;
    rig.agent.end(Signal::SIGKILL)?;
    eventually("the kernel takes the program away", || Ok(programs()? == 0))?;
    assert_eq!(
        rules()?.matches("blackhole").count(),
        2,
        "rules outlive the process, and close what it kept closed"
    );

    rig.agent.start_again()?;
    assert_eq!(
        (programs()?, rules()?.matches("blackhole").count()),
        (1, 2),
        "{}",
        rules()?
    );
    rig.tunnel(true, 0, &rig.request(true, FIRST_PORT, "again"))?;
    rig.replies(1)?;
    assert!(rig.agent.end(Signal::SIGTERM)?.success());
    assert_eq!(rules()?.matches("blackhole").count(), 0, "{}", rules()?);
    Ok(())
}

/// Real requests through an LB node's daemon for a VIP that no worker claims: requests of the client, requests that the LB node saw,
/// packets that it sent on.
fn unclaimed_behind_the_lb(more: &str) -> Result<[u64; 3]> {
    const COUNT: usize = 20;
    let topology = Topology::builder().workers(2).build()?;
    let vips = [(Proto::Udp, vip_v4(1, PORT)), (Proto::Udp, vip_v6(1, PORT))];
    let node_file = NodeFile::new(&topology).more(more);
    let file = |topology: &Topology, lb: &lab::Node| LbFile::new(topology, lb).vips(&vips, "v4");
    let bed = Bed::start_with(topology, file, &node_file)?;
    for worker in bed.topology.workers() {
        KubeProxy::install(worker, &[], Policy::Local)?;
    }
    let before = (bed.lb().counted()?, bed.topology.router().counters()?);
    let client = bed.topology.client().with_timeout(Duration::from_millis(5));
    for (_, vip) in vips {
        assert!(
            client.try_udp_get(vip, COUNT)?.iter().all(Result::is_err),
            "nobody serves"
        );
    }
    std::thread::sleep(Duration::from_millis(300));
    let seen = bed.topology.router().counters()? - &before.1;
    let sent = bed.lb().counted()?.of("forward tx") - before.0.of("forward tx");
    Ok([
        seen.from(LinkKind::Client).requests.packets,
        seen.to(LinkKind::Lb).requests.packets,
        sent,
    ])
}

#[test]
fn the_lb_node_sees_a_packet_that_no_worker_claims_exactly_once() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    assert_eq!(unclaimed_behind_the_lb("")?, [40, 40, 40]);
    // The twin: without the rules each packet goes round until its TTL ends.
    let [asked, seen, sent] = unclaimed_behind_the_lb("blackhole_unclaimed: false")?;
    println!("without the rules the LB node sees {asked} packets {seen} times");
    assert!(asked == 40 && seen > 400 && sent > 400, "{asked} {seen} {sent}");
    Ok(())
}

#[test]
fn an_ipvs_kube_proxy_without_strict_arp_is_warned_of() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let worker = topology.worker(0);
    let mut agent = Daemon::node(worker, &NodeFile::new(&topology))?;
    let warnings = |agent: &Daemon| -> Result<usize> { Ok(agent.log()?.matches("without strictARP").count()) };
    assert_eq!(warnings(&agent)?, 0, "the control: there is no ipvs device");
    // What kube-proxy makes is a dummy; its name is what tells.
    let ns = worker.ns();
    ns.ip(&["link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "ipvs-peer"])?;
    agent.end(Signal::SIGTERM)?;
    agent.start_again()?;
    assert_eq!(warnings(&agent)?, 1);
    assert!(agent.log()?.contains("net.ipv4.conf.all.arp_ignore=1"));
    ns.sh("sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")?;
    agent.end(Signal::SIGTERM)?;
    agent.start_again()?;
    assert_eq!(warnings(&agent)?, 1, "as strictARP sets them: no other warning");
    Ok(())
}
