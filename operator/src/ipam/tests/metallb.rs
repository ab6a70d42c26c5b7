//! MetalLB's cases: `TestAssignment`, `TestPoolAllocation`, `TestAllocation`, `TestBuggyIPs`, `TestConfigReload`,
//! `TestAutoAssign`, `TestPoolCount`, `TestPoolMetrics` of its allocator, in our own words. Where we answer otherwise, the test's
//! name says so.

use super::world::{World, dual, ip, labels, pool, ports, request, selector, sharing, with};
use crate::ipam::{Family, Request};

/// Asks for an address by name.
fn at(name: &str, addresses: &[&str]) -> Request {
    let addresses: Vec<_> = addresses.iter().map(|address| ip(address)).collect();
    Request {
        families: addresses.iter().map(|&address| Family::of(address)).collect(),
        addresses,
        ..request(name)
    }
}

/// The same, to share by a key.
fn at_by_key(name: &str, address: &str, key: &str, with_ports: &str) -> Request {
    Request {
        sharing_key: Some(key.to_owned()),
        ports: ports(with_ports),
        ..at(name, &[address])
    }
}

fn assignment_pools() -> World {
    World::new(&[
        pool("test", 1, &["1.2.3.4/31", "1000::4/127"]),
        with(pool("test2", 2, &["1.2.4.0/24", "1000::4:0/120"]), |spec| {
            spec.avoid_buggy_ips = true
        }),
        with(pool("test3", 3, &["1.2.5.0/24"]), |spec| {
            spec.namespaces = vec!["test-ns1".into()]
        }),
        with(pool("test4", 4, &["1.2.6.0/24"]), |spec| {
            spec.service_selector = selector("team=red-blue")
        }),
        with(pool("test5", 5, &["1.2.7.0/24"]), |spec| {
            spec.namespaces = vec!["test-ns1".into()];
            spec.service_selector = selector("team=red-blue");
        }),
    ])
}

/// Whether the address is had.
fn has(world: &mut World, request: &Request) -> bool {
    let had = world.addresses(request);
    let wanted: Vec<String> = request.addresses.iter().map(ToString::to_string).collect();
    had == wanted
}

#[test]
fn an_address_asked_for_is_given_to_one_and_freed_for_the_next() {
    let families = [
        ("1.2.3.4", "1.2.3.5", "1.2.4.254"),
        ("1000::4", "1000::4:5", "1000::4:ff"),
    ];
    for (first, second, third) in families {
        let mut world = assignment_pools();
        assert!(has(&mut world, &at("s1", &[first])), "assign s1");
        assert!(has(&mut world, &at("s1", &[first])), "s1 idempotent reassign");
        assert!(!has(&mut world, &at("s2", &[first])), "s2 can't grab s1's IP");
        assert!(has(&mut world, &at("s2", &[second])), "s2 can get the other IP");
        assert!(!has(&mut world, &at("s1", &[second])), "s1 now can't grab s2's IP");
        world.delete(&at("s1", &[first]));
        assert!(has(&mut world, &at("s2", &[first])), "s2 can grab s1's former IP");
        assert!(has(&mut world, &at("s1", &[second])), "s1 can now grab s2's former IP");
        assert!(
            has(&mut world, &at("s3", &[third])),
            "s3 can grab another IP in that pool"
        );
        assert_eq!(world.claims.len(), 3, "and nothing is left over");
    }
}

#[test]
fn addresses_that_end_in_0_or_255_are_refused_where_the_pool_avoids_them() {
    let mut world = assignment_pools();
    assert!(!has(&mut world, &at("s3", &["1.2.4.0"])));
    assert!(!has(&mut world, &at("s3", &["1.2.4.255"])));
    assert!(has(&mut world, &at("s3", &["1.2.4.254"])));
    assert!(has(&mut world, &at("s4", &["1000::4:0"])), "IPv6 has none");
}

