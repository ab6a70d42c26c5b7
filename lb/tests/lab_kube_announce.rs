//! LB nodes that are told by a cluster what to announce: by BGP to a real router, and on their segment among themselves. What the
//! operator would write is put by hand.

#![allow(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use lab::{
    Netns, Topology, require_root,
    routers::{Family, Neighbour, Router, RouterConfig, RouterKind},
};
use lab_support::{Cluster, Daemon, NAMESPACE, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const OUR_ASN: u32 = 65_000;
const ROUTER_ASN: u32 = 65_010;
const PASSWORD: &str = "not-so-secret";

/// An object of ours with what the operator makes of it.
fn put(cluster: &Cluster, kind: &str, name: &str, spec: Value, status: &Value) {
    cluster.put(kind, name, spec);
    let object = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE}, "status": status,
    });
    let resource = match kind {
        "BgpPeer" => "bgppeers",
        _ => "announcements",
    };
    let mut whole = cluster.server.read(resource, NAMESPACE, name).expect("it was put");
    whole["status"] = object["status"].clone();
    let updated = cluster.server.update_status(whole);
    updated.unwrap_or_else(|failure| panic!("{kind} {name}: {failure:?}"));
}

/// A table of an address; by what it is announced, or by default.
fn put_table(cluster: &Cluster, name: &str, address: IpAddr, announcements: Option<&[&str]>, nodes: &Value) {
    let mut spec = lab_support::table(&address.to_string(), 80);
    if let Some(names) = announcements {
        spec["addresses"][0]["announcements"] = json!(names);
    }
    spec["backends"] = nodes.clone();
    cluster.put("VipTable", name, spec);
}

fn all() -> Value {
    json!({"nodeSet": {"name": "workers"}})
}

/// Policy Local, and no node has an endpoint.
fn nobody() -> Value {
    json!({"local": {"set": "workers", "tableSlots": 256, "nodes": []}})
}

/// All LB nodes, once they serve.
fn start(cluster: &Cluster, topology: &Topology) -> Result<Vec<Daemon>> {
    let spawned = topology.lbs().iter().map(|lb| cluster.spawn_lb(lb, ""));
    let mut daemons: Vec<Daemon> = spawned.collect::<Result<_>>()?;
    daemons.iter_mut().try_for_each(Daemon::ready)?;
    Ok(daemons)
}

/// Two LB nodes, each with a BgpPeer that is the router's end of its link.
struct Routed {
    topology: Topology,
    cluster: Cluster,
    lbs: Vec<IpAddr>,
    router: Router,
}

/// The router asks for a password where there is one, and so do the BgpPeers, by a key of the Secret.
fn routed(password: Option<&str>) -> Result<Routed> {
    let topology = Topology::builder().lbs(2).workers(1).build()?;
    let cluster = Cluster::start(&topology)?;
    let lbs: Vec<IpAddr> = topology.lbs().iter().map(|lb| lb.addr_v4().into()).collect();
    let mut config = RouterConfig::new(ROUTER_ASN, [10, 99, 99, 99].into());
    for lb in &lbs {
        config = config.neighbour(Neighbour {
            password: password.map(str::to_owned),
            ..Neighbour::new(*lb, OUR_ASN)
        });
    }
    let router = config.start(topology.router().ns(), RouterKind::Bird)?;
    for (name, lb) in ["tor-1", "tor-2"].into_iter().zip(topology.lbs()) {
        let gateway = lb.eth0().gateway_v4.to_string();
        let mut spec = json!({"address": gateway, "asn": ROUTER_ASN, "localAsn": OUR_ASN, "connectRetrySeconds": 1});
        if password.is_some() {
            spec["passwordKey"] = json!("tor");
        }
        put(&cluster, "BgpPeer", name, spec, &json!({"nodes": [lb.name()]}));
    }
    Ok(Routed {
        topology,
        cluster,
        lbs,
        router,
    })
}

/// What the operator makes of an Announcement that is for these LB nodes and tells all peers.
fn told_by(nodes: &[&str]) -> Value {
    json!({"nodes": nodes, "peers": ["tor-1", "tor-2"]})
}

