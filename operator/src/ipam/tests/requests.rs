//! What is asked for by name; what is adopted; what is absurd.

use operator_api::{AddressClaim, AddressClaimSpec};

use super::world::{World, dual, ip, pool, ports, request, with};
use crate::ipam::{ClaimWrite, Request};

fn world() -> World {
    World::new(&[
        pool("p", 1, &["10.0.0.0/24", "fd00::/120"]),
        pool("q", 2, &["10.1.0.0/24"]),
    ])
}

fn named(name: &str, addresses: &[&str]) -> Request {
    Request {
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        ..request(name)
    }
}

#[test]
fn what_cannot_be_had_by_name_is_told_and_nothing_else_is_given() {
    let mut world = world();
    world.pools.apply(&with(pool("r", 3, &["10.2.0.0/24"]), |spec| {
        spec.namespaces = vec!["other".into()]
    }));
    world.pools.apply(&pool("late", 9, &["10.0.0.128-10.3.0.255"]));
    world
        .pools
        .apply(&pool("broken", 4, &["10.4.0.0/24", "10.9.0.0-10.8.0.0"]));
    world.settle(&named("first", &["10.0.0.1"]));
    let in_pool = |request: Request, pool: &str| Request {
        pool: Some(pool.into()),
        ..request
    };
    let cases = [
        (
            named("s", &["10.0.0.1"]),
            "10.0.0.1 is taken by Service web/first: name another, or give both the same sharing key",
        ),
        (
            named("s", &["172.16.0.1"]),
            "172.16.0.1 is in no pool: add it to one, or name another",
        ),
        (
            named("s", &["10.2.0.1"]),
            "pool r is not for namespace web: see its namespaces and namespaceSelector",
        ),
        (
            named("s", &["10.3.0.1"]),
            "pool late hands nothing out because it overlaps with pool p: take the overlap out of one of them",
        ),
        (
            named("s", &["10.4.0.1"]),
            "pool broken hands nothing out until it is corrected: spec.addresses[1]: \"10.9.0.0-10.8.0.0\" ends before it begins",
        ),
        (
            named("s", &["fd00::1"]),
            "fd00::1 is IPv6, which is not in the Service's ipFamilies",
        ),
        (
            named("s", &["10.0.0.2", "10.0.0.3"]),
            "10.0.0.3 is a second address of its family: a Service has at most one of each",
        ),
        (
            named("s", &["169.254.1.1"]),
            "169.254.1.1 is link-local: it cannot be load balanced",
        ),
        (
            named("s", &["224.0.0.1"]),
            "224.0.0.1 is multicast: it cannot be load balanced",
        ),
        (
            in_pool(named("s", &["10.0.0.2"]), "q"),
            "10.0.0.2 is not in pool q, which the Service names as well",
        ),
        (
            in_pool(named("s", &["10.0.0.2"]), "gone"),
            "pool gone does not exist: create it, or name another",
        ),
        (
            in_pool(dual("s", true), "q"),
            "pool q has no IPv6 addresses: add some, or name another",
        ),
    ];
    for (request, said) in cases {
        let outcome = world.settle(&request);
        assert!(outcome.assignments.is_empty(), "{said}: {outcome:?}");
        assert_eq!(outcome.problems[0].to_string(), said);
    }
    assert_eq!(world.claims.len(), 1);
    let mapped = Request {
        addresses: vec![ip("::ffff:10.0.0.9")],
        ..dual("s", true)
    };
    assert_eq!(
        world.problems(&mapped)[0],
        "::ffff:10.0.0.9 is IPv4-mapped: it cannot be load balanced"
    );
}

#[test]
fn what_is_live_stays_until_what_is_asked_for_can_be_had() {
    let mut world = world();
    world.settle(&named("first", &["10.0.0.1"]));
    assert_eq!(world.addresses(&request("s")), ["10.0.0.0"]);
    let moved = named("s", &["10.0.0.1"]);
    assert_eq!(world.addresses(&moved), ["10.0.0.0"]);
    assert_eq!(world.problems(&moved).len(), 1);
    let elsewhere = Request {
        pool: Some("gone".into()),
        ..request("s")
    };
    assert_eq!(world.addresses(&elsewhere), ["10.0.0.0"]);
    assert_eq!(world.problems(&elsewhere).len(), 1);
    world.delete(&named("first", &[]));
    let outcome = world.ask(&moved);
    assert_eq!(outcome.assignments[0].address, ip("10.0.0.1"));
    assert_eq!(world.addresses(&moved), ["10.0.0.1"]);
    assert_eq!(world.claims.len(), 1, "the old one is released in the end");
}

#[test]
fn make_before_break_the_old_claim_is_held_until_the_new_one_is_in_the_status() {
    let mut world = world();
    world.settle(&request("s"));
    let moved = Request {
        pool: Some("q".into()),
        ..request("s")
    };
    let outcome = world.ask(&moved);
    assert!(matches!(outcome.next, Some(ClaimWrite::Create(_))));
    assert_eq!((outcome.surplus.len(), outcome.surplus[0].serve), (1, true));
    assert_eq!(world.addresses(&moved), ["10.1.0.0"]);
    let back = request("s");
    assert_eq!(
        world.addresses(&back),
        ["10.1.0.0"],
        "a pool that is not asked for any more moves nobody"
    );
}

