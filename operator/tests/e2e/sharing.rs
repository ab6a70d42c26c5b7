//! Several Services on one address, by key.

use kube::{Api, api::PostParams};
use operator_api::{ANNOTATION_SHARING_KEY, CONDITION_ALLOCATED};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// The spec of a Service of IPv4 with one port.
fn on(port: u16) -> Value {
    json!({"ports": [{"name": "port", "port": port, "protocol": "TCP"}],
           "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]})
}

fn key() -> Value {
    json!({ANNOTATION_SHARING_KEY: "shared"})
}

#[tokio::test(flavor = "multi_thread")]
async fn services_with_one_key_share_an_address_as_long_as_their_ports_differ() {
    let (cluster, _running) = Cluster::served().await;
    cluster.annotated("a", key(), on(80)).await;
    let shared = cluster.is_served("a").await;
    cluster.annotated("b", key(), on(443)).await;
    assert_eq!(cluster.is_served("b").await, shared);
    cluster.annotated("c", key(), on(80)).await;
    assert_ne!(cluster.is_served("c").await, shared, "its port is taken there");
    cluster.service("without", on(8080)).await;
    assert_ne!(cluster.is_served("without").await, shared, "it has no key");
    let mut holders: Vec<String> = Vec::new();
    for holder in cluster.claim(&shared[0]).await.unwrap().spec.holders {
        holders.push(holder.service.name);
    }
    assert_eq!(holders, ["a", "b"]);

    cluster.delete("a").await;
    cluster.is_gone("a").await;
    assert_eq!(cluster.addresses("b").await, shared);
    cluster.delete("b").await;
    cluster.is_free(&shared[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_use_a_port_of_another_moves_and_the_other_stays() {
    let (cluster, _running) = Cluster::served().await;
    cluster.annotated("a", key(), on(80)).await;
    let shared = cluster.is_served("a").await;
    cluster.annotated("b", key(), on(443)).await;
    assert_eq!(cluster.is_served("b").await, shared);
    cluster.patch("b", json!({"spec": on(80)})).await;
    cluster
        .until("b has moved", || async {
            let addresses = cluster.addresses("b").await;
            !addresses.is_empty() && addresses != shared
        })
        .await;
    assert_eq!(cluster.addresses("a").await, shared);
    cluster
        .until("a has the address alone", || async {
            cluster.claim(&shared[0]).await.unwrap().spec.holders.len() == 1
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drops_the_key_moves_and_the_other_stays() {
    let (cluster, _running) = Cluster::served().await;
    cluster.annotated("a", key(), on(80)).await;
    let shared = cluster.is_served("a").await;
    cluster.annotated("b", key(), on(443)).await;
    assert_eq!(cluster.is_served("b").await, shared);
    cluster
        .patch(
            "b",
            json!({"metadata": {"annotations": {ANNOTATION_SHARING_KEY: null}}}),
        )
        .await;
    cluster
        .until("b has moved", || async {
            let addresses = cluster.addresses("b").await;
            !addresses.is_empty() && addresses != shared
        })
        .await;
    assert_eq!(cluster.addresses("a").await, shared);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_shared_with_another_namespace_only_where_the_pool_says_so() {
    let (cluster, _running) = Cluster::running().await;
    let other = cluster.another_namespace("other", json!({})).await;
    let services = Api::namespaced(cluster.client.clone(), &other);
    let namespaces = [&cluster.namespace, &other];
    let across = |is: bool| json!({"namespaces": namespaces, "shareAcrossNamespaces": is});
    for (pool, host, is) in [("closed", 1, false), ("open", 2, true)] {
        cluster.pool(pool, &[cluster.range4(host, host)], across(is)).await;
        let mut annotations = key();
        annotations[operator_api::ANNOTATION_POOL] = json!(cluster.pool_name(pool));
        cluster.annotated(pool, annotations.clone(), on(80)).await;
        let shared = cluster.is_served(pool).await;
        let service = cluster.service_with(pool, json!({"annotations": annotations}), on(443));
        services.create(&PostParams::default(), &service).await.unwrap();
        cluster
            .until(&format!("the Service of the other namespace, pool {pool}"), || async {
                let service = services.get(pool).await.unwrap();
                let conditions = serde_json::to_value(&service).unwrap()["status"]["conditions"].clone();
                let refused = conditions.as_array().is_some_and(|conditions| {
                    let is_it = |it: &Value| it["type"] == CONDITION_ALLOCATED && it["status"] == "False";
                    conditions.iter().any(is_it)
                });
                if is {
                    crate::look::addresses(&service) == shared
                } else {
                    refused && crate::look::addresses(&service).is_empty()
                }
            })
            .await;
    }
}
