//! The VipTable of a Service.
//!
//! Never names an address whose claim has not all of the table's ports, and never drops one that clients still learn from the
//! Service's status while it may be served: make before break.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use operator_api::{Use, VipAddress, VipTable, VipTableSpec};

use super::Action;
use crate::{
    index::{Index, Serve},
    ipam::{Outcome, key_of},
};

/// Most addresses of a table.
const MAX_ADDRESSES: usize = 64;

/// What the table shall say when all of a Service's addresses are held: those, and those that its status still names.
pub(super) fn whole(
    index: &Index,
    serve: &Serve,
    outcome: &Outcome,
    published: &BTreeSet<IpAddr>,
) -> Option<VipTableSpec> {
    let mut addresses: Vec<VipAddress> = outcome
        .assignments
        .iter()
        .map(|assignment| VipAddress {
            address: assignment.address.to_string(),
            pool: assignment.pool.clone(),
            used_as: assignment.used_as,
            announcements: index.announcements_of(&assignment.pool, &key_of(&serve.service)),
        })
        .collect();
    let assigned: BTreeSet<IpAddr> = outcome
        .assignments
        .iter()
        .map(|assignment| assignment.address)
        .collect();
    let leaving = outcome.surplus.iter().filter(|surplus| {
        let address = &surplus.address;
        surplus.serve
            && published.contains(address)
            && !assigned.contains(address)
            && !serve.request.families.is_empty()
    });
    addresses.extend(leaving.filter_map(|surplus| {
        let claim = index.claims().by_address(surplus.address)?;
        let pool = claim.object().spec.pool.clone();
        Some(VipAddress {
            address: surplus.address.to_string(),
            announcements: index.announcements_of(&pool, &key_of(&serve.service)),
            pool,
            used_as: Use::LoadBalancer,
        })
    }));
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() || serve.ports.is_empty() {
        return None;
    }
    let (backends, health_check) = index.backends(serve);
    Some(VipTableSpec {
        service: serve.service.clone(),
        addresses,
        ports: serve.ports.clone(),
        mode: serve.mode,
        scheduler: serve.scheduler,
        affinity: serve.affinity,
        source_ranges: serve.source_ranges.clone(),
        backends,
        health_check,
    })
}

/// The last good table of a Service that asks for something it cannot have: as it was, with today's backends, and only with
/// addresses that the Service still has. `None`: nothing of it can stay.
pub(super) fn last_good(
    index: &Index,
    serve: &Serve,
    table: &VipTable,
    published: &BTreeSet<IpAddr>,
) -> Option<VipTableSpec> {
    if serve.ports.is_empty() {
        return None;
    }
    let mut spec = table.spec.clone();
    spec.addresses.retain(|address| {
        address.ip().is_some_and(|ip| match address.used_as {
            Use::LoadBalancer => !serve.request.families.is_empty() && published.contains(&ip),
            Use::ExternalIP => serve.request.external.contains(&ip),
        })
    });
    for address in &mut spec.addresses {
        address.announcements = index.announcements_of(&address.pool, &key_of(&serve.service));
    }
    let (backends, health_check) = index.backends(serve);
    spec.backends = backends;
    spec.health_check = spec.health_check.and(health_check);
    (!spec.addresses.is_empty()).then_some(spec)
}

/// The object; bound to the version that was looked at, so that an operator that is behind undoes nothing.
pub(super) fn object(index: &Index, spec: VipTableSpec, before: Option<&VipTable>) -> VipTable {
    VipTable {
        metadata: ObjectMeta {
            name: Some(VipTable::name_of(&spec.service.namespace, &spec.service.name)),
            namespace: Some(index.settings().namespace.clone()),
            uid: before.and_then(|before| before.metadata.uid.clone()),
            resource_version: before.and_then(|before| before.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec,
    }
}

/// The write that takes it away.
pub(super) fn deletion(table: &VipTable) -> Action {
    let metadata = &table.metadata;
    Action::DeleteTable {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// Whether a table serves something else than the earlier one, or to others: new backends alone are nothing to tell of.
pub(super) fn is_news(spec: &VipTableSpec, before: &VipTableSpec) -> bool {
    let quiet = VipTableSpec {
        backends: spec.backends.clone(),
        health_check: spec.health_check,
        addresses: spec.addresses.clone(),
        ..before.clone()
    };
    let policy = std::mem::discriminant(&spec.backends) != std::mem::discriminant(&before.backends);
    policy || quiet != *spec
}
