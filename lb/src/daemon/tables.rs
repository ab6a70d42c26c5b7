//! A loaded program with its tables, and the planner that knows what stands where.

mod shown;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use lb_core::{
    config::{Capacity, TransitConfig},
    desired::{BackendId, Desired, NextHops},
    drain::{Drains, flows_behind},
    health::Overlay,
    match_table,
    plan::{Moment, Plan, PlanError, Planner, Table},
};
use xdp_prog::{
    abi::{ABI_VERSION, Activity, BackendIndex, Config, FLOW_WAYS, Traffic, VipIndex, feature, tick_shift},
    verdict::Verdict,
};

use crate::{
    chance,
    control::{DrainCause, DrainView, FlowTableView},
    datapath::{Attachment, Balancer, Generation, Jiffies, Pins, Readings, Record, Sweep, grace_period, unrecorded},
    metrics::{FlowFacts, MAX_BACKEND_SERIES, MAX_VIP_SERIES, Meters, Place},
    source::file::LbFile,
};

/// Seconds in which a slot's last packet counts as one of lately.
const LATELY_S: f64 = 60.0;

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
    /// What the maps were made for.
    pub(super) capacity: Capacity,
    /// The counters, for the thread of the metrics.
    readings: Arc<Readings>,
    /// Grows before each write: what stands at a position of the counters may change.
    changes: Arc<AtomicU64>,
    /// What the metrics were told last; good while `changes` is what it was.
    meters: Option<Arc<Meters>>,
    /// What the program's ticks are to this process.
    pub(super) jiffies: Jiffies,
    transit: TransitConfig,
    /// How far its flow records are swept.
    sweep: Sweep,
    /// Backends that are being drained by an operator's word.
    pub(super) drains: Drains,
    /// What is known of backends' health.
    pub(super) overlay: Overlay,
    /// Datagrams that had found no room among the flow records when it was looked at last.
    unrecorded: u64,
    /// A write failed half-way: the maps are in a safe state that the planner does not know.
    lost: bool,
}

impl Tables {
    /// Loads a program for this configuration, and for `more` features than it asks for, with empty tables. Its lookup tables will
    /// be no smaller than those of the program that it shall take over from: their size decides where flows go.
    pub(super) fn load(file: &LbFile, more: u64, before: Option<&Self>) -> anyhow::Result<Self> {
        let config = &file.config;
        // The distance of the two clocks stays until the next boot: a program that takes over need not ask again.
        let jiffies = match before {
            Some(before) => before.jiffies,
            None => Jiffies::calibrate()?,
        };
        // Records go on where they have as much room as before, and name backends that have a place.
        let keeps = |before: &&Self| {
            let has_room = before.planner.fits(&config.capacity);
            if !has_room {
                tracing::warn!(
                    "capacity.backends is below what is in use: slots in transit and their flows are forgotten"
                );
            }
            has_room && config.transit.enabled && before.planner.config().flow_mask == config.transit.flow_mask()
        };
        let kept = before.filter(keeps).map(|before| before.planner.config());
        let constants = Config {
            flow_secret: kept.map_or_else(chance::number, |kept| kept.flow_secret),
            ..Self::constants(file, more, jiffies)
        };
        let mut balancer = Balancer::load(&constants, &config.capacity)?;
        let names: Vec<&str> = config.interfaces.iter().map(|interface| &*interface.name).collect();
        balancer.ports.add(&names)?;
        let planner = Planner::new(&config.capacity, &constants, jiffies.hz());
        let planner = match before {
            Some(before) if kept.is_some() => {
                let planner = planner.following(&before.planner);
                planner.keeping_flows_of(&before.planner, &before.activity())
            }
            Some(before) => planner.following(&before.planner),
            None => planner,
        };
        Ok(Self {
            readings: Arc::new(balancer.counters.readings()?),
            balancer,
            planner,
            capacity: config.capacity,
            changes: Arc::default(),
            meters: None,
            jiffies,
            transit: config.transit,
            sweep: Sweep::default(),
            drains: before.map(|before| before.drains.clone()).unwrap_or_default(),
            overlay: before.map(|before| before.overlay.clone()).unwrap_or_default(),
            unrecorded: 0,
            lost: false,
        })
    }

    /// What a program for this configuration, and for `more` features than it asks for, is loaded with; without the secret of its flow
    /// records.
    pub(super) fn constants(file: &LbFile, more: u64, jiffies: Jiffies) -> Config {
        let LbFile { config, seed } = file;
        let (match_mask_v4, match_mask_v6) = match_table::masks_for(config.capacity.vips);
        let (source_mask_v4, source_mask_v6) = config.encap.source_masks();
        Config {
            abi_version: ABI_VERSION,
            features: config.features() | more,
            seed: seed.words(),
            match_salt: 0,
            match_mask_v4,
            match_mask_v6,
            source_mask_v4,
            source_mask_v6,
            flow_mask: config.transit.flow_mask(),
            flow_secret: 0,
            tick_shift: u64::from(tick_shift(jiffies.hz())),
        }
    }

