//! The thread's loop: launches what is due, hands back what came of it. Never decides either.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lb_core::{
    health::{Failure, Fault, Launch, Monitor, Outcome, Overlay, Ticket},
    nexthop::NextHopView,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, sleep_until},
};

use super::{Now, Order, lock, probe, tls::Tls, tunnel::Tunnel};

/// Everything of the thread.
pub(super) struct Prober {
    monitor: Arc<Mutex<Monitor>>,
    orders: mpsc::UnboundedReceiver<Order>,
    overlay: watch::Sender<Overlay>,
    start: Instant,
    tls: Tls,
    /// Ways to the nodes.
    view: NextHopView,
    /// Not there before something is to be asked through a tunnel; `Err`: it cannot be, and that is said.
    tunnel: Option<Result<Tunnel, Fault>>,
    flying: JoinSet<(Ticket, Outcome)>,
}

impl Prober {
    pub(super) fn new(
        monitor: Arc<Mutex<Monitor>>,
        orders: mpsc::UnboundedReceiver<Order>,
        overlay: watch::Sender<Overlay>,
        start: Instant,
    ) -> Self {
        Self {
            monitor,
            orders,
            overlay,
            start,
            tls: Tls::new(),
            view: NextHopView::default(),
            tunnel: None,
            flying: JoinSet::new(),
        }
    }

    /// Runs until there is nobody any more who could give orders.
    pub(super) async fn run(mut self) {
        loop {
            let next = self.launch().map(|next| self.start + next);
            let next = async {
                match next {
                    Some(next) => sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => return,
                },
                Some(done) = self.flying.join_next() => self.finish(done),
                ticket = answered(&mut self.tunnel) => self.finish(Ok((ticket, Outcome::Success))),
                () = next => {}
            }
        }
    }

    /// Launches what is due; when there is something next.
    fn launch(&mut self) -> Option<Now> {
        let now = self.start.elapsed();
        let mut monitor = lock(&self.monitor);
        for (backend, change) in monitor.sweep(now) {
            tracing::info!(%backend, check = "neighbour", from = change.from.name(), to = change.to.name(), "health changed");
        }
        while let Some(launch) = monitor.launch(now) {
            let ticket = launch.ticket;
            if launch.vip.is_none() {
                let (Launch { address, check, .. }, tls) = (launch, self.tls.clone());
                self.flying
                    .spawn(async move { (ticket, probe::probe(address, &check, &tls).await) });
                continue;
            }
            match self.tunnel.get_or_insert_with(open_tunnel) {
                Ok(tunnel) => match tunnel.ask(&launch, &self.view, now) {
                    Ok(()) => {
                        let timeout = Duration::from_millis(launch.check.timing.timeout_ms.into());
                        self.flying.spawn(async move {
                            sleep(timeout).await;
                            (ticket, Outcome::Failure(Failure::NoSynAck))
                        });
                    }
                    Err(outcome) => drop(monitor.finish(ticket, outcome, now)),
                },
                Err(fault) => drop(monitor.finish(ticket, Outcome::Skipped(*fault), now)),
            }
        }
        let next = monitor.next();
        publish(&self.overlay, &monitor);
        next
    }

    /// Takes in what the driver was told; of each kind only the last counts.
    fn obey(&mut self, first: Order) {
        let (mut watch, mut hear) = (None, None);
        let mut orders = Some(first);
        while let Some(order) = orders {
            match order {
                Order::Watch(wanted) => watch = Some(wanted),
                Order::Hear(view) => hear = Some(view),
            }
            orders = self.orders.try_recv().ok();
        }
        let mut monitor = lock(&self.monitor);
        if let Some(wanted) = watch {
            monitor.watch(&wanted, self.start.elapsed());
        }
        if let Some(view) = hear {
            monitor.hear(&view);
            self.view = *view;
        }
        publish(&self.overlay, &monitor);
    }

    fn finish(&mut self, first: Result<(Ticket, Outcome), tokio::task::JoinError>) {
        let mut monitor = lock(&self.monitor);
        let mut done = Some(first);
        while let Some(result) = done {
            match result {
                Ok((ticket, outcome)) => {
                    if let Some((backend, check, change)) = monitor.finish(ticket, outcome, self.start.elapsed()) {
                        let (from, to) = (change.from.name(), change.to.name());
                        let why = match outcome {
                            Outcome::Success => None,
                            Outcome::Failure(failure) => Some(failure.to_string()),
                            Outcome::Skipped(fault) => Some(fault.to_string()),
                        };
                        if change.is_of_health() {
                            tracing::info!(%backend, %check, from, to, why, "health changed");
                        } else {
                            tracing::debug!(%backend, %check, from, to, why, "health is known");
                        }
                    }
                }
                // Its turn is lost, and it is not asked again: a probe that panics is a bug.
                Err(error) => tracing::error!("a probe ended without an outcome: {error}"),
            }
            done = self.flying.try_join_next();
        }
        publish(&self.overlay, &monitor);
    }
}

fn open_tunnel() -> Result<Tunnel, Fault> {
    Tunnel::open(RandomState::new().build_hasher().finish()).map_err(|error| {
        tracing::error!("nodes are not probed through the tunnel: no AF_PACKET socket: {error}");
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Fault::NotPermitted,
            _ => Fault::NoSocket,
        }
    })
}

/// The next answer through the tunnel; never, where there is none.
async fn answered(tunnel: &mut Option<Result<Tunnel, Fault>>) -> Ticket {
    match tunnel {
        Some(Ok(tunnel)) => tunnel.answered().await,
        Some(Err(_)) | None => std::future::pending().await,
    }
}

/// Tells the daemon, if there is something to tell.
fn publish(overlay: &watch::Sender<Overlay>, monitor: &Monitor) {
    overlay.send_if_modified(|told| {
        let is_news = told != monitor.overlay();
        if is_news {
            *told = monitor.overlay().clone();
        }
        is_news
    });
}
