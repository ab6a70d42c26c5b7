//! Addresses that are asked for: by annotation, by field, by `externalIPs`.

use kube::{ResourceExt as _, api::PostParams};
use operator_api::{
    ANNOTATION_ADDRESSES, CONDITION_ACCEPTED, CONDITION_ALLOCATED, CONDITION_PROGRAMMED, FINALIZER_EXTERNAL_IPS, Use,
};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// A cluster with 16 IPv4 addresses; Services are of IPv4.
async fn ipv4() -> (
    Cluster,
    (vipline_operator::run::Operator, crate::lb_node::ScriptedLbNode),
    Value,
) {
    let (cluster, running) = Cluster::running().await;
    cluster.pool("main", &[cluster.range4(1, 16)], json!({})).await;
    (
        cluster,
        running,
        json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_asked_for_by_our_annotation_by_metallbs_and_by_the_deprecated_field() {
    let (cluster, _running, spec) = ipv4().await;
    for (host, name, annotation) in [
        (7, "ours", ANNOTATION_ADDRESSES),
        (8, "metallb", "metallb.io/loadBalancerIPs"),
        (9, "old-metallb", "metallb.universe.tf/loadBalancerIPs"),
    ] {
        let address = cluster.ip4(host);
        cluster
            .annotated(name, json!({annotation: address}), spec.clone())
            .await;
        assert_eq!(cluster.is_served(name).await.join(","), address, "{name}");
    }
    let mut field = spec.clone();
    field["loadBalancerIP"] = json!(cluster.ip4(10));
    cluster.service("field", field).await;
    assert_eq!(cluster.is_served("field").await, [cluster.ip4(10)]);
    cluster.is_told("field", "LoadBalancerIPDeprecated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_or_in_no_pool_or_no_address_is_refused_with_the_reason() {
    let (cluster, _running, spec) = ipv4().await;
    let ask = |address: String| json!({ANNOTATION_ADDRESSES: address});
    cluster.annotated("first", ask(cluster.ip4(7)), spec.clone()).await;
    cluster.is_served("first").await;
    cluster.annotated("second", ask(cluster.ip4(7)), spec.clone()).await;
    let message = cluster
        .is_refused("second", CONDITION_ALLOCATED, "AllocationFailed")
        .await;
    assert!(message.contains(&format!("{}/first", cluster.namespace)), "{message}");
    cluster.annotated("outside", ask(cluster.ip4(99)), spec.clone()).await;
    let message = cluster
        .is_refused("outside", CONDITION_ALLOCATED, "AllocationFailed")
        .await;
    assert!(message.contains("is in no pool"), "{message}");
    cluster
        .annotated("nonsense", ask("nonsense".to_owned()), spec.clone())
        .await;
    cluster.is_refused("nonsense", CONDITION_ACCEPTED, "InvalidValue").await;
    for name in ["second", "outside", "nonsense"] {
        assert!(cluster.addresses(name).await.is_empty(), "{name}");
    }
    cluster.delete("first").await;
    assert_eq!(cluster.is_served("second").await, [cluster.ip4(7)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_address_that_is_asked_for_replaces_the_one_it_has() {
    let (cluster, _running, spec) = ipv4().await;
    cluster.service("web", spec).await;
    let old = cluster.is_served("web").await.remove(0);
    let new = cluster.ip4(12);
    assert_ne!(old, new);
    cluster
        .patch("web", json!({"metadata": {"annotations": {ANNOTATION_ADDRESSES: new}}}))
        .await;
    cluster.has("web", std::slice::from_ref(&new)).await;
    cluster.is_free(&old).await;
    cluster
        .table_is("web", "the new address alone", |table| {
            let addresses = &table.spec.addresses;
            addresses.len() == 1 && addresses[0].address == new
        })
        .await;
    let told = cluster.is_told("web", "UpdatedLoadBalancer").await;
    assert!(told.iter().any(|note| note.contains(&new)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_ip_is_served_where_a_pool_allows_it_and_refused_where_not() {
    let (cluster, _running) = Cluster::running().await;
    let external = json!({"externalIPs": true, "autoAssign": false});
    cluster.pool("external", &[cluster.range4(1, 4)], external).await;
    cluster.pool("main", &[cluster.range4(11, 14)], json!({})).await;
    let spec = |host| {
        json!({"type": "ClusterIP", "loadBalancerClass": null, "externalIPs": [cluster.ip4(host)],
               "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]})
    };
    let allowed = cluster.service_with("allowed", json!({}), spec(2));
    match cluster.services().create(&PostParams::default(), &allowed).await {
        // The admission plugin DenyServiceExternalIPs.
        Err(kube::Error::Api(status)) if status.code == 403 => {
            println!("skipped: this cluster denies externalIPs: {}", status.message);
            return;
        }
        created => drop(created.unwrap()),
    }
    cluster
        .until("it is programmed", || async {
            cluster.says("allowed", CONDITION_PROGRAMMED).await.as_deref() == Some("True")
        })
        .await;
    let table = cluster.table("allowed").await.unwrap();
    assert_eq!(table.spec.addresses[0].address, cluster.ip4(2));
    assert_eq!(table.spec.addresses[0].used_as, Use::ExternalIP);
    assert!(
        cluster.addresses("allowed").await.is_empty(),
        "the status is for load balancers"
    );
    assert_eq!(cluster.see("allowed").await.finalizers(), [FINALIZER_EXTERNAL_IPS]);

    cluster.service("refused", spec(12)).await;
    let message = cluster
        .is_refused("refused", CONDITION_ALLOCATED, "ExternalIPRefused")
        .await;
    assert!(message.contains(&cluster.pool_name("main")), "{message}");
    cluster.is_told("refused", "ExternalIPRefused").await;
    assert_eq!(cluster.table("refused").await, None);
    assert_eq!(cluster.claim(&cluster.ip4(12)).await, None);

    cluster.patch("allowed", json!({"spec": {"externalIPs": null}})).await;
    cluster.is_let_go("allowed").await;
    cluster.is_free(&cluster.ip4(2)).await;
}
