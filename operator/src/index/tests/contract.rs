//! The Service contract, field by field.

use std::net::IpAddr;

use operator_api::{Affinity, Protocol, Scheduler, VipPort};
use serde_json::{Value, json};

use super::*;
use crate::{
    index::{Deprecation, RefusedPort, Why},
    ipam::Family,
};

fn wanted(patch: Value) -> Wanted {
    index([Object::Service(service(patch))]).wanted(&key("web"))
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_service_of_our_class_is_served_on_all_its_tcp_and_udp_ports() {
    let serve = serve(json!({"spec": {"ports": [
        {"name": "quic", "protocol": "UDP", "port": 443, "nodePort": 30443},
        {"name": "https", "protocol": "TCP", "port": 443},
        {"name": "http", "port": 80, "nodePort": 0},
    ]}}));
    let port = |protocol, port, node_port, name: &str| VipPort {
        protocol,
        port,
        node_port,
        name: Some(name.to_owned()),
    };
    assert_eq!(
        serve.ports,
        [
            port(Protocol::Tcp, 80, None, "http"),
            port(Protocol::Tcp, 443, None, "https"),
            port(Protocol::Udp, 443, Some(30443), "quic"),
        ]
    );
    assert_eq!(
        (serve.ip_mode, serve.finalizer),
        ("VIP", "service.kubernetes.io/load-balancer-cleanup")
    );
    assert!(serve.is_accepted() && serve.refused_ports.is_empty() && serve.deprecations.is_empty());
    assert_eq!(serve.request.ports.len(), 3);
}

#[test]
fn a_service_of_another_class_is_not_touched_at_all() {
    assert_eq!(
        wanted(json!({"spec": {"loadBalancerClass": "example.com/other"}})),
        Wanted::Foreign
    );
    let deleted = json!({
        "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["service.kubernetes.io/load-balancer-cleanup"]},
        "spec": {"loadBalancerClass": "example.com/other", "externalIPs": ["198.51.100.1"]},
    });
    assert_eq!(wanted(deleted), Wanted::Foreign);
}

#[test]
fn a_service_of_another_class_that_was_ours_loses_only_what_is_ours() {
    let service = service(json!({"spec": {"loadBalancerClass": "example.com/other"}}));
    let index = index([
        Object::Service(service),
        Object::Table(table("web", "198.51.100.1", json!({}))),
    ]);
    assert_eq!(index.wanted(&key("web")), Wanted::Nothing(Why::OtherClass));
    assert!(Why::OtherClass.keeps_status());
    // Marks alone may be those of another installation, which is at work; only what is to go is let go.
    let mut marked = json!({
        "metadata": {"finalizers": ["vipline.dev/cleanup"]}, "spec": {"loadBalancerClass": "example.com/other"},
    });
    assert_eq!(wanted(marked.clone()), Wanted::Foreign);
    marked["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(wanted(marked), Wanted::Nothing(Why::OtherClass));
}

#[test]
fn a_service_without_a_class_is_ours_by_default_class_or_by_selector_only() {
    let none = json!({"metadata": {"labels": {"lb": "vipline"}}, "spec": {"loadBalancerClass": null}});
    let selector = |value: &str| patched(json!({}), json!({"matchLabels": {"lb": value}}));
    let cases = [
        (settings(), false),
        (
            Settings {
                default_class: true,
                ..settings()
            },
            true,
        ),
        (
            Settings {
                service_selector: Some(selector("vipline")),
                ..settings()
            },
            true,
        ),
        (
            Settings {
                service_selector: Some(selector("other")),
                ..settings()
            },
            false,
        ),
    ];
    for (settings, ours) in cases {
        let index = with_settings(settings, [Object::Service(service(none.clone()))]);
        let wanted = index.wanted(&key("web"));
        assert_eq!(matches!(wanted, Wanted::Serve(_)), ours, "{:?}", index.settings());
        assert!(ours || wanted == Wanted::Foreign);
    }
}

#[test]
fn a_service_that_is_no_longer_selected_is_let_go_with_its_status() {
    let marked = json!({
        "metadata": {"annotations": {"vipline.dev/ip-allocated-from-pool": "public"}},
        "spec": {"loadBalancerClass": null},
    });
    assert_eq!(wanted(marked), Wanted::Nothing(Why::LetGo));
    assert!(Why::LetGo.keeps_status() && !Why::NotLoadBalancer.keeps_status());
}

#[test]
fn each_trace_of_ours_is_enough_to_clean_up_and_none_is_needed_to_stay_away() {
    let cluster_ip = |patch| {
        let mut base = json!({"spec": {"type": "ClusterIP", "loadBalancerClass": null}});
        base["metadata"] = patch;
        base
    };
    let marks = [
        json!({"annotations": {"vipline.dev/ip-allocated-from-pool": "public"}}),
        json!({"finalizers": ["vipline.dev/cleanup"]}),
    ];
    for mark in marks {
        assert_eq!(
            wanted(cluster_ip(mark.clone())),
            Wanted::Nothing(Why::NotLoadBalancer),
            "{mark}"
        );
    }
    let conditions = json!([{"type": "vipline.dev/Accepted", "status": "False", "reason": "NotServed", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let mut conditioned = cluster_ip(json!({}));
    conditioned["status"] = json!({"conditions": conditions});
    assert_eq!(wanted(conditioned), Wanted::Nothing(Why::NotLoadBalancer));
    let claimed_by = |installation: serde_json::Value| {
        let claim = claim(
            "198.51.100.1",
            &["web"],
            json!({"spec": {"installation": installation}}),
        );
        let index = index([Object::Service(service(cluster_ip(json!({})))), Object::Claim(claim)]);
        index.wanted(&key("web"))
    };
    let ours = json!(operator_api::installation(NAMESPACE));
    assert_eq!(claimed_by(ours), Wanted::Nothing(Why::NotLoadBalancer));
    assert_eq!(claimed_by(json!(null)), Wanted::Foreign, "it may be anybody's");
    let foreign = cluster_ip(json!({
        "annotations": {"metallb.io/address-pool": "x"}, "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
    }));
    assert_eq!(wanted(foreign), Wanted::Foreign);
}

#[test]
fn headless_and_external_name_services_are_ignored_with_a_word() {
    assert_eq!(
        wanted(json!({"spec": {"clusterIP": "None"}})),
        Wanted::Nothing(Why::Headless)
    );
    assert_eq!(Why::Headless.word(), "headless");
    let external_name =
        json!({"spec": {"type": "ExternalName", "loadBalancerClass": null, "externalIPs": ["198.51.100.1"]}});
    assert_eq!(wanted(external_name), Wanted::Nothing(Why::ExternalName));
    let headless = json!({"type": "ClusterIP", "loadBalancerClass": null, "clusterIP": "None"});
    let mut asking = headless.clone();
    asking["externalIPs"] = json!(["198.51.100.1"]);
    assert_eq!(wanted(json!({"spec": asking})), Wanted::Nothing(Why::Headless));
    assert_eq!(
        wanted(json!({"spec": headless})),
        Wanted::Foreign,
        "it asks for nothing"
    );
    let was_ours = json!({
        "metadata": {"annotations": {"vipline.dev/ip-allocated-from-pool": "public"}},
        "spec": {"type": "ExternalName", "loadBalancerClass": null},
    });
    assert_eq!(wanted(was_ours), Wanted::Nothing(Why::ExternalName));
}

#[test]
fn external_ips_are_served_whatever_the_type_with_a_finalizer_that_no_cloud_strips() {
    for kind in ["ClusterIP", "NodePort"] {
        let serve = serve(json!({"spec": {
            "type": kind, "loadBalancerClass": null, "externalIPs": ["198.51.100.1", "2001:db8::1", "198.51.100.1"],
        }}));
        assert_eq!(serve.finalizer, "vipline.dev/cleanup");
        assert_eq!(serve.request.external, addresses(&["198.51.100.1", "2001:db8::1"]));
        assert!(
            serve.request.families.is_empty(),
            "no load balancer address is asked for"
        );
    }
    let both = serve(json!({"spec": {"externalIPs": ["198.51.100.1"]}}));
    assert_eq!(both.finalizer, "service.kubernetes.io/load-balancer-cleanup");
    assert_eq!((both.request.families.len(), both.request.external.len()), (1, 1));
}

#[test]
fn addresses_in_annotations_of_a_service_that_wants_none_mean_nothing() {
    let serve = serve(json!({
        "metadata": {"annotations": {"vipline.dev/load-balancer-ips": "nonsense", "vipline.dev/allow-shared-ip": "key"}},
        "spec": {"type": "ClusterIP", "loadBalancerClass": null, "externalIPs": ["198.51.100.1"], "loadBalancerIP": "x"},
    }));
    assert!(serve.is_accepted() && serve.deprecations.is_empty());
    assert_eq!(serve.request.sharing_key, None);
}

#[test]
fn families_come_in_the_order_of_the_service_and_prefer_is_not_require() {
    let families = |families: Value, policy: &str| {
        let request = serve(json!({"spec": {"ipFamilies": families, "ipFamilyPolicy": policy}})).request;
        (request.families, request.require_all)
    };
    use Family::{V4, V6};
    assert_eq!(
        families(json!(["IPv6", "IPv4"]), "RequireDualStack"),
        (vec![V6, V4], true)
    );
    assert_eq!(
        families(json!(["IPv4", "IPv6"]), "PreferDualStack"),
        (vec![V4, V6], false)
    );
    assert_eq!(families(json!(["IPv6"]), "PreferDualStack"), (vec![V6], false));
    assert_eq!(families(json!(["IPv6"]), "SingleStack"), (vec![V6], true));
    assert_eq!(
        families(json!(["IPv6", "IPv6", "IPv5"]), "RequireDualStack"),
        (vec![V6], true)
    );
    let from_cluster_ips =
        serve(json!({"spec": {"ipFamilies": null, "clusterIPs": ["fd00::1"], "clusterIP": "fd00::1"}}));
    assert_eq!(from_cluster_ips.request.families, [V6]);
}

#[test]
fn requested_addresses_come_from_our_annotation_then_metallbs_then_the_old_field() {
    let dual = json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"});
    let asked = |annotations: Value, spec: Value| {
        let mut patch = json!({"metadata": {"annotations": annotations}, "spec": dual});
        if let Value::Object(more) = spec {
            patch["spec"].as_object_mut().unwrap().extend(more);
        }
        let serve = serve(patch);
        assert!(serve.is_accepted(), "{:?}", serve.refusals);
        (serve.request.addresses, serve.deprecations)
    };
    let ours = json!({
        "vipline.dev/load-balancer-ips": " 198.51.100.1 , 2001:db8::1",
        "metallb.io/loadBalancerIPs": "198.51.100.2", "metallb.universe.tf/loadBalancerIPs": "198.51.100.3",
    });
    assert_eq!(
        asked(ours, json!({})),
        (addresses(&["2001:db8::1", "198.51.100.1"]), vec![])
    );
    let metallb = json!({
        "vipline.dev/load-balancer-ips": "", "metallb.io/loadBalancerIPs": "198.51.100.2",
        "metallb.universe.tf/loadBalancerIPs": "198.51.100.3",
    });
    assert_eq!(asked(metallb.clone(), json!({})).0, addresses(&["198.51.100.2"]));
    let old = json!({"metallb.universe.tf/loadBalancerIPs": "198.51.100.3"});
    assert_eq!(asked(old, json!({})).0, addresses(&["198.51.100.3"]));
    let deprecated = vec![Deprecation::LoadBalancerIp];
    let field = json!({"loadBalancerIP": "198.51.100.4"});
    assert_eq!(
        asked(json!({}), field.clone()),
        (addresses(&["198.51.100.4"]), deprecated.clone())
    );
    assert_eq!(asked(metallb, field), (addresses(&["198.51.100.2"]), deprecated));
}

#[test]
fn pool_and_sharing_key_are_read_under_all_three_prefixes() {
    for (prefix, pool, key) in [
        ("vipline.dev/", "address-pool", "allow-shared-ip"),
        ("metallb.io/", "address-pool", "allow-shared-ip"),
        ("metallb.universe.tf/", "address-pool", "allow-shared-ip"),
    ] {
        let serve = serve(json!({"metadata": {"annotations": {
            format!("{prefix}{pool}"): " gold ", format!("{prefix}{key}"): "dns",
        }}}));
        assert_eq!(serve.request.pool.as_deref(), Some("gold"), "{prefix}");
        assert_eq!(serve.request.sharing_key.as_deref(), Some("dns"), "{prefix}");
    }
}

#[test]
fn the_address_of_the_status_is_what_it_has_now() {
    let serve = serve(json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "198.51.100.9"}, {"hostname": "lb.example.com"}, {"ip": "nonsense"}, {"ip": "2001:db8::9"},
    ]}}}));
    assert_eq!(serve.request.current, addresses(&["198.51.100.9", "2001:db8::9"]));
}

