//! A cluster as far as addresses go: Services with status and table, pools, claims, and operators that see them late.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use operator_api::{AddressClaim, Holder, ServiceRef, TransportPort, Use};

use super::world::{ApiServer, Conflict, request};
use crate::ipam::{ClaimWrite, Claims, Family, Outcome, Pools, Request, address_of_name, assign};

/// What people write into a Service.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) families: Vec<Family>,
    pub(super) require_all: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) external: Vec<IpAddr>,
    pub(super) ports: BTreeSet<TransportPort>,
    pub(super) key: Option<String>,
    pub(super) pool: Option<String>,
}

/// A mechanism that is off, so that the histories must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    None,
    /// The API server takes a PUT or a DELETE of an old version.
    ForgivesVersions,
    /// An operator takes its claim for written although it was refused.
    IgnoresConflicts,
    /// Surplus is released first.
    ReleasesEarly,
    /// The table is written first.
    SkipsClaims,
}

#[derive(Clone, Debug)]
struct Service {
    request: Request,
    table: BTreeSet<IpAddr>,
    table_ports: BTreeSet<TransportPort>,
    dying: bool,
}

#[derive(Debug, Default)]
struct Operator {
    pools: Pools,
    services: BTreeMap<String, Service>,
    claims: Claims,
}

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) pools: Pools,
    server: ApiServer,
    services: BTreeMap<String, Service>,
    operators: Vec<Operator>,
    sabotage: Sabotage,
    lives: u32,
    /// What claims have ever given to a life of a Service.
    granted: BTreeSet<(String, IpAddr, TransportPort)>,
    /// The first rule that was broken by a write.
    broken: Option<String>,
}

impl Cluster {
    pub(super) fn new(operators: usize, sabotage: Sabotage) -> Self {
        let forgives_versions = sabotage == Sabotage::ForgivesVersions;
        Self {
            pools: Pools::default(),
            server: ApiServer {
                forgives_versions,
                ..ApiServer::default()
            },
            services: BTreeMap::new(),
            operators: (0..operators).map(|_| Operator::default()).collect(),
            sabotage,
            lives: 0,
            granted: BTreeSet::new(),
            broken: None,
        }
    }

    /// A Service is created, or changed.
    pub(super) fn wish(&mut self, name: &str, spec: &Spec) {
        let lives = &mut self.lives;
        let service = self.services.entry(name.to_owned()).or_insert_with(|| {
            *lives += 1;
            let mut request = request(name);
            request.service.uid = format!("life-{lives}");
            Service {
                request,
                table: BTreeSet::new(),
                table_ports: BTreeSet::new(),
                dying: false,
            }
        });
        if service.dying {
            return;
        }
        let request = &mut service.request;
        let spec = spec.clone();
        request.addresses = spec.addresses;
        request.families = spec.families;
        request.require_all = spec.require_all;
        request.external = spec.external;
        request.ports = spec.ports;
        request.sharing_key = spec.key;
        request.pool = spec.pool;
    }

    pub(super) fn delete(&mut self, name: &str) {
        if let Some(service) = self.services.get_mut(name) {
            service.dying = true;
        }
    }

    /// An operator's watches catch up: bit 0 with claims, 1 with Services, 2 with pools.
    pub(super) fn sync(&mut self, operator: usize, what: u8) {
        let operator = &mut self.operators[operator];
        if what & 1 != 0 {
            operator.claims.reset(self.server.claims.values());
        }
        if what & 2 != 0 {
            operator.services = self.services.clone();
        }
        if what & 4 != 0 {
            operator.pools.reset(self.pools.iter().map(|pool| pool.object()));
        }
    }

    pub(super) fn sync_all(&mut self) {
        for operator in 0..self.operators.len() {
            self.sync(operator, 7);
        }
    }

