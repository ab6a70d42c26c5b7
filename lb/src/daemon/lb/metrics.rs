//! What the loop tells the thread of the metrics.
//!
//! Never reads a counter of the program: that thread does.

use std::time::{Instant, SystemTime};

use lb_core::{announce::Phase, nexthop::NextHopView};

use super::Lb;
use crate::{
    daemon::views,
    metrics::{ConfigFacts, Facts, TableFacts},
    source::kube::agent::Standing,
};

/// When the file was applied and refused last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    applied: Instant,
    refused: Option<Instant>,
    stale: bool,
}

impl Read {
    /// At the start.
    pub(super) fn applied(at: Instant) -> Self {
        Self {
            applied: at,
            refused: None,
            stale: false,
        }
    }

    /// It was read again, and refused with a reason or applied.
    pub(super) fn again(&mut self, (at, refused): &(Instant, Option<String>)) {
        self.stale = refused.is_some();
        if self.stale {
            self.refused = Some(*at);
        } else {
            self.applied = *at;
        }
    }

    fn facts(&self, revision: u64) -> ConfigFacts {
        ConfigFacts {
            revision,
            applied: by_the_clock(self.applied),
            refused: self.refused.map(by_the_clock),
            stale: self.stale,
        }
    }
}

impl Lb {
    /// How things stand. Cheap: a list of what stands where in the counters is made only where tables have changed.
    pub(super) fn facts(&mut self, view: &NextHopView) -> Facts {
        let sizes = self.tables.sizes(view);
        Facts {
            serving: true,
            started: by_the_clock(self.started),
            draining: self.leaving_phase().map(Phase::name),
            config: self.read.facts(self.revision),
            tables: Some(TableFacts {
                vips: sizes.vips,
                resolved: sizes.ready,
                unresolved: sizes.backends - sizes.ready,
                lookup_tables: sizes.tables,
                waiting: self.tables.planner.waiting(),
                flows: self.tables.flow_facts(),
                owned: self.slow.owned(),
                in_use: self.slow.in_use().len(),
            }),
            interfaces: self.attachments.iter().map(views::attached).collect(),
            health: self.health_facts(),
            slow: self.slow.facts(),
            bgp: self.bgp_facts(),
            bfd_discarded: Some(self.paths.discarded()),
            kube: self.standing(),
            meters: Some(self.tables.meters()),
        }
    }
}

/// Those of a daemon that waits for the cluster's first word.
pub(super) fn waiting(started: Instant, standing: Standing) -> Facts {
    Facts {
        serving: false,
        started: by_the_clock(started),
        draining: None,
        config: Read::applied(started).facts(0),
        tables: None,
        interfaces: Vec::new(),
        health: None,
        slow: None,
        bgp: None,
        bfd_discarded: None,
        kube: Some(standing),
        meters: None,
    }
}

/// What the clock said then, as far as it says now.
fn by_the_clock(at: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}
