//! One address for several Services.

use super::world::{World, dual, ip, pool, ports, request, sharing, with};
use crate::ipam::{ClaimWrite, Request};

fn world() -> World {
    World::new(&[pool("p", 1, &["10.0.0.0/24", "fd00::/120"])])
}

#[test]
fn services_with_one_key_gather_on_one_address_as_long_as_ports_differ() {
    let mut world = world();
    assert_eq!(world.addresses(&request("alone")), ["10.0.0.0"]);
    assert_eq!(world.addresses(&sharing("a", "k", "tcp/80")), ["10.0.0.1"]);
    assert_eq!(world.addresses(&sharing("b", "k", "tcp/443")), ["10.0.0.1"]);
    assert_eq!(
        world.addresses(&sharing("c", "k", "udp/443")),
        ["10.0.0.1"],
        "another protocol is another port"
    );
    assert_eq!(
        world.addresses(&sharing("d", "k", "tcp/443")),
        ["10.0.0.2"],
        "no room there"
    );
    assert_eq!(world.addresses(&sharing("e", "k", "tcp/80")), ["10.0.0.2"]);
    assert_eq!(world.addresses(&sharing("f", "other", "tcp/8080")), ["10.0.0.3"]);
}

#[test]
fn both_families_are_shared() {
    let mut world = world();
    let both = |name, with_ports| Request {
        sharing_key: Some("k".into()),
        ports: ports(with_ports),
        ..dual(name, true)
    };
    assert_eq!(world.addresses(&both("a", "tcp/80")), ["10.0.0.0", "fd00::"]);
    assert_eq!(world.addresses(&both("b", "tcp/443")), ["10.0.0.0", "fd00::"]);
}

#[test]
fn namespaces_share_only_where_the_pool_says_so() {
    let mut world = world();
    assert_eq!(world.addresses(&sharing("one/a", "k", "tcp/80")), ["10.0.0.0"]);
    assert_eq!(world.addresses(&sharing("two/b", "k", "tcp/443")), ["10.0.0.1"]);
    let named = Request {
        addresses: vec![ip("10.0.0.0")],
        ..sharing("two/c", "k", "tcp/443")
    };
    let said = "10.0.0.0 is held by Service one/a of another namespace: pool p has no shareAcrossNamespaces";
    assert_eq!(world.problems(&named), [said]);
    world.pools.apply(&with(pool("p", 1, &["10.0.0.0/24"]), |spec| {
        spec.share_across_namespaces = true
    }));
    assert_eq!(world.addresses(&named), ["10.0.0.0"]);
    world.pools.apply(&pool("p", 1, &["10.0.0.0/24"]));
    assert_eq!(world.addresses(&named), ["10.0.0.0"], "taking it back moves nobody");
}

#[test]
fn who_comes_to_use_a_port_of_another_moves_and_the_other_stays() {
    let mut world = world();
    world.settle(&sharing("a", "k", "tcp/80"));
    world.settle(&sharing("b", "k", "tcp/443"));
    let clashing = sharing("b", "k", "tcp/80");
    let outcome = world.ask(&clashing);
    assert_eq!(outcome.assignments[0].address, ip("10.0.0.1"));
    assert!(
        !outcome.surplus[0].serve,
        "the port there is another's: the table must leave at once"
    );
    assert_eq!(world.addresses(&clashing), ["10.0.0.1"]);
    assert_eq!(world.addresses(&sharing("a", "k", "tcp/80")), ["10.0.0.0"]);
    assert_eq!(world.claims.by_address(ip("10.0.0.0")).unwrap().holders().count(), 1);
}

#[test]
fn who_changes_or_drops_the_key_moves_unless_it_is_alone() {
    for key in [Some("other".to_owned()), None] {
        let mut world = world();
        world.settle(&sharing("a", "k", "tcp/80"));
        world.settle(&sharing("b", "k", "tcp/443"));
        let changed = Request {
            sharing_key: key.clone(),
            ..sharing("a", "k", "tcp/80")
        };
        assert!(
            world.ask(&changed).surplus[0].serve,
            "its ports are its own until it has moved"
        );
        assert_eq!(world.addresses(&changed), ["10.0.0.1"]);
        let alone = Request {
            sharing_key: key.clone(),
            ..sharing("b", "k", "tcp/443")
        };
        assert_eq!(world.addresses(&alone), ["10.0.0.0"], "alone by now");
        assert_eq!(
            world.claims.by_address(ip("10.0.0.0")).unwrap().sharing_key(),
            key.as_deref()
        );
    }
}