#[test]
fn an_address_in_the_status_is_adopted_where_a_pool_has_it_and_nobody_else_does() {
    let mut world = world();
    let live = |name, address: &str| Request {
        current: vec![ip(address)],
        ..request(name)
    };
    assert_eq!(world.addresses(&live("metallb", "10.1.0.77")), ["10.1.0.77"]);
    assert_eq!(world.addresses(&live("thief", "10.1.0.77")), ["10.0.0.0"]);
    assert_eq!(world.addresses(&live("elsewhere", "172.16.0.1")), ["10.0.0.1"]);
    // Even where the pool would not hand it out: the Service has it.
    world.pools.apply(&with(pool("q", 2, &["10.1.0.0/24"]), |spec| {
        spec.auto_assign = false;
        spec.avoid_buggy_ips = true;
        spec.namespaces = vec!["other".into()];
    }));
    assert_eq!(world.addresses(&live("old", "10.1.0.255")), ["10.1.0.255"]);
    let other_pool = Request {
        pool: Some("p".into()),
        ..live("moving", "10.1.0.5")
    };
    assert_eq!(world.addresses(&other_pool), ["10.0.0.2"], "unless it asks for another");
}

#[test]
fn a_claim_of_an_earlier_life_is_not_ones_own() {
    let mut world = world();
    world.settle(&named("s", &["10.0.0.5"]));
    let mut reborn = named("s", &["10.0.0.5"]);
    reborn.service.uid = "web-s-2".into();
    let said = "10.0.0.5 is still held by the deleted Service web/s of the same name: it is released first";
    assert_eq!(world.problems(&reborn), [said]);
    let any = Request {
        addresses: Vec::new(),
        ..reborn
    };
    assert_eq!(world.addresses(&any), ["10.0.0.0"]);
    assert_eq!(
        world.claims.of_service(&crate::ipam::key_of(&any.service)).count(),
        2,
        "both lives"
    );
}

#[test]
fn of_two_claims_one_is_kept_and_the_other_is_surplus() {
    let mut world = world();
    for address in ["10.0.0.7", "10.0.0.9"] {
        let outcome = world.ask(&named("s", &[address]));
        world.write(&outcome.next.unwrap());
    }
    assert_eq!(world.ask(&request("s")).assignments[0].address, ip("10.0.0.7"));
    let live = Request {
        current: vec![ip("10.0.0.9")],
        ..request("s")
    };
    let outcome = world.ask(&live);
    assert_eq!(
        (outcome.assignments[0].address, outcome.surplus[0].address),
        (ip("10.0.0.9"), ip("10.0.0.7"))
    );
}

#[test]
fn claims_that_nobody_of_us_wrote_are_taken_addresses_and_never_a_panic() {
    let mut world = world();
    let claim = |name: &str, address: &str| {
        let spec = AddressClaimSpec {
            address: address.to_owned(),
            installation: None,
            pool: String::new(),
            sharing_key: Some("k".into()),
            holders: Vec::new(),
        };
        AddressClaim::new(name, spec)
    };
    assert!(!world.claims.apply(&claim("no-address", "10.0.0.0")));
    assert!(!world.claims.apply(&claim("10.0.0.00", "10.0.0.0")));
    assert!(!world.claims.apply(&claim("fd00--1", "fd00::1")), "not the long form");
    assert!(!world.claims.delete("rubbish"));
    assert!(world.claims.apply(&claim("10.0.0.0", "10.0.0.9")));
    assert_eq!(world.ask(&request("s")).assignments[0].address, ip("10.0.0.1"));
    let outcome = world.ask(&named("s", &["10.0.0.0"]));
    assert_eq!(
        outcome.problems[0].to_string(),
        "AddressClaim 10.0.0.0 does not say who has 10.0.0.0: delete it if nobody does"
    );
    // One without holders is anybody's.
    assert!(world.claims.apply(&claim("10.0.0.2", "10.0.0.2")));
    assert!(matches!(
        world.ask(&named("s", &["10.0.0.2"])).next,
        Some(ClaimWrite::Replace(_))
    ));
}

#[test]
fn a_service_without_ports_keeps_what_it_has_and_writes_nothing() {
    let mut world = world();
    let none = Request {
        ports: ports(""),
        ..request("s")
    };
    assert_eq!(world.problems(&none), ["the Service has no port that can be served"]);
    world.settle(&request("s"));
    let outcome = world.settle(&none);
    assert_eq!(
        (outcome.assignments.len(), outcome.next, outcome.surplus.len()),
        (1, None, 0)
    );
}

#[test]
fn services_in_flight_together_are_offered_different_addresses() {
    let mut world = world();
    let first = world.ask(&request("a")).assignments[0].address;
    world.claims.reserve(first);
    let second = world.ask(&request("b")).assignments[0].address;
    assert_eq!((first, second), (ip("10.0.0.0"), ip("10.0.0.1")));
    world.claims.unreserve(first);
    assert_eq!(world.ask(&request("b")).assignments[0].address, first);
}

#[test]
fn whatever_is_asked_and_claimed_nothing_panics() {
    let mut world = world();
    let mut odd = dual("s", true);
    odd.families = vec![odd.families[1], odd.families[0], odd.families[1]];
    odd.addresses = vec![
        ip("::"),
        ip("0.0.0.0"),
        ip("255.255.255.255"),
        ip("ff02::1"),
        ip("fd00::1"),
        ip("fd00::1"),
    ];
    odd.external = vec![ip("::1"), ip("fe80::1"), ip("255.255.255.255")];
    odd.current = vec![ip("::ffff:1.2.3.4"), ip("127.0.0.1")];
    odd.pool = Some(String::new());
    let outcome = world.settle(&odd);
    assert!(
        outcome.assignments.is_empty() && outcome.problems.len() > 5,
        "{outcome:?}"
    );
}
