//! The LB node's daemon: one loop that owns everything, woken by signals, the file, the kernel's next hops and the control socket.

mod announcing;
mod bgp;
mod capture;
mod drain;
mod health;
mod kube;
mod leave;
mod metrics;
mod paths;
mod start;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_core::{
    announce::Mac,
    config::{
        Encap, LbConfig,
        reload::{self, Loaded, Refusal, Reload},
    },
    desired::{BackendId, Desired, NextHop, NextHops},
    drain::Drains,
    nexthop::{NextHopView, Settings, Sources},
    slow::Event,
    worker::unclaimed_prefixes,
};
use tokio::{
    sync::watch,
    time::{Interval, timeout},
};

use super::{
    attach::sweep,
    explain,
    left::Keeping,
    life::{self, Life, Wake},
    slow::Slow,
    tables::Tables,
    unclaimed::Unclaimed,
    views,
};
use crate::{
    announce::{bfd::Liveness, bgp::BgpDriver},
    cli::report,
    control::{Answer, CounterView, Listener, Request, Role, StatusView},
    datapath::{Attachment, Pins},
    health::HealthDriver,
    metrics::Metrics,
    nexthop::NextHopDriver,
    source::{
        file::{self, LbFile, Watch},
        kube::{KubeSettings, agent::Heard},
    },
};

/// Longest wait for the kernel to answer for every backend.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for the next hops of backends that are new: those that cannot be reached must not keep the others waiting.
const NEXT_HOP_PATIENCE: Duration = Duration::from_secs(1);

/// How often flow records are swept, and slots in transit looked at, to end what is over.
const AGING: Duration = Duration::from_secs(2);

/// How often the cluster is told of what has changed of announcing; an LbNode is written once a second at most.
const SAYING: Duration = Duration::from_secs(1);

type View = watch::Receiver<NextHopView>;

/// Who says what the tables hold.
enum Source {
    /// A file.
    File(PathBuf),
    /// A cluster, and a file for this node's own settings.
    Kube(Box<kube::Kube>),
}

struct Lb {
    source: Source,
    file: LbFile,
    driver: NextHopDriver,
    health: HealthDriver,
    /// As it was last said.
    left: health::Left,
    tables: Tables,
    slow: Slow,
    capture: Option<capture::Capture>,
    /// Those that the tables were written for.
    own_addresses: BTreeSet<IpAddr>,
    attachments: Vec<Attachment>,
    /// Where they outlive this process, if they do.
    pins: Option<Pins>,
    unclaimed: Unclaimed,
    revision: u64,
    started: Instant,
    last_reload: (Instant, Option<String>),
    /// When the file was applied and refused last.
    read: metrics::Read,
    metrics: Metrics,
    /// When flow records and slots in transit are looked at.
    aging: Interval,
    /// Where drains are kept.
    kept: drain::Kept,
    /// While it gives all VIP addresses away, and when it looks how far it is.
    leaving: Option<leave::Leaving>,
    looking: Interval,
    /// What the cluster was told of announcing, and when it is told again.
    said: announcing::Said,
    saying: Interval,
    /// Who is told of VIP addresses.
    bgp: BgpDriver,
    /// Last: those who listen to this node are told that it goes when it answers for nothing any more.
    paths: paths::Paths,
}

/// Serves until it is told to stop.
pub(super) async fn serve(path: &Path, file: LbFile, watch: Watch, keeping: &Keeping) -> anyhow::Result<ExitCode> {
    let life = Life::new(watch)?;
    let listener = Listener::open(&file.config.control_socket)?;
    let metrics = Metrics::start(file.config.metrics_listen)?;
    serve_from(Source::File(path.to_owned()), file, life, listener, metrics, keeping).await
}