#[test]
fn what_cannot_be_had_is_refused_with_field_and_value() {
    let annotated = |name: &str, value: &str| json!({"metadata": {"annotations": {name: value}}});
    let cases = [
        (
            annotated("vipline.dev/load-balancer-ips", "1.2.3"),
            "InvalidValue",
            "vipline.dev/load-balancer-ips: \"1.2.3\" is not an IP address",
        ),
        (
            annotated("vipline.dev/load-balancer-ips", "198.51.100.1,198.51.100.2"),
            "InvalidValue",
            "vipline.dev/load-balancer-ips: \"198.51.100.2\" is the second address of its family",
        ),
        (
            annotated("metallb.io/loadBalancerIPs", "2001:db8::1"),
            "InvalidValue",
            "metallb.io/loadBalancerIPs: \"2001:db8::1\" is not of a family in spec.ipFamilies",
        ),
        (
            annotated("vipline.dev/forwarding-mode", "Tunnel"),
            "InvalidValue",
            "vipline.dev/forwarding-mode: \"Tunnel\" is not one of DsrIpip, DsrGue, DsrL2, NodePortNat",
        ),
        (
            annotated("vipline.dev/forwarding-mode", "DsrGue"),
            "NotServed",
            "vipline.dev/forwarding-mode: \"DsrGue\" is not served by this version; DsrIpip is",
        ),
        (
            annotated("vipline.dev/scheduler", "lblc"),
            "InvalidValue",
            "vipline.dev/scheduler: \"lblc\" is not one of Maglev, SourceHash, DestinationHash, RoundRobin, WeightedRoundRobin, \
             LeastConnections, WeightedLeastConnections, ShortestExpectedDelay, NeverQueue",
        ),
        (
            annotated("vipline.dev/health-check", "tcp"),
            "InvalidValue",
            "vipline.dev/health-check: \"tcp\" is not `none`",
        ),
        (
            json!({"spec": {"loadBalancerIP": "10.0.0.300"}}),
            "InvalidValue",
            "spec.loadBalancerIP: \"10.0.0.300\" is not an IP address",
        ),
        (
            json!({"spec": {"externalIPs": ["old.IP.1"]}}),
            "InvalidValue",
            "spec.externalIPs: \"old.IP.1\" is not an IP address",
        ),
        (
            json!({"spec": {"loadBalancerSourceRanges": ["10.0.0.0/33"]}}),
            "InvalidValue",
            "spec.loadBalancerSourceRanges: \"10.0.0.0/33\" is not a CIDR block such as 192.0.2.0/24",
        ),
        (
            json!({"spec": {"ports": [{"port": 0}, {"port": 80}]}}),
            "InvalidValue",
            "spec.ports[0].port: \"0\" is not in 1..=65535",
        ),
        (json!({"spec": {"ports": []}}), "NoPorts", "spec.ports: there are none"),
        (
            json!({"spec": {"ports": [{"port": 5, "protocol": "SCTP"}]}}),
            "ProtocolNotSupported",
            "spec.ports: none of its protocols is served (SCTP)",
        ),
        (
            json!({"spec": {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}}}}),
            "InvalidValue",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: \"90000\" is not in 1..=86400",
        ),
    ];
    for (patch, reason, message) in cases {
        assert_eq!(refusals(patch.clone()), [(reason, message.to_owned())], "{patch}");
    }
}

