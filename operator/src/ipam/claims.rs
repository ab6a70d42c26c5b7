//! Claims: which Service has which address, and which installation of Vipline the claim is of.
//!
//! Never changes a claim of another installation: its address is taken, and its holders are none of ours. One that does not say
//! whose it is was written by a version that did not know; the installation that serves a holder takes it over by its next write.
//! Never believes a claim whose name and address differ: its name is what the API server keeps unique, so the address of that
//! name is taken, by nobody who could be asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    slice,
};

use operator_api::{AddressClaim, Holder, ServiceRef};

use super::{Range, runs::Runs};
use crate::ServiceKey;

/// Whose a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This installation's.
    Ours,
    /// It does not say.
    Unsaid,
    /// Another installation's.
    Others,
}

/// A claim and the address that it is about.
#[derive(Clone, Debug)]
pub struct Claim {
    address: IpAddr,
    object: AddressClaim,
    owner: Owner,
}

impl Claim {
    /// The address: that of its name.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The object.
    pub const fn object(&self) -> &AddressClaim {
        &self.object
    }

    /// Name of the object.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// Whose it is.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// The other installation whose it is.
    pub fn other_installation(&self) -> Option<&str> {
        let installation = self.object.spec.installation.as_deref();
        installation.filter(|_| self.owner == Owner::Others)
    }

    /// The write that takes it over for an installation. `None`: it says already whose it is.
    pub fn taken_over(&self, installation: &str) -> Option<ClaimWrite> {
        (self.owner == Owner::Unsaid).then(|| {
            let mut object = self.object.clone();
            object.spec.installation = Some(installation.to_owned());
            ClaimWrite::Replace(object)
        })
    }

    /// Services that use it, whoever serves them.
    pub fn holders(&self) -> slice::Iter<'_, Holder> {
        self.object.spec.holders.iter()
    }

    /// What this life of a Service holds of it by us.
    pub fn holder(&self, service: &ServiceRef) -> Option<&Holder> {
        let mut holders = self.holders().filter(|_| self.owner != Owner::Others);
        holders.find(|holder| holder.service == *service)
    }

    /// Key by which its holders share it.
    pub fn sharing_key(&self) -> Option<&str> {
        self.object.spec.sharing_key.as_deref()
    }

    /// Whether it says what its name says.
    pub fn is_sound(&self) -> bool {
        self.object.spec.address.parse() == Ok(self.address)
    }

    /// The write that takes a Service out: of one holder, the whole claim. `None`: it does not hold it.
    pub fn without(&self, service: &ServiceRef) -> Option<ClaimWrite> {
        self.holder(service)?;
        let mut object = self.object.clone();
        object.spec.holders.retain(|holder| holder.service != *service);
        Some(if object.spec.holders.is_empty() {
            self.deletion()
        } else {
            ClaimWrite::Replace(object)
        })
    }

    /// The write that takes it away whoever holds it.
    pub fn deletion(&self) -> ClaimWrite {
        let metadata = &self.object.metadata;
        ClaimWrite::Delete {
            name: self.name().to_owned(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
        }
    }
}

/// A write of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimWrite {
    /// POST: 409 when the address is taken.
    Create(AddressClaim),
    /// PUT with the `resourceVersion` in it: 409 when somebody was faster.
    Replace(AddressClaim),
    /// DELETE with preconditions.
    Delete {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
        /// Its `resourceVersion`.
        resource_version: String,
    },
}

/// All claims.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// What this installation is called.
    installation: String,
    by_address: BTreeMap<IpAddr, Claim>,
    by_service: BTreeMap<ServiceKey, BTreeSet<IpAddr>>,
    /// As `by_service`, of other installations.
    of_others: BTreeMap<ServiceKey, BTreeSet<IpAddr>>,
    by_key: BTreeMap<String, BTreeSet<IpAddr>>,
    runs: Runs,
    /// Without those of other installations.
    own_runs: Runs,
    reserved: Runs,
}

impl Claims {
    /// None yet, as an installation sees them.
    pub fn of(installation: String) -> Self {
        Self {
            installation,
            ..Self::default()
        }
    }

    /// What this installation is called.
    pub fn installation(&self) -> &str {
        &self.installation
    }

    /// Puts a claim in the place of its earlier version. Returns whether its name is that of an address: another has no meaning
    /// and is not kept.
    pub fn apply(&mut self, object: &AddressClaim) -> bool {
        let Some(address) = object.metadata.name.as_deref().and_then(address_of_name) else {
            return false;
        };
        self.take_out(address);
        let owner = match &object.spec.installation {
            None => Owner::Unsaid,
            Some(installation) if *installation == self.installation => Owner::Ours,
            Some(_) => Owner::Others,
        };
        let by_service = match owner {
            Owner::Ours | Owner::Unsaid => &mut self.by_service,
            Owner::Others => &mut self.of_others,
        };
        for holder in &object.spec.holders {
            by_service.entry(key_of(&holder.service)).or_default().insert(address);
        }
        if owner != Owner::Others {
            if let Some(key) = &object.spec.sharing_key {
                self.by_key.entry(key.clone()).or_default().insert(address);
            }
            self.own_runs.insert(address);
        }
        self.runs.insert(address);
        let claim = Claim {
            address,
            object: object.clone(),
            owner,
        };
        self.by_address.insert(address, claim);
        true
    }

