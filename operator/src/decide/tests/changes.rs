//! Changes of Services that live.

use operator_api::{Backends, CONDITION_ALLOCATED, CONDITION_PROGRAMMED};
use serde_json::json;

use super::{balanced, with, words, world::World};

fn served(spec: serde_json::Value) -> World {
    let mut world = World::ready();
    world.server.service("web", json!({}), spec);
    world.settle();
    assert_eq!(world.ingress("web").len(), 1);
    world.told();
    world
}

#[test]
fn another_address_is_made_before_the_old_one_is_broken() {
    let mut world = served(balanced());
    world.server.service(
        "web",
        json!({"vipline.dev/load-balancer-ips": "203.0.113.15"}),
        balanced(),
    );
    // Each step is checked: what the status names is in the table.
    assert_eq!(words(&world.settle()), ["claim", "table", "status", "table", "release"]);
    assert_eq!(world.ingress("web"), ["203.0.113.15"]);
    assert_eq!(world.table_addresses("web"), ["203.0.113.15"]);
    assert_eq!(world.server.claims.keys().collect::<Vec<_>>(), ["203.0.113.15"]);
    let message = &world.notes[1].message;
    assert!(
        message.starts_with("Updated load balancer: 203.0.113.15; on 1 of 1 LB nodes; whether it is announced"),
        "{message}"
    );
    assert_eq!(world.told(), ["IPAllocated", "UpdatedLoadBalancer"]);
}

#[test]
fn an_address_that_cannot_be_had_leaves_the_old_one_served() {
    let mut world = served(balanced());
    world.server.squat("203.0.113.15");
    world.server.service(
        "web",
        json!({"vipline.dev/load-balancer-ips": "203.0.113.15"}),
        balanced(),
    );
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
    let said = world.condition("web", CONDITION_ALLOCATED);
    assert!(
        said.starts_with("False/AllocationFailed: 203.0.113.15 is taken"),
        "{said}"
    );
    assert!(said.ends_with("it has 203.0.113.10 from pool public"), "{said}");
    assert_eq!(world.told(), ["AllocationFailed"]);
    assert_eq!(world.next("web"), super::super::Next::Retry);
}

#[test]
fn a_new_port_is_claimed_before_it_is_served_and_an_old_one_given_back_after() {
    let mut world = served(balanced());
    world.server.service(
        "web",
        json!({}),
        with(json!({"ports": [{"port": 443, "protocol": "TCP"}]})),
    );
    assert_eq!(words(&world.settle()), ["reclaim", "table", "reclaim"]);
    assert_eq!(world.server.claims["203.0.113.10"].spec.holders[0].ports.len(), 1);
    assert_eq!(world.told(), ["UpdatedLoadBalancer"]);
}

#[test]
fn endpoints_cost_nothing_with_policy_cluster_and_one_write_with_local() {
    let mut world = served(balanced());
    world.server.endpoints("web", &["worker-1"]);
    assert_eq!(
        words(&world.settle()),
        ["table"],
        "the first one: its family is served now"
    );
    world.server.endpoints("web", &["worker-1", "worker-2"]);
    assert_eq!(words(&world.settle()), [""; 0]);
    world.server.service(
        "web",
        json!({}),
        with(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000})),
    );
    assert_eq!(words(&world.settle()), ["table"]);
    assert_eq!(world.told(), ["UpdatedLoadBalancer"]);
    world.server.endpoints("web", &["worker-1", "worker-1", "worker-2"]);
    assert_eq!(words(&world.settle()), ["table"]);
    assert_eq!(world.told(), [""; 0], "endpoints come and go without Events");
    let Backends::Local { nodes, .. } = &world.table("web").unwrap().spec.backends else {
        panic!("not Local")
    };
    assert_eq!(nodes[0].ipv4, 2);
}

#[test]
fn a_node_costs_one_chunk_and_no_table() {
    let mut world = served(balanced());
    let before = world.actions.len();
    world.server.node("worker-2", "10.9.0.2");
    world.settle();
    assert_eq!(words(&world.actions[before..]), ["nodes"]);
}

#[test]
fn when_all_lb_nodes_are_lost_the_status_stays_and_a_condition_says_so() {
    let mut world = served(balanced());
    world.server.lose_lb_nodes();
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
    assert_eq!(
        world.condition("web", CONDITION_PROGRAMMED),
        "False/NoLbNode: no LB node is alive"
    );
    assert_eq!(world.told(), ["UnAvailableLoadBalancer"]);
    world.server.lb_node("lb-2");
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(
        world.condition("web", CONDITION_PROGRAMMED),
        "True/Programmed: on 1 of 1 LB nodes"
    );
}

#[test]
fn a_pool_that_shrinks_under_a_service_takes_nothing_from_it() {
    let mut world = served(balanced());
    world
        .server
        .pool("public", json!({"addresses": ["203.0.113.12-203.0.113.19"]}));
    assert_eq!(
        words(&world.settle()),
        ["status"],
        "only the condition says that the pool has it no more"
    );
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
    let said = world.condition("web", CONDITION_ALLOCATED);
    assert_eq!(
        said,
        "True/Allocated: 203.0.113.10 from pool public, which has it no more"
    );
}

