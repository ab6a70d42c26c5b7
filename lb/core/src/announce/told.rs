//! What a cluster says of announcing: which addresses, by what, and who else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{Member, WhenNone};
use crate::bgp::Names;

/// What is told where no file says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Addresses that routers are told of; `None`: all of them, as this node's file says.
    pub routers: Option<BTreeMap<IpAddr, Selected>>,
    /// Addresses that may be answered for on segments, with who may have each, this node included; `None`: as this node's file says.
    pub segments: Option<BTreeMap<IpAddr, Arc<BTreeSet<Member>>>>,
    /// It has not said anything yet, and will.
    pub is_awaited: bool,
    /// What other LB nodes say of themselves.
    pub others: BTreeMap<Member, Other>,
}

/// An address that routers are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// By what.
    pub names: Names,
    /// What becomes of it without a backend here.
    pub when_none: WhenNone,
    /// All LB nodes that announce it.
    pub nodes: Arc<BTreeSet<Member>>,
}

/// Another LB node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Other {
    /// Some router listens to it, and it does not give its addresses away.
    pub is_listened_to: bool,
    /// Addresses without a backend there; `None`: nobody knows all of them.
    pub unserved: Option<BTreeSet<IpAddr>>,
}

impl Told {
    /// Whether another LB node announces an address to routers and has a backend of it. When in doubt, none has.
    pub fn is_elsewhere(&self, address: IpAddr, selected: &Selected) -> bool {
        let serves = |name: &Member| {
            self.others.get(name).is_some_and(|other| {
                let unserved = other.unserved.as_ref();
                other.is_listened_to && unserved.is_some_and(|unserved| !unserved.contains(&address))
            })
        };
        selected.nodes.iter().any(serves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_elsewhere_where_who_announces_it_is_listened_to_and_surely_has_a_backend() {
        let address: IpAddr = [203, 0, 113, 1].into();
        let members = |names: &[&str]| Arc::new(names.iter().map(|name| Member::from(*name)).collect::<BTreeSet<_>>());
        let selected = Selected {
            names: Names::default(),
            when_none: WhenNone::Elsewhere,
            nodes: members(&["lb-1", "lb-2"]),
        };
        let is = |name: &str, other: Other| {
            let others = BTreeMap::from([(Member::from(name), other)]);
            let told = Told {
                others,
                ..Told::default()
            };
            told.is_elsewhere(address, &selected)
        };
        let other = |is_listened_to, unserved: Option<&[IpAddr]>| Other {
            is_listened_to,
            unserved: unserved.map(|unserved| unserved.iter().copied().collect()),
        };
        assert!(is("lb-2", other(true, Some(&[]))));
        assert!(!is("lb-3", other(true, Some(&[]))), "it does not announce it");
        assert!(!is("lb-2", other(false, Some(&[]))));
        assert!(!is("lb-2", other(true, Some(&[address]))));
        assert!(!is("lb-2", other(true, None)), "its list was cut");
    }
}
