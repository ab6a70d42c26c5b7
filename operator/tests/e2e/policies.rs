//! Source ranges, affinity and traffic policies of a live Service, with EndpointSlices written by hand.

use k8s_openapi::api::{core::v1::Node, discovery::v1::EndpointSlice};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use operator_api::{
    ANNOTATION_SOURCE_RANGES, Backends, HealthCheck, LABEL_EXCLUDE_NODE, LocalNode, TAINT_LB_NODE, VipTable, WORKERS,
};
use serde_json::{Value, json};

use crate::{cluster::Cluster, look::local_nodes};

fn ranges(table: &VipTable) -> Vec<&str> {
    let ranges = table.spec.source_ranges.iter().flatten();
    ranges.map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn source_ranges_are_set_changed_and_cleared_and_the_field_wins() {
    let (cluster, _running) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    let addresses = cluster.is_served("web").await;
    assert_eq!(cluster.table("web").await.unwrap().spec.source_ranges, None);
    let annotation = |value: Value| json!({"metadata": {"annotations": {ANNOTATION_SOURCE_RANGES: value}}});
    let field = |value: Value| json!({"spec": {"loadBalancerSourceRanges": value}});
    for (patch, wanted) in [
        (field(json!(["192.0.2.0/24"])), &["192.0.2.0/24", "::/0"][..]),
        (annotation(json!("203.0.113.0/24")), &["192.0.2.0/24", "::/0"]),
        (
            field(json!(["192.0.2.0/25", "2001:db8::/32"])),
            &["192.0.2.0/25", "2001:db8::/32"],
        ),
        (field(Value::Null), &["203.0.113.0/24", "::/0"]),
        (annotation(Value::Null), &[]),
    ] {
        cluster.patch("web", patch).await;
        cluster
            .table_is("web", &format!("source ranges {wanted:?}"), |table| {
                ranges(table) == wanted
            })
            .await;
        assert_eq!(cluster.addresses("web").await, addresses);
    }
    assert_eq!(cluster.table("web").await.unwrap().spec.source_ranges, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_affinity_is_switched_on_changed_and_off_with_either_policy() {
    let (cluster, _running) = Cluster::served().await;
    for policy in ["Cluster", "Local"] {
        let name = policy.to_lowercase();
        cluster
            .service(
                &name,
                json!({"externalTrafficPolicy": policy, "sessionAffinity": "ClientIP"}),
            )
            .await;
        cluster.is_served(&name).await;
        let config = |seconds: Value| json!({"clientIP": {"timeoutSeconds": seconds}});
        for (spec, seconds) in [
            (json!({}), Some(10_800)),
            (json!({"sessionAffinityConfig": config(json!(600))}), Some(600)),
            (json!({"sessionAffinity": "None", "sessionAffinityConfig": null}), None),
            (
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config(json!(60))}),
                Some(60),
            ),
        ] {
            cluster.patch(&name, json!({"spec": spec})).await;
            cluster
                .table_is(&name, &format!("affinity {seconds:?}"), |table| {
                    table.spec.affinity.map(|it| it.client_ip_timeout_seconds) == seconds
                })
                .await;
        }
    }
}

/// Nodes that can be backends.
async fn workers(cluster: &Cluster) -> Vec<String> {
    let nodes = Api::<Node>::all(cluster.client.clone());
    let nodes = nodes.list(&ListParams::default()).await.unwrap().items;
    let is_worker = |node: &Node| {
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        !node.labels().contains_key(LABEL_EXCLUDE_NODE) && !taints.into_iter().any(|taint| taint.key == TAINT_LB_NODE)
    };
    let workers = nodes.iter().filter(|node| is_worker(node));
    workers.map(|node| node.name_any()).collect()
}

/// Makes a Service without selector, of IPv4, and waits until it is served.
async fn bare(cluster: &Cluster, name: &str, policy: &str) {
    let spec = json!({"selector": null, "externalTrafficPolicy": policy,
                      "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]});
    cluster.service(name, spec).await;
    cluster.is_served(name).await;
}

/// One endpoint: on which node, and how it is: `ready`, `serving` (and terminating) or anything else.
fn endpoint(cluster: &Cluster, host: u8, node: Option<&str>, how: &str) -> Value {
    let conditions = json!({"ready": how == "ready", "serving": how != "gone", "terminating": how == "serving"});
    let mut endpoint = json!({"addresses": [cluster.ip4(host)], "conditions": conditions});
    if let Some(node) = node {
        endpoint["nodeName"] = json!(node);
    }
    endpoint
}

/// Writes the one slice of a Service by hand.
async fn slice(cluster: &Cluster, service: &str, endpoints: Value) {
    let slices = Api::<EndpointSlice>::namespaced(cluster.client.clone(), &cluster.namespace);
    let name = format!("{service}-by-hand");
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "e2e"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    });
    let apply = PatchParams::apply("vipline-e2e").force();
    slices.patch(&name, &apply, &Patch::Apply(&slice)).await.unwrap();
}

fn weighs(node: &str, ipv4: u16) -> LocalNode {
    LocalNode {
        name: node.to_owned(),
        ipv4,
        ipv6: 0,
    }
}

async fn has_nodes(cluster: &Cluster, name: &str, wanted: &[LocalNode]) {
    let mut wanted = wanted.to_vec();
    wanted.sort();
    cluster
        .table_is(name, &format!("nodes {wanted:?}"), |table| {
            local_nodes(table).is_some_and(|nodes| nodes == wanted)
        })
        .await;
}

fn asked_port(table: &VipTable) -> Option<(i32, bool)> {
    match table.spec.health_check {
        Some(HealthCheck::ServicePort { port, ignored }) => Some((port.into(), ignored)),
        Some(HealthCheck::KubeProxy { .. }) | None => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_local_weighs_nodes_by_their_ready_endpoints_and_asks_the_health_check_port() {
    let (cluster, _running) = Cluster::served().await;
    let workers = workers(&cluster).await;
    let [one, two, ..] = workers.as_slice() else {
        println!("skipped: fewer than two nodes can be backends");
        return;
    };
    bare(&cluster, "web", "Local").await;
    has_nodes(&cluster, "web", &[]).await;
    let at = |host, node: &str, how| endpoint(&cluster, host, Some(node), how);
    let three = json!([at(201, one, "ready"), at(202, one, "ready"), at(203, two, "ready")]);
    slice(&cluster, "web", three).await;
    has_nodes(&cluster, "web", &[weighs(one, 2), weighs(two, 1)]).await;
    let port = cluster.see("web").await.spec.unwrap().health_check_node_port.unwrap();
    assert_eq!(asked_port(&cluster.table("web").await.unwrap()), Some((port, false)));

    // As long as one is ready anywhere, those that terminate get nothing new.
    let draining = json!([at(201, one, "serving"), at(202, one, "gone"), at(203, two, "ready")]);
    slice(&cluster, "web", draining).await;
    has_nodes(&cluster, "web", &[weighs(two, 1)]).await;
    // Without, they are the last resort, and that their nodes say 503 is known.
    let last = json!([at(201, one, "serving"), at(203, two, "gone")]);
    slice(&cluster, "web", last).await;
    has_nodes(&cluster, "web", &[weighs(one, 1)]).await;
    cluster
        .table_is("web", "503 is ignored", |table| asked_port(table) == Some((port, true)))
        .await;
    slice(&cluster, "web", json!([])).await;
    has_nodes(&cluster, "web", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn not_ready_addresses_that_are_published_count() {
    let (cluster, _running) = Cluster::served().await;
    let workers = workers(&cluster).await;
    let Some(one) = workers.first() else {
        println!("skipped: no node can be a backend");
        return;
    };
    bare(&cluster, "web", "Local").await;
    // As the EndpointSlice controller writes them for publishNotReadyAddresses.
    let mut published = endpoint(&cluster, 201, Some(one), "gone");
    published["conditions"]["ready"] = json!(true);
    let unready = endpoint(&cluster, 202, Some(one), "gone");
    slice(&cluster, "web", json!([published, unready])).await;
    has_nodes(&cluster, "web", &[weighs(one, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_traffic_policy_is_switched_to_local_and_back_while_the_address_stays() {
    let (cluster, _running) = Cluster::served().await;
    let workers = workers(&cluster).await;
    let Some(one) = workers.first() else {
        println!("skipped: no node can be a backend");
        return;
    };
    bare(&cluster, "web", "Cluster").await;
    let addresses = cluster.addresses("web").await;
    let ready = endpoint(&cluster, 201, Some(one), "ready");
    slice(&cluster, "web", json!([ready])).await;
    for _ in 0..2 {
        cluster
            .table_is("web", "all workers, asked at kube-proxy", |table| {
                matches!(&table.spec.backends, Backends::NodeSet { name, unserved } if name == WORKERS && unserved.is_empty())
                    && matches!(table.spec.health_check, Some(HealthCheck::KubeProxy { port: 10_256 }))
            })
            .await;
        cluster
            .patch("web", json!({"spec": {"externalTrafficPolicy": "Local"}}))
            .await;
        has_nodes(&cluster, "web", &[weighs(one, 1)]).await;
        assert!(asked_port(&cluster.table("web").await.unwrap()).is_some());
        cluster
            .patch("web", json!({"spec": {"externalTrafficPolicy": "Cluster"}}))
            .await;
    }
    assert_eq!(cluster.addresses("web").await, addresses);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_endpoints_policy_cluster_says_that_nobody_serves_it() {
    let (cluster, _running) = Cluster::served().await;
    bare(&cluster, "web", "Cluster").await;
    let unserved = |table: &VipTable| match &table.spec.backends {
        Backends::NodeSet { unserved, .. } => !unserved.is_empty(),
        Backends::Local { .. } => false,
    };
    cluster.table_is("web", "unserved", unserved).await;
    // Without nodeName, as people write them.
    let ready = endpoint(&cluster, 201, None, "ready");
    slice(&cluster, "web", json!([ready])).await;
    cluster.table_is("web", "served", |table| !unserved(table)).await;
    slice(&cluster, "web", json!([])).await;
    cluster.table_is("web", "unserved again", unserved).await;
}
