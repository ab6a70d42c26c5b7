//! The worker node's agent: the decapsulation program, its four sets, and the rules for what nothing claims.

use std::{
    collections::BTreeMap,
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
use tokio::{sync::watch, time::timeout};
use xdp_prog::abi::{Config, Range};

use super::{
    attach::{attach_all, check_free, detach_all},
    life::{self, Life, Wake},
    unclaimed::{Priority, Unclaimed},
    views,
};
use crate::{
    cli::report,
    control::{Answer, Listener, Request, Role, StatusView},
    datapath::{Attachment, Decapsulator, grace_period},
    nexthop::NextHopDriver,
    source::file::{self, Watch},
};

/// Ranges in the map: two halves of 8,192, 512 KiB in all.
const RANGES: u32 = 16_384;
/// Longest wait for the kernel to say which addresses are this node's.
const PATIENCE: Duration = Duration::from_secs(5);

struct Node {
    path: PathBuf,
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
    let mut life = Life::new(watch)?;
    let mut listener = Listener::open(&config.control_socket)?;
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

    let mut node = Node::start(path, config, &view).await?;
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
    async fn start(path: &Path, config: NodeConfig, view: &watch::Receiver<NextHopView>) -> anyhow::Result<Self> {
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        check_free(&config.interfaces)?;
        let decapsulator = Decapsulator::load(&Config::EMPTY, RANGES)?;
        let mut unclaimed = Unclaimed::new(Priority::Node).await?;
        set_rules(&mut unclaimed, &config).await?;
        let mut node = Self {
            path: path.to_owned(),
            tunnel: Tunnel::default(),
            config,
            decapsulator,
            attachments: Vec::new(),
            unclaimed,
            half: 1,
            revision: 0,
            started: Instant::now(),
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
        let new = file::read_node(&self.path)?;
        let fixed = self.config.differs_fixed(&new);
        let why: Vec<String> = fixed
            .into_iter()
            .map(|key| Refusal::NeedsRestart { key }.to_string())
            .collect();
        anyhow::ensure!(why.is_empty(), "{}", why.join("\n"));
        for warning in new.warnings() {
            tracing::warn!("{warning}");
        }
        let tunnel = tunnel(&new, &view.borrow());
        WorkerTables::build(&tunnel, self.decapsulator.ranges.entries(), 0)?;
        set_rules(&mut self.unclaimed, &new).await?;
        self.write(tunnel)?;
        self.config = new;
        tracing::info!(revision = self.revision, "configuration applied");
        Ok(())
    }

    fn answer(&self, question: Answer) {
        match question.request {
            Request::Status => question.with(self.status().map_err(|error| error.to_string())),
            Request::Counters => {
                let counters = self.decapsulator.counters.read();
                question.with(counters.map(views::counters).map_err(|error| error.to_string()));
            }
            Request::Vips | Request::Backends | Request::Explain { .. } => {
                question.with::<()>(Err(
                    "a worker node's agent has no VIPs: ask an LB node's daemon".to_owned()
                ));
            }
            Request::Capture { .. } => {
                question.with::<()>(Err("only an LB node's daemon captures: ask one".to_owned()));
            }
        }
    }

    fn status(&self) -> anyhow::Result<StatusView> {
        let counts = self.decapsulator.counters.read()?;
        let life = (self.started, &self.last_reload);
        Ok(views::status(
            Role::Node,
            &self.path,
            self.revision,
            life,
            &self.attachments,
            &counts,
        ))
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
