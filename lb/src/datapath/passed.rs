//! What the slow path sent to backends: VIPs and backends count it as they count what the program sent.
//!
//! Never in a map: workers in user space write, and nobody in the kernel reads. 16 B a VIP and a backend.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_core::slow;
use xdp_prog::abi::{BackendIndex, Traffic, VipIndex};

use super::{Counters, DatapathError, Sum as _};

/// Traffic of VIPs and backends that the slow path carried, by their positions in the program's own counters.
#[derive(Debug)]
pub struct Passed {
    pub(super) vips: Box<[Count]>,
    pub(super) backends: Box<[Count]>,
}

#[derive(Debug, Default)]
pub(super) struct Count {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn add(&self, bytes: u64) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn zero(&self) {
        self.packets.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl Passed {
    pub(crate) fn new(vips: u32, backends: u32) -> Self {
        let counts = |entries: u32| (0..entries).map(|_| Count::default()).collect();
        Self {
            vips: counts(vips),
            backends: counts(backends),
        }
    }

    /// Counts a packet, or a piece of one.
    pub fn add(&self, passed: &slow::Passed) {
        let vip = self.vips.get(passed.vip.0 as usize);
        let backend = self.backends.get(usize::from(passed.backend.0));
        for count in [vip, backend].into_iter().flatten() {
            count.add(u64::from(passed.bytes));
        }
    }

    pub(crate) fn zero_vip(&self, vip: VipIndex) {
        if let Some(count) = self.vips.get(vip.0 as usize) {
            count.zero();
        }
    }

    pub(crate) fn zero_backend(&self, backend: BackendIndex) {
        if let Some(count) = self.backends.get(usize::from(backend.0)) {
            count.zero();
        }
    }
}

impl Counters {
    /// Traffic of the first `count` VIPs, of both paths together.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_vips(&self, count: u32) -> Result<Vec<Traffic>, DatapathError> {
        Ok(together(self.vips.sums(count)?, &self.passed.vips))
    }

    /// Traffic of the first `count` positions of backends, of both paths together.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of_backends(&self, count: u32) -> Result<Vec<Traffic>, DatapathError> {
        Ok(together(self.backends.sums(count)?, &self.passed.backends))
    }
}

pub(super) fn together(mut sums: Vec<Traffic>, passed: &[Count]) -> Vec<Traffic> {
    for (sum, passed) in sums.iter_mut().zip(passed) {
        sum.add(passed.traffic());
    }
    sums
}

#[cfg(test)]
mod tests {
    use lb_core::slow;
    use xdp_prog::abi::{BackendIndex, Traffic, VipIndex};

    use super::{Passed, together};

    #[test]
    fn what_passed_is_added_to_what_the_program_counted_until_the_position_is_given_away() {
        let passed = Passed::new(2, 2);
        let one = slow::Passed {
            vip: VipIndex(1),
            backend: BackendIndex(9),
            bytes: 1500,
        };
        passed.add(&one);
        passed.add(&one);
        let counted = Traffic { packets: 1, bytes: 40 };
        let sums = together(vec![counted; 2], &passed.vips);
        assert_eq!(
            sums,
            [
                counted,
                Traffic {
                    packets: 3,
                    bytes: 3040
                }
            ]
        );
        passed.zero_vip(VipIndex(1));
        assert_eq!(together(vec![counted; 2], &passed.vips), [counted; 2]);
    }
}
