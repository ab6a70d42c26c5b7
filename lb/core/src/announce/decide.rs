//! Whether a VIP address is announced by this node, and why or why not.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use super::Mac;

/// What becomes of an address when none of its VIPs has a backend that takes new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenNone {
    /// It stays announced, and new flows are refused: clients learn at once, and no other place is tried that is no better.
    #[default]
    Stay,
    /// It is withdrawn, so that routers send its packets to another LB node, or nowhere.
    Withdraw,
    /// It is withdrawn where another LB node announces it and has a backend; else it stays.
    Elsewhere,
}

impl WhenNone {
    /// As configuration writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stay => "stay",
            Self::Withdraw => "withdraw",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// What this node is about to do as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    /// It serves.
    #[default]
    Serving,
    /// It is being drained: routers are asked to take another way, as long as there is this one.
    LastChoice,
    /// It is being drained: it gives everything away, and goes on forwarding what still comes.
    Draining,
}

/// What is known of one VIP address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// A VIP of it is in the maps of this node.
    pub is_programmed: bool,
    /// A VIP of it has a backend that takes new flows and can be reached: a shared address goes only when none of its VIPs has one.
    pub has_backend: bool,
    /// Somebody would hear of it: a peer that takes it, or a segment that it is on.
    pub has_way: bool,
    /// The LB node of the group that answers for it, where that is another than this one.
    pub owner: Option<Arc<str>>,
    /// Somebody who is no LB node of this group uses the address.
    pub in_use_by: Option<Mac>,
    /// This node will have it soon: it asks whether it is free, or has just started.
    pub is_waited_for: bool,
    /// Another LB node announces it, and has a backend.
    pub is_elsewhere: bool,
    /// What becomes of it without a backend.
    pub when_none: WhenNone,
}

/// Why an address is announced or not. The first that holds, in this order, is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing of it is in the maps.
    NotProgrammed,
    /// No peer takes it, and it is on no segment that this node answers on.
    NoWay,
    /// The node is being drained.
    Draining,
    /// Another host has it.
    InUse(Mac),
    /// Another LB node of the group answers for it.
    Other(Arc<str>),
    /// This node asks whether it is free, or has just started.
    Waits,
    /// None of its VIPs has a backend, and it is to be withdrawn then.
    NoBackend,
    /// None of its VIPs has a backend: it stays, and new flows are refused.
    StaysWithoutBackend,
    /// It is served.
    Serves,
}

impl Reason {
    /// Whether the address is announced.
    pub const fn is_announced(&self) -> bool {
        matches!(self, Self::Serves | Self::StaysWithoutBackend)
    }

    /// As labels and JSON write it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotProgrammed => "not_programmed",
            Self::NoWay => "no_way",
            Self::Draining => "draining",
            Self::InUse(_) => "in_use",
            Self::Other(_) => "other",
            Self::Waits => "waits",
            Self::NoBackend => "no_backend",
            Self::StaysWithoutBackend => "stays_without_backend",
            Self::Serves => "serves",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotProgrammed => f.write_str("not in this node's maps"),
            Self::NoWay => f.write_str("no peer takes it, and this node answers for it on no segment"),
            Self::Draining => f.write_str("this node is drained"),
            Self::InUse(mac) => write!(f, "in use by {mac}"),
            Self::Other(name) => write!(f, "{name} answers for it"),
            Self::Waits => f.write_str("asks whether it is free, or waits for others"),
            Self::NoBackend => f.write_str("no backend takes new flows"),
            Self::StaysWithoutBackend => f.write_str("no backend takes new flows; they are refused"),
            Self::Serves => f.write_str("served"),
        }
    }
}

/// Decides for every address that anything is known of.
pub fn decide(addresses: impl IntoIterator<Item = (IpAddr, Facts)>, node: NodeState) -> BTreeMap<IpAddr, Reason> {
    let one = |facts: Facts| {
        if !facts.is_programmed {
            Reason::NotProgrammed
        } else if !facts.has_way {
            Reason::NoWay
        } else if node == NodeState::Draining {
            Reason::Draining
        } else if let Some(mac) = facts.in_use_by {
            Reason::InUse(mac)
        } else if let Some(owner) = facts.owner {
            Reason::Other(owner)
        } else if facts.is_waited_for {
            Reason::Waits
        } else {
            match (facts.has_backend, facts.when_none) {
                (true, _) => Reason::Serves,
                (false, WhenNone::Elsewhere) if facts.is_elsewhere => Reason::NoBackend,
                (false, WhenNone::Stay | WhenNone::Elsewhere) => Reason::StaysWithoutBackend,
                (false, WhenNone::Withdraw) => Reason::NoBackend,
            }
        }
    };
    let addresses = addresses.into_iter();
    addresses.map(|(address, facts)| (address, one(facts))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(change: impl FnOnce(&mut Facts), node: NodeState, when_none: WhenNone) -> Reason {
        let mut facts = Facts {
            is_programmed: true,
            has_backend: true,
            has_way: true,
            when_none,
            ..Facts::default()
        };
        change(&mut facts);
        let address: IpAddr = [203, 0, 113, 1].into();
        let mut decided = decide([(address, facts)], node);
        decided.remove(&address).expect("it was asked for")
    }

    #[test]
    fn an_address_that_is_programmed_and_has_a_way_is_announced_whatever_its_backends_unless_asked_otherwise() {
        use NodeState::{Draining, LastChoice, Serving};
        use WhenNone::{Stay, Withdraw};
        assert_eq!(reason(|_| {}, Serving, Stay), Reason::Serves);
        assert_eq!(reason(|_| {}, Serving, Withdraw), Reason::Serves);
        let none = |facts: &mut Facts| facts.has_backend = false;
        assert_eq!(reason(none, Serving, Stay), Reason::StaysWithoutBackend);
        assert_eq!(reason(none, Serving, Withdraw), Reason::NoBackend);
        let elsewhere = |facts: &mut Facts| (facts.has_backend, facts.is_elsewhere) = (false, true);
        assert_eq!(reason(elsewhere, Serving, WhenNone::Elsewhere), Reason::NoBackend);
        assert_eq!(reason(elsewhere, Serving, Stay), Reason::StaysWithoutBackend);
        assert_eq!(reason(none, Serving, WhenNone::Elsewhere), Reason::StaysWithoutBackend);
        assert_eq!(
            reason(|facts| facts.is_elsewhere = true, Serving, WhenNone::Elsewhere),
            Reason::Serves
        );
        assert_eq!(reason(|_| {}, Draining, Stay), Reason::Draining);
        assert_eq!(
            reason(|_| {}, LastChoice, Stay),
            Reason::Serves,
            "while others are looked for"
        );
        assert_eq!(
            reason(|facts| facts.is_programmed = false, Draining, Stay),
            Reason::NotProgrammed
        );
        assert_eq!(reason(|facts| facts.has_way = false, Draining, Stay), Reason::NoWay);
        assert_eq!(
            reason(|facts| facts.owner = Some("lb-2".into()), Serving, Stay),
            Reason::Other("lb-2".into())
        );
        assert_eq!(reason(|facts| facts.is_waited_for = true, Serving, Stay), Reason::Waits);
        let in_use = reason(
            |facts| facts.in_use_by = Some(Mac([2, 0, 0, 0, 0, 0xab])),
            Serving,
            Stay,
        );
        assert_eq!(in_use.to_string(), "in use by 02:00:00:00:00:ab");
        assert!(!in_use.is_announced());
    }
}
