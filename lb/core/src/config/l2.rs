//! Which VIP addresses this node answers for on its own segments, alone or with others.
//!
//! Never makes an address of a network answered that is no VIP address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    address,
    problem::Problem,
    read::{At, Fields},
    words::Quoted,
};
use crate::{announce::Member, bfd::Timers};

/// Most members of a group, this node included.
pub const MAX_GROUP_MEMBERS: usize = 32;

/// `l2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Config {
    /// Networks whose VIP addresses this node owns: it answers ARP and neighbour discovery for them. Sorted; empty: VIPs are routed.
    pub owned: Vec<IpNet>,
    /// Whether it asks for an address before it answers for it, and leaves it alone where somebody else has it.
    pub probe: bool,
    /// With whom it shares them; `None`: with nobody.
    pub group: Option<L2Group>,
}

/// `l2.group`: LB nodes on the same segments, each of which answers for a part of what all of them own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Group {
    /// This node's name in it.
    pub name: Member,
    /// All others, and where they are heard. By a file, at least one.
    pub others: BTreeMap<Member, IpAddr>,
    /// This node's own address towards each; where there is none, the one that its route has.
    pub from: BTreeMap<Member, IpAddr>,
    /// How fast one that is no longer heard is noticed.
    pub timers: Timers,
}

impl Default for L2Config {
    /// Nothing is owned; what would be is asked for.
    fn default() -> Self {
        Self {
            owned: Vec::new(),
            probe: true,
            group: None,
        }
    }
}

impl L2Config {
    /// Whether this node answers for an address, given that it is a VIP address, and that others of its group do not.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.owned.iter().any(|network| network.contains(&address))
    }
}

/// `l2`.
pub(super) fn l2(at: &At<'_>) -> Option<L2Config> {
    at.fields(|fields| {
        let owned = fields.or("owned", Vec::new(), |at| address::networks(&at));
        let probe = fields.or("probe", true, |at| at.bool());
        let group = fields.or("group", None, |at| at.fields(group).map(Some));
        Some(L2Config {
            owned: owned?,
            probe: probe?,
            group: group?,
        })
    })
}

fn group(fields: &mut Fields<'_>) -> Option<L2Group> {
    let name = fields.required("name");
    let members = fields.required("members").and_then(|at| {
        let entries = at.entries()?;
        let entries = entries
            .into_iter()
            .map(|(key, at)| Some((Member::from(key.name.as_str()), address::unicast(&at)?)));
        // All of them are read, so that all that is wrong is told.
        let entries: Vec<Option<(Member, IpAddr)>> = entries.collect();
        let members: BTreeMap<Member, IpAddr> = entries.into_iter().collect::<Option<_>>()?;
        let distinct: BTreeSet<&IpAddr> = members.values().collect();
        if members.len() < 2 || members.len() > MAX_GROUP_MEMBERS {
            return at.fail(Problem::GroupSize { members: members.len() });
        }
        if distinct.len() < members.len() {
            return at.fail(Problem::GroupSharesAddress);
        }
        Some(members)
    });
    let timers = Timers::default();
    let (name, mut others) = (name?, members?);
    let me: Member = name.text()?.into();
    if others.remove(&me).is_none() {
        return name.fail(Problem::NotInGroup { name: Quoted::new(&me) });
    }
    Some(L2Group {
        name: me,
        others,
        from: BTreeMap::new(),
        timers,
    })
}
