//! One worker in the small world, from its start until nothing waits any more. Never lets a packet get lost uncounted.

use lb_core::{
    desired::Rate,
    slow::{
        Bounds, Budgets, Common, Counts, Engine, EngineSettings, FragmentBounds, HoldBounds, Input, Output, Tables,
    },
};
use xdp_prog::{
    host::{Host, View},
    verdict::{Fate, Verdict},
};

use super::{
    check,
    world::{IFINDEX, MAC, SCENES, world},
};

const BOUNDS: HoldBounds = HoldBounds {
    frames: 8,
    per_backend: 4,
    timeout_ms: 3000,
};
/// Longer than anything may wait.
const FOR_EVER_NS: u64 = 100_000_000_000;

/// A worker, and what it was given and has said.
pub(super) struct Run {
    engine: Engine,
    common: Common,
    hosts: Vec<Host<View<'static>>>,
    scene: usize,
    now_ns: u64,
    steps: u64,
    /// All that was counted.
    pub(super) counts: Counts,
    /// What came of the last step.
    pub(super) out: Output,
}

impl Run {
    /// At the beginning of a scene, with budgets that are soon used up, or not.
    pub(super) fn new(scene: usize, tight: bool) -> Self {
        let world = world();
        let hosts = world
            .scenes
            .iter()
            .map(|scene| Host::new(scene.image.view(&world.config), IFINDEX));
        let rate = Rate {
            per_second: 10,
            burst: 5,
        };
        let bounds = Bounds {
            budgets: if tight {
                Budgets::new(|_| rate)
            } else {
                Budgets::default()
            },
            replies_per_source: if tight { 3 } else { 1000 },
            fragments: FragmentBounds {
                datagrams: 4,
                bytes: 16_384,
                timeout_ms: 5000,
            },
            hold: BOUNDS,
        };
        let settings = EngineSettings {
            ifindex: IFINDEX,
            mac: MAC,
            announces: false,
        };
        Self {
            engine: Engine::new(settings),
            common: Common::new(bounds, 7),
            hosts: hosts.collect(),
            scene: scene % SCENES,
            now_ns: 1,
            steps: 0,
            counts: Counts::default(),
            out: Output::default(),
        }
    }

    /// A packet comes.
    pub(super) fn packet(&mut self, verdict: Verdict, frame: &[u8]) {
        self.steps += 1;
        let input = Input { verdict, frame };
        self.with(Some(frame), |engine, now_ns, tables, out| {
            engine.step(now_ns, input, tables, out)
        });
    }

    /// A packet comes, and the program itself says what it is; nothing, where it is nothing for the slow path.
    pub(super) fn through(&mut self, frame: &[u8]) {
        let verdict = self.hosts[self.scene].balance(frame).verdict;
        if verdict.fate() == Fate::Slow {
            self.packet(verdict, frame);
        }
    }

    /// Time passes, and what is due is done.
    pub(super) fn wait(&mut self, dt_ns: u64) {
        self.now_ns = self.now_ns.saturating_add(dt_ns);
        if self
            .engine
            .deadline(&self.common)
            .is_some_and(|due_ns| due_ns <= self.now_ns)
        {
            self.turn();
        }
    }

    /// The tables change.
    pub(super) fn change(&mut self, scene: usize) {
        self.scene = scene % SCENES;
        self.turn();
    }

    /// Everything that waits is given up: each packet has been counted once.
    pub(super) fn finish(mut self) -> Counts {
        for _ in 0..4 {
            self.wait(FOR_EVER_NS);
        }
        assert_eq!(self.engine.held(), 0);
        assert_eq!(self.engine.deadline(&self.common), None);
        assert_eq!(
            self.total(),
            self.steps,
            "packets counted: {:?}",
            self.counts.iter().collect::<Vec<_>>()
        );
        self.counts
    }

    fn turn(&mut self) {
        self.with(None, |engine, now_ns, tables, out| engine.turn(now_ns, tables, out));
        let due_ns = self.engine.deadline(&self.common);
        assert!(due_ns.is_none_or(|due_ns| due_ns > self.now_ns), "what was due is done");
    }

    fn with(&mut self, input: Option<&[u8]>, work: impl FnOnce(&mut Engine, u64, &mut Tables<'_>, &mut Output)) {
        let mut out = Output::default();
        let mut tables = Tables {
            book: &world().scenes[self.scene].book,
            common: &self.common,
            decide: &mut self.hosts[self.scene],
        };
        work(&mut self.engine, self.now_ns, &mut tables, &mut out);
        check::output(&out, input);
        assert!(self.scene < SCENES - 1 || out.frames.is_empty(), "there are no VIPs");
        self.counts.merge(&out.counts);
        self.out = out;
        assert!(self.total() <= self.steps, "counted twice");
        assert!(self.engine.held() <= BOUNDS.frames as usize && self.engine.held_bytes() <= BOUNDS.bytes());
    }

    fn total(&self) -> u64 {
        self.counts.iter().map(|(_, _, count)| count).sum()
    }
}
