//! The cases of kubernetes/cloud-provider's `controllers/service/controller_test.go` about Services.

use serde_json::{Value, json};

use super::*;
use crate::index::Why;

#[derive(Debug, PartialEq)]
enum Answer {
    Foreign,
    Nothing(Why),
    Serve,
}

fn answer(wanted: &Wanted) -> Answer {
    match wanted {
        Wanted::Foreign => Answer::Foreign,
        Wanted::Nothing(why) => Answer::Nothing(*why),
        Wanted::Serve(_) => Answer::Serve,
    }
}

fn wanted(patch: Value) -> Wanted {
    index([Object::Service(service(patch))]).wanted(&key("web"))
}

/// `TestNeedsCleanup` and `TestSyncLoadBalancerIfNeeded` of cloud-provider's service controller.
#[test]
fn cloud_provider_needs_cleanup_and_sync_cases() {
    let finalizer = "service.kubernetes.io/load-balancer-cleanup";
    let marks = json!({"finalizers": [finalizer], "annotations": {"vipline.dev/ip-allocated-from-pool": "public"}});
    let deleted = json!({"finalizers": [finalizer], "deletionTimestamp": "2026-01-01T00:00:00Z"});
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "8.8.8.8"}]}});
    let cases = [
        (
            "service without finalizer / doesn't want LB",
            json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}}),
            Answer::Foreign,
        ),
        (
            "service with finalizer without timestamp without LB",
            json!({"metadata": marks, "spec": {"type": "NodePort", "loadBalancerClass": null}}),
            Answer::Nothing(Why::NotLoadBalancer),
        ),
        (
            "service with finalizer without timestamp with LB",
            json!({"metadata": {"finalizers": [finalizer]}}),
            Answer::Serve,
        ),
        (
            "service with finalizer with timestamp",
            json!({"metadata": deleted}),
            Answer::Nothing(Why::Deleted),
        ),
        (
            "service with finalizer that no longer wants LB",
            json!({"metadata": marks, "spec": {"type": "ClusterIP", "loadBalancerClass": null}, "status": ingress}),
            Answer::Nothing(Why::NotLoadBalancer),
        ),
        (
            "service that needs cleanup",
            json!({"metadata": deleted, "status": ingress}),
            Answer::Nothing(Why::Deleted),
        ),
        (
            "udp service that wants LB",
            json!({"spec": {"ports": [{"port": 53, "protocol": "UDP"}]}}),
            Answer::Serve,
        ),
        ("tcp service that wants LB", json!({}), Answer::Serve),
        (
            "service specifies loadBalancerClass",
            json!({"spec": {"loadBalancerClass": "custom-loadbalancer"}}),
            Answer::Foreign,
        ),
    ];
    for (case, patch, expected) in cases {
        assert_eq!(answer(&wanted(patch)), expected, "{case}");
    }
}

/// `TestNeedsUpdate` of cloud-provider's service controller: what changes the answer, and what does not.
#[test]
fn cloud_provider_needs_update_cases() {
    let port =
        |patch: Value| json!({"spec": {"ports": [patched::<Value>(json!({"port": 80, "protocol": "TCP"}), patch)]}});
    let ports =
        |first: u16| json!({"spec": {"ports": [{"port": first}, {"port": first + 1000}, {"port": first + 2000}]}});
    let external = |addresses: &[&str]| json!({"spec": {"externalIPs": addresses}});
    let dual = json!({"spec": {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}});
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let mut checked = local.clone();
    checked["spec"]["healthCheckNodePort"] = json!(30123);
    let cases = [
        (
            "service type LoadBalancer to ClusterIP",
            json!({}),
            json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}}),
            true,
        ),
        ("ports different", ports(8000), ports(8001), true),
        (
            "external ip counts different",
            external(&["198.51.100.1"]),
            external(&["198.51.100.1", "198.51.100.2"]),
            true,
        ),
        (
            "external ips different",
            external(&["198.51.100.1"]),
            external(&["198.51.100.2"]),
            true,
        ),
        ("UID different", json!({}), json!({"metadata": {"uid": "new"}}), true),
        ("ExternalTrafficPolicy different", json!({}), local.clone(), true),
        ("HealthCheckNodePort different", local, checked, true),
        (
            "TargetGroup different 1",
            port(json!({"port": 20})),
            port(json!({"port": 21})),
            true,
        ),
        // Where pods listen is kube-proxy's affair: we forward to nodes.
        (
            "TargetGroup different 2",
            port(json!({"targetPort": 20})),
            port(json!({"targetPort": "dns"})),
            false,
        ),
        ("appProtocol the same", json!({}), json!({}), false),
        (
            "IPFamilies from single stack to dual stack",
            json!({}),
            dual.clone(),
            true,
        ),
        ("IPFamilies from dual stack to single stack", dual, json!({}), true),
        // An L4 balancer does the same for each.
        (
            "appProtocol set when previously unset",
            port(json!({})),
            port(json!({"appProtocol": "http"})),
            false,
        ),
        (
            "appProtocol set to a different value",
            port(json!({"appProtocol": "http"})),
            port(json!({"appProtocol": "tcp"})),
            false,
        ),
    ];
    for (case, before, after, differs) in cases {
        assert_eq!(wanted(before) != wanted(after), differs, "{case}");
    }
}
