//! From what the tables should say to an ordered list of writes, of which every prefix is a safe state.
//!
//! Never touches a map: a [`Plan`] is data, and the daemon carries it out store by store. Never depends on anything but its
//! arguments and what it planned before: the same history gives the same positions and writes everywhere.
//!
//! | file | what it decides |
//! |---|---|
//! | `write` | the vocabulary: stores, fills, grace periods |
//! | `image` | what the maps hold, in plain memory |
//! | `books` | who has which position |
//! | `adopt` | the books, from maps that an earlier process wrote |
//! | `backends` | how lines change while packets read them |
//! | `tables`, `sets` | lookup tables and range sets, shared by content |
//! | `schedules` | who may take new flows of VIPs with a scheduler |
//! | `entries` | the order of words of a match entry |
//! | `transit` | wide tables: made for a move, ended slot by slot |
//! | `published` | transits that are published: where a VIP begins that is new here, and who waits for the end |
//! | `health` | which members take no new flows |
//! | `moment` | what a plan must know of time and packets |
//! | `waits` | transit memory at its bound: what waits until transits end |
//! | `vips` | what a VIP needs before it is published or retargeted |
//! | `observe` | what is shown |
//! | `draft` | the plan in the making, and how it is undone |
//!
//! # Order
//!
//! 1. VIPs and address entries that go away: the key's last word is cleared. Grace; what they alone used is free.
//! 2. Lines of new backends; lines that change.
//! 3. Settings: the new range set is written, then the one word that names it.
//! 4. Entries that make room for new ones: the copy is written; after a grace period the original is cleared; after another its
//!    place is written again. All such moves of a plan share the two, unless one waits for another.
//! 5. VIP by VIP: table, range set, options, then the match entry (meta first, the key's last word last) or, for a VIP that is
//!    there already, one store of its meta. Then new address entries.
//! 6. Grace. UDP flows that were recorded at backends that are unhealthy now are forgotten. Lines of backends that nothing names any more are cleared; tables, ranges and positions are free for later plans
//!    (or for this one, where it would not fit otherwise: then there is a grace period more).
//!
//! # If carrying out a plan fails, or ends with the process
//!
//! Every prefix is a safe state, but the planner has moved on: it cannot plan on maps that it does not know. Read them into an
//! [`Image`] and adopt that ([`Planner::adopt`]): the next plan goes on from there. Or load a program with new maps, plan on a new
//! [`Planner`], and let it take over.

mod adopt;
mod backends;
mod books;
mod draft;
mod entries;
mod error;
mod health;
mod image;
mod moment;
mod observe;
mod published;
mod schedules;
mod sets;
mod tables;
mod transit;
mod vips;
mod waits;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

pub use adopt::AdoptError;
pub use error::{FeatureUse, PlanError, RangesOf};
pub use image::Image;
pub use moment::{Moment, TCP_IDLE_S, TRANSIT_MAX_S, UDP_IDLE_S};
pub use observe::{BackendInfo, Remains, Usage, VipInfo};
pub use tables::Table;
pub use vips::rates;
pub use write::{MapId, Write};
use xdp_prog::abi::{Activity, Config, LineMeta, VipIndex, feature, setting};

use self::{
    backends::{line, write_lines},
    books::Books,
    draft::Draft,
    entries::Entries,
    health::Laid,
    schedules::Rule,
    tables::{Hold, SetKey},
    transit::Origin,
};
use crate::{
    config::Capacity,
    desired::{BackendId, Desired, NextHops},
    ranges::RangeSet,
};

/// What to write, in this order, and what it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The writes; empty when the maps say what is desired already.
    pub writes: Vec<Write>,
    /// What they are about.
    pub summary: Summary,
}

/// What a plan changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// VIPs that come.
    pub vips_added: usize,
    /// VIPs that go.
    pub vips_removed: usize,
    /// VIPs whose flows go by another table.
    pub vips_retargeted: usize,
    /// Lookup tables written.
    pub tables_built: usize,
    /// Sets whose table was there already, because another set has the same slots.
    pub tables_shared: usize,
    /// Slots that name another backend than before, each pair of tables counted once, in slots of the larger one.
    pub slots_moved: usize,
    /// Backends that come.
    pub backends_added: usize,
    /// Backends that go.
    pub backends_removed: usize,
    /// Backend lines that change, new ones included.
    pub lines_changed: usize,
    /// Settings of the whole node that change.
    pub settings_changed: usize,
}

