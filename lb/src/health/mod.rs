//! Probes on the wire: TCP, HTTP, TLS. Never decides what an outcome means or which probe is due, which is [`lb_core::health`]'s;
//! never runs on the daemon's thread, because probes come in thousands.

mod probe;
mod run;
mod tls;
mod tunnel;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_core::{
    desired::{BackendId, Desired},
    health::{CheckReport, MAX_FLYING, Monitor, Overlay, Wanted},
    nexthop::NextHopView,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use crate::{chance, metrics::HealthFacts};

/// Least time between two overlays that are told.
pub const PACE: Duration = Duration::from_secs(1);

/// File descriptors that the rest of the daemon may need beside those of probes.
const OTHER_FILES: u64 = 4096;

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Watch(Box<Wanted>),
    Hear(Box<NextHopView>),
}

/// Probes backends on a thread of its own, in the network namespace of the thread that starts it. Dropping it ends the thread.
#[derive(Debug)]
pub struct HealthDriver {
    orders: Option<mpsc::UnboundedSender<Order>>,
    monitor: Arc<Mutex<Monitor>>,
    start: Instant,
    overlay: watch::Receiver<Overlay>,
    /// When the next overlay may be told.
    quiet_until: tokio::time::Instant,
    thread: Option<JoinHandle<()>>,
}

/// All checks of every backend that has any.
pub type Report = BTreeMap<BackendId, Vec<CheckReport>>;

impl HealthDriver {
    /// Starts with nothing to probe.
    ///
    /// # Errors
    ///
    /// When the thread, or its runtime, cannot be made.
    pub fn start() -> io::Result<Self> {
        raise_file_limit();
        let monitor = Arc::new(Mutex::new(Monitor::new(chance::number())));
        let (orders, inbox) = mpsc::unbounded_channel();
        let (sender, overlay) = watch::channel(Overlay::default());
        let start = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let prober = run::Prober::new(Arc::clone(&monitor), inbox, sender, start);
        let thread = std::thread::Builder::new()
            .name("health".into())
            .spawn(move || runtime.block_on(prober.run()))?;
        Ok(Self {
            orders: Some(orders),
            monitor,
            start,
            overlay,
            quiet_until: start.into(),
            thread: Some(thread),
        })
    }

    /// Probes what this desired state asks for, from now on, and looks after the neighbours of what has `departed` from it.
    pub fn watch(&self, desired: &Desired, departed: impl IntoIterator<Item = (BackendId, IpAddr)>) {
        self.order(Order::Watch(Box::new(Wanted::new(desired).keeping(departed))));
    }

    /// The kernel's word about next hops has changed.
    pub fn hear(&self, view: &NextHopView) {
        self.order(Order::Hear(Box::new(view.clone())));
    }

    /// Waits until the overlay is another, and says it; a first change at once, and then no more often than [`PACE`], since every
    /// one makes tables. Nothing is lost when it is dropped while it waits. When the thread is no more, which is a bug's doing, nothing
    /// changes ever.
    pub async fn changed(&mut self) -> Overlay {
        sleep_until(self.quiet_until).await;
        if self.overlay.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.quiet_until = tokio::time::Instant::now() + PACE;
        self.overlay.borrow_and_update().clone()
    }

    /// The overlay as it is.
    pub fn overlay(&self) -> Overlay {
        self.overlay.borrow().clone()
    }

    /// For people.
    pub fn report(&self) -> Report {
        lock(&self.monitor).report(self.start.elapsed())
    }

    /// For the metrics: all but what depends on VIPs.
    pub fn facts(&self) -> HealthFacts {
        let monitor = lock(&self.monitor);
        HealthFacts {
            backends: monitor.states(),
            probes: monitor.outcomes().clone(),
            sums: monitor.sums(),
            vips_in_panic: 0,
            vips_refused: 0,
        }
    }

    fn order(&self, order: Order) {
        // It fails only when the thread has ended, which it does with this handle.
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

impl Drop for HealthDriver {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It panics only where a bug makes it.
            let _ = thread.join();
        }
    }
}

/// A thread that panicked has left what it had put there, which is whole.
fn lock(monitor: &Mutex<Monitor>) -> MutexGuard<'_, Monitor> {
    monitor.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Since the driver's start: the monitor's time.
type Now = Duration;

/// Probes in flight are files. The limit that a shell gives is less than they may be; what is allowed is more.
fn raise_file_limit() {
    let wanted = MAX_FLYING as u64 + OTHER_FILES;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft >= wanted {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)
    });
    if let Err(error) = raised {
        tracing::warn!(
            "cannot raise the limit of open files, so that many slow probes at once may not all be made: {error}"
        );
    }
}
