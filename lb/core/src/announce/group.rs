//! Which of several LB nodes on one segment answers for an address.
//!
//! Every node computes the same from who is alive: the address goes to the member whose hash with it is largest (rendezvous hashing:
//! D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates", 1998), so that a member's death moves its addresses
//! only, evenly over the others, and its return moves them back. Who is alive is what this node hears by itself (BFD); nobody is asked.
//!
//! Never has two members that hear one another answer for an address, but for the time that it takes both to hear. Members that do
//! not hear one another both answer: that is the price of taking over without asking anybody.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use xdp_prog::hash::mix;

/// How long a node that starts waits for others to be heard. BFD sends one packet a second until it is up, and needs three.
pub const START_PATIENCE: Duration = Duration::from_secs(5);
/// From when all others are heard until this node answers: they have given up by then what it takes. Packets that come to them
/// meanwhile are forwarded all the same.
pub const YIELD: Duration = Duration::from_secs(1);

/// A member's name. Those of a group differ, and all members know each by the same.
pub type Member = Arc<str>;

/// A group as one member sees it. Times are those of one clock, whichever.
#[derive(Clone, Debug)]
pub struct Group {
    me: Member,
    /// All others, and whether they are heard.
    others: BTreeMap<Member, bool>,
    /// From when on this node answers for anything.
    from: Duration,
    /// It waits for those that are not heard yet.
    starts: bool,
    /// It answers for nothing: its segment is away, or it gives up.
    is_out: bool,
}

impl Group {
    /// A member that starts now.
    pub fn new(me: Member, others: impl IntoIterator<Item = Member>, now: Duration) -> Self {
        let others = others.into_iter().filter(|other| *other != me);
        let mut group = Self {
            others: others.map(|other| (other, false)).collect(),
            me,
            from: now,
            starts: false,
            is_out: false,
        };
        group.start(now);
        group
    }

    /// As one that starts: others may answer for what falls to it.
    fn start(&mut self, now: Duration) {
        self.starts = !self.others.is_empty();
        self.from = if self.starts { now + START_PATIENCE } else { now };
        self.look(now);
    }

    fn look(&mut self, now: Duration) {
        if self.starts && self.others.values().all(|is_heard| *is_heard) {
            self.from = self.from.min(now + YIELD);
            self.starts = false;
        }
    }

    /// Another list of members. Those that stay are heard as before; this node goes on answering.
    pub fn set_others(&mut self, others: impl IntoIterator<Item = Member>, now: Duration) {
        let others: BTreeSet<Member> = others.into_iter().filter(|other| *other != self.me).collect();
        self.others.retain(|other, _| others.contains(other));
        for other in others {
            self.others.entry(other).or_insert(false);
        }
        self.look(now);
    }

    /// Another member is heard from now on, or is not any more. Of one that is no member nothing is noted.
    pub fn hear(&mut self, other: &str, is_heard: bool, now: Duration) {
        if let Some(heard) = self.others.get_mut(other) {
            *heard = is_heard;
            self.look(now);
        }
    }

    /// No other is listened to any more: what was heard of them does not hold.
    pub fn hear_nobody(&mut self) {
        self.others.values_mut().for_each(|is_heard| *is_heard = false);
    }

    /// This node answers for nothing from now on: its segment is away, or it is being drained. Others take over when they do not hear
    /// it any more, so that is to be said before it is silent.
    pub fn go_out(&mut self) {
        self.is_out = true;
    }

    /// It is back, as one that starts.
    pub fn come_back(&mut self, now: Duration) {
        if self.is_out {
            self.is_out = false;
            self.start(now);
        }
    }

    /// Who answers for an address, as far as this node knows: itself, or one that it hears; of `candidates`, where it is not for all.
    /// `None`: nobody.
    pub fn owner(&self, address: IpAddr, candidates: Option<&BTreeSet<Member>>) -> Option<&Member> {
        let heard = self.others.iter().filter(|(_, is_heard)| **is_heard);
        let heard = heard.map(|(other, _)| other);
        let me = (!self.is_out).then_some(&self.me);
        let all = me.into_iter().chain(heard);
        let may = |member: &&Member| candidates.is_none_or(|candidates| candidates.contains(*member));
        owner(all.filter(may), address)
    }

    /// Whether this node answers for an address now.
    pub fn owns(&self, address: IpAddr, candidates: Option<&BTreeSet<Member>>, now: Duration) -> bool {
        !self.is_out && now >= self.from && self.owner(address, candidates) == Some(&self.me)
    }

    /// When [`Self::owns`] may say something else although nothing was heard.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        (!self.is_out && now < self.from).then_some(self.from)
    }

    /// Whether any other is heard.
    pub fn is_heard_of(&self) -> bool {
        self.others.values().any(|is_heard| *is_heard)
    }

    /// This node's own name.
    pub const fn me(&self) -> &Member {
        &self.me
    }

    /// All others, and whether they are heard.
    pub fn others(&self) -> impl Iterator<Item = (&Member, bool)> {
        self.others.iter().map(|(other, is_heard)| (other, *is_heard))
    }
}

/// Who of these answers for an address; `None` of nobody. Part of what LB nodes agree on: it never changes.
pub fn owner<'a>(members: impl IntoIterator<Item = &'a Member>, address: IpAddr) -> Option<&'a Member> {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let address = u128::from_be_bytes(octets);
    let (high, low) = ((address >> 64) as u64, address as u64);
    let weight = |member: &Member| mix(mix(name_hash(member) ^ low) ^ high);
    // Of equals the first by name.
    members
        .into_iter()
        .max_by(|a, b| weight(a).cmp(&weight(b)).then_with(|| b.cmp(a)))
}

fn name_hash(name: &str) -> u64 {
    let words = name.as_bytes().chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(word)
    });
    words.fold(mix(name.len() as u64), |hash, word| mix(hash ^ word))
}
