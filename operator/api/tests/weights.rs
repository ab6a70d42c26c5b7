//! What objects weigh as JSON, without the managed fields that an API server adds: the figures of docs/operator.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use operator_api::*;
use serde_json::{Value, json};

/// An object of ours as it is stored, with the metadata that every object has.
fn stored(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "vipline.dev/v1alpha1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "vipline-system",
            "uid": "6f1c2b9e-2a07-4a34-9a57-3f0f4f3d1c55",
            "resourceVersion": "123456789",
            "generation": 12,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    })
}

/// Its length, after a round through the type: what is not in the type is not counted.
fn bytes<T: serde::Serialize + serde::de::DeserializeOwned>(object: Value) -> usize {
    serde_json::to_string(&serde_json::from_value::<T>(object).unwrap())
        .unwrap()
        .len()
}

fn table(nodes: Option<usize>) -> usize {
    let local = |count| {
        let node = |n: usize| json!({"name": format!("worker-{n:04}.rack-17.example.net"), "ipv4": 2, "ipv6": 2});
        json!({"local": {"set": "workers", "tableSlots": 65536, "nodes": (0..count).map(node).collect::<Vec<_>>()}})
    };
    bytes::<VipTable>(stored(
        "VipTable",
        "team-payments.checkout-frontend",
        json!({
            "service": {"namespace": "team-payments", "name": "checkout-frontend", "uid": "6f1c2b9e-2a07-4a34-9a57-3f0f4f3d1c55"},
            "addresses": [
                {"address": "203.0.113.107", "pool": "public", "use": "LoadBalancer"},
                {"address": "2001:db8:12:34::107", "pool": "public-v6", "use": "LoadBalancer"},
            ],
            "ports": [
                {"protocol": "TCP", "port": 80, "nodePort": 30080, "name": "http"},
                {"protocol": "TCP", "port": 443, "nodePort": 30443, "name": "https"},
            ],
            "backends": nodes.map_or(json!({"nodeSet": {"name": WORKERS}}), local),
            "healthCheck": {"kubeProxy": {"port": 10256}},
        }),
    ))
}

fn node_set(nodes: usize) -> usize {
    let entry = |n: usize| {
        json!({"name": format!("worker-{n:04}.rack-17.example.net"), "ipv4": format!("10.17.{}.{}", n / 250, n % 250),
               "ipv6": format!("fd00:17::{n:x}"), "zone": "rack-17"})
    };
    bytes::<NodeSet>(stored(
        "NodeSet",
        "workers-0",
        json!({"set": WORKERS, "chunk": 0, "chunks": 1, "epoch": 1, "tableSlots": 65536, "seedFingerprint": "0123456789abcdef",
               "nodes": (0..nodes).map(entry).collect::<Vec<_>>()}),
    ))
}

/// Beside what it weighs without.
fn node_set_transit(departed: usize, arrived: usize) -> usize {
    let entry = |n: usize| {
        json!({"name": format!("worker-{n:04}.rack-17.example.net"), "ipv4": format!("10.17.{}.{}", n / 250, n % 250),
               "ipv6": format!("fd00:17::{n:x}"), "zone": "rack-17"})
    };
    let name = |n: usize| format!("worker-{n:04}.rack-17.example.net");
    let spec = json!({"set": WORKERS, "chunk": 0, "chunks": 1, "epoch": 1, "tableSlots": 65536, "seedFingerprint": "0123456789abcdef",
        "nodes": [], "transit": {"started": "2026-01-01T00:00:00Z", "changed": "2026-01-01T00:00:00Z", "tableSlots": 65536,
        "departed": (0..departed).map(entry).collect::<Vec<_>>(), "arrived": (0..arrived).map(name).collect::<Vec<_>>()}});
    bytes::<NodeSet>(stored("NodeSet", "workers-0", spec)) - node_set(0)
}

/// With nodes that are drained until a time, beside what it weighs without.
fn node_set_leaving(nodes: usize) -> usize {
    let entry = |n: usize| {
        json!({"name": format!("worker-{n:04}.rack-17.example.net"), "since": "2026-01-01T00:00:00Z",
               "deadline": "2026-01-01T00:10:00Z", "ipv4": format!("10.17.{}.{}", n / 250, n % 250),
               "ipv6": format!("fd00:17::{n:x}")})
    };
    let spec = json!({"set": WORKERS, "chunk": 0, "chunks": 1, "epoch": 1, "tableSlots": 65536, "seedFingerprint": "0123456789abcdef",
        "nodes": [], "leaving": (0..nodes).map(entry).collect::<Vec<_>>()});
    bytes::<NodeSet>(stored("NodeSet", "workers-0", spec)) - node_set(0)
}

