//! Backends' health in the daemon: who is told of it, and what is shown. Never decides it.

use std::collections::BTreeMap;

use lb_core::{
    desired::{BackendSet, Desired},
    health::{Checks, Overlay, State},
};

use super::Lb;
use crate::{
    control::{BackendView, CheckView, HealthSums},
    health::Report,
};

impl Lb {
    /// Probes what the configuration in force asks for.
    pub(super) fn watch_health(&self) {
        self.health.watch(&self.file.config.desired);
    }

    /// The probes came to another overlay.
    pub(super) fn heed_health(&mut self, overlay: &Overlay) {
        let panic = vips_in_panic(&self.file.config.desired, overlay);
        if panic > 0 && self.vips_in_panic == 0 {
            tracing::warn!(
                vips = panic,
                "so few backends are eligible that all of them are used: the probes are not believed"
            );
        }
        self.vips_in_panic = panic;
    }

    /// Backends with the checks that are made of them.
    pub(super) fn with_checks(&self, mut views: Vec<BackendView>) -> Vec<BackendView> {
        let mut report: BTreeMap<String, Vec<CheckView>> = checks(self.health.report());
        for view in &mut views {
            view.checks = report.remove(&view.name).unwrap_or_default();
        }
        views
    }

    /// How backends are, where any is probed.
    pub(super) fn health_sums(&self) -> Option<HealthSums> {
        let report = self.health.report();
        if report.sums.checks == 0 && report.backends.is_empty() {
            return None;
        }
        let worst = report.backends.values().filter_map(|checks| {
            let states = checks.iter().map(|check| check.state);
            states.max_by_key(|state| rank(*state))
        });
        let mut sums = HealthSums {
            vips_in_panic: vips_in_panic(&self.file.config.desired, &self.health.overlay()),
            checks: report.sums.checks,
            unprobed: report.sums.unprobed,
            late_ms: u64::try_from(report.sums.late.as_millis()).unwrap_or(u64::MAX),
            probes: report
                .outcomes
                .iter()
                .map(|((kind, outcome), count)| (format!("{kind}/{outcome}"), *count))
                .collect(),
            ..HealthSums::default()
        };
        for state in worst {
            *match state {
                State::Unknown => &mut sums.unknown,
                State::Healthy => &mut sums.healthy,
                State::Unhealthy => &mut sums.unhealthy,
                State::Dead => &mut sums.dead,
            } += 1;
        }
        Some(sums)
    }
}

/// The worst of a backend's checks is what it is.
const fn rank(state: State) -> u8 {
    match state {
        State::Healthy => 0,
        State::Unknown => 1,
        State::Unhealthy => 2,
        State::Dead => 3,
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
    let backends = report.backends.into_iter();
    backends
        .map(|(backend, checks)| (backend.to_string(), checks.into_iter().map(view).collect()))
        .collect()
}

/// VIPs of whose backends the overlay is not believed. Those with one set and the same checks are looked at once.
fn vips_in_panic(desired: &Desired, overlay: &Overlay) -> usize {
    if overlay.is_empty() {
        return 0;
    }
    let mut seen: BTreeMap<(*const BackendSet, &Checks), bool> = BTreeMap::new();
    let vips = desired.vips.values().filter(|vip| {
        vip.checks.as_deref().is_some_and(|checks| {
            *seen
                .entry((std::sync::Arc::as_ptr(&vip.set), checks))
                .or_insert_with(|| overlay.is_panic(&vip.set, checks))
        })
    });
    vips.count()
}
