//! Pools: what is wrong with them, what overlaps, what their status says.

use std::slice::from_ref;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use operator_api::{AddressPool, CONDITION_CONFLICT, CONDITION_VALID};

use super::world::{World, ip, pool, request, with};
use crate::ipam::Request;

/// Status and message of a condition.
fn condition(world: &World, name: &str, kind: &str) -> (String, String) {
    let status = world.pools.status(name, &world.claims, Timestamp::UNIX_EPOCH).unwrap();
    let condition = status
        .conditions
        .into_iter()
        .find(|condition| condition.type_ == kind)
        .unwrap();
    (condition.status, condition.message)
}

#[test]
fn of_two_pools_that_overlap_the_later_one_hands_nothing_out() {
    let early = pool("z-early", 1, &["10.0.0.0/24"]);
    let late = pool("a-late", 2, &["10.1.0.0/24", "10.0.0.200-10.0.0.210"]);
    for order in [[&early, &late], [&late, &early]] {
        let mut world = World::default();
        for pool in order {
            world.pools.apply(pool);
        }
        assert_eq!(condition(&world, "z-early", CONDITION_CONFLICT).0, "False");
        let said = "10.0.0.200 is in pool z-early, too, which was there earlier: no address is handed out of this pool";
        assert_eq!(
            condition(&world, "a-late", CONDITION_CONFLICT),
            ("True".into(), said.into())
        );
        assert_eq!(world.pools.covering(ip("10.0.0.205")).unwrap().name(), "z-early");
        assert_eq!(world.pools.covering(ip("10.1.0.5")).unwrap().name(), "a-late");
        assert_eq!(
            world
                .pools
                .status("a-late", &world.claims, Timestamp::UNIX_EPOCH)
                .unwrap()
                .free,
            0
        );
        assert_eq!(world.settle(&request("s")).assignments[0].pool, "z-early");
        assert!(
            world
                .settle(&Request {
                    pool: Some("a-late".into()),
                    ..request("t")
                })
                .assignments
                .is_empty()
        );
        world.pools.delete("z-early");
        assert_eq!(condition(&world, "a-late", CONDITION_CONFLICT).0, "False");
    }
}

#[test]
fn pools_of_one_moment_go_by_name_and_one_of_unknown_age_is_the_later() {
    let mut world = World::new(&[pool("b", 1, &["10.0.0.0/24"]), pool("a", 1, &["10.0.0.0/24"])]);
    assert_eq!(condition(&world, "b", CONDITION_CONFLICT).0, "True");
    let mut ageless = pool("a", 1, &["10.0.0.0/24"]);
    ageless.metadata.creation_timestamp = None;
    world.pools.apply(&ageless);
    assert_eq!(condition(&world, "a", CONDITION_CONFLICT).0, "True");
    assert_eq!(condition(&world, "b", CONDITION_CONFLICT).0, "False");
}

#[test]
fn a_pool_that_comes_into_conflict_keeps_what_it_has_handed_out() {
    let mut world = World::new(&[pool("old", 1, &["10.1.0.0/24"]), pool("mine", 2, &["10.0.0.0/24"])]);
    let asked = Request {
        pool: Some("mine".into()),
        ..request("s")
    };
    assert_eq!(world.addresses(&asked), ["10.0.0.0"]);
    world.pools.apply(&pool("old", 1, &["10.0.0.0/16"]));
    assert_eq!(condition(&world, "mine", CONDITION_CONFLICT).0, "True");
    let outcome = world.settle(&asked);
    assert_eq!(
        (outcome.assignments[0].address, outcome.assignments[0].pool.as_str()),
        (ip("10.0.0.0"), "mine")
    );
    assert!(outcome.problems.is_empty() && outcome.outside.is_empty());
}

