//! Wide tables: what a VIP's flows go by while some of them live elsewhere than its set says.
//!
//! Never decides what becomes of a slot ([`crate::transit`] does), nor what a set's table is. A wide table is made for a move: from
//! what a VIP's slots say now to its set's table. VIPs that make the same move in one plan share it; those that come to the same words
//! later do not, since what packets noted before would end their transits early. It changes in place, slot by slot, and only towards
//! its end: when no slot of it is in transit any more, its VIPs go back to their sets' plain tables.

use std::{collections::BTreeSet, sync::Arc};

use xdp_prog::abi::{Activity, BackendIndex, MIN_TABLE_SLOTS, SlotWord, TableUnit, WIDE_WORDS};

use super::{
    Planning,
    books::{Books, VipState},
    error::PlanError,
    image::{Image, slots_of},
    tables::{Lookup, SetKey, Table},
    write::MapId,
};
use crate::{
    desired::{Protocol, Vip, VipKey},
    health::Unfit,
    maglev::base_slot,
    transit::{Began, Slot},
};

/// What is known of a wide table beside its words.
#[derive(Clone, Debug)]
pub(super) struct Wide {
    /// When what each slot is in began.
    began: Arc<[Began]>,
    /// Backends that took new flows of a slot in this transit or one before it that goes on: records may name them.
    pub(super) past: BTreeSet<BackendIndex>,
    /// No slot is in transit any more.
    pub(super) is_over: bool,
    /// Nor would one be, if silence ended its transit.
    pub(super) is_quiet: bool,
}

impl Wide {
    /// Tick at which a slot's transit began.
    pub(super) fn began_at(&self, slot: usize) -> u32 {
        self.began.get(slot).map_or(0, |began| began.transit)
    }
}

impl Books {
    /// Notes a wide table that the maps have and nobody remembers, with one user. Its transits count from now, and whoever has a line
    /// may have records.
    pub(super) fn find_wide(&mut self, table: Table, now: u32) {
        let began = Began {
            transit: now,
            window: now,
        };
        let wide = Wide {
            began: vec![began; table.slots].into(),
            past: self.backend_ids.keys().copied().collect(),
            is_over: false,
            is_quiet: false,
        };
        self.lookup.add_wide(table);
        self.lookup.wide.insert(table, wide);
    }
}

/// Where a move begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// At a table of these maps.
    Here(Table),
    /// At a table of the maps before these.
    Prior(Table),
    /// At what is published, which stands there in memory while the plan is made.
    Published(usize),
}

/// Slots of a VIP that another planner's maps had in transit.
#[derive(Clone, Debug)]
pub(super) struct Prior {
    table: Table,
    slots: Arc<[Slot]>,
    past: BTreeSet<BackendIndex>,
    /// Records placed flows everywhere.
    is_scheduled: bool,
}

/// What slots say before a move.
pub(super) struct Before {
    pub(super) slots: Arc<[Slot]>,
    pub(super) past: BTreeSet<BackendIndex>,
    /// When the move was, if not now.
    pub(super) since: Option<u32>,
}

/// Whether flows of a VIP are kept where they live.
fn keeps_flows(key: &VipKey, vip: &Vip) -> bool {
    match key.protocol {
        Protocol::Tcp => true,
        Protocol::Udp => vip.keeps_datagrams,
    }
}

