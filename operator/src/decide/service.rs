//! Birth and change of a Service, as one list of steps; the first that has something to write is done, then it is asked again.
//!
//! Never tells clients of an address before a claim is held and an LB node has it in its maps; never takes one from them because
//! something newer failed.
//!
//! 1. finalizer, and from which pool: before anything is held
//! 2. claims: 409 where somebody was faster, and another is chosen
//! 3. table: with all addresses that clients know or shall know
//! 4. status: once an LB node has the table
//! 5. claims that nothing uses any more go

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use operator_api::{
    ANNOTATION_ALLOCATED_FROM, CONDITION_ACCEPTED, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, CONDITION_PROGRAMMED, Use,
    VipTable, VipTableSpec,
};

use super::{
    Action, Next, Note,
    conditions::{self, CONDITION_PORTS, Said},
    leave,
    notes::Reporter,
    quietly,
    standing::{self, FAILING, NO_LB_NODE, Standing, standing},
    status, table,
};
use crate::{
    ServiceKey,
    index::{Index, Serve, Wanted},
    ipam::{self, Assignment, Outcome, Problem},
};

/// Seconds until LB nodes that are about to have a table are looked at again, should they say nothing.
const SOON: u32 = 1;
/// Problems that a message names.
const NAMED: usize = 4;

/// The next write for a Service.
pub(super) fn next(index: &Index, key: &ServiceKey, now: Timestamp) -> Next {
    let Some(service) = index.service(key) else {
        return Next::Done;
    };
    match index.wanted(key) {
        Wanted::Foreign => Next::Done,
        Wanted::Nothing(why) => leave::next(index, key, service, why, now),
        Wanted::Serve(serve) => Look::new(index, key, service, &serve, now).next(),
    }
}

/// A Service that is to be served, and what is at hand for it.
struct Look<'a> {
    index: &'a Index,
    key: &'a ServiceKey,
    service: &'a Service,
    serve: &'a Serve,
    now: Timestamp,
    reporter: Reporter,
    /// Addresses in its status.
    published: BTreeSet<IpAddr>,
    outcome: Outcome,
    /// What there is under its table's name, be it of an earlier life.
    table: Option<&'a VipTable>,
    /// What there shall be.
    wanted: Option<VipTableSpec>,
}

impl<'a> Look<'a> {
    fn new(index: &'a Index, key: &'a ServiceKey, service: &'a Service, serve: &'a Serve, now: Timestamp) -> Self {
        let published = status::addresses(status::ingress(service));
        let outcome = if serve.is_accepted() {
            ipam::assign(index.pools(), index.claims(), &serve.request)
        } else {
            Outcome::default()
        };
        let table = index.table(key);
        let own = table.filter(|table| table.spec.service == serve.service);
        let wanted = if outcome.assignments.is_empty() {
            own.and_then(|own| table::last_good(index, serve, own, &published))
        } else {
            table::whole(index, serve, &outcome, &published)
        };
        let reporter = Reporter {
            service: key.clone(),
            uid: serve.service.uid.clone(),
        };
        Self {
            index,
            key,
            service,
            serve,
            now,
            reporter,
            published,
            outcome,
            table,
            wanted,
        }
    }

    fn next(&self) -> Next {
        self.mark()
            .or_else(|| self.claim())
            .or_else(|| self.write_table())
            .or_else(|| self.tell(false))
            .or_else(|| self.give_back())
            .unwrap_or_else(|| self.rest())
    }

