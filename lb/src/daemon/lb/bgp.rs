//! What routers are told of VIP addresses, and what is told of routers.
//!
//! Never announces an address that the tables do not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_core::{
    announce::{Facts, NodeState, Reason, decide},
    bfd::State,
    bgp::StopReason,
    config::{BgpConfig, LbConfig},
    nexthop::NextHopView,
};

use super::Lb;
use crate::{
    announce::{
        bfd::BfdView,
        bgp::{Announced, BgpDriver, PeerStanding, Standing},
    },
    control::{AnnouncedView, BfdPeerView, BgpErrorView, BgpPeerView, BgpView, VipView},
    metrics::BgpFacts,
};

/// What becomes of VIP addresses, and why.
pub(super) struct Decided {
    /// Towards routers; `None`: there are none.
    pub(super) routers: Option<BTreeMap<IpAddr, Reason>>,
    /// On this node's segments.
    pub(super) segments: BTreeMap<IpAddr, Reason>,
}

impl Lb {
    /// Tells routers what the tables have.
    pub(super) fn tell_routers(&mut self) {
        self.tell_routers_of_addresses();
        let config = self.offered();
        if self.bgp.differs(config.as_ref()) && config != self.file.config.bgp {
            tracing::warn!(
                "bgp.graceful_restart is not offered: nothing is pinned, so nothing would forward while this process is away"
            );
        }
        if let Err(error) = self.bgp.configure(config.as_ref()) {
            tracing::error!("BGP: {error}");
        }
    }

    /// Tells routers which addresses they are to send here; nothing new is nothing told.
    pub(super) fn tell_routers_of_addresses(&mut self) {
        // Nothing is collected for nobody.
        let Some(decided) = self.decided_for_routers() else {
            return;
        };
        let announced = decided.into_iter().filter(|(_, reason)| reason.is_announced());
        let told = self.file.config.told.routers.as_ref();
        let names = |address: IpAddr| {
            let selected = told.and_then(|told| told.get(&address));
            (
                address,
                selected.map(|selected| Arc::clone(&selected.names)).unwrap_or_default(),
            )
        };
        self.bgp.announce(Announced {
            addresses: announced.map(|(address, _)| names(address)).collect(),
            draining: self.node_state() != NodeState::Serving,
        });
    }

    /// What becomes of all VIP addresses.
    pub(super) fn decided(&self) -> Decided {
        // Segments are left at once: others are there.
        let state = match self.node_state() {
            NodeState::Serving => NodeState::Serving,
            NodeState::LastChoice | NodeState::Draining => NodeState::Draining,
        };
        Decided {
            routers: self.decided_for_routers(),
            segments: decide(self.slow.on_segments(), state),
        }
    }

    fn decided_for_routers(&self) -> Option<BTreeMap<IpAddr, Reason>> {
        let config = self.file.config.bgp.as_ref()?;
        let told = &self.file.config.told;
        let facts = self.slow.towards_routers().map(|(address, facts)| {
            let facts = match told.routers.as_ref().map(|told| told.get(&address)) {
                // This node's file says it, of all addresses.
                None => Facts {
                    when_none: config.when_no_backend,
                    ..facts
                },
                Some(Some(selected)) => Facts {
                    when_none: selected.when_none,
                    is_elsewhere: told.is_elsewhere(address, selected),
                    ..facts
                },
                Some(None) => Facts {
                    has_way: false,
                    ..facts
                },
            };
            (address, facts)
        });
        Some(decide(facts, self.node_state()))
    }

    /// VIPs, with what becomes of their addresses towards routers and on segments.
    pub(super) fn vip_views(&self, view: &NextHopView) -> anyhow::Result<Vec<VipView>> {
        let mut views = self.tables.vips(&self.file.config.desired, view)?;
        let Decided { routers, segments } = self.decided();
        for view in &mut views {
            let told = |reason: &Reason| AnnouncedView {
                announced: reason.is_announced(),
                reason: reason.name().to_owned(),
                why: reason.to_string(),
            };
            view.bgp = routers
                .as_ref()
                .and_then(|decided| decided.get(&view.address))
                .map(told);
            let segment = segments.get(&view.address).filter(|reason| **reason != Reason::NoWay);
            view.l2 = segment.map(told);
        }
        Ok(views)
    }

    /// What is configured, without the promise to forward over a restart where the data plane ends with the process.
    fn offered(&self) -> Option<BgpConfig> {
        let mut config = self.file.config.bgp.clone();
        if self.pins.is_none() {
            let peers = config.iter_mut().flat_map(|config| &mut config.peers);
            peers.for_each(|peer| peer.session.restart_time_s = None);
        }
        config
    }

