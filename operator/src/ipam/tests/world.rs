//! Pools, Services and an API server as small as it can be: POST answers 409 where the name is taken, PUT and DELETE where the
//! version is another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::core::ObjectMeta;
use operator_api::{
    AddressClaim, AddressPool, AddressPoolSpec, MAX_VIP_PORTS, Protocol, ServiceRef, TransportPort, Use,
};

use crate::ipam::{ClaimWrite, Claims, Family, MAX_HOLDERS, MAX_SHARING_KEY, Outcome, Pools, Request, assign};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `tcp/80 udp/53`.
pub(super) fn ports(text: &str) -> BTreeSet<TransportPort> {
    let port = |port: &str| {
        let (protocol, port) = port.split_once('/').unwrap();
        let protocol = if protocol == "tcp" {
            Protocol::Tcp
        } else {
            Protocol::Udp
        };
        TransportPort {
            protocol,
            port: port.parse().unwrap(),
        }
    };
    text.split_whitespace().map(port).collect()
}

/// A pool, created at second `age`.
pub(super) fn pool(name: &str, age: i64, addresses: &[&str]) -> AddressPool {
    AddressPool {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            generation: Some(1),
            creation_timestamp: Some(Time(Timestamp::from_second(age).unwrap())),
            ..ObjectMeta::default()
        },
        spec: AddressPoolSpec {
            addresses: addresses.iter().map(|&entry| entry.to_owned()).collect(),
            auto_assign: true,
            ..AddressPoolSpec::default()
        },
        status: None,
    }
}

/// With a change of its spec.
pub(super) fn with(mut pool: AddressPool, change: impl FnOnce(&mut AddressPoolSpec)) -> AddressPool {
    change(&mut pool.spec);
    pool
}

/// `app=web`.
pub(super) fn labels(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap();
        (key.to_owned(), value.to_owned())
    };
    text.split_whitespace().map(pair).collect()
}

pub(super) fn selector(text: &str) -> Option<LabelSelector> {
    Some(LabelSelector {
        match_labels: Some(labels(text)),
        ..LabelSelector::default()
    })
}

/// A Service of namespace `web`, or as `namespace/name`, with port 80 of TCP, that asks for one IPv4 address.
pub(super) fn request(name: &str) -> Request {
    let (namespace, name) = name.split_once('/').unwrap_or(("web", name));
    Request {
        service: ServiceRef {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("{namespace}-{name}-1"),
        },
        labels: BTreeMap::new(),
        namespace_labels: BTreeMap::new(),
        ports: ports("tcp/80"),
        families: vec![Family::V4],
        require_all: true,
        addresses: Vec::new(),
        pool: None,
        sharing_key: None,
        current: Vec::new(),
        external: Vec::new(),
    }
}

/// Both families.
pub(super) fn dual(name: &str, require_all: bool) -> Request {
    Request {
        families: vec![Family::V4, Family::V6],
        require_all,
        ..request(name)
    }
}

/// By a sharing key, with ports.
pub(super) fn sharing(name: &str, key: &str, with_ports: &str) -> Request {
    Request {
        sharing_key: Some(key.to_owned()),
        ports: ports(with_ports),
        ..request(name)
    }
}

/// 409.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conflict;

/// What an API server keeps of claims.
#[derive(Clone, Debug, Default)]
pub(super) struct ApiServer {
    pub(super) claims: BTreeMap<String, AddressClaim>,
    pub(super) version: u64,
    /// Sabotage: versions are not looked at.
    pub(super) forgives_versions: bool,
}

impl ApiServer {
    /// Does a write, and answers with the object as it is then.
    pub(super) fn write(&mut self, write: &ClaimWrite) -> Result<Option<AddressClaim>, Conflict> {
        self.version += 1;
        let version = self.version.to_string();
        match write {
            ClaimWrite::Create(object) => {
                let name = object.metadata.name.clone().unwrap();
                if self.claims.contains_key(&name) {
                    return Err(Conflict);
                }
                let mut object = object.clone();
                object.metadata.uid = Some(format!("claim-{version}"));
                object.metadata.resource_version = Some(version);
                Ok(Some(self.put(object)))
            }
            ClaimWrite::Replace(object) => {
                let stored = self
                    .claims
                    .get(object.metadata.name.as_ref().unwrap())
                    .ok_or(Conflict)?;
                if stored.metadata.resource_version != object.metadata.resource_version && !self.forgives_versions {
                    return Err(Conflict);
                }
                let mut object = object.clone();
                object.metadata.resource_version = Some(version);
                Ok(Some(self.put(object)))
            }
            ClaimWrite::Delete {
                name,
                uid,
                resource_version,
            } => {
                let stored = self.claims.get(name).ok_or(Conflict)?;
                let same = stored.metadata.uid.as_ref() == Some(uid)
                    && stored.metadata.resource_version.as_ref() == Some(resource_version);
                if !same && !self.forgives_versions {
                    return Err(Conflict);
                }
                self.claims.remove(name);
                Ok(None)
            }
        }
    }

