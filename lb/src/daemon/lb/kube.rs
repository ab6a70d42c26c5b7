//! A cluster as what the main loop is told by.
//!
//! Never changes anything because the cluster is away: what is not said changes nothing.

use std::{path::PathBuf, sync::Arc, time::Instant};

use lb_core::{
    config::LbConfig,
    desired::{BackendId, NextHop},
    drain::Drains,
    nexthop::NextHopView,
    plan::PlanError,
    worker::unclaimed_prefixes,
};
use operator_api::Origin;
use tokio::time::{interval, timeout};

use super::{Lb, NEXT_HOP_PATIENCE, Source, View, addresses, names};
use crate::{
    cli::report,
    control::{AcceptView, Answer, Listener, Request, Role},
    daemon::{
        cluster,
        lb::capture,
        life::{Life, Wake},
        tables::Tables,
        views,
    },
    metrics::Metrics,
    source::{
        file::{self, LbFile},
        kube::{
            KubeSettings,
            agent::{Link, Standing, Update, Word},
            announce::{AddressNames, Said},
            index::{Accepts, Snapshot},
        },
    },
};

/// The cluster, and this node's own settings.
pub(super) struct Kube {
    link: Link,
    node: Arc<str>,
    path: Option<PathBuf>,
    local: LbConfig,
    /// What the file says now, until it is applied.
    read: Option<LbConfig>,
    /// What was told last, until it is said to be in the maps.
    told: Option<Told>,
    /// Backends that the cluster drains until a time, as it was told last.
    drains: Drains,
    /// What is asked of announcing, as it was told last: for which addresses, and how.
    names: AddressNames,
    said: Arc<Said>,
}

/// An update in work.
struct Told {
    sequence: u64,
    since: Vec<Instant>,
}

/// The next update; never, where a file is the source.
pub(super) async fn next(source: &mut Source) -> Update {
    match source {
        Source::File(_) => std::future::pending().await,
        Source::Kube(kube) => kube.link.next().await,
    }
}

/// Lets what is held go.
pub(super) fn accept(source: &Source) -> Result<AcceptView, String> {
    match source {
        Source::File(_) => Err("this daemon is told by a file: nothing is held".to_owned()),
        Source::Kube(kube) => Ok(kube.accept()),
    }
}

impl Kube {
    /// Begins to listen.
    pub(super) async fn start(
        settings: KubeSettings,
        path: Option<PathBuf>,
        mut local: LbConfig,
    ) -> anyhow::Result<Self> {
        local.interfaces = cluster::interfaces(local.interfaces).await?;
        let (node, sources) = (Arc::clone(&settings.node), cluster::tunnel_sources(&local));
        let own = cluster::own(&node, &local);
        let link = cluster::off_this_thread(move || Link::start(settings, own, sources)).await?;
        Ok(Self {
            link,
            node,
            path,
            local,
            read: None,
            told: None,
            drains: Drains::default(),
            names: AddressNames::new(),
            said: Arc::default(),
        })
    }

    /// Tells the cluster's thread something.
    pub(super) fn tell(&self, word: Word) {
        self.link.tell(word);
    }

    /// Backends that the cluster drains until a time.
    pub(super) fn drains(&self) -> &Drains {
        &self.drains
    }

    /// Waits for the first word; `None` when it shall stop before.
    pub(super) async fn first(
        &mut self,
        life: &mut Life,
        listener: &mut Listener,
        metrics: &mut Metrics,
    ) -> anyhow::Result<Option<LbFile>> {
        tracing::info!(node = %self.node, "waiting for the cluster's word, or the cache's");
        let mut still = interval(cluster::STILL_WAITING.0);
        loop {
            tokio::select! {
                mut update = self.link.next() => {
                    self.take(&mut update);
                    self.told = Some(Told { sequence: update.snapshot.sequence, since: update.since });
                    let config = cluster::compose(&self.local, update.snapshot, &self.asks(), None);
                    let file = LbFile { config, seed: update.seed };
                    match Tables::rehearse(&file) {
                        Ok(()) => return Ok(Some(file)),
                        Err(error) => {
                            tracing::error!("what the cluster says does not go into the maps: {error}");
                            self.link.tell(Word::Refused { vip: error.vip(), why: error.to_string() });
                        }
                    }
                }
                wake = life.next() => match wake {
                    Wake::Stop(_) => return Ok(None),
                    Wake::Reload(_) => tracing::info!("nothing is served yet: the file is read at the next start"),
                },
                question = listener.next() => match question {
                    Some(question) => self.answer(question, life.started),
                    None => anyhow::bail!("the control socket closed"),
                },
                question = metrics.next() => {
                    question.with(super::metrics::waiting(life.started, self.link.standing()));
                }
                _ = still.tick() => cluster::still_waiting(&self.link.standing()),
            }
        }
    }

