//! A Service's life, and how many writes it costs.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Service, events::v1::Event};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use operator_api::{CONDITION_PROGRAMMED, FINALIZER};
use serde_json::json;

use crate::stage::{Stage, eventually};

/// Nothing more is coming.
const QUIET: Duration = Duration::from_millis(1500);

fn condition(service: &Service, kind: &str) -> Option<String> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    Some(
        conditions
            .iter()
            .find(|condition| condition.type_ == kind)?
            .status
            .clone(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_born_in_order() {
    let stage = Stage::new().await;
    let operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    eventually("a table", || async {
        stage.tables().get_opt("default.web").await.unwrap().is_some()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        stage.addresses("web").await,
        Vec::<String>::new(),
        "no LB node has it yet"
    );

    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    stage.served("web").await;
    let service = stage.services().get("web").await.unwrap();
    assert_eq!(service.finalizers(), [FINALIZER]);
    assert_eq!(condition(&service, CONDITION_PROGRAMMED).as_deref(), Some("True"));
    let address = stage.addresses("web").await.remove(0);
    let claim = stage.claims().get(&address).await.unwrap();
    assert_eq!(claim.spec.holders[0].service.name, "web");

    operator.shut_down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_costs_four_writes() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|_| {});
    stage.settled(QUIET).await;
    let writes = stage.server.writes();
    writes.reset();
    stage.service("web", json!({})).await;
    stage.served("web").await;
    stage.settled(QUIET).await;
    assert_eq!(writes.of("apply", "services", ""), 1, "finalizer and annotation");
    assert_eq!(writes.of("create", "addressclaims", ""), 1);
    assert_eq!(writes.of("apply", "viptables", ""), 1);
    assert_eq!(writes.of("apply", "services", "status"), 1, "address and conditions");
    // And the creation of the Service by the test, and the pool's numbers.
    assert_eq!(writes.of("create", "services", ""), 1);
    assert_eq!(
        stage.writes(),
        5 + writes.of("apply", "addresspools", "status"),
        "{:?}",
        writes.all()
    );
    assert!(writes.of("apply", "addresspools", "status") <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_everything_in_place_writes_nothing() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let operator = stage.operator(|_| {});
    for number in 0..20 {
        let policy = if number % 2 == 0 { "Local" } else { "Cluster" };
        stage
            .service(&format!("web-{number}"), json!({"externalTrafficPolicy": policy}))
            .await;
    }
    for number in 0..20 {
        stage.served(&format!("web-{number}")).await;
    }
    stage.settled(QUIET).await;
    operator.shut_down().unwrap();

    let before = stage.writes();
    let operator = stage.operator(|options| options.listen = Some(([127, 0, 0, 1], 0).into()));
    ready(&operator).await;
    tokio::time::sleep(2 * QUIET).await;
    assert_eq!(stage.writes() - before, 0, "{:?}", stage.server.writes().all());
    operator.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_service_leaves_nothing_behind() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    stage.served("web").await;
    stage.delete_service("web").await;
    eventually("the Service is gone", || async {
        stage.services().get_opt("web").await.unwrap().is_none()
    })
    .await;
    let all = ListParams::default();
    eventually("the table is gone", || async {
        stage.tables().list(&all).await.unwrap().items.is_empty()
    })
    .await;
    eventually("the claim is gone", || async {
        stage.claims().list(&all).await.unwrap().items.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_being_a_load_balancer_loses_its_address_and_our_finalizer() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    stage.served("web").await;
    let patch = Patch::Merge(json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}}));
    stage
        .services()
        .patch("web", &PatchParams::default(), &patch)
        .await
        .unwrap();
    eventually("it is let go", || async {
        let service = stage.services().get("web").await.unwrap();
        service.finalizers().is_empty() && stage.addresses("web").await.is_empty()
    })
    .await;
    assert!(
        stage
            .claims()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_another_class_is_not_touched() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|options| options.settings.default_class = true);
    stage
        .service("foreign", json!({"loadBalancerClass": "example.com/other"}))
        .await;
    stage.service("ours", json!({"loadBalancerClass": null})).await;
    stage.served("ours").await;
    let service = stage.services().get("foreign").await.unwrap();
    assert!(service.finalizers().is_empty());
    assert!(service.annotations().is_empty());
    assert_eq!(service.status.unwrap_or_default().conditions, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_the_address_and_come_once() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let _operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    stage.served("web").await;
    let events = Api::<Event>::namespaced(stage.client.clone(), "default");
    let of = |reason: &'static str| {
        let events = events.clone();
        async move {
            let list = events.list(&ListParams::default()).await.unwrap().items;
            list.into_iter()
                .filter(|event| event.reason.as_deref() == Some(reason))
                .collect::<Vec<_>>()
        }
    };
    eventually("IPAllocated", || async { !of("IPAllocated").await.is_empty() }).await;
    let allocated = of("IPAllocated").await;
    assert_eq!(allocated.len(), 1);
    let address = stage.addresses("web").await.remove(0);
    assert!(allocated[0].note.as_deref().unwrap_or_default().contains(&address));
    assert_eq!(allocated[0].regarding.as_ref().unwrap().name.as_deref(), Some("web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_api_server_refuses_hold_nothing_up() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    stage.server.faults().fail_always("*", "events", 403);
    let operator = stage.operator(|options| options.listen = Some(([127, 0, 0, 1], 0).into()));
    stage.service("web", json!({})).await;
    stage.served("web").await;
    eventually("dropped Events are counted", || async {
        metric(&operator, "vipline_operator_events_dropped_total").await > 0.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_what_was_done() {
    let stage = Stage::new().await;
    let _lb = stage.lb_node("lb1", "192.0.2.1/32");
    let operator = stage.operator(|options| options.listen = Some(([127, 0, 0, 1], 0).into()));
    stage.service("web", json!({})).await;
    stage.served("web").await;
    eventually("all is counted", || async {
        metric(&operator, "vipline_operator_services{state=\"served\"}").await == 1.0
            && metric(&operator, "vipline_operator_leader").await == 1.0
            && metric(&operator, "vipline_operator_seed_lost").await == 0.0
            && metric(&operator, "vipline_operator_objects{resource=\"viptables\"}").await == 1.0
            && metric(
                &operator,
                "vipline_operator_pool_addresses_used{pool=\"main\",family=\"ipv4\"}",
            )
            .await
                == 1.0
            && metric(
                &operator,
                "vipline_operator_api_writes_total{verb=\"create\",resource=\"addressclaims\",code=\"200\"}",
            )
            .await
                == 1.0
    })
    .await;
}

/// Until everything has been listed.
pub(crate) async fn ready(operator: &vipline_operator::run::Operator) {
    eventually("ready", || async {
        ask(operator, "/readyz").await.starts_with("HTTP/1.1 200")
    })
    .await;
}

/// A metric's value by its name with labels; not there: NaN.
pub(crate) async fn metric(operator: &vipline_operator::run::Operator, name: &str) -> f64 {
    let text = ask(operator, "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(f64::NAN)
}

async fn ask(operator: &vipline_operator::run::Operator, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(operator.address().unwrap())
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
