//! All sessions of a node: whose packet it is, when the next timer is due, who is new and who is no more.
//!
//! Never makes a session because a packet asks for one: only [`Sessions::set`] does.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    MULTIHOP_PORT, SENT_TTL, SINGLE_HOP_PORT,
    packet::Packet,
    random::Random,
    reason::Discard,
    session::{Action, Event, Session, SessionView, Timers},
};

/// Most sessions. At the fastest timers each is 200 packets a second to send and to receive; it takes about 300 bytes.
pub const MAX_SESSIONS: usize = 256;
/// How often a peer is told that its session ends: it takes a lost word for a dead path.
const FAREWELLS: usize = 3;

/// With whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The interface's index, for a link-local address; 0 otherwise.
    pub scope_id: u32,
}

impl Peer {
    /// A peer whose address says where it is: anyone but a link-local one.
    pub const fn new(address: IpAddr) -> Self {
        Self { address, scope_id: 0 }
    }
}

/// How far away a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// On the same link: its packets arrive with the TTL that they were sent with (RFC 5881 §5).
    SingleHop,
    /// Behind routers (RFC 5883). Whatever the TTL: BIRD sends such packets with the system's own, 64 mostly, so that it says nothing
    /// of how far they came.
    Multihop,
}

impl Reach {
    /// Where its packets go to.
    pub const fn port(self) -> u16 {
        match self {
            Self::SingleHop => SINGLE_HOP_PORT,
            Self::Multihop => MULTIHOP_PORT,
        }
    }

    /// Whether a packet with this TTL left can be from the peer.
    const fn allows(self, ttl: Option<u8>) -> bool {
        match self {
            Self::SingleHop => matches!(ttl, Some(SENT_TTL)),
            Self::Multihop => true,
        }
    }
}

/// A session as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// With whom; at most one session each.
    pub peer: Peer,
    /// Our own address in it; `None`: what the kernel's routes choose.
    pub local: Option<IpAddr>,
    /// How far away.
    pub reach: Reach,
    /// How fast.
    pub timers: Timers,
}

/// Where a datagram came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its sender; the scope only for a link-local one.
    pub peer: Peer,
    /// Time to live or hop limit that was left; `None`: the kernel did not say.
    pub ttl: Option<u8>,
    /// The port it came to.
    pub port: u16,
}

/// What there is to do about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// The peer.
    pub peer: Peer,
    /// What to do.
    pub action: Action,
}

/// A session as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// As it was asked for.
    pub wanted: Wanted,
    /// As it stands.
    pub session: SessionView,
}

#[derive(Debug)]
struct Entry {
    wanted: Wanted,
    session: Session,
}

/// The sessions.
#[derive(Debug)]
pub struct Sessions {
    entries: BTreeMap<Peer, Entry>,
    /// By our discriminators.
    peers: BTreeMap<u32, Peer>,
    discarded: [u64; Discard::ALL.len()],
    random: Random,
}

