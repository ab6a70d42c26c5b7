//! Annotations of a Service that are read: ours, and MetalLB's where ours are absent.
//!
//! Never guesses: a value that cannot be read is a refusal that names annotation and value.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::Service;
use operator_api::{
    ANNOTATION_ADDRESSES, ANNOTATION_FORWARDING_MODE, ANNOTATION_HEALTH_CHECK, ANNOTATION_POOL, ANNOTATION_SCHEDULER,
    ANNOTATION_SHARING_KEY, ForwardingMode, METALLB_PREFIXES, Scheduler,
};

use super::wanted::Refusal;
use crate::ipam::Family;

/// Longest sharing key that a claim can hold.
const MAX_SHARING_KEY: usize = 253;
/// Longest name of a pool.
const MAX_POOL_NAME: usize = 253;

/// What annotations ask for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) addresses: Vec<IpAddr>,
    /// Addresses were named, be it badly: `spec.loadBalancerIP` does not count.
    pub(super) has_addresses: bool,
    pub(super) pool: Option<String>,
    pub(super) sharing_key: Option<String>,
    pub(super) mode: ForwardingMode,
    pub(super) scheduler: Scheduler,
    pub(super) no_health_check: bool,
}

/// Reads all of them; `load_balancer`: those about addresses, too, which mean nothing in a Service of another type.
pub(super) fn read(service: &Service, load_balancer: bool, families: &[Family], refusals: &mut Vec<Refusal>) -> Asked {
    let none = BTreeMap::new();
    let annotations = service.metadata.annotations.as_ref().unwrap_or(&none);
    let mut asked = Asked::default();
    if load_balancer {
        if let Some((field, value)) = value_of(annotations, ANNOTATION_ADDRESSES, "loadBalancerIPs") {
            asked.has_addresses = true;
            asked.addresses = addresses(&field, value.split(','), families, refusals);
        }
        asked.pool = text(annotations, ANNOTATION_POOL, "address-pool", MAX_POOL_NAME, refusals);
        let key = ANNOTATION_SHARING_KEY;
        asked.sharing_key = text(annotations, key, "allow-shared-ip", MAX_SHARING_KEY, refusals);
    }
    if let Some(value) = present(annotations, ANNOTATION_FORWARDING_MODE) {
        asked.mode = mode(value, refusals);
    }
    if let Some(value) = present(annotations, ANNOTATION_SCHEDULER) {
        match Scheduler::named(value) {
            Some(scheduler) => asked.scheduler = scheduler,
            None => {
                let why = "not one of Maglev, SourceHash, DestinationHash, RoundRobin, WeightedRoundRobin, LeastConnections, \
                           WeightedLeastConnections, ShortestExpectedDelay, NeverQueue";
                refusals.push(Refusal::bad(ANNOTATION_SCHEDULER, value, why));
            }
        }
    }
    match present(annotations, ANNOTATION_HEALTH_CHECK) {
        None => {}
        Some("none") => asked.no_health_check = true,
        Some(value) => refusals.push(Refusal::bad(ANNOTATION_HEALTH_CHECK, value, "not `none`")),
    }
    asked
}

/// Addresses asked for by name: at most one of each family, and of the Service's families.
pub(super) fn addresses<'a>(
    field: &str,
    values: impl Iterator<Item = &'a str>,
    families: &[Family],
    refusals: &mut Vec<Refusal>,
) -> Vec<IpAddr> {
    let mut by_family = BTreeMap::new();
    for value in values.map(str::trim) {
        let Ok(address) = value.parse::<IpAddr>() else {
            refusals.push(Refusal::bad(field, value, "not an IP address"));
            continue;
        };
        let family = Family::of(address);
        if !families.contains(&family) {
            refusals.push(Refusal::bad(field, value, "not of a family in spec.ipFamilies"));
        } else if by_family.insert(family, address).is_some() {
            refusals.push(Refusal::bad(field, value, "the second address of its family"));
        }
    }
    families.iter().filter_map(|family| by_family.remove(family)).collect()
}

fn mode(value: &str, refusals: &mut Vec<Refusal>) -> ForwardingMode {
    let mode = match value {
        "DsrIpip" => ForwardingMode::DsrIpip,
        "DsrGue" => ForwardingMode::DsrGue,
        "DsrL2" => ForwardingMode::DsrL2,
        "NodePortNat" => ForwardingMode::NodePortNat,
        _ => {
            let why = "not one of DsrIpip, DsrGue, DsrL2, NodePortNat";
            refusals.push(Refusal::bad(ANNOTATION_FORWARDING_MODE, value, why));
            return ForwardingMode::default();
        }
    };
    match mode {
        ForwardingMode::DsrIpip => {}
        ForwardingMode::DsrGue | ForwardingMode::DsrL2 | ForwardingMode::NodePortNat => {
            refusals.push(Refusal::not_served(ANNOTATION_FORWARDING_MODE, value, "DsrIpip is"));
        }
    }
    mode
}

fn text(
    annotations: &BTreeMap<String, String>,
    ours: &str,
    metallb: &str,
    longest: usize,
    refusals: &mut Vec<Refusal>,
) -> Option<String> {
    let (field, value) = value_of(annotations, ours, metallb)?;
    if value.len() > longest {
        refusals.push(Refusal::bad(&field, value, "too long: at most 253 bytes"));
        return None;
    }
    Some(value.to_owned())
}

/// Ours, or MetalLB's under either prefix; and under which name.
fn value_of<'a>(annotations: &'a BTreeMap<String, String>, ours: &str, metallb: &str) -> Option<(String, &'a str)> {
    let theirs = METALLB_PREFIXES.iter().map(|prefix| format!("{prefix}{metallb}"));
    std::iter::once(ours.to_owned())
        .chain(theirs)
        .find_map(|name| present(annotations, &name).map(|value| (name, value)))
}

/// An annotation that says something: an empty one does not.
fn present<'a>(annotations: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    let value = annotations.get(name)?.trim();
    (!value.is_empty()).then_some(value)
}
