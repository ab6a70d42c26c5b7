//! A loaded program with its tables, and the planner that knows what stands where.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use lb_core::{
    desired::{BackendId, Desired, NextHop, NextHops, VipKey},
    match_table,
    nexthop::NextHopView,
    plan::{Plan, PlanError, Planner},
};
use xdp_prog::{
    abi::{ABI_VERSION, BackendIndex, Config, Traffic, VipIndex},
    verdict::Verdict,
};

use crate::{
    control::{BackendView, NextHopKind, SetView, VipView},
    datapath::{Attachment, Balancer, grace_period, jiffies_per_second},
    source::file::LbFile,
};

/// What earlier programs of this daemon counted: a program that is replaced takes its maps along.
#[derive(Clone, Debug, Default)]
pub(super) struct Carried {
    verdicts: BTreeMap<Verdict, u64>,
    /// What the slow path's budgets let through to nobody, by the verdict that it would have had.
    shed: BTreeMap<Verdict, u64>,
    vips: BTreeMap<VipKey, Traffic>,
    backends: BTreeMap<BackendId, Traffic>,
}

/// How much there is.
pub(super) struct Sizes {
    pub(super) vips: usize,
    pub(super) backends: usize,
    pub(super) ready: usize,
    pub(super) tables: usize,
}

/// A loaded program with its tables.
pub(super) struct Tables {
    pub(super) balancer: Balancer,
    pub(super) planner: Planner,
    carried: Carried,
    /// A write failed half-way: the maps are in a safe state that the planner does not know.
    lost: bool,
}

impl Tables {
    /// Loads a program for this configuration, and for `more` features than it asks for, with empty tables. Its lookup tables will
    /// be no smaller than those of the program that it shall take over from: their size decides where flows go.
    pub(super) fn load(file: &LbFile, more: u64, before: Option<&Self>) -> anyhow::Result<Self> {
        let LbFile { config, seed } = file;
        let (match_mask_v4, match_mask_v6) = match_table::masks_for(config.capacity.vips);
        let (source_mask_v4, source_mask_v6) = config.encap.source_masks();
        let constants = Config {
            abi_version: ABI_VERSION,
            features: config.features() | more,
            seed: seed.words(),
            match_salt: 0,
            match_mask_v4,
            match_mask_v6,
            source_mask_v4,
            source_mask_v6,
        };
        let hz = jiffies_per_second()?;
        let mut balancer = Balancer::load(&constants, &config.capacity)?;
        let names: Vec<&str> = config.interfaces.iter().map(|interface| &*interface.name).collect();
        balancer.ports.add(&names)?;
        let planner = Planner::new(&config.capacity, &constants, hz);
        let planner = match before {
            Some(before) => planner.following(&before.planner),
            None => planner,
        };
        Ok(Self {
            balancer,
            planner,
            carried: Carried::default(),
            lost: false,
        })
    }

    /// Whether tables of this configuration would go into its maps, tried without any.
    ///
    /// # Errors
    ///
    /// What does not fit.
    pub(super) fn rehearse(file: &LbFile) -> Result<(), PlanError> {
        let config = &file.config;
        let (match_mask_v4, match_mask_v6) = match_table::masks_for(config.capacity.vips);
        let constants = Config {
            features: config.features(),
            match_mask_v4,
            match_mask_v6,
            ..Config::EMPTY
        };
        let mut planner = Planner::new(&config.capacity, &constants, 100);
        planner.plan(&config.desired, &NextHops::new()).map(drop)
    }

    /// Makes the maps say what is desired; returns how many writes that took.
    ///
    /// # Errors
    ///
    /// When it does not fit: nothing has changed then. When a write failed: the maps are in a safe state that the planner does not
    /// know, and only a new program helps.
    pub(super) fn reach(&mut self, desired: &Desired, hops: &NextHops) -> anyhow::Result<usize> {
        self.check_known()?;
        let plan = self.planner.plan(desired, hops)?;
        self.write(&plan)
    }

    /// As [`Self::reach`] where nothing but next hops has changed, at a fraction of its cost.
    pub(super) fn follow(&mut self, hops: &NextHops) -> anyhow::Result<usize> {
        self.check_known()?;
        let plan = self.planner.plan_hops(hops);
        self.write(&plan)
    }

