//! Size: 10,000 Services, 5,000 nodes. Run with `--ignored --nocapture` for the figures; here only that it is not quadratic.

use std::time::{Duration, Instant};

use operator_api::VipAddress;
use serde_json::{Value, json};

use super::*;
use crate::index::{Aired, Kind};

const SERVICES: u32 = 10_000;
const NODES: u32 = 5_000;

fn address(number: u32) -> String {
    format!("198.{}.{}.{}", 18 + number / 65_536, number / 256 % 256, number % 256)
}

fn named(name: &str, mut patch: Value) -> Value {
    patch["metadata"]["name"] = json!(name);
    patch["metadata"]["uid"] = json!(format!("uid-{name}"));
    patch
}

/// All objects of a cluster in which everything is served: 10,000 Services, one in ten Local, four endpoints each.
fn cluster() -> Vec<(Kind, Vec<Object>)> {
    let name = |number: u32| format!("s{number:05}");
    let services = (0..SERVICES).map(|number| {
        let policy = if number % 10 == 0 { "Local" } else { "Cluster" };
        Object::Service(service(named(
            &name(number),
            json!({
                "metadata": {"finalizers": ["service.kubernetes.io/load-balancer-cleanup"]},
                "spec": {"externalTrafficPolicy": policy},
                "status": {"loadBalancer": {"ingress": [{"ip": address(number)}]}},
            }),
        )))
    });
    let slices = (0..SERVICES).map(|number| {
        let endpoints: Vec<Value> = (0..4)
            .map(|pod| {
                endpoint(
                    &format!("10.0.{pod}.{}", number % 250),
                    &format!("n{:05}", (number + pod) % NODES),
                )
            })
            .collect();
        let mut patch = named(&format!("{}-1", name(number)), json!({"endpoints": endpoints}));
        patch["metadata"]["labels"] = json!({"kubernetes.io/service-name": name(number)});
        Object::EndpointSlice(slice(patch))
    });
    let nodes = (0..NODES).map(|number| Object::Node(node(&format!("n{number:05}"), json!({}))));
    let claims = (0..SERVICES).map(|number| Object::Claim(claim(&address(number), &[&name(number)], json!({}))));
    let tables = (0..SERVICES).map(|number| Object::Table(table(&name(number), &address(number), json!({}))));
    let lb_name = |number: u32| format!("lb{number:03}");
    let lb_nodes = (0..100).map(move |number| Object::LbNode(lb_node(&lb_name(number), "200", reports(1))));
    let leases =
        (0..100).map(move |number| Object::Lease(lease(&lb_name(number), "1970-01-01T00:00:00.000000Z", json!({}))));
    let nodes_of: Vec<String> = (0..100).map(lb_name).collect();
    let status = json!({"status": {"nodes": nodes_of, "nodeCount": 100, "peers": ["tor1"]}});
    let core = announcement("core", json!({"pools": ["public"], "bgp": {"peers": ["tor1"]}}), status);
    vec![
        (
            Kind::Pool,
            vec![Object::Pool(pool("public", &["198.18.0.0/15"], json!({})))],
        ),
        (Kind::Service, services.collect()),
        (Kind::EndpointSlice, slices.collect()),
        (Kind::Node, nodes.collect()),
        (Kind::Claim, claims.collect()),
        (Kind::Table, tables.collect()),
        (Kind::LbNode, lb_nodes.collect()),
        (Kind::Seed, vec![seed_secret()]),
        (Kind::Namespace, vec![]),
        (Kind::NodeSet, vec![]),
        (Kind::Tunnel, vec![]),
        (Kind::Lease, leases.collect()),
        (Kind::Peer, vec![Object::Peer(peer("tor1", json!({})))]),
        (Kind::Announcement, vec![Object::Announcement(core)]),
    ]
}

/// What an LB node says that announces by BGP.
fn reports(announced: u32) -> Value {
    let peer = json!({"name": "tor1", "address": "10.0.0.1", "established": true, "announced": announced});
    json!({"status": {"announcing": {"bgp": {"peers": [peer], "peerCount": 1, "established": 1}, "l2": {"networks": ["10.0.0.0/24"]}}}})
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0)
        * 4_096
}

