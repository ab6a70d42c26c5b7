//! What is on the wire: raw frames, VLAN tags where XDP looks for them, frames that XDP sends.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lab::{End, LinkKind, Mtus, Netns, RawSocket, Server, Topology, Veth, VlanTags, program, require_root};

const WAIT: Duration = Duration::from_secs(2);
const QINQ: VlanTags = VlanTags::Two {
    outer: 100,
    inner: 4094,
};

/// A frame from the router's end to the LB, with an ethertype that nobody handles.
fn frame(topology: &Topology, tags: &[u8]) -> Vec<u8> {
    let eth0 = topology.lb(0).eth0();
    [&eth0.mac, &eth0.gateway_mac, tags, &[0x88, 0xb5], &[0x5a; 60]].concat()
}

/// An ARP packet, under no tag, one or two.
fn is_arp(frame: &[u8]) -> bool {
    [12, 16, 20]
        .into_iter()
        .any(|at| frame.get(at..at + 2) == Some(&[0x08, 0x06]))
}

#[test]
fn xdp_transmits_into_a_peer_that_has_pass() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let (lb, router) = (topology.lb(0), topology.router());
    let _reflect = program::reflect(lb.ns(), &["eth0"])?;
    let wire = RawSocket::open(router.ns(), &lb.eth0().peer)?;
    let sent = frame(&topology, &[]);
    wire.send(&sent)?;
    let back = wire
        .next(WAIT, |frame| frame[..6] == lb.eth0().gateway_mac)?
        .context("nothing came back")?;
    assert_eq!(back[6..12], lb.mac());
    assert_eq!(back[12..], sent[12..]);
    assert!(
        wire.next(Duration::from_millis(50), |frame| frame == back)?.is_none(),
        "came twice"
    );
    Ok(())
}

/// The control: why the lab's topologies have `pass` at the router's ends.
#[test]
fn xdp_transmits_nothing_into_a_peer_without_a_program() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let end = |name: &str, host: u8| -> Result<End> {
        Ok(End {
            ns: Netns::new(name)?,
            name: name.to_owned(),
            mac: [2, 0, 0, 0, 0, host],
            v4: None,
            v6: None,
        })
    };
    let Veth { a, b } = Veth::new(end("left", 1)?, end("right", 2)?, 1500, 2)?;
    let _reflect = program::reflect(&b.ns, &[&b.name])?;
    let wire = RawSocket::open(&a.ns, &a.name)?;
    let frame = [&b.mac[..], &a.mac, &[0x88, 0xb5], &[0x5a; 60]].concat();
    wire.send(&frame)?;
    let to_a = |frame: &[u8]| frame[..6] == a.mac;
    assert!(wire.next(Duration::from_millis(200), to_a)?.is_none());
    let _pass = program::pass(&a.ns, &[&a.name])?;
    wire.send(&frame)?;
    assert!(wire.next(WAIT, to_a)?.is_some());
    Ok(())
}

#[test]
fn xdp_sees_the_tags_in_the_packet() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for tags in [VlanTags::One(42), QINQ] {
        let topology = Topology::builder().workers(1).vlan(tags).build()?;
        let (lb, router) = (topology.lb(0), topology.router());
        let wire = RawSocket::open(router.ns(), &lb.eth0().peer)?;
        let _reflect = program::reflect(lb.ns(), &["eth0"])?;
        // The router's kernel asks for the LB's address; tc tags it; `reflect` sends back what it saw, which includes the tags only
        // if they stood in the packet.
        let _ = router.ns().sh(&format!("ping -n -c 1 -w 1 {}", lb.addr_v4()));
        let tagged_arp = [tags.bytes(), vec![0x08, 0x06]].concat();
        let out = wire
            .next(WAIT, |frame| is_arp(frame) && frame[6..12] == lb.eth0().gateway_mac)?
            .context("nothing was sent")?;
        assert_eq!(out[12..12 + tagged_arp.len()], tagged_arp, "{tags:?}");
        let back = wire
            .next(WAIT, |frame| is_arp(frame) && frame[..6] == lb.eth0().gateway_mac)?
            .context("nothing came back")?;
        assert_eq!(back[12..12 + tagged_arp.len()], tagged_arp, "{tags:?}");
    }
    Ok(())
}

