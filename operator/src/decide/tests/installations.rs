//! Another operator, of another installation, looks at the same cluster.

use operator_api::CONDITION_ALLOCATED;
use serde_json::json;

use super::{
    balanced, with, words,
    world::{CLASS, NAMESPACE, Operator, World, key},
};
use crate::{Subject, index::Settings};

fn here() -> Settings {
    Settings {
        namespace: NAMESPACE.to_owned(),
        class: CLASS.to_owned(),
        default_class: false,
        service_selector: None,
    }
}

fn there() -> Settings {
    Settings {
        namespace: "there".to_owned(),
        class: "example.com/there".to_owned(),
        ..here()
    }
}

/// From now on this one works.
fn change_operator(world: &mut World, settings: Settings) {
    world.operator = Operator::start(&world.server, settings.clone());
    world.settings = settings;
    world.actions.clear();
    world.notes.clear();
}

/// Services of these names, and what is left behind by others.
fn look_at(world: &mut World, names: &[&str]) -> Vec<&'static str> {
    let from = world.actions.len();
    for name in names {
        world.work(&Subject::Service(key(name)));
    }
    world.work(&Subject::Orphans);
    words(&world.actions[from..])
}

fn served() -> World {
    let mut world = World::ready();
    world.server.service("web", json!({}), balanced());
    world.settle();
    world
}

fn of_class(class: &str) -> serde_json::Value {
    with(json!({"loadBalancerClass": class}))
}

#[test]
fn claims_of_another_installation_are_let_alone_and_taken() {
    let mut world = served();
    let claims = world.server.claims.clone();
    change_operator(&mut world, there());
    assert_eq!(look_at(&mut world, &["web"]), [""; 0]);
    // The Service goes without its finalizer: only its own operator sweeps.
    world.server.force_delete_service("web");
    world.server.later(3600);
    assert_eq!(look_at(&mut world, &["web"]), [""; 0]);
    assert_eq!(world.server.claims, claims);
    let asks = json!({"vipline.dev/load-balancer-ips": "203.0.113.10"});
    world.server.service("asks", asks, of_class(&there().class));
    assert_eq!(
        look_at(&mut world, &["asks"])
            .iter()
            .filter(|word| **word == "claim")
            .count(),
        0
    );
    assert!(
        world.condition("asks", CONDITION_ALLOCATED).contains(
            "203.0.113.10 is held by the installation vipline-system/vipline-operator for Service default/web"
        ),
        "{}",
        world.condition("asks", CONDITION_ALLOCATED)
    );
    let told = world.notes.iter().find(|note| note.reason == "AllocationFailed");
    assert!(
        told.unwrap()
            .message
            .contains("installation vipline-system/vipline-operator")
    );
    world.server.service("any", json!({}), of_class(&there().class));
    assert!(look_at(&mut world, &["any"]).contains(&"claim"));
    assert_eq!(
        world.server.claims["203.0.113.11"].spec.installation.as_deref(),
        Some("there/vipline-operator")
    );
    // Its own operator does sweep, and then the address is free.
    change_operator(&mut world, here());
    assert_eq!(look_at(&mut world, &[]), [""; 0], "it has only just heard of them");
    world.server.later(3600);
    assert_eq!(look_at(&mut world, &[]), ["untable", "release"]);
    assert_eq!(world.server.claims.keys().collect::<Vec<_>>(), ["203.0.113.11"]);
    change_operator(&mut world, there());
    assert!(look_at(&mut world, &["asks"]).contains(&"claim"));
    assert!(world.server.claims.contains_key("203.0.113.10"));
}

#[test]
fn claims_that_do_not_say_whose_they_are_are_taken_over_by_who_serves_them() {
    let mut world = served();
    world.server.forget_installations();
    change_operator(&mut world, there());
    assert_eq!(look_at(&mut world, &["web"]), [""; 0], "they may be of others");
    change_operator(&mut world, here());
    assert_eq!(look_at(&mut world, &["web"]), ["reclaim"], "once");
    assert_eq!(look_at(&mut world, &["web"]), [""; 0]);
    let claim = &world.server.claims["203.0.113.10"];
    assert_eq!(
        claim.spec.installation.as_deref(),
        Some("vipline-system/vipline-operator")
    );
}

#[test]
fn a_service_that_left_while_nobody_looked_gives_back_what_it_had_though_its_claim_does_not_say_whose_it_is() {
    let mut world = served();
    world.server.forget_installations();
    world.server.service("web", json!({}), of_class("example.com/gone"));
    change_operator(&mut world, here());
    assert_eq!(
        look_at(&mut world, &["web"]),
        ["reclaim", "untable", "unmark", "clear", "release"]
    );
    assert!(world.server.claims.is_empty() && world.server.tables.is_empty());
}

#[test]
fn what_the_operator_of_another_class_wrote_on_its_service_stays_though_there_is_no_claim() {
    let mut world = World::ready();
    world.server.pool("public", json!({"addresses": ["203.0.113.10/32"]}));
    for name in ["has", "waits"] {
        world.server.service(name, json!({}), balanced());
    }
    world.settle();
    assert!(world.condition("waits", CONDITION_ALLOCATED).starts_with("False/"));
    change_operator(&mut world, there());
    assert_eq!(look_at(&mut world, &["has", "waits"]), [""; 0]);
}

#[test]
fn external_ips_without_a_class_stay_with_who_has_claimed_them() {
    let mut world = World::ready();
    world.server.pool(
        "external",
        json!({"addresses": ["198.51.100.0/30"], "externalIPs": true, "autoAssign": false}),
    );
    let spec = json!({
        "type": "ClusterIP", "clusterIP": "10.96.0.9", "externalIPs": ["198.51.100.1"], "ipFamilies": ["IPv4"],
        "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
    });
    world.server.service("named", json!({}), spec);
    world.settle();
    assert_eq!(world.table_addresses("named"), ["198.51.100.1"]);
    change_operator(&mut world, there());
    assert_eq!(
        look_at(&mut world, &["named"]),
        [""; 0],
        "its conditions would be written to and fro"
    );
    world.server.delete_service("named");
    assert_eq!(look_at(&mut world, &["named"]), [""; 0]);
    change_operator(&mut world, here());
    assert_eq!(look_at(&mut world, &["named"]), ["untable", "release", "unmark"]);
}
