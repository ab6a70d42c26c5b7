//! The thread: listeners, and a task for each peer.
//!
//! Never touches a session of a peer that did not change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lb_core::{
    bfd::{Cause, Peer},
    bgp::StopReason,
    config::{BgpConfig, BgpPeer},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::sleep,
};

use super::{Announced, Order, Standing, lock, peer, socket};
use crate::announce::bfd::{Changes, Liveness};

/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Speaker {
    orders: mpsc::UnboundedReceiver<Order>,
    standing: Arc<Mutex<Option<Standing>>>,
    resumed: bool,
    announced: Announced,
    router_id: Ipv4Addr,
    peers: BTreeMap<IpAddr, Speaking>,
    listeners: Option<(u16, Vec<Arc<TcpListener>>)>,
    accepting: Vec<JoinHandle<()>>,
    /// What BFD says of peers, and of others.
    liveness: Changes,
    /// Whom it lost and did not find again.
    lost: BTreeSet<IpAddr>,
}

/// A peer's task.
struct Speaking {
    peer: BgpPeer,
    orders: mpsc::UnboundedSender<peer::Order>,
    task: JoinHandle<()>,
}

impl Speaking {
    fn tell(&self, order: peer::Order) {
        // It fails only where the task has ended, which it does when it is told to.
        let _ = self.orders.send(order);
    }
}

