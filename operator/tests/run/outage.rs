//! The API server goes, comes back, is in a bad mood.

use std::time::Duration;

use kube::api::ListParams;
use serde_json::json;

use crate::stage::{Stage, eventually};

const QUIET: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_changes_nothing_and_what_came_during_it_is_done_after_it() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let operator = stage.operator(|_| {});
    stage.service("before", json!({})).await;
    stage.served("before").await;
    let addresses = stage.addresses("before").await;
    stage.settled(QUIET).await;

    stage.server.faults().refuse(true);
    // In the process: it meets no fault.
    let during = serde_json::to_value(crate::stage::service("during", json!({}))).unwrap();
    let mut during = during;
    during["apiVersion"] = json!("v1");
    during["kind"] = json!("Service");
    stage.server.create(during).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(operator.is_running());
    stage.server.faults().refuse(false);
    stage.served("during").await;
    assert_eq!(stage.addresses("before").await, addresses);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_too_old_is_listed_again_and_nothing_is_written() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    stage.served("web").await;
    stage.settled(QUIET).await;
    let (writes, lists) = (stage.writes(), stage.server.reads().of("list", "services", "*"));
    stage.server.faults().expire_next_watch(1, "*");
    stage.server.compact();
    stage.server.faults().drop_watches();
    eventually("a relist", || async {
        stage.server.reads().of("list", "services", "*") > lists
    })
    .await;
    stage.settled(QUIET).await;
    assert_eq!(stage.writes(), writes, "{:?}", stage.server.writes().all());
    stage.service("after", json!({})).await;
    stage.served("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_by_the_dozen_end_in_one_claim_each() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    stage.server.faults().fail_next(12, "create", "addressclaims", 409);
    stage.server.faults().fail_next(12, "apply", "services", 409);
    stage.server.faults().fail_next(12, "apply", "viptables", 409);
    let _operator = stage.operator(|_| {});
    for number in 0..6 {
        stage.service(&format!("web-{number}"), json!({})).await;
    }
    for number in 0..6 {
        stage.served(&format!("web-{number}")).await;
    }
    let claims = stage.claims().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(claims.len(), 6, "{claims:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_lost_double_nothing() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    for kind in [
        "services",
        "addressclaims",
        "viptables",
        "nodesets",
        "secrets",
        "tunnelconfigs",
    ] {
        stage.server.faults().lose_answers(2, "*", kind);
    }
    let _operator = stage.operator(|_| {});
    for number in 0..6 {
        // The test's own requests meet the same faults.
        let service = crate::stage::service(&format!("web-{number}"), json!({}));
        let mut value = serde_json::to_value(service).unwrap();
        value["apiVersion"] = json!("v1");
        value["kind"] = json!("Service");
        stage.server.create(value).unwrap();
    }
    for number in 0..6 {
        stage.served(&format!("web-{number}")).await;
    }
    let claims = stage.claims().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(claims.len(), 6, "{claims:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_server_are_waited_out_by_every_subject() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    for kind in [
        "services",
        "addressclaims",
        "viptables",
        "nodesets",
        "secrets",
        "tunnelconfigs",
    ] {
        for code in [500, 503, 429] {
            stage.server.faults().fail_next(1, "*", kind, code);
        }
    }
    let _operator = stage.operator(|_| {});
    let mut value = serde_json::to_value(crate::stage::service("web", json!({}))).unwrap();
    value["apiVersion"] = json!("v1");
    value["kind"] = json!("Service");
    stage.server.create(value).unwrap();
    stage.served("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_decided_before_every_kind_has_been_listed() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    stage.server.faults().fail_always("list", "lbnodes", 403);
    let _operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    let before = stage.writes();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.writes(), before, "{:?}", stage.server.writes().all());
    stage.server.faults().clear();
    stage.served("web").await;
}
