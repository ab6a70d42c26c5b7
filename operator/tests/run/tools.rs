//! What people look with: `services`, `pools` and `uninstall` against a cluster that an operator has left behind, and kubectl.

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use kube::{ResourceExt as _, api::ListParams};
use operator_api::{
    ANNOTATION_ALLOCATED_FROM, CONDITION_ANNOUNCED, CONDITION_PROGRAMMED, FINALIZER, LOAD_BALANCER_CLASS,
};
use serde_json::{Value, json};

use crate::stage::{OWN, Stage, eventually};

const ADDRESS: &str = "203.0.113.5";
const TIME: &str = "2026-01-01T00:00:00Z";

/// A Service as a running operator leaves it, with one of somebody else beside it.
fn leave_behind(stage: &Stage) {
    let server = &stage.server;
    let made = server
        .create(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "default", "finalizers": [FINALIZER, "example.com/other"],
                "annotations": {ANNOTATION_ALLOCATED_FROM: "main", "example.com/other": "stays"},
            },
            "spec": {"type": "LoadBalancer", "loadBalancerClass": LOAD_BALANCER_CLASS,
                "ports": [{"port": 80, "protocol": "TCP"}]},
        }))
        .unwrap();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Good", "message": "", "lastTransitionTime": TIME});
    let mut announced = condition(CONDITION_ANNOUNCED);
    announced["reason"] = json!("L2");
    let status = json!({"status": {
        "loadBalancer": {"ingress": [{"ip": ADDRESS, "ipMode": "VIP"}]},
        "conditions": [condition(CONDITION_PROGRAMMED), announced, condition("example.com/Other")],
    }});
    server.merge("services", "default", "web", "status", status).unwrap();
    server
        .create(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "foreign", "namespace": "default", "finalizers": [FINALIZER]},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/other",
                "ports": [{"port": 80, "protocol": "TCP"}]},
        }))
        .unwrap();
    let service = json!({"namespace": "default", "name": "web", "uid": made["metadata"]["uid"]});
    let port = json!({"protocol": "TCP", "port": 80});
    let ours = |kind: &str, name: &str, spec: Value| {
        let mut object = json!({
            "apiVersion": "vipline.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
        });
        if kind != "AddressClaim" {
            object["metadata"]["namespace"] = json!(OWN);
        }
        server.create(object).unwrap()
    };
    let holder = json!({"service": service, "use": "LoadBalancer", "ports": [port]});
    ours(
        "AddressClaim",
        ADDRESS,
        json!({"address": ADDRESS, "pool": "main", "holders": [holder]}),
    );
    let table = json!({
        "service": service, "addresses": [{"address": ADDRESS, "pool": "main", "use": "LoadBalancer"}],
        "ports": [port], "backends": {"nodeSet": {"name": "workers"}},
    });
    let table = ours("VipTable", "default.web", table);
    let set = json!({
        "set": "workers", "chunk": 0, "chunks": 1, "epoch": 1, "tableSlots": 256,
        "seedFingerprint": "0123456789abcdef", "nodes": [],
    });
    ours("NodeSet", "workers-0", set);
    ours(
        "TunnelConfig",
        "default",
        json!({"sources": [], "vipPrefixes": ["203.0.113.0/24"]}),
    );
    ours("LbNode", "lb1", json!({"tunnelSources": ["192.0.2.1/32"]}));
    let programmed = json!({"status": {"programmed": {"tables": table["metadata"]["resourceVersion"], "vips": 1}}});
    server.merge("lbnodes", OWN, "lb1", "status", programmed).unwrap();
    lease(stage, "lb-lb1", "lb1", 40);
}

fn lease(stage: &Stage, name: &str, holder: &str, seconds: u32) {
    let now = format!("{:.6}", jiff::Timestamp::now());
    let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": now, "acquireTime": now});
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": OWN}, "spec": spec,
    });
    stage.server.apply(lease, "test").unwrap();
}