/// Features that a program needs for a desired state, beside those that only the daemon's configuration asks for.
pub fn features(desired: &Desired) -> u64 {
    let mut features = 0;
    for vip in desired.vips.values() {
        if vip.limits.packets.is_some() || vip.limits.syns.is_some() {
            features |= feature::LIMITS;
        }
        if vip.allowed_sources.is_some() {
            features |= feature::SOURCE_RANGES;
        }
        if vip.clamp_mss {
            features |= feature::CLAMP_MSS;
        }
        if vip.hashes_client() {
            features |= feature::AFFINITY;
        }
        if vip.is_scheduled() {
            features |= feature::SCHEDULERS;
        }
    }
    if !desired.denied_sources.is_empty() {
        features |= feature::DENIED_SOURCES;
    }
    if desired.tunnel.is_some() {
        features |= feature::DECAP;
    }
    features
}

/// Plans the writes of one set of maps, from their birth on. A program with new maps gets a new planner.
#[derive(Clone, Debug)]
pub struct Planner {
    capacity: Capacity,
    config: Config,
    hz: u32,
    image: Image,
    books: Books,
    entries: Entries,
}

impl Planner {
    /// For maps made with this capacity and program configuration, all empty. `hz` is the kernel's jiffies a second.
    pub fn new(capacity: &Capacity, config: &Config, hz: u32) -> Self {
        Self {
            capacity: *capacity,
            config: *config,
            hz,
            image: Image::empty(capacity, config),
            books: Books::new(capacity),
            entries: Entries::new(config.match_salt, config.match_mask_v4, config.match_mask_v6),
        }
    }

    /// Takes over from the planner of the maps before these how large each VIP's table has been: tables only grow while the daemon
    /// runs, because flows move with their size. Before the first plan.
    #[must_use]
    pub fn following(mut self, before: &Self) -> Self {
        let vips = before.books.vips.iter();
        self.books.grown = Arc::new(vips.map(|(key, vip)| (*key, vip.most_slots)).collect());
        self
    }

    /// Whether all positions that backends have here are there in maps of this capacity.
    pub fn fits(&self, capacity: &Capacity) -> bool {
        let last = self.books.backend_ids.last_key_value();
        last.is_none_or(|(index, _)| u32::from(index.0) < capacity.backend_lines())
    }

    /// Takes over from a planner whose flow records the new maps go on with: slots in transit stay so, and backends keep their
    /// positions, by which records name them. `activity` reads what packets noted in the maps before. Before the first plan, after
    /// [`Self::following`].
    #[must_use]
    pub fn keeping_flows_of(mut self, before: &Self, activity: &dyn Fn(Table, usize) -> Activity) -> Self {
        let books = &before.books;
        self.books.backends.clone_from(&books.backends);
        self.books.backend_ids.clone_from(&books.backend_ids);
        self.books.backend_indexes.clone_from(&books.backend_indexes);
        self.books.backend_indexes.end_at(self.capacity.backend_lines());
        let prior = books
            .vips
            .iter()
            .filter_map(|(key, vip)| Some((*key, transit::prior(vip, &books.lookup, &before.image, activity)?)));
        self.books.prior = Arc::new(prior.collect());
        self
    }

    /// What to write so that the maps say what is desired. From then on the planner takes the writes for done.
    ///
    /// # Errors
    ///
    /// What of the desired state does not fit, by name. Nothing has changed then, here or in the maps.
    pub fn plan(&mut self, desired: &Desired, hops: &NextHops) -> Result<Plan, PlanError> {
        self.plan_at(desired, hops, &Moment::STILL)
    }

