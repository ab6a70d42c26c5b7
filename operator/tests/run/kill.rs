//! Killed at every write, on either side of it.

use std::{collections::BTreeMap, time::Duration};

use kube::{ResourceExt as _, api::ListParams};
use operator_api::FINALIZER;
use serde_json::json;
use vipline_operator::run::{Error, FaultPlan, Side};

use crate::stage::{Stage, eventually};

const QUIET: Duration = Duration::from_millis(1200);

/// Lives side by side: they mostly wait.
const AT_A_TIME: usize = 8;

/// Births, a change of address, a type transition and a death, with an operator that dies at write `number` of its first life.
async fn life(plan: FaultPlan) -> bool {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let mut operator = stage.operator(|options| options.fault = Some(plan));
    let mut died = false;
    stage.service("stays", json!({})).await;
    stage.service("moves", json!({})).await;
    stage.service("dies", json!({"externalTrafficPolicy": "Local"})).await;
    died |= stage_until(&stage, &mut operator, "births", || async {
        let mut served = 0;
        for name in ["stays", "moves", "dies"] {
            served += usize::from(!stage.addresses(name).await.is_empty());
        }
        served == 3
    })
    .await;
    let stays = stage.addresses("stays").await;

    let wish = json!({"metadata": {"annotations": {"vipline.dev/load-balancer-ips": "203.0.113.77"}}});
    stage.server.merge("services", "default", "moves", "", wish).unwrap();
    stage.server.delete("services", "default", "dies").unwrap();
    died |= stage_until(&stage, &mut operator, "the change and the death", || async {
        let gone = stage.services().get_opt("dies").await.unwrap().is_none();
        let tables = stage.tables().list(&ListParams::default()).await.unwrap().items;
        let claims = stage.claims().list(&ListParams::default()).await.unwrap().items;
        gone && stage.addresses("moves").await == ["203.0.113.77"] && tables.len() == 2 && claims.len() == 2
    })
    .await;

    assert_eq!(stage.addresses("stays").await, stays, "{plan:?}: its address moved");
    let mut holders = BTreeMap::<String, Vec<String>>::new();
    for claim in stage.claims().list(&ListParams::default()).await.unwrap().items {
        for holder in &claim.spec.holders {
            holders
                .entry(holder.service.name.clone())
                .or_default()
                .push(claim.name_any());
        }
    }
    let expected: BTreeMap<String, Vec<String>> = [
        ("moves".to_owned(), vec!["203.0.113.77".to_owned()]),
        ("stays".to_owned(), stays),
    ]
    .into();
    assert_eq!(holders, expected, "{plan:?}");
    for name in ["stays", "moves"] {
        let service = stage.services().get(name).await.unwrap();
        assert_eq!(service.finalizers(), [FINALIZER], "{plan:?}");
        let table = stage.tables().get(&format!("default.{name}")).await.unwrap();
        let addresses: Vec<_> = table
            .spec
            .addresses
            .iter()
            .map(|address| address.address.clone())
            .collect();
        assert_eq!(addresses, stage.addresses(name).await, "{plan:?}");
    }
    let seeds = stage.server.list("secrets").len();
    assert_eq!(seeds, 1, "{plan:?}");
    stage.settled(QUIET).await;
    drop(operator);
    died
}

/// Waits for an end; an operator that has died of its fault is started again, without one.
async fn stage_until<F>(
    stage: &Stage,
    operator: &mut vipline_operator::run::Operator,
    what: &str,
    mut reached: impl FnMut() -> F,
) -> bool
where
    F: Future<Output = bool>,
{
    let mut died = false;
    let start = std::time::Instant::now();
    while !reached().await {
        assert!(start.elapsed() < Duration::from_secs(30), "not in 30 s: {what}");
        if !operator.is_running() {
            let dead = std::mem::replace(operator, stage.operator(|_| {}));
            let end = dead.join();
            assert!(matches!(end, Err(Error::Fault)), "{end:?}");
            died = true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    died
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_or_after_any_write_it_converges_and_claims_are_never_doubled() {
    let mut deaths = 0;
    for side in [Side::Before, Side::After] {
        for first in (1..).step_by(AT_A_TIME) {
            let lives = (first..)
                .take(AT_A_TIME)
                .map(|write| tokio::spawn(life(FaultPlan { write, side })));
            let mut died = 0;
            for life in lives.collect::<Vec<_>>() {
                died += usize::from(life.await.unwrap());
            }
            deaths += died;
            if died < AT_A_TIME {
                // The last of them died of nothing: more writes than the whole life has.
                break;
            }
        }
    }
    // Seed, node set, tunnel, pool; three births of four writes, an address change, a death.
    assert!(deaths >= 40, "only {deaths} deaths: the fault points do not work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_stops_the_operator_before_its_write() {
    let stage = Stage::new().await;
    let before = stage.writes();
    let plan = FaultPlan {
        write: 1,
        side: Side::Before,
    };
    let operator = stage.operator(|options| options.fault = Some(plan));
    eventually("it is dead", || async { !operator.is_running() }).await;
    assert_eq!(stage.writes(), before);
    assert!(matches!(operator.join(), Err(Error::Fault)));
}