    /// Answers while nothing is served yet.
    fn answer(&self, question: Answer, started: Instant) {
        match question.request {
            Request::Status => {
                let config = cluster::config_name(self.path.as_deref());
                question.with(Ok(views::waiting(Role::Lb, &config, started, &self.link.standing())));
            }
            Request::KubeAccept => question.with(Ok(self.accept())),
            Request::Vips
            | Request::Backends
            | Request::Counters
            | Request::Explain { .. }
            | Request::Drain { .. }
            | Request::Undrain { .. }
            | Request::Drains
            | Request::DrainNode { .. }
            | Request::UndrainNode
            | Request::NodeDrain
            | Request::Bgp
            | Request::Capture { .. } => cluster::not_yet(question, &self.link.standing()),
        }
    }

    /// Keeps what of an update is not for the tables alone.
    fn take(&mut self, update: &mut Update) {
        self.drains = std::mem::take(&mut update.snapshot.drains);
        self.said = Arc::clone(&update.said);
        let names = std::mem::take(&mut update.snapshot.names);
        self.names = self.said.settled(names, &self.names);
    }

    fn asks(&self) -> cluster::Asks<'_> {
        cluster::Asks {
            node: &self.node,
            said: &self.said,
            names: &self.names,
        }
    }

    /// Who says what is announced by BGP, and on segments.
    pub(super) fn origins(&self) -> (Origin, Origin) {
        let origin = |is_of_file| if is_of_file { Origin::File } else { Origin::Cluster };
        (
            origin(self.local.bgp.is_some()),
            origin(cluster::is_l2_of_file(&self.local)),
        )
    }

    /// Lets what is held go.
    fn accept(&self) -> AcceptView {
        let held = self.link.standing().held;
        if held.is_some() {
            self.link.tell(Word::Accept);
        }
        AcceptView {
            vips: held.map_or(0, |(vips, _, _)| vips),
        }
    }

    /// Reads the file again; what the cluster says stays as it is.
    pub(super) fn read_again(&mut self, current: &LbFile) -> anyhow::Result<LbFile> {
        let mut local = file::read_lb_kube(self.path.as_deref())?;
        if local.interfaces.is_empty() {
            local.interfaces.clone_from(&self.local.interfaces);
        }
        let desired = &current.config.desired;
        let snapshot = Snapshot {
            vips: desired.vips.clone(),
            backends: desired.backends.clone(),
            departed: desired.departed.clone(),
            gone: desired.gone.clone(),
            tunnel: desired.tunnel.as_ref().map(|tunnel| Accepts {
                sources: tunnel.sources.clone(),
                vip_prefixes: tunnel.vip_prefixes.clone(),
            }),
            ..Snapshot::default()
        };
        let config = cluster::compose(&local, snapshot, &self.asks(), Some(&current.config));
        self.read = Some(local);
        Ok(LbFile {
            config,
            seed: current.seed,
        })
    }

    /// A file was applied: what of it is this node's own is what counts from now on.
    pub(super) fn take_local(&mut self) {
        if let Some(local) = self.read.take() {
            self.local = local;
        }
    }

    /// The end.
    pub(super) fn stop(self) {
        self.link.stop();
    }
}

impl Lb {
    /// Makes the maps say what the cluster says; where that does not go, they stay as they are and it is told why.
    pub(super) async fn absorb(&mut self, mut update: Update, view: &mut View) {
        let Source::Kube(kube) = &mut self.source else {
            return;
        };
        kube.take(&mut update);
        let drained = std::mem::replace(&mut self.tables.drains, kube.drains.clone());
        kube.told = Some(Told {
            sequence: update.snapshot.sequence,
            since: update.since,
        });
        let config = cluster::compose(&kube.local, update.snapshot, &kube.asks(), Some(&self.file.config));
        let new = LbFile {
            config,
            seed: update.seed,
        };
        self.withdraw_without(&new.config);
        let reached = self.reach_cluster(new, view).await;
        self.tell_routers();
        match reached {
            Ok(()) => {
                self.revision += 1;
                self.say_programmed();
            }
            Err(error) => {
                self.tables.drains = drained;
                let why = report(&error);
                let vip = error.downcast_ref::<PlanError>().and_then(PlanError::vip);
                tracing::error!("what the cluster says does not go into the maps, the state before it stays: {why}");
                if let Source::Kube(kube) = &self.source {
                    kube.link.tell(Word::Refused { vip, why });
                }
            }
        }
    }

