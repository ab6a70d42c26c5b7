//! Load balancer addresses that a Service asks for by name.
//!
//! Never gives another one instead.

use std::{collections::BTreeMap, net::IpAddr};

use operator_api::Use;

use super::{Assignment, Family, Problem, assign::Desk, special};

/// Addresses asked for by name.
pub(super) struct Named {
    by_family: BTreeMap<Family, Result<IpAddr, ()>>,
    /// All that are named are of families that the Service does not have.
    astray: bool,
}

impl Named {
    pub(super) fn of(desk: &mut Desk<'_>, families: &[Family]) -> Self {
        let mut by_family: BTreeMap<Family, Result<IpAddr, ()>> = BTreeMap::new();
        for &address in &desk.request.addresses {
            let family = Family::of(address);
            let wish = if !families.contains(&family) {
                desk.problems.push(Problem::FamilyNotAsked { address, family });
                continue;
            } else if let Some(what) = special(address) {
                desk.problems.push(Problem::Special { address, what });
                Err(())
            } else {
                Ok(address)
            };
            if by_family.get(&family).is_some_and(|first| *first != wish) {
                desk.problems.push(Problem::SecondOfFamily { address });
                by_family.insert(family, Err(()));
            } else {
                by_family.insert(family, wish);
            }
        }
        let astray = by_family.is_empty() && !desk.request.addresses.is_empty();
        Self { by_family, astray }
    }

    /// `None`: any will do. `Some(Err)`: none will.
    pub(super) fn of_family(&self, family: Family) -> Option<Result<IpAddr, ()>> {
        if self.astray {
            Some(Err(()))
        } else {
            self.by_family.get(&family).copied()
        }
    }
}

/// An address asked for by name.
pub(super) fn exactly(desk: &mut Desk<'_>, address: IpAddr) -> Option<Assignment> {
    let wish = by_name(desk, address);
    wish.map_err(|problem| desk.problems.push(problem)).ok()
}

fn by_name(desk: &Desk<'_>, address: IpAddr) -> Result<Assignment, Problem> {
    let held = desk
        .claims
        .by_address(address)
        .filter(|claim| claim.holder(&desk.request.service).is_some());
    let pool = match &desk.request.pool {
        Some(name) => {
            let named = desk.pools.by_name(name).filter(|pool| pool.contains(address));
            let from_there = held.is_some_and(|claim| desk.pool_of(claim) == name);
            if named.is_none() && !from_there {
                return Err(match desk.pools.by_name(name) {
                    Some(_) => Problem::NotInPool {
                        address,
                        pool: name.clone(),
                    },
                    None => Problem::PoolMissing { pool: name.clone() },
                });
            }
            named
        }
        None => desk.pools.covering(address),
    };
    if let Some(claim) = held {
        desk.applicant(Use::LoadBalancer).may_stay(claim)?;
        return Ok(desk.kept(claim, Use::LoadBalancer));
    }
    let pool = pool.ok_or(Problem::NotInAnyPool { address })?;
    let wish = Assignment {
        address,
        pool: pool.name().to_owned(),
        used_as: Use::LoadBalancer,
    };
    // The Service has it already, by its status: no pool's edit takes it away before its claim is written.
    if !desk.request.current.contains(&address) {
        pool.usable()?;
        pool.admits(desk.request)?;
        if pool.avoids(address) {
            return Err(Problem::Avoided {
                address,
                pool: pool.name().to_owned(),
            });
        }
    }
    desk.obtainable(address, pool, Use::LoadBalancer)?;
    Ok(wish)
}
