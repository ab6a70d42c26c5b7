//! Size: what must not be looked at one by one.

use std::time::Instant;

use super::world::{World, dual, ip, pool, request, sharing, with};
use crate::ipam::Request;

#[test]
fn ten_thousand_services_get_their_addresses_from_a_16() {
    let mut world = World::new(&[with(pool("p", 1, &["10.0.0.0/16"]), |spec| spec.avoid_buggy_ips = true)]);
    let requests: Vec<Request> = (0..10_000).map(|index| request(&format!("s{index}"))).collect();
    let start = Instant::now();
    for request in &requests {
        let outcome = world.ask(request);
        world.write(&outcome.next.unwrap());
    }
    let born = start.elapsed();
    let start = Instant::now();
    let again = requests
        .iter()
        .filter(|request| world.ask(request).next.is_none())
        .count();
    let restart = start.elapsed();
    println!("10,000 Services: chosen and claimed in {born:?}, asked again in {restart:?}");
    assert_eq!((world.claims.len(), again), (10_000, 10_000));
}

#[test]
fn the_first_gap_is_found_behind_ten_thousand_claims_and_in_the_whole_of_ipv6() {
    let mut world = World::new(&[pool("p", 1, &["::/0", "10.0.0.0/8"])]);
    for index in 0..1_000 {
        let outcome = world.ask(&dual(&format!("s{index}"), true));
        world.write(&outcome.next.unwrap());
        let outcome = world.ask(&dual(&format!("s{index}"), true));
        world.write(&outcome.next.unwrap());
    }
    world.delete(&dual("s500", true));
    assert_eq!(
        world.addresses(&dual("next", true)),
        ["10.0.1.244", "::1f6"],
        "the lowest that is free"
    );
    assert_eq!(world.addresses(&dual("last", true)), ["10.0.3.232", "::3ea"]);
}

#[test]
fn the_last_address_of_each_family_is_handed_out_and_then_no_more() {
    let mut world = World::new(&[pool(
        "p",
        1,
        &[
            "255.255.255.253-255.255.255.255",
            "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
        ],
    )]);
    assert_eq!(
        world.addresses(&dual("a", true)),
        ["255.255.255.253", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
    );
    assert_eq!(world.addresses(&request("b")), ["255.255.255.254"]);
    assert!(
        world.addresses(&request("c")).is_empty(),
        "the broadcast address is none"
    );
    world.claims.reserve(ip("255.255.255.255"));
    assert!(world.addresses(&request("c")).is_empty());
}

#[test]
fn many_who_share_are_found_by_their_key() {
    let mut world = World::new(&[pool("p", 1, &["10.0.0.0/16"])]);
    let start = Instant::now();
    for index in 0..2_000 {
        let key = format!("key{}", index % 200);
        let request = sharing(&format!("s{index}"), &key, &format!("tcp/{}", index + 1));
        let outcome = world.ask(&request);
        world.write(&outcome.next.unwrap());
    }
    println!(
        "2,000 Services on {} addresses in {:?}",
        world.claims.len(),
        start.elapsed()
    );
    assert_eq!(world.claims.len(), 200);
}