#[test]
fn faults_are_told_with_their_place_and_the_pool_hands_nothing_out() {
    let expressions = |operator: &str, values: Option<Vec<String>>| {
        let requirement = LabelSelectorRequirement {
            key: "k".into(),
            operator: operator.into(),
            values,
        };
        Some(LabelSelector {
            match_expressions: Some(vec![requirement]),
            match_labels: None,
        })
    };
    let entry = |entry: &str| pool("p", 1, &["10.0.0.0/24", entry]);
    let cases: [(AddressPool, &str); 14] = [
        (
            entry("rubbish"),
            "spec.addresses[1]: \"rubbish\" is neither a CIDR block nor a range FIRST-LAST",
        ),
        (
            entry("10.0.0.0/33"),
            "spec.addresses[1]: \"10.0.0.0/33\" is neither a CIDR block nor a range FIRST-LAST",
        ),
        (
            entry("10.0.0.1"),
            "spec.addresses[1]: \"10.0.0.1\" is neither a CIDR block nor a range FIRST-LAST",
        ),
        (
            entry(""),
            "spec.addresses[1]: \"\" is neither a CIDR block nor a range FIRST-LAST",
        ),
        (
            entry("10.0.0.1-::1"),
            "spec.addresses[1]: \"10.0.0.1-::1\" begins in one address family and ends in the other",
        ),
        (
            entry("10.0.0.9 - 10.0.0.1"),
            "spec.addresses[1]: \"10.0.0.9 - 10.0.0.1\" ends before it begins",
        ),
        (
            entry("ff00::/8"),
            "spec.addresses[1]: \"ff00::/8\" has only multicast addresses, which cannot be load balanced",
        ),
        (
            entry("127.0.0.1/32"),
            "spec.addresses[1]: \"127.0.0.1/32\" has only loopback addresses, which cannot be load balanced",
        ),
        (
            entry("::ffff:1.2.3.0/120"),
            "spec.addresses[1]: \"::ffff:1.2.3.0/120\" has only IPv4-mapped addresses, which cannot be load balanced",
        ),
        (
            entry("fe80::/64"),
            "spec.addresses[1]: \"fe80::/64\" has only link-local addresses, which cannot be load balanced",
        ),
        (
            entry("::/128"),
            "spec.addresses[1]: \"::/128\" has only unspecified addresses, which cannot be load balanced",
        ),
        (pool("p", 1, &[]), "spec.addresses: is empty"),
        (
            with(entry("10.0.1.0/24"), |spec| {
                spec.namespace_selector = expressions("Near", None)
            }),
            "spec.namespaceSelector: Invalid expression operator",
        ),
        (
            with(entry("10.0.1.0/24"), |spec| {
                spec.service_selector = expressions("In", Some(Vec::new()))
            }),
            "spec.serviceSelector: operator In of key \"k\" has no values",
        ),
    ];
    for (pool, said) in cases {
        let mut world = World::new(&[pool]);
        let (status, message) = condition(&world, "p", CONDITION_VALID);
        assert_eq!(
            (status.as_str(), message),
            ("False", format!("no address is handed out of this pool; {said}"))
        );
        assert!(world.addresses(&request("s")).is_empty(), "{said}");
        let sound_part = Request {
            current: vec![ip("10.0.0.7")],
            ..request("live")
        };
        let covered = world.pools.covering(ip("10.0.0.7")).is_some();
        assert_eq!(
            world.settle(&sound_part).assignments.len(),
            usize::from(covered),
            "what is live is covered"
        );
    }
}

#[test]
fn special_blocks_inside_of_larger_ones_are_left_out_with_a_word() {
    let mut world = World::new(&[pool("all", 1, &["::/0", "0.0.0.0/0"])]);
    let (status, message) = condition(&world, "all", CONDITION_VALID);
    let said = "without its IPv4-mapped, broadcast, link-local, loopback, multicast, unspecified addresses, which cannot be load balanced";
    assert_eq!((status.as_str(), message.as_str()), ("True", said));
    assert_eq!(world.addresses(&super::world::dual("s", true)), ["1.0.0.0", "::2"]);
    for address in [
        "::",
        "::1",
        "::ffff:1.2.3.4",
        "fe80::1",
        "ff02::1",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.1",
    ] {
        assert!(world.pools.covering(ip(address)).is_none(), "{address}");
    }
}

#[test]
fn all_operators_of_selectors_choose() {
    let selector = |operator: &str, values: &[&str]| {
        let values = (!values.is_empty()).then(|| values.iter().map(|&value| value.to_owned()).collect());
        let requirement = LabelSelectorRequirement {
            key: "tier".into(),
            operator: operator.into(),
            values,
        };
        Some(LabelSelector {
            match_expressions: Some(vec![requirement]),
            match_labels: None,
        })
    };
    let cases = [
        (
            selector("In", &["gold", "silver"]),
            ["tier=gold", "tier=silver"],
            ["tier=lead", ""],
        ),
        (
            selector("NotIn", &["lead"]),
            ["tier=gold", ""],
            ["tier=lead", "tier=lead x=y"],
        ),
        (selector("Exists", &[]), ["tier=gold", "tier=lead"], ["", "x=y"]),
        (selector("DoesNotExist", &[]), ["", "x=y"], ["tier=gold", "tier=lead"]),
        (Some(LabelSelector::default()), ["", "tier=gold"], ["-", "-"]),
    ];
    for (selector, admitted, refused) in cases {
        let for_namespaces = with(pool("p", 1, &["10.0.0.0/24"]), |spec| {
            spec.namespace_selector = selector.clone()
        });
        let for_services = with(pool("p", 1, &["10.0.0.0/24"]), |spec| {
            spec.service_selector = selector.clone()
        });
        for (labels, fits) in admitted
            .map(|labels| (labels, 1))
            .into_iter()
            .chain(refused.map(|labels| (labels, 0)))
        {
            if labels == "-" {
                continue;
            }
            let labels = super::world::labels(labels);
            let namespaced = Request {
                namespace_labels: labels.clone(),
                ..request("s")
            };
            assert_eq!(
                World::new(from_ref(&for_namespaces)).addresses(&namespaced).len(),
                fits,
                "{selector:?} {labels:?}"
            );
            let labelled = Request {
                labels: labels.clone(),
                ..request("s")
            };
            assert_eq!(
                World::new(from_ref(&for_services)).addresses(&labelled).len(),
                fits,
                "{selector:?} {labels:?}"
            );
        }
    }
    let either = with(pool("p", 1, &["10.0.0.0/24"]), |spec| {
        spec.namespaces = vec!["web".into()];
        spec.namespace_selector = super::world::selector("tier=gold");
    });
    assert_eq!(
        World::new(from_ref(&either)).addresses(&request("web/s")).len(),
        1,
        "by name"
    );
    let gold = Request {
        namespace_labels: super::world::labels("tier=gold"),
        ..request("other/s")
    };
    assert_eq!(World::new(from_ref(&either)).addresses(&gold).len(), 1, "or by label");
    assert!(World::new(&[either]).addresses(&request("other/s")).is_empty());
}

