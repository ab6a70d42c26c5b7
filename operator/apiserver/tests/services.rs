//! What a real API server does to Services.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use apiserver::{ApiServer, Failure};
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

fn create(server: &ApiServer, name: &str, spec: Value) -> Result<Value, Failure> {
    server.create(service(name, spec))
}

fn patch(server: &ApiServer, name: &str, spec: Value) -> Result<Value, Failure> {
    server.merge("services", "default", name, "", json!({"spec": spec}))
}

fn fields(failure: &Failure) -> Vec<&str> {
    failure.details["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| cause["field"].as_str().unwrap())
        .collect()
}

#[test]
fn a_balanced_service_gets_addresses_ports_and_defaults() {
    let server = ApiServer::start();
    let made = create(&server, "s", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP"},
        {"name": "c", "port": 53}]})).unwrap();
    let spec = &made["spec"];
    assert_eq!(spec["clusterIP"], spec["clusterIPs"][0]);
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("10."));
    assert_eq!(
        (&spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!(["IPv4"]), &json!("SingleStack"))
    );
    assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    assert_eq!(spec["allocateLoadBalancerNodePorts"], true);
    assert_eq!(spec["ports"][0]["targetPort"], 80);
    assert_eq!(spec["ports"][0]["protocol"], "TCP");
    let port = |value: &Value| value.as_u64().filter(|port| (30_000..=32_767).contains(port)).unwrap();
    assert_eq!(
        port(&spec["ports"][1]["nodePort"]),
        port(&spec["ports"][2]["nodePort"]),
        "one number for TCP and UDP"
    );
    assert_ne!(port(&spec["ports"][0]["nodePort"]), port(&spec["healthCheckNodePort"]));
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
    assert!(made["metadata"]["generation"].is_null());
}

