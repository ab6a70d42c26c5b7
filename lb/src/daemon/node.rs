//! The worker node's agent: the decapsulation program, its four sets, and the rules for what nothing claims.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use lb_core::{
    config::{NodeConfig, reload::Refusal},
    desired::Tunnel,
    nexthop::{NextHopView, Settings},
    worker::WorkerTables,
};
use tokio::{
    sync::watch,
    time::{interval, timeout},
};
use xdp_prog::abi::{Config, Range};

use super::{
    attach::{attach_all, check_free, detach_all},
    cluster,
    life::{self, Life, Wake},
    strict_arp,
    unclaimed::{Priority, Unclaimed},
    views,
};
use crate::{
    cli::report,
    control::{Answer, Listener, Request, Role, StatusView},
    datapath::{Attachment, Decapsulator, grace_period},
    nexthop::NextHopDriver,
    source::{
        file::{self, Watch},
        kube::{KubeSettings, index::Accepts, worker::WorkerLink},
    },
};

/// Ranges in the map: two halves of 8,192, 512 KiB in all.
const RANGES: u32 = 16_384;
/// Longest wait for the kernel to say which addresses are this node's.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who says what is accepted.
enum Source {
    /// A file.
    File(PathBuf),
    /// A cluster, and a file for this node's own settings.
    Kube(WorkerLink, Option<PathBuf>),
}

struct Node {
    source: Source,
    config: NodeConfig,
    decapsulator: Decapsulator,
    attachments: Vec<Attachment>,
    unclaimed: Unclaimed,
    tunnel: Tunnel,
    half: u32,
    revision: u64,
    started: Instant,
    last_reload: (Instant, Option<String>),
}

/// Serves until it is told to stop.
pub(super) async fn serve(path: &Path, config: NodeConfig, watch: Watch) -> anyhow::Result<ExitCode> {
    let life = Life::new(watch)?;
    let listener = Listener::open(&config.control_socket)?;
    serve_from(Source::File(path.to_owned()), config, life, listener).await
}

/// Serves what a cluster says until it is told to stop; not before it has said it, or the cache.
pub(super) async fn serve_kube(
    settings: KubeSettings,
    path: Option<PathBuf>,
    mut config: NodeConfig,
    watch: Watch,
) -> anyhow::Result<ExitCode> {
    let mut life = Life::new(watch)?;
    let mut listener = Listener::open(&config.control_socket)?;
    config.interfaces = cluster::interfaces(config.interfaces).await?;
    let mut link = cluster::off_this_thread(move || WorkerLink::start(settings)).await?;
    let mut still = interval(cluster::STILL_WAITING.0);
    let accepts = loop {
        tokio::select! {
            accepts = link.first() => break accepts,
            wake = life.next() => match wake {
                Wake::Stop(_) => return Ok(ExitCode::SUCCESS),
                Wake::Reload(_) => tracing::info!("nothing is served yet: the file is read at the next start"),
            },
            question = listener.next() => match question {
                Some(question) => answer_waiting(question, path.as_deref(), life.started, &link),
                None => anyhow::bail!("the control socket closed"),
            },
            _ = still.tick() => cluster::still_waiting(&link.standing()),
        }
    };
    take(&mut config, accepts);
    serve_from(Source::Kube(link, path), config, life, listener).await
}

/// Answers while nothing is accepted yet.
fn answer_waiting(question: Answer, path: Option<&Path>, started: Instant, link: &WorkerLink) {
    match Asked::of(&question.request) {
        Asked::Status => {
            let config = cluster::config_name(path);
            question.with(Ok(views::waiting(Role::Node, &config, started, &link.standing())));
        }
        Asked::Counters => cluster::not_yet(question, &link.standing()),
        Asked::OfLbNodes(why) => question.with::<()>(Err(why.to_owned())),
    }
}