    /// As [`Self::plan`], at a moment: under [`feature::TRANSIT`], flows are kept where they live when their slot's backend changes, and
    /// transits end in time.
    ///
    /// # Errors
    ///
    /// As [`Self::plan`].
    pub fn plan_at(&mut self, desired: &Desired, hops: &NextHops, moment: &Moment<'_>) -> Result<Plan, PlanError> {
        self.check_features(desired)?;
        let before = self.books.rest();
        let mut in_use = std::mem::take(&mut self.books.lines_in_use);
        let laid = Laid::new(desired, moment, &self.books.unfit);
        let mut planning = Planning {
            desired,
            laid,
            had_transits: !self.books.lookup.wide.is_empty(),
            capacity: &self.capacity,
            hz: self.hz,
            tick_shift: self.config.tick_shift as u32,
            seed: self.config.seed,
            keeps_flows: self.config.features & feature::TRANSIT != 0,
            moment: *moment,
            books: &mut self.books,
            entries: &mut self.entries,
            draft: Draft::new(&mut self.image, &mut in_use),
            leaving: Leaving::default(),
            set_keys: BTreeMap::new(),
            built: BTreeMap::new(),
            moves: BTreeMap::new(),
            retargets: BTreeSet::new(),
            new_addresses: Vec::new(),
            summary: Summary::default(),
        };
        match planning.run(hops) {
            Ok(()) => {
                let (summary, unfit) = (planning.summary, planning.laid.known());
                let writes = planning.draft.finish();
                self.books.unfit = unfit;
                self.entries.commit();
                self.books.commit();
                self.books.lines_in_use = in_use;
                Ok(Plan { writes, summary })
            }
            Err(error) => {
                planning.draft.roll_back();
                self.entries.roll_back();
                self.books.roll_back(before);
                Err(error)
            }
        }
    }

    /// What to write when only next hops have changed: lines, and nothing else.
    pub fn plan_hops(&mut self, hops: &NextHops) -> Plan {
        let books = &mut self.books;
        let mut lines = Vec::with_capacity(books.backends.len());
        for (id, backend) in &books.backends {
            let current = self.image.line(u32::from(backend.index.0));
            // Who lives and who is dead is for a whole plan to say.
            let is_alive = LineMeta(current.meta).has(LineMeta::ALIVE);
            lines.push((backend.index, line(&current, backend, hops.get(id), is_alive)));
        }
        let mut draft = Draft::new(&mut self.image, &mut books.lines_in_use);
        let lines_changed = write_lines(&mut draft, &lines);
        Plan {
            writes: draft.finish(),
            summary: Summary {
                lines_changed,
                ..Summary::default()
            },
        }
    }

    /// What the maps hold when all plans have been carried out.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The program configuration that it plans for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn check_features(&self, desired: &Desired) -> Result<(), PlanError> {
        let missing = features(desired) & !self.config.features;
        if missing == 0 {
            return Ok(());
        }
        let off = |what, feature| Err(PlanError::FeatureOff { what, feature });
        for (key, vip) in &desired.vips {
            if missing & feature::LIMITS != 0 && (vip.limits.packets.is_some() || vip.limits.syns.is_some()) {
                return off(FeatureUse::Limits(*key), feature::LIMITS);
            }
            if missing & feature::SOURCE_RANGES != 0 && vip.allowed_sources.is_some() {
                return off(FeatureUse::AllowedSources(*key), feature::SOURCE_RANGES);
            }
            if missing & feature::CLAMP_MSS != 0 && vip.clamp_mss {
                return off(FeatureUse::ClampMss(*key), feature::CLAMP_MSS);
            }
            if missing & feature::AFFINITY != 0 && vip.hashes_client() {
                return off(FeatureUse::ClientAffinity(*key), feature::AFFINITY);
            }
            if missing & feature::SCHEDULERS != 0 && vip.is_scheduled() {
                return off(FeatureUse::Scheduler(*key), feature::SCHEDULERS);
            }
        }
        if missing & feature::DENIED_SOURCES != 0 {
            return off(FeatureUse::DeniedSources, feature::DENIED_SOURCES);
        }
        off(FeatureUse::Tunnel, missing)
    }
}