    /// What the schema of claims allows; a write that it refuses would be tried forever.
    fn put(&mut self, object: AddressClaim) -> AddressClaim {
        let spec = &object.spec;
        let address: IpAddr = spec.address.parse().unwrap();
        let name = object.metadata.name.clone().unwrap();
        assert_eq!(name, AddressClaim::name_of(address));
        assert!((1..=MAX_HOLDERS).contains(&spec.holders.len()));
        assert!(
            spec.holders
                .iter()
                .all(|holder| (1..=MAX_VIP_PORTS).contains(&holder.ports.len()))
        );
        assert!(spec.holders.is_sorted() && spec.holders.iter().all(|holder| holder.ports.is_sorted()));
        assert!(spec.sharing_key.as_ref().is_none_or(|key| key.len() <= MAX_SHARING_KEY));
        self.claims.insert(name, object.clone());
        object
    }
}

/// What one operator does, with nobody in its way.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) pools: Pools,
    pub(super) claims: Claims,
    pub(super) server: ApiServer,
    pub(super) status: BTreeMap<ServiceRef, Vec<IpAddr>>,
}

impl World {
    pub(super) fn new(pools: &[AddressPool]) -> Self {
        let mut world = Self::default();
        world.pools.reset(pools);
        world
    }

    /// What would be decided now.
    pub(super) fn ask(&self, request: &Request) -> Outcome {
        let mut request = request.clone();
        if request.current.is_empty() {
            request.current = self.status.get(&request.service).cloned().unwrap_or_default();
        }
        assign(&self.pools, &self.claims, &request)
    }

    pub(super) fn write(&mut self, write: &ClaimWrite) {
        match self.server.write(write).expect("nobody else writes") {
            Some(object) => assert!(self.claims.apply(&object)),
            None => {
                let ClaimWrite::Delete { name, .. } = write else {
                    panic!("only deletions answer nothing")
                };
                assert!(self.claims.delete(name));
            }
        }
    }

    /// Everything, to the end: claims, status, surplus. Returns what was decided.
    pub(super) fn settle(&mut self, request: &Request) -> Outcome {
        for _ in 0..16 {
            let outcome = self.ask(request);
            if let Some(next) = &outcome.next {
                self.write(next);
                continue;
            }
            let ours = outcome
                .assignments
                .iter()
                .filter(|wish| wish.used_as == Use::LoadBalancer);
            let ours: Vec<IpAddr> = ours.map(|wish| wish.address).collect();
            if self.status.insert(request.service.clone(), ours.clone()) != Some(ours) {
                continue;
            }
            match outcome.surplus.first() {
                Some(surplus) => self.write(&surplus.write),
                None => return outcome,
            }
        }
        panic!("does not settle: {:?}", self.ask(request));
    }

    /// Its addresses, as text, after all is done.
    pub(super) fn addresses(&mut self, request: &Request) -> Vec<String> {
        let outcome = self.settle(request);
        outcome
            .assignments
            .iter()
            .map(|wish| wish.address.to_string())
            .collect()
    }

    /// The Service goes: all that it holds is released.
    pub(super) fn delete(&mut self, request: &Request) {
        let writes: Vec<ClaimWrite> = self
            .claims
            .held_by(&request.service)
            .filter_map(|claim| claim.without(&request.service))
            .collect();
        for write in &writes {
            self.write(write);
        }
        self.status.remove(&request.service);
    }

    /// Why it has not all that it asks for.
    pub(super) fn problems(&mut self, request: &Request) -> Vec<String> {
        self.settle(request).problems.iter().map(ToString::to_string).collect()
    }
}
