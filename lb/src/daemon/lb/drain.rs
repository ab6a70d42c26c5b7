//! Drains by an operator's word, of a node that is told by a file.
//!
//! Never of a node that is told by a cluster: the other LB nodes would not know of it, and send new flows there. What the cluster
//! drains until a time is told with its node sets, and is kept by nobody else.

use std::path::PathBuf;

use lb_core::{desired::BackendId, drain::Drains};

use super::{Lb, Source, View, capture};
use crate::{
    cli::report,
    control::{DrainView, UndrainView},
    daemon::tables::unix_now,
    source::drains,
};

/// What an LB node of a cluster says instead.
const OF_A_CLUSTER: &str = "this LB node is told by a cluster: a drain that only it knew of would leave the others sending new \
                            connections there. Drain the node in the cluster, for all LB nodes at once: `vipline drain backend \
                            NODE --kube`, or `kubectl label node NODE node.kubernetes.io/exclude-from-external-load-balancers=true`";

/// Where drains are kept.
#[derive(Debug)]
pub(in crate::daemon) struct Kept(pub(in crate::daemon) PathBuf);

impl Lb {
    /// Drains a backend; what then still lives there.
    pub(super) fn drain(
        &mut self,
        name: &str,
        deadline_s: Option<u64>,
        force: bool,
        view: &View,
    ) -> Result<DrainView, String> {
        let id = BackendId(name.into());
        let now = unix_now();
        let deadline = deadline_s.map(|seconds| now.saturating_add(seconds));
        self.change_drains(view, |lb, drains| {
            let has_flows = lb.tables.planner.backend_index(&id).is_some();
            drains
                .begin(&id, &lb.file.config.desired, (now, deadline), (force, has_flows))
                .map_err(|error| error.to_string())
        })?;
        tracing::info!(backend = name, deadline_s, "drained: no new connections go there");
        let mut views = self.tables.drain_views().map_err(|error| report(&error))?.into_iter();
        views
            .find(|view| view.backend == name)
            .ok_or_else(|| format!("{name} is drained, and not listed"))
    }

    /// Gives a backend new flows again.
    pub(super) fn undrain(&mut self, name: &str, view: &View) -> Result<UndrainView, String> {
        let mut was_drained = false;
        self.change_drains(view, |_, drains| {
            was_drained = drains.end(&BackendId(name.into()));
            Ok(())
        })?;
        if was_drained {
            tracing::info!(backend = name, "drained no more: new connections go there");
        }
        Ok(UndrainView { was_drained })
    }

    /// Everybody who takes no new flows.
    pub(super) fn drains(&self) -> Result<Vec<DrainView>, String> {
        self.tables.drain_views().map_err(|error| report(&error))
    }

    fn told_by_a_file(&self) -> Result<(), String> {
        match &self.source {
            Source::File(_) => Ok(()),
            Source::Kube(_) => Err(OF_A_CLUSTER.to_owned()),
        }
    }

    /// Kept first and done then: a drain that the next start would not know of is none. What cannot be done is not kept either.
    fn change_drains(
        &mut self,
        view: &View,
        change: impl FnOnce(&Self, &mut Drains) -> Result<(), String>,
    ) -> Result<(), String> {
        self.told_by_a_file()?;
        let before = self.tables.drains.clone();
        let mut after = before.clone();
        change(self, &mut after)?;
        if after == before {
            return Ok(());
        }
        drains::write(&self.kept.0, &after, self.node_drain()).map_err(|error| error.to_string())?;
        self.tables.drains = after;
        let now = view.borrow().clone();
        let desired = self.desired(&now);
        if let Err(error) = self.tables.reach(&desired, &now.next_hops) {
            self.tables.drains = before;
            let back = drains::write(&self.kept.0, &self.tables.drains, self.node_drain());
            let back = back.map_or_else(|error| format!("; and {error}"), |()| String::new());
            let what = if self.tables.is_lost() {
                "the tables may have taken a part of it; the next reload loads them anew, without the drain"
            } else {
                "the tables cannot take it, nothing has changed"
            };
            return Err(format!("{what}: {}{back}", report(&error)));
        }
        self.revision += 1;
        self.publish(&desired, &now);
        capture::tables_changed(self.capture.as_ref(), &self.tables, &self.attachments);
        Ok(())
    }

    /// Forgets drains of backends that are in no set any more and where nothing lives.
    pub(super) fn forget_drains(&mut self) {
        if self.told_by_a_file().is_err() {
            return;
        }
        let mut drains = self.tables.drains.clone();
        let desired = &self.file.config.desired.backends;
        let is_known = |id: &BackendId| desired.contains_key(id) || self.tables.planner.backend_index(id).is_some();
        if !drains.forget(is_known) {
            return;
        }
        if let Err(error) = drains::write(&self.kept.0, &drains, self.node_drain()) {
            tracing::warn!("drains of backends that are gone stay on disk: {error}");
        }
        self.tables.drains = drains;
    }
}
