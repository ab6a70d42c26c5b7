//! Which addresses a Service shall have, and the first write that is missing for it.
//!
//! Never takes an address away from anybody, and never moves one that a Service's request still allows.

use std::{collections::BTreeSet, net::IpAddr};

use operator_api::{MAX_VIP_PORTS, TransportPort, Use};

use super::{
    Assignment, Claim, ClaimWrite, Claims, Family, MAX_SHARING_KEY, Pool, Pools, Problem, Request, external,
    load_balancer, share::Applicant,
};

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
    /// Whether the table may name it until the status has moved on: else the claim has not all of the Service's ports, somebody
    /// else may have them there, and the table must leave it at once.
    pub serve: bool,
    /// The write that gives it back: the claim, or the ports that are not used any more.
    pub write: ClaimWrite,
}

/// Decides which addresses the Service shall have, and the first write that is missing. A Service without a port that can be
/// served, or with too many, keeps what it has, and nothing is written.
pub fn assign(pools: &Pools, claims: &Claims, request: &Request) -> Outcome {
    let mut desk = Desk::new(pools, claims, request);
    let ports = request.ports.len();
    if ports == 0 || ports > MAX_VIP_PORTS {
        desk.problems.push(if ports == 0 {
            Problem::NoPorts
        } else {
            Problem::TooManyPorts(ports)
        });
        return desk.unchanged();
    }
    let mut assignments = load_balancer::choose(&mut desk);
    let external = external::choose(&mut desk, &assignments);
    assignments.extend(external);
    desk.finish(assignments)
}

/// What is at hand while deciding.
pub(super) struct Desk<'a> {
    pub(super) pools: &'a Pools,
    pub(super) claims: &'a Claims,
    pub(super) request: &'a Request,
    pub(super) problems: Vec<Problem>,
    key: Option<&'a str>,
}

impl<'a> Desk<'a> {
    fn new(pools: &'a Pools, claims: &'a Claims, request: &'a Request) -> Self {
        let mut problems = Vec::new();
        let key = request
            .sharing_key
            .as_deref()
            .filter(|key| !key.is_empty())
            .filter(|key| {
                let fits = key.len() <= MAX_SHARING_KEY;
                if !fits {
                    problems.push(Problem::KeyTooLong(key.len()));
                }
                fits
            });
        Self {
            pools,
            claims,
            request,
            problems,
            key,
        }
    }

