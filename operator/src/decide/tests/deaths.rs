//! Deaths, changes of type, and what is let go.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use operator_api::CONDITION_ALLOCATED;
use serde_json::json;

use super::{
    balanced, with, words,
    world::{NAMESPACE, World, key},
};
use crate::{
    Subject,
    decide::{Action, Next},
    index::Settings,
};

fn served() -> World {
    let mut world = World::ready();
    world.server.service("web", json!({}), balanced());
    world.settle();
    world.told();
    world
}

fn has_nothing_of_ours(world: &World, name: &str) {
    has_nothing_of_ours_but(world, name, &[]);
}

fn has_nothing_of_ours_but(world: &World, name: &str, finalizers: &[&str]) {
    let service = &world.server.services[&key(name)];
    assert_eq!(service.metadata.finalizers.clone().unwrap_or_default(), finalizers);
    assert!(
        !service
            .metadata
            .annotations
            .iter()
            .flatten()
            .any(|(name, _)| name.starts_with("vipline.dev/ip-"))
    );
    assert_eq!(crate::decide::conditions::of(service), []);
    assert!(world.server.claims.is_empty() && world.server.tables.is_empty());
}

#[test]
fn deletion_takes_status_table_claim_and_finalizer_in_this_order() {
    let mut world = served();
    world.server.delete_service("web");
    assert_eq!(words(&world.settle()), ["clear", "untable", "release", "unmark"]);
    assert!(world.server.services.is_empty() && world.server.claims.is_empty());
    assert_eq!(world.told(), ["DeletingLoadBalancer", "DeletedLoadBalancer"]);
}

#[test]
fn one_that_others_keep_from_going_loses_its_status_first() {
    let mut world = served();
    world.server.change("web", |service| {
        service
            .metadata
            .finalizers
            .get_or_insert_default()
            .push("example.com/theirs".to_owned());
    });
    world.server.delete_service("web");
    assert_eq!(words(&world.settle()), ["clear", "untable", "release", "unmark"]);
    assert_eq!(world.ingress("web"), [""; 0]);
    has_nothing_of_ours_but(&world, "web", &["example.com/theirs"]);
}

#[test]
fn while_the_finalizer_cannot_be_taken_the_status_names_no_address_that_another_may_have() {
    let mut world = served();
    world.server.delete_service("web");
    // A webhook refuses that write, for as long as it likes.
    loop {
        world.operator.catch_up(&world.server, usize::MAX);
        let Next::Do(action, _) = world.next("web") else {
            panic!("it is not done")
        };
        if matches!(*action, Action::ReplaceServiceMeta { .. }) {
            break;
        }
        world.server.write(&action).unwrap();
        world.server.check_clients();
    }
    assert!(world.server.claims.is_empty());
    world
        .server
        .service("next", json!({}), with(json!({"clusterIP": "10.96.0.9"})));
    let next = Subject::Service(key("next"));
    while world.work(&next) || world.server.program() {}
    assert_eq!(world.ingress("next"), ["203.0.113.10"]);
    assert_eq!(world.ingress("web"), [""; 0]);
}

#[test]
fn leaving_load_balancer_clears_the_status_and_coming_back_is_a_new_birth() {
    for kind in ["ClusterIP", "NodePort"] {
        let mut world = served();
        world.server.service(
            "web",
            json!({}),
            json!({"type": kind, "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
        );
        assert_eq!(words(&world.settle()), ["untable", "release", "unmark", "clear"]);
        assert_eq!(world.ingress("web"), [""; 0]);
        has_nothing_of_ours(&world, "web");
        world.server.service("web", json!({}), balanced());
        assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
        assert_eq!(world.ingress("web"), ["203.0.113.10"]);
        world.server.service(
            "web",
            json!({}),
            json!({"type": "ExternalName", "externalName": "example.com"}),
        );
        world.settle();
        has_nothing_of_ours(&world, "web");
    }
}

#[test]
fn between_load_balancer_and_external_ips_the_finalizer_changes() {
    let mut world = served();
    world.server.pool(
        "external",
        json!({"addresses": ["198.51.100.0/28"], "externalIPs": true, "autoAssign": false}),
    );
    let external = json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "externalIPs": ["198.51.100.5"],
                          "ports": [{"port": 80, "protocol": "TCP"}]});
    world.server.service("web", json!({}), external);
    world.settle();
    let finalizers = |world: &World| world.server.services[&key("web")].metadata.finalizers.clone().unwrap();
    assert_eq!(finalizers(&world), [operator_api::FINALIZER_EXTERNAL_IPS]);
    let annotations = world.server.services[&key("web")].metadata.annotations.clone();
    assert_eq!(
        annotations.unwrap_or_default().len(),
        0,
        "it has no address from a pool any more"
    );
    assert_eq!(world.table_addresses("web"), ["198.51.100.5"]);
    assert_eq!(world.ingress("web"), [""; 0]);
    assert_eq!(world.server.claims.keys().collect::<Vec<_>>(), ["198.51.100.5"]);
    world.server.service("web", json!({}), balanced());
    world.settle();
    assert_eq!(finalizers(&world), [operator_api::FINALIZER]);
    assert_eq!(world.table_addresses("web"), ["203.0.113.10"]);
    assert_eq!(world.server.claims.keys().collect::<Vec<_>>(), ["203.0.113.10"]);
}

