//! One peer: connections, timers and the states of RFC 4271 8.
//!
//! Never waits, reads a clock or opens a socket: it is told what happened and when, and says what to do. Whatever happens in
//! whatever order, it never panics, and no UPDATE is sent outside Established.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::{
    Action, ConnectionId, Counters, Event, LocalAddresses, Notification, Origin, PeerConfig, Remote, SessionError,
    SessionView, State, StopReason, TransportError,
    connection::{Connection, Fault, Phase, Said},
    framing::Framer,
    message::{self, Offer},
    open::Agreed,
    rib::{self, Rib, Table},
};

/// Longest wait for an answer to a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the peer's OPEN: shorter than the 4 minutes of RFC 4271 8.2.2, because a router that is starting may accept
/// connections of which nothing comes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause before a session that was up is tried again: a router that restarts is back when it listens.
const SOON: Duration = Duration::from_secs(1);

/// A session with one peer.
#[derive(Debug)]
pub struct Session {
    config: PeerConfig,
    router_id: Ipv4Addr,
    /// State of the jitter.
    random: u64,
    /// Whether packets were forwarded for a process before this one, which the peer is told until the first session is up.
    resumed: bool,
    is_running: bool,
    /// BFD lost the peer: nothing is tried and nothing accepted until it is back.
    is_held: bool,
    attempt: Option<(ConnectionId, Duration)>,
    retry_at: Option<Duration>,
    attempts: u32,
    connections: BTreeMap<ConnectionId, Connection>,
    desired: Table,
    counters: Counters,
    last_error: Option<(Duration, SessionError)>,
    state: State,
    since: Duration,
}

impl Session {
    /// One that rests. `seed` is for its jitter. `resumed`: what is announced was announced by a process before this one, and packets
    /// are forwarded ever since.
    pub fn new(config: PeerConfig, router_id: Ipv4Addr, seed: u64, resumed: bool) -> Self {
        Self {
            config,
            router_id,
            random: seed,
            resumed,
            is_running: false,
            is_held: false,
            attempt: None,
            retry_at: None,
            attempts: 0,
            connections: BTreeMap::new(),
            desired: Table::new(),
            counters: Counters::default(),
            last_error: None,
            state: State::Idle,
            since: Duration::ZERO,
        }
    }