/// Lists of everything into an empty index; then single events.
fn measured() -> Vec<(String, Duration)> {
    let lists = cluster();
    let mut index = index([]);
    let mut figures = Vec::new();
    let mut clock = |what: &str, work: &mut dyn FnMut() -> usize| {
        let start = Instant::now();
        let count = work();
        figures.push((format!("{what} ({count})"), start.elapsed()));
    };
    for (kind, objects) in lists.clone() {
        let mut objects = Some(objects);
        clock(&format!("reset {kind:?}, subjects"), &mut || {
            index.reset(kind, objects.take().unwrap()).len()
        });
    }
    for (kind, objects) in lists.clone() {
        let mut objects = Some(objects);
        clock(&format!("reset {kind:?} again, subjects"), &mut || {
            index.reset(kind, objects.take().unwrap()).len()
        });
    }
    let keys: Vec<ServiceKey> = index.services().cloned().collect();
    clock("wanted, backends and programmed of all", &mut || {
        let wanted = keys.iter().map(|key| (index.wanted(key), index.table(key)));
        wanted
            .filter(|(wanted, table)| match wanted {
                Wanted::Serve(serve) => {
                    let _ = index.backends(serve);
                    table.is_some_and(|table| index.programmed(table).of == 100)
                }
                Wanted::Foreign | Wanted::Nothing(_) => false,
            })
            .count()
    });
    clock("whom all are announced by", &mut || {
        let tables = keys.iter().filter_map(|key| Some((key, index.table(key)?)));
        let announced = tables.filter(|(key, table)| {
            let address = VipAddress {
                announcements: index.announcements_of("public", key),
                ..table.spec.addresses[0].clone()
            };
            matches!(index.aired(&address), Aired::By { bgp: Some(_), .. })
        });
        announced.count()
    });
    for (kind, objects) in lists {
        let newer = objects.into_iter().map(|object| newer(object, "300"));
        let mut newer = Some(newer.collect::<Vec<_>>());
        clock(&format!("an event for each {kind:?}, subjects"), &mut || {
            newer
                .take()
                .unwrap()
                .into_iter()
                .map(|object| index.apply(object).len())
                .sum()
        });
    }
    clock("next node set, chunk nodes", &mut || {
        index.next_node_set().unwrap().spec.nodes.len()
    });
    clock("wanted tunnel, blocks", &mut || {
        index.wanted_tunnel().unwrap().vip_prefixes.len()
    });
    figures
}

fn newer(mut object: Object, version: &str) -> Object {
    let metadata = match &mut object {
        Object::Service(object) => &mut object.metadata,
        Object::EndpointSlice(object) => &mut object.metadata,
        Object::Node(object) => &mut object.metadata,
        Object::Pool(object) => &mut object.metadata,
        Object::Claim(object) => &mut object.metadata,
        Object::Table(object) => &mut object.metadata,
        Object::LbNode(object) => &mut object.metadata,
        Object::Seed(object) => &mut object.metadata,
        Object::Peer(object) => &mut object.metadata,
        Object::Announcement(object) => &mut object.metadata,
        Object::Lease(object) => &mut object.metadata,
        Object::Namespace(_) | Object::NodeSet(_) | Object::Tunnel(_) => {
            panic!("not in this cluster")
        }
    };
    metadata.resource_version = Some(version.to_owned());
    object
}

#[test]
#[ignore = "prints figures: run in release"]
fn figures_of_ten_thousand_services_and_five_thousand_nodes() {
    for (what, took) in measured() {
        println!("{:>10.1} ms  {what}", took.as_secs_f64() * 1e3);
    }
    let before = resident();
    let mut index = index([]);
    for (kind, objects) in cluster() {
        index.reset(kind, objects);
    }
    println!(
        "{:>10.1} MB  more resident with one more such index",
        (resident() - before) as f64 / 1e6
    );
}

#[test]
fn events_of_a_large_cluster_wake_only_those_they_concern() {
    let mut index = index([]);
    for (kind, objects) in cluster() {
        index.reset(kind, objects);
    }
    assert_eq!(index.waiting(), 0);
    let beat = newer(Object::Node(node("n00007", json!({}))), "300");
    assert_eq!(index.apply(beat), dirty([]));
    let joins = Object::Node(node("n09999", json!({})));
    assert_eq!(index.apply(joins), dirty([Subject::NodeSets]));
    let report = newer(Object::LbNode(lb_node("lb007", "300", reports(2))), "300");
    assert_eq!(
        index.apply(report),
        dirty([]),
        "all are published, and counters are no news"
    );
    let announcing = [Subject::Peer("tor1".into()), Subject::Announcement("core".into())];
    let lost = json!({"status": {"announcing": {"bgp": {"peerCount": 1}}}});
    let lost = newer(Object::LbNode(lb_node("lb007", "300", lost)), "301");
    assert_eq!(
        index.apply(lost),
        dirty(announcing.clone()),
        "a lost session wakes no Service"
    );
    let leaves = Object::LbNode(lb_node("lb007", "300", json!({})));
    let wakes = [Subject::Tunnel].into_iter().chain(announcing);
    assert_eq!(index.delete(leaves), dirty(wakes));
}