/// Runs the program, off the runtime's threads.
async fn run(stage: &Stage, args: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kubeconfig");
    std::fs::write(&file, stage.server.kubeconfig()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipline-operator"));
    command.args(args).arg("--kubeconfig").arg(&file).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    output.unwrap().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `kubectl describe service`; `None`: there is no kubectl here.
async fn describe(stage: &Stage, name: &str) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kubeconfig");
    std::fs::write(&file, stage.server.kubeconfig()).unwrap();
    let mut command = Command::new("kubectl");
    command
        .arg("--kubeconfig")
        .arg(&file)
        .arg("--cache-dir")
        .arg(directory.path());
    command.args(["describe", "service", name]).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    if let Err(error) = &output
        && error.kind() == std::io::ErrorKind::NotFound
    {
        assert!(std::env::var_os("REQUIRE_ROOT").is_none(), "no kubectl: `make setup`");
        return None;
    }
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    Some(text(&output.stdout))
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_describe_tells_from_which_pool_on_how_many_lb_nodes_and_who_announces() {
    let stage = Stage::new().await;
    let _one = stage.lb_node("lb1", "192.0.2.1/32");
    let _two = stage.lb_node("lb2", "192.0.2.2/32");
    let _operator = stage.operator(|_| {});
    stage.service("web", json!({})).await;
    stage.served("web").await;
    let address = stage.addresses("web").await.remove(0);
    // Events come after the writes.
    eventually("all is told", || async {
        let shown = describe(&stage, "web").await;
        shown.is_none_or(|shown| shown.contains("EnsuredLoadBalancer"))
    })
    .await;
    let Some(shown) = describe(&stage, "web").await else {
        return;
    };
    for words in [
        format!("{ANNOTATION_ALLOCATED_FROM}: main"),
        format!("{address} (VIP)"),
        format!("Allocated {address} from pool main"),
        format!("Ensured load balancer: {address}; on 2 of 2 LB nodes; whether it is announced is not known"),
    ] {
        assert!(shown.contains(&words), "{words:?} is not in\n{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_and_pools_are_shown_as_table_and_as_json() {
    let stage = Stage::new().await;
    leave_behind(&stage);
    let output = run(&stage, &["services"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 2, "{shown}");
    assert_eq!(
        lines[1],
        ["default", "web", ADDRESS, "main", "80/TCP", "1/1", "L2", "ok"],
        "{shown}"
    );

    let output = run(&stage, &["services", "-o", "json"]).await;
    let views: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(views[0]["addresses"], json!([ADDRESS]));
    assert_eq!(
        (&views[0]["programmedOn"], &views[0]["lbNodes"]),
        (&json!(1), &json!(1))
    );

    let output = run(&stage, &["pools"]).await;
    let shown = text(&output.stdout);
    assert!(shown.contains("main"), "{shown}");
    assert!(shown.contains("not seen by the operator yet"), "{shown}");
    let output = run(&stage, &["pools", "-o", "json"]).await;
    let views: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(views[0]["name"], "main");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_and_announcements_are_shown_as_table_and_as_json() {
    let stage = Stage::new().await;
    let output = run(&stage, &["peers"]).await;
    assert!(text(&output.stdout).starts_with("No BgpPeers"), "{output:?}");
    let output = run(&stage, &["announcements"]).await;
    assert!(text(&output.stdout).starts_with("No Announcements"), "{output:?}");

    leave_behind(&stage);
    let ours = |kind: &str, name: &str, spec: Value| {
        let object = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": OWN}, "spec": spec});
        stage.server.create(object).unwrap();
    };
    ours(
        "BgpPeer",
        "tor1",
        json!({"address": "10.0.0.1", "asn": 65001, "localAsn": 65000}),
    );
    ours("Announcement", "core", json!({"bgp": {}, "l2": {}}));
    let output = run(&stage, &["peers"]).await;
    assert!(text(&output.stdout).contains("not seen by the operator yet"));
    let status = json!({"status": {"nodes": ["lb1"], "established": 0, "of": 1, "state": "0/1 established", "observedGeneration": 1}});
    stage.server.merge("bgppeers", OWN, "tor1", "status", status).unwrap();
    let status =
        json!({"status": {"nodes": ["lb1"], "nodeCount": 1, "peers": ["tor1"], "l2": true, "observedGeneration": 1}});
    stage
        .server
        .merge("announcements", OWN, "core", "status", status)
        .unwrap();
    let peers = json!([{"name": "tor1", "address": "10.0.0.1", "state": "active", "lastError": "refused"}]);
    let status = json!({"status": {"announcing": {"bgp": {"origin": "Cluster", "localAsn": 65000, "peers": peers, "peerCount": 1}}}});
    stage.server.merge("lbnodes", OWN, "lb1", "status", status).unwrap();
    let table = json!({"spec": {"addresses": [{"address": ADDRESS, "pool": "main", "use": "LoadBalancer", "announcements": ["core"]}]}});
    stage.server.merge("viptables", OWN, "default.web", "", table).unwrap();

    let output = run(&stage, &["peers"]).await;
    let shown = text(&output.stdout);
    let line: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        line,
        [
            "tor1", "10.0.0.1", "65001", "65000", "lb1", "active", "0", "refused", "ok"
        ],
        "{shown}"
    );
    let output = run(&stage, &["announcements", "-o", "json"]).await;
    let views: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        views,
        json!([{"name": "core", "peers": ["tor1"], "l2": true, "nodes": ["lb1"], "addresses": 1, "why": ""}])
    );
    let output = run(&stage, &["announcements"]).await;
    let shown = text(&output.stdout);
    let line: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(line, ["core", "tor1", "yes", "lb1", "1", "ok"], "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstall_takes_out_what_is_ours_and_nothing_else() {
    let stage = Stage::new().await;
    leave_behind(&stage);
    let output = run(&stage, &["uninstall", "--yes"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let service = stage.services().get("web").await.unwrap();
    assert_eq!(service.finalizers(), ["example.com/other"]);
    assert_eq!(service.annotations().len(), 1);
    let status = service.status.unwrap();
    let conditions: Vec<_> = status
        .conditions
        .unwrap()
        .into_iter()
        .map(|condition| condition.type_)
        .collect();
    assert_eq!(conditions, ["example.com/Other"]);
    assert!(status.load_balancer.unwrap_or_default().ingress.is_none());
    assert_eq!(stage.services().get("foreign").await.unwrap().finalizers(), [FINALIZER]);
    for kind in ["viptables", "addressclaims", "nodesets", "tunnelconfigs"] {
        assert!(stage.server.list(kind).is_empty(), "{kind} are left");
    }
    assert_eq!(stage.server.list("addresspools").len(), 1);

    // Nothing is left that the namespace would wait for.
    stage.server.delete("namespaces", "", OWN).unwrap();
    eventually("the namespace is gone", || async {
        stage.server.read("namespaces", "", OWN).is_none()
    })
    .await;
    // And again, with nothing there.
    let output = run(&stage, &["uninstall", "--yes", "--force"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstall_leaves_addresses_and_marks_of_other_providers() {
    let stage = Stage::new().await;
    leave_behind(&stage);
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Good", "message": "", "lastTransitionTime": TIME});
    let theirs = |name: &str, finalizers: Value, annotations: Value| {
        stage
            .server
            .create(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default", "finalizers": finalizers, "annotations": annotations},
                "spec": {"type": "LoadBalancer", "loadBalancerClass": "example.com/other", "ports": [{"port": 80}]},
            }))
            .unwrap();
        let status = json!({"status": {
            "loadBalancer": {"ingress": [{"ip": "192.0.2.99", "ipMode": "VIP"}]},
            "conditions": [condition(CONDITION_PROGRAMMED), condition("LoadBalancerPortsError"), condition("example.com/Other")],
        }});
        stage
            .server
            .merge("services", "default", name, "status", status)
            .unwrap();
    };
    let cleanup = operator_api::FINALIZER_EXTERNAL_IPS;
    theirs(
        "was-balanced",
        json!([FINALIZER, "example.com/other"]),
        json!({ANNOTATION_ALLOCATED_FROM: "main"}),
    );
    theirs(
        "was-external",
        json!([cleanup, FINALIZER, "example.com/other"]),
        json!({}),
    );
    let before = stage.services().get("foreign").await.unwrap();

    let output = run(&stage, &["uninstall", "--yes"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for (name, finalizers) in [
        ("was-balanced", &["example.com/other"][..]),
        ("was-external", &[FINALIZER, "example.com/other"][..]),
    ] {
        let service = stage.services().get(name).await.unwrap();
        assert_eq!(service.finalizers(), finalizers, "{name}");
        assert!(service.annotations().is_empty(), "{name}");
        assert_eq!(stage.addresses(name).await, ["192.0.2.99"], "{name}");
        let conditions = service.status.unwrap().conditions.unwrap_or_default();
        let kinds: Vec<_> = conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(kinds, ["LoadBalancerPortsError", "example.com/Other"], "{name}");
    }
    assert_eq!(
        stage.services().get("foreign").await.unwrap(),
        before,
        "it was never ours"
    );
    assert_eq!(stage.addresses("web").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstall_can_leave_the_addresses() {
    let stage = Stage::new().await;
    leave_behind(&stage);
    let output = run(&stage, &["uninstall", "--yes", "--keep-addresses"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(stage.addresses("web").await, [ADDRESS]);
    let service = stage.services().get("web").await.unwrap();
    assert_eq!(service.finalizers(), ["example.com/other"]);
    assert!(
        stage
            .tables()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstall_asks_and_refuses_while_an_operator_lives() {
    let stage = Stage::new().await;
    leave_behind(&stage);
    let output = run(&stage, &["uninstall"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--yes"));

    let operator = stage.operator(|options| {
        options.leader_elect = true;
        options.identity = "alive".to_owned();
        // It looks at nothing: what is there is for the assertion below.
        options.settings.namespace = OWN.to_owned();
    });
    eventually("it leads", || async {
        stage.leases().get_opt("vipline-operator").await.unwrap().is_some()
    })
    .await;
    let start = Instant::now();
    let output = run(&stage, &["uninstall", "--yes"]).await;
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("alive is running"),
        "{}",
        text(&output.stderr)
    );
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(stage.server.list("viptables").len(), 1);
    operator.kill();

    // A dead one's Lease is waited out, and then it is gone on.
    let output = run(&stage, &["uninstall", "--yes"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(stage.server.list("viptables").is_empty());
}
