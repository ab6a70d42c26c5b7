//! What is refused, and what stays when it is.

use operator_api::{CONDITION_ACCEPTED, CONDITION_ALLOCATED};
use serde_json::json;

use super::{balanced, with, words, world::World};
use crate::decide::{Next, conditions::CONDITION_PORTS};

#[test]
fn a_mode_that_is_not_served_is_told_once() {
    let mut world = World::ready();
    world
        .server
        .service("web", json!({"vipline.dev/forwarding-mode": "DsrL2"}), balanced());
    assert_eq!(words(&world.settle()), ["status"]);
    let said = world.condition("web", CONDITION_ACCEPTED);
    assert!(
        said.starts_with("False/NotServed: vipline.dev/forwarding-mode: \"DsrL2\""),
        "{said}"
    );
    assert_eq!(world.told(), ["SyncLoadBalancerFailed"]);
    assert_eq!(world.next("web"), Next::Done);
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
}

#[test]
fn a_bad_edit_keeps_the_last_good_table_with_todays_endpoints() {
    let mut world = World::ready();
    let local = with(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}));
    world.server.endpoints("web", &["worker-1"]);
    world.server.service("web", json!({}), local.clone());
    world.settle();
    world.told();
    world
        .server
        .service("web", json!({"vipline.dev/scheduler": "Random"}), local);
    assert_eq!(words(&world.settle()), ["status"]);
    let said = world.condition("web", CONDITION_ACCEPTED);
    assert!(said.ends_with("what was served before stays"), "{said}");
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
    assert_eq!(world.told(), ["SyncLoadBalancerFailed"]);
    world.server.endpoints("web", &["worker-2"]);
    assert_eq!(words(&world.settle()), ["table"]);
}

#[test]
fn a_port_of_a_protocol_that_is_not_served_has_its_error_and_the_others_are_served() {
    let mut world = World::ready();
    let ports = json!([{"port": 80, "protocol": "TCP"}, {"port": 132, "protocol": "SCTP"}]);
    world.server.service("web", json!({}), with(json!({"ports": ports})));
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    let service = &world.server.services[&super::world::key("web")];
    let ingress = &crate::decide::status::ingress(service)[0];
    let ports: Vec<_> = ingress
        .ports
        .iter()
        .flatten()
        .map(|port| (port.port, port.error.as_deref()))
        .collect();
    assert_eq!(ports, [(80, None), (132, Some("MixedProtocolNotSupported"))]);
    let said = world.condition("web", CONDITION_PORTS);
    assert!(
        said.starts_with("True/LoadBalancerMixedProtocolNotSupported: 1 of its ports"),
        "{said}"
    );
    assert!(world.told().contains(&"LoadBalancerMixedProtocolNotSupported"));
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["table", "status"]);
    assert!(world.condition("web", CONDITION_PORTS).starts_with("False/"));
}

#[test]
fn a_service_of_sctp_alone_is_refused() {
    let mut world = World::ready();
    world.server.service(
        "web",
        json!({}),
        with(json!({"ports": [{"port": 132, "protocol": "SCTP"}]})),
    );
    assert_eq!(words(&world.settle()), ["status"]);
    assert!(
        world
            .condition("web", CONDITION_ACCEPTED)
            .starts_with("False/ProtocolNotSupported")
    );
    assert!(world.server.claims.is_empty());
}

#[test]
fn a_full_pool_is_told_once_and_tried_again() {
    let mut world = World::ready();
    world.server.pool("public", json!({"addresses": ["203.0.113.10/32"]}));
    world.server.service("first", json!({}), balanced());
    world.settle();
    world.told();
    world.server.service("second", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["status"]);
    assert!(
        world
            .condition("second", CONDITION_ALLOCATED)
            .starts_with("False/AllocationFailed: no IPv4 address is free")
    );
    assert_eq!(world.told(), ["AllocationFailed"]);
    assert_eq!(world.next("second"), Next::Retry);
    world.server.delete_service("first");
    world.settle();
    assert_eq!(world.ingress("second"), ["203.0.113.10"]);
}

#[test]
fn an_external_ip_that_no_pool_allows_is_refused_with_an_event() {
    let mut world = World::ready();
    let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.2", "externalIPs": ["203.0.113.12"],
                      "ports": [{"port": 53, "protocol": "UDP"}]});
    world.server.service("dns", json!({}), spec);
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(world.told(), ["ExternalIPRefused"]);
    assert!(world.server.tables.is_empty() && world.server.claims.is_empty());
}

#[test]
fn the_deprecated_field_is_honoured_and_told_of() {
    let mut world = World::ready();
    world
        .server
        .service("web", json!({}), with(json!({"loadBalancerIP": "203.0.113.17"})));
    world.settle();
    assert_eq!(world.ingress("web"), ["203.0.113.17"]);
    assert!(world.told().contains(&"LoadBalancerIPDeprecated"));
}

#[test]
fn pools_that_overlap_are_told_once() {
    let mut world = World::ready();
    world.server.now += 5;
    world.server.pool("later", json!({"addresses": ["203.0.113.19/32"]}));
    world.settle();
    assert_eq!(world.told(), ["Conflict"]);
    assert_eq!(
        world.server.pools["later"].status.as_ref().unwrap().conditions[0].status,
        "True"
    );
}