#[test]
fn node_port_nat_without_node_ports_is_refused_for_that_too() {
    let patch = json!({
        "metadata": {"annotations": {"vipline.dev/forwarding-mode": "NodePortNat"}},
        "spec": {"allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]},
    });
    let reasons: Vec<_> = refusals(patch.clone()).into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, ["NotServed", "NoNodePort"]);
    assert_eq!(serve(patch).ip_mode, "Proxy");
    let dsr = serve(json!({"spec": {"allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}}));
    assert!(dsr.is_accepted(), "DSR needs no node port");
}

#[test]
fn sctp_among_others_is_left_out_and_told() {
    let serve = serve(json!({"spec": {"ports": [{"port": 80}, {"port": 5060, "protocol": "SCTP"}]}}));
    assert!(serve.is_accepted());
    assert_eq!(
        serve.refused_ports,
        [RefusedPort {
            port: 5060,
            protocol: "SCTP".to_owned()
        }]
    );
    assert_eq!(serve.ports.len(), 1);
}

#[test]
fn schedulers_are_asked_for_by_either_name() {
    let asked = |name: &str| serve(json!({"metadata": {"annotations": {"vipline.dev/scheduler": name}}})).scheduler;
    for (scheduler, long, short) in Scheduler::NAMED {
        assert_eq!((asked(long), asked(short)), (scheduler, scheduler));
    }
    assert_eq!(asked(""), Scheduler::Maglev);
}

#[test]
fn client_affinity_has_kubernetes_default_of_three_hours() {
    let affinity = |spec: Value| {
        serve(json!({"spec": spec})).affinity.map(
            |Affinity {
                 client_ip_timeout_seconds,
             }| client_ip_timeout_seconds,
        )
    };
    assert_eq!(affinity(json!({})), None);
    assert_eq!(affinity(json!({"sessionAffinity": "None"})), None);
    assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 86_400}});
    assert_eq!(
        affinity(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})),
        Some(86_400)
    );
}