fn selecting() -> Settings {
    Settings {
        namespace: NAMESPACE.to_owned(),
        class: super::world::CLASS.to_owned(),
        default_class: false,
        service_selector: Some(LabelSelector {
            match_labels: Some([("vipline".to_owned(), "yes".to_owned())].into()),
            ..LabelSelector::default()
        }),
    }
}

fn adopted() -> World {
    let mut world = World::with(selecting());
    world.server.lb_node("lb-1");
    let mut spec = balanced();
    spec.as_object_mut().unwrap().remove("loadBalancerClass");
    world.server.service("web", json!({}), spec);
    world.server.change("web", |service| {
        service.status =
            serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.14", "ipMode": "VIP"}]}}))
                .unwrap();
    });
    assert_eq!(words(&world.settle()), [""; 0], "not selected: not touched");
    select(&mut world, true);
    world
}

fn select(world: &mut World, selected: bool) {
    world.server.change("web", |service| {
        let label = ("vipline".to_owned(), "yes".to_owned());
        service.metadata.labels = selected.then(|| [label].into());
    });
}

#[test]
fn a_service_that_is_selected_keeps_its_address_and_keeps_it_when_it_is_let_go() {
    let mut world = adopted();
    assert_eq!(words(&world.settle()), ["mark", "claim", "table", "status"]);
    assert_eq!(world.ingress("web"), ["203.0.113.14"]);
    select(&mut world, false);
    assert_eq!(words(&world.settle()), ["untable", "release", "unmark", "clear"]);
    assert_eq!(
        world.ingress("web"),
        ["203.0.113.14"],
        "whoever serves it next goes on with it"
    );
    has_nothing_of_ours(&world, "web");
    select(&mut world, true);
    world.settle();
    assert_eq!(world.ingress("web"), ["203.0.113.14"]);
}

#[test]
fn what_is_left_of_a_service_whose_finalizer_was_taken_is_swept_after_a_minute() {
    let mut world = served();
    world.server.force_delete_service("web");
    assert!(world.server.services.is_empty());
    world.settle();
    assert_eq!(world.server.claims.len(), 1, "it may only not have been heard of yet");
    world.server.later(61);
    assert_eq!(words(&world.settle()), ["untable", "release"]);
}

#[test]
fn a_new_life_gets_a_table_and_an_address_of_its_own() {
    let mut world = served();
    world.server.force_delete_service("web");
    world.server.service("web", json!({}), balanced());
    assert_eq!(words(&world.settle()), ["mark", "claim", "untable", "table", "status"]);
    assert_eq!(
        world.ingress("web"),
        ["203.0.113.11"],
        "the old claim is not released yet"
    );
    world.server.later(61);
    assert_eq!(words(&world.settle()), ["release"]);
    assert_eq!(world.table_addresses("web"), ["203.0.113.11"]);
}

#[test]
fn a_failed_service_leaves_no_more_than_it_got() {
    let mut world = World::ready();
    world
        .server
        .service("web", json!({"vipline.dev/address-pool": "nowhere"}), balanced());
    assert_eq!(words(&world.settle()), ["status"]);
    assert!(
        world
            .condition("web", CONDITION_ALLOCATED)
            .contains("pool nowhere does not exist")
    );
    world
        .server
        .service("web", json!({}), json!({"type": "ClusterIP", "clusterIP": "10.96.0.1"}));
    let actions = world.settle();
    assert!(
        matches!(&actions[..], [Action::ReplaceServiceStatus { .. }]),
        "{actions:?}"
    );
    has_nothing_of_ours(&world, "web");
}

