//! BGP on the wire: connections, listeners, timers. Never decides what a session says, which is [`lb_core::bgp`]'s, nor which addresses
//! are announced; never runs on the daemon's thread, because peers wait for no table that is being built.
//!
//! | module | what it is |
//! |---|---|
//! | here | [`BgpDriver`]: what the daemon says, and what it may see |
//! | `speaker` | the thread: listeners, and a task for each peer |
//! | `peer` | the task: one session, its connections and its timer |
//! | `wire` | one connection: bytes in, bytes out, how long it may be stuck |
//! | `socket` | making connections and listeners with what a peer asks for |

mod peer;
mod socket;
mod speaker;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_core::{
    bfd::{Peer, Wanted},
    bgp::{Names, Session, SessionView, StopReason},
    config::{BgpConfig, BgpPeer},
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::bfd::{Bfd, BfdView};

/// Longest wait for sessions to say their last words.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why nobody is spoken to.
#[derive(Debug, Error)]
pub enum BgpError {
    /// Nothing to be called by.
    #[error("this node has no IPv4 address to be called by in BGP: give `bgp.router_id`")]
    NoRouterId,
    /// `pthread_create(3)`, `epoll_create1(2)`.
    #[error("the thread of BGP cannot be made: {0}")]
    Thread(#[from] io::Error),
}

/// What is announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// VIP addresses that are programmed here, and by what they are announced.
    pub addresses: BTreeMap<IpAddr, Names>,
    /// Whether this node drains: what it announces is the last way that anyone takes (RFC 8326).
    pub draining: bool,
}

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Configure(Option<(Box<BgpConfig>, Ipv4Addr)>),
    Announce(Announced),
    Stop(StopReason, oneshot::Sender<()>),
}

/// A peer and its session.
#[derive(Clone, Debug)]
pub struct PeerStanding {
    /// As configured.
    pub peer: BgpPeer,
    /// Its session; times are since [`Standing::start`].
    pub session: SessionView,
}

/// All that may be seen of the speaker.
#[derive(Clone, Debug)]
pub struct Standing {
    /// This node's ASN.
    pub local_asn: u32,
    /// Its name in BGP.
    pub router_id: Ipv4Addr,
    /// What times are counted from.
    pub start: Instant,
    /// Why nobody can connect, where somebody should.
    pub deaf: Option<String>,
    /// Peers by their addresses.
    pub peers: BTreeMap<IpAddr, PeerStanding>,
}

/// Speaks BGP on a thread of its own, in the network namespace of the thread that starts it. Dropping it ends the thread, and sessions
/// without a word.
#[derive(Debug)]
pub struct BgpDriver {
    orders: mpsc::UnboundedSender<Order>,
    standing: Arc<Mutex<Option<Standing>>>,
    config: Option<BgpConfig>,
    announced: Announced,
    thread: Option<JoinHandle<()>>,
    resumed: bool,
    /// Watches those peers that are to be.
    bfd: Bfd,
}

impl BgpDriver {
    /// Starts without peers. `resumed`: packets are forwarded since a process before this one, which peers are told so that they keep
    /// its routes.
    pub fn new(resumed: bool, bfd: Bfd) -> Self {
        // A driver that nobody configures has no thread; what it is told goes nowhere.
        let (orders, _) = mpsc::unbounded_channel();
        Self {
            orders,
            standing: Arc::default(),
            config: None,
            announced: Announced::default(),
            thread: None,
            resumed,
            bfd,
        }
    }

