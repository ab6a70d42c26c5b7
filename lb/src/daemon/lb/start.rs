//! From a configuration to a node that serves, with or without a process before this one.

use std::time::Instant;

use anyhow::Context as _;
use lb_core::worker::unclaimed_prefixes;
use tokio::time::{MissedTickBehavior, interval};

use super::{AGING, Lb, SAYING, Source, View, desired, drain, leave, metrics::Read, names, paths::Paths};
use crate::{
    announce::{Before, bgp::BgpDriver},
    daemon::{
        attach::{check_free, detach_all, give_up, put_in_place},
        left::{Keeping, Left, Start},
        slow::Slow,
        unclaimed::{Priority, Unclaimed},
    },
    datapath::{PinnedLink, Pins},
    health::HealthDriver,
    metrics::Metrics,
    nexthop::NextHopDriver,
    source::{drains, file::LbFile},
};

impl Lb {
    /// Serves from here on. What an earlier process left serves on until the program of this one is in its place, and also when this
    /// fails.
    pub(super) async fn start(
        source: Source,
        file: LbFile,
        driver: NextHopDriver,
        (view, started): (&View, Instant),
        metrics: Metrics,
        keeping: &Keeping,
    ) -> anyhow::Result<Self> {
        for warning in file.config.warnings() {
            tracing::warn!("{warning}");
        }
        let kept = drains::read(&keeping.drains)?;
        let drains = match &source {
            Source::File(_) => kept.backends,
            Source::Kube(kube) => kube.drains().clone(),
        };
        let node_drain = kept.node;
        let desired = desired(&file.config, &drains, &view.borrow());
        let hops = view.borrow().next_hops.clone();
        let mut pins = keeping.place.as_ref().map(Pins::open).transpose()?;
        let mut left = match &pins {
            Some(pins) => Left::find(pins, &desired, file.config.transit)?,
            None => Left::default(),
        };
        let served = left.interfaces();
        check_free(&file.config.interfaces, &served)?;
        left.check_seed(&file, keeping.new_seed)?;
        let is_first = served.is_empty();
        let orphans = left.take_orphans();
        let health = HealthDriver::start().context("cannot start the health thread")?;

        let mut unclaimed = Unclaimed::new(Priority::Lb).await?;
        // Rules first: what the tables hand up must not get away.
        let prefixes = unclaimed_prefixes(&desired, &hops);
        unclaimed.set(&names(&file.config), &prefixes).await?;
        // What this node is not to answer for nobody asks for.
        let before_us = match (node_drain, is_first) {
            (Some(_), _) => Before::Drained,
            (None, false) => Before::Served,
            (None, true) => Before::Nothing,
        };
        let serving = async {
            let (Start { mut tables, before }, kept) = left.start(&file, &desired, &hops, &drains)?;
            let slow = Slow::start(&file.config, &mut tables, &desired, &hops, before_us)?;
            // Attached last: the first packet finds whole tables, and sockets.
            if let Some(before) = &before {
                tables.take_records(before)?;
            }
            orphans.into_iter().try_for_each(PinnedLink::remove)?;
            let attachments = put_in_place(&mut tables, &mut pins, kept, &file.config.interfaces)?;
            if let Some(before) = &before {
                // Those that the old program made while the tables were filled.
                tables.take_records(before)?;
                tables.go_on_from(before);
            }
            anyhow::Ok((tables, slow, attachments))
        };
        let (tables, slow, attachments) = match serving.await {
            Ok(serving) => serving,
            Err(error) => {
                if is_first {
                    give_up(&unclaimed).await;
                } else {
                    // What serves on needs them.
                    driver.leave();
                }
                return Err(error);
            }
        };
        tracing::info!(vips = desired.vips.len(), backends = desired.backends.len(), "serving");
        // Those included whose flows a change while nobody looked has put in transit.
        driver.set_backends(tables.addresses());
        let now = Instant::now();
        let mut aging = interval(AGING);
        aging.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paths = Paths::start()?;
        let mut lb = Self {
            source,
            file,
            driver,
            health,
            left: Default::default(),
            tables,
            slow,
            capture: None,
            own_addresses: desired.own_addresses,
            attachments,
            pins,
            unclaimed,
            revision: 1,
            started,
            last_reload: (now, None),
            read: Read::applied(now),
            metrics,
            aging,
            kept: drain::Kept(keeping.drains.clone()),
            leaving: None,
            looking: interval(leave::LOOK),
            said: Default::default(),
            saying: interval(SAYING),
            bgp: BgpDriver::new(!is_first, paths.another()),
            paths,
        };
        if let Some(drain) = node_drain {
            lb.go_on_drained(drain);
        }
        lb.listen_to_members();
        lb.slow.cut_off(!view.borrow().down.is_empty());
        lb.forget_drains();
        for (backend, drain) in lb.tables.drains.iter() {
            tracing::info!(%backend, since = drain.since, deadline = drain.deadline, "is drained, from before");
        }
        lb.health.hear(&view.borrow());
        lb.watch_health();
        lb.say_programmed();
        // Last: what is announced is served.
        lb.tell_routers();
        Ok(lb)
    }

    /// The end of the process: what is pinned serves on, what is not goes.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        Self::leave_routers(self.bgp, self.pins.is_some()).await;
        match &self.pins {
            Some(pins) => {
                tracing::info!(
                    "the data plane goes on without this process, by what is pinned in {}: `vipline detach` ends it",
                    pins.directory().display()
                );
                // Of a capture, the rings go with the process.
                self.tables.balancer.aim_at_nothing()?;
                self.driver.leave();
            }
            None => {
                tracing::info!("detaching");
                detach_all(self.attachments, &self.unclaimed).await?;
            }
        }
        match self.source {
            Source::File(_) => {}
            Source::Kube(kube) => kube.stop(),
        }
        Ok(())
    }
}
