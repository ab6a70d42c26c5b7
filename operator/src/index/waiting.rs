//! Which Services wait for an address, and which for LB nodes to have their table.
//!
//! Never wakes more than a few for one address that has become free: what finds nothing tries again by itself.

use std::net::IpAddr;

use operator_api::{CONDITION_PROGRAMMED, Use, VipTable};

use super::{
    Index,
    wanted::{Serve, Wanted},
};
use crate::{ServiceKey, ipam::Family};

/// Most Services that one freed address wakes, beside those that ask for it by name.
const MAX_WOKEN: usize = 256;

/// What a Service waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// Families that it lacks an address of.
    families: Vec<Family>,
    /// From this pool only.
    pool: Option<String>,
    /// Addresses that it asks for by name and lacks.
    named: Vec<IpAddr>,
}

impl Index {
    /// Notes anew what a Service waits for.
    pub(super) fn note(&mut self, key: &ServiceKey) {
        let wanted = self.wanted(key);
        let (ours, wish) = match &wanted {
            Wanted::Foreign => (false, None),
            Wanted::Nothing(_) => (true, None),
            Wanted::Serve(serve) => (true, self.wish(serve)),
        };
        if ours {
            self.ours.insert(key.clone());
        } else {
            self.ours.remove(key);
        }
        match wish {
            Some(wish) => self.waiting.insert(key.clone(), wish),
            None => self.waiting.remove(key),
        };
        let unpublished =
            matches!(wanted, Wanted::Serve(_)) && self.table(key).is_some_and(|table| !self.is_published(table));
        if unpublished {
            self.unpublished.insert(key.clone());
        } else {
            self.unpublished.remove(key);
        }
    }

    /// How many Services lack an address.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// `None`: it has all that it asks for.
    fn wish(&self, serve: &Serve) -> Option<Wish> {
        if !serve.is_accepted() {
            return None;
        }
        let request = &serve.request;
        let held = |address: &IpAddr, used_as| {
            let claim = self.claims.by_address(*address);
            let holder = claim.and_then(|claim| claim.holder(&serve.service));
            holder.is_some_and(|holder| holder.used_as == used_as)
        };
        let fits = |pool: &str| request.pool.as_deref().is_none_or(|asked| asked == pool);
        let has = |family: &Family| {
            self.claims.held_by(&serve.service).any(|claim| {
                let balances = claim
                    .holder(&serve.service)
                    .is_some_and(|holder| holder.used_as == Use::LoadBalancer);
                Family::of(claim.address()) == *family && balances && fits(&claim.object().spec.pool)
            })
        };
        let families: Vec<Family> = request.families.iter().filter(|family| !has(family)).copied().collect();
        let balanced = request
            .addresses
            .iter()
            .filter(|address| !held(address, Use::LoadBalancer));
        let external = request
            .external
            .iter()
            .filter(|address| !held(address, Use::ExternalIP));
        let named: Vec<IpAddr> = balanced.chain(external).copied().collect();
        let waits = !families.is_empty() || !named.is_empty();
        waits.then(|| Wish {
            families,
            pool: request.pool.clone(),
            named,
        })
    }

    /// Services to which an address of a pool that has become free may be of use.
    pub(super) fn who_could_use(&self, address: IpAddr, pool: &str) -> impl Iterator<Item = ServiceKey> {
        let by_name = self
            .waiting
            .iter()
            .filter(move |(_, wish)| wish.named.contains(&address));
        let by_chance = self.waiting.iter().filter(move |(_, wish)| {
            wish.families.contains(&Family::of(address)) && wish.pool.as_deref().is_none_or(|asked| asked == pool)
        });
        by_name.chain(by_chance.take(MAX_WOKEN)).map(|(key, _)| key.clone())
    }

    /// Whether clients know of a table: the Service's status names all its load balancer addresses; where it has none, its
    /// condition says that it is programmed.
    pub fn is_published(&self, table: &VipTable) -> bool {
        let key = crate::ipam::key_of(&table.spec.service);
        let Some(status) = self.services.by_key(&key).and_then(|service| service.status.as_ref()) else {
            return false;
        };
        let ingress = status
            .load_balancer
            .as_ref()
            .and_then(|status| status.ingress.as_deref())
            .unwrap_or_default();
        let names = |address| {
            ingress
                .iter()
                .any(|ingress| ingress.ip.as_deref().and_then(|ip| ip.parse().ok()) == Some(address))
        };
        let mut balanced = table
            .spec
            .addresses
            .iter()
            .filter(|address| address.used_as == Use::LoadBalancer)
            .peekable();
        if balanced.peek().is_some() {
            return balanced.all(|address| address.ip().is_some_and(names));
        }
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|condition| condition.type_ == CONDITION_PROGRAMMED && condition.status == "True")
    }
}
