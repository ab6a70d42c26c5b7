//! Who may use an address together with whom, and what its claim then says.
//!
//! Never asks for a traffic policy or for selectors: LB nodes tell Services apart by port, so that Services with policy Local
//! and such with other pods may share an address as well.

use std::{collections::BTreeSet, net::IpAddr};

use kube::core::ObjectMeta;
use operator_api::{AddressClaim, AddressClaimSpec, Holder, MAX_VIP_PORTS, ServiceRef, TransportPort, Use};

use super::{Claim, ClaimWrite, MAX_HOLDERS, Pool, Problem, key_of};

/// A Service that would use an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applicant<'a> {
    pub(super) service: &'a ServiceRef,
    pub(super) used_as: Use,
    pub(super) ports: &'a BTreeSet<TransportPort>,
    pub(super) key: Option<&'a str>,
    /// Ours.
    pub(super) installation: &'a str,
}

impl Applicant<'_> {
    /// Whether it may go on using an address that it holds. Namespaces are not looked at again: an edit of a pool moves nobody.
    pub(super) fn may_stay(self, claim: &Claim) -> Result<(), Problem> {
        self.beside(claim, None)
    }

    /// Whether it may use an address that others hold.
    pub(super) fn may_join(self, claim: &Claim, pool: &Pool) -> Result<(), Problem> {
        self.beside(claim, Some(pool))
    }

    fn beside(self, claim: &Claim, joined: Option<&Pool>) -> Result<(), Problem> {
        let address = claim.address();
        if !claim.is_sound() {
            return Err(Problem::ClaimUnreadable {
                address,
                claim: claim.name().to_owned(),
            });
        }
        if let Some(installation) = claim.other_installation() {
            return Err(Problem::OtherInstallation {
                address,
                installation: installation.to_owned(),
                by: claim.holders().next().map(|holder| key_of(&holder.service)),
            });
        }
        let others = || claim.holders().filter(|holder| holder.service != *self.service);
        others().try_for_each(|other| self.with(claim, other, joined))?;
        if others().count() < MAX_HOLDERS {
            Ok(())
        } else {
            Err(Problem::Full { address })
        }
    }

    /// Beside one other holder.
    fn with(self, claim: &Claim, other: &Holder, joined: Option<&Pool>) -> Result<(), Problem> {
        let address = claim.address();
        let by = key_of(&other.service);
        if by == key_of(self.service) {
            return Err(Problem::FormerLife { address, by });
        }
        let across = joined.is_none_or(|pool| pool.spec().share_across_namespaces);
        let together = across || other.service.namespace == self.service.namespace;
        let both_external = self.used_as == Use::ExternalIP && other.used_as == Use::ExternalIP;
        if !(both_external && together) {
            let (Some(mine), Some(theirs)) = (self.key, claim.sharing_key()) else {
                return Err(Problem::Taken { address, by });
            };
            if mine != theirs {
                return Err(Problem::KeyDiffers { address, by });
            }
            if !together {
                let pool = claim.object().spec.pool.clone();
                return Err(Problem::OtherNamespace { address, by, pool });
            }
        }
        match other.ports.iter().find(|port| self.ports.contains(port)) {
            Some(port) => Err(Problem::PortsCollide {
                address,
                by,
                port: *port,
            }),
            None => Ok(()),
        }
    }

    /// What must be written, before and after, for the applicant to use an address that it may use.
    pub(super) fn writes(self, address: IpAddr, claim: Option<&Claim>, pool: &str) -> Writes {
        let Some(claim) = claim else {
            let spec = self.spec(address, None, pool, self.ports.iter().copied().collect());
            let metadata = ObjectMeta {
                name: Some(AddressClaim::name_of(address)),
                ..ObjectMeta::default()
            };
            return Writes {
                before: Some(ClaimWrite::Create(AddressClaim { metadata, spec })),
                after: None,
            };
        };
        let held = claim
            .holder(self.service)
            .map(|holder| holder.ports.iter().copied().collect());
        let held: BTreeSet<TransportPort> = held.unwrap_or_default();
        let mut union: Vec<TransportPort> = held.union(self.ports).copied().collect();
        if union.len() > MAX_VIP_PORTS {
            // The claim cannot name both. The table names the old ones a moment longer than the claim does.
            union = self.ports.iter().copied().collect();
        }
        let replace = |ports| {
            let spec = self.spec(address, Some(claim), pool, ports);
            (spec != claim.object().spec).then(|| {
                ClaimWrite::Replace(AddressClaim {
                    metadata: claim.object().metadata.clone(),
                    spec,
                })
            })
        };
        match replace(union) {
            Some(write) => Writes {
                before: Some(write),
                after: None,
            },
            None => Writes {
                before: None,
                after: replace(self.ports.iter().copied().collect()),
            },
        }
    }

    fn spec(self, address: IpAddr, claim: Option<&Claim>, pool: &str, ports: Vec<TransportPort>) -> AddressClaimSpec {
        let others = claim
            .into_iter()
            .flat_map(Claim::holders)
            .filter(|holder| holder.service != *self.service);
        let mut holders: Vec<Holder> = others.cloned().collect();
        let theirs = claim.and_then(Claim::sharing_key);
        // The key of a claim is the key of each of its holders: who shares an external IP without it takes it out, so that no
        // load balancer address is shared with them.
        let key = if holders.is_empty() || theirs == self.key {
            self.key
        } else {
            None
        };
        holders.push(Holder {
            service: self.service.clone(),
            used_as: self.used_as,
            ports,
        });
        holders.sort_unstable();
        AddressClaimSpec {
            address: address.to_string(),
            installation: Some(self.installation.to_owned()),
            pool: pool.to_owned(),
            sharing_key: key.map(str::to_owned),
            holders,
        }
    }
}

/// Writes of one claim.
#[derive(Debug)]
pub(super) struct Writes {
    /// Must succeed before the address is used.
    pub(super) before: Option<ClaimWrite>,
    /// Takes out what is not used any more, when nothing names it any more.
    pub(super) after: Option<ClaimWrite>,
}
