//! Which addresses a Service shall have, and the first write that is missing for it.
//!
//! Never takes an address away from anybody, and never moves one that a Service's request still allows.

use std::net::IpAddr;

use super::{Assignment, ClaimWrite, Claims, Family, Pools, Problem, Request};

/// What a Service shall have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// All addresses that it shall have, held or yet to be claimed: load balancer addresses in the order of its families, then
    /// external ones in the order of its spec.
    pub assignments: Vec<Assignment>,
    /// The first write that must succeed before all of `assignments` may be used; then ask again. `None`: all are held, with
    /// all ports.
    pub next: Option<ClaimWrite>,
    /// Why it has not all that it asks for: each a reason for an `AllocationFailed`.
    pub problems: Vec<Problem>,
    /// Claims, and ports of claims, that it holds and does not want any more.
    pub surplus: Vec<Surplus>,
    /// Addresses that are kept though no pool has them any more.
    pub outside: Vec<IpAddr>,
    /// Families without an address, though asked for; no problem where the policy is `PreferDualStack`.
    pub missing: Vec<Family>,
}

/// What is held and not wanted any more. To be written only when neither the status nor the table uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct Surplus {
    /// The address.
    pub address: IpAddr,
    /// Whether the table may name it until the status has moved on: else somebody else has one of the Service's ports there, or
    /// may have tomorrow, and the table must leave it at once.
    pub serve: bool,
    /// The write that gives it back: the claim, or the ports that are not used any more.
    pub write: ClaimWrite,
}

/// Decides which addresses the Service shall have, and the first write that is missing.
pub fn assign(_pools: &Pools, _claims: &Claims, _request: &Request) -> Outcome {
    Outcome::default()
}
