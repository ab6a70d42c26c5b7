//! One peer's task: its session, connections and timer.
//!
//! Never decides: what happened goes to the session, and what that says is done.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lb_core::{
    bgp::{Action, ConnectionId, Event, Origin, Session, State, StopReason, TransportError},
    config::BgpPeer,
};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep_until, timeout},
};

use super::{
    Announced, PeerStanding, Standing, lock, socket,
    wire::{Heard, Wire},
};
use crate::chance;

/// Reads that wait for the session: no more are made before it has heard these.
const HEARD: usize = 4;
/// Longest wait for last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a peer's task is told.
#[derive(Debug)]
pub(super) enum Order {
    Announce(Announced),
    /// Another [`BgpPeer::announces`].
    Retell(Box<BgpPeer>),
    Accepted(TcpStream),
    LivenessLost,
    LivenessBack,
    Stop(StopReason),
}

/// What a peer's task begins with.
pub(super) struct Begin {
    pub(super) peer: BgpPeer,
    pub(super) router_id: Ipv4Addr,
    pub(super) resumed: bool,
    pub(super) announced: Announced,
    pub(super) start: Instant,
    pub(super) standing: Arc<Mutex<Option<Standing>>>,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
}

struct Task {
    peer: BgpPeer,
    session: Session,
    announced: Announced,
    start: Instant,
    standing: Arc<Mutex<Option<Standing>>>,
    wires: BTreeMap<ConnectionId, Wire>,
    attempts: BTreeMap<ConnectionId, JoinHandle<()>>,
    closing: Vec<JoinHandle<()>>,
    heard: mpsc::Sender<Heard>,
    accepted: u32,
    /// What was said last of it.
    said: (State, Option<Duration>),
}

/// Speaks to a peer until it is told to stop.
pub(super) async fn run(begin: Begin) {
    let (heard, mut inbox) = mpsc::channel(HEARD);
    let mut orders = begin.orders;
    let session = Session::new(
        begin.peer.session.clone(),
        begin.router_id,
        chance::number(),
        begin.resumed,
    );
    let mut task = Task {
        peer: begin.peer,
        session,
        announced: begin.announced,
        start: begin.start,
        standing: begin.standing,
        wires: BTreeMap::new(),
        attempts: BTreeMap::new(),
        closing: Vec::new(),
        heard,
        accepted: 0,
        said: (State::Idle, None),
    };
    task.announce();
    task.step(Event::Start);
    loop {
        let deadline = task.session.deadline().map(|deadline| task.start + deadline);
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Announce(announced)) => {
                    task.announced = announced;
                    task.announce();
                }
                Some(Order::Retell(peer)) => {
                    task.peer = *peer;
                    task.announce();
                    if task.peer.bfd.is_none() {
                        task.step(Event::LivenessBack);
                    }
                }
                Some(Order::Accepted(stream)) => task.accept(stream),
                Some(Order::LivenessLost) => task.step(Event::LivenessLost),
                Some(Order::LivenessBack) => task.step(Event::LivenessBack),
                Some(Order::Stop(reason)) => {
                    task.step(Event::Stop(reason));
                    let _ = timeout(LAST_WORDS, task.close_all()).await;
                    return;
                }
                None => return,
            },
            Some(heard) = inbox.recv() => task.hear(heard),
            () = timer => task.step(Event::Timer),
        }
        task.closing.retain(|closing| !closing.is_finished());
    }
}

impl Task {
    fn step(&mut self, event: Event<'_>) {
        let now = self.start.elapsed();
        let actions = self.session.step(event, now);
        self.perform(actions);
        self.show();
    }