#[test]
fn fields_of_the_old_type_go_and_its_load_balancer_status_too() {
    let server = ApiServer::start();
    create(
        &server,
        "s",
        json!({"type": "LoadBalancer", "loadBalancerClass": "vipline.dev/xdp",
        "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
    )
    .unwrap();
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    let set = server
        .merge("services", "default", "s", "status", status.clone())
        .unwrap();
    assert_eq!(set["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    let refused = patch(&server, "s", json!({"loadBalancerClass": "other.dev/x"})).unwrap_err();
    assert_eq!((refused.code, fields(&refused)), (422, vec!["spec.loadBalancerClass"]));
    let changed = patch(&server, "s", json!({"type": "ClusterIP"})).unwrap();
    for gone in [
        "loadBalancerClass",
        "allocateLoadBalancerNodePorts",
        "healthCheckNodePort",
        "externalTrafficPolicy",
    ] {
        assert!(changed["spec"][gone].is_null(), "{gone}");
    }
    assert!(changed["spec"]["ports"][0]["nodePort"].is_null());
    assert_eq!(changed["status"], json!({"loadBalancer": {}}));
    // And nobody may write one there.
    let refused = server
        .merge("services", "default", "s", "status", status.clone())
        .unwrap_err();
    assert_eq!(refused.code, 422);
    // A load balancer's own updates leave it.
    patch(&server, "s", json!({"type": "LoadBalancer"})).unwrap();
    server.merge("services", "default", "s", "status", status).unwrap();
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let labelled = server.merge("services", "default", "s", "", label).unwrap();
    assert_eq!(labelled["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
}

#[test]
fn node_ports_are_kept_given_back_and_not_given_twice() {
    let server = ApiServer::start();
    let made = create(
        &server,
        "s",
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]}),
    )
    .unwrap();
    let refused = create(
        &server,
        "t",
        json!({"type": "NodePort", "ports": [{"port": 81, "nodePort": 30_080}]}),
    )
    .unwrap_err();
    assert!(
        refused.message.contains("provided port is already allocated"),
        "{}",
        refused.message
    );
    let refused = create(
        &server,
        "t",
        json!({"type": "NodePort", "ports": [{"port": 81, "nodePort": 80}]}),
    )
    .unwrap_err();
    assert!(refused.message.contains("30000-32767"), "{}", refused.message);
    // A client that does not know of the number does not change it.
    let mut replaced = service("s", json!({"type": "NodePort", "ports": [{"port": 8080}]}));
    replaced["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    assert_eq!(server.update(replaced).unwrap()["spec"]["ports"][0]["nodePort"], 30_080);
    server.delete("services", "default", "s").unwrap();
    create(
        &server,
        "t",
        json!({"type": "NodePort", "ports": [{"port": 81, "nodePort": 30_080}]}),
    )
    .unwrap();
    let none = create(
        &server,
        "u",
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "ports": [{"port": 80}]}),
    )
    .unwrap();
    assert!(none["spec"]["ports"][0]["nodePort"].is_null());
}

#[test]
fn what_cannot_be_is_refused_field_by_field() {
    let server = ApiServer::start();
    let cases = [
        (json!({"ports": []}), "spec.ports"),
        (json!({"ports": [{"port": 0}]}), "spec.ports[0].port"),
        (
            json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
            "spec.ports[0].name",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            "spec.ports[1]",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30_000}]}),
            "spec.ports[0].nodePort",
        ),
        (json!({"ports": [{"port": 80}], "type": "Balanced"}), "spec.type"),
        (
            json!({"ports": [{"port": 80}], "loadBalancerClass": "a.dev/b"}),
            "spec.loadBalancerClass",
        ),
        (
            json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy",
        ),
        (
            json!({"ports": [{"port": 80}], "type": "LoadBalancer", "clusterIP": "None"}),
            "spec.clusterIPs[0]",
        ),
        (
            json!({"ports": [{"port": 80}], "externalIPs": ["127.0.0.1"]}),
            "spec.externalIPs[0]",
        ),
        (
            json!({"ports": [{"port": 80}], "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            "spec.LoadBalancerSourceRanges",
        ),
        (
            json!({"ports": [{"port": 80}], "type": "LoadBalancer", "loadBalancerSourceRanges": ["10/8"]}),
            "spec.LoadBalancerSourceRanges[0]",
        ),
        (
            json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        (
            json!({"ports": [{"port": 80}], "clusterIP": "192.0.2.1"}),
            "spec.clusterIPs",
        ),
        (
            json!({"ports": [{"port": 80}], "healthCheckNodePort": 30_001}),
            "spec.healthCheckNodePort",
        ),
    ];
    for (spec, field) in cases {
        let refused = create(&server, "s", spec.clone()).unwrap_err();
        assert_eq!((refused.code, refused.reason), (422, "Invalid"), "{spec}");
        assert!(fields(&refused).contains(&field), "{spec}: {refused}");
        assert!(server.read("services", "default", "s").is_none());
    }
    let wrong = json!({"ports": [{"port": "http"}]});
    assert_eq!(create(&server, "s", wrong).unwrap_err().code, 400);
    assert_eq!(
        create(&server, "1s", json!({"ports": [{"port": 80}]}))
            .unwrap_err()
            .code,
        422
    );
}

#[test]
fn families_follow_the_policy_and_the_cluster() {
    let server = ApiServer::start();
    let port = json!([{"port": 80}]);
    let both = create(
        &server,
        "a",
        json!({"ports": port, "ipFamilyPolicy": "PreferDualStack"}),
    )
    .unwrap();
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(both["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
    let one = patch(&server, "a", json!({"ipFamilyPolicy": "SingleStack"})).unwrap();
    assert_eq!(
        (
            &one["spec"]["ipFamilies"],
            one["spec"]["clusterIPs"].as_array().unwrap().len()
        ),
        (&json!(["IPv4"]), 1)
    );
    let six = create(&server, "b", json!({"ports": port, "ipFamilies": ["IPv6"]})).unwrap();
    assert!(six["spec"]["clusterIP"].as_str().unwrap().contains(':'));
    let refused = patch(
        &server,
        "b",
        json!({"ipFamilies": ["IPv4"], "clusterIP": null, "clusterIPs": null}),
    )
    .unwrap_err();
    assert_eq!(refused.code, 422);
    let single = ApiServer::builder().single_stack().start();
    let prefer = create(
        &single,
        "a",
        json!({"ports": port, "ipFamilyPolicy": "PreferDualStack"}),
    )
    .unwrap();
    assert_eq!(prefer["spec"]["ipFamilies"], json!(["IPv4"]));
    assert_eq!(
        create(
            &single,
            "b",
            json!({"ports": port, "ipFamilyPolicy": "RequireDualStack"})
        )
        .unwrap_err()
        .code,
        422
    );
    let headless = create(
        &single,
        "c",
        json!({"ports": port, "clusterIP": "None", "selector": {"a": "b"}}),
    )
    .unwrap();
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[test]
fn server_side_apply_of_ports_keeps_what_was_allocated() {
    let server = ApiServer::start();
    let applied = |ports: Value| {
        server
            .apply(service("s", json!({"type": "LoadBalancer", "ports": ports})), "m")
            .unwrap()
    };
    let first = applied(json!([{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]));
    let second = applied(json!([{"port": 80, "name": "a", "targetPort": 8080}]));
    assert_eq!(second["spec"]["ports"].as_array().unwrap().len(), 1);
    assert_eq!(
        second["spec"]["ports"][0]["nodePort"],
        first["spec"]["ports"][0]["nodePort"]
    );
    let third = applied(json!([{"port": 80, "name": "a", "targetPort": 8080}]));
    assert_eq!(
        third["metadata"]["resourceVersion"],
        second["metadata"]["resourceVersion"]
    );
}

#[test]
fn thousands_of_services_are_seeded_in_no_time() {
    let server = ApiServer::start();
    let start = std::time::Instant::now();
    for i in 0..3000 {
        create(
            &server,
            &format!("s{i}"),
            json!({"type": "LoadBalancer", "ports": [{"port": 80}]}),
        )
        .unwrap();
        server
            .create(
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("s{i}-x"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": format!("s{i}")}},
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n", "conditions": {"ready": true}}],
            "ports": [{"port": 80}]}),
            )
            .unwrap();
    }
    let took = start.elapsed();
    assert_eq!(server.list("services").len(), 3001);
    assert!(took.as_secs() < 60, "{took:?}");
}
