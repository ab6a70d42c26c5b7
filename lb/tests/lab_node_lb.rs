//! LB nodes that are workers too: a backend that is this node, two of them behind one another, and what nobody claims there.

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Result;
use lab::{KubeProxy, LinkKind, Node, Policy, Proto, Topology, TopologyBuilder, VlanTags, require_root};
use lab_support::{Bed, LbFile, assert_spread, count_servers, vip_v4, vip_v6};
use lb::control::NextHopKind;

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];

fn all_vips() -> [SocketAddr; 4] {
    [vip_v4(4, 80), vip_v4(6, 80), vip_v6(4, 80), vip_v6(6, 80)]
}

/// All workers and all LB nodes are backends, by both families; `tunnel` as YAML lines.
fn everyone(tunnel: bool) -> impl Fn(&Topology, &Node) -> LbFile {
    move |topology, lb| {
        let on = |vips: [SocketAddr; 2]| vips.into_iter().flat_map(|vip| BOTH.map(|proto| (proto, vip)));
        let [a, b, c, d] = all_vips();
        let mut file = LbFile::new(topology, lb)
            .vips(&on([a, c]).collect::<Vec<_>>(), "v4")
            .vips(&on([b, d]).collect::<Vec<_>>(), "v6");
        for lb in topology.lbs() {
            file.members("v4")
                .push((lb.name().to_owned(), lb.addr_v4().into(), 100));
            file.members("v6")
                .push((format!("{}-v6", lb.name()), lb.addr_v6().into(), 100));
        }
        if !tunnel {
            return file;
        }
        let others = topology.lbs().iter().filter(|other| other.name() != lb.name());
        let sources: Vec<_> = others
            .flat_map(|other| [format!("{}", other.addr_v4()), format!("\"{}\"", other.addr_v6())])
            .collect();
        file.more(&format!(
            "tunnel:\n  sources: [{}]\n  vip_prefixes: [203.0.113.0/24, \"2001:db8:f00d::/64\"]",
            sources.join(", ")
        ))
    }
}

#[test]
fn a_backend_that_is_this_node_is_served_here_without_a_tunnel() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start(Topology::builder().workers(2).lb_pods().build()?, everyone(false))?;
    assert_eq!(bed.lb().backend("lb-1")?.next_hop, NextHopKind::Local);
    assert_eq!(bed.lb().backend("lb-1-v6")?.next_hop, NextHopKind::Local);
    let share = ["lb-1", "worker-1", "worker-2"].map(|name| (name, 1));
    for vip in all_vips() {
        let (before, router) = (bed.lb().counted()?, bed.topology.router().counters()?);
        let replies = bed.topology.client().http_get(vip, 150)?;
        assert!(
            replies
                .iter()
                .all(|reply| reply.client_seen.ip() == reply.local_addr.ip()),
            "{vip}"
        );
        let counts = count_servers(&replies);
        assert_spread(&vip.to_string(), &counts, &share);
        let counted = bed.lb().counted()?;
        assert!(
            counted.of("forward local") - before.of("forward local") >= 4 * counts["lb-1"] as u64,
            "{vip}"
        );
        let seen = bed.topology.router().counters()? - &router;
        assert!(
            seen.from(LinkKind::Lb).replies.packets >= 4 * counts["lb-1"] as u64,
            "{vip}: its own replies"
        );
        for reply in bed.topology.client().udp_get(vip, 20)? {
            assert_eq!(reply.client_seen.ip(), reply.local_addr.ip());
        }
    }
    Ok(())
}

/// Two LB nodes and a worker are all each other's backends.
fn for_each_other(builder: TopologyBuilder) -> Result<()> {
    let bed = Bed::start(builder.workers(1).lbs(2).lb_pods().build()?, everyone(true))?;
    for vip in all_vips() {
        let before = [bed.lbs[0].counted()?, bed.lbs[1].counted()?];
        let replies = bed.topology.client().http_get(vip, 200)?;
        assert!(
            replies
                .iter()
                .all(|reply| reply.client_seen.ip() == reply.local_addr.ip()),
            "{vip}"
        );
        assert_spread(
            &vip.to_string(),
            &count_servers(&replies),
            &["lb-1", "lb-2", "worker-1"].map(|name| (name, 1)),
        );
        for (lb, before) in bed.lbs.iter().zip(&before) {
            let counted = lb.counted()?;
            let since = counted.since(before);
            for verdict in ["forward local", "forward tx", "pass decapsulated"] {
                assert!(
                    since.get(verdict).is_some_and(|count| *count > 20),
                    "{vip}: {verdict} in {since:?}"
                );
            }
            assert_eq!(since.len(), 3, "{vip}: {since:?}");
        }
        bed.topology.client().udp_get(vip, 30)?;
        bed.topology.client().upload(vip, 1_000_000)?;
        bed.topology.client().download(vip, 1_000_000)?;
    }
    Ok(())
}

#[test]
fn lb_nodes_decapsulate_for_each_other_in_their_balancer() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for_each_other(Topology::builder())
}

#[test]
fn lb_nodes_decapsulate_for_each_other_behind_vlan_tags() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for_each_other(Topology::builder().vlan(VlanTags::Two { outer: 7, inner: 300 }))
}

