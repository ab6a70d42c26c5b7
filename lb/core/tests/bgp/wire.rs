//! Two sessions and the connections between them; time passes as a test says.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_core::bgp::{
    Action, ConnectionId, Event, Families, LocalAddresses, Origin, PeerConfig, Session, State, TransportError,
};

use super::model::Model;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

/// Both directions of a connection.
#[derive(Debug, Default)]
struct Pipe {
    to_a: Vec<u8>,
    to_b: Vec<u8>,
    a: Option<ConnectionId>,
    b: Option<ConnectionId>,
    /// What B understands of A.
    model: Model,
    /// Bytes of B that have reached A.
    reached: Vec<u8>,
}

pub(crate) struct Wire {
    pub(crate) a: Session,
    pub(crate) b: Session,
    pub(crate) now: Duration,
    over_v6: bool,
    pipes: Vec<Pipe>,
    attempts: Vec<(Side, ConnectionId)>,
    accepted: u32,
}

pub(crate) fn config(local_asn: u32, peer_asn: u32) -> PeerConfig {
    PeerConfig {
        local_asn,
        peer_asn,
        families: Families { v4: true, v6: true },
        hold_s: 9,
        connect_retry_s: 2,
        passive: false,
        next_hop_v4: None,
        next_hop_v6: None,
        restart_time_s: None,
    }
}

impl Wire {
    pub(crate) fn new(a: PeerConfig, b: PeerConfig, over_v6: bool) -> Self {
        Self {
            a: Session::new(a, [192, 0, 2, 1].into(), 1, false),
            b: Session::new(b, [192, 0, 2, 2].into(), 2, false),
            now: Duration::from_secs(1),
            over_v6,
            pipes: Vec::new(),
            attempts: Vec::new(),
            accepted: 0,
        }
    }

    pub(crate) fn step(&mut self, side: Side, event: Event<'_>) {
        let actions = match side {
            Side::A => self.a.step(event, self.now),
            Side::B => self.b.step(event, self.now),
        };
        self.carry(side, actions);
    }