    /// Finalizer and annotation in one write, before anything is held.
    fn mark(&self) -> Option<Next> {
        let holds = || self.index.claims().held_by(&self.serve.service).next().is_some();
        if self.outcome.assignments.is_empty() && self.wanted.is_none() && !holds() {
            return None;
        }
        let metadata = &self.service.metadata;
        let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
        let is_kept = finalizers.iter().any(|finalizer| finalizer == self.serve.finalizer);
        let annotations = metadata.annotations.as_ref();
        let said = annotations.and_then(|annotations| annotations.get(ANNOTATION_ALLOCATED_FROM));
        // One that asks for no load balancer address any more has none from a pool.
        let had = said.filter(|_| !self.serve.request.families.is_empty());
        let pools = self.pools().or_else(|| had.cloned());
        if is_kept && pools.as_ref() == said {
            return None;
        }
        if is_kept && pools.is_none() {
            // An apply would leave there what others own as well.
            return Some(quietly(Action::ReplaceServiceMeta {
                service: self.key.clone(),
                resource_version: metadata.resource_version.clone().unwrap_or_default(),
                finalizers: finalizers.to_vec(),
                without_annotations: vec![ANNOTATION_ALLOCATED_FROM],
            }));
        }
        let notes = if is_kept {
            Vec::new()
        } else {
            vec![self.reporter.ensuring()]
        };
        let annotations: BTreeMap<_, _> = pools
            .into_iter()
            .map(|pools| (ANNOTATION_ALLOCATED_FROM, pools))
            .collect();
        Some(Next::Do(
            Box::new(Action::ApplyServiceMeta {
                service: self.key.clone(),
                uid: self.serve.service.uid.clone(),
                finalizers: vec![self.serve.finalizer],
                annotations,
            }),
            notes,
        ))
    }

    /// Where its load balancer addresses are from; `None`: it has none.
    fn pools(&self) -> Option<String> {
        let mut pools: Vec<&str> = Vec::new();
        for assignment in self.balanced() {
            if !pools.contains(&assignment.pool.as_str()) {
                pools.push(&assignment.pool);
            }
        }
        (!pools.is_empty()).then(|| pools.join(","))
    }

    fn balanced(&self) -> impl Iterator<Item = &Assignment> {
        let all = self.outcome.assignments.iter();
        all.filter(|assignment| assignment.used_as == Use::LoadBalancer)
    }

    /// The next claim that is missing.
    fn claim(&self) -> Option<Next> {
        let write = self.outcome.next.clone()?;
        let claim = match &write {
            ipam::ClaimWrite::Create(claim) | ipam::ClaimWrite::Replace(claim) => Some(claim),
            ipam::ClaimWrite::Delete { .. } => None,
        };
        let address: Option<IpAddr> = claim.and_then(|claim| claim.spec.address.parse().ok());
        let is_new = |address: &IpAddr| {
            let held = self.index.claims().by_address(*address);
            held.is_none_or(|claim| claim.holder(&self.serve.service).is_none())
        };
        let note = address.filter(is_new).zip(claim);
        let note = note.map(|(address, claim)| self.reporter.allocated(address, &claim.spec.pool));
        Some(Next::Do(Box::new(write.into()), note.into_iter().collect()))
    }

    fn write_table(&self) -> Option<Next> {
        let Some(wanted) = &self.wanted else {
            return self.table.map(|table| {
                let told = self.is_lost(table).then(|| self.tell(true)).flatten();
                told.unwrap_or_else(|| quietly(table::deletion(table)))
            });
        };
        // The API server lets no table change hands: one of an earlier life goes first.
        if let Some(former) = self.table.filter(|table| table.spec.service != wanted.service) {
            return Some(quietly(table::deletion(former)));
        }
        let before = self.table.map(|table| &table.spec);
        if before == Some(wanted) {
            return None;
        }
        let known = !self.published.is_empty();
        let news = before.is_some_and(|before| known && table::is_news(wanted, before));
        let notes = news.then(|| self.reporter.updated("ports, policy, affinity or source ranges"));
        let table = table::object(self.index, wanted.clone(), self.table);
        Some(Next::Do(
            Box::new(Action::ApplyTable(table)),
            notes.into_iter().collect(),
        ))
    }

    /// Whether what clients were told of is in no table any more: it went to a sharer, and what should have come in its place is not
    /// asked for any more. Clients would be sent to who does not serve them.
    fn is_lost(&self, table: &VipTable) -> bool {
        let has = |address: &operator_api::VipAddress| address.ip().is_some_and(|ip| self.published.contains(&ip));
        let is_own = table.spec.service == self.serve.service;
        is_own && !self.serve.ports.is_empty() && !table.spec.addresses.iter().any(has)
    }

