//! Sources that may use a Service.
//!
//! Never shuts a family out that its list does not speak of: that family's whole range is added.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Service;
use operator_api::ANNOTATION_SOURCE_RANGES;

use super::wanted::Refusal;

/// Most ranges that a table can hold.
const MAX_SOURCE_RANGES: usize = 1_024;

/// Sorted and without overlap; `None`: everybody may. The field wins over the annotation, and an absurd range is a refusal.
pub(super) fn source_ranges(service: &Service, refusals: &mut Vec<Refusal>) -> Option<Vec<String>> {
    let spec = service.spec.as_ref()?;
    let in_field = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let annotation = || {
        let annotations = service.metadata.annotations.as_ref()?;
        let value = annotations.get(ANNOTATION_SOURCE_RANGES)?.trim();
        (!value.is_empty()).then_some(value)
    };
    let (field, ranges): (_, Vec<&str>) = if in_field.is_empty() {
        (ANNOTATION_SOURCE_RANGES, annotation()?.split(',').collect())
    } else {
        (
            "spec.loadBalancerSourceRanges",
            in_field.iter().map(String::as_str).collect(),
        )
    };
    let mut parsed = Vec::with_capacity(ranges.len());
    for range in ranges {
        match range.trim().parse::<IpNet>() {
            Ok(range) => parsed.push(range.trunc()),
            Err(_) => {
                refusals.push(Refusal::bad(field, range, "not a CIDR block such as 192.0.2.0/24"));
                return None;
            }
        }
    }
    let mut ranges = IpNet::aggregate(&parsed);
    let of_both = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    for whole in of_both {
        if !ranges.iter().any(|range| same_family(range, &whole)) {
            ranges.push(whole);
        }
    }
    ranges.sort_unstable();
    if ranges == of_both {
        return None;
    }
    if ranges.len() > MAX_SOURCE_RANGES {
        refusals.push(Refusal::TooMany {
            field: field.to_owned(),
            count: ranges.len(),
            most: MAX_SOURCE_RANGES,
        });
        return None;
    }
    Some(ranges.iter().map(IpNet::to_string).collect())
}

const fn same_family(one: &IpNet, other: &IpNet) -> bool {
    matches!(
        (one, other),
        (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_))
    )
}
