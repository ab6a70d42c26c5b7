//! Load balancer addresses: kept, adopted from the status, or chosen, where none is named; one of each family.
//!
//! Never gives up an address that is in the status before what is asked for instead can be had.

use std::{collections::BTreeMap, net::IpAddr};

use operator_api::Use;

use super::{
    Assignment, Claim, Family, Pool, Problem, Request,
    assign::Desk,
    named::{Named, exactly},
    range::{Range, after},
    special,
};

/// What it shall have, by family; in the end in the order of the Service's families.
type Wishes = BTreeMap<Family, Assignment>;

/// The load balancer addresses that can be had, in the order of the Service's families.
pub(super) fn choose(desk: &mut Desk<'_>) -> Vec<Assignment> {
    let families = families(desk.request);
    if families.is_empty() {
        return Vec::new();
    }
    let named = Named::of(desk, &families);
    let mut wishes = Wishes::new();
    for &family in &families {
        let named = named.of_family(family);
        let wish = match named {
            Some(Err(())) => None,
            Some(Ok(address)) => exactly(desk, address),
            None => kept(desk, family).or_else(|| adopted(desk, family, true)),
        };
        wishes.extend(wish.map(|wish| (family, wish)));
    }
    let open = families.iter().copied().filter(|family| !wishes.contains_key(family));
    let open: Vec<Family> = open.filter(|family| named.of_family(*family).is_none()).collect();
    let reasons = chosen(desk, &open, &mut wishes);

    let unmet: Vec<Family> = families
        .iter()
        .copied()
        .filter(|family| !wishes.contains_key(family))
        .collect();
    // What is in the status stays until what is asked for instead can be had.
    let stays: Wishes = unmet
        .iter()
        .filter_map(|&family| Some((family, live(desk, family)?)))
        .collect();
    let both = desk.request.require_all && families.len() > 1;
    if !unmet.is_empty() && (desk.request.require_all || wishes.is_empty() || !stays.is_empty()) {
        desk.problems.extend(reasons);
    }
    if both {
        desk.problems
            .extend(unmet.iter().map(|&family| Problem::FamilyRequired { family }));
    }
    wishes.extend(stays);
    if both && !unmet.is_empty() {
        // Nothing new for a Service that cannot have both; one that lives with one family is not taken down for it.
        wishes.retain(|_, wish| desk.request.current.contains(&wish.address));
    }
    families.iter().filter_map(|family| wishes.remove(family)).collect()
}

fn families(request: &Request) -> Vec<Family> {
    let mut families = request.families.clone();
    families.dedup();
    families.truncate(2);
    families
}

/// The best of what it holds and may keep: what is in its status, then the lowest.
fn kept(desk: &Desk<'_>, family: Family) -> Option<Assignment> {
    let right_pool = |claim: &Claim| match &desk.request.pool {
        None => true,
        Some(name) => {
            claim.object().spec.pool == *name
                || desk
                    .pools
                    .by_name(name)
                    .is_some_and(|pool| pool.contains(claim.address()))
        }
    };
    let held = stayable(desk, family).filter(|claim| right_pool(claim));
    held.min_by_key(|claim| !in_status(desk, claim))
        .map(|claim| desk.kept(claim, Use::LoadBalancer))
}

/// What it holds as load balancer address and may go on using.
fn stayable<'a>(desk: &Desk<'a>, family: Family) -> impl Iterator<Item = &'a Claim> {
    let of_family = desk.held().filter(move |claim| Family::of(claim.address()) == family);
    let applicant = desk.applicant(Use::LoadBalancer);
    let request = desk.request;
    of_family.filter(move |claim| {
        let as_load_balancer = claim
            .holder(&request.service)
            .is_some_and(|holder| holder.used_as == Use::LoadBalancer);
        (as_load_balancer || request.current.contains(&claim.address())) && applicant.may_stay(claim).is_ok()
    })
}

fn in_status(desk: &Desk<'_>, claim: &Claim) -> bool {
    desk.request.current.contains(&claim.address())
}

/// What is in its status, without a claim yet, where a pool has it and nobody else does. Whatever that pool is for: the Service
/// has it already.
fn adopted(desk: &Desk<'_>, family: Family, from_pool: bool) -> Option<Assignment> {
    let current = desk.request.current.iter().copied();
    let mut candidates = current.filter(|address| Family::of(*address) == family && special(*address).is_none());
    candidates.find_map(|address| {
        let pool = match &desk.request.pool {
            Some(name) if from_pool => desk.pools.by_name(name).filter(|pool| pool.contains(address)),
            Some(_) | None => desk.pools.covering(address),
        }?;
        desk.obtainable(address, pool, Use::LoadBalancer).ok()?;
        Some(Assignment {
            address,
            pool: pool.name().to_owned(),
            used_as: Use::LoadBalancer,
        })
    })
}