#[test]
fn the_status_follows_pool_and_claims() {
    let counts = |world: &World| {
        let status = world.pools.status("p", &world.claims, Timestamp::UNIX_EPOCH).unwrap();
        (status.ipv4.free, status.ipv6.free, status.ipv4.used, status.ipv6.used)
    };
    let mut world = World::new(&[pool("p", 1, &["192.168.10.0/30", "fc00:f853:ccd:e799::/126"])]);
    let both = super::world::dual("s", true);
    assert_eq!(counts(&world), (4, 4, 0, 0), "populated");
    world.settle(&both);
    assert_eq!(counts(&world), (3, 3, 1, 1), "a service");
    world
        .pools
        .apply(&pool("p", 1, &["192.168.10.0/29", "fc00:f853:ccd:e799::/125"]));
    assert_eq!(counts(&world), (7, 7, 1, 1), "expanded");
    world.delete(&both);
    assert_eq!(counts(&world), (8, 8, 0, 0), "deleted");
    world.settle(&both);
    world.pools.apply(&with(pool("p", 1, &["192.168.10.0/29"]), |spec| {
        spec.avoid_buggy_ips = true
    }));
    assert_eq!(
        counts(&world),
        (7, 0, 1, 0),
        "the .0 that is in use is none of the seven"
    );
}

#[test]
fn a_condition_that_says_the_same_keeps_its_time() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut world = World::new(&[pool("p", 1, &["10.0.0.0/24"])]);
    let first = world.pools.status("p", &world.claims, at(10)).unwrap();
    assert_eq!(first.conditions[0].last_transition_time.0, at(10));
    let stored = AddressPool {
        status: Some(first.clone()),
        ..pool("p", 1, &["10.0.0.0/24"])
    };
    assert!(!world.pools.apply(&stored), "a status decides nothing");
    assert_eq!(world.pools.status("p", &world.claims, at(20)).unwrap(), first);
    let broken = AddressPool {
        status: Some(first),
        ..pool("p", 1, &["rubbish"])
    };
    assert!(world.pools.apply(&broken));
    let times: Vec<Timestamp> = world
        .pools
        .status("p", &world.claims, at(30))
        .unwrap()
        .conditions
        .iter()
        .map(|condition| condition.last_transition_time.0)
        .collect();
    assert_eq!(times, [at(10), at(30)]);
}

#[test]
fn prefixes_are_the_fewest_that_cover_pools_and_claims() {
    let mut world = World::new(&[
        pool("a", 1, &["10.0.0.0/25", "10.0.0.128-10.0.0.255", "fd00::/64"]),
        pool("b", 2, &["10.0.1.0/24", "192.0.2.1-192.0.2.6"]),
        pool("late", 3, &["10.0.0.7/32"]),
    ]);
    let prefixes = |world: &World| -> Vec<String> {
        world
            .pools
            .prefixes(&world.claims)
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(
        prefixes(&world),
        [
            "10.0.0.0/23",
            "192.0.2.1/32",
            "192.0.2.2/31",
            "192.0.2.4/31",
            "192.0.2.6/32",
            "fd00::/64"
        ]
    );
    world.settle(&request("s"));
    world.pools.reset(&[pool("b", 2, &["10.0.1.0/24"])]);
    assert_eq!(
        prefixes(&world),
        ["10.0.0.0/32", "10.0.1.0/24"],
        "what is in use stays reachable"
    );
}