    pub(crate) fn carry(&mut self, side: Side, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect { connection } => self.attempts.push((side, connection)),
                Action::Send { connection, bytes } => {
                    let pipe = self
                        .pipe(side, connection)
                        .expect("sends on a connection that is there");
                    match side {
                        Side::A => {
                            pipe.model.hear(&bytes);
                            pipe.to_b.extend(bytes);
                        }
                        Side::B => pipe.to_a.extend(bytes),
                    }
                }
                Action::Close { connection } => {
                    self.attempts.retain(|attempt| *attempt != (side, connection));
                    if let Some(pipe) = self.pipe(side, connection) {
                        *pipe.end(side) = None;
                    }
                }
            }
        }
    }

    fn pipe(&mut self, side: Side, connection: ConnectionId) -> Option<&mut Pipe> {
        self.pipes.iter_mut().find(|pipe| match side {
            Side::A => pipe.a == Some(connection),
            Side::B => pipe.b == Some(connection),
        })
    }

    /// The oldest attempt comes to an end.
    pub(crate) fn connect(&mut self, works: bool) {
        if self.attempts.is_empty() {
            return;
        }
        let (side, connection) = self.attempts.remove(0);
        if !works {
            let why = TransportError::Refused;
            return self.step(side, Event::TransportFailed { connection, why });
        }
        self.accepted += 1;
        let theirs = ConnectionId {
            origin: Origin::Theirs,
            number: self.accepted,
        };
        let (a, b) = match side {
            Side::A => (connection, theirs),
            Side::B => (theirs, connection),
        };
        self.pipes.push(Pipe {
            a: Some(a),
            b: Some(b),
            ..Pipe::default()
        });
        let local = |last: u8| LocalAddresses {
            v4: Some([10, 0, 0, last].into()),
            v6: Some(format!("2001:db8::{last}").parse().unwrap()),
        };
        let remote = if self.over_v6 { "2001:db8::9" } else { "10.0.0.9" };
        let remote: IpAddr = remote.parse().unwrap();
        self.step(
            Side::A,
            Event::TransportUp {
                connection: a,
                local: local(1),
                remote,
            },
        );
        self.step(
            Side::B,
            Event::TransportUp {
                connection: b,
                local: local(2),
                remote,
            },
        );
    }

    /// Some bytes of a connection arrive, and its end after the last of them.
    pub(crate) fn deliver(&mut self, which: usize, to: Side, most: usize) {
        let count = self.pipes.len();
        let Some(pipe) = self.pipes.get_mut(which % count.max(1)) else {
            return;
        };
        let (queue, other_is_there) = match to {
            Side::A => (&mut pipe.to_a, pipe.b.is_some()),
            Side::B => (&mut pipe.to_b, pipe.a.is_some()),
        };
        let rest = queue.split_off(most.min(queue.len()));
        let bytes = std::mem::replace(queue, rest);
        let ended = queue.is_empty() && !other_is_there;
        if to == Side::A {
            pipe.reached.extend(&bytes);
            pipe.model.may_update = has_agreed(&pipe.reached);
        }
        let Some(connection) = *pipe.end(to) else { return };
        if !bytes.is_empty() {
            self.step(
                to,
                Event::Bytes {
                    connection,
                    bytes: &bytes,
                },
            );
        }
        if ended && let Some(pipe) = self.pipe(to, connection) {
            *pipe.end(to) = None;
            self.step(to, Event::Closed { connection });
        }
    }

    /// Anything arrives at A.
    pub(crate) fn inject(&mut self, which: usize, bytes: &[u8]) {
        let count = self.pipes.len();
        if let Some(pipe) = self.pipes.get_mut(which % count.max(1))
            && let Some(connection) = pipe.a
        {
            pipe.reached.extend(bytes);
            pipe.model.may_update = has_agreed(&pipe.reached);
            self.step(Side::A, Event::Bytes { connection, bytes });
        }
    }

    /// A connection breaks.
    pub(crate) fn cut(&mut self, which: usize) {
        let count = self.pipes.len();
        let Some(pipe) = self.pipes.get_mut(which % count.max(1)) else {
            return;
        };
        let ends = [(Side::A, pipe.a.take()), (Side::B, pipe.b.take())];
        for (side, connection) in ends {
            if let Some(connection) = connection {
                let why = TransportError::Broken;
                self.step(side, Event::TransportFailed { connection, why });
            }
        }
    }

    /// Time passes: all that is due is done.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        for side in [Side::A, Side::B] {
            self.step(side, Event::Timer);
            let deadline = match side {
                Side::A => self.a.deadline(),
                Side::B => self.b.deadline(),
            };
            assert!(
                deadline.is_none_or(|deadline| deadline > self.now),
                "what was due is done"
            );
        }
    }

    /// Everything that is under way arrives, and attempts succeed, for so long.
    pub(crate) fn settle(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for _ in 0..100 {
                self.connect(true);
                for which in 0..self.pipes.len() {
                    self.deliver(which, Side::A, usize::MAX);
                    self.deliver(which, Side::B, usize::MAX);
                }
            }
            self.pipes.retain(|pipe| pipe.a.is_some() || pipe.b.is_some());
            if self.now >= end {
                return;
            }
            let next = [self.a.deadline(), self.b.deadline()].into_iter().flatten().min();
            self.now = next.unwrap_or(end).min(end).max(self.now);
            self.pass(Duration::ZERO);
        }
    }

    /// What B knows from A, where both are established with each other.
    pub(crate) fn established(&self) -> Option<&Model> {
        let (a, b) = (self.a.view(), self.b.view());
        if a.state != State::Established || b.state != State::Established {
            return None;
        }
        let pipe = self
            .pipes
            .iter()
            .find(|pipe| pipe.a == a.connection && pipe.b == b.connection);
        pipe.map(|pipe| &pipe.model)
    }

    /// Connections that somebody holds.
    pub(crate) fn connections(&self) -> usize {
        self.pipes
            .iter()
            .filter(|pipe| pipe.a.is_some() || pipe.b.is_some())
            .count()
    }
}

impl Pipe {
    fn end(&mut self, side: Side) -> &mut Option<ConnectionId> {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }
}

/// Whether an OPEN and a KEEPALIVE are the first whole messages, read by length alone.
fn has_agreed(bytes: &[u8]) -> bool {
    let mut kinds = BTreeMap::new();
    let mut rest = bytes;
    while rest.len() >= 19 {
        let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
        if length < 19 || rest.len() < length {
            break;
        }
        kinds.insert(kinds.len(), rest[18]);
        rest = &rest[length..];
    }
    kinds.get(&0) == Some(&1) && kinds.get(&1) == Some(&4)
}
