//! VIP addresses on this node's own segments: shared with the other LB nodes of its group, and asked for before they are answered for.
//! Never answers a question itself: the slow path does, for what [`L2::owns`] says.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    announce::{Claim, Claims, Group, Mac, Member, Served, Told},
    config::L2Group,
    slow::{claimed, question},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    control::{GroupView, MemberView},
    xsk::{FrameSender, NeighbourReceiver},
};

/// What this node answers for, and what it asks for before.
#[derive(Debug)]
pub struct L2 {
    start: Instant,
    /// Where addresses are asked for: index and MAC address of each interface.
    interfaces: Vec<(u32, Mac)>,
    /// With whom it shares addresses, if with anybody, and where they are.
    group: Option<(Group, BTreeMap<IpAddr, Member>)>,
    /// When the group says something else although nothing was heard, as of the last turn: it may have passed since.
    due: Option<Duration>,
    /// Its segment is away.
    is_cut_off: bool,
    /// It gives all addresses away.
    leaves: bool,
    claims: Claims,
    /// All addresses of the group, as last told; `None` before the first time.
    wanted: Option<BTreeSet<IpAddr>>,
    /// Who may have which, where not all of the group may.
    told: Arc<Told>,
    /// What was answered for until now.
    served: Served,
    probes: bool,
    ours: BTreeSet<IpAddr>,
    /// How often anything that may be asked of it has changed.
    changes: u64,
    /// While anything is asked for.
    wire: Option<Wire>,
}

#[derive(Debug)]
struct Wire {
    sender: FrameSender,
    receiver: NeighbourReceiver,
}

/// What was before this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing that answered.
    Nothing,
    /// A process that answered for what is wanted first.
    Served,
    /// This node was being drained, and is: it answers for nothing.
    Drained,
}

/// An address that somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Which.
    pub address: IpAddr,
    /// Who has it.
    pub by: Mac,
}

impl L2 {
    /// Answers for nothing yet.
    pub fn new(before: Before) -> Self {
        Self {
            start: Instant::now(),
            interfaces: Vec::new(),
            group: None,
            due: None,
            is_cut_off: false,
            leaves: before == Before::Drained,
            claims: Claims::default(),
            wanted: None,
            told: Arc::default(),
            served: Served::new(before == Before::Served),
            probes: true,
            ours: BTreeSet::new(),
            changes: 0,
            wire: None,
        }
    }

    /// Addresses that this node, or its group, is to answer for from now on, on these interfaces; `probes`: after asking for them.
    pub fn want(&mut self, (wanted, told): (BTreeSet<IpAddr>, &Arc<Told>), interfaces: Vec<(u32, Mac)>, probes: bool) {
        self.interfaces = interfaces;
        self.probes = probes;
        let is_told_otherwise = (&self.told.segments, self.told.is_awaited) != (&told.segments, told.is_awaited);
        if self.wanted.as_ref() != Some(&wanted) || is_told_otherwise {
            self.wanted = Some(wanted);
            self.told = Arc::clone(told);
            self.turn();
        }
    }

    /// With whom addresses are shared from now on. Members that stay are heard as before. One that goes on from a process before it
    /// answers at once for what that one did: nobody else does.
    pub fn set_group(&mut self, group: Option<&L2Group>) {
        let now = self.now();
        let had: BTreeSet<IpAddr> = self
            .group
            .iter()
            .flat_map(|(_, places)| places.keys().copied())
            .collect();
        self.group = group.map(|config| {
            let others = || config.others.keys().cloned();
            let group = match self.group.take() {
                Some((mut group, _)) if *group.me() == config.name => {
                    group.set_others(others(), now);
                    group
                }
                Some(_) | None => Group::new(config.name.clone(), others(), now),
            };
            let places = config.others.iter().map(|(name, at)| (*at, name.clone()));
            (group, places.collect())
        });
        let others = |group: &L2Group| group.others.values().copied().collect::<BTreeSet<_>>();
        if self.wanted.is_some() && had != group.map(others).unwrap_or_default() {
            // What a host has that is no stranger any more is its own by right, or will be given up.
            self.served.forget();
            self.claims.unsettle(now);
        }
        self.go_or_come(now);
        self.turn();
    }

    /// Whether it is to answer for nothing. That a link is down is no reason where nobody else would.
    fn is_away(&self) -> bool {
        let has_others = self.group.as_ref().is_some_and(|(_, places)| !places.is_empty());
        self.leaves || self.is_cut_off && has_others
    }

    /// Gives up all, or takes its part again, as it should by now.
    fn go_or_come(&mut self, now: Duration) {
        let is_away = self.is_away();
        let Some((group, _)) = &mut self.group else { return };
        if is_away {
            group.go_out();
            self.served.forget();
        } else {
            group.come_back(now);
        }
    }

