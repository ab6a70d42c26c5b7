//! Backends and the sets they form.
//!
//! Never keeps a set's name: sets are what they contain, and equal ones are one; so are checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use xdp_prog::abi::{MAX_TABLE_SLOTS, MIN_TABLE_SLOTS};

use super::{
    address,
    health::{self, Health},
    problem::Problem,
    read::{At, Spot},
    words::{Kind, Quoted},
};
use crate::{
    desired::{Backend, BackendId, BackendSet, Member},
    health::Checks,
};

/// Longest name of a backend or set, in bytes: that of a Kubernetes node (RFC 1123 2.1).
pub const MAX_NAME_BYTES: usize = 253;
/// Names of sets that an error lists.
const LISTED_SETS: usize = 8;

/// Where a VIP's flows may go, and how one learns who serves.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) set: Arc<BackendSet>,
    pub(super) checks: Option<Arc<Checks>>,
}

/// Every backend and set of a file.
#[derive(Debug, Default)]
pub(super) struct Sets {
    /// `health` at the top.
    pub(super) health: Health,
    addresses: BTreeMap<BackendId, (IpAddr, Spot)>,
    names: BTreeMap<IpAddr, (BackendId, Spot)>,
    /// By name; `None`: there, and with errors of its own.
    named: BTreeMap<String, Option<Pool>>,
    used: BTreeSet<String>,
    known: BTreeSet<Arc<BackendSet>>,
    known_checks: BTreeSet<Arc<Checks>>,
}

impl Sets {
    /// `backend_sets`.
    pub(super) fn read_named(&mut self, at: &At<'_>) -> Option<()> {
        for (key, at) in at.entries()? {
            if !is_name(&key.name) {
                at.note(Problem::BadName {
                    value: Quoted::new(&key.name),
                });
            }
            let pool = at.fields(|fields| {
                let slots = fields.or("table_slots", None, |at| table_slots(&at).map(Some));
                let checks = self.checks(fields.optional("health"));
                let members = fields.required("members").and_then(|at| Some((self.members(&at)?, at)));
                let (members, at) = members?;
                let set = self.set(&at, members, slots?);
                Some(Pool {
                    set: set?,
                    checks: checks?,
                })
            });
            self.named.insert(key.name.clone(), pool);
        }
        Some(())
    }

    /// `backends` of a VIP: the name of a set, or the members of one. `slots` is the VIP's own `table_slots`, `health` its own `health`.
    pub(super) fn of_vip(&mut self, at: &At<'_>, slots: Option<At<'_>>, health: Option<At<'_>>) -> Option<Pool> {
        match at.kind() {
            Kind::Text => {
                if let Some(health) = health {
                    health.note(Problem::HealthOfNamedSet);
                }
                if let Some(slots) = slots {
                    slots.note(Problem::SlotsOfNamedSet);
                }
                let name = at.text()?;
                match self.named.get(name) {
                    Some(pool) => {
                        self.used.insert(name.to_owned());
                        pool.clone()
                    }
                    None => {
                        let known = self.named.keys().take(LISTED_SETS).cloned().collect();
                        at.fail(Problem::UnknownSet {
                            name: Quoted::new(name),
                            known,
                        })
                    }
                }
            }
            Kind::List => {
                let slots = slots.map_or(Some(None), |at| table_slots(&at).map(Some));
                let checks = self.checks(health);
                let members = self.members(at)?;
                let set = self.set(at, members, slots?);
                Some(Pool {
                    set: set?,
                    checks: checks?,
                })
            }
            found @ (Kind::Empty | Kind::Bool | Kind::Integer | Kind::Float | Kind::Map | Kind::Tagged) => {
                at.fail(Problem::NeitherNameNor {
                    found,
                    what: "a list of backends (`[]` for none)",
                })
            }
        }
    }

    /// Every backend, with where its address stands first.
    pub(super) fn backends(&self) -> impl Iterator<Item = (&BackendId, IpAddr, &Spot)> {
        self.addresses.iter().map(|(id, (address, spot))| (id, *address, spot))
    }

    /// As the desired state has them.
    pub(super) fn to_desired(&self) -> BTreeMap<BackendId, Backend> {
        self.backends()
            .map(|(id, address, _)| (id.clone(), Backend { address }))
            .collect()
    }

