//! Killed at every write, on either side of it: it converges, and at no moment is anything worse for clients than it has to be.

use std::{collections::BTreeMap, time::Duration};

use kube::{
    ResourceExt as _,
    api::{ListParams, PostParams},
};
use operator_api::{Backends, FINALIZER, VipTableSpec};
use serde_json::json;
use vipline_operator::run::{Error, FaultPlan, Side};

use crate::{
    observer::Observer,
    stage::{Stage, eventually, pool, service},
};

const QUIET: Duration = Duration::from_millis(1200);

/// For one step of a life: a busy machine is slow, not wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lives side by side: they mostly wait.
const AT_A_TIME: usize = 8;

/// Births, a change of address and a death, with an operator that dies at write `number` of its first life.
async fn life(plan: FaultPlan) -> bool {
    let stage = Stage::new().await;
    let observer = Observer::start(&stage).await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let mut operator = stage.operator(|options| options.fault = Some(plan));
    let mut died = false;
    stage.service("stays", json!({})).await;
    stage.service("moves", json!({})).await;
    stage.service("dies", json!({"externalTrafficPolicy": "Local"})).await;
    died |= stage_until(&stage, &mut operator, (plan, "births"), || async {
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
    died |= stage_until(&stage, &mut operator, (plan, "the change and the death"), || async {
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
    saw_nothing_wrong(&observer, plan);
    died
}

/// Two that share an address, one of them with another policy then; one that is no load balancer for a while; one with external
/// IPs, which it gives up.
async fn life_of_changes(plan: FaultPlan) -> bool {
    const OUTSIDE: &str = "198.51.100.5";
    let stage = Stage::new().await;
    stage
        .create(&pool(
            "outside",
            json!({"addresses": ["198.51.100.0/28"], "externalIPs": true, "autoAssign": false}),
        ))
        .await;
    let observer = Observer::start(&stage).await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let mut operator = stage.operator(|options| options.fault = Some(plan));
    let mut died = false;
    for (name, protocol) in [("tcp", "TCP"), ("udp", "UDP")] {
        let ports = json!([{"name": "it", "port": 80, "protocol": protocol}]);
        let mut shared = service(name, json!({"ports": ports}));
        // Both by name: of two that come at the same moment, none finds the other's address to join it.
        let wishes = [("allow-shared-ip", "together"), ("load-balancer-ips", "203.0.113.9")];
        let wishes = wishes.map(|(name, value)| (format!("vipline.dev/{name}"), value.to_owned()));
        shared.metadata.annotations = Some(wishes.into());
        stage.services().create(&PostParams::default(), &shared).await.unwrap();
    }
    stage.service("turns", json!({})).await;
    let external = json!({"type": "ClusterIP", "loadBalancerClass": null, "externalIPs": [OUTSIDE]});
    stage.service("outside", external).await;
    let table = |name: &'static str| {
        let tables = stage.tables();
        async move {
            tables
                .get_opt(&format!("default.{name}"))
                .await
                .unwrap()
                .map(|table| table.spec)
        }
    };
    let finalizers = |name: &'static str| {
        let services = stage.services();
        async move { services.get(name).await.unwrap().finalizers().to_vec() }
    };
    died |= stage_until(&stage, &mut operator, (plan, "births"), || async {
        let shared = stage.addresses("tcp").await;
        !shared.is_empty()
            && stage.addresses("udp").await == shared
            && !stage.addresses("turns").await.is_empty()
            && table("outside")
                .await
                .is_some_and(|table| table.addresses[0].address == OUTSIDE)
    })
    .await;
    let shared = stage.addresses("tcp").await;

    let change = |name: &str, spec: serde_json::Value| {
        let patch = json!({"spec": spec});
        stage.server.merge("services", "default", name, "", patch).unwrap();
    };
    change("turns", json!({"type": "ClusterIP"}));
    change("udp", json!({"externalTrafficPolicy": "Local"}));
    died |= stage_until(
        &stage,
        &mut operator,
        (plan, "no load balancer, and another policy"),
        || async {
            let is_local = |table: VipTableSpec| matches!(table.backends, Backends::Local { .. });
            table("turns").await.is_none()
                && finalizers("turns").await.is_empty()
                && table("udp").await.is_some_and(is_local)
        },
    )
    .await;

    change(
        "turns",
        json!({"type": "LoadBalancer", "loadBalancerClass": operator_api::LOAD_BALANCER_CLASS}),
    );
    change("outside", json!({"externalIPs": null}));
    died |= stage_until(
        &stage,
        &mut operator,
        (plan, "a load balancer again, and none outside"),
        || async {
            !stage.addresses("turns").await.is_empty()
                && table("outside").await.is_none()
                && finalizers("outside").await.is_empty()
                && stage.claims().get_opt(OUTSIDE).await.unwrap().is_none()
        },
    )
    .await;
    stage.settled(QUIET).await;
    for name in ["tcp", "udp"] {
        assert_eq!(stage.addresses(name).await, shared, "{plan:?}");
    }
    let claims = stage.claims().list(&ListParams::default()).await.unwrap().items;
    let holders: Vec<usize> = claims.iter().map(|claim| claim.spec.holders.len()).collect();
    assert_eq!(
        (claims.len(), holders.iter().sum::<usize>()),
        (2, 3),
        "{plan:?}: {claims:?}"
    );
    let status = stage
        .services()
        .get("outside")
        .await
        .unwrap()
        .status
        .unwrap_or_default();
    assert_eq!(status.conditions, None, "{plan:?}: nothing of ours is left");
    drop(operator);
    saw_nothing_wrong(&observer, plan);
    died
}

fn saw_nothing_wrong(observer: &Observer, plan: FaultPlan) {
    let (faults, writes) = observer.faults();
    assert!(writes > 15, "{plan:?}: only {writes} writes were seen");
    assert_eq!(faults, [""; 0], "{plan:?}");
}

/// Waits for an end; an operator that has died of its fault is started again, without one.
async fn stage_until<F>(
    stage: &Stage,
    operator: &mut vipline_operator::run::Operator,
    (plan, what): (FaultPlan, &str),
    mut reached: impl FnMut() -> F,
) -> bool
where
    F: Future<Output = bool>,
{
    let mut died = false;
    let start = std::time::Instant::now();
    while !reached().await {
        assert!(
            start.elapsed() < PATIENCE,
            "{plan:?}: not in {PATIENCE:?}: {what}; died: {died}; running: {}; {:?}",
            operator.is_running(),
            stage.server.writes().all()
        );
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

/// Lives it with a death at each write, on either side; how many deaths there were.
async fn live_all<F>(life: fn(FaultPlan) -> F) -> usize
where
    F: Future<Output = bool> + Send + 'static,
{
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
    deaths
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_or_after_any_write_it_converges_and_claims_are_never_doubled() {
    let deaths = live_all(life).await;
    // Seed, node set, tunnel, pool; three births of four writes, an address change, a death.
    assert!(deaths >= 40, "only {deaths} deaths: the fault points do not work");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_or_after_any_write_of_a_change_of_type_policy_sharing_or_external_ips_nobody_loses_anything() {
    let deaths = live_all(life_of_changes).await;
    // Four births of four writes, two departures and a rebirth of four, a change of policy.
    assert!(deaths >= 58, "only {deaths} deaths: the fault points do not work");
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