/// What a worker node's agent is asked.
enum Asked {
    Status,
    Counters,
    /// What only an LB node's daemon can answer, and why.
    OfLbNodes(&'static str),
}

impl Asked {
    fn of(request: &Request) -> Self {
        match request {
            Request::Status => Self::Status,
            Request::Counters => Self::Counters,
            Request::KubeAccept => Self::OfLbNodes("only an LB node holds lists: ask one"),
            Request::Capture { .. } => Self::OfLbNodes("only an LB node's daemon captures: ask one"),
            Request::Drain { .. } | Request::Undrain { .. } | Request::Drains => {
                Self::OfLbNodes("a worker node's agent sends nothing to backends: ask an LB node's daemon")
            }
            Request::DrainNode { .. } | Request::UndrainNode | Request::NodeDrain => {
                Self::OfLbNodes("a worker node is drained at its LB nodes: `vipline drain backend`")
            }
            Request::Bgp => Self::OfLbNodes("a worker node's agent announces nothing: ask an LB node's daemon"),
            Request::Vips | Request::Backends | Request::Explain { .. } => {
                Self::OfLbNodes("a worker node's agent has no VIPs: ask an LB node's daemon")
            }
        }
    }
}

/// What a cluster says, in the place of what a file would say.
fn take(config: &mut NodeConfig, accepts: Accepts) {
    config.lb_sources = accepts.sources;
    config.vip_prefixes = accepts.vip_prefixes;
}

async fn serve_from(
    source: Source,
    config: NodeConfig,
    mut life: Life,
    mut listener: Listener,
) -> anyhow::Result<ExitCode> {
    let settings = Settings {
        interfaces: config
            .interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect(),
        ..Settings::default()
    };
    let (_driver, mut view) = NextHopDriver::start(settings, BTreeMap::new())?;
    timeout(PATIENCE, view.wait_for(|view| view.complete))
        .await
        .context("the kernel did not list this node's addresses in time")?
        .context("next hops are no longer followed")?;

    let mut node = Node::start(source, config, (&view, life.started)).await?;
    life::tell(&[sd_notify::NotifyState::Ready]);
    let why = loop {
        tokio::select! {
            wake = life.next() => match wake {
                Wake::Stop(why) => break why,
                Wake::Reload(cause) => {
                    tracing::info!(%cause, "reading the configuration again");
                    node.reload(&view).await;
                }
            },
            changed = view.changed() => {
                changed.context("next hops are no longer followed")?;
                node.readdress(&view);
            }
            accepts = changed(&mut node.source) => node.accept(accepts, &view).await,
            question = listener.next() => match question {
                Some(question) => node.answer(question),
                None => anyhow::bail!("the control socket closed"),
            },
        }
    };
    tracing::info!(signal = why, "stopping: detaching");
    life::tell(&[sd_notify::NotifyState::Stopping]);
    detach_all(node.attachments, &node.unclaimed).await?;
    Ok(ExitCode::SUCCESS)
}

impl Node {
    async fn start(
        source: Source,
        config: NodeConfig,
        (view, started): (&watch::Receiver<NextHopView>, Instant),
    ) -> anyhow::Result<Self> {
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        strict_arp::warn();
        check_free(&config.interfaces, &BTreeSet::new())?;
        let decapsulator = Decapsulator::load(&Config::EMPTY, RANGES)?;
        let mut unclaimed = Unclaimed::new(Priority::Node).await?;
        set_rules(&mut unclaimed, &config).await?;
        let mut node = Self {
            source,
            tunnel: Tunnel::default(),
            config,
            decapsulator,
            attachments: Vec::new(),
            unclaimed,
            half: 1,
            revision: 0,
            started,
            last_reload: (Instant::now(), None),
        };
        node.write(tunnel(&node.config, &view.borrow()))?;
        // Attached last: from the first packet on the tables are whole.
        let program = &node.decapsulator.program;
        node.attachments = attach_all(program, &node.config.interfaces, &node.unclaimed).await?;
        Ok(node)
    }

    /// Writes a tunnel's sets; nothing where they are what they were.
    fn write(&mut self, tunnel: Tunnel) -> anyhow::Result<()> {
        if self.revision > 0 && tunnel == self.tunnel {
            return Ok(());
        }
        let half = self.half ^ 1;
        let tables = WorkerTables::build(&tunnel, self.decapsulator.ranges.entries(), half)?;
        let words = |range: &Range| [range.first_high, range.first_low, range.last_high, range.last_low];
        let words: Vec<u64> = tables.ranges.iter().flat_map(words).collect();
        self.decapsulator.ranges.fill(tables.offset, &words)?;
        for (position, value) in tables.settings {
            self.decapsulator.settings.store(position, 0, value)?;
        }
        // The other half is free from here on.
        grace_period()?;
        self.half = half;
        self.tunnel = tunnel;
        self.revision += 1;
        Ok(())
    }