    fn announce(&mut self) {
        let Announced { addresses, draining } = &self.announced;
        let routes = self.peer.announces.routes(addresses, *draining);
        let actions = self.session.announce(&routes, self.start.elapsed());
        self.perform(actions);
        self.show();
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Connected(connection, Ok(stream)) => {
                self.attempts.remove(&connection);
                self.up(connection, stream);
            }
            Heard::Connected(connection, Err(why)) => {
                self.attempts.remove(&connection);
                self.step(Event::TransportFailed { connection, why });
            }
            Heard::Bytes(connection, bytes) => self.step(Event::Bytes {
                connection,
                bytes: &bytes,
            }),
            Heard::Closed(connection) => {
                self.wires.remove(&connection);
                self.step(Event::Closed { connection });
            }
            Heard::Failed(connection, why) => {
                self.wires.remove(&connection);
                self.step(Event::TransportFailed { connection, why });
            }
        }
    }

    fn accept(&mut self, stream: TcpStream) {
        self.accepted = self.accepted.wrapping_add(1);
        let connection = ConnectionId {
            origin: Origin::Theirs,
            number: self.accepted,
        };
        self.up(connection, stream);
    }

    fn up(&mut self, connection: ConnectionId, stream: TcpStream) {
        let (Ok(local), Ok(())) = (stream.local_addr(), socket::secure(&stream, &self.peer)) else {
            let why = TransportError::Broken;
            return self.step(Event::TransportFailed { connection, why });
        };
        self.wires
            .insert(connection, Wire::new(connection, stream, self.heard.clone()));
        self.step(Event::TransportUp {
            connection,
            local: socket::local_addresses(local.ip()),
            remote: self.peer.address,
        });
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut stalled = Vec::new();
        for action in actions {
            match action {
                Action::Connect { connection } => {
                    let (peer, heard) = (self.peer.clone(), self.heard.clone());
                    let attempt = tokio::spawn(async move {
                        let result = socket::connect(&peer).await;
                        // It fails where the peer's task has ended.
                        let _ = heard.send(Heard::Connected(connection, result)).await;
                    });
                    self.attempts.insert(connection, attempt);
                }
                Action::Send { connection, bytes } => {
                    let sent = self.wires.get(&connection).is_none_or(|wire| wire.send(bytes));
                    if !sent {
                        stalled.push(connection);
                    }
                }
                Action::Close { connection } => {
                    if let Some(attempt) = self.attempts.remove(&connection) {
                        attempt.abort();
                    }
                    let closing = self.wires.remove(&connection).and_then(Wire::close);
                    self.closing.extend(closing);
                }
            }
        }
        for connection in stalled {
            if self.wires.remove(&connection).is_some() {
                let why = TransportError::Stalled;
                self.step(Event::TransportFailed { connection, why });
            }
        }
    }

    async fn close_all(&mut self) {
        for closing in self.closing.drain(..) {
            let _ = closing.await;
        }
    }

    /// Shows how it stands, and says in the log what is new.
    fn show(&mut self) {
        let view = self.session.view();
        let peer = &self.peer.name;
        let failed = view.last_error.as_ref().map(|(at, _)| *at);
        if let Some((_, error)) = view.last_error.as_ref().filter(|_| failed != self.said.1) {
            // Attempts that fail again and again in the same way are in the metrics.
            let is_news =
                self.said.0 == State::Established || view.state == State::Established || self.is_other(error.kind());
            if is_news {
                tracing::warn!(%peer, "BGP: {error}: {}", error.advice());
            }
        }
        match (self.said.0 == State::Established, view.state == State::Established) {
            (false, true) => tracing::info!(%peer, routes = view.announced, "BGP session is up"),
            (true, false) => tracing::warn!(%peer, "BGP session is down"),
            (true, true) | (false, false) => {}
        }
        self.said = (view.state, failed);
        if let Some(standing) = &mut *lock(&self.standing) {
            let standing_of = PeerStanding {
                peer: self.peer.clone(),
                session: view,
            };
            standing.peers.insert(self.peer.address, standing_of);
        }
    }

    /// Whether the error that is shown is of another kind.
    fn is_other(&self, kind: &str) -> bool {
        let standing = lock(&self.standing);
        let shown = standing
            .as_ref()
            .and_then(|standing| standing.peers.get(&self.peer.address));
        let before = shown.and_then(|shown| shown.session.last_error.as_ref());
        before.is_none_or(|(_, error)| error.kind() != kind)
    }
}
