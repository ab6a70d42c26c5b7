//! All pools, and what of them overlaps.
//!
//! Never moves an address: a pool that is edited, in conflict or gone only hands out nothing more.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use operator_api::{AddressPool, AddressPoolStatus};

use super::{
    Claims,
    pool::Pool,
    range::{Range, blocks},
    status::status,
};

/// All pools. Changed at each event of a watch; everything about overlaps is worked out then.
#[derive(Debug, Default)]
pub struct Pools {
    by_name: BTreeMap<String, Pool>,
    /// First address of a range, to its last and its pool: disjoint, each with the earliest pool that has it.
    owners: BTreeMap<IpAddr, (IpAddr, String)>,
}

impl Pools {
    /// Puts a pool in the place of its earlier version. Returns whether anything changed that decides who gets what: a change
    /// of status alone does not.
    pub fn apply(&mut self, object: &AddressPool) -> bool {
        let pool = Pool::parse(object);
        let name = pool.name().to_owned();
        let same = self.by_name.get(&name).is_some_and(|old| {
            old.spec() == pool.spec() && old.object().metadata.creation_timestamp == object.metadata.creation_timestamp
        });
        self.by_name.insert(name, pool);
        self.resolve();
        !same
    }

    /// Takes a pool out. Returns whether it was there.
    pub fn delete(&mut self, name: &str) -> bool {
        let was_there = self.by_name.remove(name).is_some();
        self.resolve();
        was_there
    }

    /// Puts a whole list in the place of all pools.
    pub fn reset<'a>(&mut self, objects: impl IntoIterator<Item = &'a AddressPool>) {
        let pools = objects.into_iter().map(Pool::parse);
        self.by_name = pools.map(|pool| (pool.name().to_owned(), pool)).collect();
        self.resolve();
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.by_name.values()
    }

    /// One, by name.
    pub fn by_name(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name)
    }

    /// The pool that has an address; of several, the earliest.
    pub fn covering(&self, address: IpAddr) -> Option<&Pool> {
        let (_, (last, name)) = self.owners.range(..=address).next_back()?;
        if address <= *last { self.by_name.get(name) } else { None }
    }

    /// The fewest CIDR blocks that have the addresses of all pools, and all that we have claimed outside of them: what worker
    /// nodes accept by tunnel. Pools in conflict or with a fault count as well: their addresses may be in use.
    pub fn prefixes(&self, claims: &Claims) -> Vec<IpNet> {
        let owned = self
            .owners
            .iter()
            .filter_map(|(&first, &(last, _))| Range::new(first, last));
        blocks(owned.chain(claims.own_runs().iter()).collect())
    }

    /// What to say in a pool's status, at `now`: a condition that says what it said keeps its time of transition. `None`: there
    /// is no such pool.
    pub fn status(&self, name: &str, claims: &Claims, now: Timestamp) -> Option<AddressPoolStatus> {
        self.by_name.get(name).map(|pool| status(pool, claims, now))
    }

    /// Works out who owns what, and who is in conflict: O(ranges × log ranges).
    fn resolve(&mut self) {
        let mut owners = BTreeMap::new();
        let mut order: Vec<&mut Pool> = self.by_name.values_mut().collect();
        order.sort_by(|one, other| one.seniority().cmp(&other.seniority()));
        for pool in order {
            let overlaps = pool.ranges().iter().filter_map(|range| first_overlap(&owners, *range));
            pool.conflict = overlaps.min_by_key(|(_, at)| *at);
            let mut free = Vec::new();
            for range in pool.ranges() {
                free.extend(unowned(&owners, *range));
            }
            let name = pool.name();
            owners.extend(
                free.into_iter()
                    .map(|range| (range.first(), (range.last(), name.to_owned()))),
            );
        }
        self.owners = owners;
    }
}

type Owners = BTreeMap<IpAddr, (IpAddr, String)>;

/// Who owns parts of a range, in order.
fn overlapping(owners: &Owners, range: Range) -> impl Iterator<Item = (Range, &String)> {
    let before = owners.range(..range.first()).next_back();
    let within = owners.range(range.first()..=range.last());
    before
        .into_iter()
        .chain(within)
        .filter_map(move |(&first, (last, name))| {
            let common = Range::new(first, *last)?.intersection(range)?;
            Some((common, name))
        })
}

fn first_overlap(owners: &Owners, range: Range) -> Option<(String, IpAddr)> {
    overlapping(owners, range)
        .next()
        .map(|(common, name)| (name.clone(), common.first()))
}

/// What nobody owns of a range.
fn unowned(owners: &Owners, range: Range) -> Vec<Range> {
    let mut left = vec![range];
    for (common, _) in overlapping(owners, range) {
        if let Some(last) = left.pop() {
            left.extend(last.without(common));
        }
    }
    left
}
