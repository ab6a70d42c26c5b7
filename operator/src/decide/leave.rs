//! Death of a Service, as far as it is ours: on deletion, on leaving `LoadBalancer`, when it is let go.
//!
//! Never gives an address back while a table names it, never lets the finalizer go before, and never touches what others wrote.
//!
//! 1. the table goes: LB nodes serve it no more. (Claims that do not say whose they are become ours before: without the table,
//!    nobody could tell.)
//! 2. claims are given back, those of ours alone
//! 3. the status is cleared, if the Service lives on and nobody else serves it; conditions of ours go
//! 4. finalizer and annotation go

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use operator_api::{ANNOTATION_ALLOCATED_FROM, CONDITION_ACCEPTED, FINALIZER, FINALIZER_EXTERNAL_IPS, ServiceRef};

use super::{
    Action, Next,
    conditions::{self, Said},
    notes::Reporter,
    quietly, status, table,
};
use crate::{
    ServiceKey,
    index::{Index, Why},
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
    leaving
        .take_over()
        .or_else(|| leaving.delete_table())
        .or_else(|| leaving.give_back())
        .or_else(|| leaving.clear_status())
        .or_else(|| leaving.let_go())
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

    /// One that is being deleted has its status cleared only where somebody else's finalizer keeps it: its address is given to
    /// others now.
    fn clear_status(&self) -> Option<Next> {
        let there = status::ingress(self.service);
        let before = conditions::of(self.service);
        let mut stay = conditions::of_others(before);
        let clears = match self.why {
            Why::OtherClass => return None,
            Why::Deleted if self.finalizers_of_others().is_empty() => return None,
            Why::LetGo => false,
            Why::Deleted | Why::NotLoadBalancer | Why::ExternalName | Why::Headless => !there.is_empty(),
        };
        let mut notes = Vec::new();
        if self.why == Why::Headless {
            let message = "a headless Service has no VIP: kube-proxy does not serve it";
            let said = [Said::new(CONDITION_ACCEPTED, false, "Headless", message)];
            if !conditions::are_said(&said, before) {
                notes.push(self.reporter.refused(message));
            }
            stay.extend(conditions::merge(&said, before, self.now));
        }
        if !clears && stay == before {
            return None;
        }
        let action = Action::ReplaceServiceStatus {
            service: self.key.clone(),
            resource_version: self.resource_version(),
            clear_ingress: clears,
            conditions: stay,
        };
        Some(Next::Do(Box::new(action), notes))
    }

    fn let_go(&self) -> Option<Next> {
        if self.why == Why::OtherClass {
            return None;
        }
        let metadata = &self.service.metadata;
        let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
        let others = self.finalizers_of_others();
        let annotations = metadata.annotations.as_ref();
        let annotated = annotations.is_some_and(|annotations| annotations.contains_key(ANNOTATION_ALLOCATED_FROM));
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

    fn finalizers_of_others(&self) -> Vec<String> {
        let finalizers = self.service.metadata.finalizers.as_deref().unwrap_or_default();
        let others = finalizers
            .iter()
            .filter(|name| *name != FINALIZER && *name != FINALIZER_EXTERNAL_IPS);
        others.cloned().collect()
    }

    fn resource_version(&self) -> String {
        self.service.metadata.resource_version.clone().unwrap_or_default()
    }
}
