//! The slot, its backends and the flow table.

use std::{
    cell::Cell,
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_core::transit::{Slot, Timeouts};
use xdp_prog::{
    abi::{Activity, BackendLine, FlowBucket, FlowLives, FlowState, FlowWord, LineMeta, SlotWord},
    balance::transit::{Clock, Packet, choose},
    flows::{FlowKey, FlowTable, Unrecorded},
};

/// A rule that looks simpler, or is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Unrecorded flows go where the slot pointed before the last change.
    BaseIsLastOwner,
    /// A slot that points again where its flows lived at first is steady.
    BackIsFinished,
    /// A slot whose base dies is steady.
    EndsWithBase,
    /// A new record takes the place of a living one where there is no other.
    EvictsTheLiving,
    /// UDP goes where TCP without a record goes.
    UdpSharesBase,
    /// A flow that finds no room goes where new flows go.
    UnrecordedGoesToCur,
    /// Whatever comes after a SYN confirms it.
    AnySegmentConfirms,
    /// A slot leaves transit though flows live elsewhere.
    LeavesAtOnce,
    /// Marks are forgotten while something is in transit.
    ForgetsMarks,
    /// The learning window closes in time, whoever found no room.
    WindowIsNotExtended,
}

pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    tcp_idle: 800,
    udp_idle: 160,
    transit_max: 1 << 30,
};
const LIVES: FlowLives = FlowLives::new(256, TIMEOUTS.tcp_idle, 480, TIMEOUTS.udp_idle);
/// A small table: full at times.
const BUCKETS: u64 = 32;

pub(crate) struct World {
    state: Slot,
    lines: Vec<BackendLine>,
    pub(crate) alive: BTreeSet<u16>,
    table: Vec<AtomicU64>,
    marks: Vec<AtomicU64>,
    unrecorded: Cell<u64>,
    datagrams_unrecorded: Cell<u64>,
    pub(crate) transits_ended: u64,
    flaw: Option<Flaw>,
}

impl FlowTable for World {
    fn flow_bucket(&self, index: u32) -> Option<*mut FlowBucket> {
        Some(self.table[index as usize * 8..][..8].as_ptr().cast_mut().cast())
    }

    fn flow_marks(&self, word: u32) -> Option<*mut u64> {
        self.marks.get(word as usize).map(AtomicU64::as_ptr)
    }

    fn backend(&self, index: u32) -> Option<*const BackendLine> {
        self.lines.get(index as usize).map(std::ptr::from_ref)
    }

    fn unrecorded(&self, packet: Unrecorded) {
        self.unrecorded.set(self.unrecorded.get() + 1);
        if packet == Unrecorded::Datagram {
            self.datagrams_unrecorded.set(self.datagrams_unrecorded.get() + 1);
        }
    }
}

impl World {
    pub(crate) fn new(flaw: Option<Flaw>) -> Self {
        let mut slot = Self {
            state: Slot::steady(1),
            lines: vec![BackendLine::default()],
            alive: BTreeSet::new(),
            table: (0..BUCKETS * 8).map(|_| AtomicU64::new(0)).collect(),
            marks: vec![AtomicU64::new(0)],
            unrecorded: Cell::default(),
            datagrams_unrecorded: Cell::default(),
            transits_ended: 0,
            flaw,
        };
        slot.add();
        slot
    }

    pub(crate) fn word(&self) -> SlotWord {
        self.state.word
    }

    /// A backend that was never there before.
    pub(crate) fn add(&mut self) -> u16 {
        let index = self.lines.len() as u16;
        self.lines.push(BackendLine {
            meta: LineMeta::ALIVE,
            ..BackendLine::default()
        });
        self.alive.insert(index);
        index
    }

    /// New flows go there from now on.
    pub(crate) fn change(&mut self, cur: u16, now: u32) {
        let before = self.state.word;
        let state = self.state.changed(cur, |backend| !self.alive.contains(&backend), now);
        let mut word = state.word;
        match self.flaw {
            Some(Flaw::BaseIsLastOwner) if cur != before.cur() && self.alive.contains(&before.cur()) => {
                word = SlotWord::new(cur, before.cur(), word.udp_base(), word.flags());
            }
            Some(Flaw::BackIsFinished) if word.base() == cur => {
                word = SlotWord::new(cur, cur, word.udp_base(), word.flags() & !SlotWord::TCP);
            }
            Some(Flaw::EndsWithBase) if !self.alive.contains(&before.base()) => {
                word = SlotWord::new(cur, cur, word.udp_base(), word.flags() & !SlotWord::TCP);
            }
            Some(Flaw::UdpSharesBase) => {
                word = SlotWord::new(cur, word.base(), word.base(), word.flags());
            }
            _ => {}
        }
        self.state = Slot { word, ..state };
    }

