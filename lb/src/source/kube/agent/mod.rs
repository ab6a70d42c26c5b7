//! The LB node's thread: watches, keeps the index, hands snapshots to the daemon, says how far they are, and keeps a cache.
//!
//! Never touches a map and never waits for the daemon: while one snapshot is being written, events gather for the next.

mod listen;
mod waits;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use lb_core::{config::SeedKey, desired::VipKey};
use tokio::sync::{mpsc, watch};

pub use self::waits::{Awaited, Wait, Waits};
use self::work::Agent;
pub use super::watch::Kind;
use super::{
    announce::Said,
    client::{self, ConnectError, KubeSettings},
    delay::Delays,
    index::{Failing, Own, Revisions, Snapshot},
    watch::Told,
    wish::Wish,
};

/// Something for the maps.
#[derive(Debug)]
pub struct Update {
    /// What they should say.
    pub snapshot: Snapshot,
    /// What is asked of announcing.
    pub said: Arc<Said>,
    /// The seed: the same for the life of the process.
    pub seed: SeedKey,
    /// When the events came that made it: not all, where there were very many.
    pub since: Vec<Instant>,
}

/// What the daemon hears of its cluster.
#[derive(Debug)]
pub enum Heard {
    /// Something for the maps.
    Update(Box<Update>),
    /// What it wants of this node itself.
    Wish(Wish),
}

/// What the daemon tells its cluster's thread.
#[derive(Debug)]
pub enum Word {
    /// The maps say what the snapshot of this sequence said; VIPs and backends in them.
    Programmed {
        /// Of the snapshot.
        sequence: u64,
        /// VIPs in the match table.
        vips: usize,
        /// Backends with a line.
        backends: usize,
    },
    /// Published transits by which some flow may still go, by who publishes them.
    Lively(BTreeSet<Arc<str>>),
    /// The maps say what they said before.
    Refused {
        /// The VIP that the planner named.
        vip: Option<VipKey>,
        /// Why.
        why: String,
    },
    /// This node's own settings: its outer sources for the LbNode, and what tables must agree with.
    Own {
        /// As CIDR blocks.
        sources: Vec<String>,
        /// The others.
        own: Own,
    },
    /// What this node announces.
    Announcing(Box<operator_api::Announcing>),
    /// What is held shall go through.
    Accept,
}

/// How things stand, for `vipline status`.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Whose words they are.
    pub server: String,
    /// The operator's namespace.
    pub namespace: String,
    /// What cannot be learnt at the moment, with the reason, and since when.
    pub away: BTreeMap<Kind, (Instant, String)>,
    /// What was heard of at least once.
    pub heard: BTreeSet<Kind>,
    /// Since when all can.
    pub connected: Option<Instant>,
    /// What serving waits for; empty when it does not.
    pub waiting: Waits,
    /// What runs came from the cache, and the API server has said nothing yet.
    pub from_cache: bool,
    /// How far the maps are.
    pub revisions: Revisions,
    /// Tables that fail.
    pub failing: Failing,
    /// VIPs that are held, of how many, and until when.
    pub held: Option<(usize, usize, Instant)>,
    /// What is wrong with the seed.
    pub seed_alarm: Option<String>,
    /// What the maps refused as a whole.
    pub trouble: Option<String>,
    /// From event to maps.
    pub delays: Delays,
}

/// The daemon's end of the thread.
pub struct Link {
    updates: mpsc::Receiver<Update>,
    wishes: watch::Receiver<Wish>,
    words: mpsc::UnboundedSender<Word>,
    standing: Arc<Mutex<Standing>>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When there is no way to the API server at all; that it does not answer is none.
    pub fn start(settings: KubeSettings, own: Own, sources: Vec<String>) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, origin) = runtime.block_on(client::connect(&settings))?;
        let standing = Arc::new(Mutex::new(Standing {
            server: origin.server.clone(),
            namespace: origin.namespace.clone(),
            ..Standing::default()
        }));
        let (update_sender, updates) = mpsc::channel(1);
        let (words, word_receiver) = mpsc::unbounded_channel();
        let (wish, wishes) = watch::channel(Wish::default());
        let agent = Agent::new(settings, origin, own, sources, update_sender, Arc::clone(&standing));
        let thread = std::thread::Builder::new().name("kube".into()).spawn(move || {
            runtime.block_on(agent.run(client, word_receiver, wish));
        })?;
        Ok(Self {
            updates,
            wishes,
            words,
            standing,
            thread: Some(thread),
        })
    }

    /// The next thing for the maps; waits forever when the thread is gone.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            None => {
                tracing::error!("the cluster's thread ended: nothing is learnt any more until a restart");
                std::future::pending().await
            }
        }
    }

    /// As [`Self::next`], or another wish of the cluster's for this node. Nothing is lost when it is dropped while it waits.
    pub async fn hear(&mut self) -> Heard {
        let Self { updates, wishes, .. } = self;
        tokio::select! {
            Some(update) = updates.recv() => Heard::Update(Box::new(update)),
            Ok(()) = wishes.changed() => Heard::Wish(*wishes.borrow_and_update()),
            else => {
                tracing::error!("the cluster's thread ended: nothing is learnt any more until a restart");
                std::future::pending().await
            }
        }
    }

    /// Tells the thread something.
    pub fn tell(&self, word: Word) {
        // A thread that is gone has been complained of.
        drop(self.words.send(word));
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        lock(&self.standing).clone()
    }

    /// Counts from when events came until now.
    pub fn count_delays(&self, since: &[Instant]) {
        let mut standing = lock(&self.standing);
        since.iter().for_each(|at| standing.delays.count(at.elapsed()));
    }

    /// Ends the thread; it writes its cache before.
    pub fn stop(mut self) {
        let thread = self.thread.take();
        drop(self);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the cluster's thread ended badly");
        }
    }
}

pub(super) fn lock(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what cannot be learnt, and says when that begins and ends. `kinds`: how many are watched.
pub(super) fn note_away<S>(standing: &Mutex<Standing>, kind: Kind, told: &Told<S>, kinds: usize) {
    let mut standing = lock(standing);
    let now = Instant::now();
    match told {
        Told::Away(why) => {
            let new = standing.away.get(&kind).is_none_or(|(_, before)| before != why);
            if new {
                tracing::warn!("{kind} cannot be watched, what they said last holds: {why}");
            }
            let since = standing.away.get(&kind).map_or(now, |(since, _)| *since);
            standing.away.insert(kind, (since, why.clone()));
            standing.connected = None;
        }
        Told::List(_) | Told::Apply(_) | Told::Delete(..) | Told::Back => {
            if standing.away.remove(&kind).is_some() {
                tracing::info!("{kind} can be watched again");
            }
            standing.heard.insert(kind);
            if standing.away.is_empty() && standing.heard.len() == kinds && standing.connected.is_none() {
                standing.connected = Some(now);
            }
        }
    }
}
