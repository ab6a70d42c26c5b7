//! What happens around a running LB daemon: gateways change their MAC address, routes change, neighbours go and come back.

mod lab_support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::{Load, LoadKind, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, PATIENCE, count_servers, eventually, vip_v4, vip_v6};
use lb::control::NextHopKind;

const NEW_MAC: &str = "02:1b:14:01:00:77";

fn vips() -> [(Proto, SocketAddr); 2] {
    [(Proto::Tcp, vip_v4(1, 80)), (Proto::Tcp, vip_v6(1, 80))]
}

/// MAC address and interface that a backend is reached by; why it is not, otherwise.
fn next_hop(bed: &Bed, name: &str) -> Result<Result<(String, String), String>> {
    Ok(match bed.lb().backend(name)?.next_hop {
        NextHopKind::Via { interface, mac, .. } => Ok((mac, interface)),
        NextHopKind::Unresolved { reason } => Err(reason),
        NextHopKind::Local => Err("local".to_owned()),
    })
}

/// The LB node's kernel takes its neighbours for reachable for about a second only, and gives up sooner. What is left is its look at
/// managed entries every five seconds, which is the whole machine's. Before the daemon starts: timers that run already stay as they are.
fn hurried(topology: Topology) -> Result<Topology> {
    for family in ["ipv4", "ipv6"] {
        for (key, value) in [
            ("base_reachable_time_ms", "1000"),
            ("delay_first_probe_time", "1"),
            ("retrans_time_ms", "200"),
            ("ucast_solicit", "2"),
            ("mcast_solicit", "2"),
        ] {
            topology
                .lb(0)
                .ns()
                .sysctl(&format!("net/{family}/neigh/eth0/{key}"), value)?;
        }
    }
    Ok(topology)
}

/// A bed whose VIPs go to workers by IPv4 and by IPv6.
fn both_families(topology: Topology) -> Result<Bed> {
    Bed::start(topology, |topology, lb| {
        let [v4, v6] = vips();
        LbFile::new(topology, lb).vips(&[v4], "v4").vips(&[v6], "v6")
    })
}

/// The gateway changes its MAC address; how long until every backend's line has the new one.
fn new_mac(bed: &Bed) -> Result<Duration> {
    let (client, router) = (bed.topology.client(), bed.topology.router().ns());
    for (_, vip) in vips() {
        client.http_get(vip, 20)?;
    }
    let start = Instant::now();
    router.sh(&format!("ip link set dev lb1 address {NEW_MAC}"))?;
    for name in ["worker-1", "worker-2", "worker-1-v6", "worker-2-v6"] {
        eventually("the new MAC address is in the backend's line", || {
            Ok(next_hop(bed, name)? == Ok((NEW_MAC.to_owned(), "eth0".to_owned())))
        })?;
    }
    let took = start.elapsed();
    for (_, vip) in vips() {
        for reply in client.http_get(vip, 20)? {
            assert_eq!(reply.client_seen, reply.local_addr);
        }
    }
    assert!(bed.lb().log()?.contains("next hops changed"), "{}", bed.lb().log()?);
    Ok(took)
}

#[test]
fn a_gateways_new_mac_address_is_taken_over_when_it_is_announced() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(2).build()?;
    // Routers that fail over announce themselves: gratuitous ARP, unsolicited neighbour advertisements.
    topology.router().ns().sysctl("net/ipv4/conf/lb1/arp_notify", "1")?;
    topology.router().ns().sysctl("net/ipv6/conf/lb1/ndisc_notify", "1")?;
    let bed = both_families(topology)?;
    // The kernel protects an entry from being changed again within a second (locktime).
    std::thread::sleep(Duration::from_millis(1100));
    let took = new_mac(&bed)?;
    println!("announced: {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    Ok(())
}

#[test]
fn a_gateways_new_mac_address_is_found_when_nobody_announces_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = both_families(hurried(Topology::builder().workers(2).build()?)?)?;
    println!("not announced: {:?}", new_mac(&bed)?);
    Ok(())
}