    /// Takes note of what happened; returns what to do.
    pub fn step(&mut self, event: Event<'_>, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => {
                if !self.is_running {
                    self.is_running = true;
                    self.connect(now, &mut actions);
                }
            }
            Event::Stop(reason) => self.stop(&reason, &mut actions),
            Event::TransportUp {
                connection,
                local,
                remote,
            } => self.opened(connection, local, remote, now, &mut actions),
            Event::TransportFailed { connection, why } => {
                if self.attempt.is_some_and(|(attempt, _)| attempt == connection) {
                    self.attempt = None;
                    self.note(SessionError::Transport(why), now);
                    self.retry(false, now);
                } else {
                    self.lost(connection, SessionError::Transport(why), now);
                }
            }
            Event::Closed { connection } => self.lost(connection, SessionError::Closed, now),
            Event::Bytes { connection, bytes } => self.heard(connection, bytes, now, &mut actions),
            Event::Timer => self.timer(now, &mut actions),
            Event::LivenessLost => {
                self.is_held = true;
                self.retry_at = None;
                if let Some((connection, _)) = self.attempt.take() {
                    actions.push(Action::Close { connection });
                }
                for connection in self.connections.keys().copied().collect::<Vec<_>>() {
                    let fault = Fault {
                        notification: Some(Notification::BFD_DOWN),
                        error: SessionError::Liveness,
                    };
                    self.end(connection, fault, now, &mut actions);
                }
            }
            Event::LivenessBack => {
                if std::mem::take(&mut self.is_held) {
                    self.connect(now, &mut actions);
                }
            }
        }
        self.settle(now);
        actions
    }

    /// When [`Event::Timer`] is due; `None`: not until something else happens.
    pub fn deadline(&self) -> Option<Duration> {
        let connections = self.connections.values().filter_map(Connection::deadline);
        let attempt = self.attempt.map(|(_, until)| until);
        connections.chain(attempt).chain(self.retry_at).min()
    }

    /// What the peer should know from now on.
    pub fn announce(&mut self, desired: &Table, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.desired != *desired {
            self.desired.clone_from(desired);
            for connection in self.established() {
                self.tell(connection, &mut actions);
            }
        }
        self.settle(now);
        actions
    }

    /// How it stands.
    pub fn view(&self) -> SessionView {
        let established = self
            .connections
            .iter()
            .find_map(|(id, connection)| match &connection.phase {
                Phase::Established(agreed, rib) => Some((*id, agreed, rib)),
                Phase::OpenSent | Phase::OpenConfirm(_) => None,
            });
        let withheld = established.map_or(0, |(_, agreed, _)| {
            let cannot = |route: &&ipnet::IpNet| !rib::can_announce(&agreed.terms, route);
            self.desired.keys().filter(cannot).count()
        });
        SessionView {
            state: self.state,
            is_held: self.is_held,
            since: self.since,
            connection: established.map(|(id, ..)| id),
            remote: established.map(|(_, agreed, _)| Remote {
                router_id: agreed.peer_id,
                hold_s: agreed.hold.as_secs(),
                graceful_restart: agreed.peer_restarts,
            }),
            announced: established.map_or(0, |(.., rib)| rib.len()),
            withheld,
            counters: self.counters,
            last_error: self.last_error.clone(),
        }
    }

    fn established(&self) -> Vec<ConnectionId> {
        let established = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.phase.is_established());
        established.map(|(id, _)| *id).collect()
    }

    /// The state that all connections together come to.
    fn settle(&mut self, now: Duration) {
        let furthest = self
            .connections
            .values()
            .map(|connection| connection.phase.state())
            .max();
        let state = match furthest {
            Some(state) => state,
            None if self.attempt.is_some() => State::Connect,
            None if self.is_running => State::Active,
            None => State::Idle,
        };
        // Attempts that come and go are one time of being down.
        let kind = |state| match state {
            State::Idle => 0,
            State::Connect | State::Active | State::OpenSent | State::OpenConfirm => 1,
            State::Established => 2,
        };
        if kind(state) != kind(self.state) {
            self.since = now;
        }
        self.state = state;
    }

    fn note(&mut self, error: SessionError, now: Duration) {
        self.last_error = Some((now, error));
    }

    fn connect(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.retry_at = None;
        if self.config.passive || !self.is_running || self.is_held || self.attempt.is_some() {
            return;
        }
        self.attempts = self.attempts.wrapping_add(1);
        let connection = ConnectionId {
            origin: Origin::Ours,
            number: self.attempts,
        };
        self.attempt = Some((connection, now + CONNECT_TIMEOUT));
        actions.push(Action::Connect { connection });
    }

    /// Tries again after a while, unless something else is under way.
    fn retry(&mut self, soon: bool, now: Duration) {
        if self.is_running
            && !self.is_held
            && !self.config.passive
            && self.attempt.is_none()
            && self.connections.is_empty()
        {
            let pause = Duration::from_secs(u64::from(self.config.connect_retry_s));
            let pause = if soon { pause.min(SOON) } else { pause };
            self.retry_at = Some(now + self.jitter(pause));
        }
    }

    /// Three quarters of it and a random part of the rest (RFC 4271 10).
    fn jitter(&mut self, duration: Duration) -> Duration {
        // SplitMix64: good enough to keep LB nodes apart.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = u32::try_from((word ^ (word >> 31)) >> 32).unwrap_or(u32::MAX);
        duration.mul_f64(0.75 + 0.25 * f64::from(part) / f64::from(u32::MAX))
    }

    fn stop(&mut self, reason: &StopReason, actions: &mut Vec<Action>) {
        self.is_running = false;
        self.retry_at = None;
        if let Some((connection, _)) = self.attempt.take() {
            actions.push(Action::Close { connection });
        }
        for connection in std::mem::take(&mut self.connections).into_keys() {
            if let Some(notification) = reason.notification() {
                self.send(connection, &[message::notification(&notification)], actions);
            }
            actions.push(Action::Close { connection });
        }
    }

    fn opened(
        &mut self,
        connection: ConnectionId,
        local: LocalAddresses,
        remote: IpAddr,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let is_wanted = match connection.origin {
            Origin::Ours => self.attempt.is_some_and(|(attempt, _)| attempt == connection),
            Origin::Theirs => self.is_running && !self.is_held && !self.connections.contains_key(&connection),
        };
        if !is_wanted {
            actions.push(Action::Close { connection });
            return;
        }
        match connection.origin {
            Origin::Ours => self.attempt = None,
            // The peer knows best which one it still has: one that has not come up makes place.
            Origin::Theirs => {
                let pending = self
                    .connections
                    .iter()
                    .filter(|(id, other)| id.origin == Origin::Theirs && !other.phase.is_established());
                let pending: Vec<ConnectionId> = pending.map(|(id, _)| *id).collect();
                for connection in pending {
                    self.connections.remove(&connection);
                    actions.push(Action::Close { connection });
                }
            }
        }
        self.retry_at = None;
        let offer = Offer {
            router_id: self.router_id,
            extended_next_hop: remote.is_ipv6() && self.config.families.v4,
            restarted: self.resumed,
            // A session that was up and is not was no restart of the data plane.
            forwarding_kept: self.resumed || self.counters.established > 0,
        };
        let opened = Connection {
            phase: Phase::OpenSent,
            local,
            over_v6: remote.is_ipv6(),
            framer: Framer::default(),
            hold_at: Some(now + OPEN_TIMEOUT),
            keepalive_at: None,
            up_since: None,
        };
        self.connections.insert(connection, opened);
        self.send(connection, &[message::open(&self.config, offer)], actions);
    }

    /// A connection is gone by itself.
    fn lost(&mut self, connection: ConnectionId, error: SessionError, now: Duration) {
        if let Some(gone) = self.connections.remove(&connection) {
            self.ended(&gone, Some(error), now);
        }
    }

    /// Ends a connection.
    fn end(&mut self, connection: ConnectionId, fault: Fault, now: Duration, actions: &mut Vec<Action>) {
        if let Some(gone) = self.connections.remove(&connection) {
            if let Some(notification) = &fault.notification {
                self.send(connection, &[message::notification(notification)], actions);
            }
            actions.push(Action::Close { connection });
            // A collision is nobody's fault.
            let is_fault = fault.notification != Some(Notification::COLLISION);
            self.ended(&gone, is_fault.then_some(fault.error), now);
        }
    }

    fn ended(&mut self, gone: &Connection, error: Option<SessionError>, now: Duration) {
        self.counters.flaps += u64::from(gone.phase.is_established());
        // Of a connection beside the one that is up nobody wants to know.
        if let Some(error) = error
            && self.established().is_empty()
        {
            self.note(error, now);
        }
        // One that comes up only to end at once is no router that restarts.
        let pause = Duration::from_secs(u64::from(self.config.connect_retry_s));
        let soon = gone.up_since.is_some_and(|since| now.saturating_sub(since) >= pause);
        self.retry(soon, now);
    }

    fn heard(&mut self, id: ConnectionId, bytes: &[u8], now: Duration, actions: &mut Vec<Action>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.framer.push(bytes);
        }
        // A message may be the connection's last.
        while let Some(connection) = self.connections.get_mut(&id) {
            let said = match connection.framer.next() {
                Ok(None) => return,
                Ok(Some((kind, body))) => {
                    self.counters.received += 1;
                    connection.read(kind, &body, &self.config, self.router_id)
                }
                Err(notification) => Err(notification.into()),
            };
            match said {
                Ok(said) => {
                    let hold = connection.phase.agreed().map_or(OPEN_TIMEOUT, |agreed| agreed.hold);
                    connection.hold_at = (!hold.is_zero()).then(|| now + hold);
                    if let Some(said) = said {
                        self.heed(id, said, now, actions);
                    }
                }
                Err(fault) => self.end(id, fault, now, actions),
            }
        }
    }

    fn heed(&mut self, id: ConnectionId, said: Said, now: Duration, actions: &mut Vec<Action>) {
        match said {
            Said::Alive => {}
            Said::Open { agreed, peer_id } => self.agree(id, agreed, peer_id, now, actions),
            Said::Confirmed => self.establish(id, now, actions),
            Said::Update(update) => {
                self.counters.updates_received += 1;
                self.counters.routes_ignored += update.announced;
                self.counters.malformed += u64::from(update.malformed);
            }
            Said::Refresh { is_v4 } => self.refresh(id, is_v4, actions),
        }
    }

    /// The peer opened: which connection survives where there are two (RFC 4271 6.8), and what holds on it.
    fn agree(&mut self, id: ConnectionId, agreed: Agreed, peer_id: Ipv4Addr, now: Duration, actions: &mut Vec<Action>) {
        let others = self.connections.iter().filter(|(other, _)| **other != id);
        let others: Vec<_> = others
            .filter_map(|(other, connection)| {
                Some((*other, connection.phase.is_established(), *connection.phase.agreed()?))
            })
            .collect();
        // RFC 6286 2.3: where identifiers are equal, ASNs decide.
        let ours_is_higher = (u32::from(self.router_id), self.config.local_asn) > (u32::from(peer_id), agreed.peer_asn);
        let survivor = if ours_is_higher { Origin::Ours } else { Origin::Theirs };
        for (other, is_established, before) in others {
            let collision = Fault {
                notification: Some(Notification::COLLISION),
                error: SessionError::Closed,
            };
            if is_established && before.peer_restarts && agreed.peer_restarts {
                // A new connection of a peer that restarts gracefully says that it did (RFC 4724 4.2): the old one is silently dropped.
                if let Some(gone) = self.connections.remove(&other) {
                    actions.push(Action::Close { connection: other });
                    self.ended(&gone, Some(SessionError::Closed), now);
                }
            } else if is_established || (id.origin != other.origin && id.origin != survivor) {
                self.end(id, collision, now, actions);
                return;
            } else {
                self.end(other, collision, now, actions);
            }
        }
        let interval = self.jitter(agreed.hold / 3);
        if let Some(connection) = self.connections.get_mut(&id) {
            let has_timers = !agreed.hold.is_zero();
            connection.hold_at = has_timers.then(|| now + agreed.hold);
            connection.keepalive_at = has_timers.then(|| now + interval);
            connection.phase = Phase::OpenConfirm(agreed);
            self.send(id, &[message::keepalive()], actions);
        }
    }

    /// The session is up: the peer is told everything.
    fn establish(&mut self, id: ConnectionId, now: Duration, actions: &mut Vec<Action>) {
        let others: Vec<ConnectionId> = self.connections.keys().copied().filter(|other| *other != id).collect();
        for connection in others {
            self.connections.remove(&connection);
            self.send(connection, &[message::notification(&Notification::COLLISION)], actions);
            actions.push(Action::Close { connection });
        }
        if let Some((connection, _)) = self.attempt.take() {
            actions.push(Action::Close { connection });
        }
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(agreed) = connection.phase.agreed().copied() else {
            return;
        };
        connection.phase = Phase::Established(agreed, Rib::default());
        connection.up_since = Some(now);
        self.counters.established += 1;
        self.resumed = false;
        self.tell(id, actions);
        let ends: Vec<_> = message::address_types(agreed.families)
            .map(message::end_of_table)
            .collect();
        self.counters.updates_sent += ends.len() as u64;
        self.send(id, &ends, actions);
    }

    /// Tells the peer what it does not know.
    fn tell(&mut self, id: ConnectionId, actions: &mut Vec<Action>) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Phase::Established(agreed, rib) = &mut connection.phase
        {
            let messages = rib.reach(&self.desired, &agreed.terms);
            self.counters.updates_sent += messages.len() as u64;
            self.send(id, &messages, actions);
        }
    }

    /// The peer wants a family's routes again (RFC 2918, RFC 7313).
    fn refresh(&mut self, id: ConnectionId, is_v4: bool, actions: &mut Vec<Action>) {
        let Some(Phase::Established(agreed, rib)) =
            self.connections.get_mut(&id).map(|connection| &mut connection.phase)
        else {
            return;
        };
        let (families, enhanced) = (agreed.families, agreed.enhanced_refresh);
        if !(if is_v4 { families.v4 } else { families.v6 }) {
            return;
        }
        rib.forget(is_v4);
        self.counters.refreshes += 1;
        let afi = if is_v4 { 1 } else { 2 };
        if enhanced {
            self.send(id, &[message::refresh(afi, 1)], actions);
        }
        self.tell(id, actions);
        if enhanced {
            self.send(id, &[message::refresh(afi, 2)], actions);
        }
    }

    fn send(&mut self, connection: ConnectionId, messages: &[Vec<u8>], actions: &mut Vec<Action>) {
        if !messages.is_empty() {
            self.counters.sent += messages.len() as u64;
            actions.push(Action::Send {
                connection,
                bytes: messages.concat(),
            });
        }
    }

    fn timer(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if let Some((connection, until)) = self.attempt
            && until <= now
        {
            self.attempt = None;
            actions.push(Action::Close { connection });
            self.note(SessionError::Transport(TransportError::NoAnswer), now);
            self.retry(false, now);
        }
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let agreed = connection.phase.agreed().copied();
            if connection.hold_at.is_some_and(|at| at <= now) {
                let error = agreed.map_or(SessionError::Silent, |_| SessionError::HoldTimer);
                let notification = Some(Notification::HOLD);
                self.end(id, Fault { notification, error }, now, actions);
            } else if connection.keepalive_at.is_some_and(|at| at <= now)
                && let Some(agreed) = agreed
            {
                let interval = self.jitter(agreed.hold / 3);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.keepalive_at = Some(now + interval);
                }
                self.send(id, &[message::keepalive()], actions);
            }
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.connect(now, actions);
        }
    }
}