    /// A backend dies; new flows go to `cur`.
    pub(crate) fn bury(&mut self, dead: u16, cur: u16, now: u32) {
        self.alive.remove(&dead);
        self.lines[usize::from(dead)].meta = 0;
        self.change(cur, now);
    }

    /// User space looks at the clock.
    pub(crate) fn look(&mut self, now: u32) {
        if self.datagrams_unrecorded.take() > 0 && self.flaw != Some(Flaw::WindowIsNotExtended) {
            self.state.began.window = now;
        }
        let timeouts = match self.flaw {
            Some(Flaw::LeavesAtOnce) => Timeouts {
                tcp_idle: 40,
                udp_idle: 20,
                ..TIMEOUTS
            },
            _ => TIMEOUTS,
        };
        let before = self.state;
        self.state = before.aged(now, &timeouts);
        // As the daemon does with all slots.
        if !self.state.is_in_transit() || self.flaw == Some(Flaw::ForgetsMarks) {
            self.marks[0].store(0, Ordering::Relaxed);
        }
        self.transits_ended += u64::from(before.is_in_transit() && !self.state.is_in_transit());
    }

    /// A packet of the flow with this hash; where it goes, and whether a record said so.
    pub(crate) fn packet(&mut self, hash: u64, packet: Packet, now: u32) -> (u16, bool) {
        let key = FlowKey::new(hash, 0x5eed, BUCKETS - 1);
        if self.flaw == Some(Flaw::EvictsTheLiving) {
            self.make_room(key, now);
        }
        if self.flaw == Some(Flaw::AnySegmentConfirms) {
            self.confirm(key, now);
        }
        let had = self.unrecorded.get();
        let mut backend = choose(self, self.state.word, key, packet, Clock { now, lives: LIVES });
        if self.flaw == Some(Flaw::UnrecordedGoesToCur) && self.unrecorded.get() > had {
            backend = self.state.word.cur();
        }
        let is_reset = matches!(packet, Packet::Segment { flags, .. } if flags & 4 != 0);
        if backend != self.state.word.cur() && !is_reset {
            let before = self.state.activity;
            self.state.activity = match packet {
                Packet::Datagram => Activity::new(before.tcp(), now),
                Packet::Syn(_) | Packet::Segment { .. } => Activity::new(now, before.udp()),
            };
        }
        let unrecorded = if packet == Packet::Datagram {
            self.state.word.udp_base()
        } else {
            self.state.word.base()
        };
        (backend, backend != unrecorded)
    }

    pub(crate) fn found_no_room(&self) -> u64 {
        self.unrecorded.get()
    }

    /// Where no way of a flow's buckets is free, forgets the first.
    fn make_room(&self, key: FlowKey, now: u32) {
        let places = [key.bucket(), key.bucket() ^ 1].map(|bucket| bucket as usize * 8);
        let mut words = places
            .iter()
            .flat_map(|place| [0, 2, 4, 6].map(|way| &self.table[place + way]));
        if words.clone().all(|word| {
            let word = FlowWord(word.load(Ordering::Relaxed));
            word.0 != 0 && !word.is_expired(now, LIVES)
        }) && let Some(first) = words.next()
        {
            first.store(
                FlowWord::new(0, 0, FlowState::Swept, now.wrapping_sub(1 << 20)).0,
                Ordering::Relaxed,
            );
        }
    }

    /// Takes every SYN in the flow's bucket for a connection.
    fn confirm(&self, key: FlowKey, now: u32) {
        for way in [0, 2, 4, 6] {
            let word = &self.table[key.bucket() as usize * 8 + way];
            let record = FlowWord(word.load(Ordering::Relaxed));
            if record.state() == FlowState::Syn as u64 {
                word.store(record.renewed(FlowState::Confirmed, now).0, Ordering::Relaxed);
            }
        }
    }
}
