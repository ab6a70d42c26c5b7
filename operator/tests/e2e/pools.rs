//! Pools: who gets an address from where, and what edits of them do.

use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use operator_api::{ANNOTATION_ALLOCATED_FROM, ANNOTATION_POOL, CONDITION_ALLOCATED, CONDITION_CONFLICT};
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// Where a Service's address is from.
async fn origin(cluster: &Cluster, name: &str) -> String {
    cluster.is_served(name).await;
    cluster.see(name).await.annotations()[ANNOTATION_ALLOCATED_FROM].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_asked_for_by_name_gives_the_address_and_auto_assign_off_means_only_then() {
    let (cluster, _running) = Cluster::running().await;
    cluster
        .pool("asked", &[cluster.range4(1, 4)], json!({"autoAssign": false}))
        .await;
    cluster.service("plain", json!({})).await;
    cluster
        .is_refused("plain", CONDITION_ALLOCATED, "AllocationFailed")
        .await;
    let pool = cluster.pool_name("asked");
    cluster
        .annotated("asks", json!({ANNOTATION_POOL: pool}), json!({}))
        .await;
    assert_eq!(origin(&cluster, "asks").await, pool);
    let theirs = json!({"metallb.io/address-pool": pool});
    cluster.annotated("asks-as-of-metallb", theirs, json!({})).await;
    assert_eq!(origin(&cluster, "asks-as-of-metallb").await, pool);
    cluster.pool("open", &[cluster.range4(9, 9)], json!({})).await;
    assert_eq!(origin(&cluster, "plain").await, cluster.pool_name("open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_chosen_by_namespace_labels_and_priority() {
    let (cluster, _running) = Cluster::running().await;
    let label = json!({"e2e-tier": cluster.namespace});
    let by_name = cluster.another_namespace("named", json!({})).await;
    let by_label = cluster.another_namespace("labelled", label.clone()).await;
    let here = [&cluster.namespace, &by_name];
    cluster
        .pool(
            "late",
            &[cluster.range4(1, 4)],
            json!({"namespaces": here, "priority": 20}),
        )
        .await;
    cluster
        .pool(
            "early",
            &[cluster.range4(11, 11)],
            json!({"namespaces": here, "priority": 10}),
        )
        .await;
    let labelled = json!({"namespaces": [], "namespaceSelector": {"matchLabels": label}});
    cluster.pool("labelled", &[cluster.range4(21, 24)], labelled).await;
    let gold = json!({"priority": 1, "serviceSelector": {"matchLabels": {"tier": "gold"}}});
    cluster.pool("gold", &[cluster.range4(31, 34)], gold).await;

    cluster.service("first", json!({})).await;
    assert_eq!(origin(&cluster, "first").await, cluster.pool_name("early"));
    cluster.service("second", json!({})).await;
    assert_eq!(
        origin(&cluster, "second").await,
        cluster.pool_name("late"),
        "early is full"
    );
    let service = cluster.service_with("gold", json!({"labels": {"tier": "gold"}}), json!({}));
    cluster
        .services()
        .create(&PostParams::default(), &service)
        .await
        .unwrap();
    assert_eq!(origin(&cluster, "gold").await, cluster.pool_name("gold"));

    for (namespace, pool) in [(by_name, "late"), (by_label, "labelled")] {
        let service = cluster.service_with("web", json!({}), json!({}));
        let services = kube::Api::namespaced(cluster.client.clone(), &namespace);
        services.create(&PostParams::default(), &service).await.unwrap();
        cluster
            .until(
                &format!("a Service in {namespace} has an address of {pool}"),
                || async {
                    let service: k8s_openapi::api::core::v1::Service = services.get("web").await.unwrap();
                    service.annotations().get(ANNOTATION_ALLOCATED_FROM) == Some(&cluster.pool_name(pool))
                        && !crate::look::addresses(&service).is_empty()
                },
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_told_and_an_address_that_is_freed_goes_to_who_waits() {
    let (cluster, _running) = Cluster::running().await;
    cluster.pool("small", &[cluster.range4(1, 1)], json!({})).await;
    cluster.service("first", json!({})).await;
    let addresses = cluster.is_served("first").await;
    cluster.service("second", json!({})).await;
    let message = cluster
        .is_refused("second", CONDITION_ALLOCATED, "AllocationFailed")
        .await;
    assert!(message.contains(&cluster.pool_name("small")), "{message}");
    cluster.is_told("second", "AllocationFailed").await;
    assert!(cluster.addresses("second").await.is_empty());
    cluster.delete("first").await;
    assert_eq!(cluster.is_served("second").await, addresses);
}

#[tokio::test(flavor = "multi_thread")]
async fn dot_0_and_dot_255_are_left_out_where_the_pool_says_so() {
    let (cluster, _running) = Cluster::running().await;
    let edge = [format!("{}/31", cluster.ip4(0))];
    cluster.pool("main", &edge, json!({"avoidBuggyIPs": true})).await;
    cluster.service("first", json!({})).await;
    assert_eq!(cluster.is_served("first").await, [cluster.ip4(1)]);
    cluster.service("second", json!({})).await;
    cluster
        .is_refused("second", CONDITION_ALLOCATED, "AllocationFailed")
        .await;
    let patch = Patch::Merge(json!({"spec": {"avoidBuggyIPs": false}}));
    let pool = cluster.pool_name("main");
    cluster
        .pools()
        .patch(&pool, &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(cluster.is_served("second").await, [cluster.ip4(0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pools_status_counts_used_and_free_of_both_families() {
    let (cluster, _running) = Cluster::running().await;
    let addresses = [cluster.range4(1, 5), cluster.range6(1, 3)];
    cluster.pool("main", &addresses, json!({})).await;
    cluster.pool_counts("main", (0, 5), (0, 3)).await;
    cluster.service("web", json!({})).await;
    let family: std::net::IpAddr = cluster.is_served("web").await[0].parse().unwrap();
    if family.is_ipv4() {
        cluster.pool_counts("main", (1, 4), (0, 3)).await;
    } else {
        cluster.pool_counts("main", (0, 5), (1, 2)).await;
    }
    cluster.delete("web").await;
    cluster.pool_counts("main", (0, 5), (0, 3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pools_that_overlap_the_later_says_so_and_hands_nothing_out() {
    let (cluster, _running) = Cluster::running().await;
    cluster
        .pool("first", &[cluster.range4(1, 4)], json!({"autoAssign": false}))
        .await;
    // Which is the earlier is told by whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    cluster.pool("second", &[cluster.range4(3, 8)], json!({})).await;
    let conflict = |status: &Value| {
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .into_iter()
            .find(|condition| condition["type"] == CONDITION_CONFLICT)
            .map(|condition| (condition["status"].clone(), condition["message"].clone()))
    };
    cluster
        .until("a conflict is told", || async {
            let told = conflict(&cluster.pool_status("second").await);
            told.is_some_and(|(status, message)| {
                status == "True" && message.as_str().unwrap().contains(&cluster.pool_name("first"))
            })
        })
        .await;
    let told = conflict(&cluster.pool_status("first").await);
    assert!(
        told.is_none_or(|(status, _)| status != "True"),
        "the first is as it was"
    );
    cluster.service("web", json!({})).await;
    cluster.is_refused("web", CONDITION_ALLOCATED, "AllocationFailed").await;
    let first = cluster.pool_name("first");
    cluster.pools().delete(&first, &DeleteParams::default()).await.unwrap();
    assert_eq!(origin(&cluster, "web").await, cluster.pool_name("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_a_bad_block_is_refused_at_admission() {
    let cluster = Cluster::connect().await;
    let bad = [
        "300.1.1.0/24".to_owned(),
        format!("{}/33", cluster.ip4(0)),
        cluster.range4(9, 1),
        "nonsense".to_owned(),
        format!("{}-{}", cluster.ip4(1), cluster.ip6(1)),
    ];
    for addresses in bad {
        let answer = cluster
            .try_pool("bad", std::slice::from_ref(&addresses), json!({}))
            .await;
        assert!(
            matches!(&answer, Err(kube::Error::Api(status)) if status.code == 422),
            "{addresses}: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_shrinks_or_goes_takes_no_address_away() {
    let (cluster, (operator, _lb)) = Cluster::running().await;
    cluster.pool("main", &[cluster.range4(1, 4)], json!({})).await;
    for name in ["a", "b"] {
        cluster.service(name, json!({})).await;
    }
    let before = [cluster.is_served("a").await, cluster.is_served("b").await];
    let same = || async { [cluster.addresses("a").await, cluster.addresses("b").await] == before };
    let shrunk = Patch::Merge(json!({"spec": {"addresses": [cluster.range4(8, 9)]}}));
    let pool = cluster.pool_name("main");
    cluster
        .pools()
        .patch(&pool, &PatchParams::default(), &shrunk)
        .await
        .unwrap();
    cluster.stays("addresses after the pool has shrunk", same).await;
    cluster.pools().delete(&pool, &DeleteParams::default()).await.unwrap();
    cluster.stays("addresses after the pool has gone", same).await;
    operator.shut_down().unwrap();
    let _operator = cluster.operator(|_| {});
    cluster.stays("addresses after a restart", same).await;
    for address in before.iter().flatten() {
        assert!(cluster.claim(address).await.is_some(), "{address}");
    }
    cluster.delete("a").await;
    cluster.is_gone("a").await;
    cluster.is_free(&before[0][0]).await;
}
