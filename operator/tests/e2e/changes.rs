//! Type and ports of a live Service change.

use kube::ResourceExt as _;
use operator_api::{CONDITION_ACCEPTED, FINALIZER};
use serde_json::{Value, json};

use crate::{cluster::Cluster, look::ports};

fn port(name: &str, port: u16, protocol: &str) -> Value {
    json!({"name": name, "port": port, "protocol": protocol})
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_load_balancer_for_any_type_frees_the_address_and_coming_back_is_a_new_birth() {
    let (cluster, _running) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    for change in [
        json!({"type": "ClusterIP"}),
        json!({"type": "NodePort"}),
        json!({"type": "ExternalName", "externalName": "example.com"}),
    ] {
        let address = cluster.is_served("web").await.remove(0);
        assert_eq!(cluster.see("web").await.finalizers(), [FINALIZER]);
        cluster.patch("web", json!({"spec": change})).await;
        cluster.is_let_go("web").await;
        cluster.is_free(&address).await;
        cluster.is_told("web", "DeletedLoadBalancer").await;
        let back = json!({"type": "LoadBalancer", "loadBalancerClass": cluster.class, "externalName": null});
        cluster.patch("web", json!({"spec": back})).await;
    }
    cluster.is_served("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_come_change_and_go_while_the_address_stays() {
    let (cluster, _running) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    let addresses = cluster.is_served("web").await;
    for (change, wanted) in [
        (json!([port("http", 8080, "TCP")]), &["8080/Tcp"][..]),
        (
            json!([port("http", 8080, "TCP"), port("https", 443, "TCP")]),
            &["443/Tcp", "8080/Tcp"],
        ),
        (
            json!([
                port("http", 80, "TCP"),
                port("https", 443, "TCP"),
                port("quic", 443, "UDP")
            ]),
            &["80/Tcp", "443/Tcp", "443/Udp"],
        ),
        (json!([port("quic", 443, "UDP")]), &["443/Udp"]),
    ] {
        cluster.patch("web", json!({"spec": {"ports": change}})).await;
        let sorted = |mut ports: Vec<String>| {
            ports.sort_unstable();
            ports
        };
        let wanted = sorted(wanted.iter().map(ToString::to_string).collect());
        cluster
            .table_is("web", &format!("{wanted:?}"), |table| sorted(ports(table)) == wanted)
            .await;
        cluster
            .until("the claim has the same ports", || async {
                let claim = cluster.claim(&addresses[0]).await.unwrap();
                let held = claim.spec.holders[0].ports.iter();
                sorted(held.map(|port| format!("{}/{:?}", port.port, port.protocol)).collect()) == wanted
            })
            .await;
        assert_eq!(cluster.addresses("web").await, addresses);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_node_ports_is_served_and_gets_them_when_it_wants_them() {
    let (cluster, _running) = Cluster::served().await;
    cluster
        .service("web", json!({"allocateLoadBalancerNodePorts": false}))
        .await;
    let addresses = cluster.is_served("web").await;
    let table = cluster.table("web").await.unwrap();
    assert_eq!(table.spec.ports[0].node_port, None);
    cluster
        .patch("web", json!({"spec": {"allocateLoadBalancerNodePorts": true}}))
        .await;
    cluster
        .until("the table has the node port", || async {
            let service = cluster.see("web").await;
            let node_port = service.spec.unwrap().ports.unwrap()[0].node_port;
            let table = cluster.table("web").await.unwrap();
            node_port.is_some() && table.spec.ports[0].node_port.map(i32::from) == node_port
        })
        .await;
    assert_eq!(cluster.addresses("web").await, addresses);
}

#[tokio::test(flavor = "multi_thread")]
async fn sctp_among_others_is_left_out_with_an_error_at_the_port() {
    let (cluster, _running) = Cluster::served().await;
    let both = json!([port("http", 80, "TCP"), port("signal", 3868, "SCTP")]);
    cluster.service("mixed", json!({"ports": both})).await;
    cluster.is_served("mixed").await;
    assert_eq!(ports(&cluster.table("mixed").await.unwrap()), ["80/Tcp"]);
    let condition = cluster.condition("mixed", "LoadBalancerPortsError").await.unwrap();
    assert_eq!(condition.reason, "LoadBalancerMixedProtocolNotSupported");
    assert_eq!(condition.status, "True");
    let service = serde_json::to_value(cluster.see("mixed").await).unwrap();
    let told = &service["status"]["loadBalancer"]["ingress"][0]["ports"];
    assert_eq!(told[0]["port"], 80);
    assert!(told[0]["error"].is_null(), "{told}");
    assert_eq!(told[1]["protocol"], "SCTP");
    assert!(told[1]["error"].is_string(), "{told}");

    cluster
        .patch("mixed", json!({"spec": {"ports": [port("http", 80, "TCP")]}}))
        .await;
    cluster
        .until("the error is gone", || async {
            let service = serde_json::to_value(cluster.see("mixed").await).unwrap();
            service["status"]["loadBalancer"]["ingress"][0]["ports"].is_null()
                && cluster.says("mixed", "LoadBalancerPortsError").await.as_deref() != Some("True")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_sctp_alone_is_refused_until_it_has_a_port_that_is_served() {
    let (cluster, _running) = Cluster::served().await;
    cluster
        .service("signal", json!({"ports": [port("signal", 3868, "SCTP")]}))
        .await;
    cluster
        .is_refused("signal", CONDITION_ACCEPTED, "ProtocolNotSupported")
        .await;
    cluster.is_told("signal", "SyncLoadBalancerFailed").await;
    assert!(cluster.addresses("signal").await.is_empty());
    assert_eq!(cluster.table("signal").await, None);
    cluster
        .patch("signal", json!({"spec": {"ports": [port("http", 80, "TCP")]}}))
        .await;
    cluster.is_served("signal").await;
    assert_eq!(
        cluster.says("signal", CONDITION_ACCEPTED).await.as_deref(),
        Some("True")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarding_mode_that_is_not_served_is_refused_and_what_was_served_stays() {
    let (cluster, _running) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    let addresses = cluster.is_served("web").await;
    let annotation = operator_api::ANNOTATION_FORWARDING_MODE;
    cluster
        .patch("web", json!({"metadata": {"annotations": {annotation: "NodePortNat"}}}))
        .await;
    let message = cluster.is_refused("web", CONDITION_ACCEPTED, "NotServed").await;
    assert!(message.contains(annotation), "{message}");
    assert_eq!(cluster.addresses("web").await, addresses);
    assert!(cluster.table("web").await.is_some());
    cluster
        .patch("web", json!({"metadata": {"annotations": {annotation: null}}}))
        .await;
    cluster
        .until("it is accepted again", || async {
            cluster.says("web", CONDITION_ACCEPTED).await.as_deref() == Some("True")
        })
        .await;
}
