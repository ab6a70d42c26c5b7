//! The thread: what has arrived, then what is due, then sleep.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd as _,
    time::Duration,
};

use lb_core::bfd::{Action, Output, Packet, Peer, Wanted};
use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use tracing::{info, warn};

use super::{
    Liveness, Shared, State,
    socket::{MAX_DATAGRAM, Receiver, Sender},
};

/// Datagrams of one socket that are taken before timers are looked at again: more than all sessions send meanwhile.
const BATCH: usize = 1024;
/// After which time a socket that could not be opened is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Which packets a receiver is for: IPv4 or not, and the port.
type Entrance = (bool, u16);

/// The sockets.
struct Edge {
    receivers: BTreeMap<Entrance, Receiver>,
    /// With what it was opened for.
    senders: BTreeMap<Peer, (Wanted, Sender)>,
    /// What could not be opened is not tried before this.
    try_again: Duration,
}

/// Until it is over.
pub(super) fn run(shared: &Shared) {
    let mut edge = Edge {
        receivers: BTreeMap::new(),
        senders: BTreeMap::new(),
        try_again: Duration::ZERO,
    };
    loop {
        // Before looking: what is set after this wakes again.
        let _ = shared.wake.read();
        let deadline = {
            let mut state = shared.lock();
            // With the sockets that are open: those who are no longer wanted hear of it.
            let to_do = std::mem::take(&mut state.to_do);
            edge.perform(&mut state, to_do);
            if state.is_over {
                return;
            }
            let now = shared.now();
            if std::mem::take(&mut state.is_set) || !state.faults.is_empty() && now >= edge.try_again {
                edge.open_and_close(&mut state, now);
            }
            edge.receive(&mut state, shared);
            let now = shared.now();
            let outputs = state.sessions.timer(now);
            edge.perform(&mut state, outputs);
            let try_again = (!state.faults.is_empty()).then_some(edge.try_again);
            state.sessions.deadline().into_iter().chain(try_again).min()
        };
        let timeout = deadline.map(|deadline| TimeSpec::from(deadline.saturating_sub(shared.now())));
        let mut sources = vec![PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN)];
        sources.extend(
            edge.receivers
                .values()
                .map(|receiver| PollFd::new(receiver.as_fd(), PollFlags::POLLIN)),
        );
        // Interrupted or not: the loop looks at everything anyway.
        let _ = ppoll(&mut sources, timeout, None);
    }
}

impl Edge {
    /// Closes what nobody needs and opens what is missing.
    fn open_and_close(&mut self, state: &mut State, now: Duration) {
        let wanted: BTreeMap<Peer, Wanted> = state
            .sessions
            .views()
            .into_iter()
            .map(|view| (view.wanted.peer, view.wanted))
            .collect();
        let is_same = |new: &Wanted, old: &Wanted| (new.local, new.reach) == (old.local, old.reach);
        self.senders
            .retain(|peer, (old, _)| wanted.get(peer).is_some_and(|new| is_same(new, old)));
        let entrances: BTreeSet<Entrance> = wanted.values().map(entrance).collect();
        self.receivers.retain(|entrance, _| entrances.contains(entrance));
        state.faults.clear();
        for (is_v4, port) in entrances {
            if self.receivers.contains_key(&(is_v4, port)) {
                continue;
            }
            match Receiver::open(is_v4, port) {
                Ok(receiver) => drop(self.receivers.insert((is_v4, port), receiver)),
                Err(error) => {
                    let fault = format!("cannot receive on UDP port {port}: {error}; is another BFD daemon running?");
                    let without = wanted.values().filter(|wanted| entrance(wanted) == (is_v4, port));
                    state.faults.extend(without.map(|wanted| (wanted.peer, fault.clone())));
                }
            }
        }
        for (peer, wanted) in &wanted {
            if self.senders.contains_key(peer) {
                continue;
            }
            // Ports of several sessions are apart by their discriminators, which are random.
            match Sender::open(wanted, first_port(state, *peer)) {
                Ok(sender) => drop(self.senders.insert(*peer, (*wanted, sender))),
                Err(error) => {
                    let from = wanted.local.map_or_else(String::new, |local| format!(" from {local}"));
                    state.faults.insert(*peer, format!("cannot send{from}: {error}"));
                }
            }
        }
        for (peer, fault) in &state.faults {
            warn!(peer = %peer.address, "BFD {fault}");
        }
        self.try_again = now + TRY_AGAIN;
    }

    /// What has arrived is handled before any timer: a packet that waited is no silence.
    fn receive(&mut self, state: &mut State, shared: &Shared) {
        let mut buffer = [0; MAX_DATAGRAM];
        let mut outputs = Vec::new();
        for receiver in self.receivers.values() {
            for _ in 0..BATCH {
                match receiver.receive(&mut buffer) {
                    Ok(Some((arrival, length))) => {
                        let payload = buffer.get(..length).unwrap_or_default();
                        outputs.extend(state.sessions.received(arrival, payload, shared.now()));
                    }
                    Ok(None) => break,
                    // What came back by ICMP; the next call gives the next datagram.
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        self.perform(state, outputs);
    }

    fn perform(&mut self, state: &mut State, outputs: Vec<Output>) {
        for Output { peer, action } in outputs {
            let address = peer.address;
            match action {
                Action::Send(packet) => self.send(peer, &packet),
                Action::Up => {
                    info!(peer = %address, "BFD session is up");
                    state.tell(peer, Liveness::Up);
                }
                Action::Down(cause) => {
                    let is_wanted = state.sessions.wanted(peer).is_some();
                    warn!(peer = %address, cause = cause.name(), is_wanted, "BFD session is down");
                    state.tell(peer, Liveness::Down(cause));
                }
            }
        }
    }

    /// One that cannot be sent (no route, an interface that is down) is one that is lost: what follows from it, the peer says.
    fn send(&self, peer: Peer, packet: &Packet) {
        if let Some((_, sender)) = self.senders.get(&peer) {
            let _ = sender.send(&packet.bytes());
        }
    }
}

fn entrance(wanted: &Wanted) -> Entrance {
    (wanted.peer.address.is_ipv4(), wanted.reach.port())
}

fn first_port(state: &State, peer: Peer) -> u16 {
    let views = state.sessions.views();
    let view = views.iter().find(|view| view.wanted.peer == peer);
    view.map_or(0, |view| (view.session.discriminator >> 16) as u16)
}
