//! What was counted and does not stand in the program's own counters: what the slow path sent to backends, and what programs counted
//! in whose place this one is.
//!
//! In a map that no program knows, so that it outlives the process as the counters do: 16 B a VIP and a backend.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_core::slow;
use xdp_prog::{
    abi::{BackendIndex, MAX_VERDICTS, Traffic, VipIndex},
    verdict::Verdict,
};

use super::{Counters, DatapathError, Generation, Sum as _, mapped::Mapped};

/// Name of the pin.
pub(crate) const CARRIED: &str = "CARRIED";
/// Of verdicts, then of sheds.
const COUNTS: u32 = 2 * MAX_VERDICTS as u32;
/// Packets and bytes.
const TRAFFIC: u32 = 2;

/// Counts beside the program's own, by their positions there.
#[derive(Debug)]
pub struct Passed {
    words: Words,
    vips: u32,
    backends: u32,
}

#[derive(Debug)]
enum Words {
    Map(Mapped),
    #[cfg(test)]
    Heap(Vec<AtomicU64>),
}

impl Passed {
    pub(crate) fn new(vips: u32, backends: u32) -> Result<Self, DatapathError> {
        let words = Words::Map(Mapped::create(CARRIED, COUNTS + TRAFFIC * (vips + backends))?);
        Ok(Self { words, vips, backends })
    }

    /// Those of a generation.
    pub(crate) fn open(vips: u32, backends: u32, generation: &Generation) -> Result<Self, DatapathError> {
        let map = Mapped::open(CARRIED, &generation.map(CARRIED))?;
        if map.entries() != COUNTS + TRAFFIC * (vips + backends) {
            return Err(super::record::differs(generation, CARRIED));
        }
        let words = Words::Map(map);
        Ok(Self { words, vips, backends })
    }

    /// The map itself.
    pub(crate) fn map(&self) -> Option<&Mapped> {
        match &self.words {
            Words::Map(map) => Some(map),
            #[cfg(test)]
            Words::Heap(_) => None,
        }
    }

    /// Counts a packet, or a piece of one.
    pub fn add(&self, passed: &slow::Passed) {
        let traffic = Traffic {
            packets: 1,
            bytes: u64::from(passed.bytes),
        };
        self.add_vip(passed.vip, traffic);
        self.add_backend(passed.backend, traffic);
    }

    /// Adds to a verdict's packets.
    pub fn add_verdict(&self, verdict: Verdict, packets: u64) {
        self.count(verdict as u32, packets);
    }

    /// Adds to what was shed of a verdict.
    pub fn add_shed(&self, verdict: Verdict, packets: u64) {
        self.count(MAX_VERDICTS as u32 + verdict as u32, packets);
    }

    /// Adds to a VIP's traffic.
    pub fn add_vip(&self, vip: VipIndex, traffic: Traffic) {
        if let Some(place) = self.vip(vip.0) {
            self.count(place, traffic.packets);
            self.count(place + 1, traffic.bytes);
        }
    }

    /// Adds to a backend's traffic.
    pub fn add_backend(&self, backend: BackendIndex, traffic: Traffic) {
        if let Some(place) = self.backend(u32::from(backend.0)) {
            self.count(place, traffic.packets);
            self.count(place + 1, traffic.bytes);
        }
    }

    pub(crate) fn zero_vip(&self, vip: VipIndex) {
        self.zero(self.vip(vip.0));
    }

    pub(crate) fn zero_backend(&self, backend: BackendIndex) {
        self.zero(self.backend(u32::from(backend.0)));
    }

    /// Together with what the program counted of verdicts.
    pub(super) fn with_verdicts(&self, mut counts: Vec<(Verdict, u64)>) -> Vec<(Verdict, u64)> {
        for (verdict, count) in &mut counts {
            *count += self.counted(*verdict as u32);
        }
        counts
    }

    /// Together with what the program shed.
    pub(super) fn with_sheds(&self, mut counts: Vec<(Verdict, u64)>) -> Vec<(Verdict, u64)> {
        for (verdict, count) in &mut counts {
            *count += self.counted(MAX_VERDICTS as u32 + *verdict as u32);
        }
        counts
    }