    /// A member is heard at this address from now on, or is not any more. Of one that is no member nothing is noted. Whether
    /// [`Self::owns`] says something else now.
    pub fn hear_member(&mut self, at: IpAddr, is_heard: bool) -> bool {
        // Nobody is listened to then; what is said of a moment ago would be believed when it comes back.
        if self.leaves {
            return false;
        }
        let now = self.now();
        let Some((group, places)) = &mut self.group else {
            return false;
        };
        let Some(name) = places.get(&at) else { return false };
        if is_heard {
            tracing::info!(member = %name, "is heard: it answers for its part of the addresses");
        } else {
            tracing::warn!(member = %name, "is not heard any more: its part of the addresses goes to the others");
        }
        group.hear(name, is_heard, now);
        self.claims.unsettle(now);
        self.changes += 1;
        self.turn()
    }

    /// Whether an interface of this node is down: it answers for nothing then, and others of its group do. Whether [`Self::owns`] says
    /// something else now.
    pub fn cut_off(&mut self, is_cut_off: bool) -> bool {
        if self.is_cut_off == is_cut_off {
            return false;
        }
        self.is_cut_off = is_cut_off;
        let now = self.now();
        if self.group.as_ref().is_some_and(|(_, places)| !places.is_empty()) && !self.leaves {
            if is_cut_off {
                tracing::warn!("an interface is down: this node gives up its part of the addresses");
            } else {
                tracing::info!("all interfaces are up: this node takes its part of the addresses again");
            }
        }
        self.go_or_come(now);
        self.turn()
    }

    /// Whether this node answers for nothing, because it gives all addresses away. One that comes back asks for them first.
    pub fn leave(&mut self, leaves: bool) {
        if self.leaves == leaves {
            return;
        }
        self.leaves = leaves;
        let now = self.now();
        if let Some((group, _)) = self.group.as_mut().filter(|_| leaves) {
            group.hear_nobody();
        }
        self.go_or_come(now);
        self.served.forget();
        self.turn();
    }

    /// Addresses that this node answers for, and nobody would in its place.
    pub fn only_here(&self) -> Vec<IpAddr> {
        let has_others = self.group.as_ref().is_some_and(|(group, _)| group.is_heard_of());
        if has_others {
            Vec::new()
        } else {
            self.ours.iter().copied().collect()
        }
    }