    /// Takes a claim out, by its name. Returns whether it was there.
    pub fn delete(&mut self, name: &str) -> bool {
        address_of_name(name).is_some_and(|address| self.take_out(address))
    }

    /// Puts a whole list in the place of all claims.
    pub fn reset<'a>(&mut self, objects: impl IntoIterator<Item = &'a AddressClaim>) {
        *self = Self {
            installation: std::mem::take(&mut self.installation),
            reserved: std::mem::take(&mut self.reserved),
            ..Self::default()
        };
        for object in objects {
            self.apply(object);
        }
    }

    /// All, those of other installations included, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.by_address.values()
    }

    /// Those of a range, in the order of their addresses.
    pub fn in_range(&self, range: Range) -> impl Iterator<Item = &Claim> {
        self.by_address
            .range(range.first()..=range.last())
            .map(|(_, claim)| claim)
    }

    /// The one of an address.
    pub fn by_address(&self, address: IpAddr) -> Option<&Claim> {
        self.by_address.get(&address)
    }

    /// Whether there is one of ours, said to be so, that a Service of this name holds.
    pub fn marks(&self, service: &ServiceKey) -> bool {
        self.of_service(service).any(|claim| claim.owner == Owner::Ours)
    }

    /// Whether another installation holds any for a Service of this name.
    pub fn is_of_others(&self, service: &ServiceKey) -> bool {
        self.of_others.contains_key(service)
    }

    /// Those of ours that a Service of this name holds, whichever life of it, in the order of their addresses.
    pub fn of_service(&self, service: &ServiceKey) -> impl Iterator<Item = &Claim> {
        let addresses = self.by_service.get(service).into_iter().flatten();
        addresses.filter_map(|address| self.by_address.get(address))
    }

    /// Those that this life of a Service holds, in the order of their addresses.
    pub fn held_by<'a>(&'a self, service: &'a ServiceRef) -> impl Iterator<Item = &'a Claim> {
        self.of_service(&key_of(service))
            .filter(|claim| claim.holder(service).is_some())
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Services that hold any, by name.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.by_service.keys()
    }

    /// Those that are shared by a key, in the order of their addresses.
    pub(super) fn by_key(&self, key: &str) -> impl Iterator<Item = &Claim> {
        let addresses = self.by_key.get(key).into_iter().flatten();
        addresses.filter_map(|address| self.by_address.get(address))
    }

    /// Number of claims.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Keeps an address from being chosen for another Service while its creation is under way, so that Services that are in
    /// flight together do not all ask for the same one. Only spares a 409: the API server is who decides.
    pub fn reserve(&mut self, address: IpAddr) {
        self.reserved.insert(address);
    }

    /// Ends what [`Claims::reserve`] began, whatever came of it.
    pub fn unreserve(&mut self, address: IpAddr) {
        self.reserved.remove(address);
    }

    /// Claimed addresses, by whomever.
    pub(super) const fn runs(&self) -> &Runs {
        &self.runs
    }

    /// Addresses that this installation has claimed.
    pub(super) const fn own_runs(&self) -> &Runs {
        &self.own_runs
    }

    /// The last address after `address` that is not free without a gap; `None`: it is free itself.
    pub(super) fn busy_until(&self, address: IpAddr) -> Option<IpAddr> {
        self.runs.end_of(address).max(self.reserved.end_of(address))
    }

    fn take_out(&mut self, address: IpAddr) -> bool {
        let Some(claim) = self.by_address.remove(&address) else {
            return false;
        };
        self.runs.remove(address);
        self.own_runs.remove(address);
        for holder in claim.holders() {
            remove_from(&mut self.by_service, &key_of(&holder.service), address);
            remove_from(&mut self.of_others, &key_of(&holder.service), address);
        }
        if let Some(key) = &claim.object.spec.sharing_key {
            remove_from(&mut self.by_key, key, address);
        }
        true
    }
}

/// The address of a claim's name: what [`AddressClaim::name_of`] made of it.
pub fn address_of_name(name: &str) -> Option<IpAddr> {
    let address: IpAddr = match name.parse::<Ipv4Addr>() {
        Ok(address) => address.into(),
        Err(_) => name.replace('-', ":").parse::<Ipv6Addr>().ok()?.into(),
    };
    (AddressClaim::name_of(address) == name).then_some(address)
}

/// Name of a Service, without its life.
pub fn key_of(service: &ServiceRef) -> ServiceKey {
    ServiceKey {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    }
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<IpAddr>>, key: &K, address: IpAddr) {
    if let Some(addresses) = index.get_mut(key) {
        addresses.remove(&address);
        if addresses.is_empty() {
            index.remove(key);
        }
    }
}