    fn check_known(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.lost,
            "an earlier change of the maps failed half-way; the next reload loads them anew"
        );
        Ok(())
    }

    fn write(&mut self, plan: &Plan) -> anyhow::Result<usize> {
        let applied = self.balancer.apply(&plan.writes).inspect_err(|_| self.lost = true)?;
        if applied.writes > 0 {
            let summary = plan.summary;
            tracing::debug!(?summary, writes = applied.writes, took = ?applied.took, "tables written");
        }
        Ok(applied.writes)
    }

    /// Whether only a new program helps.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Puts this program in the place of another, interface by interface. After this no packet is in the old one.
    ///
    /// # Errors
    ///
    /// When an interface keeps the old program, or nobody knows whether packets are still in it: all that were taken are given back.
    pub(super) fn take_over(&mut self, attachments: &mut [Attachment], old: &Self) -> anyhow::Result<()> {
        let mut taken = 0;
        let result = attachments.iter_mut().try_for_each(|attachment| {
            let result = self.balancer.program.take_over(attachment);
            taken += usize::from(result.is_ok());
            result
        });
        let result = result.and_then(|()| grace_period().map(drop));
        if let Err(error) = result {
            for attachment in attachments.iter_mut().take(taken) {
                old.balancer
                    .program
                    .take_over(attachment)
                    .context("cannot go back to the old program")?;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Goes on counting where the program before had come to. It must be done: no packet in it, and no worker at its tables.
    pub(super) fn go_on_from(&mut self, old: &Self) {
        self.carried = old.totals().unwrap_or_else(|error| {
            tracing::error!("what the program before this one counted is not known: {error}");
            old.carried.clone()
        });
    }

    fn totals(&self) -> anyhow::Result<Carried> {
        let mut totals = self.carried.clone();
        totals.verdicts = self.verdicts()?.into_iter().collect();
        totals.shed = self.shed()?.into_iter().collect();
        let counts = self.balancer.counters.of_vips(vip_end(&self.planner))?;
        for vip in self.planner.vips() {
            add(totals.vips.entry(vip.key).or_default(), at(&counts, vip.index.0));
        }
        let counts = self.balancer.counters.of_backends(backend_end(&self.planner))?;
        for backend in self.planner.backends() {
            add(
                totals.backends.entry(backend.id.clone()).or_default(),
                at(&counts, u32::from(backend.index.0)),
            );
        }
        Ok(totals)
    }

    /// Packets by verdict.
    pub(super) fn verdicts(&self) -> anyhow::Result<Vec<(Verdict, u64)>> {
        let mut counts = self.balancer.counters.verdicts.read()?;
        for (verdict, count) in &mut counts {
            *count += self.carried.verdicts.get(verdict).copied().unwrap_or_default();
        }
        Ok(counts)
    }

    /// Packets that the slow path's budgets kept from it, by verdict.
    pub(super) fn shed(&self) -> anyhow::Result<Vec<(Verdict, u64)>> {
        let mut counts = self.balancer.counters.shed()?;
        for (verdict, count) in &mut counts {
            *count += self.carried.shed.get(verdict).copied().unwrap_or_default();
        }
        Ok(counts)
    }

    /// All VIPs, for people.
    pub(super) fn vips(&self, desired: &Desired, view: &NextHopView) -> anyhow::Result<Vec<VipView>> {
        let counts = self.balancer.counters.of_vips(vip_end(&self.planner))?;
        let ready = |id: &BackendId| matches!(view.next_hops.get(id), Some(NextHop::Via(_) | NextHop::Local));
        let views = self.planner.vips().map(|vip| {
            let mut traffic = at(&counts, vip.index.0);
            add(
                &mut traffic,
                self.carried.vips.get(&vip.key).copied().unwrap_or_default(),
            );
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
                    .count(),
                slots: vip.table.slots,
                shared_by: vip.shared_by,
                limited: wanted.is_some_and(|vip| vip.limits.packets.is_some() || vip.limits.syns.is_some()),
                allowed_sources: wanted
                    .and_then(|vip| vip.allowed_sources.as_ref())
                    .map(|ranges| ranges.iter().map(ToString::to_string).collect()),
                affinity: vip.client_affinity.into(),
                packets: traffic.packets,
                bytes: traffic.bytes,
            }
        });
        Ok(views.collect())
    }

    /// All backends, for people.
    pub(super) fn backends(&self, view: &NextHopView) -> anyhow::Result<Vec<BackendView>> {
        let counts = self.balancer.counters.of_backends(backend_end(&self.planner))?;
        let mut sets = self.sets();
        let views = self.planner.backends().map(|backend| {
            let mut traffic = at(&counts, u32::from(backend.index.0));
            add(
                &mut traffic,
                self.carried.backends.get(backend.id).copied().unwrap_or_default(),
            );
            BackendView {
                name: backend.id.to_string(),
                address: backend.address,
                next_hop: self.next_hop(backend.id, view),
                sets: sets.remove(backend.id).unwrap_or_default(),
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
    pub(super) fn next_hop(&self, id: &BackendId, view: &NextHopView) -> NextHopKind {
        match view.next_hops.get(id) {
            Some(NextHop::Via(via)) => {
                let interfaces = self.balancer.ports.interfaces();
                let [a, b, c, d, e, f] = via.destination_mac;
                NextHopKind::Via {
                    interface: interfaces
                        .get(usize::from(via.port))
                        .map_or_else(String::new, |i| i.name.clone()),
                    mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
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
    pub(super) fn sizes(&self, view: &NextHopView) -> Sizes {
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

fn add(sum: &mut Traffic, traffic: Traffic) {
    sum.packets += traffic.packets;
    sum.bytes += traffic.bytes;
}

fn at(counts: &[Traffic], index: u32) -> Traffic {
    counts.get(index as usize).copied().unwrap_or_default()
}

/// Entries of `VIP_COUNTERS` up to the last in use.
fn vip_end(planner: &Planner) -> u32 {
    planner
        .vips()
        .map(|vip| vip.index)
        .max()
        .map_or(0, |VipIndex(index)| index + 1)
}

/// Entries of `BACKEND_COUNTERS` up to the last in use.
fn backend_end(planner: &Planner) -> u32 {
    planner
        .backends()
        .map(|backend| backend.index)
        .max()
        .map_or(0, |BackendIndex(index)| u32::from(index) + 1)
}
