//! A pool, parsed.
//!
//! Never gives a half of what was meant: a pool with any fault hands nothing out, and says which fault.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector, SelectorExt as _};
use operator_api::{AddressPool, AddressPoolSpec};
use thiserror::Error;

use super::{
    Family, Problem, Request,
    range::{Range, RangeFault, is_edge, merge},
};

/// What is wrong with a pool beyond what its schema refuses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolFault {
    /// An entry of `spec.addresses`.
    #[error("spec.addresses[{index}]: {fault}")]
    Range {
        /// Which.
        index: usize,
        /// What is wrong with it.
        fault: RangeFault,
    },
    /// It has no addresses.
    #[error("spec.addresses: is empty")]
    Empty,
    /// A selector.
    #[error("spec.{field}: {fault}")]
    Selector {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        fault: String,
    },
}

/// An [`AddressPool`], parsed.
#[derive(Debug)]
pub struct Pool {
    object: AddressPool,
    ranges: Vec<Range>,
    /// Kinds of special addresses that its blocks have and that are left out.
    left_out: Vec<&'static str>,
    faults: Vec<PoolFault>,
    namespace_selector: Option<Selector>,
    service_selector: Option<Selector>,
    /// The earlier pool with which it overlaps, and the first address that both have.
    pub(super) conflict: Option<(String, IpAddr)>,
}

impl Pool {
    /// Of an object that may say anything.
    pub(super) fn parse(object: &AddressPool) -> Self {
        let spec = &object.spec;
        let mut faults = Vec::new();
        let mut left_out = Vec::new();
        let mut ranges = Vec::new();
        for (index, entry) in spec.addresses.iter().enumerate() {
            match usable(entry) {
                Ok((left, kinds)) => {
                    ranges.extend(left);
                    left_out.extend(kinds);
                }
                Err(fault) => faults.push(PoolFault::Range { index, fault }),
            }
        }
        if spec.addresses.is_empty() {
            faults.push(PoolFault::Empty);
        }
        left_out.sort_unstable();
        left_out.dedup();
        let mut selector = |field, selector: &Option<LabelSelector>| {
            parse_selector(selector.as_ref()?)
                .map_err(|fault| faults.push(PoolFault::Selector { field, fault }))
                .ok()
        };
        let namespace_selector = selector("namespaceSelector", &spec.namespace_selector);
        let service_selector = selector("serviceSelector", &spec.service_selector);
        Self {
            object: object.clone(),
            ranges: merge(ranges),
            left_out,
            faults,
            namespace_selector,
            service_selector,
            conflict: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// The object that it was parsed from.
    pub fn object(&self) -> &AddressPool {
        &self.object
    }

    /// What people wrote.
    pub fn spec(&self) -> &AddressPoolSpec {
        &self.object.spec
    }

    /// Its addresses, in order, without those that can be no VIP address.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// What is wrong with it.
    pub fn faults(&self) -> &[PoolFault] {
        &self.faults
    }

    /// Kinds of addresses that its blocks have and that it leaves out, as no Service can have them.
    pub fn left_out(&self) -> &[&'static str] {
        &self.left_out
    }

    /// The earlier pool that it overlaps with, and the first address that both have.
    pub fn conflict(&self) -> Option<(&str, IpAddr)> {
        self.conflict.as_ref().map(|(with, at)| (with.as_str(), *at))
    }

    /// Whether it has an address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let index = self.ranges.partition_point(|range| range.last() < address);
        self.ranges.get(index).is_some_and(|range| range.contains(address))
    }

    /// Whether it has addresses of a family.
    pub fn has(&self, family: Family) -> bool {
        self.ranges.iter().any(|range| range.family() == family)
    }

    /// Whether it leaves an address out that it has.
    pub fn avoids(&self, address: IpAddr) -> bool {
        self.object.spec.avoid_buggy_ips && is_edge(address)
    }

    /// Whether it hands out anything now.
    ///
    /// # Errors
    /// Why not.
    pub fn usable(&self) -> Result<(), Problem> {
        if let Some(fault) = self.faults.first() {
            return Err(Problem::PoolInvalid {
                pool: self.name().to_owned(),
                fault: fault.to_string(),
            });
        }
        match &self.conflict {
            Some((with, _)) => Err(Problem::PoolConflict {
                pool: self.name().to_owned(),
                with: with.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Whether a Service may have its addresses.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self, request: &Request) -> Result<(), Problem> {
        let spec = &self.object.spec;
        let namespace = &request.service.namespace;
        let open = spec.namespaces.is_empty() && spec.namespace_selector.is_none();
        let selected = |selector: &Selector| selector.matches(&request.namespace_labels);
        if !(open || spec.namespaces.contains(namespace) || self.namespace_selector.as_ref().is_some_and(selected)) {
            return Err(Problem::PoolNotForNamespace {
                pool: self.name().to_owned(),
                namespace: namespace.clone(),
            });
        }
        match &self.service_selector {
            Some(selector) if !selector.matches(&request.labels) => Err(Problem::PoolNotForLabels {
                pool: self.name().to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Order in which pools are tried: by priority, those for some Services only before those for all, then by name.
    pub(super) fn rank(&self) -> (i64, bool, &str) {
        let spec = &self.object.spec;
        let for_all =
            spec.namespaces.is_empty() && spec.namespace_selector.is_none() && spec.service_selector.is_none();
        (spec.priority.map_or(i64::MAX, i64::from), for_all, self.name())
    }

    /// Which of two pools that overlap came first: by creation, then by name. One whose creation is unknown is the later.
    pub(super) fn seniority(&self) -> (Timestamp, &str) {
        let created = self.object.metadata.creation_timestamp.as_ref();
        (created.map_or(Timestamp::MAX, |time| time.0), self.name())
    }
}

/// What can be load balanced of an entry, and the kinds of addresses that cannot.
fn usable(entry: &str) -> Result<(Vec<Range>, Vec<&'static str>), RangeFault> {
    let (left, kinds) = Range::parse(entry)?.without_special();
    match kinds.first() {
        Some(what) if left.is_empty() => Err(RangeFault::Special {
            entry: entry.chars().take(90).collect(),
            what,
        }),
        Some(_) | None => Ok((left, kinds)),
    }
}

/// A selector, where it makes sense.
///
/// # Errors
/// Why it does not.
pub(crate) fn parse_selector(selector: &LabelSelector) -> Result<Selector, String> {
    let requirements = selector.match_expressions.iter().flatten();
    for requirement in requirements {
        let needs_values = matches!(requirement.operator.as_str(), "In" | "NotIn");
        if needs_values && requirement.values.as_ref().is_none_or(Vec::is_empty) {
            return Err(format!(
                "operator {} of key {:?} has no values",
                requirement.operator, requirement.key
            ));
        }
    }
    selector
        .clone()
        .try_into()
        .map_err(|fault: ParseExpressionError| fault.0)
}