/// What is in its status, whatever it asks for now.
fn live(desk: &Desk<'_>, family: Family) -> Option<Assignment> {
    let held = stayable(desk, family).find(|claim| in_status(desk, claim));
    held.map(|claim| desk.kept(claim, Use::LoadBalancer))
        .or_else(|| adopted(desk, family, false))
}

/// Chooses addresses for the families that are open, and says why one is left without.
fn chosen(desk: &Desk<'_>, open: &[Family], wishes: &mut Wishes) -> Vec<Problem> {
    if open.is_empty() {
        return Vec::new();
    }
    let pools = match candidates(desk) {
        Ok(pools) => pools,
        Err(problem) => return vec![problem],
    };
    for &family in open {
        let shared = pools
            .iter()
            .find_map(|pool| joinable(desk, pool, family).map(|address| (address, *pool)));
        wishes.extend(shared.map(|(address, pool)| (family, wish(address, pool))));
    }
    let has_both = |pool: &&&Pool| {
        [Family::V4, Family::V6]
            .into_iter()
            .all(|family| free(desk, pool, family).is_some())
    };
    let preferred = match wishes.values().next() {
        Some(had) => pools.iter().find(|pool| pool.name() == had.pool),
        None if open.len() > 1 => pools.iter().find(has_both),
        None => None,
    };
    let mut problems = Vec::new();
    for &family in open {
        if wishes.contains_key(&family) {
            continue;
        }
        let order = || preferred.into_iter().chain(&pools).copied();
        match order().find_map(|pool| Some(wish(free(desk, pool, family)?, pool))) {
            Some(wish) => {
                wishes.insert(family, wish);
            }
            None => problems.push(nothing_left(desk, &pools, family)),
        }
    }
    problems
}

fn wish(address: IpAddr, pool: &Pool) -> Assignment {
    Assignment {
        address,
        pool: pool.name().to_owned(),
        used_as: Use::LoadBalancer,
    }
}

/// Pools that addresses may be chosen from, best first.
fn candidates<'a>(desk: &Desk<'a>) -> Result<Vec<&'a Pool>, Problem> {
    if let Some(name) = &desk.request.pool {
        let pool = desk
            .pools
            .by_name(name)
            .ok_or_else(|| Problem::PoolMissing { pool: name.clone() })?;
        pool.usable()?;
        pool.admits(desk.request)?;
        return Ok(vec![pool]);
    }
    let fits = |pool: &&Pool| pool.spec().auto_assign && pool.usable().is_ok() && pool.admits(desk.request).is_ok();
    let mut pools: Vec<&Pool> = desk.pools.iter().filter(fits).collect();
    pools.sort_by(|one, other| one.rank().cmp(&other.rank()));
    Ok(pools)
}

/// The lowest address of a pool that others share by the same key and that has room for its ports.
fn joinable(desk: &Desk<'_>, pool: &Pool, family: Family) -> Option<IpAddr> {
    let shared = desk.claims.by_key(desk.key()?);
    let mut there = shared.filter(|claim| Family::of(claim.address()) == family && pool.contains(claim.address()));
    let applicant = desk.applicant(Use::LoadBalancer);
    there
        .find(|claim| applicant.may_join(claim, pool).is_ok())
        .map(Claim::address)
}

/// The lowest free address of a pool.
fn free(desk: &Desk<'_>, pool: &Pool, family: Family) -> Option<IpAddr> {
    let mut ranges = pool.ranges().iter().filter(|range| range.family() == family);
    ranges.find_map(|range| first_free(desk, pool, *range))
}

/// By leaps over runs of claimed addresses: O(runs), whatever the size of the range.
fn first_free(desk: &Desk<'_>, pool: &Pool, range: Range) -> Option<IpAddr> {
    let mut address = range.first();
    while range.contains(address) {
        let busy = desk
            .claims
            .busy_until(address)
            .or_else(|| pool.avoids(address).then_some(address));
        match busy {
            None => return Some(address),
            Some(last) => address = after(last)?,
        }
    }
    None
}

fn nothing_left(desk: &Desk<'_>, pools: &[&Pool], family: Family) -> Problem {
    let tried = pools.iter().filter(|pool| pool.has(family));
    let tried: Vec<String> = tried.map(|pool| pool.name().to_owned()).collect();
    match &desk.request.pool {
        Some(pool) if tried.is_empty() => Problem::PoolLacksFamily {
            pool: pool.clone(),
            family,
        },
        None if tried.is_empty() => Problem::NoPool { family },
        Some(_) | None => Problem::Exhausted { family, pools: tried },
    }
}