    /// At most one write for a Service, in the order in which a Service is born, moves and dies.
    pub(super) fn step(&mut self, operator: usize, name: &str) {
        let Some(seen) = self.operators[operator].services.get(name).cloned() else {
            return;
        };
        let uid = &seen.request.service.uid;
        let Some(real) = self
            .services
            .get(name)
            .filter(|real| real.request.service.uid == *uid)
            .cloned()
        else {
            // Whatever is written to it is refused: that uid is gone.
            self.operators[operator].services.remove(name);
            return;
        };
        let view = &self.operators[operator];
        if seen.dying {
            if !seen.table.is_empty() {
                return self.put(operator, name, |service| service.table.clear());
            }
            let held = view.claims.held_by(&seen.request.service).next();
            match held.and_then(|claim| claim.without(&seen.request.service)) {
                Some(write) => self.write(operator, &seen.request.service, &write),
                None => drop(self.services.remove(name)),
            }
            return;
        }
        let outcome = assign(&view.pools, &view.claims, &seen.request);
        let wanted: BTreeSet<IpAddr> = outcome.assignments.iter().map(|wish| wish.address).collect();
        let mut table = wanted.clone();
        let current = &seen.request.current;
        table.extend(
            outcome
                .surplus
                .iter()
                .filter(|old| old.serve && current.contains(&old.address))
                .map(|old| old.address),
        );
        let early = outcome
            .surplus
            .first()
            .filter(|_| self.sabotage == Sabotage::ReleasesEarly);
        let ports = seen.request.ports.clone();
        if let Some(early) = early {
            return self.write(operator, &seen.request.service, &early.write);
        }
        if let (Some(next), false) = (&outcome.next, self.sabotage == Sabotage::SkipsClaims) {
            return self.write(operator, &seen.request.service, next);
        }
        if seen.table != table || seen.table_ports != ports {
            return self.put(operator, name, |service| {
                (service.table, service.table_ports) = (table, ports)
            });
        }
        let status = load_balancer(&outcome);
        if *current != status {
            return self.put(operator, name, |service| service.request.current = status);
        }
        if let Some(surplus) = outcome.surplus.first() {
            // Looked at again before anything is given back.
            if real.request != seen.request || real.table != seen.table {
                self.operators[operator].services.insert(name.to_owned(), real);
                return;
            }
            return self.write(operator, &seen.request.service, &surplus.write);
        }
        if let Some(next) = &outcome.next {
            self.write(operator, &seen.request.service, next);
        }
    }

