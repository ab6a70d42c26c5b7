//! This LB node gives its VIP addresses away: because it is drained, or because it stops.
//!
//! Never ends the forwarding of what still comes, and never decides how far it is: [`Leave`] does.

use std::{net::IpAddr, time::Duration};

use lb_core::{
    announce::{Leave, NodeState, Phase},
    drain::{Drain, Drains},
};
use operator_api::LABEL_DRAIN;
use tokio::time::sleep;
use xdp_prog::verdict::Fate;

use super::{Lb, Source};
use crate::{
    control::{NodeDrainView, UndrainView},
    daemon::{
        life::{Life, Wake},
        tables::unix_now,
    },
    source::{drains, kube::NodeWish},
};

/// How often a node that leaves looks what still comes.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// Longest wait, at a stop, for packets to go elsewhere. systemd and the kubelet wait longer.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// VIP addresses that a refusal lists.
const LISTED: usize = 4;

/// This node leaves.
#[derive(Debug)]
pub(super) struct Leaving {
    leave: Leave,
    /// By an operator's word, which is kept.
    word: Option<Drain>,
    /// By a label or taint, which the cluster keeps.
    by_cluster: bool,
    /// Since when, in seconds since 1970.
    since: u64,
    /// VIP addresses that nobody answered for in its place when it began.
    unowned: Vec<IpAddr>,
}

impl Lb {
    /// A drain of this node that is kept.
    pub(super) fn node_drain(&self) -> Option<Drain> {
        self.leaving.as_ref().and_then(|leaving| leaving.word)
    }

    /// Drains of backends that are kept: those of a cluster are the cluster's.
    pub(super) fn kept_drains(&self) -> Drains {
        match self.source {
            Source::File(_) => self.tables.drains.clone(),
            Source::Kube(_) => Drains::default(),
        }
    }

    /// How far it is with leaving.
    pub(super) fn leaving_phase(&self) -> Option<Phase> {
        self.leaving.as_ref().map(|leaving| leaving.leave.phase())
    }

    /// What routers and segments are told by.
    pub(super) fn node_state(&self) -> NodeState {
        match self.leaving_phase() {
            None => NodeState::Serving,
            Some(Phase::LastChoice) => NodeState::LastChoice,
            Some(Phase::Withdrawn | Phase::Left { .. }) => NodeState::Draining,
        }
    }

    /// Gives all VIP addresses away, and keeps that over restarts.
    pub(super) fn drain_node(&mut self, deadline_s: Option<u64>, force: bool) -> Result<NodeDrainView, String> {
        let before = self.node_drain();
        let unowned = self.slow.only_here();
        if !force && before.is_none() && !unowned.is_empty() {
            return Err(format!(
                "nobody else answers for {} on its segment: no other LB node of an l2.group is heard; give --force to take them off the \
                 network",
                listed(&unowned)
            ));
        }
        let now = unix_now();
        let drain = Drain {
            since: before.map_or(now, |drain| drain.since),
            deadline: match deadline_s {
                Some(seconds) => Some(now.saturating_add(seconds)),
                None => before.and_then(|drain| drain.deadline),
            },
        };
        drains::write(&self.kept.0, &self.kept_drains(), Some(drain)).map_err(|error| error.to_string())?;
        self.leave(until(drain, self.started.elapsed()));
        if let Some(leaving) = &mut self.leaving {
            leaving.word = Some(drain);
        }
        if unowned.is_empty() {
            tracing::info!(deadline_s, "this node is drained: it gives its VIP addresses away");
        } else {
            let addresses = listed(&unowned);
            tracing::warn!(
                deadline_s,
                "this node is drained, and nobody else answers for {addresses}"
            );
        }
        self.node_drain_view()
            .ok_or_else(|| "the drain did not begin".to_owned())
    }

    /// Takes its part of the VIP addresses again.
    pub(super) fn undrain_node(&mut self) -> Result<UndrainView, String> {
        if self.leaving.is_none() {
            return Ok(UndrainView { was_drained: false });
        }
        if self.leaving.as_ref().is_some_and(|leaving| leaving.by_cluster) {
            return Err(format!(
                "the cluster drains this LB node, by the label {LABEL_DRAIN} of its LbNode or Node, or by the autoscaler's taint: take \
                 that away"
            ));
        }
        drains::write(&self.kept.0, &self.kept_drains(), None).map_err(|error| error.to_string())?;
        self.leaving = None;
        self.heed_leaving();
        tracing::info!("this node is drained no more: it takes its part of the VIP addresses");
        Ok(UndrainView { was_drained: true })
    }

