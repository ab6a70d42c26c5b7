//! Which nodes have endpoints of a Service with policy Local, and how nodes are probed.

use operator_api::{Backends, HealthCheck, LocalNode};
use serde_json::{Value, json};

use super::*;

fn local(patch: Value) -> Service {
    let base = json!({"spec": {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}});
    service(patched(base, patch))
}

/// Nodes of `shop/web` with their IPv4 and IPv6 weights, and its health check.
fn located(slices: impl IntoIterator<Item = Value>) -> (Vec<(String, u16, u16)>, Option<HealthCheck>) {
    let mut index = index([Object::Service(local(json!({})))]);
    for (number, patch) in slices.into_iter().enumerate() {
        let mut slice = slice(patch);
        slice.metadata.name = Some(format!("web-{number}"));
        slice.metadata.uid = Some(format!("uid-slice-{number}"));
        index.apply(Object::EndpointSlice(slice));
    }
    let Wanted::Serve(serve) = index.wanted(&key("web")) else {
        panic!("not served")
    };
    let (backends, check) = index.backends(&serve);
    let Backends::Local { nodes, .. } = backends else {
        panic!("not local")
    };
    (
        nodes
            .into_iter()
            .map(|LocalNode { name, ipv4, ipv6 }| (name, ipv4, ipv6))
            .collect(),
        check,
    )
}

fn nodes(endpoints: Value) -> Vec<(String, u16, u16)> {
    located([json!({"endpoints": endpoints})]).0
}

fn ipv4(weights: &[(&str, u16)]) -> Vec<(String, u16, u16)> {
    weights
        .iter()
        .map(|(name, weight)| ((*name).to_owned(), *weight, 0))
        .collect()
}

fn with(address: &str, node: &str, conditions: Value) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

const TERMINATING: [(&str, bool); 3] = [("ready", false), ("serving", true), ("terminating", true)];

fn terminating(address: &str, node: &str) -> Value {
    with(
        address,
        node,
        TERMINATING
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect(),
    )
}

#[test]
fn a_node_weighs_as_many_ready_endpoints_as_it_has() {
    let endpoints = json!([
        endpoint("10.0.0.1", "b"),
        endpoint("10.0.0.2", "a"),
        endpoint("10.0.0.3", "b")
    ]);
    assert_eq!(nodes(endpoints), ipv4(&[("a", 1), ("b", 2)]));
}

#[test]
fn absent_conditions_mean_ready_and_not_ready_means_out() {
    let endpoints = json!([
        with("10.0.0.1", "a", json!({})),
        json!({"addresses": ["10.0.0.2"], "nodeName": "a"}),
        with("10.0.0.3", "b", json!({"ready": false})),
        with(
            "10.0.0.4",
            "b",
            json!({"ready": false, "serving": false, "terminating": true})
        ),
    ]);
    assert_eq!(nodes(endpoints), ipv4(&[("a", 2)]));
}

#[test]
fn terminating_endpoints_are_left_as_long_as_one_is_ready_anywhere() {
    let endpoints = json!([
        terminating("10.0.0.1", "a"),
        terminating("10.0.0.2", "b"),
        endpoint("10.0.0.3", "c")
    ]);
    let (nodes, check) = located([json!({"endpoints": endpoints})]);
    assert_eq!(nodes, ipv4(&[("c", 1)]));
    assert_eq!(
        check,
        Some(HealthCheck::ServicePort {
            port: 31000,
            ignored: false
        })
    );
}

#[test]
fn when_all_terminate_those_that_serve_are_the_last_resort_and_their_503_is_ignored() {
    let endpoints = json!([
        terminating("10.0.0.1", "a"),
        with(
            "10.0.0.2",
            "b",
            json!({"ready": false, "serving": false, "terminating": true})
        ),
        with("10.0.0.3", "c", json!({"ready": false, "terminating": true})),
    ]);
    let (nodes, check) = located([json!({"endpoints": endpoints})]);
    assert_eq!(nodes, ipv4(&[("a", 1), ("c", 1)]));
    assert_eq!(
        check,
        Some(HealthCheck::ServicePort {
            port: 31000,
            ignored: true
        })
    );
}