    /// This node's addresses may have changed.
    fn readdress(&mut self, view: &watch::Receiver<NextHopView>) {
        let tunnel = tunnel(&self.config, &view.borrow());
        if let Err(error) = self.write(tunnel) {
            tracing::error!(
                "this node's addresses changed and the tables did not follow: {}",
                report(&error)
            );
        }
    }

    async fn reload(&mut self, view: &watch::Receiver<NextHopView>) {
        let result = self.try_reload(view).await;
        if let Err(error) = &result {
            tracing::error!("configuration refused, the state before it stays:\n{}", report(error));
        }
        self.last_reload = (Instant::now(), result.err().map(|error| report(&error)));
    }

    async fn try_reload(&mut self, view: &watch::Receiver<NextHopView>) -> anyhow::Result<()> {
        let new = match &self.source {
            Source::File(path) => file::read_node(path)?,
            Source::Kube(_, path) => {
                let mut new = file::read_node_kube(path.as_deref())?;
                if new.interfaces.is_empty() {
                    new.interfaces.clone_from(&self.config.interfaces);
                }
                NodeConfig {
                    lb_sources: self.config.lb_sources.clone(),
                    vip_prefixes: self.config.vip_prefixes.clone(),
                    ..new
                }
            }
        };
        let fixed = self.config.differs_fixed(&new);
        let why: Vec<String> = fixed
            .into_iter()
            .map(|key| Refusal::NeedsRestart { key }.to_string())
            .collect();
        anyhow::ensure!(why.is_empty(), "{}", why.join("\n"));
        for warning in new.warnings() {
            tracing::warn!("{warning}");
        }
        self.apply(new, view).await?;
        tracing::info!(revision = self.revision, "configuration applied");
        Ok(())
    }

    /// What the cluster accepts is another.
    async fn accept(&mut self, accepts: Accepts, view: &watch::Receiver<NextHopView>) {
        let mut new = self.config.clone();
        take(&mut new, accepts);
        match self.apply(new, view).await {
            Ok(()) => tracing::info!(
                sources = self.config.lb_sources.len(),
                prefixes = self.config.vip_prefixes.len(),
                revision = self.revision,
                "what the TunnelConfig says is accepted"
            ),
            Err(error) => tracing::error!("the TunnelConfig changes nothing: {}", report(&error)),
        }
    }

    async fn apply(&mut self, new: NodeConfig, view: &watch::Receiver<NextHopView>) -> anyhow::Result<()> {
        let tunnel = tunnel(&new, &view.borrow());
        WorkerTables::build(&tunnel, self.decapsulator.ranges.entries(), 0)?;
        set_rules(&mut self.unclaimed, &new).await?;
        self.write(tunnel)?;
        self.config = new;
        Ok(())
    }

    fn answer(&self, question: Answer) {
        match Asked::of(&question.request) {
            Asked::Status => question.with(self.status().map_err(|error| error.to_string())),
            Asked::Counters => {
                let counters = self.decapsulator.counters.read();
                question.with(counters.map(views::counters).map_err(|error| error.to_string()));
            }
            Asked::OfLbNodes(why) => question.with::<()>(Err(why.to_owned())),
        }
    }

    fn status(&self) -> anyhow::Result<StatusView> {
        let counts = self.decapsulator.counters.read()?;
        let life = (self.started, &self.last_reload);
        let (config, standing) = match &self.source {
            Source::File(path) => (path.display().to_string(), None),
            Source::Kube(link, path) => (cluster::config_name(path.as_deref()), Some(link.standing())),
        };
        Ok(StatusView {
            kube: standing.as_ref().map(views::kube),
            ..views::status(Role::Node, &config, self.revision, life, &self.attachments, &counts)
        })
    }
}

/// Waits for another word of the cluster; forever, where there is none.
async fn changed(source: &mut Source) -> Accepts {
    match source {
        Source::File(_) => std::future::pending().await,
        Source::Kube(link, _) => {
            link.changed().await;
            link.accepts()
        }
    }
}

fn tunnel(config: &NodeConfig, view: &NextHopView) -> Tunnel {
    Tunnel {
        locals: view.own_addresses.clone(),
        ..config.tunnel()
    }
}

async fn set_rules(unclaimed: &mut Unclaimed, config: &NodeConfig) -> anyhow::Result<()> {
    let interfaces: Vec<&str> = config.interfaces.iter().map(|interface| &*interface.name).collect();
    let prefixes = if config.blackhole_unclaimed {
        &*config.vip_prefixes
    } else {
        &[]
    };
    Ok(unclaimed.set(&interfaces, prefixes).await?)
}