#[test]
fn absurd_services_are_answered() {
    let ports: Vec<Value> = (0..100_000).map(|port| json!({"port": port})).collect();
    let reasons: Vec<_> = refusals(json!({"spec": {"ports": ports}}))
        .into_iter()
        .map(|(reason, _)| reason)
        .collect();
    assert_eq!(reasons, ["InvalidValue", "TooMany"]);
    let garbage = "ü".repeat(100_000);
    let many: Vec<&str> = vec![&garbage; 1_000];
    let told = refusals(json!({
        "metadata": {"annotations": {"vipline.dev/load-balancer-ips": many[..10].join(","), "vipline.dev/allow-shared-ip": garbage}},
        "spec": {"externalIPs": many, "loadBalancerSourceRanges": many, "ports": [{"port": -1}, {"port": 70_000, "nodePort": -5}]},
    }));
    assert_eq!(told.len(), 16, "no more are told than a condition can hold");
    assert!(told.iter().all(|(_, message)| message.len() < 400));
    for nameless in [json!({"metadata": {"name": null}}), json!({"metadata": {"name": ""}})] {
        let index = index([Object::Service(service(nameless))]);
        assert_eq!((index.services().count(), index.ignored()), (0, 1));
    }
    assert_eq!(wanted(json!({"spec": null})), Wanted::Foreign);
    assert_eq!(wanted(json!({"metadata": {"uid": null}})), Wanted::Foreign);
}