impl Speaker {
    pub(super) fn new(
        orders: mpsc::UnboundedReceiver<Order>,
        standing: Arc<Mutex<Option<Standing>>>,
        resumed: bool,
        liveness: Changes,
    ) -> Self {
        Self {
            orders,
            standing,
            resumed,
            announced: Announced::default(),
            router_id: Ipv4Addr::UNSPECIFIED,
            peers: BTreeMap::new(),
            listeners: None,
            accepting: Vec::new(),
            liveness,
            lost: BTreeSet::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let (accepted, mut arrivals) = mpsc::channel::<(TcpStream, SocketAddr)>(16);
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Configure(config)) => self.configure(config.map(|(config, router_id)| (*config, router_id)), &accepted).await,
                    Some(Order::Announce(announced)) => {
                        for speaking in self.peers.values() {
                            speaking.tell(peer::Order::Announce(announced.clone()));
                        }
                        self.announced = announced;
                    }
                    Some(Order::Stop(reason, done)) => {
                        let all: Vec<IpAddr> = self.peers.keys().copied().collect();
                        self.stop(&all, &reason).await;
                        // Nobody waits any more where it took too long.
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                Some((peer, liveness)) = self.liveness.recv() => self.heed(peer, liveness),
                Some((stream, remote)) = arrivals.recv() => {
                    match self.peers.get(&remote.ip().to_canonical()) {
                        Some(speaking) => speaking.tell(peer::Order::Accepted(stream)),
                        None => tracing::debug!(%remote, "BGP: nobody who is configured connects"),
                    }
                }
            }
        }
    }

    /// What BFD says of a peer. That it was switched off, here or there, says nothing of the path (RFC 5882 3.2).
    fn heed(&mut self, peer: Peer, liveness: Liveness) {
        let order = match liveness {
            Liveness::Down(Cause::DetectionTimeExpired | Cause::NeighbourDown) => {
                self.lost.insert(peer.address);
                peer::Order::LivenessLost
            }
            Liveness::Up | Liveness::Down(Cause::NeighbourAdminDown | Cause::AdminDown) => {
                self.lost.remove(&peer.address);
                peer::Order::LivenessBack
            }
        };
        if let Some(speaking) = self.peers.get(&peer.address) {
            speaking.tell(order);
        }
    }

    async fn configure(
        &mut self,
        config: Option<(BgpConfig, Ipv4Addr)>,
        accepted: &mpsc::Sender<(TcpStream, SocketAddr)>,
    ) {
        let Some((config, router_id)) = config else {
            let all: Vec<IpAddr> = self.peers.keys().copied().collect();
            self.stop(&all, &StopReason::Removed).await;
            self.listen(None, accepted);
            *lock(&self.standing) = None;
            return;
        };
        let is_other_node = router_id != self.router_id;
        self.router_id = router_id;
        let wanted: BTreeMap<IpAddr, &BgpPeer> = config.peers.iter().map(|peer| (peer.address, peer)).collect();
        let removed = self.peers.keys().filter(|address| !wanted.contains_key(address));
        let removed: Vec<IpAddr> = removed.copied().collect();
        let changed = self.peers.iter().filter(|(address, speaking)| {
            let same = |wanted: &&BgpPeer| !is_other_node && is_same_session(&speaking.peer, wanted);
            wanted.contains_key(address) && !wanted.get(address).is_some_and(same)
        });
        let changed: Vec<IpAddr> = changed.map(|(address, _)| *address).collect();
        self.stop(&removed, &StopReason::Removed).await;
        self.stop(&changed, &StopReason::Changed).await;
        self.listen(config.listen_port, accepted);
        for peer in config.peers {
            self.admit(&peer);
            match self.peers.get_mut(&peer.address) {
                Some(speaking) if speaking.peer != peer => {
                    speaking.peer = peer.clone();
                    speaking.tell(peer::Order::Retell(Box::new(peer)));
                }
                Some(_) => {}
                None => self.begin(peer),
            }
        }
        // What the process before this one announced is announced again by now.
        self.resumed = false;
    }

    fn begin(&mut self, peer: BgpPeer) {
        let (orders, inbox) = mpsc::unbounded_channel();
        let begin = peer::Begin {
            peer: peer.clone(),
            router_id: self.router_id,
            resumed: self.resumed,
            announced: self.announced.clone(),
            start: lock(&self.standing)
                .as_ref()
                .map_or_else(Instant::now, |standing| standing.start),
            standing: Arc::clone(&self.standing),
            orders: inbox,
        };
        if peer.bfd.is_none() {
            self.lost.remove(&peer.address);
        } else if self.lost.contains(&peer.address) {
            // Its channel is its own, and holds this.
            let _ = orders.send(peer::Order::LivenessLost);
        }
        let task = tokio::spawn(peer::run(begin));
        self.peers.insert(peer.address, Speaking { peer, orders, task });
    }

    /// Ends sessions, all at once, and waits until their peers have been told.
    async fn stop(&mut self, addresses: &[IpAddr], reason: &StopReason) {
        let gone: Vec<Speaking> = addresses
            .iter()
            .filter_map(|address| self.peers.remove(address))
            .collect();
        for speaking in &gone {
            speaking.tell(peer::Order::Stop(reason.clone()));
        }
        for speaking in gone {
            let address = speaking.peer.address;
            // A task that panicked is a bug, and has ended as well.
            let _ = speaking.task.await;
            // One that changed is shown as it was until its next session is.
            if *reason != StopReason::Changed
                && let Some(standing) = &mut *lock(&self.standing)
            {
                standing.peers.remove(&address);
            }
        }
    }

    /// Listens at this port, or at none.
    fn listen(&mut self, port: Option<u16>, accepted: &mpsc::Sender<(TcpStream, SocketAddr)>) {
        if self.listeners.as_ref().map(|(port, _)| *port) == port {
            return;
        }
        self.listeners = None;
        for accepting in self.accepting.drain(..) {
            accepting.abort();
        }
        let Some(port) = port else { return };
        let mut listeners = Vec::new();
        let mut deaf = None;
        for is_v6 in [false, true] {
            match socket::listen(is_v6, port) {
                Ok(listener) => {
                    let listener = Arc::new(listener);
                    self.accepting
                        .push(tokio::spawn(accept(Arc::clone(&listener), accepted.clone())));
                    listeners.push(listener);
                }
                Err(error) => {
                    tracing::error!(
                        port,
                        "BGP: cannot listen: {error}; another BGP daemon has the port, or CAP_NET_BIND_SERVICE is missing"
                    );
                    deaf = Some(format!("cannot listen at port {port}: {error}"));
                }
            }
        }
        if let Some(standing) = &mut *lock(&self.standing) {
            standing.deaf = deaf;
        }
        self.listeners = Some((port, listeners));
    }

    /// Lets a peer connect here.
    fn admit(&self, peer: &BgpPeer) {
        let listeners = self.listeners.iter().flat_map(|(_, listeners)| listeners);
        for listener in listeners {
            let is_v6 = listener.local_addr().is_ok_and(|address| address.is_ipv6());
            if is_v6 == peer.address.is_ipv6()
                && let Err(error) = socket::admit(listener, peer)
            {
                tracing::error!(peer = %peer.name, "BGP: its password cannot be set, so it cannot connect: {error}");
            }
        }
    }
}

/// Whether a session can go on: all but what it is told is as it was.
fn is_same_session(old: &BgpPeer, new: &BgpPeer) -> bool {
    let BgpPeer {
        announces, name, bfd, ..
    } = new;
    let told = BgpPeer {
        announces: announces.clone(),
        name: Arc::clone(name),
        bfd: *bfd,
        ..old.clone()
    };
    told == *new
}

async fn accept(listener: Arc<TcpListener>, accepted: mpsc::Sender<(TcpStream, SocketAddr)>) {
    loop {
        match listener.accept().await {
            Ok(arrival) => {
                if accepted.send(arrival).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "BGP: accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