    /// A write of the Service or its table; the answer brings the operator up to date with it.
    fn put(&mut self, operator: usize, name: &str, change: impl FnOnce(&mut Service)) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        change(service);
        self.operators[operator]
            .services
            .insert(name.to_owned(), service.clone());
    }

    /// A write for a Service changes nothing of what others hold; and what it gives is remembered.
    fn account(&mut self, before: Option<&AddressClaim>, name: &str, subject: &ServiceRef) {
        let after = self.server.claims.get(name);
        let others = |claim: Option<&AddressClaim>| -> Vec<Holder> {
            let holders = claim.into_iter().flat_map(|claim| &claim.spec.holders);
            holders.filter(|holder| holder.service != *subject).cloned().collect()
        };
        if others(before) != others(after) {
            self.broken = Some(format!(
                "a write for {subject:?} takes from others: {before:?} -> {after:?}"
            ));
        }
        for holder in after.into_iter().flat_map(|claim| &claim.spec.holders) {
            let address = address_of_name(name).unwrap();
            let ports = holder
                .ports
                .iter()
                .map(|port| (holder.service.uid.clone(), address, *port));
            self.granted.extend(ports);
        }
    }

    fn write(&mut self, operator: usize, subject: &ServiceRef, write: &ClaimWrite) {
        let name = match write {
            ClaimWrite::Create(object) | ClaimWrite::Replace(object) => object.metadata.name.clone().unwrap(),
            ClaimWrite::Delete { name, .. } => name.clone(),
        };
        let before = self.server.claims.get(&name).cloned();
        let answer = self.server.write(write);
        if answer.is_ok() {
            self.account(before.as_ref(), &name, subject);
        }
        let view = &mut self.operators[operator].claims;
        match (answer, write) {
            (Err(Conflict), ClaimWrite::Create(object) | ClaimWrite::Replace(object))
                if self.sabotage == Sabotage::IgnoresConflicts =>
            {
                view.apply(object);
            }
            (Ok(Some(object)), _) => assert!(view.apply(&object)),
            (Ok(None) | Err(Conflict), _) => match self.server.claims.get(&name) {
                Some(object) => assert!(view.apply(object)),
                None => drop(view.delete(&name)),
            },
        }
    }

    /// Releases what Services hold that are gone: each is looked up first.
    pub(super) fn sweep(&mut self, operator: usize) {
        let alive = |holder: &Holder| {
            self.services
                .values()
                .any(|service| service.request.service == holder.service)
        };
        let gone = self.operators[operator].claims.iter().find_map(|claim| {
            let holder = claim.holders().find(|holder| !alive(holder))?;
            Some((holder.service.clone(), claim.without(&holder.service)?))
        });
        if let Some((subject, write)) = gone {
            self.write(operator, &subject, &write);
        }
    }

    /// What must hold at any time.
    pub(super) fn check(&self) -> Result<(), String> {
        self.broken.clone().map_or(Ok(()), Err)?;
        self.server.claims.values().try_for_each(sound)?;
        self.check_grants()?;
        // A second leader writes tables by what it saw long ago: election keeps that from happening, not claims.
        if self.operators.len() == 1 {
            self.check_tables()
        } else {
            Ok(())
        }
    }

    /// No table names what no claim ever gave to its Service.
    fn check_grants(&self) -> Result<(), String> {
        for (name, service) in &self.services {
            let uid = &service.request.service.uid;
            for address in &service.table {
                for port in &service.table_ports {
                    if !self.granted.contains(&(uid.clone(), *address, *port)) {
                        return Err(format!("{name} uses {address} {port:?}, which nobody gave it"));
                    }
                }
            }
        }
        Ok(())
    }

    /// No port of an address is in two tables, and none is in a table that its claim does not give to the Service.
    fn check_tables(&self) -> Result<(), String> {
        let mut users = BTreeMap::new();
        for (name, service) in &self.services {
            for address in &service.table {
                let claim = self.server.claims.get(&AddressClaim::name_of(*address));
                let mut holders = claim.into_iter().flat_map(|claim| &claim.spec.holders);
                let holder = holders.find(|holder| holder.service == service.request.service);
                for port in &service.table_ports {
                    if !holder.is_some_and(|holder| holder.ports.contains(port)) {
                        return Err(format!("{name} uses {address} {port:?} without a claim"));
                    }
                    if let Some(other) = users.insert((*address, *port), name) {
                        return Err(format!("{name} and {other} use {address} {port:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Everybody sees everything, until nothing is written any more.
    pub(super) fn converge(&mut self, names: &[&str]) -> Result<(), String> {
        for _ in 0..200 {
            let before = format!("{:?}{:?}", self.services, self.server.claims);
            self.sync_all();
            for operator in 0..self.operators.len() {
                self.sync(operator, 3);
                self.sweep(operator);
                for name in names {
                    self.sync(operator, 3);
                    self.step(operator, name);
                    self.check()?;
                }
            }
            if before == format!("{:?}{:?}", self.services, self.server.claims) {
                return Ok(());
            }
        }
        Err(format!(
            "does not converge: {:?} {:?}",
            self.services, self.server.claims
        ))
    }

    fn decided(&self, service: &Service) -> Outcome {
        assign(&self.pools, &self.operators[0].claims, &service.request)
    }

    /// What must hold when all is done: nothing is lost, nothing is left over, nobody goes without while there is some.
    pub(super) fn check_rest(&self) -> Result<(), String> {
        self.check_tables()?;
        for (name, service) in &self.services {
            let outcome = self.decided(service);
            if outcome.next.is_some()
                || !outcome.surplus.is_empty()
                || load_balancer(&outcome) != service.request.current
            {
                return Err(format!("{name} is not at rest: {outcome:?}"));
            }
            if !outcome.missing.is_empty() && service.request.require_all && outcome.problems.is_empty() {
                return Err(format!("{name} goes without {:?} and nobody says why", outcome.missing));
            }
            self.check_want(service, &outcome)
                .map_err(|broken| format!("{name}: {broken}"))?;
        }
        for claim in self.server.claims.values() {
            for holder in &claim.spec.holders {
                let uses = |service: &Service| {
                    service.request.service == holder.service
                        && service.table.iter().any(|a| a.to_string() == claim.spec.address)
                };
                if !self.services.values().any(uses) {
                    return Err(format!("{claim:?} is left over"));
                }
            }
        }
        Ok(())
    }

    /// Nobody who takes any address goes without while one is free.
    fn check_want(&self, service: &Service, outcome: &Outcome) -> Result<(), String> {
        let request = &service.request;
        if !request.addresses.is_empty() || request.pool.is_some() || (request.require_all && outcome.missing.len() > 1)
        {
            return Ok(());
        }
        for family in &outcome.missing {
            let pools = self
                .pools
                .iter()
                .filter(|pool| pool.spec().auto_assign && pool.usable().is_ok());
            let free = pools
                .flat_map(|pool| pool.ranges().iter().map(move |range| (pool, range)))
                .find_map(|(pool, range)| {
                    let mut address = Some(range.first()).filter(|_| range.family() == *family);
                    while let Some(candidate) = address.filter(|address| range.contains(*address)) {
                        if self.operators[0].claims.by_address(candidate).is_none() && !pool.avoids(candidate) {
                            return Some(candidate);
                        }
                        address = super::super::range::after(candidate);
                    }
                    None
                });
            if let Some(free) = free.filter(|_| !request.require_all || request.families.len() == 1) {
                return Err(format!("goes without {family} although {free} is free"));
            }
        }
        Ok(())
    }

    /// Pools are edited in every way, and gone: nobody loses an address. A Service that waits for what it asks for may get it.
    pub(super) fn check_that_pools_move_nothing(
        &mut self,
        edit: impl Fn(&mut Self, usize, Option<usize>),
    ) -> Result<(), String> {
        let waits = |service: &Service| {
            let asks = !service.request.addresses.is_empty() || service.request.pool.is_some();
            asks && !self.decided(service).problems.is_empty()
        };
        let waiting: BTreeSet<String> = self
            .services
            .iter()
            .filter(|(_, service)| waits(service))
            .map(|(name, _)| name.clone())
            .collect();
        for how in [Some(1), Some(3), Some(5), Some(6), None] {
            for pool in 0..3 {
                edit(self, pool, how);
                for (name, service) in self.services.iter().filter(|(name, _)| !waiting.contains(*name)) {
                    let outcome = self.decided(service);
                    let has: BTreeSet<IpAddr> = outcome.assignments.iter().map(|wish| wish.address).collect();
                    if !service.table.is_subset(&has) || !outcome.surplus.is_empty() {
                        return Err(format!(
                            "an edit of pool {pool} moves {name}: {:?}, {outcome:?}",
                            service.table
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

fn load_balancer(outcome: &Outcome) -> Vec<IpAddr> {
    let ours = outcome
        .assignments
        .iter()
        .filter(|wish| wish.used_as == Use::LoadBalancer);
    ours.map(|wish| wish.address).collect()
}

/// Each port of an address has one holder; two holders share by a key, or both name it as external IP.
fn sound(claim: &AddressClaim) -> Result<(), String> {
    let holders = &claim.spec.holders;
    let mut ports = BTreeSet::new();
    if !holders
        .iter()
        .flat_map(|holder| &holder.ports)
        .all(|port| ports.insert(*port))
    {
        return Err(format!("a port has two holders: {:?}", claim.spec));
    }
    let external = holders.iter().all(|holder| holder.used_as == Use::ExternalIP);
    if holders.len() > 1 && claim.spec.sharing_key.is_none() && !external {
        return Err(format!("two holders without a key: {:?}", claim.spec));
    }
    Ok(())
}
