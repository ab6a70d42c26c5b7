//! A worker's packet logic: lb-core's engine over the live tables. Never keeps hold of them: every batch looks anew at what is in force.

use std::sync::Arc;

use crossbeam::sync::ShardedLock;
use lb_core::slow::{Book, Common, Engine, EngineSettings, Input, Output, Tables};
use xdp_prog::host::Host;

use crate::{
    datapath::{Jiffies, LiveTables},
    xsk::{Handler, XskInterface},
};

/// What is in force: what all workers look things up in. They hold the lock for reading while they handle a batch, so whoever has
/// had it for writing knows that nobody looks at what was there before.
pub(super) type Shared = Arc<ShardedLock<Scene>>;

/// See [`Shared`].
pub(super) struct Scene {
    pub(super) live: LiveTables,
    /// Changes with `live`.
    pub(super) program: u64,
    pub(super) book: Arc<Book>,
    pub(super) common: Arc<Common>,
    pub(super) jiffies: Jiffies,
}

/// One worker's.
pub(super) struct Worker {
    shared: Shared,
    engine: Engine,
    ifindex: u32,
    /// The fast path's decision over the tables of a program.
    host: Option<(u64, Host<LiveTables>)>,
    deadline: Option<u64>,
}

impl Worker {
    /// For a queue of an interface; the first one's announces the addresses that this node comes to own.
    pub(super) fn new(shared: Shared, interface: &XskInterface, queue: u32) -> Self {
        Self {
            shared,
            engine: Engine::new(EngineSettings {
                ifindex: interface.index,
                mac: interface.mac,
                announces: queue == 0,
            }),
            ifindex: interface.index,
            host: None,
            // A turn at once: to announce what is owned already.
            deadline: Some(0),
        }
    }

    /// Lets the engine work on what is in force.
    fn with(&mut self, now_ns: u64, output: &mut Output, work: impl FnOnce(&mut Engine, &mut Tables<'_>, &mut Output)) {
        let Self {
            shared,
            engine,
            ifindex,
            host,
            deadline,
        } = self;
        // A writer that panicked has left what it had put there, which is whole.
        let scene = shared.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if host.as_ref().is_none_or(|(program, _)| *program != scene.program) {
            let mut new = Host::new(scene.live.clone(), *ifindex);
            new.record_flows(true);
            *host = Some((scene.program, new));
        }
        let Some((_, host)) = host else { return };
        host.set_jiffies(scene.jiffies.at(now_ns));
        let mut tables = Tables {
            book: &scene.book,
            common: &scene.common,
            decide: host,
        };
        work(engine, &mut tables, output);
        for passed in output.passed.drain(..) {
            scene.live.passed().add(&passed);
        }
        *deadline = engine.deadline(&scene.common);
    }
}

impl Handler for Worker {
    fn batch(&mut self, now_ns: u64, inputs: &[Input<'_>], output: &mut Output) {
        self.with(now_ns, output, |engine, tables, output| {
            for input in inputs {
                engine.step(now_ns, *input, tables, output);
            }
        });
    }

    fn turn(&mut self, now_ns: u64, output: &mut Output) {
        self.with(now_ns, output, |engine, tables, output| {
            engine.turn(now_ns, tables, output)
        });
    }

    fn deadline(&self) -> Option<u64> {
        self.deadline
    }
}
