//! Births, and restarts after them.

use operator_api::{
    CONDITION_ACCEPTED, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, CONDITION_PROGRAMMED, FINALIZER,
    FINALIZER_EXTERNAL_IPS,
};
use serde_json::json;

use super::{
    balanced, with, words,
    world::{Operator, World, key},
};
use crate::decide::{Action, Next};

#[test]
fn a_single_stack_service_is_born_in_four_writes_and_a_restart_takes_none() {
    let mut world = World::ready();
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
    assert_eq!(world.table_addresses("web"), ["203.0.113.10"]);
    assert_eq!(
        world.condition("web", CONDITION_ALLOCATED),
        "True/Allocated: 203.0.113.10 from pool public"
    );
    assert_eq!(
        world.condition("web", CONDITION_PROGRAMMED),
        "True/Programmed: on 1 of 1 LB nodes"
    );
    assert_eq!(world.condition("web", CONDITION_ACCEPTED), "True/Accepted: ");
    assert_eq!(
        world.told(),
        ["EnsuringLoadBalancer", "IPAllocated", "EnsuredLoadBalancer"]
    );
    let service = &world.server.services[&key("web")];
    assert_eq!(
        service.metadata.finalizers.as_deref(),
        Some([FINALIZER.to_owned()].as_slice())
    );
    let annotations = service.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["vipline.dev/ip-allocated-from-pool"], "public");

    world.operator = Operator::start(&world.server, world.settings.clone());
    let before = world.actions.len();
    world.settle();
    assert_eq!(world.actions.len(), before, "a restart writes nothing at all");
}

#[test]
fn a_dual_stack_service_is_born_in_five_writes_in_the_order_of_its_families() {
    let mut world = World::ready();
    let spec = with(json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}));
    world.server.service("web", json!({}), spec);
    assert_eq!(words(&world.settle()), ["mark", "claim", "claim", "table", "status"]);
    assert_eq!(world.ingress("web"), ["2001:db8::10", "203.0.113.10"]);
}

#[test]
fn a_birth_tells_from_where_it_has_its_address_on_how_many_it_is_and_that_nobody_says_who_announces_it() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world.settle();
    world.notes.clear();
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    let said = world.condition("web", CONDITION_ANNOUNCED);
    assert!(
        said.starts_with("Unknown/NotReported: no LB node says what it announces"),
        "{said}"
    );
    let told: Vec<&str> = world.notes.iter().map(|note| note.message.as_str()).collect();
    assert_eq!(told[1], "Allocated 203.0.113.10 from pool public");
    let ensured = "Ensured load balancer: 203.0.113.10; on 2 of 2 LB nodes; whether it is announced is not known: no LB node says";
    assert!(told[2].starts_with(ensured), "{told:?}");
    assert!(told[2].len() < 512, "room for addresses and for LB nodes that fail");
}

#[test]
fn what_is_not_allocated_is_not_announced_and_of_those_that_are_lb_nodes_change_nothing() {
    let mut world = World::ready();
    world.server.pool("public", json!({"addresses": ["203.0.113.10/32"]}));
    world.server.service("first", json!({}), balanced());
    world.server.service("second", json!({}), balanced());
    world.settle();
    assert_eq!(
        world.condition("second", CONDITION_ANNOUNCED),
        "False/NotAllocated: there is nothing to announce"
    );
    // LB nodes that come and go cost what `Programmed` costs, and not a write more.
    world.server.lb_node("lb-2");
    world.settle();
    world.server.lose_lb_nodes();
    world.settle();
    assert_eq!(
        world.condition("first", CONDITION_ANNOUNCED),
        "False/NotProgrammed: no LB node has it in its maps"
    );
    let statuses = world
        .actions
        .iter()
        .filter(|action| matches!(action, Action::ApplyServiceStatus { service, .. } if *service == key("first")));
    assert_eq!(statuses.count(), 3, "birth, a second LB node, no LB node");
}

#[test]
fn three_lb_nodes_that_report_one_after_another_cost_no_more_writes() {
    let mut world = World::ready();
    world.server.lb_node("lb-2");
    world.server.lb_node("lb-3");
    world.settle();
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    assert_eq!(
        world.condition("web", CONDITION_PROGRAMMED),
        "True/Programmed: on 3 of 3 LB nodes"
    );
}