#[test]
fn ports_enter_a_claim_before_the_table_and_leave_it_after() {
    let mut world = world();
    world.settle(&Request {
        ports: ports("tcp/80 tcp/81"),
        ..request("a")
    });
    let changed = Request {
        ports: ports("tcp/81 tcp/82"),
        ..request("a")
    };
    let held = |write: &ClaimWrite| match write {
        ClaimWrite::Create(claim) | ClaimWrite::Replace(claim) => claim.spec.holders[0].ports.clone(),
        ClaimWrite::Delete { .. } => Vec::new(),
    };
    let before = world.ask(&changed);
    let next = before.next.unwrap();
    assert_eq!(held(&next), Vec::from_iter(ports("tcp/80 tcp/81 tcp/82")));
    assert!(before.surplus.is_empty());
    world.write(&next);
    let after = world.ask(&changed);
    assert!(after.next.is_none() && after.surplus[0].serve);
    assert_eq!(held(&after.surplus[0].write), Vec::from_iter(ports("tcp/81 tcp/82")));
    world.settle(&changed);
    assert_eq!(world.ask(&changed).surplus, []);
}

#[test]
fn an_address_that_is_left_together_with_a_change_of_ports_gets_them_first() {
    let mut world = world();
    world.settle(&request("a"));
    let changed = Request {
        ports: ports("tcp/81"),
        addresses: vec![ip("10.0.0.9")],
        ..request("a")
    };
    assert!(!world.ask(&changed).surplus[0].serve);
    for _ in 0..2 {
        let next = world.ask(&changed).next.unwrap();
        world.write(&next);
    }
    let outcome = world.ask(&changed);
    assert!(
        outcome.next.is_none() && outcome.surplus[0].serve,
        "both addresses work with the new ports"
    );
}

#[test]
fn an_empty_key_is_none_and_one_that_is_too_long_shares_nothing() {
    let mut world = world();
    assert_eq!(world.addresses(&sharing("a", "", "tcp/80")), ["10.0.0.0"]);
    assert_eq!(world.addresses(&sharing("b", "", "tcp/443")), ["10.0.0.1"]);
    let long = "k".repeat(254);
    let said = "the sharing key has 254 bytes: 253 are allowed; the Service shares nothing";
    assert_eq!(world.problems(&sharing("c", &long, "tcp/80")), [said]);
    assert_eq!(world.addresses(&sharing("d", &long, "tcp/443")), ["10.0.0.3"]);
}

#[test]
fn an_address_has_room_for_so_many_services_only() {
    let mut world = World::new(&[pool("p", 1, &["10.0.0.0/30"])]);
    for index in 0..crate::ipam::MAX_HOLDERS {
        let request = sharing(&format!("s{index}"), "k", &format!("tcp/{}", index + 1));
        assert_eq!(world.addresses(&request), ["10.0.0.0"]);
    }
    assert_eq!(world.addresses(&sharing("more", "k", "udp/1")), ["10.0.0.1"]);
    let named = Request {
        addresses: vec![ip("10.0.0.0")],
        ..sharing("named", "k", "udp/2")
    };
    assert_eq!(world.problems(&named), ["10.0.0.0 is shared by 512 Services already"]);
}

#[test]
fn more_ports_than_a_claim_can_name_together_are_exchanged_at_once() {
    let mut world = world();
    let range = |from: u16| {
        (from..from + 400)
            .map(|port| format!("tcp/{port} "))
            .collect::<String>()
    };
    world.settle(&Request {
        ports: ports(&range(1)),
        ..request("a")
    });
    world.settle(&Request {
        ports: ports(&range(1_000)),
        ..request("a")
    });
    let too_many = Request {
        ports: ports(&(range(1) + &range(1_000))),
        ..request("a")
    };
    let outcome = world.settle(&too_many);
    assert_eq!(
        outcome.problems[0].to_string(),
        "the Service has 800 ports: 512 can be served"
    );
    assert_eq!(outcome.assignments.len(), 1, "and keeps what it has");
}
