//! What is asked of nodes, from what tables say.

use operator_api::HealthCheck;

use super::*;

/// What is asked of the nodes of a VIP, in words.
fn asked(index: &Index, address: &str) -> Option<Vec<String>> {
    let snapshot = index.snapshot();
    let vip = &snapshot.vips[&key(address, 80)];
    let checks = vip.checks.as_ref()?;
    Some(checks.list.iter().map(ToString::to_string).collect())
}

fn checked(address: &str, health_check: Option<HealthCheck>) -> VipTableSpec {
    VipTableSpec {
        health_check,
        ..spec(&[address], &[80])
    }
}

#[test]
fn nodes_are_asked_at_the_port_that_the_table_names_and_through_the_tunnel() {
    let mut index = index();
    let cases = [
        (
            "203.0.113.1",
            Some(HealthCheck::KubeProxy { port: 10256 }),
            Some(vec!["http :10256/healthz", "tunnel"]),
        ),
        (
            "203.0.113.2",
            Some(HealthCheck::ServicePort {
                port: 31_234,
                ignored: false,
            }),
            Some(vec!["http :31234/healthz", "tunnel"]),
        ),
        // All endpoints terminate: nodes say 503 and are served all the same.
        (
            "203.0.113.3",
            Some(HealthCheck::ServicePort {
                port: 31_234,
                ignored: true,
            }),
            Some(vec!["tunnel"]),
        ),
        ("203.0.113.4", None, None),
    ];
    for (at, (address, check, expected)) in cases.into_iter().enumerate() {
        index.apply_table(object(&format!("shop.web-{at}"), 1, 20, checked(address, check)));
        let expected = expected.map(|words| words.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(asked(&index, address), expected, "{check:?}");
    }
    // One set for all of them: what is asked of nodes is no part of where flows go.
    let snapshot = index.snapshot();
    let mut sets = snapshot.vips.values().map(|vip| Arc::as_ptr(&vip.set));
    let first = sets.next();
    assert!(sets.all(|set| Some(set) == first));
}

#[test]
fn another_check_alone_is_news() {
    let mut index = index();
    let check = |ignored| Some(HealthCheck::ServicePort { port: 31_234, ignored });
    index.apply_table(object("shop.web", 1, 20, checked("203.0.113.1", check(false))));
    let before = index.sequence();
    index.apply_table(object("shop.web", 1, 21, checked("203.0.113.1", check(true))));
    assert!(index.sequence() > before);
    assert_eq!(asked(&index, "203.0.113.1"), Some(vec!["tunnel".to_owned()]));
}
