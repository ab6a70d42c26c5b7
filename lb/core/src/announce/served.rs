//! Which addresses were answered for until now, so that taking them over needs no question first: clients wait.
//!
//! Never asks, and never remembers longer than somebody answered.

use std::{collections::BTreeSet, net::IpAddr};

/// What is known of who answered before this node does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// What this node or its group answers for; `None`: it has not begun to, or had given all of it up.
    known: Option<BTreeSet<IpAddr>>,
    /// A process before this one answered for what is wanted first.
    goes_on: bool,
}

impl Served {
    /// Nothing is known yet. `goes_on`: a process before this one answered for what is wanted first.
    pub fn new(goes_on: bool) -> Self {
        Self { known: None, goes_on }
    }

    /// Whether somebody of the group, or a process before this one, answered for an address until now. `others`: another of the group
    /// is heard, so that it did for all that this node begins with.
    pub fn was_served(&self, address: IpAddr, others: bool) -> bool {
        match &self.known {
            Some(known) => known.contains(&address),
            None => self.goes_on || others,
        }
    }

    /// These are answered for from now on, by this node or others of its group.
    pub fn learn(&mut self, wanted: &BTreeSet<IpAddr>) {
        if self.known.as_ref() != Some(wanted) {
            self.known = Some(wanted.clone());
        }
        self.goes_on = false;
    }

    /// This node has given all of them up: what nobody else of the group answered for meanwhile may have become another's.
    pub fn forget(&mut self) {
        self.known = None;
        self.goes_on = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn asked(served: &Served, text: &str, others: bool) -> bool {
        !served.was_served(text.parse().unwrap(), others)
    }

    #[test]
    fn a_process_that_goes_on_asks_for_nothing_that_it_begins_with_and_for_all_that_comes_later() {
        let mut served = Served::new(true);
        assert!(!asked(&served, "203.0.113.1", false));
        served.learn(&addresses(&["203.0.113.1"]));
        assert!(!asked(&served, "203.0.113.1", false));
        assert!(asked(&served, "203.0.113.2", false));
        // The twin: where nothing was before, all is asked for.
        assert!(asked(&Served::new(false), "203.0.113.1", false));
    }

    #[test]
    fn the_first_address_that_comes_after_a_restart_without_any_is_asked_for() {
        let mut served = Served::new(true);
        served.learn(&BTreeSet::new());
        assert!(asked(&served, "203.0.113.1", false));
        assert!(asked(&served, "203.0.113.1", true), "others have not had it either");
    }

    #[test]
    fn what_was_given_up_is_asked_for_unless_others_answered_meanwhile() {
        for goes_on in [false, true] {
            let mut served = Served::new(goes_on);
            served.learn(&addresses(&["203.0.113.1"]));
            served.forget();
            assert!(
                asked(&served, "203.0.113.1", false),
                "the link was away, and nobody is heard"
            );
            assert!(!asked(&served, "203.0.113.1", true), "others had it meanwhile");
        }
        let mut served = Served::new(true);
        served.forget();
        assert!(asked(&served, "203.0.113.1", false), "given up before the first turn");
    }
}
