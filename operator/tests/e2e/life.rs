//! A Service's life: birth, restart of the operator, death, and what is never touched.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use operator_api::{
    ANNOTATION_ALLOCATED_FROM, CONDITION_ACCEPTED, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, CONDITION_PROGRAMMED,
    FINALIZER,
};
use serde_json::json;

use crate::{
    cluster::Cluster,
    look::{addresses, ports},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_address_annotation_finalizer_conditions_and_events() {
    let (cluster, _running) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    let addresses = cluster.is_served("web").await;
    let [address] = addresses.as_slice() else {
        panic!("one address, not {addresses:?}");
    };
    let service = cluster.see("web").await;
    assert_eq!(service.finalizers(), [FINALIZER]);
    assert_eq!(
        service.annotations()[ANNOTATION_ALLOCATED_FROM],
        cluster.pool_name("main")
    );
    for kind in [CONDITION_ACCEPTED, CONDITION_ALLOCATED, CONDITION_PROGRAMMED] {
        assert_eq!(cluster.says("web", kind).await.as_deref(), Some("True"), "{kind}");
    }
    let claim = cluster.claim(address).await.unwrap();
    assert_eq!(claim.spec.holders[0].service.uid, service.uid().unwrap());
    let table = cluster.table("web").await.unwrap();
    assert_eq!(&table.spec.addresses[0].address, address);
    assert_eq!(ports(&table), ["80/Tcp"]);
    let allocated = cluster.is_told("web", "IPAllocated").await;
    assert!(allocated[0].contains(address), "{allocated:?}");
    for reason in ["EnsuringLoadBalancer", "EnsuredLoadBalancer"] {
        assert_eq!(cluster.is_told("web", reason).await.len(), 1, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_on_how_many_lb_nodes_a_service_is_and_who_announces_it_or_why_not() {
    let (cluster, _running) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    let address = cluster.is_served("web").await.remove(0);
    let told = cluster.is_told("web", "EnsuredLoadBalancer").await.remove(0);
    let start = format!("Ensured load balancer: {address}; on 1 of 1 LB nodes; whether it is announced is not known");
    assert!(told.starts_with(&start), "{told}");
    let announced = cluster.condition("web", CONDITION_ANNOUNCED).await.unwrap();
    assert_eq!(
        (announced.status.as_str(), announced.reason.as_str()),
        ("Unknown", "NotReported")
    );
    assert!(told.ends_with(&announced.message), "{told}: {}", announced.message);
    // One that has nothing says so, too.
    cluster
        .annotated("poor", json!({"vipline.dev/address-pool": "nobodys"}), json!({}))
        .await;
    cluster.is_refused("poor", CONDITION_ANNOUNCED, "NotAllocated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_is_told_only_when_an_lb_node_has_the_table() {
    let cluster = Cluster::connect().await;
    let _operator = cluster.operator(|_| {});
    cluster.pool("main", &[cluster.range4(1, 4)], json!({})).await;
    cluster.service("web", json!({})).await;
    cluster.table_is("web", "there", |_| true).await;
    cluster
        .stays("no LB node has it: no address", || async {
            cluster.addresses("web").await.is_empty()
        })
        .await;
    let _lb = cluster.lb_node("lb1");
    cluster.is_served("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_finalizer_is_there_as_long_as_the_service_is_a_load_balancer() {
    let (cluster, _running) = Cluster::served().await;
    cluster
        .service("web", json!({"type": "ClusterIP", "loadBalancerClass": null}))
        .await;
    cluster
        .stays("a ClusterIP Service has no finalizer", || async {
            cluster.see("web").await.finalizers().is_empty()
        })
        .await;
    for _ in 0..2 {
        let class = &cluster.class;
        cluster
            .patch(
                "web",
                json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": class}}),
            )
            .await;
        cluster.is_served("web").await;
        assert_eq!(cluster.see("web").await.finalizers(), [FINALIZER]);
        cluster.patch("web", json!({"spec": {"type": "ClusterIP"}})).await;
        cluster.is_let_go("web").await;
    }
    let class = &cluster.class;
    cluster
        .patch(
            "web",
            json!({"spec": {"type": "LoadBalancer", "loadBalancerClass": class}}),
        )
        .await;
    let address = cluster.is_served("web").await.remove(0);
    cluster.delete("web").await;
    cluster.is_gone("web").await;
    assert_eq!(cluster.claim(&address).await, None, "the finalizer goes last");
    assert_eq!(cluster.table("web").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_deleted_while_the_operator_is_away_waits_for_it_and_goes_then() {
    let (cluster, (operator, _lb)) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    let address = cluster.is_served("web").await.remove(0);
    operator.kill();
    cluster.delete("web").await;
    cluster
        .stays("it is only marked", || async {
            let service = cluster.services().get_opt("web").await.unwrap();
            service.is_some_and(|service| addresses(&service) == [address.clone()])
        })
        .await;
    assert!(cluster.claim(&address).await.is_some());
    let _operator = cluster.operator(|_| {});
    cluster.is_gone("web").await;
    cluster.is_free(&address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_everybody_has_the_same_address() {
    let (cluster, (operator, _lb)) = Cluster::served().await;
    for name in ["a", "b", "c", "d"] {
        cluster.service(name, json!({})).await;
        cluster.is_served(name).await;
    }
    let mut before = Vec::new();
    for name in ["a", "b", "c", "d"] {
        before.push((
            cluster.see(name).await.resource_version(),
            cluster.addresses(name).await,
        ));
    }
    operator.shut_down().unwrap();
    let writes = cluster.double.as_ref().map(|double| {
        double.writes().reset();
        double.writes()
    });
    let _operator = cluster.operator(|_| {});
    // It works: a new one is served.
    cluster.service("e", json!({})).await;
    cluster.is_served("e").await;
    for (name, before) in ["a", "b", "c", "d"].iter().zip(before) {
        let now = (
            cluster.see(name).await.resource_version(),
            cluster.addresses(name).await,
        );
        assert_eq!(now, before, "{name} was not written");
    }
    if let Some(writes) = writes {
        assert_eq!(writes.of("apply", "viptables", ""), 1, "{:?}", writes.all());
        assert_eq!(writes.of("create", "addressclaims", ""), 1, "{:?}", writes.all());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_another_class_is_never_written() {
    let cluster = Cluster::connect().await;
    let _operator = cluster.operator(|_| {});
    let _lb = cluster.lb_node("lb1");
    cluster.pool("main", &[cluster.range4(1, 4)], json!({})).await;
    cluster
        .service("foreign", json!({"loadBalancerClass": "e2e.example.com/other"}))
        .await;
    cluster.service("classless", json!({"loadBalancerClass": null})).await;
    cluster.service("ours", json!({})).await;
    cluster.is_served("ours").await;
    for name in ["foreign", "classless"] {
        let service = cluster.see(name).await;
        let managers = service
            .managed_fields()
            .iter()
            .filter_map(|entry| entry.manager.as_deref());
        assert!(
            !managers
                .into_iter()
                .any(|manager| manager == operator_api::FIELD_MANAGER),
            "{name}"
        );
        // One without a class may be somebody else's in a real cluster.
        let untouched = service.finalizers().is_empty() && service.annotations().is_empty();
        assert!(untouched || name == "classless", "{name}");
        assert_eq!(cluster.table(name).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_selected_keeps_the_address_of_its_former_balancer_and_keeps_it_when_let_go() {
    let cluster = Cluster::connect().await;
    let label = &cluster.namespace;
    let selector = LabelSelector {
        match_labels: Some([("vipline-e2e".to_owned(), label.clone())].into()),
        match_expressions: None,
    };
    let _operator = cluster.operator(|options| options.settings.service_selector = Some(selector));
    let _lb = cluster.lb_node("lb1");
    cluster.pool("main", &[cluster.range4(1, 16)], json!({})).await;
    cluster.service("web", json!({"loadBalancerClass": null})).await;
    let theirs = cluster.ip4(9);
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": theirs}]}}});
    cluster
        .services()
        .patch_status("web", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    cluster
        .stays("it is not selected", || async {
            cluster.claim(&theirs).await.is_none()
        })
        .await;

    cluster
        .patch("web", json!({"metadata": {"labels": {"vipline-e2e": label}}}))
        .await;
    assert_eq!(cluster.is_served("web").await.join(","), theirs);
    assert!(cluster.claim(&theirs).await.is_some());

    cluster
        .patch("web", json!({"metadata": {"labels": {"vipline-e2e": null}}}))
        .await;
    cluster.is_free(&theirs).await;
    cluster
        .until("it is let go", || async {
            cluster.see("web").await.finalizers().is_empty() && cluster.table("web").await.is_none()
        })
        .await;
    assert_eq!(cluster.addresses("web").await, [theirs], "its clients know the address");
}

#[tokio::test(flavor = "multi_thread")]
async fn headless_and_external_name_services_with_external_ips_are_told_why_they_get_nothing() {
    let (cluster, _running) = Cluster::served().await;
    let asked = cluster.ip4(2);
    let headless = json!({"type": "ClusterIP", "loadBalancerClass": null, "clusterIP": "None"});
    let name =
        json!({"type": "ExternalName", "externalName": "example.com", "loadBalancerClass": null, "selector": null});
    for (kind, spec, reason) in [("headless", headless, "Headless"), ("name", name, "ExternalName")] {
        let mut asking = spec.clone();
        asking["externalIPs"] = json!([asked]);
        cluster.service(kind, asking).await;
        let message = cluster.is_refused(kind, CONDITION_ACCEPTED, reason).await;
        assert!(message.contains("kube-proxy"), "{message}");
        cluster.is_told(kind, "SyncLoadBalancerFailed").await;
        assert!(cluster.addresses(kind).await.is_empty());
        let plain = format!("{kind}-plain");
        cluster.service(&plain, spec).await;
        cluster
            .stays(
                "nothing is on one that asks for nothing, nor any mark that would keep the other",
                || async {
                    let service = cluster.see(&plain).await;
                    let untouched = service.status.is_none_or(|status| status.conditions.is_none());
                    untouched && cluster.see(kind).await.finalizers().is_empty() && cluster.table(kind).await.is_none()
                },
            )
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_lb_nodes_the_status_stays_and_says_so_until_they_are_back() {
    let cluster = Cluster::connect().await;
    let _operator = cluster.operator(|_| {});
    let lb = cluster.lb_node_with_lease("lb1", 4);
    cluster.pool("main", &[cluster.range4(1, 4)], json!({})).await;
    cluster.service("web", json!({})).await;
    let addresses = cluster.is_served("web").await;
    drop(lb);
    let message = cluster.is_refused("web", CONDITION_PROGRAMMED, "NoLbNode").await;
    assert_eq!(message, "no LB node is alive");
    cluster.is_told("web", "UnAvailableLoadBalancer").await;
    assert_eq!(cluster.addresses("web").await, addresses, "nothing is taken away");
    assert!(cluster.table("web").await.is_some());
    let _lb = cluster.lb_node("lb1");
    assert_eq!(cluster.is_served("web").await, addresses);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_the_default_class_it_takes_services_without_one_and_no_others() {
    let cluster = Cluster::connect().await;
    if cluster.is_real() {
        println!("skipped: it would take every Service without a class of this cluster");
        return;
    }
    let _operator = cluster.operator(|options| options.settings.default_class = true);
    let _lb = cluster.lb_node("lb1");
    cluster.pool("main", &[cluster.range4(1, 4)], json!({})).await;
    cluster
        .service("foreign", json!({"loadBalancerClass": "e2e.example.com/other"}))
        .await;
    cluster.service("ours", json!({})).await;
    cluster.service("classless", json!({"loadBalancerClass": null})).await;
    cluster.is_served("ours").await;
    cluster.is_served("classless").await;
    let service = cluster.see("foreign").await;
    assert!(service.finalizers().is_empty() && service.annotations().is_empty());
    assert!(addresses(&service).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_waits_for_an_address_can_be_deleted_and_its_next_life_is_served() {
    let (cluster, _running) = Cluster::running().await;
    for _ in 0..2 {
        cluster.service("web", json!({})).await;
        cluster.is_refused("web", CONDITION_ALLOCATED, "AllocationFailed").await;
        cluster.delete("web").await;
        cluster.is_gone("web").await;
    }
    cluster.pool("main", &[cluster.range4(1, 1)], json!({})).await;
    // The one address of the pool: each life gets it from the one before.
    for _ in 0..3 {
        cluster.service("web", json!({})).await;
        assert_eq!(cluster.is_served("web").await, [cluster.ip4(1)]);
        cluster.delete("web").await;
        cluster.is_gone("web").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_condition_counts_the_lb_nodes_that_live() {
    let cluster = Cluster::connect().await;
    let _operator = cluster.operator(|_| {});
    let _one = cluster.lb_node_with_lease("lb1", 40);
    let two = cluster.lb_node_with_lease("lb2", 4);
    cluster.pool("main", &[cluster.range4(1, 4)], json!({})).await;
    cluster.service("web", json!({})).await;
    let on = |words: &'static str| {
        let cluster = &cluster;
        async move {
            let condition = cluster.condition("web", CONDITION_PROGRAMMED).await;
            condition.is_some_and(|it| it.status == "True" && it.message == words)
        }
    };
    cluster.until("on both", || on("on 2 of 2 LB nodes")).await;
    drop(two);
    cluster
        .until("on the one that is left", || on("on 1 of 1 LB nodes"))
        .await;
}
