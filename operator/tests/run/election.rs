//! Two operators.

use std::time::{Duration, Instant};

use kube::api::ListParams;
use serde_json::json;
use vipline_operator::run::{Error, Operator};

use crate::stage::{Stage, eventually};

fn candidate(stage: &Stage, name: &str) -> Operator {
    stage.operator(|options| {
        options.leader_elect = true;
        options.identity = name.to_owned();
    })
}

async fn leader(stage: &Stage) -> Option<String> {
    let lease = stage.leases().get_opt("vipline-operator").await.unwrap()?;
    lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_takes_over_when_the_leader_is_killed() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let first = candidate(&stage, "first");
    eventually("first leads", || async {
        leader(&stage).await.as_deref() == Some("first")
    })
    .await;
    let second = candidate(&stage, "second");
    stage.service("one", json!({})).await;
    stage.served("one").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        leader(&stage).await.as_deref(),
        Some("first"),
        "a live leader keeps its Lease"
    );

    let killed = Instant::now();
    first.kill();
    stage.service("two", json!({})).await;
    stage.served("two").await;
    let took = killed.elapsed();
    assert_eq!(leader(&stage).await.as_deref(), Some("second"));
    assert!(
        took >= Duration::from_secs(10),
        "the Lease was taken while it was good: {took:?}"
    );
    assert_eq!(
        stage.claims().list(&ListParams::default()).await.unwrap().items.len(),
        2
    );
    second.shut_down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_in_order_gives_the_lease_back() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let first = candidate(&stage, "first");
    eventually("first leads", || async {
        leader(&stage).await.as_deref() == Some("first")
    })
    .await;
    let _second = candidate(&stage, "second");
    let start = Instant::now();
    first.shut_down().unwrap();
    eventually("second leads", || async {
        leader(&stage).await.as_deref() == Some("second")
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_renew_stops_of_itself() {
    let stage = Stage::new().await;
    let operator = candidate(&stage, "first");
    eventually("it leads", || async { leader(&stage).await.is_some() }).await;
    stage.server.faults().fail_always("update", "leases", 503);
    let start = Instant::now();
    let end = tokio::task::spawn_blocking(move || operator.join()).await.unwrap();
    assert!(matches!(end, Err(Error::LeaseLost)), "{end:?}");
    assert!(start.elapsed() < Duration::from_secs(13), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_of_other_machines_do_not_matter() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    // A dead leader whose clock was a day ahead, and a live one's Lease would look the same to whoever believed it.
    let tomorrow = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "vipline-operator", "namespace": crate::stage::OWN},
        "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 3, "renewTime": format!("{tomorrow:.6}"),
                 "acquireTime": format!("{tomorrow:.6}"), "leaseTransitions": 0},
    });
    stage.server.create(lease).unwrap();
    let _operator = candidate(&stage, "first");
    eventually("it leads", || async {
        leader(&stage).await.as_deref() == Some("first")
    })
    .await;
}