fn put_password(cluster: &Cluster) -> Result<()> {
    let secret = Secret {
        data: Some(BTreeMap::from([(
            "tor".to_owned(),
            ByteString(PASSWORD.as_bytes().to_vec()),
        )])),
        ..Secret::default()
    };
    let mut object = serde_json::to_value(secret)?;
    object["metadata"] = json!({"name": "vipline-bgp-passwords", "namespace": NAMESPACE});
    let applied = cluster.server.apply(object, "test");
    applied.map(drop).map_err(|failure| anyhow::anyhow!("{failure:?}"))
}

/// What an LB node says of announcing.
fn announcing(cluster: &Cluster, name: &str) -> Value {
    cluster.lb_node(name).unwrap_or_default()["status"]["announcing"].clone()
}

fn prefixes(router: &Router, from: IpAddr) -> Result<Vec<String>> {
    let routes = router.routes(Family::V4)?.into_iter();
    let mut prefixes: Vec<String> = routes
        .filter(|route| route.from == Some(from))
        .map(|route| route.prefix.to_string())
        .collect();
    prefixes.sort();
    Ok(prefixes)
}

fn learns(router: &Router, from: IpAddr, want: &[&str]) -> Result<Duration> {
    let mut last = Vec::new();
    let done = eventually("the router has exactly these prefixes", || {
        last = prefixes(router, from)?;
        Ok(last == want)
    });
    done.with_context(|| format!("{want:?}, and not {last:?}"))
}

#[test]
fn routers_learn_what_announcements_say_with_a_password_from_the_secret() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let Routed {
        topology,
        cluster,
        lbs,
        router,
    } = routed(Some(PASSWORD))?;
    let core = json!({"bgp": {"communities": ["65000:7"], "med": 9}});
    put(&cluster, "Announcement", "core", core, &told_by(&["lb-1", "lb-2"]));
    let address = |last: u8| IpAddr::from([203, 0, 113, last]);
    put_table(&cluster, "shop.web", address(1), Some(&["core"]), &all());
    put_table(&cluster, "shop.hidden", address(2), Some(&[]), &all());
    put_table(&cluster, "shop.default", address(3), None, &all());
    put_table(&cluster, "shop.local", address(4), Some(&["core"]), &nobody());
    let daemons = start(&cluster, &topology)?;

    // There is no Secret yet, so there is no session; what there is says why.
    let named = |word: &str| {
        let said = announcing(&cluster, "lb-1")["bgp"]["peers"][0]["lastError"].clone();
        said.as_str().is_some_and(|said| said.contains(word))
    };
    eventually("an LB node says that it has no password", || Ok(named("password")))?;
    put_password(&cluster)?;
    // Nobody has an endpoint of the last one on either LB node: it stays, and new flows are refused.
    for lb in &lbs {
        learns(&router, *lb, &["203.0.113.1/32", "203.0.113.4/32"])?;
    }
    let routes = router.routes(Family::V4)?;
    let first = routes.iter().find(|route| route.prefix.to_string() == "203.0.113.1/32");
    let first = first.context("it was there")?;
    assert!(
        first.communities.contains(&(65_000, 7)) && first.med == Some(9),
        "{first:?}"
    );
    eventually("LB nodes say what they announce", || {
        let said = announcing(&cluster, "lb-1");
        Ok(said["bgp"]["established"] == 1
            && said["bgp"]["origin"] == "Cluster"
            && said["unserved"] == json!(["203.0.113.4"])
            && said["bgp"]["peers"][0]["announced"] == 2)
    })
    .with_context(|| announcing(&cluster, "lb-1").to_string())?;
    let vips = daemons[0].cli(&["vips"])?;
    assert!(vips.contains("no peer takes it"), "{vips}");

    // An Announcement that names an address, and one that does not any more: nobody restarts anything.
    put_table(&cluster, "shop.hidden", address(2), Some(&["core"]), &all());
    put_table(&cluster, "shop.local", address(4), Some(&[]), &nobody());
    for lb in &lbs {
        learns(&router, *lb, &["203.0.113.1/32", "203.0.113.2/32"])?;
    }
    // The second LB node is not selected any more.
    let med = json!({"bgp": {"med": 9}});
    put(&cluster, "Announcement", "core", med, &told_by(&["lb-1"]));
    learns(&router, lbs[1], &[])?;
    learns(&router, lbs[0], &["203.0.113.1/32", "203.0.113.2/32"])?;
    // And the first one's peer is taken away.
    let deleted = cluster.server.delete("bgppeers", NAMESPACE, "tor-1");
    deleted.unwrap_or_else(|failure| panic!("{failure:?}"));
    learns(&router, lbs[0], &[])?;
    Ok(())
}

