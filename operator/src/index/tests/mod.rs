//! Scenarios. Objects are written as a user would, and patched.

mod cloud_provider;
mod contract;
mod endpoints;
mod events;
mod lb_nodes;
mod leaving;
mod node_sets;
mod nodes;
mod order;
mod scale;
mod source_ranges;
mod transits;
mod tunnel_and_seed;

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Service},
    discovery::v1::EndpointSlice,
};
use operator_api::{AddressClaim, AddressPool, Announcement, BgpPeer, LbNode, NodeSet, VipTable};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Index, Object, Serve, Settings, Wanted};
use crate::{ServiceKey, Subject};

const NAMESPACE: &str = "vipline-system";

fn settings() -> Settings {
    Settings {
        namespace: NAMESPACE.to_owned(),
        class: "vipline.dev/xdp".to_owned(),
        default_class: false,
        service_selector: None,
    }
}

fn index(objects: impl IntoIterator<Item = Object>) -> Index {
    with_settings(settings(), objects)
}

fn with_settings(settings: Settings, objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::new(settings);
    for object in objects {
        index.apply(object);
    }
    index
}

fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn dirty(subjects: impl IntoIterator<Item = Subject>) -> BTreeSet<Subject> {
    subjects.into_iter().collect()
}

fn web() -> Subject {
    Subject::Service(key("web"))
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Lays a patch over an object: null takes out, objects are merged, all else is replaced.
fn patched<T: DeserializeOwned>(mut base: Value, patch: Value) -> T {
    fn lay(base: &mut Value, patch: Value) {
        match (base, patch) {
            (Value::Object(base), Value::Object(patch)) => {
                for (name, value) in patch {
                    if value.is_null() {
                        base.remove(&name);
                    } else {
                        lay(base.entry(name).or_insert_with(|| json!({})), value);
                    }
                }
            }
            (base, patch) => *base = patch,
        }
    }
    lay(&mut base, patch);
    serde_json::from_value(base).unwrap()
}

/// `shop/web`: a load balancer Service of our class, with one port.
fn service(patch: Value) -> Service {
    let base = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "web", "uid": "uid-web", "resourceVersion": "100"},
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "vipline.dev/xdp",
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Cluster",
            "ports": [{"protocol": "TCP", "port": 80, "nodePort": 30080}],
        },
    });
    patched(base, patch)
}

/// `shop/web-1`: an IPv4 slice of `web`.
fn slice(patch: Value) -> EndpointSlice {
    let base = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop", "name": "web-1", "uid": "uid-web-1", "resourceVersion": "100",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [],
    });
    patched(base, patch)
}

/// An endpoint that is ready.
fn endpoint(address: &str, node: &str) -> Value {
    json!({
        "addresses": [address], "nodeName": node,
        "conditions": {"ready": true, "serving": true, "terminating": false},
    })
}

fn node(name: &str, patch: Value) -> Node {
    let number: u32 = name
        .trim_start_matches(|letter: char| !letter.is_ascii_digit())
        .parse()
        .unwrap_or(0);
    let base = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "100"},
        "spec": {"providerID": "metal://1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("10.1.{}.{}", number / 250, number % 250 + 1)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    patched(base, patch)
}

fn namespace(name: &str, patch: Value) -> Namespace {
    let base = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "100"},
    });
    patched(base, patch)
}

fn pool(name: &str, addresses: &[&str], patch: Value) -> AddressPool {
    let base = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "100"},
        "spec": {"addresses": addresses},
    });
    patched(base, patch)
}

/// A claim of pool `public`, held by Services of `shop` for port 80.
fn claim(address: &str, holders: &[&str], patch: Value) -> AddressClaim {
    let holder = |name: &&str| {
        json!({
            "service": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
            "use": "LoadBalancer", "ports": [{"protocol": "TCP", "port": 80}],
        })
    };
    let name = AddressClaim::name_of(address.parse().unwrap());
    let base = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "AddressClaim",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "100"},
        "spec": {"address": address, "pool": "public", "holders": holders.iter().map(holder).collect::<Vec<_>>()},
    });
    patched(base, patch)
}