    /// Together with what the program counted of the first VIPs.
    pub(super) fn with_vips(&self, mut sums: Vec<Traffic>) -> Vec<Traffic> {
        for (sum, index) in sums.iter_mut().zip(0..) {
            sum.add(self.traffic(self.vip(index)));
        }
        sums
    }

    /// Together with what the program counted at the first positions of backends.
    pub(super) fn with_backends(&self, mut sums: Vec<Traffic>) -> Vec<Traffic> {
        for (sum, index) in sums.iter_mut().zip(0..) {
            sum.add(self.traffic(self.backend(index)));
        }
        sums
    }

    fn vip(&self, index: u32) -> Option<u32> {
        (index < self.vips).then(|| COUNTS + TRAFFIC * index)
    }

    fn backend(&self, index: u32) -> Option<u32> {
        (index < self.backends).then(|| COUNTS + TRAFFIC * (self.vips + index))
    }

    fn word(&self, place: u32) -> Option<&AtomicU64> {
        match &self.words {
            Words::Map(map) => map.counter(place),
            #[cfg(test)]
            Words::Heap(words) => words.get(place as usize),
        }
    }

    fn count(&self, place: u32, more: u64) {
        if let Some(word) = self.word(place) {
            word.fetch_add(more, Ordering::Relaxed);
        }
    }

    fn counted(&self, place: u32) -> u64 {
        self.word(place).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn zero(&self, place: Option<u32>) {
        for place in place.into_iter().flat_map(|place| [place, place + 1]) {
            if let Some(word) = self.word(place) {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn traffic(&self, place: Option<u32>) -> Traffic {
        place.map_or_else(Traffic::default, |place| Traffic {
            packets: self.counted(place),
            bytes: self.counted(place + 1),
        })
    }
}

impl Counters {
    /// Every verdict with its packets, those of programs before this one included, in the order of the counters.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_verdicts(&self) -> Result<Vec<(Verdict, u64)>, DatapathError> {
        Ok(self.passed.with_verdicts(self.verdicts.read()?))
    }

    /// What was shed of every verdict for the slow path, that of programs before this one included.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_sheds(&self) -> Result<Vec<(Verdict, u64)>, DatapathError> {
        Ok(self.passed.with_sheds(self.shed()?))
    }

    /// Traffic of the first `count` VIPs, of both paths together.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_vips(&self, count: u32) -> Result<Vec<Traffic>, DatapathError> {
        Ok(self.passed.with_vips(self.vips.sums(count)?))
    }

    /// Traffic of the first `count` positions of backends, of both paths together.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_backends(&self, count: u32) -> Result<Vec<Traffic>, DatapathError> {
        Ok(self.passed.with_backends(self.backends.sums(count)?))
    }
}

#[cfg(test)]
mod tests {
    use lb_core::slow;
    use xdp_prog::abi::{BackendIndex, Traffic, VipIndex};

    use super::{COUNTS, Passed, TRAFFIC, Words};

    #[test]
    fn what_passed_is_added_to_what_the_program_counted_until_the_position_is_given_away() {
        let words = (0..COUNTS + TRAFFIC * 4).map(|_| 0.into()).collect();
        let passed = Passed {
            words: Words::Heap(words),
            vips: 2,
            backends: 2,
        };
        let one = slow::Passed {
            vip: VipIndex(1),
            backend: BackendIndex(9),
            bytes: 1500,
        };
        passed.add(&one);
        passed.add(&one);
        let counted = Traffic { packets: 1, bytes: 40 };
        let sums = || passed.with_vips(vec![counted; 2]);
        assert_eq!(
            sums(),
            [
                counted,
                Traffic {
                    packets: 3,
                    bytes: 3040
                }
            ]
        );
        assert_eq!(passed.with_backends(vec![counted; 2]), [counted; 2], "no such backend");
        passed.zero_vip(VipIndex(1));
        assert_eq!(sums(), [counted; 2]);
    }
}