#[test]
fn sharing_needs_the_same_key_and_other_ports_but_no_backend_key() {
    for (shared, other) in [("1.2.4.3", "1.2.4.254"), ("1000::4:3", "1000::4:ff")] {
        let mut world = assignment_pools();
        assert!(has(&mut world, &at("s3", &[other])));
        assert!(
            has(&mut world, &at_by_key("s4", shared, "sharing", "tcp/80")),
            "s4 takes an IP, with sharing"
        );
        assert!(
            has(&mut world, &at_by_key("s4", shared, "share", "tcp/80")),
            "s4 changes its sharing key in place"
        );
        assert!(
            !has(&mut world, &at_by_key("s3", shared, "share", "tcp/80")),
            "port conflict"
        );
        assert!(
            !has(&mut world, &at_by_key("s3", shared, "othershare", "tcp/443")),
            "wrong sharing key"
        );
        assert!(
            has(&mut world, &at_by_key("s3", shared, "share", "tcp/443")),
            "s3 takes the same IP as s4"
        );
        assert!(
            has(&mut world, &at_by_key("s3", shared, "share", "udp/53")),
            "s3 can change its ports"
        );
        assert!(
            !has(&mut world, &at_by_key("s3", shared, "othershare", "tcp/443")),
            "not its sharing key"
        );
        assert!(has(&mut world, &at("s4", &[other])), "s4 takes s3's former IP");
    }
}

#[test]
fn addresses_of_both_families_may_be_asked_for_even_from_different_pools() {
    let mut world = assignment_pools();
    assert!(has(&mut world, &at("s1", &["1.2.3.4", "1000::4"])), "dual-stack");
    assert!(
        has(&mut world, &at("s1", &["1.2.4.5", "1000::4"])),
        "MetalLB refuses: one pool for both"
    );
}

#[test]
fn pools_for_namespaces_and_labels_admit_only_those() {
    let red_blue = |request: Request| Request {
        labels: labels("team=red-blue"),
        ..request
    };
    let cases = [
        (at("test-ns1/s1", &["1.2.5.10"]), true, "same namespace"),
        (at("testns-not-exist/s1", &["1.2.5.10"]), false, "different namespace"),
        (
            red_blue(at("testns-not-exist/s1", &["1.2.6.10"])),
            true,
            "same service label",
        ),
        (
            at("testns-not-exist/s1", &["1.2.6.10"]),
            false,
            "different service label",
        ),
        (
            red_blue(at("test-ns1/s1", &["1.2.7.10"])),
            true,
            "namespace and service label",
        ),
        (
            at("test-ns1/s1", &["1.2.7.10"]),
            false,
            "namespace and incompatible service label",
        ),
        (
            red_blue(at("test-ns2/s1", &["1.2.7.10"])),
            false,
            "service label and incompatible namespace",
        ),
    ];
    for (request, given, case) in cases {
        assert_eq!(has(&mut assignment_pools(), &request), given, "{case}");
    }
}

/// Asks for any address of `families`.
fn any(name: &str, families: &[Family]) -> Request {
    Request {
        families: families.to_vec(),
        ..request(name)
    }
}

const ONE_OF_EACH: [&[Family]; 3] = [&[Family::V4], &[Family::V6], &[Family::V4, Family::V6]];

#[test]
fn a_named_pool_gives_its_addresses_only_and_runs_out() {
    let pools = [
        pool("not_this_one", 1, &["192.168.0.0/16", "fc00::1:0/112"]),
        pool("test", 2, &["1.2.3.4/31", "1.2.3.10/31", "1000::/127", "2000::/127"]),
        pool("test2", 3, &["10.20.30.0/24", "fc00::2:0/120"]),
    ];
    for families in ONE_OF_EACH {
        let from = |name: &str| Request {
            pool: Some("test".into()),
            ..any(name, families)
        };
        runs_out_after_four(&mut World::new(&pools), from);
    }
    let mut world = World::new(&pools);
    let nowhere = Request {
        pool: Some("nonexistentpool".into()),
        ..request("s5")
    };
    assert_eq!(
        world.problems(&nowhere),
        ["pool nonexistentpool does not exist: create it, or name another"]
    );
}

#[test]
fn all_pools_together_run_out() {
    let pools = [
        pool("test1", 1, &["1.2.3.4/31", "1000::4/127"]),
        pool("test2", 2, &["1.2.3.10/31", "1000::10/127"]),
    ];
    for families in ONE_OF_EACH {
        runs_out_after_four(&mut World::new(&pools), |name| any(name, families));
    }
}

