//! The operator as a program: watches, queue, writes, events, election, metrics, command line.
//!
//! Never decides what to write: [`crate::decide`] does.
//!
//! ```text
//! watch ──> room (Index, journal) ──> queue ──> work ──> write ──> API server
//!                     ^                           │  └──> events
//!                     └────── the answer ─────────┘
//! ```

mod cli;
mod events;
mod explain;
mod fault;
mod http;
mod lead;
mod lease;
mod metrics;
mod queue;
mod refresh;
mod room;
mod state;
mod thread;
mod watch;
mod work;
mod write;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kube::Client;
use operator_api::LEADER_LEASE;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{events::Events, fault::Fault, lead::Leadership, lease::Candidate, room::Room, work::Worker, write::Writer};
use crate::{Subject, index::Settings};

pub use cli::main;
pub use fault::{FaultPlan, Side};
pub use thread::Operator;

/// Longest that writes in flight are waited for at the end.
const LAST_WRITES: Duration = Duration::from_secs(6);

/// How the operator runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace, class, selector.
    pub settings: Settings,
    /// This operator's name in the Lease and in Events; another for each.
    pub identity: String,
    /// Whether to compete for the Lease; without, it leads from the start.
    pub leader_elect: bool,
    /// Where `/metrics`, `/healthz` and `/readyz` are; `None`: nowhere. Port 0: a free one, see [`Operator::address`].
    pub listen: Option<SocketAddr>,
    /// Subjects that are worked on at a time.
    pub workers: usize,
    /// For tests: where to die.
    pub fault: Option<FaultPlan>,
}

impl Options {
    /// Workers, unless told otherwise.
    pub const WORKERS: usize = 16;

    /// Alone, without HTTP server and without faults: as tests want it.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            identity: "vipline-operator".to_owned(),
            leader_elect: false,
            listen: None,
            workers: Self::WORKERS,
            fault: None,
        }
    }
}

/// Why the operator stopped of itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port for HTTP cannot be had.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Another operator may lead now: this one must not write any more, and starts afresh as a candidate.
    #[error("the leader's Lease was lost")]
    LeaseLost,
    /// The fault that [`Options::fault`] asked for.
    #[error("stopped by a fault point")]
    Fault,
    /// A task of the operator ended, which none does.
    #[error("a part of the operator stopped: a bug of Vipline")]
    Stopped,
    /// The thread or its runtime cannot be made.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
}

/// Runs the operator until `shutdown`: then no new work is begun, writes in flight are waited for, and the Lease is given back.
/// Dropping the future instead is being killed: nothing is cleaned up.
pub async fn serve(client: Client, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    serve_with(client, options, shutdown, |_| {}).await
}

/// As [`serve`]; `listening` is told where the HTTP server is.
async fn serve_with(
    client: Client,
    options: Options,
    shutdown: impl Future<Output = ()>,
    listening: impl FnOnce(Option<SocketAddr>),
) -> Result<(), Error> {
    // Dropping a JoinSet aborts its tasks.
    let mut tasks = JoinSet::new();
    let room = Arc::new(Room::new(options.settings.clone()));
    let mut address = None;
    if let Some(wanted) = options.listen {
        let listen_error = |source| Error::Listen {
            address: wanted,
            source,
        };
        let listener = http::bind(wanted).await.map_err(listen_error)?;
        address = listener.local_addr().ok();
        tasks.spawn(http::serve(listener, room.clone()));
    }
    listening(address);
    let namespace = &options.settings.namespace;
    watch::start(&mut tasks, &room, &client, namespace);
    let (events, sender) = Events::new(client.clone(), &options.identity);
    tasks.spawn(sender.run(room.clone()));

    let mut candidate = Candidate::new(client.clone(), namespace, LEADER_LEASE, &options.identity);
    let leadership = if options.leader_elect {
        Leadership::default()
    } else {
        Leadership::alone()
    };
    let death = CancellationToken::new();
    let enough = CancellationToken::new();
    let mut workers = JoinSet::new();
    let lead = async {
        room.opened().await;
        tracing::info!("everything has been listed");
        if options.leader_elect {
            leadership.acquire(&mut candidate).await;
            tracing::info!(identity = options.identity, "leading");
        }
        room.metrics.leads(true);
        room.queue
            .add([Subject::Seed, Subject::NodeSets, Subject::Tunnel, Subject::Orphans]);
        let worker = Worker {
            room: room.clone(),
            writer: Writer::new(client.clone(), namespace),
            events,
            leadership: leadership.clone(),
            fault: Arc::new(Fault::new(options.fault)),
            death: death.clone(),
        };
        for _ in 0..options.workers.max(1) {
            workers.spawn(worker.clone().run(enough.clone()));
        }
        let (round, stop) = (refresh::run(room.clone()), enough.clone());
        workers.spawn(async move { _ = stop.run_until_cancelled(round).await });
        if options.leader_elect {
            leadership.keep(&mut candidate).await;
        } else {
            std::future::pending().await
        }
    };
    let end = tokio::select! {
        biased;
        () = death.cancelled() => Err(Error::Fault),
        () = lead => Err(Error::LeaseLost),
        Some(_) = tasks.join_next() => Err(Error::Stopped),
        () = shutdown => Ok(()),
    };
    room.metrics.leads(false);
    if end.is_ok() {
        enough.cancel();
        let finish = async { while workers.join_next().await.is_some() {} };
        drop(tokio::time::timeout(LAST_WRITES, finish).await);
        workers.abort_all();
        if options.leader_elect
            && let Err(error) = candidate.release().await
        {
            tracing::warn!(%error, "the leader's Lease was not given back: the next leader waits for its end");
        }
    }
    end
}