    async fn reach_cluster(&mut self, mut new: LbFile, view: &mut View) -> anyhow::Result<()> {
        let fresh = self.tables.is_lost() || self.is_other_program(new.config.features());
        if fresh {
            tracing::info!("the program is replaced in place: features change");
            let result = self.apply(&new, true, view).await;
            let config = if result.is_ok() { &new.config } else { &self.file.config };
            self.driver.set_backends(addresses(&config.desired));
            result?;
            self.file = new;
            self.listen_to_members();
            self.watch_health();
            return Ok(());
        }
        let old = &self.file.config.desired;
        let moved = old.backends != new.config.desired.backends;
        if moved {
            let coming = |id: &&BackendId| !old.backends.contains_key(*id);
            let coming: Vec<BackendId> = new.config.desired.backends.keys().filter(coming).cloned().collect();
            let mut both = addresses(old);
            both.extend(addresses(&new.config.desired));
            self.driver.set_backends(both);
            wait_for(view, &coming).await;
        }
        let hops = {
            let now = view.borrow_and_update();
            // What is seen here wakes the main loop no more.
            if moved || now.has_changed() {
                self.health.hear(&now);
            }
            new.config.desired.own_addresses.clone_from(&now.own_addresses);
            if let Some(tunnel) = &mut new.config.desired.tunnel {
                tunnel.locals.clone_from(&now.own_addresses);
            }
            now.next_hops.clone()
        };
        let desired = &new.config.desired;
        let written = match self
            .unclaimed
            .set(&names(&new.config), &unclaimed_prefixes(desired, &hops))
            .await
        {
            Ok(()) => self.tables.reach(desired, &hops),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = written {
            if moved {
                self.driver.set_backends(addresses(&self.file.config.desired));
            }
            self.set_rules(&hops).await;
            return Err(error);
        }
        // What waits for the maps is told before the slow path's book is made: no flow of a new VIP is there yet.
        if let Source::Kube(kube) = &mut self.source
            && let Some(told) = &mut kube.told
        {
            kube.link.count_delays(&std::mem::take(&mut told.since));
        }
        if moved {
            // With those that flows still live at.
            self.driver.set_backends(self.tables.addresses());
        }
        self.own_addresses.clone_from(&desired.own_addresses);
        self.slow.publish(&new.config, desired, &hops, &self.tables.overlay);
        self.file = new;
        self.listen_to_members();
        self.watch_health();
        capture::tables_changed(self.capture.as_ref(), &self.tables, &self.attachments);
        Ok(())
    }

    /// This node has other addresses: it is on other segments, perhaps.
    pub(super) fn announce_again(&mut self) {
        let Source::Kube(kube) = &self.source else { return };
        cluster::announce(&mut self.file.config, &kube.local, &kube.asks());
        self.listen_to_members();
        self.tell_routers();
    }

    /// Says that the maps say what was told last.
    pub(super) fn say_programmed(&mut self) {
        let desired = &self.file.config.desired;
        let (vips, backends) = (desired.vips.len(), desired.backends.len());
        let Source::Kube(kube) = &mut self.source else {
            return;
        };
        let Some(told) = kube.told.take() else { return };
        kube.link.count_delays(&told.since);
        // Before: what has just changed must not be taken to be over.
        self.say_lively();
        if let Source::Kube(kube) = &self.source {
            kube.link.tell(Word::Programmed {
                sequence: told.sequence,
                vips,
                backends,
            });
        }
    }

    /// Says of which published transits some flow may still live elsewhere.
    pub(super) fn say_lively(&self) {
        if let Source::Kube(kube) = &self.source {
            let lively = self.tables.planner.lively_transits(&self.file.config.desired);
            kube.link.tell(Word::Lively(lively.into_iter().cloned().collect()));
        }
    }

    /// Says what of this node may have changed.
    pub(super) fn say_own(&self) {
        if let Source::Kube(kube) = &self.source {
            kube.link.tell(Word::Own {
                sources: cluster::tunnel_sources(&self.file.config),
                own: cluster::own(&kube.node, &self.file.config),
            });
        }
    }

    pub(super) fn standing(&self) -> Option<Standing> {
        match &self.source {
            Source::File(_) => None,
            Source::Kube(kube) => Some(kube.link.standing()),
        }
    }

    pub(super) fn config_name(&self) -> String {
        match &self.source {
            Source::File(path) => path.display().to_string(),
            Source::Kube(kube) => cluster::config_name(kube.path.as_deref()),
        }
    }
}

/// Waits a moment until backends that are new can be reached; those that cannot are what they are.
async fn wait_for(view: &mut View, coming: &[BackendId]) {
    if coming.is_empty() {
        return;
    }
    let known = |view: &NextHopView| {
        let known = |id| !matches!(view.next_hops.get(id), None | Some(NextHop::Unresolved));
        coming.iter().all(known)
    };
    // Time running out is an answer too.
    drop(timeout(NEXT_HOP_PATIENCE, view.wait_for(known)).await);
}
