//! One family, both preferred, both required; MetalLB's PREFER DUALSTACK cases and `IP Assignment` of its end-to-end suite.

use operator_api::AddressPool;

use super::world::{World, dual, ip, labels, pool, request, selector, with};
use crate::ipam::{Family, Request};

const V4: &str = "192.168.10.100/32";
const V6: &str = "fc00:f853:ccd:e799::/124";

fn only_v4() -> AddressPool {
    pool("ipv4", 1, &[V4])
}

fn only_v6() -> AddressPool {
    pool("ipv6", 2, &[V6])
}

fn both() -> AddressPool {
    pool("dual", 3, &["192.168.11.100/32", "fc00:f853:ccd:e800::/124"])
}

fn v6_first(name: &str, require_all: bool) -> Request {
    Request {
        families: vec![Family::V6, Family::V4],
        ..dual(name, require_all)
    }
}

fn pools_of(world: &mut World, request: &Request) -> Vec<String> {
    world
        .settle(request)
        .assignments
        .into_iter()
        .map(|wish| wish.pool)
        .collect()
}

#[test]
fn a_pool_with_both_families_is_preferred() {
    let mut world = World::new(&[only_v4(), only_v6(), both()]);
    assert_eq!(pools_of(&mut world, &dual("s1", false)), ["dual", "dual"]);
    assert_eq!(
        pools_of(&mut world, &dual("s2", true)),
        ["ipv4", "dual"],
        "dual has no IPv4 left"
    );
}

#[test]
fn without_such_a_pool_each_family_comes_from_its_own_first_family_first() {
    let mut world = World::new(&[only_v6(), only_v4()]);
    assert_eq!(
        pools_of(&mut world, &dual("s1", false)),
        ["ipv4", "ipv6"],
        "MetalLB gives IPv4 only"
    );
    let mut world = World::new(&[only_v4(), only_v6()]);
    assert_eq!(
        pools_of(&mut world, &v6_first("s1", false)),
        ["ipv6", "ipv4"],
        "MetalLB gives IPv6 only"
    );
}

#[test]
fn one_family_is_enough_where_both_are_only_preferred() {
    for (pool, expected) in [(only_v4(), "192.168.10.100"), (only_v6(), "fc00:f853:ccd:e799::")] {
        let mut world = World::new(&[pool]);
        let outcome = world.settle(&dual("s1", false));
        assert_eq!(outcome.assignments[0].address, ip(expected));
        assert_eq!((outcome.problems.len(), outcome.missing.len()), (0, 1));
        let none = world.settle(&dual("s2", true));
        assert!(
            none.assignments.is_empty() && none.next.is_none(),
            "nothing is taken in vain"
        );
    }
}

#[test]
fn the_other_family_is_added_when_the_pool_gets_it() {
    let mut world = World::new(&[pool("pool1", 1, &[V4])]);
    assert_eq!(world.addresses(&dual("s1", false)), ["192.168.10.100"]);
    world.pools.apply(&pool("pool1", 1, &["192.168.10.100/24", V6]));
    assert_eq!(
        world.addresses(&dual("s1", false)),
        ["192.168.10.100", "fc00:f853:ccd:e799::"]
    );
}

#[test]
fn a_live_service_is_not_taken_down_for_requiring_both_but_a_new_one_gets_neither() {
    let mut world = World::new(&[pool("pool1", 1, &["192.168.10.100/31"])]);
    assert_eq!(world.addresses(&dual("s1", false)), ["192.168.10.100"]);
    let outcome = world.settle(&dual("s1", true));
    assert_eq!(outcome.assignments.len(), 1, "MetalLB takes it away");
    let said: Vec<String> = outcome.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "no pool gives IPv6 addresses to this Service by itself: create one, or name a pool or an address",
            "ipFamilyPolicy requires both families, and IPv6 cannot be had: see the other reasons, or use PreferDualStack",
        ]
    );
    assert_eq!(world.addresses(&dual("s1", false)), ["192.168.10.100"]);
    assert!(world.settle(&dual("s2", true)).assignments.is_empty());
    assert_eq!(world.claims.len(), 1);
}

#[test]
fn a_service_does_not_jump_to_a_better_pool_that_comes_later() {
    let mut world = World::new(&[only_v4()]);
    assert_eq!(pools_of(&mut world, &dual("s1", false)), ["ipv4"]);
    world.pools.apply(&both());
    assert_eq!(
        pools_of(&mut world, &dual("s1", false)),
        ["ipv4", "dual"],
        "and gets what was missing"
    );
}

#[test]
fn a_service_stays_where_it_is_when_its_pool_loses_a_family() {
    let mut world = World::new(&[pool("pool1", 1, &[V4, V6])]);
    let before = world.addresses(&dual("s1", false));
    world.pools.reset(&[pool("pool1", 1, &[V6]), both()]);
    let outcome = world.settle(&dual("s1", false));
    let after: Vec<String> = outcome
        .assignments
        .iter()
        .map(|wish| wish.address.to_string())
        .collect();
    assert_eq!(after, before, "MetalLB moves both to the other pool");
    assert_eq!(outcome.outside, [ip("192.168.10.100")]);
}

