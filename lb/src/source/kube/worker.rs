//! The worker node's thread: watches the TunnelConfig, hands it to the daemon, and keeps a cache.
//!
//! Never takes anything away because the API server is away, or because the TunnelConfig was deleted.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use kube::Api;
use operator_api::{Lean, TUNNEL_CONFIG, TunnelConfig, TunnelConfigSpec};
use tokio::sync::{mpsc, watch as latest};

use super::{
    agent::{Awaited, Standing, Waits, lock, note_away},
    announce,
    cache::{Cache, Origin},
    client::{self, ConnectError, KubeSettings},
    index::{Accepts, Kept, TableError},
    object::Received,
    watch::{self, Kind, Told},
};

/// How long the API server has at a start before what the cache says is taken.
const HEAD_START: Duration = Duration::from_secs(5);

/// The daemon's end of the thread.
pub struct WorkerLink {
    accepts: latest::Receiver<Option<Accepts>>,
    standing: Arc<Mutex<Standing>>,
}

impl WorkerLink {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When there is no way to the API server at all; that it does not answer is none.
    pub fn start(settings: KubeSettings) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, origin) = runtime.block_on(client::connect(&settings))?;
        let mut standing = Standing {
            server: origin.server.clone(),
            namespace: origin.namespace.clone(),
            ..Standing::default()
        };
        let awaited = vec![(Awaited::Tunnel, "the TunnelConfig".to_owned())];
        standing.waiting.are(Instant::now(), awaited);
        let standing = Arc::new(Mutex::new(standing));
        let (sender, accepts) = latest::channel(None);
        let shared = Arc::clone(&standing);
        std::thread::Builder::new().name("kube".into()).spawn(move || {
            let objects = Api::<Lean<Received<TunnelConfig>>>::namespaced(client, &settings.namespace);
            let only = watch::config().fields(&format!("metadata.name={TUNNEL_CONFIG}"));
            runtime.block_on(async {
                let (to, heard) = mpsc::channel(16);
                tokio::spawn(watch::follow(objects, only, |told, _| told, to));
                follow(&settings, &origin, heard, &sender, &shared).await;
            });
        })?;
        Ok(Self { accepts, standing })
    }

    /// What the node shall accept, as soon as it is known.
    pub async fn first(&mut self) -> Accepts {
        loop {
            if let Some(accepts) = self.accepts.borrow_and_update().clone() {
                return accepts;
            }
            self.changed().await;
        }
    }

    /// Waits for a change; forever when the thread is gone.
    pub async fn changed(&mut self) {
        if self.accepts.changed().await.is_err() {
            tracing::error!("the cluster's thread ended: nothing is learnt any more until a restart");
            std::future::pending::<()>().await;
        }
    }

    /// What was said last.
    pub fn accepts(&mut self) -> Accepts {
        self.accepts.borrow_and_update().clone().unwrap_or_default()
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        lock(&self.standing).clone()
    }
}

async fn follow(
    settings: &KubeSettings,
    origin: &Origin,
    mut heard: mpsc::Receiver<Told<TunnelConfigSpec>>,
    to: &latest::Sender<Option<Accepts>>,
    standing: &Mutex<Standing>,
) {
    let recalled = match Cache::read(&settings.cache, origin) {
        Ok(recalled) => recalled.and_then(|recalled| recalled.tunnel),
        Err(error) => {
            tracing::error!("the cache is not used: {error}");
            None
        }
    };
    let head_start = tokio::time::Instant::from_std(Instant::now() + HEAD_START);
    let mut recalled = recalled;
    loop {
        let told = if recalled.is_some() {
            match tokio::time::timeout_at(head_start, heard.recv()).await {
                Ok(told) => told,
                Err(_) => {
                    let spec = recalled.take().unwrap_or_default();
                    tracing::warn!(
                        "the API server has said nothing yet: what was accepted last is accepted, from the cache"
                    );
                    match Accepts::parse(&spec) {
                        Ok(accepts) => {
                            to.send_replace(Some(accepts));
                            let mut standing = lock(standing);
                            standing.from_cache = true;
                            standing.waiting = Waits::default();
                        }
                        Err(error) => tracing::error!("what the cache says cannot be read: {error}"),
                    }
                    continue;
                }
            }
        } else {
            heard.recv().await
        };
        let Some(told) = told else { return };
        note_away(standing, Kind::Tunnel, &told, 1);
        let object = match told {
            Told::List(list) => list.into_iter().find(|object| *object.name == *TUNNEL_CONFIG),
            Told::Apply(object) => Some(object),
            Told::Delete(..) => {
                tracing::warn!("the TunnelConfig was deleted: what it said last holds");
                None
            }
            Told::Away(_) | Told::Back => None,
        };
        let Some(object) = object else { continue };
        let revision = object.revision;
        let spec = object.spec.map_err(|why| TableError::Unreadable { why });
        match spec.and_then(|spec| Ok((Accepts::parse(&spec)?, spec))) {
            Ok((accepts, spec)) => {
                recalled = None;
                to.send_if_modified(|before| {
                    let other = before.as_ref() != Some(&accepts);
                    *before = Some(accepts);
                    other
                });
                let mut standing = lock(standing);
                standing.from_cache = false;
                standing.waiting = Waits::default();
                standing.revisions.tables = revision;
                drop(standing);
                save(settings, origin, spec);
            }
            Err(error) => tracing::error!("the TunnelConfig changes nothing: {error}"),
        }
    }
}

fn save(settings: &KubeSettings, origin: &Origin, spec: TunnelConfigSpec) {
    let kept = Kept {
        tables: Vec::new(),
        chunks: Vec::new(),
        tunnel: Some(spec),
    };
    if let Err(error) = Cache::new(origin, None, kept, announce::Kept::default()).write(&settings.cache) {
        tracing::error!("the cache is not written: {error}");
    }
}