    /// Withdraws addresses that a configuration has not, before the tables lose them.
    pub(super) fn withdraw_without(&mut self, new: &LbConfig) {
        if self.file.config.bgp.is_none() {
            return;
        }
        let new = vip_addresses(new);
        let announced = self.bgp.announced();
        let addresses = announced.addresses.iter().filter(|(address, _)| new.contains(*address));
        let addresses = addresses
            .map(|(address, names)| (*address, Arc::clone(names)))
            .collect();
        let draining = announced.draining;
        self.bgp.announce(Announced { addresses, draining });
    }

    pub(super) fn bgp_view(&self) -> Result<Option<BgpView>, String> {
        if self.file.config.bgp.is_none() {
            return Ok(None);
        }
        let standing = self.bgp.standing();
        let standing = standing.ok_or("BGP is configured and does not run: the log says why".to_owned())?;
        Ok(Some(view(&standing, self.bgp.announced(), &self.bgp.liveness())))
    }

    pub(super) fn bgp_facts(&self) -> Option<Vec<BgpFacts>> {
        let peers = self.bgp.standing()?.peers.into_values();
        let liveness = self.bgp.liveness();
        let facts = peers.map(|PeerStanding { peer, session }| BgpFacts {
            name: peer.name.to_string(),
            session,
            bfd: liveness.get(&peer.address).map(|view| view.is.session),
        });
        Some(facts.collect())
    }

    /// The last words to routers, after [`Self::leave_at_stop`].
    ///
    /// Where the data plane goes on and graceful restart was offered, nothing is said, so that they keep the routes for the restart
    /// time; else they are told that this node stops.
    pub(super) async fn leave_routers(bgp: BgpDriver, goes_on: bool) {
        let Some(standing) = bgp.standing() else { return };
        let peers = standing.peers.len();
        if goes_on && bgp.restarts_gracefully() {
            tracing::info!(
                peers,
                "BGP peers that know graceful restart keep the routes to this node for the restart time"
            );
            bgp.stop(StopReason::Restart).await;
        } else {
            tracing::info!(peers, "BGP peers are told that this node stops");
            bgp.stop(StopReason::Shutdown("vipline stops".to_owned())).await;
        }
    }
}

fn vip_addresses(config: &LbConfig) -> BTreeSet<IpAddr> {
    config.desired.vips.keys().map(|vip| vip.address).collect()
}

fn view(standing: &Standing, announced: &Announced, liveness: &BTreeMap<IpAddr, BfdView>) -> BgpView {
    let age = standing.start.elapsed();
    BgpView {
        local_asn: standing.local_asn,
        router_id: standing.router_id,
        deaf: standing.deaf.clone(),
        addresses: announced.addresses.len(),
        peers: standing
            .peers
            .values()
            .map(|peer| peer_view(peer, age, liveness.get(&peer.peer.address)))
            .collect(),
    }
}

fn peer_view(PeerStanding { peer, session }: &PeerStanding, age: Duration, bfd: Option<&BfdView>) -> BgpPeerView {
    let counters = &session.counters;
    BgpPeerView {
        name: peer.name.to_string(),
        address: peer.address,
        asn: peer.session.peer_asn,
        state: session.state.name().to_owned(),
        up: session.connection.is_some(),
        seconds: seconds(age, session.since),
        router_id: session.remote.map(|remote| remote.router_id),
        hold_time_s: session.remote.map(|remote| remote.hold_s),
        graceful_restart: session.remote.map(|remote| remote.graceful_restart),
        announced: session.announced,
        withheld: session.withheld,
        ignored: counters.routes_ignored,
        malformed: counters.malformed,
        messages_sent: counters.sent,
        messages_received: counters.received,
        flaps: counters.flaps,
        bfd: bfd.map(|bfd| bfd_view(bfd, session.is_held)),
        last_error: session.last_error.as_ref().map(|(at, error)| BgpErrorView {
            seconds_ago: seconds(age, *at),
            kind: error.kind().to_owned(),
            error: error.to_string(),
            advice: error.advice().to_owned(),
        }),
    }
}

fn bfd_view(view: &BfdView, holds_bgp: bool) -> BfdPeerView {
    let session = &view.is.session;
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    BfdPeerView {
        state: session.state.name().to_owned(),
        remote_state: session.remote_state.name().to_owned(),
        up: session.state == State::Up,
        seconds: view.lasts.as_secs(),
        interval_ms: milliseconds(session.interval),
        detection_ms: session.detection_time.map(milliseconds),
        downs: session.downs,
        cause: session.cause.map(|cause| cause.name().to_owned()),
        holds_bgp,
        fault: view.fault.clone(),
    }
}

/// From one time to another, both since the same start.
fn seconds(now: Duration, then: Duration) -> u64 {
    now.saturating_sub(then).as_secs()
}
