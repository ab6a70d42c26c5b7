//! One family, two, and in which order.

use kube::{Api, api::PostParams};
use operator_api::CONDITION_ALLOCATED;
use serde_json::json;

use crate::cluster::Cluster;

/// Whether Services of both families can be had; if not, says that the test is skipped.
async fn is_dual_stack(cluster: &Cluster) -> bool {
    let service = cluster.service_with("probe", json!({}), json!({"ipFamilyPolicy": "RequireDualStack"}));
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match cluster.services().create(&dry, &service).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 422 => {
            println!("skipped: this cluster has one family only");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_both_families_has_addresses_in_the_order_of_its_families() {
    let (cluster, _running) = Cluster::served().await;
    if !is_dual_stack(&cluster).await {
        return;
    }
    for (name, families, first_is_v4) in [("four", ["IPv4", "IPv6"], true), ("six", ["IPv6", "IPv4"], false)] {
        for policy in ["PreferDualStack", "RequireDualStack"] {
            let name = format!("{name}-{}", policy.to_lowercase());
            cluster
                .service(&name, json!({"ipFamilyPolicy": policy, "ipFamilies": families}))
                .await;
            let addresses = cluster.is_served(&name).await;
            let is_v4: Vec<bool> = addresses.iter().map(|address| address.contains('.')).collect();
            assert_eq!(is_v4, [first_is_v4, !first_is_v4], "{name}: {addresses:?}");
            let table = cluster.table(&name).await.unwrap();
            let served: Vec<&str> = table.spec.addresses.iter().map(|it| it.address.as_str()).collect();
            assert_eq!(served, addresses, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_family_comes_and_goes_with_the_policy_while_the_first_address_stays() {
    let (cluster, _running) = Cluster::served().await;
    if !is_dual_stack(&cluster).await {
        return;
    }
    cluster
        .service("web", json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}))
        .await;
    let first = cluster.is_served("web").await;
    assert_eq!(first.len(), 1);
    cluster
        .patch("web", json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}}))
        .await;
    cluster
        .until("two addresses", || async { cluster.addresses("web").await.len() == 2 })
        .await;
    let both = cluster.addresses("web").await;
    assert_eq!(both[0], first[0]);
    assert!(both[1].contains(':'), "{both:?}");
    cluster
        .patch("web", json!({"spec": {"ipFamilyPolicy": "SingleStack"}}))
        .await;
    cluster.has("web", &first).await;
    cluster.is_free(&both[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_family_in_the_pools_prefer_is_served_and_require_is_not() {
    let (cluster, _running) = Cluster::running().await;
    if !is_dual_stack(&cluster).await {
        return;
    }
    cluster.pool("four", &[cluster.range4(1, 8)], json!({})).await;
    let families = json!(["IPv4", "IPv6"]);
    cluster
        .service(
            "prefers",
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": families}),
        )
        .await;
    let first = cluster.is_served("prefers").await;
    assert_eq!(first.len(), 1);
    cluster
        .service(
            "requires",
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": families}),
        )
        .await;
    let message = cluster
        .is_refused("requires", CONDITION_ALLOCATED, "AllocationFailed")
        .await;
    assert!(message.contains("requires both families"), "{message}");
    assert!(cluster.addresses("requires").await.is_empty());

    cluster.pool("six", &[cluster.range6(1, 8)], json!({})).await;
    assert_eq!(cluster.is_served("requires").await.len(), 2);
    cluster
        .until("who preferred two has two", || async {
            let addresses = cluster.addresses("prefers").await;
            addresses.len() == 2 && addresses[0] == first[0]
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_both_families_are_asked_for_in_any_order() {
    let (cluster, _running) = Cluster::served().await;
    if !is_dual_stack(&cluster).await {
        return;
    }
    let asked = format!("{}, {}", cluster.ip6(5), cluster.ip4(6));
    let families = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]});
    let annotation = operator_api::ANNOTATION_ADDRESSES;
    cluster.annotated("web", json!({annotation: asked}), families).await;
    assert_eq!(cluster.is_served("web").await, [cluster.ip4(6), cluster.ip6(5)]);
    let services = Api::<k8s_openapi::api::core::v1::Service>::namespaced(cluster.client.clone(), &cluster.namespace);
    let service = serde_json::to_value(services.get("web").await.unwrap()).unwrap();
    for ingress in service["status"]["loadBalancer"]["ingress"].as_array().unwrap() {
        assert_eq!(ingress["ipMode"], "VIP", "kube-proxy takes it for DSR");
    }
}
