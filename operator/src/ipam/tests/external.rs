//! External IPs.

use super::world::{World, ip, pool, ports, request, sharing, with};
use crate::ipam::Request;

fn world() -> World {
    let open = with(pool("open", 1, &["192.0.2.0/24"]), |spec| {
        spec.external_ips = true;
        spec.auto_assign = false;
    });
    World::new(&[open, pool("closed", 2, &["10.0.0.0/24"])])
}

/// A Service that asks for no load balancer address.
fn external(name: &str, with_ports: &str, addresses: &[&str]) -> Request {
    let external = addresses.iter().map(|address| ip(address)).collect();
    Request {
        families: Vec::new(),
        ports: ports(with_ports),
        external,
        ..request(name)
    }
}

#[test]
fn only_pools_that_allow_it_give_external_ips() {
    let mut world = world();
    let asked = external("a", "tcp/80", &["192.0.2.1", "10.0.0.1", "198.51.100.1", "127.0.0.1"]);
    assert_eq!(world.addresses(&asked), ["192.0.2.1"]);
    assert_eq!(
        world.problems(&asked),
        [
            "198.51.100.1 is in no pool: add it to one, or name another",
            "127.0.0.1 is loopback: it cannot be load balanced",
            "external IP 10.0.0.1 is not allowed: pool closed has no externalIPs",
        ]
    );
}

#[test]
fn such_a_pool_hands_out_nothing_by_itself_but_by_name() {
    let mut world = world();
    assert_eq!(world.addresses(&request("a")), ["10.0.0.0"], "of the other pool");
    let named = Request {
        pool: Some("open".into()),
        ..request("b")
    };
    assert_eq!(world.addresses(&named), ["192.0.2.0"]);
}

#[test]
fn services_of_one_namespace_share_an_external_ip_without_a_key() {
    let mut world = world();
    assert_eq!(
        world.addresses(&external("web/a", "tcp/80", &["192.0.2.1"])),
        ["192.0.2.1"]
    );
    assert_eq!(
        world.addresses(&external("web/b", "tcp/443", &["192.0.2.1"])),
        ["192.0.2.1"]
    );
    let cases = [
        (
            external("web/c", "tcp/80", &["192.0.2.1"]),
            "192.0.2.1 cannot be shared with Service web/a: both have port 80/TCP",
        ),
        (
            external("other/d", "tcp/81", &["192.0.2.1"]),
            "192.0.2.1 is taken by Service web/a: name another, or give both the same sharing key",
        ),
        (
            Request {
                addresses: vec![ip("192.0.2.1")],
                ports: ports("tcp/81"),
                ..request("web/e")
            },
            "192.0.2.1 is taken by Service web/a: name another, or give both the same sharing key",
        ),
    ];
    for (asked, said) in cases {
        assert_eq!(world.problems(&asked), [said]);
    }
    world.pools.apply(&with(pool("open", 1, &["192.0.2.0/24"]), |spec| {
        spec.external_ips = true;
        spec.share_across_namespaces = true;
    }));
    assert_eq!(
        world.addresses(&external("other/d", "tcp/81", &["192.0.2.1"])),
        ["192.0.2.1"]
    );
}

#[test]
fn a_load_balancer_address_is_another_services_external_ip_only_by_the_same_key() {
    let mut world = world();
    let named = |name, key| Request {
        addresses: vec![ip("192.0.2.1")],
        ..sharing(name, key, "tcp/80")
    };
    assert_eq!(world.addresses(&named("a", "k")), ["192.0.2.1"]);
    assert!(world.addresses(&external("b", "tcp/443", &["192.0.2.1"])).is_empty());
    let with_key = |name, key: &str, port| Request {
        sharing_key: Some(key.into()),
        ..external(name, port, &["192.0.2.1"])
    };
    assert!(world.addresses(&with_key("c", "other", "tcp/443")).is_empty());
    assert_eq!(world.addresses(&with_key("d", "k", "tcp/443")), ["192.0.2.1"]);
    assert!(
        world.addresses(&external("e", "tcp/444", &["192.0.2.1"])).is_empty(),
        "beside it, still not without"
    );
}

#[test]
fn one_without_the_key_takes_it_out_so_that_no_load_balancer_address_joins() {
    let mut world = world();
    let with_key = Request {
        sharing_key: Some("k".into()),
        ..external("a", "tcp/80", &["192.0.2.1"])
    };
    world.settle(&with_key);
    world.settle(&external("b", "tcp/443", &["192.0.2.1"]));
    assert_eq!(world.claims.by_address(ip("192.0.2.1")).unwrap().sharing_key(), None);
    let named = Request {
        addresses: vec![ip("192.0.2.1")],
        ..sharing("c", "k", "tcp/81")
    };
    assert!(world.addresses(&named).is_empty());
    world.delete(&external("b", "tcp/443", &[]));
    world.settle(&with_key);
    assert_eq!(world.addresses(&named), ["192.0.2.1"]);
}

#[test]
fn ones_own_load_balancer_address_as_external_ip_needs_nothing_more() {
    let mut world = world();
    let asked = Request {
        external: vec![ip("10.0.0.0"), ip("192.0.2.7"), ip("192.0.2.7")],
        ..request("a")
    };
    assert_eq!(world.addresses(&asked), ["10.0.0.0", "192.0.2.7"]);
    assert!(world.problems(&asked).is_empty());
}

#[test]
fn an_external_ip_that_becomes_the_load_balancer_address_stays_claimed() {
    let mut world = world();
    world.settle(&external("a", "tcp/80", &["192.0.2.1"]));
    let named = Request {
        addresses: vec![ip("192.0.2.1")],
        ..request("a")
    };
    assert_eq!(world.addresses(&named), ["192.0.2.1"]);
    assert_eq!(world.claims.len(), 1);
    let auto = Request {
        external: vec![ip("192.0.2.1")],
        ..request("b")
    };
    assert_eq!(world.addresses(&auto), ["10.0.0.0"], "and none becomes one by itself");
}

#[test]
fn an_external_ip_is_kept_when_its_pool_changes_its_mind() {
    let mut world = world();
    let asked = external("a", "tcp/80", &["192.0.2.1"]);
    world.settle(&asked);
    world.pools.apply(&pool("open", 1, &["192.0.2.0/24"]));
    assert_eq!(world.addresses(&asked), ["192.0.2.1"]);
    assert!(
        world.addresses(&external("b", "tcp/443", &["192.0.2.1"])).is_empty(),
        "but nobody new gets it"
    );
    world.pools.delete("open");
    let outcome = world.settle(&asked);
    assert_eq!((outcome.assignments.len(), outcome.outside), (1, vec![ip("192.0.2.1")]));
}