#[test]
fn an_address_without_a_backend_is_withdrawn_where_another_lb_node_has_one() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let Routed {
        topology,
        cluster,
        lbs,
        router,
    } = routed(None)?;
    put(
        &cluster,
        "Announcement",
        "core",
        json!({"bgp": {}}),
        &told_by(&["lb-1", "lb-2"]),
    );
    put_table(&cluster, "shop.web", [203, 0, 113, 1].into(), Some(&["core"]), &all());
    let _daemons = start(&cluster, &topology)?;
    let one = ["203.0.113.1/32"];
    for lb in &lbs {
        learns(&router, *lb, &one)?;
    }
    // The first one loses its way to the only worker.
    let unreachable = topology.worker(0).addr_v4().to_string();
    topology
        .lb(0)
        .ns()
        .ip(&["route", "add", "unreachable", &format!("{unreachable}/32")])?;
    learns(&router, lbs[0], &[])?;
    learns(&router, lbs[1], &one)?;
    eventually("it says why", || {
        Ok(announcing(&cluster, "lb-1")["exceptions"][0]["reason"] == "NoBackend")
    })
    .with_context(|| announcing(&cluster, "lb-1").to_string())?;
    // So does the second: nobody has one, and both stay to refuse new flows.
    topology
        .lb(1)
        .ns()
        .ip(&["route", "add", "unreachable", &format!("{unreachable}/32")])?;
    for lb in &lbs {
        learns(&router, *lb, &one)?;
    }
    Ok(())
}

#[test]
fn an_lb_node_is_drained_by_the_label_of_its_lb_node_and_comes_back_without_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let Routed {
        topology,
        cluster,
        lbs,
        router,
    } = routed(None)?;
    put(
        &cluster,
        "Announcement",
        "core",
        json!({"bgp": {}}),
        &told_by(&["lb-1", "lb-2"]),
    );
    put_table(&cluster, "shop.web", [203, 0, 113, 1].into(), Some(&["core"]), &all());
    let daemons = start(&cluster, &topology)?;
    let one = ["203.0.113.1/32"];
    for lb in &lbs {
        learns(&router, *lb, &one)?;
    }
    let label = |value: Value| {
        let body = json!({"metadata": {"labels": {"vipline.dev/drain": value}}});
        let merged = cluster.server.merge("lbnodes", NAMESPACE, "lb-1", "", body);
        merged.unwrap_or_else(|failure| panic!("{failure:?}"));
    };
    label(json!("true"));
    learns(&router, lbs[0], &[])?;
    learns(&router, lbs[1], &one)?;
    eventually("it says so", || {
        Ok(announcing(&cluster, "lb-1")["draining"]["done"] == true)
    })
    .with_context(|| announcing(&cluster, "lb-1").to_string())?;
    assert!(daemons[0].cli(&["status"])?.contains("drained: nothing comes any more"));
    let undo = daemons[0].cli(&["drain", "node", "--undo"]);
    let why = format!("{:#}", undo.expect_err("the cluster drains it"));
    assert!(why.contains("vipline.dev/drain"), "{why}");
    label(Value::Null);
    learns(&router, lbs[0], &one)?;
    assert_eq!(
        announcing(&cluster, "lb-2")["draining"],
        Value::Null,
        "the other had no part in it"
    );
    Ok(())
}

