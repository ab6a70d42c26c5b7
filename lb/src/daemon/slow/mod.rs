//! The slow path in the daemon: its workers' life beside that of the tables. Never handles a packet.

mod handler;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam::sync::ShardedLock;
use handler::{Scene, Shared, Worker};
use lb_core::{
    announce::{Facts, Mac},
    config::{LbConfig, xdp_budgets},
    desired::{Desired, NextHops},
    health::Overlay,
    slow::{Book, Common, Counts, Event},
};
use tokio::sync::mpsc;
use xdp_prog::verdict::Verdict;

use super::tables::Tables;
use crate::{
    announce::{Before, Groups, InUse, L2},
    chance,
    control::{GroupView, InUseView, SlowPathView},
    datapath::{Balancer, Sockets},
    metrics::{SlowFacts, WorkerFacts},
    xsk::{BusyPoll, Register, SlowPath, WorkerStatus, XskError, XskInterface, XskSettings},
};

/// Events on their way to the daemon's loop; what does not fit is asked for again by the next packet.
const EVENTS: usize = 1024;
/// Least time between two warnings of the same conflict.
const CONFLICT_GAP: Duration = Duration::from_secs(30);
/// Longest wait for queues that a process before this one had.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks whether they are free.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);
/// Packets of one look under busy polling.
const BUSY_POLL_BUDGET: u16 = 64;

/// The workers, and what they look things up in.
pub(super) struct Slow {
    shared: Shared,
    path: Option<SlowPath>,
    /// Of the workers that run: what they were started for and with.
    interfaces: Vec<XskInterface>,
    settings: XskSettings,
    groups: Groups,
    /// Which addresses are answered for.
    l2: L2,
    /// What is known of VIP addresses, where this node answers for all that it is configured to.
    whole: Arc<Book>,
    /// How often the book was made.
    published: u64,
    /// Of workers that are no more.
    before: Counts,
    earlier: Vec<WorkerStatus>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// When a conflict about an address was told last; as many as there are owned addresses.
    conflicts: BTreeMap<IpAddr, Instant>,
    /// This start's own.
    secret: u64,
    hz: u32,
}

impl Slow {
    /// Starts the workers, if the configuration wants any: before the program is attached, so that its first packet finds them.
    ///
    /// # Errors
    ///
    /// When an interface has no Ethernet, or a socket is refused.
    ///
    pub(super) fn start(
        config: &LbConfig,
        tables: &mut Tables,
        desired: &Desired,
        hops: &NextHops,
        before: Before,
    ) -> anyhow::Result<Self> {
        let jiffies = tables.jiffies;
        let secret = chance::number();
        let scene = Scene {
            live: tables.balancer.live(),
            program: 0,
            book: Arc::default(),
            common: Arc::new(Common::new(config.slow_path.bounds(), secret)),
            jiffies,
        };
        let mut slow = Self {
            shared: Arc::new(ShardedLock::new(scene)),
            path: None,
            interfaces: Vec::new(),
            settings: XskSettings::default(),
            groups: Groups::default(),
            l2: L2::new(before),
            whole: Arc::default(),
            published: 0,
            before: Counts::default(),
            earlier: Vec::new(),
            events: mpsc::channel(EVENTS),
            conflicts: BTreeMap::new(),
            secret,
            hz: jiffies.hz(),
        };
        slow.prepare(config, &mut tables.balancer)?;
        if config.slow_path.enabled {
            slow.launch_first(config, &tables.balancer)?;
        }
        slow.publish(config, desired, hops, &tables.overlay);
        Ok(slow)
    }

