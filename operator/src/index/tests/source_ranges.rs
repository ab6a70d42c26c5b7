//! Source ranges: the cases of cloud-provider's `helper_test.go`, and families.

use serde_json::json;

use super::*;

const LEGACY: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

fn by_field(ranges: &str) -> Serve {
    let ranges: Vec<&str> = ranges.split(',').collect();
    serve(json!({"spec": {"loadBalancerSourceRanges": ranges}}))
}

fn by_annotation(ranges: &str) -> Serve {
    serve(json!({"metadata": {"annotations": {LEGACY: ranges}}}))
}

/// `TestGetLoadBalancerSourceRanges`, its errors.
#[test]
fn cloud_provider_bad_source_ranges_are_refused_in_field_and_annotation() {
    for bad in [
        "10.0.0.1/33",
        "foo.bar",
        "10.0.0.1/32,*",
        "10.0.0.1/32,",
        "10.0.0.1/32, ",
        "10.0.0.1",
    ] {
        for serve in [by_field(bad), by_annotation(bad)] {
            assert!(!serve.is_accepted(), "{bad}");
            assert_eq!(serve.source_ranges, None);
        }
    }
}

/// `TestGetLoadBalancerSourceRanges` and `TestAllowAll`, what they take.
#[test]
fn cloud_provider_good_source_ranges_are_trimmed_and_each_is_there_once() {
    let cases: [(&str, Option<&[&str]>); 8] = [
        ("192.168.0.1/32", Some(&["192.168.0.1/32", "::/0"])),
        ("192.168.0.1/32,192.168.0.1/32", Some(&["192.168.0.1/32", "::/0"])),
        (
            "192.168.0.1/32,192.168.0.4/32",
            Some(&["192.168.0.1/32", "192.168.0.4/32", "::/0"]),
        ),
        (
            "  192.168.0.1/32 , 192.168.0.4/32   ",
            Some(&["192.168.0.1/32", "192.168.0.4/32", "::/0"]),
        ),
        ("10.0.0.1/32,10.0.0.2/32", Some(&["10.0.0.1/32", "10.0.0.2/32", "::/0"])),
        ("0.0.0.0/0", None),
        ("192.168.0.0/0", None),
        ("192.168.0.1/32,0.0.0.0/0", None),
    ];
    for (ranges, expected) in cases {
        let expected = expected.map(|ranges| ranges.iter().map(|range| (*range).to_owned()).collect::<Vec<_>>());
        for serve in [by_field(ranges), by_annotation(ranges)] {
            assert!(serve.is_accepted(), "{ranges}");
            assert_eq!(serve.source_ranges, expected, "{ranges}");
        }
    }
}

#[test]
fn without_ranges_everybody_may() {
    assert_eq!(serve(json!({})).source_ranges, None);
    assert_eq!(by_annotation("").source_ranges, None);
    assert_eq!(by_annotation("  ").source_ranges, None);
}

#[test]
fn the_field_wins_over_the_annotation() {
    let both = serve(json!({
        "metadata": {"annotations": {LEGACY: "nonsense"}},
        "spec": {"loadBalancerSourceRanges": ["192.0.2.0/24"]},
    }));
    assert!(both.is_accepted());
    assert_eq!(both.source_ranges.unwrap(), ["192.0.2.0/24", "::/0"]);
}

#[test]
fn a_family_without_a_range_is_not_shut_out() {
    assert_eq!(
        by_field("2001:db8::/32").source_ranges.unwrap(),
        ["0.0.0.0/0", "2001:db8::/32"]
    );
    assert_eq!(
        by_field("2001:db8::/32,192.0.2.0/24").source_ranges.unwrap(),
        ["192.0.2.0/24", "2001:db8::/32"]
    );
}

#[test]
fn ranges_that_touch_become_one_and_host_bits_fall_away() {
    assert_eq!(
        by_field("192.0.2.0/25,192.0.2.200/25,192.0.2.7/32")
            .source_ranges
            .unwrap(),
        ["192.0.2.0/24", "::/0"]
    );
}

#[test]
fn more_ranges_than_a_table_holds_are_refused() {
    let many: Vec<String> = (0..1_025)
        .map(|number| format!("10.{}.{}.0/32", number / 128, number % 128 * 2))
        .collect();
    let serve = serve(json!({"spec": {"loadBalancerSourceRanges": many}}));
    assert_eq!(serve.refusals[0].reason(), "TooMany");
}