fn runs_out_after_four(world: &mut World, from: impl Fn(&str) -> Request) {
    let families = from("s1").families.len();
    for name in ["s1", "s2", "s3", "s4"] {
        assert_eq!(world.addresses(&from(name)).len(), families, "{name} gets an IP");
    }
    assert!(world.addresses(&from("s5")).is_empty(), "s5 can't get an IP");
    assert!(world.addresses(&from("s6")).is_empty(), "s6 can't get an IP");
    let freed = world.addresses(&from("s1"));
    world.delete(&from("s1"));
    assert_eq!(world.addresses(&from("s5")), freed, "s5 can now grab s1's former IP");
    assert!(world.addresses(&from("s6")).is_empty(), "s6 still can't get an IP");
    world.delete(&from("s5"));
    let shared = |name: &str, with_ports| Request {
        sharing_key: Some("share".into()),
        ports: ports(with_ports),
        ..from(name)
    };
    assert_eq!(world.addresses(&shared("s5", "tcp/80")), freed, "s5 enables IP sharing");
    assert_eq!(
        world.addresses(&shared("s6", "tcp/443")),
        freed,
        "s6 can get an IP now, with sharing"
    );
}

#[test]
fn a_service_of_one_family_moves_to_the_other_when_it_asks_for_that() {
    let mut world = World::new(&[pool("test", 1, &["1.2.3.4/31", "1000::/127"])]);
    assert_eq!(world.addresses(&any("s1", &[Family::V4])), ["1.2.3.4"]);
    assert_eq!(
        world.addresses(&any("s1", &[Family::V6])),
        ["1000::"],
        "MetalLB refuses until it is unassigned"
    );
    assert_eq!(world.claims.len(), 1);
}

#[test]
fn prefer_dual_stack_takes_what_the_named_pool_has() {
    let mut world = World::new(&[
        pool("test", 1, &["1.2.3.4/31", "1000::/127"]),
        pool("test-v4", 2, &["2.2.3.4/31"]),
        pool("test-v6", 3, &["2000::/127"]),
    ]);
    let from = |name: &str, pool: &str| Request {
        pool: Some(pool.into()),
        ..dual(name, false)
    };
    assert_eq!(world.addresses(&from("s1", "test")), ["1.2.3.4", "1000::"]);
    assert_eq!(world.addresses(&from("s2", "test-v4")), ["2.2.3.4"]);
    assert_eq!(world.addresses(&from("s3", "test-v6")), ["2000::"]);
    assert!(world.problems(&from("s3", "test-v6")).is_empty(), "one is enough");
}

#[test]
fn buggy_addresses_are_left_out_only_where_the_pool_says_so() {
    let avoiding = |pool| with(pool, |spec| spec.avoid_buggy_ips = true);
    let mut world = World::new(&[
        pool("test", 1, &["1.2.3.0/31"]),
        pool("test2", 2, &["1.2.3.254/31"]),
        avoiding(pool("test3", 3, &["1.2.4.0/31"])),
        avoiding(pool("test4", 4, &["1.2.4.254/31"])),
    ]);
    let had: Vec<String> = (1..=7)
        .flat_map(|name| world.addresses(&request(&format!("s{name}"))))
        .collect();
    assert_eq!(
        had,
        ["1.2.3.0", "1.2.3.1", "1.2.3.254", "1.2.3.255", "1.2.4.1", "1.2.4.254"]
    );
}

#[test]
fn pools_without_auto_assign_hand_out_nothing_by_themselves() {
    let pools = [
        with(pool("test1", 1, &["1.2.3.4/31", "1000::4/127"]), |spec| {
            spec.auto_assign = false
        }),
        pool("test2", 2, &["1.2.3.10/31", "1000::10/127"]),
    ];
    for families in ONE_OF_EACH {
        let mut world = World::new(&pools);
        for name in ["s1", "s2"] {
            let outcome = world.settle(&any(name, families));
            assert!(!outcome.assignments.is_empty() && outcome.assignments.iter().all(|wish| wish.pool == "test2"));
        }
        for name in ["s3", "s4", "s5"] {
            assert!(world.addresses(&any(name, families)).is_empty());
        }
    }
    assert_eq!(
        World::new(&pools).addresses(&at("s1", &["1.2.3.4"])),
        ["1.2.3.4"],
        "but by name"
    );
}