    pub(super) const fn key(&self) -> Option<&'a str> {
        self.key
    }

    pub(super) fn applicant(&self, used_as: Use) -> Applicant<'a> {
        Applicant {
            service: &self.request.service,
            used_as,
            ports: &self.request.ports,
            key: self.key,
            installation: self.claims.installation(),
        }
    }

    /// What it holds, in the order of addresses.
    pub(super) fn held(&self) -> impl Iterator<Item = &'a Claim> + use<'a> {
        self.claims.held_by(&self.request.service)
    }

    /// Whether an address is its own, or free, or held by those who share it with it.
    pub(super) fn obtainable(&self, address: IpAddr, pool: &Pool, used_as: Use) -> Result<(), Problem> {
        let applicant = self.applicant(used_as);
        match self.claims.by_address(address) {
            None => Ok(()),
            Some(claim) if claim.holder(&self.request.service).is_some() => applicant.may_stay(claim),
            Some(claim) => applicant.may_join(claim, pool),
        }
    }

    /// The pool that an address belongs to: the one that its claim names, as long as that has it.
    pub(super) fn pool_of(&self, claim: &'a Claim) -> &'a str {
        let named = self.claimed_from(claim);
        match named.or_else(|| self.pools.covering(claim.address())) {
            Some(pool) => pool.name(),
            None => &claim.object().spec.pool,
        }
    }

    fn claimed_from(&self, claim: &Claim) -> Option<&'a Pool> {
        self.pools
            .by_name(&claim.object().spec.pool)
            .filter(|pool| pool.contains(claim.address()))
    }

    /// What it holds, from the pool that it asks for where that has the address as well: the claim then says so, and an edit of
    /// that pool does not move it.
    pub(super) fn kept(&self, claim: &'a Claim, used_as: Use) -> Assignment {
        let asked = self.request.pool.as_ref().filter(|_| used_as == Use::LoadBalancer);
        let asked = asked
            .and_then(|name| self.pools.by_name(name))
            .filter(|pool| pool.contains(claim.address()));
        Assignment {
            address: claim.address(),
            pool: asked.map_or_else(|| self.pool_of(claim), Pool::name).to_owned(),
            used_as,
        }
    }

    /// All that it holds, as it is.
    fn unchanged(self) -> Outcome {
        let held = self
            .held()
            .filter_map(|claim| Some((claim, claim.holder(&self.request.service)?.used_as)));
        let mut assignments: Vec<Assignment> = held.map(|(claim, used_as)| self.kept(claim, used_as)).collect();
        let families = &self.request.families;
        assignments.sort_by_key(|kept| {
            let position = families.iter().position(|family| *family == Family::of(kept.address));
            (kept.used_as, position.unwrap_or(usize::MAX), kept.address)
        });
        let outside = self.outside(&assignments);
        Outcome {
            assignments,
            problems: self.problems,
            outside,
            ..Outcome::default()
        }
    }

    fn outside(&self, assignments: &[Assignment]) -> Vec<IpAddr> {
        let addresses = assignments.iter().map(|assignment| assignment.address);
        addresses
            .filter(|address| self.pools.covering(*address).is_none())
            .collect()
    }

    fn finish(mut self, assignments: Vec<Assignment>) -> Outcome {
        let mut next = None;
        let mut surplus = Vec::new();
        for wish in &assignments {
            let claim = self.claims.by_address(wish.address);
            let writes = self.applicant(wish.used_as).writes(wish.address, claim, &wish.pool);
            next = next.or(writes.before);
            surplus.extend(writes.after.map(|write| Surplus {
                address: wish.address,
                serve: true,
                write,
            }));
        }
        let wanted: BTreeSet<IpAddr> = assignments.iter().map(|wish| wish.address).collect();
        for claim in self.held().filter(|claim| !wanted.contains(&claim.address())) {
            let Some(write) = claim.without(&self.request.service) else {
                continue;
            };
            let serve = self.covers_ports(claim);
            if !serve {
                next = next.or_else(|| self.extension(claim));
            }
            surplus.push(Surplus {
                address: claim.address(),
                serve,
                write,
            });
        }
        surplus.sort_by_key(|surplus| surplus.address);
        self.problems.sort_unstable();
        self.problems.dedup();
        let has = |family: &Family| {
            assignments
                .iter()
                .any(|wish| wish.used_as == Use::LoadBalancer && Family::of(wish.address) == *family)
        };
        let missing = self
            .request
            .families
            .iter()
            .copied()
            .filter(|family| !has(family))
            .collect();
        Outcome {
            outside: self.outside(&assignments),
            assignments,
            next,
            problems: self.problems,
            surplus,
            missing,
        }
    }

    /// Whether its part of a claim has all of its ports.
    fn covers_ports(&self, claim: &Claim) -> bool {
        let held = claim
            .holder(&self.request.service)
            .map(|holder| holder.ports.iter().collect());
        let held: BTreeSet<&TransportPort> = held.unwrap_or_default();
        self.request.ports.iter().all(|port| held.contains(port))
    }

    /// What must be written for an address that is in the status and will be left to be served with today's ports until then.
    fn extension(&self, claim: &'a Claim) -> Option<ClaimWrite> {
        let holder = claim.holder(&self.request.service)?;
        let applicant = self.applicant(holder.used_as);
        if !self.request.current.contains(&claim.address()) || applicant.may_stay(claim).is_err() {
            return None;
        }
        applicant
            .writes(claim.address(), Some(claim), self.pool_of(claim))
            .before
    }
}