#[test]
fn without_an_lb_node_it_waits_and_says_so_once() {
    let mut world = World::new();
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    assert_eq!(
        world.ingress("web"),
        [""; 0],
        "clients learn of no address that nobody serves"
    );
    assert_eq!(
        world.condition("web", CONDITION_PROGRAMMED),
        "False/NoLbNode: no LB node is alive"
    );
    assert!(world.told().contains(&"UnAvailableLoadBalancer"));
    world.server.lb_node("lb-1");
    assert_eq!(words(&world.settle()), ["status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
    assert_eq!(world.told(), ["EnsuredLoadBalancer"]);
}

#[test]
fn an_lb_node_that_cannot_program_it_keeps_clients_away_and_is_named() {
    let mut world = World::ready();
    world.server.fail_on("lb-1", "web");
    world.server.service("web", json!({}), balanced());
    world.settle();
    assert_eq!(world.ingress("web"), [""; 0]);
    let said = world.condition("web", CONDITION_PROGRAMMED);
    assert_eq!(said, "False/Failing: on 0 of 1 LB nodes; failing on lb-1: no room");
    assert!(world.told().contains(&"SyncLoadBalancerFailed"));
}

#[test]
fn an_address_that_is_taken_meanwhile_is_left_and_another_is_had() {
    let mut world = World::ready();
    world.server.service("web", json!({}), balanced());
    world.operator.catch_up(&world.server, usize::MAX);
    let mark = world.next("web");
    let Next::Do(mark, _) = mark else { panic!("{mark:?}") };
    world.server.write(&mark).unwrap();
    world.operator.catch_up(&world.server, usize::MAX);
    world.server.squat("203.0.113.10");
    let Next::Do(claim, _) = world.next("web") else {
        panic!("no claim")
    };
    assert_eq!(world.server.write(&claim), Err("taken"));
    world.server.check_claims();
    assert_eq!(words(&world.settle()), ["claim", "table", "status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.11"]);
}

#[test]
fn external_ips_are_served_where_a_pool_allows_it_and_leave_the_status_alone() {
    let mut world = World::ready();
    world.server.pool(
        "external",
        json!({"addresses": ["198.51.100.0/28"], "externalIPs": true, "autoAssign": false}),
    );
    let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.2", "externalIPs": ["198.51.100.5"],
                      "ports": [{"port": 53, "protocol": "UDP"}]});
    world.server.service("dns", json!({}), spec);
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    assert_eq!(world.table_addresses("dns"), ["198.51.100.5"]);
    assert_eq!(world.ingress("dns"), [""; 0]);
    let service = &world.server.services[&key("dns")];
    assert_eq!(
        service.metadata.finalizers.as_deref(),
        Some([FINALIZER_EXTERNAL_IPS.to_owned()].as_slice())
    );
    assert_eq!(
        world.condition("dns", CONDITION_PROGRAMMED),
        "True/Programmed: on 1 of 1 LB nodes"
    );
    assert_eq!(
        world.told(),
        ["EnsuringLoadBalancer", "IPAllocated", "EnsuredLoadBalancer"]
    );
    world.server.delete_service("dns");
    assert_eq!(words(&world.settle()), ["untable", "release", "unmark"]);
    assert!(world.server.services.is_empty());
}

#[test]
fn load_balancer_and_external_addresses_are_in_one_table() {
    let mut world = World::ready();
    world.server.pool(
        "external",
        json!({"addresses": ["198.51.100.0/28"], "externalIPs": true, "autoAssign": false}),
    );
    world
        .server
        .service("web", json!({}), with(json!({"externalIPs": ["198.51.100.5"]})));
    assert_eq!(words(&world.settle()), ["mark", "claim", "claim", "table", "status"]);
    assert_eq!(world.table_addresses("web"), ["203.0.113.10", "198.51.100.5"]);
    assert_eq!(world.ingress("web"), ["203.0.113.10"]);
}

#[test]
fn services_of_others_are_not_touched_at_all() {
    let mut world = World::ready();
    world.server.service(
        "theirs",
        json!({}),
        with(json!({"loadBalancerClass": "example.com/other"})),
    );
    let mut unclassed = balanced();
    unclassed.as_object_mut().unwrap().remove("loadBalancerClass");
    world.server.service("nobodys", json!({}), unclassed);
    world.server.service(
        "inside",
        json!({}),
        json!({"type": "ClusterIP", "clusterIP": "10.96.0.3"}),
    );
    let name = json!({"type": "ExternalName", "externalName": "example.com"});
    world.server.service("name", json!({}), name);
    assert_eq!(words(&world.settle()), [""; 0]);
    assert_eq!(world.told(), [""; 0]);
}

#[test]
fn seed_nodes_and_tunnel_are_written_once_before_any_service() {
    let mut world = World::new();
    world.server.lb_node("lb-1");
    world.settle();
    let order = words(&world.actions);
    assert_eq!(order.iter().filter(|word| **word == "seed").count(), 1);
    assert_eq!(order.iter().filter(|word| **word == "nodes").count(), 1);
    assert_eq!(order.iter().filter(|word| **word == "tunnel").count(), 1);
    assert_eq!(order[..2], ["seed", "nodes"]);
    let nodes: Vec<&str> = world.server.sets["workers-0"]
        .spec
        .nodes
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    assert_eq!(nodes, ["worker-1"]);
    assert_eq!(world.server.tunnel.as_ref().unwrap().spec.sources, ["192.0.2.1/32"]);
}

#[test]
fn a_cluster_with_nothing_in_it_has_a_tunnel_config_that_accepts_nothing() {
    let mut world = World::new();
    world.server = super::world::Server::default();
    world.operator = Operator::start(&world.server, world.settings.clone());
    world.settle();
    let tunnel = world.server.tunnel.clone().expect("workers wait for it");
    assert!(tunnel.spec.sources.is_empty() && tunnel.spec.vip_prefixes.is_empty());
    let writes = world.actions.len();
    world.settle();
    assert_eq!(world.actions.len(), writes, "once");
}