/// Of a table whose nodes all have another number than before, and that had as many others.
fn table_transit(nodes: usize) -> usize {
    let node = |n: usize| json!({"name": format!("worker-{n:04}.rack-17.example.net"), "ipv4": 2, "ipv6": 2});
    let local = |transit: Value| {
        let spec = json!({
            "service": {"namespace": "a", "name": "b", "uid": "c"}, "addresses": [], "ports": [],
            "backends": {"local": {"set": WORKERS, "tableSlots": 65536, "nodes": [], "transit": transit}},
        });
        bytes::<VipTable>(stored("VipTable", "a.b", spec))
    };
    let transit = json!({"started": "2026-01-01T00:00:00Z", "changed": "2026-01-01T00:00:00Z", "tableSlots": 65536,
        "nodes": (0..nodes).map(node).collect::<Vec<_>>()});
    local(transit) - local(Value::Null)
}

fn claim(name: &str, address: &str) -> usize {
    bytes::<AddressClaim>(stored(
        "AddressClaim",
        name,
        json!({"address": address, "pool": "public", "installation": "vipline-system/vipline-operator", "holders": [{
            "service": {"namespace": "team-payments", "name": "checkout-frontend", "uid": "6f1c2b9e-2a07-4a34-9a57-3f0f4f3d1c55"},
            "use": "LoadBalancer",
            "ports": [{"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": 443}],
        }]}),
    ))
}