#[test]
fn a_family_that_is_not_asked_for_any_more_is_given_back_and_one_more_is_added() {
    let mut world = World::new(&[both()]);
    assert_eq!(world.addresses(&request("s1")), ["192.168.11.100"]);
    assert_eq!(world.addresses(&dual("s1", true)).len(), 2, "upgrade");
    assert_eq!(
        world.addresses(&v6_first("s1", true)),
        ["fc00:f853:ccd:e800::", "192.168.11.100"],
        "order"
    );
    let v6 = Request {
        families: vec![Family::V6],
        ..request("s1")
    };
    assert_eq!(world.addresses(&v6), ["fc00:f853:ccd:e800::"], "downgrade");
    assert_eq!(world.claims.len(), 1);
}

#[test]
fn the_family_that_is_missing_comes_from_the_pool_of_the_other() {
    let mut world = World::new(&[
        pool("one", 1, &["10.0.0.0/24", "fd00::/120"]),
        pool("two", 2, &["10.1.0.0/24", "fd01::/120"]),
    ]);
    let named = Request {
        addresses: vec![ip("10.1.0.9")],
        ..dual("s1", true)
    };
    assert_eq!(world.addresses(&named), ["10.1.0.9", "fd01::"]);
}

#[test]
fn an_address_is_given_to_the_next_who_waits() {
    let mut world = World::new(&[only_v4()]);
    assert_eq!(world.addresses(&request("singleip")), ["192.168.10.100"]);
    let said = world.problems(&request("singleip1"));
    assert_eq!(
        said,
        ["no IPv4 address is free in pool ipv4: add addresses or delete Services"]
    );
    world.delete(&request("singleip"));
    assert_eq!(world.addresses(&request("singleip1")), ["192.168.10.100"]);
}

#[test]
fn after_a_restart_everybody_has_the_same_and_nothing_is_written() {
    let mut world = World::new(&[pool("p", 1, &["192.168.10.100/32", "192.168.20.200/32"])]);
    let names = ["a", "b", "c", "d"];
    let before: Vec<Vec<String>> = names.iter().map(|name| world.addresses(&request(name))).collect();
    assert_eq!(before, [vec!["192.168.10.100"], vec!["192.168.20.200"], vec![], vec![]]);
    for _ in 0..5 {
        world.claims.reset(world.server.claims.values());
        for (name, before) in names.iter().zip(&before) {
            let outcome = world.ask(&request(name));
            assert!(outcome.next.is_none() && outcome.surplus.is_empty());
            assert_eq!(world.addresses(&request(name)), *before);
        }
    }
}

#[test]
fn pools_are_tried_by_priority_those_for_some_before_those_for_all() {
    let for_web = |name, age, addresses: &[&str], priority| {
        with(pool(name, age, addresses), |spec| {
            spec.namespaces = vec!["web".into()];
            spec.priority = priority;
        })
    };
    let mut world = World::new(&[
        for_web("low", 1, &["192.168.5.0/32"], Some(20)),
        for_web("high", 2, &["192.168.10.0/32"], Some(10)),
        for_web("none", 3, &["192.168.20.0/32"], None),
        pool("all", 0, &["192.168.30.0/32"]),
    ]);
    let order: Vec<String> = ["s1", "s2", "s3", "s4"]
        .iter()
        .flat_map(|name| pools_of(&mut world, &request(name)))
        .collect();
    assert_eq!(order, ["high", "low", "none", "all"]);

    let prioritized = |name, age, addresses: &[&str], priority| {
        with(pool(name, age, addresses), |spec| spec.priority = Some(priority))
    };
    let mut world = World::new(&[
        prioritized("a", 1, &["192.168.5.0/32"], 20),
        prioritized("b", 2, &["192.168.10.0/32"], 10),
    ]);
    let order: Vec<String> = ["s1", "s2"]
        .iter()
        .flat_map(|name| pools_of(&mut world, &request(name)))
        .collect();
    assert_eq!(order, ["b", "a"], "with only priority");
}

#[test]
fn labels_of_namespaces_and_services_choose_pools() {
    let mut world = World::new(&[
        with(pool("first", 1, &["192.168.20.0/31"]), |spec| {
            spec.priority = Some(10);
            spec.namespace_selector = selector("first-ns=true");
        }),
        with(pool("second", 2, &["192.168.30.0/31"]), |spec| {
            spec.priority = Some(10);
            spec.namespace_selector = selector("second-ns=true");
        }),
        with(pool("second-high", 3, &["192.168.50.0/31"]), |spec| {
            spec.priority = Some(5);
            spec.namespace_selector = selector("high=true");
        }),
        with(pool("labelled", 4, &["192.168.60.0/31"]), |spec| {
            spec.priority = Some(1);
            spec.service_selector = selector("tier=gold");
        }),
        pool("rest", 5, &["192.168.40.0/31"]),
    ]);
    let of = |name: &str, namespace: &str| Request {
        namespace_labels: labels(namespace),
        ..request(name)
    };
    assert_eq!(pools_of(&mut world, &of("one/s", "first-ns=true")), ["first"]);
    assert_eq!(pools_of(&mut world, &of("two/s", "second-ns=true")), ["second"]);
    assert_eq!(pools_of(&mut world, &of("three/s", "")), ["rest"]);
    assert_eq!(
        pools_of(&mut world, &of("two/t", "second-ns=true high=true")),
        ["second-high"]
    );
    assert_eq!(
        pools_of(&mut world, &of("two/s", "second-ns=true high=true")),
        ["second"],
        "who has one stays"
    );
    let gold = Request {
        labels: labels("tier=gold"),
        ..of("one/gold", "first-ns=true")
    };
    assert_eq!(pools_of(&mut world, &gold), ["labelled"]);
}