#[test]
fn a_pool_edit_never_takes_an_address_away_where_metallb_does() {
    let cases = [
        (
            "set same config is no-op",
            vec![pool("test", 1, &["1.2.3.0/30", "1000::/126"])],
            ["test", "test"],
            0,
        ),
        (
            "expand pool",
            vec![pool("test", 1, &["1.2.3.0/24", "1000::/120"])],
            ["test", "test"],
            0,
        ),
        (
            "shrink past s1",
            vec![pool("test", 1, &["1.2.3.2/31", "1000::/126"])],
            ["test", "test"],
            1,
        ),
        (
            "shrink past s2",
            vec![pool("test", 1, &["1.2.3.0/30", "1000::2/127"])],
            ["test", "test"],
            1,
        ),
        (
            "rename the pool",
            vec![pool("test2", 1, &["1.2.3.0/30", "1000::/126"])],
            ["test2", "test2"],
            0,
        ),
        (
            "split pool",
            vec![
                pool("test", 1, &["1.2.3.0/31", "1000::2/127"]),
                pool("test2", 2, &["1.2.3.2/31", "1000::/127"]),
            ],
            ["test", "test2"],
            0,
        ),
        (
            "enable buggy IPs not allowed",
            vec![with(pool("test2", 1, &["1.2.3.0/31", "1000::/127"]), |spec| {
                spec.avoid_buggy_ips = true
            })],
            ["test2", "test2"],
            0,
        ),
        ("all pools gone", vec![], ["test", "test"], 2),
    ];
    for (case, pools, [pool1, pool2], outside) in cases {
        let mut world = World::new(&[pool("test", 1, &["1.2.3.0/30", "1000::/126"])]);
        let (s1, s2) = (any("s1", &[Family::V4]), any("s2", &[Family::V6]));
        assert_eq!(
            (world.addresses(&s1), world.addresses(&s2)),
            (vec!["1.2.3.0".into()], vec!["1000::".into()])
        );
        world.pools.reset(&pools);
        let (after1, after2) = (world.settle(&s1), world.settle(&s2));
        assert_eq!(after1.assignments[0].address, ip("1.2.3.0"), "{case}");
        assert_eq!(after2.assignments[0].address, ip("1000::"), "{case}");
        assert_eq!(
            [&after1.assignments[0].pool, &after2.assignments[0].pool],
            [pool1, pool2],
            "{case}"
        );
        assert_eq!(after1.outside.len() + after2.outside.len(), outside, "{case}");
    }
}

#[test]
fn shared_addresses_count_once_in_a_pools_status() {
    let mut world = World::new(&[pool("test", 1, &["1.2.3.4/30", "1000::4/126"])]);
    let mut used = Vec::new();
    let mut count = |world: &World| {
        let status = world
            .pools
            .status("test", &world.claims, jiff::Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!(status.ipv4.used + status.ipv4.free, 4);
        assert_eq!((status.ipv6.used, status.ipv6.free), (0, 4));
        used.push(status.used);
    };
    for name in ["s1", "s2"] {
        world.settle(&request(name));
        count(&world);
    }
    for name in ["s1", "s2"] {
        world.delete(&request(name));
        count(&world);
    }
    let shared = [
        sharing("s1", "key", "tcp/80"),
        sharing("s2", "key", "tcp/443"),
        sharing("s3", "key", "tcp/23"),
    ];
    for request in &shared {
        world.settle(request);
        count(&world);
    }
    for request in &shared {
        world.delete(request);
        count(&world);
    }
    assert_eq!(used, [1, 2, 1, 0, 1, 1, 1, 1, 1, 0]);
}

#[test]
fn pools_are_counted_without_looking_at_each_address() {
    let avoiding = |pool| with(pool, |spec| spec.avoid_buggy_ips = true);
    let v4 = ["1.2.3.0/24", "2.3.4.128/25"];
    let cases = [
        ("/24", pool("p", 1, &v4[..1]), 256, 0),
        ("/24 and /25", pool("p", 1, &v4), 384, 0),
        ("/24 and /25, no buggy IPs", avoiding(pool("p", 1, &v4)), 381, 0),
        (
            "a BIG ipv6 range",
            avoiding(pool("p", 1, &[v4[0], v4[1], "1000::/64"])),
            381,
            i64::MAX,
        ),
        (
            "ipv4 and ipv6 range",
            avoiding(pool("p", 1, &["1.2.3.0/31", "1000::/127"])),
            1,
            2,
        ),
        ("the whole of IPv6", pool("p", 1, &["::/0"]), 0, i64::MAX),
    ];
    for (case, pool, ipv4, ipv6) in cases {
        let world = World::new(&[pool]);
        let status = world
            .pools
            .status("p", &world.claims, jiff::Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!((status.ipv4.total, status.ipv6.total), (ipv4, ipv6), "{case}");
        assert_eq!(status.free, ipv4.saturating_add(ipv6), "{case}");
    }
}
