//! VIPs, backends and sizes, for people. Never changes anything.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{
    announce::Mac,
    desired::{BackendId, Desired, NextHop},
    health::Health,
    nexthop::NextHopView,
};

use super::{Sizes, Tables, at, backend_end, vip_end};
use crate::control::{BackendView, NextHopKind, SetView, VipView};

impl Tables {
    /// All VIPs, for people.
    pub(in crate::daemon) fn vips(&self, desired: &Desired, view: &NextHopView) -> anyhow::Result<Vec<VipView>> {
        let counts = self.balancer.counters.of_vips(vip_end(&self.planner))?;
        let ready = |id: &BackendId| matches!(view.next_hops.get(id), Some(NextHop::Via(_) | NextHop::Local));
        let views = self.planner.vips().map(|vip| {
            let traffic = at(&counts, vip.index.0);
            let wanted = desired.vips.get(&vip.key);
            VipView {
                address: vip.key.address,
                protocol: vip.key.protocol.name().to_owned(),
                port: vip.key.port,
                backends: vip.set.members.len(),
                ready: vip
                    .set
                    .members
                    .iter()
                    .filter(|member| member.weight > 0 && ready(&member.backend))
                    .filter(|member| {
                        vip.unfit
                            .is_none_or(|unfit| unfit.health(&member.backend) == Health::Eligible)
                    })
                    .count(),
                slots: vip.table.slots,
                shared_by: vip.shared_by,
                limited: wanted.is_some_and(|vip| vip.limits.packets.is_some() || vip.limits.syns.is_some()),
                allowed_sources: wanted
                    .and_then(|vip| vip.allowed_sources.as_ref())
                    .map(|ranges| ranges.iter().map(ToString::to_string).collect()),
                affinity: vip.client_affinity.into(),
                scheduler: vip.scheduler.name().to_owned(),
                affinity_timeout_s: vip.affinity_timeout_s,
                bgp: None,
                l2: None,
                packets: traffic.packets,
                bytes: traffic.bytes,
            }
        });
        Ok(views.collect())
    }

    /// All backends, for people.
    pub(in crate::daemon) fn backends(&self, view: &NextHopView) -> anyhow::Result<Vec<BackendView>> {
        let counts = self.balancer.counters.of_backends(backend_end(&self.planner))?;
        let mut sets = self.sets();
        let views = self.planner.backends().map(|backend| {
            let traffic = at(&counts, u32::from(backend.index.0));
            BackendView {
                name: backend.id.to_string(),
                address: backend.address,
                next_hop: self.next_hop(backend.id, view),
                has_departed: backend.has_departed,
                is_drained: self.drains.of(backend.id).is_some(),
                sets: sets.remove(backend.id).unwrap_or_default(),
                open_flows: self.open_flows(backend.index),
                checks: Vec::new(),
                packets: traffic.packets,
                bytes: traffic.bytes,
            }
        });
        Ok(views.collect())
    }

    /// The sets of every backend, each with the VIPs that use it.
    fn sets(&self) -> BTreeMap<BackendId, Vec<SetView>> {
        let mut vips_of_set: BTreeMap<_, (usize, _)> = BTreeMap::new();
        for vip in self.planner.vips() {
            vips_of_set.entry((vip.set, vip.table)).or_insert((0, vip.table)).0 += 1;
        }
        let mut sets: BTreeMap<BackendId, Vec<SetView>> = BTreeMap::new();
        for ((set, _), (vips, table)) in vips_of_set {
            let shares = self.planner.shares(table);
            for member in &set.members {
                sets.entry(member.backend.clone()).or_default().push(SetView {
                    vips,
                    weight: member.weight,
                    slots: shares.get(&member.backend).copied().unwrap_or_default(),
                    of: table.slots,
                });
            }
        }
        sets
    }

    /// How a backend is reached, for people.
    pub(in crate::daemon) fn next_hop(&self, id: &BackendId, view: &NextHopView) -> NextHopKind {
        match view.next_hops.get(id) {
            Some(NextHop::Via(via)) => {
                let interfaces = self.balancer.ports.interfaces();
                NextHopKind::Via {
                    interface: interfaces
                        .get(usize::from(via.port))
                        .map_or_else(String::new, |i| i.name.clone()),
                    mac: Mac(via.destination_mac).to_string(),
                    source: via.source,
                    mtu: via.mtu,
                }
            }
            Some(NextHop::Local) => NextHopKind::Local,
            Some(NextHop::Unresolved) | None => NextHopKind::Unresolved {
                reason: view
                    .unresolved
                    .get(id)
                    .map_or_else(|| "not looked up yet".to_owned(), ToString::to_string),
            },
        }
    }

    /// How much there is.
    pub(in crate::daemon) fn sizes(&self, view: &NextHopView) -> Sizes {
        let reachable = |id: &BackendId| matches!(view.next_hops.get(id), Some(NextHop::Via(_) | NextHop::Local));
        let backends: BTreeSet<&BackendId> = self.planner.backends().map(|backend| backend.id).collect();
        Sizes {
            vips: self.planner.vips().count(),
            backends: backends.len(),
            ready: backends.into_iter().filter(|id| reachable(id)).count(),
            tables: self.planner.tables(),
        }
    }
}