    /// Speaks to these peers from now on: sessions of peers that did not change go on, and only what they are told changes.
    ///
    /// # Errors
    ///
    /// [`BgpError`]; whoever was spoken to is spoken to as before.
    pub fn configure(&mut self, config: Option<&BgpConfig>) -> Result<(), BgpError> {
        if self.differs(config) {
            let router_id = |config: &BgpConfig| config.router_id.or_else(socket::first_v4).ok_or(BgpError::NoRouterId);
            let named = match config {
                Some(config) => Some((config, router_id(config)?)),
                None => None,
            };
            if self.thread.is_none() {
                let (orders, inbox) = mpsc::unbounded_channel();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let (bfd, changes) = self.bfd.another();
                let speaker = speaker::Speaker::new(inbox, Arc::clone(&self.standing), self.resumed, changes);
                let thread = std::thread::Builder::new()
                    .name("bgp".into())
                    .spawn(move || runtime.block_on(speaker.run()))?;
                (self.orders, self.thread, self.bfd) = (orders, Some(thread), bfd);
                // Before the first session: its first table is whole.
                self.order(Order::Announce(self.announced.clone()));
            }
            self.config = config.cloned();
            if let Some((config, router_id)) = named {
                self.show_new(config, router_id);
            }
            self.order(Order::Configure(
                named.map(|(config, router_id)| (Box::new(config.clone()), router_id)),
            ));
            let peers = config.into_iter().flat_map(|config| &config.peers);
            self.bfd.set(peers.filter_map(wanted));
        }
        Ok(())
    }

    /// Shows peers that are new, before their sessions begin.
    fn show_new(&self, config: &BgpConfig, router_id: Ipv4Addr) {
        let mut standing = lock(&self.standing);
        let standing = standing.get_or_insert_with(|| Standing {
            local_asn: config.local_asn,
            router_id,
            start: Instant::now(),
            deaf: None,
            peers: BTreeMap::new(),
        });
        (standing.local_asn, standing.router_id) = (config.local_asn, router_id);
        for peer in &config.peers {
            standing.peers.entry(peer.address).or_insert_with(|| PeerStanding {
                peer: peer.clone(),
                session: Session::new(peer.session.clone(), router_id, 0, false).view(),
            });
        }
    }

    /// Whether this is another configuration than the one in force.
    pub fn differs(&self, config: Option<&BgpConfig>) -> bool {
        config != self.config.as_ref()
    }

    /// Announces these and no others.
    pub fn announce(&mut self, announced: Announced) {
        if announced != self.announced {
            self.order(Order::Announce(announced.clone()));
            self.announced = announced;
        }
    }

    /// How BFD stands with the peers that are watched.
    pub fn liveness(&self) -> BTreeMap<IpAddr, BfdView> {
        let peers = self.config.iter().flat_map(|config| &config.peers);
        let watched: BTreeSet<IpAddr> = peers
            .filter(|peer| peer.bfd.is_some())
            .map(|peer| peer.address)
            .collect();
        let views = self
            .bfd
            .views()
            .into_iter()
            .map(|view| (view.is.wanted.peer.address, view));
        views.filter(|(address, _)| watched.contains(address)).collect()
    }

    /// Whether peers keep routes while this process is away.
    pub fn restarts_gracefully(&self) -> bool {
        let graceful = |peer: &BgpPeer| peer.session.restart_time_s.is_some();
        self.config
            .as_ref()
            .is_some_and(|config| config.peers.iter().any(graceful))
    }

    /// Ends all sessions, and waits a moment until everyone has been told.
    pub async fn stop(self, reason: StopReason) {
        let (done, waits) = oneshot::channel();
        self.order(Order::Stop(reason, done));
        if self.thread.is_some() && tokio::time::timeout(LAST_WORDS, waits).await.is_err() {
            tracing::warn!("a BGP peer did not take its last message");
        }
    }

    /// How sessions stand; `None`: BGP is not configured.
    pub fn standing(&self) -> Option<Standing> {
        self.config.as_ref()?;
        lock(&self.standing).clone()
    }

    /// What is announced.
    pub fn announced(&self) -> &Announced {
        &self.announced
    }

    fn order(&self, order: Order) {
        // It fails only where there is no thread.
        let _ = self.orders.send(order);
    }
}

/// A peer's session of BFD, where it is to have one.
fn wanted(peer: &BgpPeer) -> Option<Wanted> {
    peer.bfd.map(|bfd| Wanted {
        peer: Peer::new(peer.address),
        local: peer.source,
        reach: bfd.reach,
        timers: bfd.timers,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
