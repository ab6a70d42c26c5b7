//! Events of a Service, with the names that people grep for.
//!
//! Never without a write, so that none is told twice: what was told stands in the object.

use crate::ServiceKey;

use super::{About, Note};

/// Reason of an address that another host has.
const ADDRESS_IN_USE: &str = operator_api::EXCEPTION_ADDRESS_IN_USE;

/// Whom Events are about.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    pub(super) service: ServiceKey,
    pub(super) uid: String,
}

impl Reporter {
    fn note(&self, warning: bool, reason: &'static str, message: impl Into<String>) -> Note {
        Note {
            about: About::Service {
                service: self.service.clone(),
                uid: self.uid.clone(),
            },
            warning,
            reason,
            message: message.into(),
        }
    }

    pub(super) fn ensuring(&self) -> Note {
        self.note(false, "EnsuringLoadBalancer", "Ensuring load balancer")
    }

    /// With all that `kubectl describe` does not show of a Service: it prints no conditions.
    pub(super) fn ensured(&self, addresses: &str, programmed: &str, announced: &str) -> Note {
        let message = format!("Ensured load balancer: {addresses}; {programmed}; {announced}");
        self.note(false, "EnsuredLoadBalancer", message)
    }

    /// Other addresses, in the same words.
    pub(super) fn moved(&self, addresses: &str, programmed: &str, announced: &str) -> Note {
        self.updated(&format!("{addresses}; {programmed}; {announced}"))
    }

    pub(super) fn updated(&self, what: &str) -> Note {
        self.note(false, "UpdatedLoadBalancer", format!("Updated load balancer: {what}"))
    }

    pub(super) fn deprecated(&self, message: &str) -> Note {
        self.note(true, "LoadBalancerIPDeprecated", message)
    }

    pub(super) fn allocated(&self, address: std::net::IpAddr, pool: &str) -> Note {
        self.note(false, "IPAllocated", format!("Allocated {address} from pool {pool}"))
    }

    pub(super) fn not_allocated(&self, reason: &'static str, message: &str) -> Note {
        self.note(true, reason, message)
    }

    pub(super) fn refused(&self, message: &str) -> Note {
        let message = format!("Error syncing load balancer: {message}");
        self.note(true, "SyncLoadBalancerFailed", message)
    }

    pub(super) fn ports(&self, message: &str) -> Note {
        self.note(true, "LoadBalancerMixedProtocolNotSupported", message)
    }

    pub(super) fn unavailable(&self, message: &str) -> Note {
        self.note(true, "UnAvailableLoadBalancer", message)
    }

    pub(super) fn announced(&self, words: &str) -> Note {
        self.note(false, "Announced", format!("Announced {words}"))
    }

    pub(super) fn not_announced(&self, reason: &str, why: &str) -> Note {
        if reason == ADDRESS_IN_USE {
            self.note(true, ADDRESS_IN_USE, format!("Not announced: {why}"))
        } else {
            self.note(true, "NotAnnounced", format!("Not announced: {why}"))
        }
    }

    pub(super) fn deleting(&self, why: &str) -> Note {
        self.note(
            false,
            "DeletingLoadBalancer",
            format!("Deleting load balancer: the Service is {why}"),
        )
    }

    pub(super) fn deleted(&self) -> Note {
        self.note(false, "DeletedLoadBalancer", "Deleted load balancer")
    }
}