    /// Waits for something that workers ask for; meanwhile, addresses are asked for and taken. Nothing is lost when it is dropped while
    /// it waits.
    pub(super) async fn event(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                event = self.events.1.recv() => return event,
                () = self.l2.next() => self.own_again(),
            }
        }
    }

    /// What is known of all VIP addresses for routers to be told of them.
    pub(super) fn towards_routers(&self) -> impl Iterator<Item = (IpAddr, Facts)> {
        self.whole.addresses().map(|(address, known)| {
            let facts = Facts {
                is_programmed: true,
                has_backend: known.healthy,
                has_way: true,
                ..Facts::default()
            };
            (address, facts)
        })
    }

    /// What is known of all VIP addresses for being answered for on this node's segments.
    pub(super) fn on_segments(&self) -> impl Iterator<Item = (IpAddr, Facts)> {
        let in_use: BTreeMap<IpAddr, Mac> = self.l2.in_use().map(|found| (found.address, found.by)).collect();
        self.whole.addresses().map(move |(address, known)| {
            let owns = self.l2.owns(address);
            let facts = Facts {
                is_programmed: true,
                has_backend: known.healthy,
                has_way: known.owned,
                owner: self.l2.owner(address).filter(|_| !owns).cloned(),
                in_use_by: in_use.get(&address).copied(),
                is_waited_for: !owns,
                ..Facts::default()
            };
            (address, facts)
        })
    }

    /// Moves with whatever is known of VIP addresses.
    pub(super) fn changes(&self) -> u64 {
        self.published + self.l2.changes()
    }

    /// VIP addresses that are answered for.
    pub(super) fn owned(&self) -> usize {
        self.l2.owned()
    }

    /// With whom addresses are shared.
    pub(super) fn group(&self) -> Option<GroupView> {
        self.l2.group()
    }

    /// VIP addresses that another host has.
    pub(super) fn in_use(&self) -> Vec<InUseView> {
        let view = |in_use: InUse| InUseView {
            address: in_use.address,
            mac: in_use.by.to_string(),
        };
        self.l2.in_use().map(view).collect()
    }

    /// Somebody may have changed what another host has: it is asked for at once.
    pub(super) fn ask_again(&mut self) {
        self.l2.ask_again();
    }

    /// A member of the group is heard at this address from now on, or is not any more.
    pub(super) fn hear_member(&mut self, at: IpAddr, is_heard: bool) {
        if self.l2.hear_member(at, is_heard) {
            self.own_again();
        }
    }

    /// Whether an interface of this node is down.
    pub(super) fn cut_off(&mut self, is_cut_off: bool) {
        if self.l2.cut_off(is_cut_off) {
            self.own_again();
        }
    }

    /// Whether this node answers for nothing on its segments, because it gives all addresses away.
    pub(super) fn leave(&mut self, leaves: bool) {
        self.l2.leave(leaves);
        self.own_again();
    }

    /// VIP addresses that this node answers for, and nobody would in its place.
    pub(super) fn only_here(&self) -> Vec<IpAddr> {
        self.l2.only_here()
    }

    /// Another host says that it has a VIP address.
    pub(super) fn hear_of_owner(&mut self, address: IpAddr, mac: Mac) {
        if !self.l2.hear(address, mac) && self.l2.owns(address) {
            self.warn_of_conflict(address, mac);
        }
    }

    /// Warns of another owner of a VIP address, and not with each of its packets.
    fn warn_of_conflict(&mut self, address: IpAddr, mac: Mac) {
        // Two interfaces on one segment hear each other's announcements.
        if self.interfaces.iter().any(|interface| interface.mac == mac.0) {
            return;
        }
        let told = self.conflicts.get(&address);
        if told.is_some_and(|told| told.elapsed() < CONFLICT_GAP) {
            return;
        }
        self.conflicts.insert(address, Instant::now());
        // Workers learn by themselves of an address that changes.
        let is_ours = |at: &XskInterface| XskInterface::find(&at.name).is_ok_and(|now| now.mac == mac.0);
        if self.interfaces.iter().any(is_ours) {
            return;
        }
        tracing::warn!(
            %address,
            "another host says that it has this VIP address: {mac}"
        );
    }

    /// Gives a loaded program what it needs of the slow path, before it is attached.
    fn prepare(&self, config: &LbConfig, balancer: &mut Balancer) -> anyhow::Result<()> {
        let shared = Arc::clone(&self.shared);
        balancer.on_grace(Box::new(move || drop(shared.write())));
        for (verdict, rate, burst) in xdp_budgets(&config.slow_path, self.hz) {
            balancer.set_budget(verdict, rate, burst)?;
        }
        Ok(())
    }

    /// Starts the workers of a process. The kernel lets the queues of a process before go a moment after its end.
    fn launch_first(&mut self, config: &LbConfig, balancer: &Balancer) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            match self.launch(config, balancer) {
                Err(error) if is_busy(&error) && start.elapsed() < QUEUE_PATIENCE => thread::sleep(QUEUE_PAUSE),
                result => return result,
            }
        }
    }

    /// Starts the workers over a program's map of sockets.
    fn launch(&mut self, config: &LbConfig, balancer: &Balancer) -> anyhow::Result<()> {
        let interfaces = find(config)?;
        let settings = settings(config);
        let shared = Arc::clone(&self.shared);
        let path = SlowPath::start(
            settings.clone(),
            &interfaces,
            Box::new(move |interface, queue| Box::new(Worker::new(Arc::clone(&shared), interface, queue))),
            register(&balancer.sockets),
            Some(Arc::default()),
        )
        .context("cannot start the slow path; `slow_path: { enabled: false }` does without")?;
        let events = path.events().clone();
        let sender = self.events.0.clone();
        // It ends with the workers, who hold the other end.
        thread::Builder::new()
            .name("slow-events".into())
            .spawn(move || {
                for event in events {
                    let _ = sender.try_send(event);
                }
            })
            .context("cannot start a thread")?;
        let frames_mib = path.memory_bytes() >> 20;
        tracing::info!(workers = path.status().len(), frames_mib, "slow path runs");
        path.go_on_from(&self.earlier);
        self.interfaces = interfaces;
        self.settings = settings;
        self.path = Some(path);
        Ok(())
    }

    /// Ends the workers; what they counted stays.
    fn halt(&mut self) {
        if let Some(mut path) = self.path.take() {
            path.stop();
            self.before.merge(&path.counts());
            let last = path.status();
            let same =
                |one: &WorkerStatus, other: &WorkerStatus| (one.ifindex, one.queue) == (other.ifindex, other.queue);
            self.earlier
                .retain(|earlier| !last.iter().any(|last| same(earlier, last)));
            self.earlier.extend(last);
            self.interfaces.clear();
        }
    }

    /// Whether there should be workers, and there are none: an earlier change could neither be made nor be unmade.
    fn is_dead(&self, config: &LbConfig) -> bool {
        config.slow_path.enabled && self.path.is_none()
    }

    /// Where there are no workers anyway, that there still are none is no reason to refuse anything else.
    fn try_launch(&mut self, config: &LbConfig, balancer: &Balancer) {
        if let Err(error) = self.launch(config, balancer) {
            tracing::error!("the slow path still does not work: {error:#}");
        }
    }

    /// Why the workers that run, or do not, are not those that the configuration wants; empty if they are. What an interface is
    /// like is looked at, too: with more queues than workers, the packets of some would find no socket.
    fn differs(&self, config: &LbConfig) -> Vec<&'static str> {
        if !config.slow_path.enabled {
            return Vec::new();
        }
        if self.path.is_none() {
            return vec!["they do not run"];
        }
        let shape = |interfaces: &[XskInterface]| -> Vec<_> {
            let shape = |at: &XskInterface| (at.index, at.rx_queues, at.tx_queues);
            interfaces.iter().map(shape).collect()
        };
        // An interface that cannot be found has no better workers to offer.
        let others = find(config).is_ok_and(|found| shape(&found) != shape(&self.interfaces));
        let differs = [
            (self.settings != settings(config), "their settings"),
            (others, "an interface's queues"),
        ];
        differs
            .into_iter()
            .filter_map(|(differs, why)| differs.then_some(why))
            .collect()
    }

    /// Tells the workers of new tables' contents, next hops, backends' health or rules.
    pub(super) fn publish(&mut self, config: &LbConfig, desired: &Desired, hops: &NextHops, overlay: &Overlay) {
        self.published += 1;
        let mut whole = Book::new(desired, hops, overlay, config.protection, &config.l2.owned);
        if let Some(segments) = &config.told.segments {
            whole = whole.owning(|address| segments.contains_key(&address));
        }
        self.whole = Arc::new(whole);
        let interfaces = self.interfaces.iter();
        let interfaces = interfaces
            .map(|interface| (interface.index, Mac(interface.mac)))
            .collect();
        self.l2.set_group(config.l2.group.as_ref());
        self.l2.want(
            (self.whole.owned().collect(), &config.told),
            interfaces,
            config.l2.probe,
        );
        let bounds = config.slow_path.bounds();
        let is_other = *self.scene(|scene| &scene.common).bounds() != bounds;
        self.show(is_other.then(|| Arc::new(Common::new(bounds, self.secret))));
    }

    /// Tells workers which addresses they answer for.
    fn own_again(&mut self) {
        self.show(None);
    }

    /// Gives workers the book, and what else is new.
    fn show(&mut self, common: Option<Arc<Common>>) {
        let owns = |address: IpAddr| self.l2.owns(address);
        // Routed VIP addresses, and those of a node that has all to itself, need no book of their own.
        let book = if self.whole.owned().all(owns) {
            Arc::clone(&self.whole)
        } else {
            Arc::new(Book::clone(&self.whole).owning(owns))
        };
        let mut scene = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(common) = common {
            scene.common = common;
        }
        scene.book = book;
        drop(scene);
        self.own();
        if let Some(path) = &self.path {
            path.poke();
        }
    }

    /// After a change of the configuration whose program stays: new budgets, and new workers where their set-up changed.
    ///
    /// # Errors
    ///
    /// When the new workers do not start; the old ones run again then, if they can.
    pub(super) fn reconfigure(
        &mut self,
        old: &LbConfig,
        new: &LbConfig,
        balancer: &mut Balancer,
    ) -> anyhow::Result<()> {
        let differs = self.differs(new);
        if !differs.is_empty() {
            let why = [differs, old.slow_path_restarts(new)].concat();
            tracing::info!("the slow path's workers are started anew: {}", why.join(", "));
            if self.is_dead(old) {
                self.try_launch(new, balancer);
            } else {
                self.halt();
                if let Err(error) = self.launch(new, balancer) {
                    self.launch(old, balancer).context("nor does the slow path as it was")?;
                    return Err(error);
                }
            }
        }
        self.prepare(new, balancer)
    }

    /// A program is about to take over: its sockets are put in place.
    ///
    /// # Errors
    ///
    /// When they cannot be, or new workers do not start; [`Self::stay`] goes back.
    pub(super) fn make_ready(&mut self, old: &LbConfig, new: &LbConfig, balancer: &mut Balancer) -> anyhow::Result<()> {
        self.prepare(new, balancer)?;
        if !new.slow_path.enabled {
            return Ok(());
        }
        if self.is_dead(old) {
            self.try_launch(new, balancer);
            return Ok(());
        }
        if !self.differs(new).is_empty() {
            // Two sockets cannot have one queue.
            self.halt();
        }
        match &self.path {
            Some(path) => Ok(path.register_with(register(&balancer.sockets))?),
            None => self.launch(new, balancer),
        }
    }

    /// The program did not take over: back to the one that serves.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub(super) fn stay(&mut self, old: &LbConfig, balancer: &mut Balancer) -> anyhow::Result<()> {
        if !old.slow_path.enabled {
            self.halt();
            return Ok(());
        }
        if !self.differs(old).is_empty() {
            // Those that were started for the new one.
            self.halt();
        }
        match &self.path {
            Some(path) => Ok(path.register_with(register(&balancer.sockets))?),
            None => self.launch(old, balancer),
        }
    }

    /// A program has taken over: workers look into its tables from now on.
    pub(super) fn taken_over(&mut self, new: &LbConfig, balancer: &Balancer) {
        let mut scene = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        scene.live = balancer.live();
        scene.program += 1;
        drop(scene);
        if !new.slow_path.enabled {
            self.halt();
        }
    }

    /// Hears who asks for the IPv6 addresses that this node owns.
    fn own(&mut self) {
        let book = Arc::clone(&self.scene(|scene| &scene.book));
        let interfaces: Vec<u32> = self.interfaces.iter().map(|interface| interface.index).collect();
        if let Err(error) = self.groups.set(&interfaces, book.owned()) {
            tracing::warn!(
                "cannot join a solicited-node group, so neighbour solicitations may not reach this node: {error}"
            );
        }
    }

    fn scene<T: Clone>(&self, part: impl FnOnce(&Scene) -> &T) -> T {
        part(&self.shared.read().unwrap_or_else(PoisonError::into_inner)).clone()
    }

    /// What became of packets.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.before.clone();
        if let Some(path) = &self.path {
            counts.merge(&path.counts());
        }
        counts
    }

    /// For metrics; none where it is off.
    pub(super) fn facts(&self) -> Option<SlowFacts> {
        let path = self.path.as_ref()?;
        let worker = |status: WorkerStatus| WorkerFacts {
            interface: status.interface,
            queue: status.queue,
            running: status.running,
            restarts: status.restarts,
        };
        Some(SlowFacts {
            counts: Box::new(self.counts()),
            workers: path.status().into_iter().map(worker).collect(),
        })
    }

    /// For people.
    pub(super) fn view(&self, shed: &[(Verdict, u64)]) -> Option<SlowPathView> {
        let path = self.path.as_ref()?;
        let common = self.scene(|scene| &scene.common);
        Some(super::views::slow_path(path, &common, &self.counts(), shed))
    }
}