    /// Whether this node answers for an address.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.ours.contains(&address)
    }

    /// Moves with whatever it says.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many addresses this node answers for.
    pub fn owned(&self) -> usize {
        self.ours.len()
    }

    /// With whom addresses are shared.
    pub fn group(&self) -> Option<GroupView> {
        let (group, places) = self.group.as_ref()?;
        let heard: BTreeMap<&Member, bool> = group.others().collect();
        let others = places.iter().map(|(address, name)| MemberView {
            name: name.to_string(),
            address: *address,
            heard: heard.get(name).copied().unwrap_or_default(),
        });
        Some(GroupView {
            name: group.me().to_string(),
            owned: self.owned(),
            addresses: self.wanted.as_ref().map_or(0, BTreeSet::len),
            waits: self.is_away() || self.due.is_some(),
            others: others.collect(),
        })
    }

    /// The member of the group that answers for an address, where that is another than this node.
    pub fn owner(&self, address: IpAddr) -> Option<&Member> {
        let (group, _) = self.group.as_ref()?;
        group
            .owner(address, self.candidates(address))
            .filter(|owner| *owner != group.me())
    }

    fn candidates(&self, address: IpAddr) -> Option<&BTreeSet<Member>> {
        let segments = self.told.segments.as_ref()?;
        segments.get(&address).map(|candidates| &**candidates)
    }

    /// Addresses that somebody else has are asked for again at once.
    pub fn ask_again(&mut self) {
        self.claims.ask_again(self.now());
    }

    /// Addresses that somebody else has.
    pub fn in_use(&self) -> impl Iterator<Item = InUse> {
        self.claims.all().filter_map(|(address, claim)| match claim {
            Claim::InUse { by, .. } => Some(InUse { address, by }),
            Claim::Asking { .. } | Claim::Ours => None,
        })
    }

    /// Somebody says that it has an address. Whether that is what this node asked, so that nothing more is to be said of it.
    pub fn hear(&mut self, address: IpAddr, by: Mac) -> bool {
        if self.interfaces.iter().any(|(_, mac)| *mac == by) {
            return false;
        }
        let is_news = self.claims.hear(address, by, self.now());
        if is_news {
            self.changes += 1;
            tracing::error!(
                %address,
                reason = "AddressInUse",
                "{by} has this VIP address already: it is not answered for here, and asked \
                 for again every {} s; take the address from that host, or out of this node's VIPs",
                lb_core::announce::ASK_AGAIN.as_secs()
            );
        }
        is_news
    }

    /// Waits until [`Self::owns`] says something else. Nothing is lost when it is dropped while it waits.
    pub async fn next(&mut self) {
        loop {
            let due = [self.claims.deadline(), self.due].into_iter().flatten().min();
            let due = due.map(|due| self.start + due);
            let frame = tokio::select! {
                () = until(due) => None,
                frame = receive(self.wire.as_ref()) => Some(frame),
            };
            match frame {
                None => {
                    if self.turn() {
                        return;
                    }
                }
                Some(Ok(frame)) => {
                    if let Some((address, by)) = claimed(&frame) {
                        self.hear(address, Mac(by));
                    }
                }
                // An interface that goes down says so once.
                Some(Err(error)) => tracing::debug!(%error, "no answer could be received"),
            }
        }
    }

    /// Does what is due; whether this node answers for something else than before.
    fn turn(&mut self) -> bool {
        let now = self.now();
        let group = self.group.as_ref().map(|(group, _)| group);
        self.due = group.and_then(|group| group.deadline(now));
        if let Some(wanted) = &self.wanted {
            let is_mine = |address: &&IpAddr| {
                let candidates = self.candidates(**address);
                !self.leaves && group.is_none_or(|group| group.owns(**address, candidates, now))
            };
            let mine: BTreeSet<IpAddr> = wanted.iter().filter(is_mine).copied().collect();
            let others = group.is_some_and(Group::is_heard_of);
            let is_taken_over = |address| !self.probes || self.served.was_served(address, others);
            self.claims.want(&mine, is_taken_over, now);
            // Who has given all of it up answers for nothing.
            if self.due.is_none() && !self.is_away() && !self.told.is_awaited {
                self.served.learn(wanted);
            }
        }
        for address in self.claims.turn(self.now()) {
            self.ask(address);
        }
        let ours = self.claims.all().filter(|(_, claim)| *claim == Claim::Ours);
        let ours: BTreeSet<IpAddr> = ours.map(|(address, _)| address).collect();
        let changed = ours != self.ours;
        self.changes += u64::from(changed);
        self.ours = ours;
        let is_asking = |(_, claim)| matches!(claim, Claim::Asking { .. });
        if !self.claims.all().any(is_asking) {
            self.wire = None;
        }
        changed
    }

    fn ask(&mut self, address: IpAddr) {
        let wire = match self.wire.take().map_or_else(Wire::open, Ok) {
            Ok(wire) => self.wire.insert(wire),
            Err(error) => {
                tracing::warn!(%address, "cannot ask whether another host has this VIP address: {error}");
                return;
            }
        };
        for (ifindex, mac) in &self.interfaces {
            if let Err(error) = wire.sender.send(*ifindex, &question(address, mac.0)) {
                tracing::warn!(%address, "cannot ask whether another host has this VIP address: {error}");
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Wire {
    fn open() -> io::Result<Self> {
        Ok(Self {
            sender: FrameSender::open()?,
            receiver: NeighbourReceiver::open()?,
        })
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

async fn receive(wire: Option<&Wire>) -> io::Result<Vec<u8>> {
    match wire {
        Some(wire) => wire.receiver.receive().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> BTreeSet<IpAddr> {
        last.iter().map(|last| IpAddr::from([203, 0, 113, *last])).collect()
    }

    fn want(l2: &mut L2, last: &[u8]) {
        l2.want((addresses(last), &Arc::default()), Vec::new(), true);
    }

    #[tokio::test]
    async fn what_was_answered_for_goes_on_at_a_start_and_nothing_that_comes_later_does() {
        let mut l2 = L2::new(Before::Nothing);
        want(&mut l2, &[1]);
        assert_eq!(l2.owned(), 0, "the control: it asks");

        let mut l2 = L2::new(Before::Served);
        // A cluster says nothing at first.
        let awaited = Told {
            is_awaited: true,
            ..Told::default()
        };
        l2.want((addresses(&[]), &Arc::new(awaited)), Vec::new(), true);
        want(&mut l2, &[1]);
        assert_eq!(l2.owned(), 1);
        want(&mut l2, &[1, 2]);
        assert_eq!(l2.owned(), 1, "the second is asked for");

        let mut l2 = L2::new(Before::Served);
        want(&mut l2, &[]);
        want(&mut l2, &[1]);
        assert_eq!(l2.owned(), 0, "nobody answered for it all this time");

        let mut l2 = L2::new(Before::Drained);
        want(&mut l2, &[1]);
        assert_eq!((l2.owned(), l2.in_use().count()), (0, 0));
        l2.leave(false);
        assert_eq!(l2.owned(), 0, "it asks first");
    }

    #[tokio::test]
    async fn of_what_others_alone_may_have_nothing_is_taken() {
        let mut l2 = L2::new(Before::Served);
        let group = L2Group {
            name: "lb-1".into(),
            others: [("lb-2".into(), [10, 0, 0, 2].into())].into(),
            from: BTreeMap::new(),
            timers: lb_core::bfd::Timers::default(),
        };
        l2.set_group(Some(&group));
        l2.start -= lb_core::announce::START_PATIENCE;
        let theirs: BTreeSet<Member> = ["lb-2".into()].into();
        let ours: BTreeSet<Member> = ["lb-1".into()].into();
        let segments = [(1, theirs), (2, ours)];
        let segments = segments.map(|(last, members)| (IpAddr::from([203, 0, 113, last]), Arc::new(members)));
        let told = Arc::new(Told {
            segments: Some(segments.into()),
            ..Told::default()
        });
        l2.want((addresses(&[1, 2]), &told), Vec::new(), true);
        assert!(!l2.owns([203, 0, 113, 1].into()) && l2.owns([203, 0, 113, 2].into()));
        assert_eq!(l2.owner([203, 0, 113, 1].into()), None, "it is not heard");
        l2.hear_member([10, 0, 0, 2].into(), true);
        assert_eq!(l2.owner([203, 0, 113, 1].into()).map(|owner| &**owner), Some("lb-2"));
    }

    fn group(others: &[u8]) -> L2Group {
        let other = |last: &u8| (Member::from(format!("lb-{last}")), IpAddr::from([10, 0, 0, *last]));
        L2Group {
            name: "lb-1".into(),
            others: others.iter().map(other).collect(),
            from: BTreeMap::new(),
            timers: lb_core::bfd::Timers::default(),
        }
    }

    #[tokio::test]
    async fn one_that_answers_alone_goes_on_when_others_come() {
        let mut l2 = L2::new(Before::Served);
        l2.set_group(Some(&group(&[])));
        want(&mut l2, &[1, 2]);
        assert_eq!(l2.owned(), 2);
        l2.set_group(Some(&group(&[2])));
        assert_eq!(l2.owned(), 2, "the other is not heard yet");
        // The twin: one that begins with others waits for them.
        let mut l2 = L2::new(Before::Served);
        l2.set_group(Some(&group(&[2])));
        want(&mut l2, &[1, 2]);
        assert_eq!(l2.owned(), 0);
    }

    #[tokio::test]
    async fn a_link_that_is_down_is_a_reason_to_give_up_only_where_another_takes_over() {
        let mut l2 = L2::new(Before::Served);
        l2.set_group(Some(&group(&[])));
        want(&mut l2, &[1]);
        l2.cut_off(true);
        assert_eq!(l2.owned(), 1);
        l2.set_group(Some(&group(&[2])));
        assert_eq!(l2.owned(), 0, "another may be there");
        l2.set_group(Some(&group(&[])));
        assert_eq!(
            (l2.owned(), l2.claims.all().count()),
            (0, 1),
            "it asks first: it had given up"
        );
    }

    #[tokio::test]
    async fn two_that_begin_alone_at_once_have_their_parts_when_they_hear_each_other() {
        let mut l2 = L2::new(Before::Nothing);
        l2.set_group(Some(&group(&[])));
        want(&mut l2, &[1, 2, 3, 4]);
        // The other asks for the same: neither takes it.
        for last in 1..=4 {
            assert!(l2.hear([203, 0, 113, last].into(), Mac([2, 0, 0, 0, 0, 2])));
        }
        l2.set_group(Some(&group(&[2])));
        l2.hear_member([10, 0, 0, 2].into(), true);
        let mine = l2.claims.all().count();
        assert!((1..4).contains(&mine), "its part only: {mine}");
        let all_are = |l2: &L2, is: fn(&Claim) -> bool| l2.claims.all().all(|(_, claim)| is(&claim));
        l2.start -= lb_core::announce::YIELD - Duration::from_millis(100);
        l2.turn();
        assert!(
            all_are(&l2, |claim| matches!(claim, Claim::InUse { .. })),
            "the other may have it still"
        );
        l2.start -= Duration::from_millis(200);
        l2.turn();
        assert!(all_are(&l2, |claim| matches!(claim, Claim::Asking { .. })));
    }
}