#[test]
fn a_route_that_moves_to_another_interface_takes_the_packets_along() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = both_families(Topology::builder().workers(2).two_interfaces().build()?)?;
    let (lb, client) = (bed.topology.lb(0), bed.topology.client());
    let load = Load::start(client, vip_v4(1, 80), LoadKind::KeepAlive, 2)?;
    load.wait_for(50, PATIENCE)?;
    let by = |verdict: &str| {
        let before = bed.lb().counted()?.of(verdict);
        for (_, vip) in vips() {
            client.http_get(vip, 10)?;
        }
        Ok::<_, anyhow::Error>(bed.lb().counted()?.of(verdict) - before)
    };
    assert!(by("forward redirect")? >= 2 * 10 * 4);
    let (front, back) = (lb.eth0(), lb.back());
    for (gateway_v4, gateway_v6, dev, verdict) in [
        (front.gateway_v4, front.gateway_v6, "eth0", "forward tx"),
        (back.gateway_v4, back.gateway_v6, "eth1", "forward redirect"),
    ] {
        let start = Instant::now();
        lb.ns().sh(&format!("ip route replace 10.30.0.0/16 via {gateway_v4}"))?;
        lb.ns()
            .sh(&format!("ip -6 route replace fd00:30::/32 via {gateway_v6}"))?;
        for name in ["worker-1", "worker-2", "worker-1-v6", "worker-2-v6"] {
            eventually("the backend is reached by the other interface", || {
                Ok(next_hop(&bed, name)?.is_ok_and(|(_, interface)| interface == dev))
            })?;
        }
        println!("{dev}: after {:?}", start.elapsed());
        assert!(by(verdict)? >= 2 * 10 * 4, "{verdict}");
    }
    // An open connection does not notice.
    let report = load.stop()?;
    assert_eq!((report.failed, report.moved), (0, 0), "{:?}", report.errors);
    Ok(())
}

#[test]
fn a_neighbour_that_is_lost_is_named_and_counted_and_comes_back() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = both_families(hurried(Topology::builder().workers(3).on_link().build()?)?)?;
    let client = bed.topology.client().with_timeout(Duration::from_millis(100));
    let router = bed.topology.router().ns();
    let served = |vip| {
        let outcomes = client.try_http_get(vip, 60)?;
        let (good, bad): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        let counts = count_servers(&good.into_iter().filter_map(Result::ok).collect::<Vec<_>>());
        Ok::<_, anyhow::Error>((counts, bad.len()))
    };
    for (_, vip) in vips() {
        let (counts, failed) = served(vip)?;
        assert_eq!((counts.len(), failed), (3, 0), "the control: all three answer");
    }
    let start = Instant::now();
    router.sh("ip link set dev w2 down")?;
    for name in ["worker-2", "worker-2-v6"] {
        eventually("the lost neighbour is told of", || Ok(next_hop(&bed, name)?.is_err()))?;
        println!("{name}: {:?} after {:?}", next_hop(&bed, name)?, start.elapsed());
    }
    let table = bed.lb().cli(&["backends"])?;
    ensure!(
        table
            .lines()
            .any(|line| line.starts_with("worker-2 ") && line.contains("UNRESOLVED")),
        "{table}"
    );
    assert_eq!(bed.lb().status()?.backends_ready, 4);
    for (_, vip) in vips() {
        let before = bed.lb().counted()?;
        let (counts, failed) = served(vip)?;
        assert!(!counts.contains_key("worker-2") && counts.len() == 2, "{counts:?}");
        assert!(failed > 0, "its slots wait for it");
        let counted = bed.lb().counted()?;
        assert!(counted.of("slow next_hop") - before.of("slow next_hop") >= failed as u64);
        let vips = bed.lb().vips()?;
        assert!(vips.iter().all(|vip| (vip.ready, vip.backends) == (2, 3)), "{vips:?}");
    }

    let start = Instant::now();
    router.sh("ip link set dev w2 up")?;
    for name in ["worker-2", "worker-2-v6"] {
        eventually("the neighbour is back", || Ok(next_hop(&bed, name)?.is_ok()))?;
        println!("{name}: back after {:?}", start.elapsed());
    }
    for (_, vip) in vips() {
        let (counts, failed) = served(vip)?;
        assert_eq!((counts.len(), failed), (3, 0), "{counts:?}");
    }
    Ok(())
}

