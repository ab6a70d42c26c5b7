//! Whole namespaces and the operator itself leave.

use std::process::{Command, Output, Stdio};

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use crate::cluster::Cluster;

/// Deletes a namespace and waits until it is gone.
async fn delete_namespace(cluster: &Cluster, name: &str) {
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    cluster
        .until(&format!("namespace {name} is gone"), || async {
            namespaces.get_opt(name).await.unwrap().is_none()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_namespace_with_services_in_it_does_not_hang_and_frees_their_addresses() {
    let (cluster, _running) = Cluster::running().await;
    let doomed = cluster.another_namespace("doomed", json!({})).await;
    let pool = json!({"namespaces": [doomed]});
    cluster.pool("main", &[cluster.range4(1, 8)], pool).await;
    let services = Api::<Service>::namespaced(cluster.client.clone(), &doomed);
    for name in ["a", "b", "c"] {
        let service = cluster.service_with(name, json!({}), json!({}));
        services.create(&PostParams::default(), &service).await.unwrap();
    }
    cluster.pool_counts("main", (3, 5), (0, 0)).await;
    cluster
        .until("they are served", || async {
            let all = services.list(&ListParams::default()).await.unwrap().items;
            all.iter().all(|service| !crate::look::addresses(service).is_empty())
        })
        .await;
    delete_namespace(&cluster, &doomed).await;
    cluster.pool_counts("main", (0, 8), (0, 0)).await;
    cluster
        .until("no table is left", || async {
            cluster
                .tables()
                .list(&ListParams::default())
                .await
                .unwrap()
                .items
                .is_empty()
        })
        .await;
}

async fn uninstall(cluster: &Cluster, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipline-operator"));
    command.args([
        "uninstall",
        "--yes",
        "--namespace",
        &cluster.own,
        "--class",
        &cluster.class,
    ]);
    command.args(flags).stdin(Stdio::null());
    let file = tempfile::NamedTempFile::new().unwrap();
    if let Some(double) = &cluster.double {
        std::fs::write(file.path(), double.kubeconfig()).unwrap();
        command.arg("--kubeconfig").arg(file.path());
    }
    tokio::task::spawn_blocking(move || {
        let output = command.output().unwrap();
        drop(file);
        output
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_with_keep_addresses_leaves_them_in_the_status_and_nothing_else() {
    let (cluster, (operator, _lb)) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    let addresses = cluster.is_served("web").await;
    operator.shut_down().unwrap();
    let output = uninstall(&cluster, &["--keep-addresses"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let service = cluster.see("web").await;
    assert_eq!(crate::look::addresses(&service), addresses);
    assert!(service.finalizers().is_empty() && service.annotations().is_empty());
    assert_eq!(cluster.claim(&addresses[0]).await, None);
    assert_eq!(cluster.table("web").await, None);
    cluster.pools().get(&cluster.pool_name("main")).await.unwrap();
    delete_namespace(&cluster, &cluster.own).await;
    cluster.delete("web").await;
    cluster.is_gone("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_takes_the_addresses_and_a_new_installation_gives_some_again() {
    let (cluster, (operator, _lb)) = Cluster::served().await;
    cluster.service("web", json!({})).await;
    cluster.is_served("web").await;
    operator.shut_down().unwrap();
    let output = uninstall(&cluster, &[]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.is_let_go("web").await;
    let _operator = cluster.operator(|_| {});
    cluster.is_served("web").await;
}