/// Addresses of the LB nodes' own segment.
fn segment(topology: &Topology, count: u8) -> Vec<IpAddr> {
    let [a, b, c, _] = topology.lb(0).addr_v4().octets();
    (0..count)
        .map(|last| Ipv4Addr::new(a, b, c, 150 + last).into())
        .collect()
}

/// Who answers for each address, by MAC address.
fn owners(ns: &Netns, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, String>> {
    ns.ip(&["neigh", "flush", "dev", "eth0"])?;
    ns.run(|| {
        for address in addresses {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"who has it?", (*address, 80))?;
        }
        Ok(())
    })?;
    let mut owners = BTreeMap::new();
    eventually("all are answered for", || {
        let known = ns.ip(&["neigh", "show", "dev", "eth0"])?;
        for address in addresses {
            let start = format!("{address} lladdr ");
            let line = known.lines().find_map(|line| line.strip_prefix(&start));
            if let Some(mac) = line.and_then(|line| line.split(' ').next()) {
                owners.insert(*address, mac.to_owned());
            }
        }
        Ok(owners.len() == addresses.len())
    })?;
    Ok(owners)
}

/// How many addresses each of these says it answers for.
fn owned(daemons: &[Daemon], of: &[usize]) -> Result<Vec<usize>> {
    let owned = of.iter().map(|index| {
        let status = daemons[*index].status()?;
        let owned = status
            .group
            .map(|group| if group.waits { usize::MAX } else { group.owned });
        Ok(owned.unwrap_or(0))
    });
    owned.collect()
}

fn share(daemons: &[Daemon], of: &[usize], count: usize) -> Result<Duration> {
    let shared = eventually("each address has one owner", || {
        let owned = owned(daemons, of)?;
        Ok(owned.iter().all(|owned| (1..=count).contains(owned)) && owned.iter().sum::<usize>() == count)
    });
    shared.with_context(|| format!("{:?}", owned(daemons, of)))
}

#[test]
fn a_pool_without_an_announcement_is_shared_on_its_segment_also_while_the_api_server_stalls() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().lbs(3).workers(1).client_on_link().build()?;
    let cluster = Cluster::start(&topology)?;
    let addresses = segment(&topology, 12);
    for (index, address) in addresses.iter().enumerate() {
        put_table(&cluster, &format!("shop.web-{index}"), *address, None, &all());
    }
    let mut daemons = start(&cluster, &topology)?;
    share(&daemons, &[0, 1, 2], addresses.len())?;
    let client = topology.client().ns();
    let before = owners(client, &addresses)?;
    let macs: BTreeSet<&String> = before.values().collect();
    assert_eq!(macs.len(), 3, "{before:?}");
    eventually("LB nodes say whom they share with", || {
        let said = announcing(&cluster, "lb-1")["l2"].clone();
        let heard = said["members"]
            .as_array()
            .is_some_and(|members| members.len() == 2 && members.iter().all(|member| member["heard"] == true));
        Ok(heard && said["origin"] == "Cluster" && said["owned"].as_u64().is_some_and(|owned| owned > 0))
    })
    .with_context(|| announcing(&cluster, "lb-1").to_string())?;

    // Nobody hears of the API server any more, and nothing changes; an LB node that dies meanwhile is replaced as fast.
    for lb in topology.lbs() {
        cluster.endpoint(lb).close();
    }
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(owners(client, &addresses)?, before, "the API server is away");
    let killed = Instant::now();
    daemons[1].end(Signal::SIGKILL)?;
    share(&daemons, &[0, 2], addresses.len())?;
    let took = killed.elapsed();
    println!("kill -9 while the API server is away: others answer for all after {took:?}");
    ensure!(took < Duration::from_secs(1), "{took:?}");
    // One that starts while it is away knows all of it from its cache.
    let others = owners(client, &addresses)?;
    daemons[2].end(Signal::SIGTERM)?;
    daemons[2].start_again()?;
    share(&daemons, &[0, 2], addresses.len())?;
    assert_eq!(owners(client, &addresses)?, others, "as it was");
    // And the dead one, with the API server back.
    for lb in topology.lbs() {
        cluster.endpoint(lb).reopen()?;
    }
    daemons[1].start_again()?;
    share(&daemons, &[0, 1, 2], addresses.len())?;
    assert_eq!(owners(client, &addresses)?, before, "as it was");
    Ok(())
}