#[test]
fn serving_but_not_terminating_is_not_a_last_resort() {
    assert_eq!(
        nodes(json!([with("10.0.0.1", "a", json!({"ready": false, "serving": true}))])),
        []
    );
}

#[test]
fn publish_not_ready_addresses_is_in_ready_even_of_those_that_terminate() {
    let folded = json!([
        with(
            "10.0.0.1",
            "a",
            json!({"ready": true, "serving": false, "terminating": true})
        ),
        with("10.0.0.2", "b", json!({"ready": true, "serving": true})),
    ]);
    assert_eq!(nodes(folded), ipv4(&[("a", 1), ("b", 1)]));
}

#[test]
fn families_are_counted_and_fall_back_apart() {
    let v4 = json!({"endpoints": [endpoint("10.0.0.1", "a"), terminating("10.0.0.2", "b")]});
    let v6 = json!({"addressType": "IPv6", "endpoints": [terminating("fd00::1", "a"), terminating("fd00::2", "b")]});
    let (nodes, check) = located([v4, v6]);
    assert_eq!(nodes, [("a".to_owned(), 1, 1), ("b".to_owned(), 0, 1)]);
    assert_eq!(
        check,
        Some(HealthCheck::ServicePort {
            port: 31000,
            ignored: true
        })
    );
}

#[test]
fn an_endpoint_in_two_slices_counts_once_and_as_the_better_of_the_two() {
    let pod = |address: &str, node: &str, uid: &str, ready: bool| {
        json!({
            "addresses": [address], "nodeName": node, "targetRef": {"kind": "Pod", "uid": uid},
            "conditions": {"ready": ready, "serving": true, "terminating": !ready},
        })
    };
    let first = json!({"endpoints": [pod("10.0.0.1", "a", "one", false), pod("10.0.0.2", "b", "two", true)]});
    let second = json!({"endpoints": [pod("10.0.0.1", "a", "one", true), pod("10.0.0.2", "b", "three", true)]});
    let moved = json!({"endpoints": [pod("10.0.0.9", "b", "two", false)]});
    assert_eq!(located([first, second, moved]).0, ipv4(&[("a", 1), ("b", 1)]));
}

#[test]
fn what_is_no_address_of_its_family_or_on_no_node_does_not_count() {
    let endpoints = json!([
        json!({"addresses": ["10.0.0.1"]}),
        json!({"addresses": ["10.0.0.2"], "nodeName": ""}),
        json!({"addresses": [], "nodeName": "a"}),
        json!({"addresses": ["nonsense"], "nodeName": "a"}),
        json!({"addresses": ["fd00::1"], "nodeName": "a"}),
        json!({"addresses": ["10.0.0.3", "10.0.0.4"], "nodeName": "a"}),
    ]);
    assert_eq!(nodes(endpoints), ipv4(&[("a", 1)]));
    let names = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["www.example.com"], "nodeName": "a"}]});
    assert_eq!(located([names]).0, []);
    let of_nobody = json!({"metadata": {"labels": null}, "endpoints": [endpoint("10.0.0.1", "a")]});
    assert_eq!(located([of_nobody]).0, []);
}

#[test]
fn manual_slices_of_a_service_without_selector_count_like_others() {
    let manual = json!({
        "metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": "me"}},
        "endpoints": [endpoint("192.0.2.1", "a")],
    });
    assert_eq!(located([manual]).0, ipv4(&[("a", 1)]));
}

