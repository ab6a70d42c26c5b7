//! External IPs: addresses that a Service names itself.
//!
//! Never gives one that its pool does not allow for that (CVE-2020-8554).

use std::net::IpAddr;

use operator_api::Use;

use super::{Assignment, Problem, assign::Desk, special};

/// The external IPs that can be had, in the order in which they are asked for. One that is a load balancer address of the
/// Service already needs nothing more.
pub(super) fn choose(desk: &mut Desk<'_>, chosen: &[Assignment]) -> Vec<Assignment> {
    let mut wishes: Vec<Assignment> = Vec::new();
    for &address in &desk.request.external {
        if chosen.iter().chain(&wishes).any(|wish| wish.address == address) {
            continue;
        }
        match one(desk, address) {
            Ok(wish) => wishes.push(wish),
            Err(problem) => desk.problems.push(problem),
        }
    }
    wishes
}

fn one(desk: &Desk<'_>, address: IpAddr) -> Result<Assignment, Problem> {
    let held = desk.claims.by_address(address).filter(|claim| {
        claim
            .holder(&desk.request.service)
            .is_some_and(|holder| holder.used_as == Use::ExternalIP)
    });
    if let Some(claim) = held {
        desk.applicant(Use::ExternalIP).may_stay(claim)?;
        return Ok(desk.kept(claim, Use::ExternalIP));
    }
    if let Some(what) = special(address) {
        return Err(Problem::Special { address, what });
    }
    let pool = desk.pools.covering(address).ok_or(Problem::NotInAnyPool { address })?;
    let name = || pool.name().to_owned();
    if !pool.spec().external_ips {
        return Err(Problem::ExternalNotAllowed { address, pool: name() });
    }
    pool.usable()?;
    pool.admits(desk.request)?;
    if pool.avoids(address) {
        return Err(Problem::Avoided { address, pool: name() });
    }
    desk.obtainable(address, pool, Use::ExternalIP)?;
    Ok(Assignment {
        address,
        pool: name(),
        used_as: Use::ExternalIP,
    })
}