    /// Does what the cluster wants of this node.
    pub(super) fn heed_wish(&mut self, wish: NodeWish) {
        if wish.drained {
            let now = unix_now();
            let left = |deadline: u64| self.started.elapsed() + Duration::from_secs(deadline.saturating_sub(now));
            self.leave(wish.deadline.map(left));
            let unowned = self.leaving.as_mut().map(|leaving| {
                leaving.by_cluster = true;
                listed(&leaving.unowned)
            });
            match unowned.filter(|unowned| !unowned.is_empty()) {
                None => tracing::info!("the cluster drains this node: it gives its VIP addresses away"),
                Some(unowned) => {
                    tracing::warn!(
                        "the cluster drains this node, and nobody else answers for {unowned} on its segment"
                    );
                }
            }
            return;
        }
        let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.by_cluster) else {
            return;
        };
        leaving.by_cluster = false;
        if leaving.word.is_none() {
            self.leaving = None;
            self.heed_leaving();
            tracing::info!("the cluster drains this node no more: it takes its part of the VIP addresses");
        }
    }

    /// As a process before this one was drained; before anything is announced.
    pub(super) fn go_on_drained(&mut self, word: Drain) {
        let now = self.started.elapsed();
        let leave = Leave::again(now, self.forwarded().unwrap_or_default(), until(word, now));
        self.leaving = Some(Leaving {
            leave,
            word: Some(word),
            by_cluster: false,
            since: word.since,
            unowned: Vec::new(),
        });
        tracing::warn!(
            since = word.since,
            "this node is drained, from before: it announces nothing and answers for nothing; `vipline drain node --undo` ends it"
        );
    }

    /// How far it is.
    pub(super) fn node_drain_view(&self) -> Option<NodeDrainView> {
        let Leaving {
            leave,
            word,
            since,
            unowned,
            ..
        } = self.leaving.as_ref()?;
        let (phase, now) = (leave.phase(), unix_now());
        Some(NodeDrainView {
            phase: phase.name().to_owned(),
            seconds: now.saturating_sub(*since),
            deadline_s: word
                .and_then(|word| word.deadline)
                .map(|deadline| deadline.saturating_sub(now)),
            packets_per_second: leave.per_second(),
            left: matches!(phase, Phase::Left { .. }),
            quiet: phase == Phase::Left { quiet: true },
            unowned: unowned.clone(),
        })
    }

    /// Looks what still comes; with a new phase routers are told.
    pub(super) fn look_at_leaving(&mut self) {
        let forwarded = match self.forwarded() {
            Ok(forwarded) => forwarded,
            Err(error) => {
                tracing::warn!("whether packets still come cannot be seen: {error:#}");
                return;
            }
        };
        let now = self.started.elapsed();
        let Some(Leaving { leave, .. }) = &mut self.leaving else {
            return;
        };
        let before = leave.phase();
        let phase = leave.turn(now, forwarded);
        if phase == before {
            return;
        }
        match phase {
            Phase::LastChoice => {}
            Phase::Withdrawn => tracing::info!("nothing is announced any more; what still comes is forwarded"),
            Phase::Left { quiet: true } => tracing::info!("nothing comes any more"),
            Phase::Left { quiet: false } => tracing::warn!(
                packets_per_second = leave.per_second(),
                "packets still come although nothing is announced: a route that is not Vipline's leads here, or there is no other way"
            ),
        }
        self.tell_routers_of_addresses();
    }

    /// At a stop: unless what is pinned goes on and routers know that, all VIP addresses are given away first, and packets that still
    /// come are waited for. A second signal ends the wait.
    pub(super) async fn leave_at_stop(&mut self, life: &mut Life) {
        let goes_on = self.pins.is_some();
        let is_restart = goes_on && self.leaving.is_none() && self.bgp.restarts_gracefully();
        let has_said_something = !self.bgp.announced().addresses.is_empty() || self.slow.owned() > 0;
        if is_restart || !has_said_something {
            return;
        }
        tracing::info!("VIP addresses are given away before this node stops");
        self.leave(Some(self.started.elapsed() + STOP_PATIENCE));
        loop {
            self.look_at_leaving();
            match self.leaving_phase() {
                Some(Phase::LastChoice) => {}
                // What is pinned forwards what still comes.
                Some(Phase::Withdrawn) if !goes_on => {}
                Some(Phase::Withdrawn | Phase::Left { .. }) | None => return,
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                wake = life.next() => if let Wake::Stop(why) = wake {
                    tracing::warn!(signal = why, "not waited for packets that still come");
                    return;
                },
            }
        }
    }

    /// Begins to leave, or goes on until another time.
    fn leave(&mut self, until: Option<Duration>) {
        if let Some(leaving) = &mut self.leaving {
            leaving.leave.wait_until(until);
            return;
        }
        let (now, forwarded) = (self.started.elapsed(), self.forwarded().unwrap_or_default());
        self.leaving = Some(Leaving {
            leave: Leave::begin(now, forwarded, until),
            word: None,
            by_cluster: false,
            since: unix_now(),
            unowned: self.slow.only_here(),
        });
        self.heed_leaving();
    }

    /// Whether it leaves has changed: segments and routers are told. Members of its group do not hear this node any more, by its own
    /// word, once it has given up.
    fn heed_leaving(&mut self) {
        self.slow.leave(self.leaving.is_some());
        self.listen_to_members();
        self.tell_routers_of_addresses();
    }

    /// Listens to the members of the group, unless it is to take no part.
    pub(super) fn listen_to_members(&self) {
        let group = self.file.config.l2.group.as_ref();
        self.paths.set(group.filter(|_| self.leaving.is_none()));
    }

    /// VIP packets forwarded until now.
    fn forwarded(&self) -> anyhow::Result<u64> {
        let verdicts = self.tables.verdicts()?.into_iter();
        let forwarded = verdicts.filter(|(verdict, _)| verdict.fate() == Fate::Forward);
        Ok(forwarded.map(|(_, packets)| packets).sum())
    }
}

/// When the deadline is by the daemon's clock, which does not jump.
fn until(drain: Drain, now: Duration) -> Option<Duration> {
    let left = |deadline: u64| Duration::from_secs(deadline.saturating_sub(unix_now()));
    drain.deadline.map(|deadline| now + left(deadline))
}

/// `203.0.113.1, 203.0.113.2 and 3 more`.
fn listed(addresses: &[IpAddr]) -> String {
    let names: Vec<String> = addresses.iter().take(LISTED).map(ToString::to_string).collect();
    let names = names.join(", ");
    match addresses.len().saturating_sub(LISTED) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}
