//! What people are told when the API server, or an object's size, says no.

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use operator_api::TunnelConfig;
use serde_json::json;

use crate::{
    birth::metric,
    stage::{OWN, Stage, eventually, pool},
};

/// Notes of all Events of a reason, in a namespace.
async fn told(stage: &Stage, namespace: &str, reason: &str) -> Vec<String> {
    let events = Api::<Event>::namespaced(stage.client.clone(), namespace);
    let list = events.list(&ListParams::default()).await.unwrap().items;
    let with_reason = list.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
    with_reason.filter_map(|event| event.note).collect()
}

async fn is_told(stage: &Stage, namespace: &str, reason: &str) -> String {
    eventually(reason, || async { !told(stage, namespace, reason).await.is_empty() }).await;
    told(stage, namespace, reason).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_refused_on_the_way_out_is_told_and_nothing_is_given_back_before_its_turn() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|_| {});
    for (name, verb, resource) in [("status", "patch", "services"), ("claim", "delete", "addressclaims")] {
        stage.service(name, json!({})).await;
        stage.served(name).await;
        let address = stage.addresses(name).await.remove(0);
        stage.server.faults().fail_always(verb, resource, 403);
        stage.delete_service(name).await;
        let words = format!("Error writing {resource}");
        eventually("it is told", || async {
            let told = told(&stage, "default", "DeleteLoadBalancerFailed").await;
            told.iter().any(|note| note.starts_with(&words))
        })
        .await;
        assert!(stage.claims().get_opt(&address).await.unwrap().is_some(), "{name}");
        let named = stage.addresses(name).await;
        assert_eq!(named.is_empty(), name == "claim", "{name}: {named:?}");
        stage.server.faults().clear();
        eventually("it is gone", || async {
            stage.services().get_opt(name).await.unwrap().is_none()
        })
        .await;
    }
    assert!(told(&stage, "default", "SyncLoadBalancerFailed").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_of_a_service_that_clients_know_is_told_as_an_update_and_a_birth_as_a_sync() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    stage.served("web").await;
    stage.server.faults().fail_always("apply", "viptables", 403);
    let change = json!({"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}});
    stage.server.merge("services", "default", "web", "", change).unwrap();
    let note = is_told(&stage, "default", "UpdateLoadBalancerFailed").await;
    assert!(note.starts_with("Error writing viptables"), "{note}");
    assert!(told(&stage, "default", "SyncLoadBalancerFailed").await.is_empty());
    stage.service("new", json!({})).await;
    is_told(&stage, "default", "SyncLoadBalancerFailed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_config_that_would_be_too_large_is_told_by_event_and_metric_and_stays_as_it_was() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let operator = stage.operator(|options| options.listen = Some(([127, 0, 0, 1], 0).into()));
    let tunnels = Api::<TunnelConfig>::namespaced(stage.client.clone(), OWN);
    let spec = || async {
        let tunnel = tunnels.get_opt("default").await.unwrap();
        tunnel.map(|tunnel| tunnel.spec).unwrap_or_default()
    };
    eventually("it is there", || async { spec().await.sources == ["192.0.2.1/32"] }).await;
    let before = spec().await;
    let too_large = "vipline_operator_tunnel_too_large";
    assert_eq!(metric(&operator, too_large).await, 0.0);

    // Each of these ranges is 158 blocks.
    let wide: Vec<String> = (0..64)
        .map(|subnet| format!("2001:db8:{:x}::1-2001:db8:{0:x}:ffff:ffff:ffff:ffff:fffe", subnet + 1))
        .collect();
    stage.create(&pool("wide", json!({"addresses": wide}))).await;
    eventually("the metric says it", || async {
        metric(&operator, too_large).await == 1.0
    })
    .await;
    let note = is_told(&stage, OWN, "TunnelConfigTooLarge").await;
    assert!(
        note.starts_with("10114 blocks of VIP addresses are more than the 4096"),
        "{note}"
    );
    assert_eq!(spec().await, before);
    // Services go on being served.
    stage.service("web", json!({})).await;
    stage.served("web").await;

    stage.server.delete("addresspools", "", "wide").unwrap();
    eventually("all is well again", || async {
        metric(&operator, too_large).await == 0.0
    })
    .await;
    stage.settled(Duration::from_millis(500)).await;
    assert_eq!(spec().await, before);
}