impl Planning<'_> {
    /// Ends what is over, slot by slot, and forgets who is dead.
    pub(super) fn age_wide_tables(&mut self) {
        let moment = self.moment;
        let published = self.published_tables();
        let tables: Vec<Table> = self.books.lookup.wide.keys().copied().collect();
        for table in tables {
            let Some(mut wide) = self.books.lookup.wide.get(&table).cloned() else {
                continue;
            };
            let is_published = published.contains(&table);
            let (mut is_over, mut is_quiet) = (true, true);
            for slot in 0..table.slots {
                let mut before = self.slot(table, &wide, slot);
                if !before.is_in_transit() {
                    continue;
                }
                if moment.window_too_short && before.word.has(SlotWord::LEARNING) {
                    before.began.window = moment.now;
                }
                let is_dead = |backend| self.is_dead(BackendIndex(backend));
                let before_age = before.changed(before.word.cur(), is_dead, moment.now);
                let mut after = before_age.aged(moment.now, &moment.timeouts);
                is_quiet &= !after.is_in_transit();
                if is_published {
                    after = before_age.aged_but_for_silence(moment.now, &moment.timeouts);
                }
                is_over &= !after.is_in_transit();
                if wide.began.get(slot) != Some(&after.began) {
                    Arc::make_mut(&mut wide.began)[slot] = after.began;
                }
                if after.word != before.word {
                    let (segment, word) = table.word(slot);
                    self.draft.store(MapId::LookupTables, segment, word, after.word.0);
                }
            }
            (wide.is_over, wide.is_quiet) = (is_over, is_quiet);
            self.books.lookup.wide.insert(table, wide);
        }
    }

    /// The wide table by which a VIP's flows go on from `before`, when new ones go where `set` says; `None` where no flow can live
    /// elsewhere, so that the set's plain table will do. The caller counts as a user of it.
    pub(super) fn move_table(
        &mut self,
        key: VipKey,
        before: &VipState,
        set: &SetKey,
    ) -> Result<Option<Table>, PlanError> {
        let way = (Origin::Here(before.table), set.clone());
        self.moved(way, key, |planning| planning.slots_before(before))
    }

    /// As [`Self::move_table`], for a VIP whose slots other maps had in transit.
    pub(super) fn carried_table(&mut self, key: VipKey, vip: &Vip, set: &SetKey) -> Result<Option<Table>, PlanError> {
        let Some(Prior {
            table,
            slots,
            past,
            is_scheduled,
        }) = self.books.prior.get(&key).cloned()
        else {
            return Ok(None);
        };
        if !keeps_flows(&key, vip) {
            return Ok(None);
        }
        let since = None;
        let before = Before { slots, past, since };
        if is_scheduled && !vip.is_scheduled() {
            return self.wide_table(key, before, set, true);
        }
        self.moved((Origin::Prior(table), set.clone()), key, |_| before)
    }

    /// The wide table of a move, made if this plan has not made it yet.
    pub(super) fn moved(
        &mut self,
        way: (Origin, SetKey),
        key: VipKey,
        before: impl FnOnce(&Self) -> Before,
    ) -> Result<Option<Table>, PlanError> {
        if let Some(moved) = self.moves.get(&way).cloned() {
            if let Ok(Some(table)) = moved {
                self.books.lookup.use_table(table);
            }
            return moved;
        }
        let before = before(self);
        let table = self.wide_table(key, before, &way.1, false);
        self.moves.insert(way, table.clone());
        table
    }

    /// Whether a change of the VIP's table keeps its flows where they live.
    pub(super) fn is_kept(&self, key: &VipKey, vip: &Vip) -> bool {
        self.keeps_flows && keeps_flows(key, vip)
    }

    fn wide_table(
        &mut self,
        key: VipKey,
        before: Before,
        set: &SetKey,
        is_scattered: bool,
    ) -> Result<Option<Table>, PlanError> {
        let cur = self.set_slots(set);
        let Before {
            slots: before,
            mut past,
            since,
        } = before;
        let scale = before.len().max(cur.len());
        let at = |slot, of| base_slot(slot, scale, of);
        let is_dead = |backend| self.is_dead(BackendIndex(backend));
        // UDP stays with nobody who is out of the set; TCP that lives there does.
        let out = set.unfit.iter().flat_map(Unfit::iter);
        let out: BTreeSet<u16> = out
            .filter_map(|(id, _)| Some(self.books.backends.get(id)?.index.0))
            .collect();
        let is_left = |backend| out.contains(&backend) || is_dead(backend);
        let mut slots = Vec::with_capacity(scale);
        for slot in 0..scale {
            let (before, cur) = (before[at(slot, before.len())], cur[at(slot, cur.len())]);
            let mut after = before.moved(cur, is_dead, is_left, self.moment.now);
            if is_scattered {
                after = after.scattered(self.moment.now);
            }
            if let Some(since) = since {
                after = after.as_of(since, self.moment.now, &self.moment.timeouts);
            }
            if after.is_in_transit() && before.word.cur() != cur {
                past.insert(BackendIndex(before.word.cur()));
            }
            slots.push(after);
        }
        if !slots.iter().any(Slot::is_in_transit) {
            return Ok(None);
        }
        let table = Table {
            unit: TableUnit(0),
            slots: scale,
            is_wide: true,
        };
        // Whatever this plan has let go of makes room, too.
        let has_room = self.has_room_for(table) || self.reclaim() && self.has_room_for(table);
        if !has_room {
            return Err(PlanError::SlotMemoryFull {
                vip: key,
                slots: scale,
                segments: self.books.lookup.max_segments(),
            });
        }
        let table = self.place_table(key, table)?;
        let (segment, word) = table.word(0);
        let values = slots.iter().flat_map(|slot| [slot.word.0, slot.activity.0]).collect();
        self.draft.fill(MapId::LookupTables, segment, word, values);
        self.summary.tables_built += 1;
        self.books.lookup.add_wide(table);
        let began = slots.iter().map(|slot| slot.began).collect();
        let wide = Wide {
            began,
            past,
            is_over: false,
            is_quiet: false,
        };
        self.books.lookup.wide.insert(table, wide);
        Ok(Some(table))
    }

    /// As [`Self::move_table`], for a VIP that has no scheduler any more: flows of every slot may live anywhere, as records say.
    pub(super) fn scattered_table(
        &mut self,
        key: VipKey,
        before: &VipState,
        set: &SetKey,
    ) -> Result<Option<Table>, PlanError> {
        let before = self.slots_before(before);
        self.wide_table(key, before, set, true)
    }

    /// What a VIP's slots say now.
    fn slots_before(&self, vip: &VipState) -> Before {
        let (slots, past) = match self.books.lookup.wide.get(&vip.table) {
            Some(wide) => {
                let slots = (0..vip.table.slots).map(|slot| self.slot(vip.table, wide, slot));
                (slots.collect(), wide.past.clone())
            }
            None => {
                let words = self.draft.image().table(vip.table.unit, vip.table.slots);
                (slots_of(words).map(Slot::steady).collect(), BTreeSet::new())
            }
        };
        let since = None;
        Before { slots, past, since }
    }

    fn slot(&self, table: Table, wide: &Wide, slot: usize) -> Slot {
        let (segment, word) = table.word(slot);
        Slot {
            word: SlotWord(self.draft.image().load(MapId::LookupTables, segment, word)),
            activity: (self.moment.activity)(table, slot),
            began: wide.began.get(slot).copied().unwrap_or_default(),
        }
    }

    fn is_dead(&self, backend: BackendIndex) -> bool {
        match self.books.backend_ids.get(&backend) {
            Some(id) => self.laid.is_dead(id),
            None => true,
        }
    }
}