#[test]
fn a_tagged_link_carries_ip_and_drops_what_is_not_tagged_so() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for tags in [VlanTags::One(42), QINQ] {
        let mtus = Mtus {
            client: 9000,
            lb: 9000,
            worker: 9000,
        };
        let topology = Topology::builder()
            .workers(1)
            .two_interfaces()
            .vlan(tags)
            .vlan_back(VlanTags::One(7))
            .mtus(mtus)
            .build()?;
        let (client, lb) = (topology.client(), topology.lb(0));
        // With native XDP on the LB's side too, as it will be.
        let _pass = program::pass(lb.ns(), &["eth0", "eth1"])?;
        client.ping(lb.addr_v4().into(), 9000 - 28)?;
        client.ping(lb.addr_v6().into(), 9000 - 48)?;
        lb.ns()
            .sh(&format!("ping -n -c 1 -w 2 {}", topology.worker(0).addr_v6()))?;
        let _server = Server::start(lb.ns(), "lb", 8080)?;
        let address = SocketAddr::new(lb.addr_v6().into(), 8080);
        client.download(address, 1_000_000)?;
        client.upload(address, 1_000_000)?;

        // An echo request without tags, or with others, gets no answer.
        let wire = RawSocket::open(topology.router().ns(), &lb.eth0().peer)?;
        for (wrong, answered) in [
            (vec![], false),
            (VlanTags::One(43).bytes(), false),
            (tags.bytes(), true),
        ] {
            let builder = etherparse::PacketBuilder::ethernet2(lb.eth0().gateway_mac, lb.mac())
                .ipv4(lb.eth0().gateway_v4.octets(), lb.addr_v4().octets(), 64)
                .icmpv4_echo_request(7, u16::from(answered));
            let mut frame = Vec::new();
            builder.write(&mut frame, b"vipline")?;
            frame.splice(12..12, wrong);
            wire.send(&frame)?;
            let answer = wire.next(Duration::from_millis(if answered { 2000 } else { 150 }), |frame| {
                frame[6..12] == lb.mac() && frame.windows(7).any(|bytes| bytes == b"vipline")
            })?;
            assert_eq!(answer.is_some(), answered, "{tags:?}");
        }
    }
    Ok(())
}

#[test]
fn counters_tell_requests_replies_and_tunnels_by_link() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let tags = VlanTags::One(5);
    let topology = Topology::builder().workers(2).vlan(tags).build()?;
    let (lb, router) = (topology.lb(0), topology.router());
    // From the LB by hand: a reply with the VIP as source, and IPv4 in IPv4 to a worker.
    let wire = RawSocket::open(lb.ns(), "eth0")?;
    let vip = [203, 0, 113, 9];
    let to_router = || etherparse::PacketBuilder::ethernet2(lb.mac(), lb.eth0().gateway_mac);
    let mut inner = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 10, 1, 2], vip, 64)
        .udp(1, 2)
        .write(&mut inner, b"hello")?;
    let mut reply = Vec::new();
    to_router()
        .ipv4(vip, topology.client().addr_v4().octets(), 64)
        .udp(1, 2)
        .write(&mut reply, b"hello")?;
    let mut tunnel = Vec::new();
    to_router()
        .ipv4(lb.addr_v4().octets(), topology.worker(1).addr_v4().octets(), 64)
        .write(&mut tunnel, etherparse::IpNumber::IPV4, &inner)?;
    let before = router.counters()?;
    for frame in [&reply, &tunnel, &tunnel] {
        let mut frame = frame.clone();
        frame.splice(12..12, tags.bytes());
        wire.send(&frame)?;
    }
    let deadline = std::time::Instant::now() + WAIT;
    loop {
        let seen = router.counters()? - &before;
        if seen.links["w2"].to.tunnel.packets == 2 {
            assert_eq!(seen.from(LinkKind::Lb).replies.packets, 1);
            assert_eq!(seen.from(LinkKind::Lb).replies.bytes, 20 + 8 + 5);
            assert_eq!(seen.from(LinkKind::Lb).tunnel.packets, 2);
            assert_eq!(seen.from(LinkKind::Lb).requests.packets, 0);
            assert_eq!(seen.to(LinkKind::Client).replies.packets, 1);
            assert_eq!(seen.links["w1"].to, lab::Traffic::default());
            return Ok(());
        }
        assert!(std::time::Instant::now() < deadline, "{seen:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