#[test]
fn weights_and_nodes_have_a_most() {
    let crowd: Vec<Value> = (0..70_000_u32)
        .map(|number| endpoint(&std::net::Ipv4Addr::from(number + 1).to_string(), "a"))
        .collect();
    assert_eq!(nodes(json!(crowd)), ipv4(&[("a", 65_535)]));
    let wide: Vec<Value> = (0..5_100_u32)
        .map(|number| {
            endpoint(
                &std::net::Ipv4Addr::from(number + 1).to_string(),
                &format!("n{number:05}"),
            )
        })
        .collect();
    let (nodes, _) = located([json!({"endpoints": wide})]);
    assert_eq!((nodes.len(), nodes[4_999].0.as_str()), (5_000, "n04999"));
}

/// `TestRequestsOnlyLocalTraffic` and `TestNeedsHealthCheck` of cloud-provider's service helpers.
#[test]
fn cloud_provider_local_traffic_and_health_check_cases() {
    let external = |kind: &str, policy: Option<&str>| {
        json!({"spec": {
            "type": kind, "loadBalancerClass": null, "externalIPs": ["198.51.100.1"],
            "externalTrafficPolicy": policy, "healthCheckNodePort": null,
        }})
    };
    let balanced = |policy: &str, port: Value| json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": port}});
    let kube_proxy = HealthCheck::KubeProxy { port: 10256 };
    let own = HealthCheck::ServicePort {
        port: 31000,
        ignored: false,
    };
    let cases = [
        ("ClusterIP", external("ClusterIP", None), false, kube_proxy),
        ("NodePort", external("NodePort", None), false, kube_proxy),
        (
            "NodePort Cluster",
            external("NodePort", Some("Cluster")),
            false,
            kube_proxy,
        ),
        ("NodePort Local", external("NodePort", Some("Local")), true, kube_proxy),
        // The field means something in this case, too: kube-proxy reads it of every Service with external addresses.
        (
            "ClusterIP Local",
            external("ClusterIP", Some("Local")),
            true,
            kube_proxy,
        ),
        (
            "LoadBalancer Cluster",
            balanced("Cluster", json!(31000)),
            false,
            kube_proxy,
        ),
        ("LoadBalancer Local", balanced("Local", json!(31000)), true, own),
        (
            "LoadBalancer Local without port",
            balanced("Local", json!(0)),
            true,
            kube_proxy,
        ),
    ];
    for (case, patch, is_local, expected) in cases {
        let index = index([Object::Service(service(patch))]);
        let Wanted::Serve(serve) = index.wanted(&key("web")) else {
            panic!("{case}: not served")
        };
        let (backends, check) = index.backends(&serve);
        assert_eq!(matches!(backends, Backends::Local { .. }), is_local, "{case}");
        assert_eq!(check, Some(expected), "{case}");
    }
}

#[test]
fn the_annotation_switches_probes_off() {
    let patch = json!({"metadata": {"annotations": {"vipline.dev/health-check": "none"}}});
    let index = index([Object::Service(local(patch))]);
    let Wanted::Serve(serve) = index.wanted(&key("web")) else {
        panic!("not served")
    };
    assert_eq!(index.backends(&serve).1, None);
}

#[test]
fn the_lookup_table_of_a_local_service_only_grows_while_the_service_lives() {
    let slots = |service_uid: &str, table_uid: &str| {
        let table = table(
            "web",
            "198.51.100.1",
            json!({"spec": {
                "service": {"uid": table_uid},
                "backends": {"nodeSet": null, "local": {"set": "workers", "tableSlots": 2048, "nodes": []}},
            }}),
        );
        let objects = [
            Object::Service(local(json!({"metadata": {"uid": service_uid}}))),
            Object::Table(table),
            Object::EndpointSlice(slice(json!({"endpoints": [endpoint("10.0.0.1", "a")]}))),
        ];
        let index = index(objects);
        let Wanted::Serve(serve) = index.wanted(&key("web")) else {
            panic!("not served")
        };
        match index.backends(&serve).0 {
            Backends::Local { table_slots, .. } => table_slots,
            Backends::NodeSet { .. } => panic!("not local"),
        }
    };
    assert_eq!(slots("uid-web", "uid-web"), 2_048);
    assert_eq!(slots("uid-web", "an earlier life"), 256);
}
