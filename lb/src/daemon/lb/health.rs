//! Backends' health in the daemon: who is told of it, and what is shown. Never decides it.

use std::{collections::BTreeMap, sync::Arc};

use lb_core::{
    desired::{BackendId, BackendSet, Desired},
    health::{Checks, Overlay, State},
    nexthop::NextHopView,
};

use super::{Lb, capture};
use crate::{
    cli::report,
    control::{BackendView, CheckView, ExplainView, HealthSums},
    health::Report,
    metrics::HealthFacts,
};

/// VIPs of which not enough is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// So few that all backends are used.
    in_panic: usize,
    /// Nobody: new flows are refused.
    refused: usize,
}

impl Lb {
    /// Probes what the configuration in force asks for.
    pub(super) fn watch_health(&self) {
        let departed = self.tables.planner.backends().filter(|backend| backend.has_departed);
        let departed = departed.map(|backend| (backend.id.clone(), backend.address));
        self.health.watch(&self.file.config.desired, departed);
    }

    /// The probes came to another overlay: the tables are made to say it.
    pub(super) fn heed_health(&mut self, overlay: Overlay, view: &NextHopView) {
        self.tables.overlay = overlay;
        let desired = self.desired(view);
        match self.tables.reach(&desired, &view.next_hops) {
            Ok(0) => {}
            Ok(writes) => {
                self.revision += 1;
                tracing::info!(writes, revision = self.revision, "backends' health changed");
                capture::tables_changed(self.capture.as_ref(), &self.tables, &self.attachments);
            }
            // The next plan, of whatever cause, has it too.
            Err(error) => tracing::error!(
                "backends' health changed and the tables did not follow: {}",
                report(&error)
            ),
        }
        self.publish(&desired, view);
        let left = Left::of(&desired, &self.tables.overlay);
        left.say(self.left);
        self.left = left;
    }

    /// Backends with the checks that are made of them.
    pub(super) fn with_checks(&self, mut views: Vec<BackendView>) -> Vec<BackendView> {
        let mut report: BTreeMap<String, Vec<CheckView>> = checks(self.health.report());
        for view in &mut views {
            view.checks = report.remove(&view.name).unwrap_or_default();
        }
        views
    }

    /// Where a flow goes, with what is known of the backend that it goes to.
    pub(super) fn with_health(&self, view: ExplainView) -> ExplainView {
        let facts = self.health.facts();
        let id = view.backend.as_deref().map(|name| BackendId(name.into()));
        let state = id.and_then(|id| facts.backends.get(&id).copied());
        ExplainView {
            health: state.map(|state| state.name().to_owned()),
            ..view
        }
    }

    /// How backends are, where any is probed.
    pub(super) fn health_sums(&self) -> Option<HealthSums> {
        let facts = self.health_facts()?;
        let count = |state| facts.backends.values().filter(|of| **of == state).count();
        let outcomes = facts.probes.iter();
        Some(HealthSums {
            healthy: count(State::Healthy),
            unknown: count(State::Unknown),
            unhealthy: count(State::Unhealthy),
            dead: count(State::Dead),
            vips_in_panic: facts.vips_in_panic,
            vips_refused: facts.vips_refused,
            checks: facts.sums.checks,
            unprobed: facts.sums.unprobed,
            late_ms: u64::try_from(facts.sums.late.as_millis()).unwrap_or(u64::MAX),
            probes: outcomes
                .map(|((kind, outcome), count)| (format!("{kind}/{outcome}"), *count))
                .collect(),
        })
    }

    /// The same for the metrics.
    pub(super) fn health_facts(&self) -> Option<HealthFacts> {
        let facts = self.health.facts();
        if facts.sums.checks == 0 && facts.backends.is_empty() {
            return None;
        }
        let drained = self.tables.drains.applied(&self.file.config.desired);
        let Left { in_panic, refused } = Left::of(&drained, &self.tables.overlay);
        Some(HealthFacts {
            vips_in_panic: in_panic,
            vips_refused: refused,
            ..facts
        })
    }
}

impl Left {
    /// Those with one set and the same checks are looked at once.
    fn of(desired: &Desired, overlay: &Overlay) -> Self {
        let mut left = Self::default();
        if overlay.is_empty() {
            return left;
        }
        let mut seen: BTreeMap<(*const BackendSet, &Checks), (bool, bool)> = BTreeMap::new();
        for vip in desired.vips.values() {
            let Some(checks) = vip.checks.as_deref() else { continue };
            let (panic, refused) = *seen
                .entry((Arc::as_ptr(&vip.set), checks))
                .or_insert_with(|| (overlay.is_panic(&vip.set, checks), overlay.is_refused(&vip.set, checks)));
            left.in_panic += usize::from(panic);
            left.refused += usize::from(refused);
        }
        left
    }

    /// Says what is worse than `before`, or well again.
    fn say(self, before: Self) {
        if self.in_panic > before.in_panic {
            tracing::warn!(
                vips = self.in_panic,
                "so few backends are eligible that all of them are used: the probes are not believed"
            );
        }
        if self.refused > before.refused {
            tracing::warn!(vips = self.refused, "no backend is eligible: new flows are refused");
        }
        if self == Self::default() && before != self {
            tracing::info!("enough backends are eligible again, for every VIP");
        }
    }
}

fn checks(report: Report) -> BTreeMap<String, Vec<CheckView>> {
    let view = |check: lb_core::health::CheckReport| CheckView {
        check: check.check,
        state: check.state.name().to_owned(),
        seconds: check.for_how_long.as_secs(),
        reason: check.last_failure.map(|failure| failure.to_string()),
        failures: check.failures,
    };
    let backends = report.into_iter();
    backends
        .map(|(backend, checks)| (backend.to_string(), checks.into_iter().map(view).collect()))
        .collect()
}