    /// What clients and people are told: addresses and conditions. `lost`: no address.
    fn tell(&self, lost: bool) -> Option<Next> {
        let before = conditions::of(self.service);
        let there = status::ingress(self.service);
        let programmed = match self.programmed() {
            Ok(programmed) => programmed,
            Err(standing) => return Some(standing),
        };
        let mut ingress = there.to_vec();
        if programmed.is_true() || self.balanced().all(|wish| self.published.contains(&wish.address)) {
            let wanted = status::wanted(self.serve, &self.outcome.assignments);
            if !wanted.is_empty() && !status::is_same(&wanted, there) {
                ingress = wanted;
            }
        }
        if lost || self.serve.request.families.is_empty() {
            ingress.clear();
        }
        let is_on = programmed.message.clone();
        let was_announced = conditions::find(before, CONDITION_ANNOUNCED);
        let announced = standing::announced(self.index, self.wanted.as_ref(), &programmed, was_announced);
        let mut said = vec![self.accepted(), self.allocated(), programmed, announced];
        said.extend(self.ports());
        if ingress == there && conditions::are_said(&said, before) {
            return None;
        }
        let notes = self.notes(&said, &ingress, &is_on);
        let merged = conditions::merge(&said, before, self.now);
        let action = if ingress.is_empty() && !there.is_empty() {
            let mut conditions = conditions::of_others(before);
            conditions.extend(merged);
            Action::ReplaceServiceStatus {
                service: self.key.clone(),
                resource_version: self.service.metadata.resource_version.clone().unwrap_or_default(),
                clear_ingress: true,
                conditions,
            }
        } else {
            Action::ApplyServiceStatus {
                service: self.key.clone(),
                uid: self.serve.service.uid.clone(),
                ingress: status::body(ingress),
                conditions: merged,
            }
        };
        Some(Next::Do(Box::new(action), notes))
    }

    /// On how many LB nodes it is; `Err`: they are about to have it, and clients wait for that.
    fn programmed(&self) -> Result<Said, Next> {
        let before = conditions::find(conditions::of(self.service), CONDITION_PROGRAMMED);
        let Some(table) = self.table.filter(|_| self.wanted.is_some()) else {
            return Ok(Said::new(
                CONDITION_PROGRAMMED,
                false,
                "NotAllocated",
                "there is nothing to program",
            ));
        };
        let coverage = self.index.programmed(table);
        let said = standing::said(&coverage, before);
        let told = if self.balanced().next().is_some() {
            self.balanced().all(|wish| self.published.contains(&wish.address))
        } else {
            before.is_some_and(|before| before.status == "True")
        };
        if told && before.is_some() {
            return Ok(said);
        }
        match standing(&coverage, self.index.addressed_for(table)) {
            // What a true condition says is of the table as it was.
            Standing::Ready => Ok(standing::said(
                &coverage,
                before.filter(|before| before.status == "True"),
            )),
            Standing::Soon => Err(Next::Wait(SOON)),
            Standing::Not if said.is_true() => Err(Next::Wait(SOON)),
            Standing::Not => Ok(said),
        }
    }

    fn accepted(&self) -> Said {
        match self.serve.refusals.first() {
            None => Said::new(CONDITION_ACCEPTED, true, "Accepted", self.deprecations().join("; ")),
            Some(first) => {
                let mut message = list(&self.serve.refusals);
                if self.wanted.is_some() {
                    message.push_str("; what was served before stays");
                }
                for deprecation in self.deprecations() {
                    message.push_str("; ");
                    message.push_str(deprecation);
                }
                Said::new(CONDITION_ACCEPTED, false, first.reason(), message)
            }
        }
    }