/// Whether a queue has another socket.
fn is_busy(error: &anyhow::Error) -> bool {
    let busy = |cause: &std::io::Error| cause.raw_os_error() == Some(libc::EBUSY);
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(busy))
}

/// What the kernel says of the interfaces.
fn find(config: &LbConfig) -> Result<Vec<XskInterface>, XskError> {
    let interfaces = config.interfaces.iter();
    interfaces
        .map(|interface| XskInterface::find(&interface.name))
        .collect()
}

fn settings(config: &LbConfig) -> XskSettings {
    let slow = &config.slow_path;
    XskSettings {
        frames_per_queue: slow.frames_per_queue,
        mode: slow.mode,
        busy_poll: (slow.busy_poll_us > 0).then_some(BusyPoll {
            duration_us: slow.busy_poll_us,
            budget_packets: BUSY_POLL_BUDGET,
        }),
        cpus: slow.cpus.clone(),
        ..XskSettings::default()
    }
}

/// How sockets get into a program's map.
fn register(sockets: &Arc<Mutex<Sockets>>) -> Box<Register> {
    use std::os::fd::AsRawFd as _;
    let sockets = Arc::clone(sockets);
    Box::new(move |ifindex, queue, socket| {
        let mut sockets = sockets.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(sockets.set(ifindex, queue, socket.as_raw_fd())?)
    })
}