fn lb_node(failing: usize, why: usize) -> usize {
    let mut object = stored(
        "LbNode",
        "lb-1.rack-17.example.net",
        json!({"tunnelSources": ["192.0.2.10/32", "2001:db8:f::10/128"]}),
    );
    let entry = |n: usize| json!({"name": format!("team-payments.checkout-frontend-{n:04}"), "why": "x".repeat(why)});
    object["status"] = json!({
        "version": "0.1.0",
        "programmed": {"tables": "123456789", "nodeSets": "123456789", "vips": 20000, "backends": 5000, "failingCount": failing,
                       "failing": (0..failing).map(entry).collect::<Vec<_>>()},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Programmed", "message": "all tables are in the maps",
                        "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    bytes::<LbNode>(object)
}

/// An LB node that says as much of announcing as there is, of the lengths that are met with, beside one that says nothing of it.
fn announcing(words: usize) -> usize {
    let peer = |n: usize| {
        json!({"name": format!("tor-{n:02}-rack-17"), "address": format!("2001:db8:f::{n:x}"), "state": "OpenConfirm", "established": true,
               "announced": 10000, "lastError": "x".repeat(words)})
    };
    let exception = |n: usize| json!({"address": format!("2001:db8:12:34::{n:x}"), "way": "BGP", "reason": "NoBackend", "why": "x".repeat(words)});
    let networks: Vec<_> = (0..MAX_PLACES).map(|n| format!("10.17.{n}.0/24")).collect();
    let announcing = json!({
        "bgp": {"origin": "Cluster", "localAsn": 4_200_000_000_u32, "peerCount": 16, "established": 16,
                "peers": (0..MAX_PEER_STATUSES).map(peer).collect::<Vec<_>>()},
        "l2": {"origin": "Cluster", "networks": networks, "owned": 10000,
               "members": (0..MAX_L2_MEMBERS).map(|n| json!({"name": format!("lb-{n:02}"), "heard": true})).collect::<Vec<_>>()},
        "exceptions": (0..MAX_EXCEPTIONS).map(exception).collect::<Vec<_>>(), "exceptionCount": 10000,
        "unserved": (0..MAX_UNSERVED).map(|n| format!("203.0.113.{n}")).collect::<Vec<_>>(), "unservedCount": 10000,
        "draining": {"since": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:10:00Z", "packetsPerSecond": 100_000, "done": false},
        "places": networks,
    });
    serde_json::to_string(&serde_json::from_value::<Announcing>(announcing).unwrap())
        .unwrap()
        .len()
}

fn tunnel(lb_nodes: usize, prefixes: usize) -> usize {
    let source = |n: usize| format!("192.0.2.{n}/32");
    let prefix = |n: usize| format!("203.0.{n}.0/24");
    bytes::<TunnelConfig>(stored(
        "TunnelConfig",
        TUNNEL_CONFIG,
        json!({"sources": (0..lb_nodes).map(source).collect::<Vec<_>>(), "vipPrefixes": (0..prefixes).map(prefix).collect::<Vec<_>>()}),
    ))
}

/// With the status of so many LB nodes.
fn peer(nodes: usize) -> usize {
    let mut object = stored(
        "BgpPeer",
        "tor-01-rack-17",
        json!({"address": "10.17.0.1", "asn": 4_200_000_001_u32, "localAsn": 4_200_000_000_u32, "passwordKey": "tor-01", "bfd": {}}),
    );
    let names: Vec<_> = (0..nodes).map(|n| format!("lb-{n:03}.rack-17.example.net")).collect();
    object["status"] = json!({"nodes": names, "established": nodes, "of": nodes, "state": format!("{nodes}/{nodes} established"),
        "observedGeneration": 1, "conditions": [{"type": "Valid", "status": "True", "reason": "Accepted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]});
    bytes::<BgpPeer>(object)
}

fn announcement(nodes: usize) -> usize {
    let mut object = stored(
        "Announcement",
        "core",
        json!({"pools": ["public"], "bgp": {"peers": ["tor-01-rack-17", "tor-02-rack-17"], "communities": ["65000:100"]}}),
    );
    let names: Vec<_> = (0..nodes).map(|n| format!("lb-{n:03}.rack-17.example.net")).collect();
    object["status"] = json!({"nodes": names, "nodeCount": nodes, "peers": ["tor-01-rack-17", "tor-02-rack-17"], "observedGeneration": 1,
        "conditions": [{"type": "Valid", "status": "True", "reason": "Accepted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]});
    bytes::<Announcement>(object)
}

/// The figures are round; the objects may not be a tenth off.
#[track_caller]
fn weighs(figure: usize, measured: usize) {
    assert!(
        measured.abs_diff(figure) * 10 <= figure,
        "measured {measured} B, docs/operator.md says {figure} B"
    );
}

#[test]
fn objects_weigh_what_the_documents_say() {
    weighs(800, table(None));
    let each = (table(Some(5000)) - table(Some(0))) / 5000;
    weighs(65, each);
    weighs(400, node_set(0));
    weighs(105, (node_set(500) - node_set(0)) / 500);
    weighs(100, node_set_transit(0, 0));
    weighs(105, (node_set_transit(500, 0) - node_set_transit(0, 0)) / 500);
    weighs(33, (node_set_transit(0, 500) - node_set_transit(0, 0)) / 500);
    weighs(155, node_set_leaving(500) / 500);
    weighs(100, table_transit(0));
    weighs(65, (table_transit(5000) - table_transit(0)) / 5000);
    weighs(580, claim("203.0.113.107", "203.0.113.107"));
    weighs(610, lb_node(0, 0));
    weighs(400, tunnel(4, 4));
    weighs(800, peer(0));
    weighs(710, announcement(0));
    weighs(30, (peer(256) - peer(0)) / 256);
    weighs(30, (announcement(256) - announcement(0)) / 256);
}

#[test]
fn a_full_chunk_and_a_full_local_table_fit_an_api_server() {
    // 1.5 MiB is what etcd takes in a request; managed fields of lists that are replaced whole are a few hundred bytes.
    assert!(
        node_set(MAX_NODES_PER_CHUNK) < 64 << 10,
        "{}",
        node_set(MAX_NODES_PER_CHUNK)
    );
    // And with everybody replaced by others in a transit.
    let transit = node_set_transit(MAX_NODES_PER_CHUNK, MAX_NODES_PER_CHUNK);
    let leaving = node_set_leaving(MAX_NODES_PER_CHUNK);
    assert!(
        node_set(MAX_NODES_PER_CHUNK) + transit + leaving < 192 << 10,
        "{transit} {leaving}"
    );
    let transit = table_transit(MAX_LOCAL_NODES);
    assert!(table(Some(MAX_LOCAL_NODES)) + transit < 1 << 20, "{transit}");
    assert!(
        table(Some(MAX_LOCAL_NODES)) < 512 << 10,
        "{}",
        table(Some(MAX_LOCAL_NODES))
    );
}

#[test]
fn an_lb_node_with_all_that_may_fail_can_be_kept_within_its_bound() {
    let names: Vec<String> = (0..MAX_LIVELY_TRANSITS).map(|n| format!("{n:0253}")).collect();
    assert!(
        serde_json::to_string(&names).unwrap().len() < 4_200,
        "room beside the list of tables that fail"
    );
    // Names and reasons of full length would not fit: the LB node shortens the reasons.
    assert!(
        lb_node(MAX_FAILING_TABLES, 256) < MAX_LB_NODE_BYTES,
        "{}",
        lb_node(MAX_FAILING_TABLES, 256)
    );
}

#[test]
fn what_an_lb_node_announces_fits_its_part_where_its_words_are_short() {
    // With words of full length it does not: the LB node cuts its lists.
    assert!(announcing(16) < MAX_ANNOUNCING_BYTES, "{}", announcing(16));
    assert!(announcing(160) > MAX_ANNOUNCING_BYTES, "{}", announcing(160));
}