#[test]
fn a_headless_service_is_told_that_it_has_no_vip() {
    let mut world = World::ready();
    world
        .server
        .service("web", json!({}), with(json!({"clusterIP": "None"})));
    assert_eq!(words(&world.settle()), ["clear"]);
    assert!(
        world
            .condition("web", operator_api::CONDITION_ACCEPTED)
            .starts_with("False/Headless")
    );
    assert_eq!(world.told(), ["SyncLoadBalancerFailed"]);
}

/// A Service of another class with what an operator of ours left on it, as both ways lead to it.
fn left_to_another_class(world: &mut World) {
    world.server.change("web", |service| {
        service.spec.as_mut().unwrap().load_balancer_class = Some("example.com/other".to_owned());
        service
            .metadata
            .finalizers
            .get_or_insert_default()
            .push("example.com/theirs".to_owned());
        service.status.get_or_insert_default().load_balancer =
            serde_json::from_value(json!({"ingress": [{"ip": "192.0.2.99"}]})).unwrap();
    });
}

#[test]
fn one_that_goes_to_another_class_keeps_nothing_of_ours_and_all_of_theirs() {
    let mut world = served();
    left_to_another_class(&mut world);
    assert_eq!(words(&world.settle()), ["untable", "unmark", "clear", "release"]);
    has_nothing_of_ours_but(&world, "web", &["example.com/theirs"]);
    assert_eq!(world.ingress("web"), ["192.0.2.99"], "the status is theirs");
    let writes = world.actions.len();
    world.settle();
    assert_eq!(world.actions.len(), writes, "and then it is not touched at all");
}

#[test]
fn one_with_external_ips_that_goes_to_another_class_can_be_deleted() {
    let mut world = World::ready();
    world.server.pool(
        "external",
        json!({"addresses": ["198.51.100.0/28"], "externalIPs": true, "autoAssign": false}),
    );
    let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.2", "externalIPs": ["198.51.100.5"],
                      "ports": [{"port": 53, "protocol": "UDP"}]});
    world.server.service("web", json!({}), spec);
    world.settle();
    world.server.service(
        "web",
        json!({}),
        with(json!({"loadBalancerClass": "example.com/other"})),
    );
    // The other provider's: nothing shows that it is ours.
    world.server.change("web", |service| {
        let finalizers = service.metadata.finalizers.get_or_insert_default();
        finalizers.push(operator_api::FINALIZER.to_owned());
    });
    world.settle();
    has_nothing_of_ours_but(&world, "web", &[operator_api::FINALIZER]);
}

#[test]
fn when_the_operators_class_is_another_a_deleted_service_of_the_old_one_goes() {
    let mut world = served();
    world.settings.class = "example.com/new".to_owned();
    world.server.delete_service("web");
    world.operator = super::world::Operator::start(&world.server, world.settings.clone());
    world.settle();
    assert!(world.server.services.is_empty() && world.server.claims.is_empty());
}

#[test]
fn headless_and_external_name_services_with_external_ips_are_told_why_they_are_not_served() {
    for (spec, reason) in [
        (json!({"type": "ClusterIP", "clusterIP": "None"}), "Headless"),
        (
            json!({"type": "ExternalName", "externalName": "example.com"}),
            "ExternalName",
        ),
    ] {
        let mut world = World::ready();
        let mut asking = spec.clone();
        asking["externalIPs"] = json!(["198.51.100.5"]);
        world.server.service("web", json!({}), asking);
        assert_eq!(words(&world.settle()), ["clear"], "{reason}");
        let said = world.condition("web", operator_api::CONDITION_ACCEPTED);
        assert!(said.starts_with(&format!("False/{reason}")), "{said}");
        assert_eq!(world.told(), ["SyncLoadBalancerFailed"], "{reason}");
        world.server.service("web", json!({}), spec);
        assert_eq!(
            words(&world.settle()),
            ["clear"],
            "{reason}: it asks for nothing any more"
        );
        has_nothing_of_ours(&world, "web");
    }
}
