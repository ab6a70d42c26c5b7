//! Next hops from the kernel: routes, neighbours, links and addresses over rtnetlink. Never decides anything, which is
//! [`lb_core::nexthop`]'s; never runs on the daemon's thread, because the kernel may hold its routing lock for long.

mod decode;
mod kernel;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read as _, Write as _},
    net::IpAddr,
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use kernel::NetlinkError;
use kernel::{Changes, Kernel};
use lb_core::{
    desired::BackendId,
    nexthop::{Command, Event, NextHopView, Resolver, RouteAnswer, RouteRefusal, Settings},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::watch;

/// Everything is read anew this often. Covers what the kernel does not tell: path MTUs that were learned or forgotten, IPv4
/// routes revived by a link, redirects.
pub const RESYNC_PERIOD: Duration = Duration::from_secs(30);
/// Least time between two readings of everything, when changes are lost or a reading fails.
pub const RESYNC_GAP: Duration = Duration::from_millis(200);
/// Datagrams of changes read before the resolver acts on them; what waits is read right after.
const CHANGES_PER_TURN: usize = 256;
/// Turns taken to empty the socket before everything is read anew: more than its buffer holds, in a storm without end.
const TURNS_BEFORE_RESYNC: usize = 64;

/// Why next hops cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No netlink socket.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No thread, or no socket to wake it by.
    #[error("cannot start the next-hop thread: {0}")]
    Thread(#[source] io::Error),
}

/// What the driver is told.
#[derive(Debug)]
enum Order {
    Settings(Settings),
    Backends(BTreeMap<BackendId, IpAddr>),
    Want(BackendId),
    Leave,
}

/// Follows the next hops of backends on a thread of its own, in the network namespace of the thread that starts it.
///
/// Dropping it stops the thread, and lets the neighbour entries go that it kept; that takes milliseconds.
#[derive(Debug)]
pub struct NextHopDriver {
    orders: mpsc::Sender<Order>,
    /// A byte wakes the thread, the end of the stream ends it.
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl NextHopDriver {
    /// Starts to follow the next hops of these backends. The view is empty and not `complete` at first; within milliseconds
    /// it has an entry for every backend.
    ///
    /// # Errors
    ///
    /// When netlink sockets or the thread cannot be made. Needs CAP_NET_ADMIN to keep neighbours fresh; without it what the
    /// kernel knows is reported, and nothing is kept.
    pub fn start(
        settings: Settings,
        backends: BTreeMap<BackendId, IpAddr>,
    ) -> Result<(Self, watch::Receiver<NextHopView>), StartError> {
        let (view, view_receiver) = watch::channel(NextHopView::default());
        let (orders, inbox) = mpsc::channel();
        let (wake, wakes) = UnixStream::pair().map_err(StartError::Thread)?;
        wake.set_nonblocking(true).map_err(StartError::Thread)?;
        wakes.set_nonblocking(true).map_err(StartError::Thread)?;
        let mut resolver = Resolver::new(settings);
        resolver.set_backends(backends);
        let follower = Follower {
            // Subscribed before anything is read, so nothing is missed in between.
            changes: Changes::open()?,
            kernel: Kernel::open()?,
            resolver,
            inbox,
            wakes,
            view,
            start: Instant::now(),
            resync_at: Duration::ZERO,
            last_resync: None,
            leaves: false,
        };
        let work = || {
            if let Err(error) = follower.run() {
                tracing::error!(%error, "next hops are no longer followed");
            }
        };
        let thread = std::thread::Builder::new()
            .name("next-hops".into())
            .spawn(work)
            .map_err(StartError::Thread)?;
        let driver = Self {
            orders,
            wake: Some(wake),
            thread: Some(thread),
        };
        Ok((driver, view_receiver))
    }

    /// Replaces the backends; those whose address stays keep their next hop.
    pub fn set_backends(&self, backends: BTreeMap<BackendId, IpAddr>) {
        self.order(Order::Backends(backends));
    }

    /// Replaces the settings.
    pub fn set_settings(&self, settings: Settings) {
        self.order(Order::Settings(settings));
    }

    /// Packets wait for this backend's next hop: it is asked for at once.
    pub fn want(&self, backend: BackendId) {
        self.order(Order::Want(backend));
    }

    /// Ends, and leaves the neighbour entries kept: for who comes next and wants them.
    pub fn leave(self) {
        self.order(Order::Leave);
    }

    fn order(&self, order: Order) {
        // It fails only when the thread has ended, which has said why; a full pipe wakes as well as one more byte.
        let _ = self.orders.send(order);
        let _ = self.wake.as_ref().map(|mut wake| wake.write(&[1]));
    }
}

impl Drop for NextHopDriver {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // It panics only where a bug makes it; what it kept then stays kept.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Follower {
    kernel: Kernel,
    changes: Changes,
    resolver: Resolver,
    inbox: mpsc::Receiver<Order>,
    wakes: UnixStream,
    view: watch::Sender<NextHopView>,
    start: Instant,
    /// Everything is read anew then, and not before.
    resync_at: Duration,
    last_resync: Option<Duration>,
    /// What is kept stays kept.
    leaves: bool,
}

impl Follower {
    /// Runs until the driver is dropped.
    fn run(mut self) -> io::Result<()> {
        loop {
            if self.now() >= self.resync_at {
                self.resync()?;
            }
            self.act();
            self.wait()?;
            if !self.obey()? {
                break;
            }
            self.take_in()?;
        }
        if !self.leaves {
            let releases = self.resolver.stop();
            self.execute(releases);
        }
        Ok(())
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> io::Result<()> {
        let deadline = self
            .resolver
            .deadline()
            .map_or(self.resync_at, |due| due.min(self.resync_at));
        // Rounded up: a timeout of 0 just before the deadline would spin.
        let timeout = deadline.saturating_sub(self.now()).as_micros().div_ceil(1000);
        let timeout = u16::try_from(timeout).unwrap_or(u16::MAX);
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [readable(self.changes.fd.as_fd()), readable(self.wakes.as_fd())];
        match poll(&mut fds, PollTimeout::from(timeout)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes in what the driver was told; whether to go on.
    fn obey(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 64];
        match self.wakes.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        for order in self.inbox.try_iter() {
            match order {
                Order::Settings(settings) => self.resolver.set_settings(settings),
                Order::Backends(backends) => self.resolver.set_backends(backends),
                Order::Want(backend) => self.resolver.want(&backend, self.start.elapsed()),
                Order::Leave => self.leaves = true,
            }
        }
        Ok(true)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes in the changes that wait; whether there are no more.
    fn take_in(&mut self) -> io::Result<bool> {
        let now = self.now();
        for _ in 0..CHANGES_PER_TURN {
            match self.changes.receive(|event| self.resolver.apply(event, now)) {
                Ok(()) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(true),
                Err(Errno::ENOBUFS) => {
                    tracing::warn!("netlink messages were lost: reading everything anew");
                    self.resync_soon();
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(false)
    }

    fn resync_soon(&mut self) {
        let earliest = self.last_resync.map_or(Duration::ZERO, |last| last + RESYNC_GAP);
        self.resync_at = self.resync_at.min(earliest);
    }

    /// Reads everything anew.
    fn resync(&mut self) -> io::Result<()> {
        // What is told already is in what will be read, and applied after it would undo newer states for a moment.
        for _ in 0..TURNS_BEFORE_RESYNC {
            if self.take_in()? {
                break;
            }
        }
        self.last_resync = Some(self.now());
        match self.kernel.snapshot() {
            Ok(snapshot) => {
                let now = self.now();
                self.resync_at = now + RESYNC_PERIOD;
                self.resolver.apply(Event::Snapshot(snapshot), now);
            }
            Err(error) => {
                tracing::error!(%error, "cannot read routes and neighbours");
                self.resync_at = self.now() + RESYNC_GAP;
            }
        }
        Ok(())
    }

    /// Lets the resolver act on what it knows, until it has nothing more to do now.
    fn act(&mut self) {
        loop {
            let commands = self.resolver.step(self.now());
            if commands.is_empty() {
                return;
            }
            self.execute(commands);
        }
    }

    fn execute(&mut self, commands: Vec<Command>) {
        let (mut lookups, mut keeps, mut releases) = (Vec::new(), Vec::new(), Vec::new());
        for command in commands {
            match command {
                Command::LookUpRoute { destination, source } => lookups.push((destination, source)),
                Command::Keep {
                    ifindex,
                    address,
                    create,
                } => keeps.push((ifindex, address, create)),
                Command::Release { ifindex, address } => releases.push((ifindex, address)),
                Command::Changed(view) => {
                    let (backends, unresolved) = (view.next_hops.len(), view.unresolved.len());
                    tracing::info!(backends, unresolved, "next hops changed");
                    self.view.send_replace(view);
                }
            }
        }
        let answers = self.kernel.routes(&lookups).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look routes up");
            self.resync_at = self.resync_at.min(self.now() + RESYNC_GAP);
            Vec::new()
        });
        // Every lookup is answered, also one that the kernel did not answer.
        let failed = RouteAnswer::Refused(RouteRefusal::Failed(0));
        let now = self.now();
        for ((destination, _), answer) in lookups
            .into_iter()
            .zip(answers.into_iter().chain(std::iter::repeat(failed)))
        {
            self.resolver.apply(Event::Route { destination, answer }, now);
        }
        let kept = self.kernel.keep(&keeps).and_then(|()| self.kernel.release(&releases));
        if let Err(error) = kept {
            tracing::error!(%error, "cannot keep neighbours");
        }
    }
}