#[test]
fn a_second_family_comes_and_goes_without_touching_the_first() {
    let mut world = served(balanced());
    let both = with(json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "PreferDualStack"}));
    world.server.service("web", json!({}), both);
    assert_eq!(words(&world.settle()), ["claim", "table", "status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10", "2001:db8::10"]);
    world.server.service("web", json!({}), balanced());
    // The first table only says no more that nobody serves IPv6, which the Service does not ask for any more.
    assert_eq!(words(&world.settle()), ["table", "status", "table", "release"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
}

#[test]
fn a_shared_address_is_left_to_the_other_service() {
    let mut world = World::ready();
    let key = json!({"vipline.dev/allow-shared-ip": "together"});
    world.server.service("tcp", key.clone(), balanced());
    world
        .server
        .service("udp", key, with(json!({"ports": [{"port": 80, "protocol": "UDP"}]})));
    world.settle();
    assert_eq!(world.ingress("tcp"), world.ingress("udp"));
    assert_eq!(world.server.claims["203.0.113.10"].spec.holders.len(), 2);
    world.server.delete_service("tcp");
    assert_eq!(words(&world.settle()), ["clear", "untable", "reclaim", "unmark"]);
    assert_eq!(world.server.claims["203.0.113.10"].spec.holders.len(), 1);
    // A port that the other one has cannot be had: the last good table stays, with the ports that it holds.
    world
        .server
        .service("tcp", json!({"vipline.dev/allow-shared-ip": "together"}), balanced());
    world.settle();
    world.told();
    world.server.service(
        "udp",
        json!({"vipline.dev/allow-shared-ip": "together", "vipline.dev/load-balancer-ips": "203.0.113.10"}),
        balanced(),
    );
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(world.ingress("udp"), ["203.0.113.10"]);
    assert_eq!(world.told(), ["AllocationFailed"]);
}

#[test]
fn an_annotation_that_somebody_changes_is_put_right() {
    let mut world = served(balanced());
    world.server.change("web", |service| {
        let annotations = service.metadata.annotations.get_or_insert_default();
        annotations.insert("vipline.dev/ip-allocated-from-pool".to_owned(), "mine".to_owned());
    });
    assert_eq!(words(&world.settle()), ["mark"]);
}

#[test]
fn clocks_of_lb_nodes_do_not_matter_nor_does_a_restart_meanwhile() {
    for behind in [-86_400, 35, 600] {
        let mut world = World::new();
        world.server.lb_clock_behind = behind;
        world.server.lb_node("lb-1");
        world.server.service("web", json!({}), balanced());
        assert_eq!(
            words(&world.settle()),
            ["mark", "claim", "table", "status"],
            "{behind} s"
        );
        assert_eq!(world.ingress("web"), ["203.0.113.10"]);
        // A restarted operator has seen no Lease change yet.
        world.operator = super::world::Operator::start(&world.server, world.settings.clone());
        assert_eq!(world.next("web"), super::super::Next::Done, "{behind} s");
        world.server.later(10);
        assert_eq!(words(&world.settle()), [""; 0], "{behind} s");
        // And one that died is noticed in its Lease's time, whatever its clock said.
        world.server.later(1);
        world.settle();
        world.server.lose_lb_nodes();
        assert_eq!(words(&world.settle()), ["status"], "{behind} s");
        assert!(
            world
                .condition("web", CONDITION_PROGRAMMED)
                .starts_with("False/NoLbNode")
        );
    }
}

#[test]
fn lb_nodes_that_are_dead_when_the_operator_starts_are_told_of_when_they_had_time_to_show_otherwise() {
    let mut world = served(balanced());
    world.server.lose_lb_nodes();
    world.operator = super::world::Operator::start(&world.server, world.settings.clone());
    assert_eq!(words(&world.settle()), [""; 0]);
    world.server.later(41);
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(
        world.condition("web", CONDITION_PROGRAMMED),
        "False/NoLbNode: no LB node is alive"
    );
}

#[test]
fn a_change_of_address_waits_for_the_rest_of_the_lb_nodes_for_a_while() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world.server.service("web", json!({}), balanced());
    world.settle();
    world.server.later(3_600);
    world.server.stuck = ["lb-2".to_owned()].into();
    let wish = json!({"vipline.dev/load-balancer-ips": "203.0.113.15"});
    world.server.service("web", wish, balanced());
    let web = crate::Subject::Service(super::world::key("web"));
    while world.work(&web) {}
    world.server.program();
    world.work(&web);
    assert_eq!(world.ingress("web"), ["203.0.113.10"], "lb-2 may only be a moment late");
    world.server.later(3);
    world.settle();
    assert_eq!(
        world.ingress("web"),
        ["203.0.113.15"],
        "but it is not waited for for ever"
    );
}

#[test]
fn the_deprecated_field_is_told_of_on_a_live_service_too() {
    let mut world = served(balanced());
    world
        .server
        .service("web", json!({}), with(json!({"loadBalancerIP": "203.0.113.10"})));
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(world.told(), ["LoadBalancerIPDeprecated"]);
    world.settle();
    assert_eq!(world.told(), [""; 0], "once");
}