impl Sessions {
    /// None yet. `seed` decides discriminators and jitter: another one at every start, so that a peer tells a restarted node from one
    /// that went on.
    pub fn new(seed: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            peers: BTreeMap::new(),
            discarded: [0; Discard::ALL.len()],
            random: Random(seed),
        }
    }

    /// Makes the sessions those of `wanted`: new ones begin, those with other timers are retimed, those with another address or reach
    /// begin anew, and those not asked for end, with a word to their peers. Of two for one peer the last counts; of more than
    /// [`MAX_SESSIONS`] the peers that come last have none.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = Wanted>, now: Duration) -> Vec<Output> {
        let wanted: BTreeMap<Peer, Wanted> = wanted.into_iter().map(|wanted| (wanted.peer, wanted)).collect();
        let wanted: BTreeMap<Peer, Wanted> = wanted.into_iter().take(MAX_SESSIONS).collect();
        let mut outputs = Vec::new();
        let gone: Vec<Peer> = self
            .entries
            .values()
            .map(|entry| entry.wanted)
            .filter(|is| {
                wanted
                    .get(&is.peer)
                    .is_none_or(|new| (new.local, new.reach) != (is.local, is.reach))
            })
            .map(|is| is.peer)
            .collect();
        for peer in gone {
            self.end(peer, now, &mut outputs);
        }
        for (peer, new) in wanted {
            if let Some(entry) = self.entries.get_mut(&peer) {
                entry.wanted = new;
                let actions = entry.session.step(Event::Retime(new.timers), now);
                outputs.extend(actions.into_iter().map(|action| Output { peer, action }));
                continue;
            }
            let discriminator = self.discriminator();
            self.peers.insert(discriminator, peer);
            let session = Session::new(new.timers, discriminator, self.random.next(), now);
            self.entries.insert(peer, Entry { wanted: new, session });
        }
        outputs
    }

    /// A datagram has arrived.
    pub fn received(&mut self, arrival: Arrival, payload: &[u8], now: Duration) -> Vec<Output> {
        match self.accept(arrival, payload) {
            Ok((peer, packet)) => self.step(peer, Event::Received(packet), now),
            Err(reason) => {
                self.discarded[reason as usize] += 1;
                Vec::new()
            }
        }
    }

    /// When [`Self::timer`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        self.entries.values().filter_map(|entry| entry.session.deadline()).min()
    }

    /// Time has passed. Tell first what has arrived: a packet that waits in a socket is no silence.
    pub fn timer(&mut self, now: Duration) -> Vec<Output> {
        let due = |entry: &Entry| entry.session.deadline().is_some_and(|deadline| deadline <= now);
        let due: Vec<Peer> = self
            .entries
            .iter()
            .filter(|(_, entry)| due(entry))
            .map(|(peer, _)| *peer)
            .collect();
        due.into_iter()
            .flat_map(|peer| self.step(peer, Event::Timer, now))
            .collect()
    }

    /// With whom, and how it stands, in order of addresses.
    pub fn views(&self) -> Vec<PeerView> {
        let view = |entry: &Entry| PeerView {
            wanted: entry.wanted,
            session: entry.session.view(),
        };
        self.entries.values().map(view).collect()
    }

    /// How a peer's session was asked for.
    pub fn wanted(&self, peer: Peer) -> Option<Wanted> {
        self.entries.get(&peer).map(|entry| entry.wanted)
    }

    /// How many datagrams were discarded, and why.
    pub fn discarded(&self) -> impl Iterator<Item = (Discard, u64)> {
        Discard::ALL
            .into_iter()
            .map(|reason| (reason, self.discarded[reason as usize]))
    }

    /// The session selects itself by our discriminator, by the sender only while the peer does not know it (§6.8.6, §6.3). We know
    /// who our peers are, so who knows a discriminator must be its peer too.
    fn accept(&self, arrival: Arrival, payload: &[u8]) -> Result<(Peer, Packet), Discard> {
        let packet = Packet::parse(payload)?;
        let peer = if packet.your_discriminator == 0 {
            arrival.peer
        } else {
            let peer = self.peers.get(&packet.your_discriminator);
            let peer = *peer.ok_or(Discard::UnknownDiscriminator)?;
            if peer != arrival.peer {
                return Err(Discard::OtherPeer);
            }
            peer
        };
        let entry = self.entries.get(&peer).ok_or(Discard::UnknownPeer)?;
        let reach = entry.wanted.reach;
        if reach.port() != arrival.port {
            return Err(Discard::UnknownPeer);
        }
        if !reach.allows(arrival.ttl) {
            return Err(Discard::Hops);
        }
        Ok((peer, packet))
    }

    fn step(&mut self, peer: Peer, event: Event, now: Duration) -> Vec<Output> {
        let Some(entry) = self.entries.get_mut(&peer) else {
            return Vec::new();
        };
        let actions = entry.session.step(event, now);
        actions.into_iter().map(|action| Output { peer, action }).collect()
    }

    fn end(&mut self, peer: Peer, now: Duration, outputs: &mut Vec<Output>) {
        let Some(mut entry) = self.entries.remove(&peer) else {
            return;
        };
        self.peers.remove(&entry.session.view().discriminator);
        for action in entry.session.step(Event::Disable, now) {
            let times = if matches!(action, Action::Send(_)) {
                FAREWELLS
            } else {
                1
            };
            outputs.extend(std::iter::repeat_n(Output { peer, action }, times));
        }
    }

    /// One that nobody has, and not 0.
    fn discriminator(&mut self) -> u32 {
        loop {
            let drawn = (self.random.next() >> 32) as u32;
            if drawn != 0 && !self.peers.contains_key(&drawn) {
                return drawn;
            }
        }
    }
}
