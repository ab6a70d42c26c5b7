//! Two installations of Vipline in one cluster: each has its own claims, and takes the other's as they are.

use operator_api::AddressClaim;

use super::world::{World, ip, pool, request, sharing, with};
use crate::ipam::{ClaimWrite, Claims, Owner, Request, key_of};

const HERE: &str = "here/vipline-operator";
const THERE: &str = "there/vipline-operator";

fn world(installation: &str) -> World {
    let pool = pool("p", 1, &["10.0.0.0-10.0.0.3"]);
    World {
        claims: Claims::of(installation.to_owned()),
        ..World::new(&[with(pool, |spec| spec.share_across_namespaces = true)])
    }
}

/// The other one, which has seen what there is in the cluster.
fn beside(one: &World) -> World {
    let mut other = world(if one.claims.installation() == HERE { THERE } else { HERE });
    for claim in one.server.claims.values() {
        assert!(other.claims.apply(claim));
    }
    other.server = one.server.clone();
    other
}

fn named(name: &str, address: &str) -> Request {
    Request {
        addresses: vec![ip(address)],
        ..request(name)
    }
}

/// Takes out of a claim whose it is, as versions wrote it that did not say.
fn forget_installation(world: &mut World, name: &str) -> AddressClaim {
    let claim = world.server.claims.get_mut(name).unwrap();
    claim.spec.installation = None;
    let claim = claim.clone();
    assert!(world.claims.apply(&claim));
    claim
}

#[test]
fn a_claim_says_whose_it_is_and_another_installation_allocates_around_it() {
    let mut here = world(HERE);
    assert_eq!(here.addresses(&request("web")), ["10.0.0.0"]);
    let claim = &here.server.claims["10.0.0.0"];
    assert_eq!(claim.spec.installation.as_deref(), Some(HERE));
    let mut there = beside(&here);
    assert_eq!(there.addresses(&request("other")), ["10.0.0.1"]);
    assert_eq!(
        there.problems(&named("third", "10.0.0.0")),
        [
            "10.0.0.0 is held by the installation here/vipline-operator for Service web/web: name another, or have it given back there"
        ]
    );
    // It is used, whoever uses it.
    let status = there
        .pools
        .status("p", &there.claims, jiff::Timestamp::UNIX_EPOCH)
        .unwrap();
    assert_eq!((status.used, status.free), (2, 2));
}

#[test]
fn no_key_makes_two_installations_share_an_address() {
    let mut here = world(HERE);
    assert_eq!(here.addresses(&sharing("web", "k", "tcp/80")), ["10.0.0.0"]);
    assert_eq!(
        here.addresses(&sharing("same", "k", "tcp/81")),
        ["10.0.0.0"],
        "the control: within one it does"
    );
    let mut there = beside(&here);
    assert_eq!(there.addresses(&sharing("other", "k", "tcp/82")), ["10.0.0.1"]);
}

#[test]
fn what_another_installation_holds_for_the_same_service_is_neither_kept_nor_given_back() {
    let mut here = world(HERE);
    let web = request("web");
    here.settle(&web);
    let there = beside(&here);
    let claim = there.claims.by_address(ip("10.0.0.0")).unwrap();
    assert_eq!((claim.owner(), claim.holder(&web.service)), (Owner::Others, None));
    assert!(claim.without(&web.service).is_none() && claim.taken_over(THERE).is_none());
    assert_eq!(there.claims.held_by(&web.service).count(), 0);
    let key = key_of(&web.service);
    assert!(!there.claims.marks(&key) && there.claims.is_of_others(&key));
    assert!(here.claims.marks(&key) && !here.claims.is_of_others(&key));
    let mut moved = web.clone();
    moved.current = vec![ip("10.0.0.0")];
    let outcome = there.ask(&moved);
    assert_eq!(
        outcome.assignments[0].address,
        ip("10.0.0.1"),
        "until it is given back there"
    );
    assert!(outcome.surplus.is_empty(), "{outcome:?}");
}

#[test]
fn a_claim_that_does_not_say_whose_it_is_is_taken_over_once_by_who_serves_its_holder() {
    let mut here = world(HERE);
    let web = request("web");
    here.settle(&web);
    let old = forget_installation(&mut here, "10.0.0.0");
    let mut there = beside(&here);
    assert_eq!(there.addresses(&request("other")), ["10.0.0.1"], "taken all the same");
    let key = key_of(&web.service);
    assert!(
        !there.claims.marks(&key) && !here.claims.marks(&key),
        "no sign that a Service was ours"
    );
    let Some(ClaimWrite::Replace(new)) = here.ask(&web).next else {
        panic!("it is to be written");
    };
    assert_eq!(new.metadata, old.metadata, "that version of it, or 409");
    assert_eq!(new.spec.installation.as_deref(), Some(HERE));
    let before = here.server.version;
    here.settle(&web);
    here.settle(&web);
    assert_eq!(here.server.version, before + 1, "one write");
    assert!(there.claims.apply(&here.server.claims["10.0.0.0"]));
    assert!(there.claims.is_of_others(&key));
}

#[test]
fn what_comes_and_goes_leaves_nothing_of_others_behind() {
    let mut here = world(HERE);
    let web = request("web");
    here.settle(&web);
    let mut there = beside(&here);
    let key = key_of(&web.service);
    let mut theirs = here.server.claims["10.0.0.0"].clone();
    // From another's to nobody's to ours, and gone.
    assert!(there.claims.is_of_others(&key));
    theirs.spec.installation = None;
    assert!(there.claims.apply(&theirs));
    assert!(!there.claims.is_of_others(&key) && there.claims.held_by(&web.service).count() == 1);
    theirs.spec.installation = Some(THERE.to_owned());
    assert!(there.claims.apply(&theirs));
    assert!(there.claims.marks(&key));
    assert!(there.claims.delete("10.0.0.0"));
    assert!(!there.claims.marks(&key) && !there.claims.is_of_others(&key) && there.claims.is_empty());
    // Prefixes of worker nodes: what is claimed outside of pools, by us.
    let outside = AddressClaim {
        spec: operator_api::AddressClaimSpec {
            address: "10.9.9.9".to_owned(),
            installation: Some(HERE.to_owned()),
            ..theirs.spec.clone()
        },
        metadata: kube::core::ObjectMeta {
            name: Some("10.9.9.9".to_owned()),
            ..theirs.metadata.clone()
        },
    };
    assert!(here.claims.apply(&outside) && there.claims.apply(&outside));
    let prefixes = |world: &World| world.pools.prefixes(&world.claims).len();
    assert_eq!((prefixes(&here), prefixes(&there)), (2, 1));
}
