//! What serving waits for, and since when.
//!
//! Never forgets since when because the reason is told in other words.

use std::time::Instant;

/// Something without which nothing is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Lists of VipTables and NodeSets.
    Lists,
    /// A NodeSet of which all chunks are there.
    NodeSet,
    /// The flow-hash seed.
    Seed,
    /// What a worker agent is told.
    Tunnel,
}

/// A wait that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    awaited: Awaited,
    /// For people.
    pub what: String,
    /// Since when.
    pub since: Instant,
}

/// All that is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits(Vec<Wait>);

impl Waits {
    /// Replaces them; what was awaited before keeps its time.
    pub(in super::super) fn are(&mut self, now: Instant, awaited: Vec<(Awaited, String)>) {
        let wait = |(awaited, what)| {
            let before = self.0.iter().find(|wait| wait.awaited == awaited);
            Wait {
                awaited,
                what,
                since: before.map_or(now, |wait| wait.since),
            }
        };
        self.0 = awaited.into_iter().map(wait).collect();
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Wait> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Awaited, Waits};

    #[test]
    fn a_wait_keeps_its_beginning_while_its_words_change() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut waits = Waits::default();
        let told = |waits: &Waits| {
            let of = |wait: &super::Wait| (wait.what.clone(), wait.since.duration_since(start).as_secs());
            waits.iter().map(of).collect::<Vec<_>>()
        };
        let said = |awaited, what: &str| (awaited, what.to_owned());
        waits.are(
            at(0),
            vec![said(Awaited::Lists, "lists"), said(Awaited::NodeSet, "a set")],
        );
        waits.are(at(5), vec![said(Awaited::NodeSet, "a set (1 of 2)")]);
        assert_eq!(told(&waits), [("a set (1 of 2)".to_owned(), 0)]);
        waits.are(at(7), vec![said(Awaited::Seed, "the seed")]);
        assert_eq!(told(&waits), [("the seed".to_owned(), 7)]);
        waits.are(at(9), vec![said(Awaited::NodeSet, "a set")]);
        assert_eq!(told(&waits), [("a set".to_owned(), 9)], "what ended begins anew");
        waits.are(at(9), Vec::new());
        assert_eq!(told(&waits), []);
    }
}
