//! A plan of map writes, carried out on the live maps.
//!
//! Never reorders, skips or decides: lb-core made the plan so that every prefix of it is a safe state, and the writes
//! go out in its order.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_core::{
    plan::{MapId, Write},
    sweep::{Look, look},
};
use xdp_prog::{
    abi::{BackendIndex, FlowLives, FlowWord, VipIndex},
    flows::mark_of,
};

use super::{Balancer, DatapathError, Mapped, grace_period};

/// What carrying out a plan took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Writes, of all kinds.
    pub writes: usize,
    /// Grace periods among them.
    pub grace_periods: usize,
    /// Time spent in those.
    pub waited: Duration,
    /// All time spent.
    pub took: Duration,
}

impl Balancer {
    /// Carries out a plan, first to last.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Plan`] with how far it came. What was done stays and is safe; what was not, the planner
    /// believes done: load anew and take over.
    pub fn apply(&mut self, plan: &[Write]) -> Result<Applied, DatapathError> {
        let start = Instant::now();
        let mut applied = Applied::default();
        for write in plan {
            if let Err(source) = self.write(write, &mut applied) {
                let source = Box::new(source);
                return Err(DatapathError::Plan {
                    done: applied.writes,
                    of: plan.len(),
                    source,
                });
            }
            applied.writes += 1;
        }
        applied.took = start.elapsed();
        Ok(applied)
    }

    fn write(&mut self, write: &Write, applied: &mut Applied) -> Result<(), DatapathError> {
        match write {
            Write::AddSegment(position) => self.add_segment(*position),
            Write::Store {
                map,
                index,
                word,
                value,
            } => {
                let (mapped, index, word) = self.place(*map, *index, *word)?;
                mapped.store(index, word, *value)
            }
            Write::Fill {
                map,
                index,
                word,
                values,
            } => {
                let (mapped, index, word) = self.place(*map, *index, *word)?;
                mapped.fill_from(index, word, values)
            }
            Write::Grace => {
                applied.waited += grace_period()?;
                if let Some(wait) = &self.on_grace {
                    wait();
                }
                applied.grace_periods += 1;
                Ok(())
            }
            Write::ZeroVipCounter(vip) => {
                self.counters.passed.zero_vip(*vip);
                self.counters.vips.zero(vip.0)
            }
            Write::ZeroBackendCounter(backend) => {
                self.counters.passed.zero_backend(*backend);
                self.counters.backends.zero(u32::from(backend.0))
            }
            Write::ZeroLimits(vip) => self.zero_limits(*vip),
            Write::ForgetDatagrams(backends) => self.forget_datagrams(backends),
        }
    }

    /// Copies the flow records of another balancer that this one has none in the place of.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] when this one has room for fewer.
    pub fn take_records(&self, old: &Self) -> Result<(), DatapathError> {
        for bucket in 0..old.flows.entries() {
            for way in (0..old.flows.words()).step_by(2) {
                let word = old.flows.load(bucket, way)?;
                if word != 0 && self.flows.load(bucket, way)? == 0 {
                    // A record is looked for where there is a mark, of either bucket that it may stand in: which was its first is
                    // not known. It counts from its first word on.
                    let ((index, mark), (_, other)) = (mark_of(bucket), mark_of(bucket ^ 1));
                    self.flow_marks.set_bits(index, 0, mark | other)?;
                    self.flows.store(bucket, way + 1, old.flows.load(bucket, way + 1)?)?;
                    self.flows.store(bucket, way, word)?;
                    if FlowWord(word).counts() != 0 && self.open_flows.entries() > 1 {
                        self.open_flows.add(FlowWord(word).backend().into(), 0, 1)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Forgets which buckets have ever had a record, so that looking for flows without one is cheap again. Only while no record matters:
    /// nothing is in transit, and no flow is recorded for another reason.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] when the map has another shape.
    pub fn forget_marks(&self) -> Result<(), DatapathError> {
        for index in 0..self.flow_marks.entries() {
            if self.flow_marks.load(index, 0)? != 0 {
                self.flow_marks.store(index, 0, 0)?;
            }
        }
        Ok(())
    }

    /// Flows that live, as recorded, by backend. Reads all records: some milliseconds.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`] when the map has another shape.
    pub fn records(&self, now: u32, lives: FlowLives) -> Result<BTreeMap<BackendIndex, u64>, DatapathError> {
        let mut counts = BTreeMap::new();
        for bucket in 0..self.flows.entries() {
            for way in (0..self.flows.words()).step_by(2) {
                if let Look::Flow(backend) = look(FlowWord(self.flows.load(bucket, way)?), now, lives) {
                    *counts.entry(BackendIndex(backend)).or_default() += 1;
                }
            }
        }
        Ok(counts)
    }

    /// Reads back a word as a plan names it: for those who compare the maps with the planner's image.
    ///
    /// # Errors
    ///
    /// [`DatapathError::OutOfBounds`].
    pub fn word(&self, map: MapId, index: u32, word: u32) -> Result<u64, DatapathError> {
        let (mapped, index, word) = self.place(map, index, word)?;
        mapped.load(index, word)
    }

    fn add_segment(&mut self, asked: u32) -> Result<(), DatapathError> {
        let next = self.slots.segments();
        if asked != next {
            return Err(DatapathError::SegmentOutOfTurn { asked, next });
        }
        self.slots.add_segment().map(drop)
    }

    /// Where a plan's position is. An element of slot memory is a segment, which is an array of its own with an entry
    /// per word.
    fn place(&self, map: MapId, index: u32, word: u32) -> Result<(&Mapped, u32, u32), DatapathError> {
        let mapped = match map {
            MapId::VipsV4 => &self.vips_v4,
            MapId::VipsV6 => &self.vips_v6,
            MapId::LookupTables => return Ok((self.slots.segment(index)?, word, 0)),
            MapId::Backends => &self.backends,
            MapId::VipOptions => &self.vip_options,
            MapId::Ranges => &self.ranges,
            MapId::Settings => &self.settings,
        };
        Ok((mapped, index, word))
    }

    /// Without the feature the map has one entry, which no packet uses: nothing to zero.
    fn zero_limits(&mut self, vip: VipIndex) -> Result<(), DatapathError> {
        let limits = &mut self.counters.limits;
        if vip.0 >= limits.entries() && limits.entries() == 1 {
            return Ok(());
        }
        limits.zero(vip.0)
    }
}