/// One run of the planner.
struct Planning<'a> {
    desired: &'a Desired,
    laid: Laid<'a>,
    /// Slots were in transit before this plan: records of flows may count.
    had_transits: bool,
    capacity: &'a Capacity,
    hz: u32,
    /// Of [`Config`], both.
    tick_shift: u32,
    seed: [u64; 4],
    /// The program follows flows in transit.
    keeps_flows: bool,
    moment: Moment<'a>,
    books: &'a mut Books,
    entries: &'a mut Entries,
    draft: Draft<'a>,
    leaving: Leaving,
    /// Sets seen in this run, by where they and those out of them stand in memory, and the slots asked for: equal ones are mostly the
    /// same one.
    set_keys: BTreeMap<(usize, usize, usize, Option<usize>), SetKey>,
    /// Slots of sets seen in this run.
    built: BTreeMap<SetKey, Arc<[u16]>>,
    /// Moves made in this run, to a set, and the wide table of each that needs one, or that there is no room for it.
    moves: BTreeMap<(Origin, SetKey), Result<Option<Table>, PlanError>>,
    /// Pairs of tables whose moved slots are counted.
    retargets: BTreeSet<(Table, Table)>,
    /// Address entries that have a place and are not published yet.
    new_addresses: Vec<IpAddr>,
    summary: Summary,
}

/// What nothing published names any more, but packets may still be using.
#[derive(Default)]
struct Leaving {
    vips: Vec<VipIndex>,
    /// Words of VIPs' options that are cleared.
    options: Vec<(VipIndex, Range<u32>)>,
    tables: Vec<Hold>,
    schedules: Vec<Rule>,
    range_sets: Vec<Arc<RangeSet>>,
    /// Those that nothing desired names since this plan.
    backends: Vec<BackendId>,
}

impl Planning<'_> {
    fn run(&mut self, hops: &NextHops) -> Result<(), PlanError> {
        self.clear_leftovers();
        let own = &self.desired.own_addresses;
        let addresses: BTreeMap<IpAddr, bool> = self
            .desired
            .vips
            .keys()
            .map(|key| (key.address, own.contains(&key.address)))
            .collect();
        self.books.waiting.clear();
        self.age_wide_tables();
        self.remove_vips(&addresses);
        self.plan_backends(self.desired, hops)?;
        self.plan_settings(self.desired)?;
        if self.keeps_flows {
            let lives = self.moment.lives.0;
            self.draft.store(MapId::Settings, setting::FLOW_LIVES, 0, lives);
        }
        self.place_entries()?;
        self.plan_vips()?;
        self.plan_addresses(&addresses);
        let waited = self.reclaim();
        let waited = self.forget_datagrams(waited);
        // Cleared at the very end: tables in use until then may name them.
        let forgettable = self.forgettable_backends();
        if !forgettable.is_empty() {
            if !waited {
                self.draft.grace();
            }
            self.forget_backends(forgettable);
        }
        Ok(())
    }

    /// Clears what an interrupted plan left that is nobody's.
    fn clear_leftovers(&mut self) {
        let books::Leftovers { ways, options } = std::mem::take(&mut self.books.leftovers);
        for (map, place, word) in ways {
            self.draft.vacate(map, place, word);
        }
        self.leaving.options.extend(options);
    }

    /// Waits for a grace period and frees what nothing uses any more; `false` if there is no such thing.
    fn reclaim(&mut self) -> bool {
        let Leaving {
            vips,
            options,
            tables,
            schedules,
            range_sets,
            backends: _,
        } = &mut self.leaving;
        let is_nothing =
            vips.is_empty() && options.is_empty() && tables.is_empty() && schedules.is_empty() && range_sets.is_empty();
        if is_nothing {
            return false;
        }
        self.draft.grace();
        for (index, words) in options.drain(..) {
            for word in words {
                self.draft.store(MapId::VipOptions, index.0, word, 0);
            }
        }
        let now = self.moment.now;
        vips.drain(..)
            .for_each(|index| self.books.vip_indexes.release(index.0, now));
        tables.drain(..).for_each(|hold| self.books.lookup.let_go(&hold));
        range_sets.drain(..).for_each(|set| self.books.range_sets.release(&set));
        for rule in std::mem::take(schedules) {
            self.release_schedule(&rule);
        }
        true
    }
}