/// Backends that a table names, or records may.
pub(super) fn backends_named(lookup: &Lookup, image: &Image) -> BTreeSet<BackendIndex> {
    let mut named = BTreeSet::new();
    for table in lookup.all() {
        if table.is_wide {
            for word in words(image, table).into_iter().map(SlotWord) {
                named.extend([word.cur(), word.base(), word.udp_base()].map(BackendIndex));
            }
        } else {
            named.extend(slots_of(image.table(table.unit, table.slots)).map(BackendIndex));
        }
    }
    for wide in lookup.wide.values() {
        named.extend(&wide.past);
    }
    named
}

/// For who takes over from these maps: the slots of a VIP that has some in transit, or a scheduler.
pub(super) fn prior(
    vip: &VipState,
    lookup: &Lookup,
    image: &Image,
    activity: &dyn Fn(Table, usize) -> Activity,
) -> Option<Prior> {
    let is_scheduled = vip.scheduled.is_some();
    let Some(wide) = lookup.wide.get(&vip.table) else {
        let slots = slots_of(image.table(vip.table.unit, vip.table.slots));
        return is_scheduled.then(|| Prior {
            table: vip.table,
            slots: slots.map(Slot::steady).collect(),
            past: BTreeSet::new(),
            is_scheduled,
        });
    };
    let slot = |(slot, word)| Slot {
        word: SlotWord(word),
        activity: activity(vip.table, slot),
        began: wide.began.get(slot).copied().unwrap_or_default(),
    };
    Some(Prior {
        table: vip.table,
        slots: words(image, vip.table).into_iter().enumerate().map(slot).collect(),
        past: wide.past.clone(),
        is_scheduled,
    })
}

/// The slots of a wide table, without what packets noted.
pub(super) fn words(image: &Image, table: Table) -> Vec<u64> {
    let (segment, first) = table.word(0);
    let words = image.words(MapId::LookupTables, segment);
    let words = words.get(first as usize..first as usize + table.slots * WIDE_WORDS);
    words.unwrap_or_default().iter().step_by(WIDE_WORDS).copied().collect()
}

const _: () = assert!(MIN_TABLE_SLOTS * WIDE_WORDS == 512);