#[test]
fn an_announcement_says_which_lb_nodes_answer_on_a_segment_and_its_end_ends_that() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().lbs(3).workers(1).client_on_link().build()?;
    let cluster = Cluster::start(&topology)?;
    let addresses = segment(&topology, 8);
    for (index, address) in addresses.iter().enumerate() {
        put_table(&cluster, &format!("shop.web-{index}"), *address, Some(&["two"]), &all());
    }
    let two = json!({"nodes": ["lb-1", "lb-3"], "l2": true});
    put(&cluster, "Announcement", "two", json!({"l2": {}}), &two);
    let daemons = start(&cluster, &topology)?;
    share(&daemons, &[0, 2], addresses.len())?;
    assert_eq!(owned(&daemons, &[1])?, [0], "it is not selected");
    let client = topology.client().ns();
    let macs: BTreeSet<String> = owners(client, &addresses)?.into_values().collect();
    assert_eq!(macs.len(), 2);
    // Another LB node is selected in the place of one.
    let other = json!({"nodes": ["lb-2", "lb-3"], "l2": true});
    put(&cluster, "Announcement", "two", json!({"l2": {}}), &other);
    share(&daemons, &[1, 2], addresses.len())?;
    eventually("who is not selected answers for nothing", || {
        Ok(owned(&daemons, &[0])? == [0])
    })?;
    // By nobody.
    for (index, address) in addresses.iter().enumerate() {
        put_table(&cluster, &format!("shop.web-{index}"), *address, Some(&[]), &all());
    }
    eventually("nobody answers", || Ok(owned(&daemons, &[0, 1, 2])? == [0, 0, 0]))?;
    Ok(())
}

#[test]
fn the_first_lb_node_goes_on_answering_when_a_second_joins() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().lbs(2).workers(1).client_on_link().build()?;
    let cluster = Cluster::start(&topology)?;
    let addresses = segment(&topology, 8);
    for (index, address) in addresses.iter().enumerate() {
        put_table(&cluster, &format!("shop.web-{index}"), *address, None, &all());
    }
    let mut daemons = vec![cluster.spawn_lb(topology.lb(0), "")?];
    daemons[0].ready()?;
    eventually("the first has all of them, and says where it is", || {
        let is_said = announcing(&cluster, "lb-1")["places"].is_array();
        Ok(is_said && owned(&daemons, &[0])? == [8])
    })?;
    let second = cluster.spawn_lb(topology.lb(1), "")?;
    daemons.push(second);
    // Until each has its part: as few as the first ever has, and whether the second waited.
    let (mut least, mut waited) = (usize::MAX, false);
    let start = Instant::now();
    let parts = loop {
        let first = owned(&daemons, &[0])?[0];
        // It answers no question before it has started.
        let second = owned(&daemons, &[1]).map_or(0, |owned| owned[0]);
        least = least.min(first);
        waited |= second == usize::MAX;
        if first < 8 && second < 8 && first + second == 8 {
            break [first, second];
        }
        ensure!(start.elapsed() < Duration::from_secs(30), "{first} and {second} of 8");
        std::thread::sleep(Duration::from_millis(10));
    };
    println!(
        "a second LB node has its part {:?} after its start: {parts:?}",
        start.elapsed()
    );
    assert_eq!(
        least, parts[0],
        "the first never stopped answering for what stays its own"
    );
    assert!(
        waited,
        "the twin: one that begins where others are answers for nothing at first"
    );
    let macs: BTreeSet<String> = owners(topology.client().ns(), &addresses)?.into_values().collect();
    assert_eq!(macs.len(), 2);
    Ok(())
}