#[test]
fn both_lb_nodes_send_a_flow_to_the_same_backend() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start(Topology::builder().workers(2).lbs(2).build()?, |topology, lb| {
        LbFile::new(topology, lb).vips(&[(Proto::Tcp, vip_v4(4, 80))], "v4")
    })?;
    let client = bed.topology.client();
    let mut open = Vec::new();
    for _ in 0..60 {
        let mut connection = client.connect(vip_v4(4, 80))?;
        let server = connection.get()?.server;
        open.push((connection, server));
    }
    // Whichever LB node is in the way now, connections go on: nobody has to tell the other.
    for lb in [0, 1] {
        bed.topology
            .route([203, 0, 113, 0].into(), 24, &[bed.topology.lb(lb)])?;
        let before = bed.lbs[1 - lb].counted()?;
        for (connection, server) in &mut open {
            assert_eq!(connection.get()?.server, *server);
        }
        assert_eq!(
            bed.lbs[1 - lb].counted()?.since(&before),
            BTreeMap::new(),
            "the other one sees nothing"
        );
    }
    Ok(())
}

/// Requests that nobody on LB node 1 claims, sent to it in a tunnel by LB node 2 or handed up by its own balancer: requests in by the
/// client's link, tunnel packets to LB node 1, and VIP requests that come out of an LB node again.
fn unclaimed(via: usize, rules: bool) -> Result<[u64; 3]> {
    const COUNT: usize = 40;
    let bed = Bed::start(
        Topology::builder().workers(1).lbs(2).lb_pods().build()?,
        |topology, lb| {
            let mut file = everyone(true)(topology, lb);
            // Only LB node 1 is left.
            file.members("v4").retain(|member| member.0 == "lb-1");
            file.members("v6").retain(|member| member.0 == "lb-1-v6");
            file
        },
    )?;
    let (first, router) = (bed.topology.lb(0), bed.topology.router());
    KubeProxy::install(first, &[], Policy::Local)?;
    if !rules {
        for family in ["-4", "-6"] {
            while first.ns().sh(&format!("ip {family} rule"))?.contains("blackhole") {
                first.ns().sh(&format!("ip {family} rule del blackhole"))?;
            }
        }
    }
    bed.topology
        .route([203, 0, 113, 0].into(), 24, &[bed.topology.lb(via)])?;
    bed.topology
        .route("2001:db8:f00d::".parse()?, 64, &[bed.topology.lb(via)])?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(5));
    let before = router.counters()?;
    for vip in [vip_v4(4, 80), vip_v6(6, 80)] {
        assert!(
            client.try_udp_get(vip, COUNT / 2)?.iter().all(Result::is_err),
            "nobody serves"
        );
    }
    std::thread::sleep(Duration::from_millis(300));
    let seen = router.counters()? - &before;
    let lb1 = seen.links["lb1"];
    println!(
        "via lb-{}, rules {rules}: {:?}",
        via + 1,
        bed.lbs[0]
            .counted()?
            .0
            .iter()
            .filter(|(_, n)| **n > 0)
            .collect::<Vec<_>>()
    );
    Ok([
        seen.from(LinkKind::Client).requests.packets,
        lb1.to.tunnel.packets,
        seen.from(LinkKind::Lb).requests.packets,
    ])
}

#[test]
fn what_an_lb_node_does_not_claim_dies_there_when_another_sent_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    assert_eq!(unclaimed(1, true)?, [40, 40, 0]);
    // The twin, without the rules: packets go round and round until their TTL ends.
    let [asked, tunnelled, again] = unclaimed(1, false)?;
    assert!(
        asked == 40 && tunnelled > 400 && again > 400,
        "{asked} {tunnelled} {again}"
    );
    Ok(())
}

#[test]
fn what_an_lb_node_does_not_claim_dies_there_when_its_own_balancer_handed_it_up() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    assert_eq!(unclaimed(0, true)?, [40, 0, 0]);
    let [asked, _, again] = unclaimed(0, false)?;
    assert!(asked == 40 && again > 400, "the twin: {asked} {again}");
    Ok(())
}

#[test]
fn a_backend_that_is_this_node_needs_no_tunnel_key_for_its_unclaimed_to_die() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start(Topology::builder().workers(1).lb_pods().build()?, |topology, lb| {
        let mut file = everyone(false)(topology, lb);
        file.members("v4").retain(|member| member.0 == "lb-1");
        file.members("v6").retain(|member| member.0 == "lb-1-v6");
        file
    })?;
    KubeProxy::install(bed.topology.lb(0), &[], Policy::Local)?;
    let before = bed.topology.router().counters()?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(5));
    assert!(client.try_udp_get(vip_v4(4, 80), 20)?.iter().all(Result::is_err));
    assert!(client.try_udp_get(vip_v6(6, 80), 20)?.iter().all(Result::is_err));
    std::thread::sleep(Duration::from_millis(200));
    let seen = bed.topology.router().counters()? - &before;
    assert_eq!(
        (
            seen.to(LinkKind::Lb).requests.packets,
            seen.from(LinkKind::Lb).requests.packets
        ),
        (40, 0)
    );
    Ok(())
}