/// Serves what a cluster says until it is told to stop; not before it has said it, or the cache.
pub(super) async fn serve_kube(
    settings: KubeSettings,
    path: Option<PathBuf>,
    local: LbConfig,
    watch: Watch,
    keeping: &Keeping,
) -> anyhow::Result<ExitCode> {
    let mut life = Life::new(watch)?;
    let mut listener = Listener::open(&local.control_socket)?;
    let mut metrics = Metrics::start(local.metrics_listen)?;
    let mut kube = kube::Kube::start(settings, path, local).await?;
    match kube.first(&mut life, &mut listener, &mut metrics).await? {
        Some(file) => serve_from(Source::Kube(Box::new(kube)), file, life, listener, metrics, keeping).await,
        None => {
            kube.stop();
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn serve_from(
    source: Source,
    file: LbFile,
    mut life: Life,
    mut listener: Listener,
    metrics: Metrics,
    keeping: &Keeping,
) -> anyhow::Result<ExitCode> {
    let (driver, mut view) = NextHopDriver::start(settings(&file.config), addresses(&file.config.desired))?;
    timeout(PATIENCE, view.wait_for(|view| view.complete))
        .await
        .context("the kernel did not answer for every backend in time")?
        .context("next hops are no longer followed")?;
    wait_for_next_hops(&mut view, &file.config.desired).await;

    let started = Lb::start(source, file, driver, (&view, life.started), metrics, keeping).await;
    let mut lb = match started {
        // It does not get better by trying again.
        Err(error) if error.is::<Refusal>() => {
            tracing::error!("{error}");
            return Ok(ExitCode::from(super::EXIT_UNUSABLE));
        }
        started => started?,
    };
    life::tell(&[sd_notify::NotifyState::Ready]);
    let why = loop {
        tokio::select! {
            wake = life.next() => match wake {
                Wake::Stop(why) => break why,
                Wake::Reload(cause) => {
                    tracing::info!(%cause, "reading the configuration again");
                    lb.reload(&mut view).await;
                }
            },
            changed = view.changed() => {
                changed.context("next hops are no longer followed")?;
                lb.follow(&mut view).await;
            }
            _ = lb.aging.tick(), if lb.file.config.transit.enabled => lb.age(&view),
            _ = lb.looking.tick(), if lb.leaving.is_some() => lb.look_at_leaving(),
            _ = lb.saying.tick() => lb.say_announcing(),
            overlay = lb.health.changed() => lb.heed_health(overlay, &view.borrow()),
            event = lb.slow.event() => lb.heed(event),
            (peer, liveness) = lb.paths.next() => lb.slow.hear_member(peer.address, liveness == Liveness::Up),
            question = listener.next() => match question {
                Some(question) => lb.answer(question, &mut view).await,
                None => anyhow::bail!("the control socket closed"),
            },
            ended = capture::ended(&mut lb.capture) => lb.end_capture(ended, &mut view).await,
            heard = kube::next(&mut lb.source) => match heard {
                Heard::Update(update) => lb.absorb(*update, &mut view).await,
                Heard::Wish(wish) => lb.heed_wish(wish),
            },
            question = lb.metrics.next() => question.with(lb.facts(&view.borrow())),
        }
    };
    tracing::info!(signal = why, "stopping");
    life::tell(&[sd_notify::NotifyState::Stopping]);
    lb.leave_at_stop(&mut life).await;
    lb.stop().await?;
    Ok(ExitCode::SUCCESS)
}

impl Lb {
    /// Next hops or this node's addresses changed.
    async fn follow(&mut self, view: &mut View) {
        let view = view.borrow_and_update().clone();
        self.health.hear(&view);
        self.slow.cut_off(!view.down.is_empty());
        self.set_rules(&view.next_hops).await;
        let followed = if view.own_addresses == self.own_addresses {
            self.tables.follow(&view.next_hops)
        } else {
            let reached = self.tables.reach(&self.desired(&view), &view.next_hops);
            if reached.is_ok() {
                self.own_addresses.clone_from(&view.own_addresses);
                self.announce_again();
                self.say_own();
                capture::tables_changed(self.capture.as_ref(), &self.tables, &self.attachments);
            }
            reached
        };
        match followed {
            Ok(0) => {}
            Ok(writes) => {
                self.revision += 1;
                tracing::info!(writes, revision = self.revision, "next hops changed");
            }
            Err(error) => tracing::error!("next hops changed and the tables did not follow: {}", report(&error)),
        }
        // Whatever came of it, the slow path learns of next hops and tries again what waits for them.
        self.publish(&self.desired(&view), &view);
    }

    /// What the configuration in force asks of the tables.
    fn desired(&self, view: &NextHopView) -> Desired {
        desired(&self.file.config, &self.tables.drains, view)
    }

    /// Tells the slow path what is desired under the configuration in force.
    fn publish(&mut self, desired: &Desired, view: &NextHopView) {
        let (config, overlay) = (&self.file.config, &self.tables.overlay);
        self.slow.publish(config, desired, &view.next_hops, overlay);
        self.tell_routers_of_addresses();
    }

    /// Sweeps flow records, ends the transit of slots of which nothing lives elsewhere any more, and forgets backends that had to be
    /// kept for them.
    fn age(&mut self, view: &View) {
        if let Err(error) = self.tables.sweep() {
            tracing::error!("flow records were not swept: {}", report(&error));
        }
        let planner = &self.tables.planner;
        if !planner.is_in_transit() && !planner.has_departed() {
            return;
        }
        let view = view.borrow().clone();
        let backends = self.tables.planner.backends().count();
        match self.tables.reach(&self.desired(&view), &view.next_hops) {
            Ok(0) => {}
            Ok(writes) => {
                self.revision += 1;
                tracing::debug!(writes, revision = self.revision, "slots left transit");
                if !self.tables.planner.is_in_transit() {
                    tracing::info!(revision = self.revision, "no slot is in transit any more");
                }
                capture::tables_changed(self.capture.as_ref(), &self.tables, &self.attachments);
            }
            Err(error) => tracing::error!("slots in transit were not looked at: {}", report(&error)),
        }
        if self.tables.planner.backends().count() != backends {
            self.driver.set_backends(self.tables.addresses());
            self.forget_drains();
            self.watch_health();
        }
        self.say_lively();
    }

    /// Does what the slow path asks for.
    fn heed(&mut self, event: Option<Event>) {
        match event {
            Some(Event::NextHopWanted(index)) => {
                if let Some(backend) = self.tables.planner.backend_at(index) {
                    self.driver.want(backend.clone());
                }
            }
            Some(Event::AddressConflict(address, mac)) => self.slow.hear_of_owner(address, Mac(mac)),
            None => {}
        }
    }

    /// Makes the rules those of the configuration in force; what goes wrong is said.
    async fn set_rules(&mut self, hops: &NextHops) {
        let prefixes = unclaimed_prefixes(&self.file.config.desired, hops);
        if let Err(error) = self.unclaimed.set(&names(&self.file.config), &prefixes).await {
            tracing::error!("{error}");
        }
    }

    async fn reload(&mut self, view: &mut View) {
        life::tell(&[sd_notify::NotifyState::Reloading]);
        let result = self.try_reload(view).await;
        if let Err(error) = &result {
            tracing::error!("configuration refused, the state before it stays:\n{}", report(error));
        }
        self.last_reload = (Instant::now(), result.err().map(|error| report(&error)));
        self.read.again(&self.last_reload);
        life::tell(&[sd_notify::NotifyState::Ready]);
    }

    async fn try_reload(&mut self, view: &mut View) -> anyhow::Result<()> {
        let new = match &mut self.source {
            Source::File(path) => file::read_lb(path)?,
            Source::Kube(kube) => kube.read_again(&self.file)?,
        };
        let decision = reload::decide(loaded(&self.file), loaded(&new));
        let fresh = match &decision {
            Reload::Apply => self.tables.is_lost() || self.is_other_program(new.config.features()),
            Reload::ReplaceProgram { why } => {
                let why: Vec<String> = why.iter().map(ToString::to_string).collect();
                tracing::info!("the program is replaced in place: {}", why.join("; "));
                true
            }
            Reload::Refuse { why } => {
                let why: Vec<String> = why.iter().map(ToString::to_string).collect();
                anyhow::bail!("{}", why.join("\n"));
            }
        };
        for warning in new.config.warnings() {
            tracing::warn!("{warning}");
        }
        self.withdraw_without(&new.config);
        let result = self.apply(&new, fresh, view).await;
        if result.is_err() {
            self.tell_routers();
            // What was prepared for the new file goes back to what the old one says.
            self.driver.set_settings(settings(&self.file.config));
            self.driver.set_backends(self.tables.addresses());
            let hops = view.borrow().next_hops.clone();
            self.set_rules(&hops).await;
            return result;
        }
        self.driver.set_backends(self.tables.addresses());
        if let Source::Kube(kube) = &mut self.source {
            kube.take_local();
        }
        self.metrics.listen(new.config.metrics_listen);
        self.file = new;
        self.tell_routers();
        self.forget_drains();
        self.watch_health();
        self.listen_to_members();
        self.slow.ask_again();
        self.revision += 1;
        self.say_own();
        tracing::info!(revision = self.revision, "configuration applied");
        Ok(())
    }

    async fn apply(&mut self, new: &LbFile, fresh: bool, view: &mut View) -> anyhow::Result<()> {
        // Old and new backends are followed until the change is done, so that slots move to what can be reached.
        let mut both = self.tables.addresses();
        both.extend(addresses(&new.config.desired));
        self.driver.set_settings(settings(&new.config));
        self.driver.set_backends(both);
        wait_for_next_hops(view, &new.config.desired).await;
        let now = view.borrow_and_update().clone();
        self.health.hear(&now);
        let desired = desired(&new.config, &self.tables.drains, &now);
        // Rules first: what the new tables hand up must not get away.
        self.unclaimed
            .set(&names(&new.config), &unclaimed_prefixes(&desired, &now.next_hops))
            .await?;
        if fresh {
            self.replace(new, &desired, &now.next_hops)?;
        } else {
            let old = &self.file.config;
            self.slow.reconfigure(old, &new.config, &mut self.tables.balancer)?;
            self.tables.set_transit(new.config.transit);
            if let Err(error) = self.tables.reach(&desired, &now.next_hops) {
                self.tables.set_transit(old.transit);
                self.slow
                    .reconfigure(&new.config, old, &mut self.tables.balancer)
                    .context("nor can the slow path be as it was")?;
                return Err(error);
            }
            capture::tables_changed(self.capture.as_ref(), &self.tables, &self.attachments);
        }
        let overlay = &self.tables.overlay;
        self.slow.publish(&new.config, &desired, &now.next_hops, overlay);
        self.own_addresses = desired.own_addresses;
        Ok(())
    }

    /// Loads a program anew and puts it, its tables and its sockets in place of those that serve.
    fn replace(&mut self, new: &LbFile, desired: &Desired, hops: &NextHops) -> anyhow::Result<()> {
        let old = &self.file.config;
        let more = capture::features(self.capture.as_ref());
        let mut tables = Tables::load(new, more, Some(&self.tables))?;
        tables.reach(desired, hops)?;
        let rings = capture::prepare(self.capture.as_ref(), &mut tables)?;
        let ready = self.slow.make_ready(old, &new.config, &mut tables.balancer);
        let ready = ready.and_then(|()| tables.take_records(&self.tables));
        let taken = ready.and_then(|()| tables.take_over(&mut self.attachments, &mut self.pins));
        if let Err(error) = taken {
            self.slow
                .stay(old, &mut self.tables.balancer)
                .context("nor can the slow path stay as it was")?;
            return Err(error);
        }
        sweep(self.pins.as_ref());
        self.slow.taken_over(&new.config, &tables.balancer);
        // Those that the old program made while the tables were filled. What cannot be had any more is said, and not worth going back.
        if let Err(error) = tables.take_records(&self.tables) {
            tracing::error!("the last records of flows are lost: {}", report(&error));
        }
        tables.go_on_from(&self.tables);
        capture::took_over(self.capture.as_mut(), rings, &self.tables, &tables, &self.attachments);
        self.tables = tables;
        Ok(())
    }

    async fn answer(&mut self, question: Answer, view: &mut View) {
        let text = |error: anyhow::Error| report(&error);
        match question.request.clone() {
            Request::Status => question.with(self.status(&view.borrow()).map_err(text)),
            Request::KubeAccept => question.with(kube::accept(&self.source)),
            Request::Vips => question.with(self.vip_views(&view.borrow()).map_err(text)),
            Request::Backends => {
                let views = self.tables.backends(&view.borrow());
                question.with(views.map(|views| self.with_checks(views)).map_err(text));
            }
            Request::Counters => question.with(self.counters().map_err(text)),
            Request::Explain {
                protocol,
                source,
                destination,
            } => {
                let ingress = self
                    .attachments
                    .first()
                    .map_or(0, |attachment| attachment.interface().index);
                let (tables, protocol) = (&self.tables, protocol.into());
                let answer = explain::explain(tables, &view.borrow(), ingress, protocol, source, destination);
                question.with(answer.map(|view| self.with_health(view)).map_err(text));
            }
            Request::Drain {
                backend,
                deadline_s,
                force,
            } => question.with(self.drain(&backend, deadline_s, force, view)),
            Request::Undrain { backend } => question.with(self.undrain(&backend, view)),
            Request::Drains => question.with(self.drains()),
            Request::DrainNode { deadline_s, force } => question.with(self.drain_node(deadline_s, force)),
            Request::UndrainNode => question.with(self.undrain_node()),
            Request::NodeDrain => question.with(Ok(self.node_drain_view())),
            Request::Bgp => question.with(self.bgp_view()),
            Request::Capture { options } => self.start_capture(question, options, view).await,
        }
    }

    fn counters(&self) -> anyhow::Result<Vec<CounterView>> {
        let mut counters = views::counters(self.tables.verdicts()?);
        counters.extend(views::outcomes(&self.slow.counts()));
        Ok(counters)
    }

    fn status(&self, view: &NextHopView) -> anyhow::Result<StatusView> {
        let counts = self.tables.verdicts()?;
        let sizes = self.tables.sizes(view);
        let life = (self.started, &self.last_reload);
        Ok(StatusView {
            features: views::features(self.tables.planner.config().features),
            vips: sizes.vips,
            backends: sizes.backends,
            backends_ready: sizes.ready,
            tables: sizes.tables,
            flow_table: self.tables.flow_table()?,
            waiting_vips: self.tables.planner.waiting(),
            in_use: self.slow.in_use(),
            group: self.slow.group(),
            health: self.health_sums(),
            slow_path: self.slow.view(&self.tables.shed()?),
            drain: self.node_drain_view(),
            bgp: self.bgp_view().unwrap_or_default(),
            kube: self.standing().as_ref().map(views::kube),
            metrics: self.metrics.standing().map(views::metrics),
            pinned: self.pinned(),
            ..views::status(
                Role::Lb,
                &self.config_name(),
                self.revision,
                life,
                &self.attachments,
                &counts,
            )
        })
    }

    fn pinned(&self) -> Option<String> {
        Some(self.pins.as_ref()?.directory().display().to_string())
    }
}

/// What the file, whoever is being drained and the kernel together ask of the tables.
fn desired(config: &LbConfig, drains: &Drains, view: &NextHopView) -> Desired {
    let mut desired = config.desired.clone();
    drains.apply(&mut desired);
    desired.own_addresses.clone_from(&view.own_addresses);
    if let Some(tunnel) = &mut desired.tunnel {
        tunnel.locals.clone_from(&view.own_addresses);
    }
    desired
}

fn loaded(file: &LbFile) -> Loaded<'_> {
    Loaded {
        config: &file.config,
        seed: &file.seed,
    }
}

fn settings(config: &LbConfig) -> Settings {
    let sources = match &config.encap {
        Encap::Node { source_v4, source_v6 } => Sources::node(*source_v4, *source_v6),
        Encap::Prefix { v4, v6 } => Sources::prefix(*v4, *v6),
    };
    Settings {
        interfaces: config
            .interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect(),
        sources,
    }
}

fn names(config: &LbConfig) -> Vec<&str> {
    config.interfaces.iter().map(|interface| &*interface.name).collect()
}

fn addresses(desired: &Desired) -> BTreeMap<BackendId, IpAddr> {
    let all = desired.departed.iter().chain(&desired.backends);
    all.map(|(id, backend)| (id.clone(), backend.address)).collect()
}

/// Waits a moment until every backend can be reached; those that cannot are what they are.
async fn wait_for_next_hops(view: &mut View, desired: &Desired) {
    let reached = |view: &NextHopView| {
        let known = |id| !matches!(view.next_hops.get(id), None | Some(NextHop::Unresolved));
        desired.backends.keys().all(known)
    };
    // Time running out is an answer too.
    drop(timeout(NEXT_HOP_PATIENCE, view.wait_for(reached)).await);
    let view = view.borrow();
    for id in desired.backends.keys() {
        if let Some(why) = view.unresolved.get(id) {
            tracing::warn!(backend = %id, "no next hop: {why}");
        }
    }
}