/// The table of a Service of `shop` with one address.
fn table(name: &str, address: &str, patch: Value) -> VipTable {
    let base = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "VipTable",
        "metadata": {
            "namespace": NAMESPACE, "name": format!("shop.{name}"), "uid": format!("uid-table-{name}"), "resourceVersion": "200",
        },
        "spec": {
            "service": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
            "addresses": [{"address": address, "pool": "public", "use": "LoadBalancer"}],
            "ports": [{"protocol": "TCP", "port": 80}],
            "backends": {"nodeSet": {"name": "workers"}},
        },
    });
    patched(base, patch)
}

fn node_set(chunk: u32, patch: Value) -> NodeSet {
    let base = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "NodeSet",
        "metadata": {
            "namespace": NAMESPACE, "name": format!("workers-{chunk}"), "uid": format!("uid-chunk-{chunk}"), "resourceVersion": "100",
        },
        "spec": {
            "set": "workers", "chunk": chunk, "chunks": 1, "epoch": 1, "tableSlots": 256,
            "seedFingerprint": "0123456789abcdef", "nodes": [],
        },
    });
    patched(base, patch)
}

/// An LB node that has programmed everything through `tables`.
fn lb_node(name: &str, tables: &str, patch: Value) -> LbNode {
    let base = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "LbNode",
        "metadata": {"namespace": NAMESPACE, "name": name, "uid": format!("uid-{name}"), "resourceVersion": "100"},
        "spec": {"tunnelSources": [format!("10.9.0.{}/32", name.len())]},
        "status": {"programmed": {"tables": tables}},
    });
    patched(base, patch)
}

fn peer(name: &str, patch: Value) -> BgpPeer {
    let base = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "BgpPeer",
        "metadata": {"namespace": NAMESPACE, "name": name, "uid": format!("uid-{name}"), "resourceVersion": "100"},
        "spec": {"address": "10.0.0.1", "asn": 65001, "localAsn": 65000},
    });
    patched(base, patch)
}

fn announcement(name: &str, spec: Value, patch: Value) -> Announcement {
    let base = json!({
        "apiVersion": "vipline.dev/v1alpha1", "kind": "Announcement",
        "metadata": {"namespace": NAMESPACE, "name": name, "uid": format!("uid-{name}"), "resourceVersion": "100"},
        "spec": spec,
    });
    patched(base, patch)
}

/// Its Lease, renewed at a time.
fn lease(lb_node: &str, renewed: &str, patch: Value) -> Lease {
    let base = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "namespace": NAMESPACE, "name": format!("lb-{lb_node}"), "uid": format!("uid-lease-{lb_node}"), "resourceVersion": "100",
        },
        "spec": {"renewTime": renewed, "leaseDurationSeconds": 40},
    });
    patched(base, patch)
}

/// What `shop/web` is to be served, with the settings of every day.
fn serve(patch: Value) -> Serve {
    let index = index([Object::Service(service(patch))]);
    match index.wanted(&key("web")) {
        Wanted::Serve(serve) => *serve,
        other => panic!("not served but {other:?}"),
    }
}

/// Reasons and messages of what is refused of `shop/web`.
fn refusals(patch: Value) -> Vec<(&'static str, String)> {
    let refusals = serve(patch).refusals;
    refusals
        .iter()
        .map(|refusal| (refusal.reason(), refusal.to_string()))
        .collect()
}

fn seed_with(seed: &str) -> Object {
    let base = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"namespace": NAMESPACE, "name": "vipline-flow-seed", "uid": "uid-seed", "resourceVersion": "100"},
        "stringData": {"seed": seed},
    });
    Object::Seed(serde_json::from_value(base).unwrap())
}

fn seed_secret() -> Object {
    seed_with(&"a".repeat(64))
}