    fn deprecations(&self) -> Vec<&'static str> {
        let deprecations = self.serve.deprecations.iter();
        deprecations.map(|deprecation| deprecation.message()).collect()
    }

    fn allocated(&self) -> Said {
        let kind = CONDITION_ALLOCATED;
        if !self.serve.is_accepted() {
            let before = conditions::find(conditions::of(self.service), kind);
            return before.map_or_else(
                || Said::new(kind, false, "NotAccepted", "nothing is allocated for it"),
                |before| Said::again(kind, before),
            );
        }
        let assignments = &self.outcome.assignments;
        let has: Vec<String> = assignments.iter().map(|has| self.origin(has)).collect();
        let has = has.join(", ");
        if self.outcome.problems.is_empty() {
            return Said::new(kind, true, "Allocated", has);
        }
        let mut message = list(&self.outcome.problems);
        if !has.is_empty() {
            message.push_str("; it has ");
            message.push_str(&has);
        } else if self.wanted.is_some() {
            message.push_str("; what was served before stays");
        }
        Said::new(kind, false, self.problem_reason(), message)
    }

    fn origin(&self, has: &Assignment) -> String {
        let gone = if self.outcome.outside.contains(&has.address) {
            ", which has it no more"
        } else {
            ""
        };
        format!("{} from pool {}{gone}", has.address, has.pool)
    }

    fn problem_reason(&self) -> &'static str {
        let request = &self.serve.request;
        let external = |problem: &Problem| {
            if let Problem::NotInAnyPool { address } | Problem::Special { address, .. } = problem {
                request.external.contains(address) && !request.addresses.contains(address)
            } else {
                matches!(problem, Problem::ExternalNotAllowed { .. })
            }
        };
        if self.outcome.problems.iter().all(external) {
            "ExternalIPRefused"
        } else {
            "AllocationFailed"
        }
    }

    /// The standard condition; one that was there is made false, not taken out: an apply takes out only what is its own.
    fn ports(&self) -> Option<Said> {
        if self.serve.refused_ports.is_empty() {
            let there = conditions::find(conditions::of(self.service), CONDITION_PORTS);
            return there.map(|_| Said::new(CONDITION_PORTS, false, "AllPortsServed", ""));
        }
        let refused = self.serve.refused_ports.iter();
        let refused: Vec<String> = refused
            .take(NAMED)
            .map(|port| format!("{}/{}", port.port, port.protocol))
            .collect();
        let message = format!(
            "{} of its ports are not served: {}; TCP and UDP are",
            self.serve.refused_ports.len(),
            refused.join(", ")
        );
        let reason = "LoadBalancerMixedProtocolNotSupported";
        Some(Said::new(CONDITION_PORTS, true, reason, message))
    }

    /// Events for what is new in a status; `is_on`: how many LB nodes have it, in words.
    fn notes(&self, said: &[Said], ingress: &[LoadBalancerIngress], is_on: &str) -> Vec<Note> {
        let before = conditions::of(self.service);
        let mut notes = Vec::new();
        for said in said {
            let old = conditions::find(before, said.kind);
            if old.is_some_and(|old| said.is_said_by(old)) {
                continue;
            }
            if said.kind == CONDITION_ACCEPTED {
                let told = old.map_or("", |old| old.message.as_str());
                let news = self.deprecations().into_iter().filter(|news| !told.contains(news));
                notes.extend(news.map(|news| self.reporter.deprecated(news)));
            }
            let is_other = old.is_none_or(|old| old.reason != said.reason || (old.status == "True") != said.is_true());
            notes.extend(match (said.kind, said.is_true()) {
                (CONDITION_ACCEPTED, false) => Some(self.reporter.refused(&said.message)),
                (CONDITION_ALLOCATED, false) if self.serve.is_accepted() => {
                    Some(self.reporter.not_allocated(self.problem_reason(), &said.message))
                }
                (CONDITION_PORTS, true) => Some(self.reporter.ports(&said.message)),
                (CONDITION_PROGRAMMED, false) if is_other && said.reason == NO_LB_NODE => {
                    Some(self.reporter.unavailable("There are no available LB nodes"))
                }
                (CONDITION_PROGRAMMED, false) if is_other && said.reason == FAILING => {
                    Some(self.reporter.refused(&said.message))
                }
                (CONDITION_ANNOUNCED, true) if is_other => Some(self.reporter.announced(&said.message)),
                (CONDITION_ANNOUNCED, false) if is_other && said.is.is_some() && !is_told_otherwise(&said.reason) => {
                    Some(self.reporter.not_announced(&said.reason, &said.message))
                }
                _ => None,
            });
        }
        let announced = said.iter().find(|said| said.kind == CONDITION_ANNOUNCED);
        let announced = announced.map(standing::announced_words).unwrap_or_default();
        let named: Vec<String> = ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect();
        let named = named.join(", ");
        let now = status::addresses(ingress);
        if now != self.published && !now.is_empty() {
            let first = self.published.is_empty();
            notes.push(if first {
                self.reporter.ensured(&named, is_on, &announced)
            } else {
                self.reporter.moved(&named, is_on, &announced)
            });
            if first && self.index.eligible_nodes() == 0 {
                notes.push(
                    self.reporter
                        .unavailable("There are no available nodes for LoadBalancer"),
                );
            }
        } else if self.serve.request.families.is_empty() {
            let is_programmed = said
                .iter()
                .any(|said| said.kind == CONDITION_PROGRAMMED && said.is_true());
            let was = conditions::find(before, CONDITION_PROGRAMMED).is_some_and(|before| before.status == "True");
            if is_programmed && !was {
                notes.push(self.reporter.ensured("external IPs", is_on, &announced));
            }
        }
        notes
    }

    /// Claims, and ports of claims, that neither status nor table uses.
    fn give_back(&self) -> Option<Next> {
        let served = self.wanted.iter().flat_map(|wanted| &wanted.addresses);
        let served: BTreeSet<IpAddr> = served.filter_map(operator_api::VipAddress::ip).collect();
        let assigned: BTreeSet<IpAddr> = self.outcome.assignments.iter().map(|has| has.address).collect();
        let unused = self.outcome.surplus.iter().find(|surplus| {
            let address = &surplus.address;
            assigned.contains(address) || !(served.contains(address) || self.published.contains(address))
        })?;
        Some(quietly(unused.write.clone().into()))
    }

    /// Nothing is left to write.
    fn rest(&self) -> Next {
        if self.outcome.problems.iter().any(passes) {
            Next::Retry
        } else {
            Next::Done
        }
    }
}