    /// Named sets that no VIP uses.
    pub(super) fn unused(&self) -> Vec<String> {
        self.named
            .keys()
            .filter(|name| !self.used.contains(*name))
            .cloned()
            .collect()
    }

    fn set(&mut self, at: &At<'_>, mut members: Vec<Member>, table_slots: Option<usize>) -> Option<Arc<BackendSet>> {
        let slots = table_slots.unwrap_or(MAX_TABLE_SLOTS);
        let weighted = members.iter().filter(|member| member.weight > 0).count();
        if weighted > slots {
            return at.fail(Problem::TooFewSlots {
                slots,
                members: weighted,
            });
        }
        members.sort_unstable();
        let set = Arc::new(BackendSet { members, table_slots });
        match self.known.get(&set) {
            Some(known) => Some(known.clone()),
            None => {
                self.known.insert(set.clone());
                Some(set)
            }
        }
    }

    /// What a set's own `health` comes to, or that at the top where it has none.
    fn checks(&mut self, at: Option<At<'_>>) -> Option<Option<Arc<Checks>>> {
        let checks = match at {
            Some(at) => health::checks(&at, &self.health)?,
            None => self.health.checks(),
        };
        let Some(checks) = checks.map(Arc::new) else {
            return Some(None);
        };
        let known = self.known_checks.get(&checks).cloned();
        Some(Some(known.unwrap_or_else(|| {
            self.known_checks.insert(Arc::clone(&checks));
            checks
        })))
    }

    fn members(&mut self, at: &At<'_>) -> Option<Vec<Member>> {
        let items = at.list()?;
        let mut first_spots: BTreeMap<BackendId, String> = BTreeMap::new();
        let mut members = Vec::with_capacity(items.len());
        for item in &items {
            let member = self.member(item);
            if let Some(Member { backend, .. }) = &member {
                if let Some(first) = first_spots.get(backend) {
                    let problem = Problem::DuplicateMember {
                        backend: backend.to_string(),
                        first: first.clone(),
                    };
                    item.note(problem);
                } else {
                    first_spots.insert(backend.clone(), item.spot().to_string());
                }
            }
            members.push(member);
        }
        members.into_iter().collect()
    }

    fn member(&mut self, at: &At<'_>) -> Option<Member> {
        at.fields(|fields| {
            let backend = fields
                .required("name")
                .and_then(|at| name(&at))
                .map(|name| BackendId(name.into()));
            let address = fields
                .required("address")
                .and_then(|at| Some((address::unicast(&at)?, at)));
            let weight = fields.or("weight", 1, |at| at.within(0, u16::MAX));
            let (backend, (address, at)) = (backend?, address?);
            self.register(&at, &backend, address)?;
            Some(Member {
                backend,
                weight: weight?,
            })
        })
    }

    /// One name, one address, both ways.
    fn register(&mut self, at: &At<'_>, backend: &BackendId, address: IpAddr) -> Option<()> {
        match self.addresses.get(backend) {
            Some((known, _)) if *known == address => return Some(()),
            Some((other, first)) => {
                let problem = Problem::TwoAddresses {
                    backend: backend.to_string(),
                    other: *other,
                    first: first.to_string(),
                };
                return at.fail(problem);
            }
            None => {}
        }
        if let Some((other, first)) = self.names.get(&address) {
            return at.fail(Problem::TwoNames {
                address,
                other: other.to_string(),
                first: first.to_string(),
            });
        }
        self.addresses.insert(backend.clone(), (address, at.spot().clone()));
        self.names.insert(address, (backend.clone(), at.spot().clone()));
        Some(())
    }
}

pub(super) fn name<'a>(at: &At<'a>) -> Option<&'a str> {
    let name = at.text()?;
    if is_name(name) {
        Some(name)
    } else {
        at.fail(Problem::BadName {
            value: Quoted::new(name),
        })
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-:/".contains(c))
}

fn table_slots(at: &At<'_>) -> Option<usize> {
    let slots = at.integer()?;
    match usize::try_from(slots) {
        Ok(slots) if slots.is_power_of_two() && (MIN_TABLE_SLOTS..=MAX_TABLE_SLOTS).contains(&slots) => Some(slots),
        Ok(_) | Err(_) => at.fail(Problem::BadTableSlots { slots }),
    }
}