    /// The maps that an earlier process left, with a program of this one's for them that is not in place yet. What of them is as
    /// desired is known to be so; the rest is for the next plan. Records of flows are known by the secret that they were made with.
    ///
    /// # Errors
    ///
    /// When they are not all there, or contradict themselves.
    pub(super) fn adopt(generation: &Generation, desired: &Desired, transit: TransitConfig) -> anyhow::Result<Self> {
        let record = Record::read(generation)?.context("its record is of another version")?;
        let abi = record.config.abi_version;
        anyhow::ensure!(
            abi == ABI_VERSION,
            "its maps are of ABI {abi}, whatever their path says, and this version's is {ABI_VERSION}"
        );
        let jiffies = Jiffies::calibrate()?;
        let balancer = Balancer::adopt(&record, generation)?;
        // The rings of a capture went with the process before.
        balancer.aim_at_nothing()?;
        // Packets that saw what stood before its last write.
        grace_period()?;
        let image = balancer.image(&record)?;
        let found = (image, jiffies.ticks());
        let planner = Planner::adopt(&record.capacity, &record.config, jiffies.hz(), found, desired)?;
        let unrecorded = balancer.counters.flows.sum(0)?.datagrams;
        Ok(Self {
            readings: Arc::new(balancer.counters.readings()?),
            balancer,
            planner,
            capacity: record.capacity,
            changes: Arc::default(),
            meters: None,
            jiffies,
            transit,
            sweep: Sweep::default(),
            drains: Drains::default(),
            overlay: Overlay::default(),
            unrecorded,
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
        let unrecorded = self.balancer.counters.flows.sum(0)?.datagrams;
        let hz = self.jiffies.hz();
        let activity = activity(&self.balancer, self.jiffies);
        // Of the others the overlay says it.
        let departed = self.planner.backends().filter(|backend| backend.has_departed);
        let gone = departed.filter(|backend| self.overlay.is_gone(backend.id));
        let mut dead = self.drains.removed(unix_now());
        dead.extend(gone.map(|backend| backend.id.clone()));
        let (sweep, open_flows) = (&self.sweep, &self.balancer.open_flows);
        let is_scheduled = self.planner.is_scheduled();
        let named = |backend: BackendIndex| {
            let is_open = || open_flows.load(u32::from(backend.0), 0).is_ok_and(|open| open != 0);
            is_scheduled && (sweep.names(backend.0) || is_open())
        };
        let moment = Moment {
            now: self.jiffies.ticks(),
            unix_s: unix_now(),
            timeouts: self.transit.timeouts(hz),
            lives: self.transit.lives(hz),
            activity: &activity,
            dead: &dead,
            overlay: Some(&self.overlay),
            named: &named,
            window_too_short: unrecorded != self.unrecorded,
        };
        let waited = self.planner.waiting();
        let plan = self.planner.plan_at(desired, hops, &moment)?;
        drop(activity);
        let waiting = self.planner.waiting();
        if waiting > waited {
            tracing::warn!(
                "{waiting} VIPs keep the backends that they have until transits end: there is no room for more transits \
                 (`capacity.table_segments`)"
            );
        } else if waiting == 0 && waited > 0 {
            tracing::info!("no VIP waits for the room of a transit any more");
        }
        self.unrecorded = unrecorded;
        self.write(&plan)
    }

    /// Sweeps a part of the flow records: with slots in transit or a scheduler the table is done in half a minute, else in two.
    pub(super) fn sweep(&mut self) -> anyhow::Result<()> {
        let matters = self.planner.is_in_transit() || self.planner.is_scheduled();
        if !matters {
            self.balancer.forget_marks()?;
        }
        let parts = if matters { 16 } else { 64 };
        let lives = self.transit.lives(self.jiffies.hz());
        Ok(self.sweep.step(&self.balancer, parts, self.jiffies.ticks(), lives)?)
    }

    /// Flow records that live and room for so many, and what found none; `None` where flows are not recorded.
    pub(super) fn flow_table(&self) -> anyhow::Result<Option<FlowTableView>> {
        if self.planner.config().features & feature::TRANSIT == 0 {
            return Ok(None);
        }
        let unrecorded = unrecorded(self.balancer.counters.flows.sum(0)?);
        let (records, flows) = self.flow_records();
        Ok(Some(FlowTableView {
            records,
            flows,
            unrecorded: unrecorded.map(|(kind, count)| (kind.to_owned(), count)).into(),
        }))
    }

    /// Flow records there is room for, and those that live, as counted last.
    fn flow_records(&self) -> (usize, Option<u64>) {
        (self.balancer.flows.entries() as usize * FLOW_WAYS, self.sweep.flows())
    }

    /// The same for the metrics.
    pub(super) fn flow_facts(&self) -> Option<FlowFacts> {
        let is_kept = self.planner.config().features & feature::TRANSIT != 0;
        let (room, live) = self.flow_records();
        is_kept.then_some(FlowFacts { room, live })
    }

    /// Open flows of VIPs with a scheduler at a backend.
    fn open_flows(&self, backend: BackendIndex) -> u64 {
        let open = self.balancer.open_flows.load(u32::from(backend.0), 0);
        // Without the feature there is one word, which nobody writes.
        open.unwrap_or_default()
    }

    /// Everybody who takes no new flows, by a word, by weight 0 or because no set has them any more; and what still lives there.
    pub(super) fn drain_views(&self) -> anyhow::Result<Vec<DrainView>> {
        let mut causes: BTreeMap<&BackendId, DrainCause> = self.idle_backends();
        // A cluster also names those of which nothing was ever here.
        let drained = self.drains.iter().map(|(id, _)| id);
        let known = drained.filter(|id| self.planner.backend_index(id).is_some());
        causes.extend(known.map(|id| (id, DrainCause::Word)));
        if causes.is_empty() {
            return Ok(Vec::new());
        }
        let (hz, unix) = (self.jiffies.hz(), unix_now());
        let per_tick = f64::from(1_u32 << tick_shift(hz)) / f64::from(hz);
        let lately = (LATELY_S / per_tick).ceil() as u32;
        let records = self.balancer.records(self.jiffies.ticks(), self.transit.lives(hz))?;
        let remains = self.planner.remains(self.activity(), (self.jiffies.ticks(), lately));
        let places: BTreeMap<&BackendId, (BackendIndex, IpAddr)> = {
            let backends = self.planner.backends();
            backends
                .map(|backend| (backend.id, (backend.index, backend.address)))
                .collect()
        };
        let views = causes.into_iter().map(|(id, cause)| {
            let drain = self.drains.of(id);
            let is_dead = cause == DrainCause::Left && self.overlay.is_gone(id);
            let is_over = is_dead || drain.is_some_and(|drain| drain.is_over(unix));
            let (index, address) = places.get(id).copied().unzip();
            let remains = index.and_then(|index| remains.get(&index)).copied().unwrap_or_default();
            // Of one that was given up, records are none, wherever they stand.
            let recorded = index.filter(|_| !is_over).and_then(|index| records.get(&index));
            let recorded = recorded.copied().unwrap_or_default();
            DrainView {
                backend: id.to_string(),
                cause,
                address,
                seconds: drain.map(|drain| unix.saturating_sub(drain.since)),
                deadline_s: drain
                    .and_then(|drain| drain.deadline)
                    .map(|deadline| deadline.saturating_sub(unix)),
                slots: remains.slots,
                active_slots: remains.active,
                flows: flows_behind(remains.active, remains.slots),
                recorded,
                silent_s: remains.silent.map(|ticks| (f64::from(ticks) * per_tick) as u64),
                empty: recorded == 0 && (is_over && remains.slots == 0 || !remains.is_named),
            }
        });
        Ok(views.collect())
    }

    /// Backends that no set gives new flows to.
    fn idle_backends(&self) -> BTreeMap<&BackendId, DrainCause> {
        let members = self.planner.vips().flat_map(|vip| &vip.set.members);
        let takers: BTreeSet<&BackendId> = members
            .filter(|member| member.weight > 0)
            .map(|member| &member.backend)
            .collect();
        let idle = self.planner.backends().filter(|backend| !takers.contains(backend.id));
        idle.map(|backend| {
            let cause = if backend.has_departed {
                DrainCause::Left
            } else {
                DrainCause::Weight
            };
            (backend.id, cause)
        })
        .collect()
    }

    /// Takes on timeouts.
    pub(super) fn set_transit(&mut self, transit: TransitConfig) {
        self.transit = transit;
    }

    /// Every backend that flows may go to, those included that nothing desired names any more.
    pub(super) fn addresses(&self) -> BTreeMap<BackendId, IpAddr> {
        let backends = self.planner.backends();
        backends.map(|backend| (backend.id.clone(), backend.address)).collect()
    }

    /// What packets noted of slots in transit.
    fn activity(&self) -> impl Fn(Table, usize) -> Activity {
        activity(&self.balancer, self.jiffies)
    }

    /// Takes over the records of flows that another program has made, where this one knows them by the same secret; once before it
    /// takes that one's place, and once after, for those that were made meanwhile.
    pub(super) fn take_records(&self, old: &Self) -> anyhow::Result<()> {
        let same = self.planner.config().flow_secret == old.planner.config().flow_secret;
        if same && (old.planner.is_in_transit() || old.planner.is_scheduled()) {
            self.balancer.take_records(&old.balancer)?;
        }
        Ok(())
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
        if !plan.writes.is_empty() {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
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

    /// Pins this program, and puts it in the place of another, interface by interface. After this no packet is in the old one.
    ///
    /// # Errors
    ///
    /// When an interface keeps the old program, or nobody knows whether packets are still in it: all that were taken are given back.
    pub(super) fn take_over(&mut self, attachments: &mut [Attachment], pins: &mut Option<Pins>) -> anyhow::Result<()> {
        let before = pins.as_ref().and_then(Pins::current);
        if let Some(pins) = pins {
            pins.install(&mut self.balancer)?;
        }
        let mut displaced = Vec::new();
        let result = attachments.iter_mut().try_for_each(|attachment| {
            displaced.push(self.balancer.program.take_over(attachment)?);
            Ok(())
        });
        let result = result.and_then(|()| grace_period().map(drop));
        if let Err(error) = result {
            for (attachment, program) in attachments.iter_mut().zip(&displaced) {
                attachment
                    .give_back(program)
                    .context("cannot go back to the old program")?;
            }
            if let Some(pins) = pins {
                pins.take_back(before)?;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Goes on counting where the program before had come to. It must be done: no packet in it, and no worker at its tables.
    pub(super) fn go_on_from(&self, old: &Self) {
        if let Err(error) = self.try_go_on_from(old) {
            tracing::error!("what the program before this one counted is not known: {error}");
        }
    }

    /// The counters and what stands where in them, for the thread of the metrics.
    pub(super) fn meters(&mut self) -> Arc<Meters> {
        let seen = self.changes.load(Ordering::SeqCst);
        if let Some(meters) = &self.meters
            && meters.seen == seen
        {
            return Arc::clone(meters);
        }
        let vips = self.planner.vips().map(|vip| Place {
            who: vip.key,
            index: vip.index.0,
        });
        let backends = self.planner.backends().map(|backend| Place {
            who: (backend.id.clone(), backend.address),
            index: u32::from(backend.index.0),
        });
        let left_out = (
            self.planner.vips().count().saturating_sub(MAX_VIP_SERIES),
            self.planner.backends().count().saturating_sub(MAX_BACKEND_SERIES),
        );
        let meters = Arc::new(Meters {
            readings: Arc::clone(&self.readings),
            changes: Arc::clone(&self.changes),
            seen,
            vips: vips.take(MAX_VIP_SERIES).collect(),
            backends: backends.take(MAX_BACKEND_SERIES).collect(),
            left_out,
        });
        self.meters = Some(Arc::clone(&meters));
        meters
    }

    fn try_go_on_from(&self, old: &Self) -> anyhow::Result<()> {
        let carried = &self.balancer.counters.passed;
        for (verdict, packets) in old.verdicts()? {
            carried.add_verdict(verdict, packets);
        }
        for (verdict, packets) in old.shed()? {
            carried.add_shed(verdict, packets);
        }
        let counts = old.balancer.counters.of_vips(vip_end(&old.planner))?;
        for vip in old.planner.vips() {
            if let Some(now) = self.planner.vip(&vip.key) {
                carried.add_vip(now.index, at(&counts, vip.index.0));
            }
        }
        let counts = old.balancer.counters.of_backends(backend_end(&old.planner))?;
        for backend in old.planner.backends() {
            if let Some(now) = self.planner.backend_index(backend.id) {
                carried.add_backend(now, at(&counts, u32::from(backend.index.0)));
            }
        }
        Ok(())
    }

    /// Packets by verdict.
    pub(super) fn verdicts(&self) -> anyhow::Result<Vec<(Verdict, u64)>> {
        Ok(self.balancer.counters.of_verdicts()?)
    }

    /// Packets that the slow path's budgets kept from it, by verdict.
    pub(super) fn shed(&self) -> anyhow::Result<Vec<(Verdict, u64)>> {
        Ok(self.balancer.counters.of_sheds()?)
    }
}

/// Reads what packets noted. Where nothing can be read, they are taken to come: nothing ends early.
fn activity(balancer: &Balancer, jiffies: Jiffies) -> impl Fn(Table, usize) -> Activity {
    let now = jiffies.ticks();
    move |table, slot| {
        let (segment, word) = table.word(slot);
        let noted = balancer
            .slots
            .segment(segment)
            .and_then(|segment| segment.load(word + 1, 0));
        noted.map_or(Activity::new(now, now), Activity)
    }
}

/// Seconds since 1970: what drains are kept by.
pub(super) fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
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