/// Whether another condition says why an address is not announced, and its Event is enough.
fn is_told_otherwise(reason: &str) -> bool {
    ["NotAllocated", "NotProgrammed", NO_LB_NODE].contains(&reason)
}

/// Whether a problem may pass without an edit of the Service, or of anything that is watched for it.
fn passes(problem: &Problem) -> bool {
    match problem {
        Problem::PoolMissing { .. }
        | Problem::PoolInvalid { .. }
        | Problem::PoolConflict { .. }
        | Problem::PoolNotForNamespace { .. }
        | Problem::Exhausted { .. }
        | Problem::NoPool { .. }
        | Problem::Taken { .. }
        | Problem::FormerLife { .. }
        | Problem::KeyDiffers { .. }
        | Problem::OtherNamespace { .. }
        | Problem::OtherInstallation { .. }
        | Problem::PortsCollide { .. }
        | Problem::Full { .. }
        | Problem::ClaimUnreadable { .. }
        | Problem::NotInAnyPool { .. } => true,
        Problem::PoolNotForLabels { .. }
        | Problem::PoolLacksFamily { .. }
        | Problem::FamilyRequired { .. }
        | Problem::NotInPool { .. }
        | Problem::Special { .. }
        | Problem::Avoided { .. }
        | Problem::FamilyNotAsked { .. }
        | Problem::SecondOfFamily { .. }
        | Problem::ExternalNotAllowed { .. }
        | Problem::NoPorts
        | Problem::TooManyPorts(_)
        | Problem::KeyTooLong(_) => false,
    }
}

fn list(what: &[impl ToString]) -> String {
    let mut words: Vec<String> = what.iter().take(NAMED).map(ToString::to_string).collect();
    if let Some(more @ 1..) = what.len().checked_sub(NAMED) {
        words.push(format!("and {more} more"));
    }
    words.join("; ")
}
