//! Death of a Service, as far as it is ours: on deletion, on leaving `LoadBalancer`, when it is let go.
//!
//! Never gives an address back while a table or the status of a Service of ours names it, never lets the finalizer go before, and
//! never touches what others wrote.
//!
//! 1. the status names no address any more, unless somebody else serves it
//! 2. the table goes: LB nodes serve it no more. (Claims that do not say whose they are become ours before: without the table,
//!    nobody could tell.)
//! 3. claims are given back, those of ours alone. (Of a Service that went to another class and lives on this comes last: only the
//!    claim shows that what is on it is of this installation, and not of another one whose class that is.)
//! 4. finalizer and annotation go
//! 5. conditions of ours go, the last that shows that it was ours

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};
use operator_api::{ANNOTATION_ALLOCATED_FROM, CONDITION_ACCEPTED, ServiceRef};

use super::{
    Action, Next,
    conditions::{self, Said},
    notes::Reporter,
    quietly, status, table,
};
use crate::{
    ServiceKey,
    index::{Index, Why, marks},
    ipam::{Claim, Owner},
};

/// The next write on the way out.
pub(super) fn next(index: &Index, key: &ServiceKey, service: &Service, why: Why, now: Timestamp) -> Next {
    let leaving = Leaving {
        index,
        key,
        service,
        why,
        now,
        reporter: Reporter {
            service: key.clone(),
            uid: service.metadata.uid.clone().unwrap_or_default(),
        },
    };
    let claims_last = why == Why::OtherClass && service.metadata.deletion_timestamp.is_none();
    leaving
        .clear_status()
        .or_else(|| leaving.take_over())
        .or_else(|| leaving.delete_table())
        .or_else(|| if claims_last { None } else { leaving.give_back() })
        .or_else(|| leaving.let_go())
        .or_else(|| leaving.clear_conditions())
        .or_else(|| leaving.give_back())
        .unwrap_or(Next::Done)
}

struct Leaving<'a> {
    index: &'a Index,
    key: &'a ServiceKey,
    service: &'a Service,
    why: Why,
    now: Timestamp,
    reporter: Reporter,
}

impl Leaving<'_> {
    /// Before the address can be another's. Of one that is being deleted this is the last write of the status, if it gets so far.
    fn clear_status(&self) -> Option<Next> {
        if self.why.keeps_status() || status::ingress(self.service).is_empty() {
            return None;
        }
        let there = conditions::of(self.service);
        let conditions = match self.why {
            Why::Deleted => conditions::of_others(there),
            Why::NotLoadBalancer | Why::ExternalName | Why::Headless | Why::LetGo | Why::OtherClass => there.to_vec(),
        };
        Some(quietly(self.status(true, conditions)))
    }

    /// A claim of a Service with a table of ours that does not say whose it is.
    fn take_over(&self) -> Option<Next> {
        self.index.table(self.key)?;
        let (claims, service) = (self.index.claims(), self.service_ref());
        let write = claims
            .held_by(&service)
            .find_map(|claim| claim.taken_over(claims.installation()))?;
        Some(quietly(write.into()))
    }

    fn delete_table(&self) -> Option<Next> {
        let table = self.index.table(self.key)?;
        let notes = vec![self.reporter.deleting(self.why.word())];
        Some(Next::Do(Box::new(table::deletion(table)), notes))
    }

    fn give_back(&self) -> Option<Next> {
        let service = self.service_ref();
        // Of a Service that others may serve by now, a claim that does not say whose it is may be theirs.
        let is_ours = |claim: &&Claim| match (claim.owner(), self.why) {
            (Owner::Ours, _) => true,
            (Owner::Others, _) | (Owner::Unsaid, Why::OtherClass | Why::LetGo) => false,
            (Owner::Unsaid, Why::Deleted | Why::NotLoadBalancer | Why::ExternalName | Why::Headless) => true,
        };
        let mut held = self.index.claims().held_by(&service).filter(is_ours);
        let write = held.find_map(|claim| claim.without(&service))?;
        Some(quietly(write.into()))
    }

    fn service_ref(&self) -> ServiceRef {
        ServiceRef {
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
            uid: self.reporter.uid.clone(),
        }
    }

    fn let_go(&self) -> Option<Next> {
        let finalizers = self.service.metadata.finalizers.as_deref().unwrap_or_default();
        let others = self.finalizers_of_others();
        let annotated = marks::is_annotated(self.service);
        let kept = others.len() != finalizers.len();
        if !kept && (!annotated || self.why == Why::Deleted) {
            return None;
        }
        let notes = kept.then(|| self.reporter.deleted());
        let action = Action::ReplaceServiceMeta {
            service: self.key.clone(),
            resource_version: self.resource_version(),
            finalizers: others,
            without_annotations: if annotated {
                vec![ANNOTATION_ALLOCATED_FROM]
            } else {
                Vec::new()
            },
        };
        Some(Next::Do(Box::new(action), notes.into_iter().collect()))
    }

    /// One that is being deleted goes with its last finalizer: only what somebody else keeps still has conditions then.
    fn clear_conditions(&self) -> Option<Next> {
        if self.why == Why::Deleted && self.finalizers_of_others().is_empty() {
            return None;
        }
        let before = conditions::of(self.service);
        let mut stay = marks::conditions_of_others(self.service, self.why == Why::OtherClass);
        let mut notes = Vec::new();
        if let Some((reason, message)) = self.why_not_served() {
            let said = [Said::new(CONDITION_ACCEPTED, false, reason, message)];
            if !conditions::are_said(&said, before) {
                notes.push(self.reporter.refused(message));
            }
            stay.extend(conditions::merge(&said, before, self.now));
        }
        (stay != before).then(|| Next::Do(Box::new(self.status(false, stay)), notes))
    }

    /// Reason and message for one that asks for addresses and can have none.
    fn why_not_served(&self) -> Option<(&'static str, &'static str)> {
        let spec = self.service.spec.as_ref();
        let asks = spec
            .and_then(|spec| spec.external_ips.as_ref())
            .is_some_and(|addresses| !addresses.is_empty());
        match self.why {
            Why::Headless => Some((
                "Headless",
                "a headless Service has no VIP: kube-proxy does not serve it",
            )),
            Why::ExternalName if asks => Some((
                "ExternalName",
                "spec.externalIPs: a Service of type ExternalName is a name in DNS: kube-proxy serves no address of it",
            )),
            Why::ExternalName | Why::Deleted | Why::NotLoadBalancer | Why::LetGo | Why::OtherClass => None,
        }
    }

    fn status(&self, clear_ingress: bool, conditions: Vec<Condition>) -> Action {
        Action::ReplaceServiceStatus {
            service: self.key.clone(),
            resource_version: self.resource_version(),
            clear_ingress,
            conditions,
        }
    }

    fn finalizers_of_others(&self) -> Vec<String> {
        marks::finalizers_of_others(self.service, self.why == Why::OtherClass)
    }

    fn resource_version(&self) -> String {
        self.service.metadata.resource_version.clone().unwrap_or_default()
    }
}