#[test]
fn a_backend_without_a_route_waits_for_one() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = both_families(Topology::builder().workers(2).build()?)?;
    let lb = bed.topology.lb(0);
    let client = bed.topology.client().with_timeout(Duration::from_millis(100));
    lb.ns().sh("ip route add unreachable 10.30.2.0/24")?;
    eventually("no route is told of", || Ok(next_hop(&bed, "worker-2")?.is_err()))?;
    println!("{:?}", next_hop(&bed, "worker-2")?);
    assert!(next_hop(&bed, "worker-1")?.is_ok());
    let before = bed.lb().counted()?;
    assert!(client.try_http_get(vip_v4(1, 80), 40)?.iter().any(Result::is_err));
    assert!(bed.lb().counted()?.of("slow next_hop") > before.of("slow next_hop"));

    // A file that is read meanwhile is applied all the same.
    bed.lb()
        .reload_lb(&bed.file().vips(&[(Proto::Tcp, vip_v4(2, 80))], "v4"))?;
    lb.ns().sh("ip route del unreachable 10.30.2.0/24")?;
    eventually("the route is back", || Ok(next_hop(&bed, "worker-2")?.is_ok()))?;
    client.http_get(vip_v4(1, 80), 40)?;
    Ok(())
}

#[test]
fn an_interface_that_goes_down_and_comes_up_serves_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = both_families(Topology::builder().workers(2).two_interfaces().build()?)?;
    let (lb, client) = (bed.topology.lb(0), bed.topology.client());
    for (_, vip) in vips() {
        client.http_get(vip, 20)?;
    }
    lb.ns().sh("ip link set dev eth1 down")?;
    // Routes by it are gone with it: the default route leads to workers too, by the other interface.
    for name in ["worker-1", "worker-2"] {
        eventually("the other interface takes over", || {
            Ok(next_hop(&bed, name)?.is_ok_and(|(_, interface)| interface == "eth0"))
        })?;
    }
    client.http_get(vip_v4(1, 80), 20)?;

    let back = lb.back();
    lb.ns().sh("ip link set dev eth1 up")?;
    lb.ns().sh(&format!("ip addr replace {}/64 dev eth1 nodad", back.v6))?;
    lb.ns()
        .sh(&format!("ip route replace 10.30.0.0/16 via {}", back.gateway_v4))?;
    lb.ns()
        .sh(&format!("ip -6 route replace fd00:30::/32 via {}", back.gateway_v6))?;
    for name in ["worker-1", "worker-2", "worker-1-v6", "worker-2-v6"] {
        eventually("it is used again", || {
            Ok(next_hop(&bed, name)?.is_ok_and(|(_, interface)| interface == "eth1"))
        })?;
    }
    let before = bed.lb().counted()?;
    for (_, vip) in vips() {
        client.http_get(vip, 20)?;
    }
    assert!(bed.lb().counted()?.of("forward redirect") - before.of("forward redirect") >= 2 * 20 * 4);

    // The interface that clients come by, too.
    let front = lb.eth0();
    lb.ns().sh("ip link set dev eth0 down")?;
    lb.ns().sh("ip link set dev eth0 up")?;
    lb.ns().sh(&format!("ip addr replace {}/64 dev eth0 nodad", front.v6))?;
    lb.ns()
        .sh(&format!("ip route replace default via {}", front.gateway_v4))?;
    lb.ns()
        .sh(&format!("ip -6 route replace default via {}", front.gateway_v6))?;
    for (_, vip) in vips() {
        eventually("clients are served again", || Ok(client.http_get(vip, 20).is_ok()))?;
    }
    Ok(())
}
