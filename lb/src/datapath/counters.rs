//! Per-CPU counters, read and summed.
//!
//! Never writes a counter that a packet may be counting at: zeroing is for positions that no table names any more.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::maps::{IterableMap as _, MapData, PerCpuArray};
use xdp_prog::{
    abi::{CaptureState, FlowCounts, LimitState, SlowState, Traffic},
    verdict::Verdict,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{DatapathError, Passed, Plain, mapped::map_error, syscall};

/// Entries read with one system call: a VIP counter of 64 possible CPUs takes 1 KiB, so the buffer 1 MiB.
const BATCH: usize = 1024;

/// What can be summed over CPUs.
pub trait Sum: FromBytes + IntoBytes + Immutable + Copy + Default + 'static {
    /// Adds the other CPU's share. Counters wrap as the program's do.
    fn add(&mut self, other: Self);
}

impl Sum for u64 {
    fn add(&mut self, other: Self) {
        *self = self.wrapping_add(other);
    }
}

impl Sum for Traffic {
    fn add(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

impl Sum for SlowState {
    /// Of what each CPU has for itself, only the sheds have a sum.
    fn add(&mut self, other: Self) {
        self.shed = self.shed.wrapping_add(other.shed);
    }
}

impl Sum for FlowCounts {
    fn add(&mut self, other: Self) {
        self.syns = self.syns.wrapping_add(other.syns);
        self.datagrams = self.datagrams.wrapping_add(other.datagrams);
        self.scheduled = self.scheduled.wrapping_add(other.scheduled);
        self.clients = self.clients.wrapping_add(other.clients);
    }
}

impl Sum for CaptureState {
    /// Of what each CPU has for itself, only the losses have a sum.
    fn add(&mut self, other: Self) {
        self.lost = self.lost.wrapping_add(other.lost);
    }
}

/// A per-CPU array. Reading costs one system call per 1,024 entries, and copies the values of all possible CPUs.
///
/// # Minimum kernel version
///
/// 5.13.
pub struct PerCpu<V: FromBytes + IntoBytes + Immutable + Copy + 'static> {
    map: &'static str,
    array: PerCpuArray<MapData, Plain<V>>,
    cpus: usize,
    words: usize,
}

impl<V: FromBytes + IntoBytes + Immutable + Copy + Default + 'static> PerCpu<V> {
    /// `array`'s value size was checked against `V` by aya.
    pub(crate) fn new(map: &'static str, array: PerCpuArray<MapData, Plain<V>>) -> Result<Self, DatapathError> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| DatapathError::Cpus { path, source })?;
        Ok(Self {
            map,
            array,
            cpus,
            words: size_of::<V>().div_ceil(size_of::<u64>()),
        })
    }

    /// Entries of the map.
    pub fn entries(&self) -> u32 {
        self.array.len()
    }

    /// The map itself, for inspection.
    pub fn data(&self) -> &MapData {
        self.array.map()
    }

    /// One value per possible CPU.
    ///
    /// # Errors
    ///
    /// bpf(2)'s; a position outside of the map.
    pub fn per_cpu(&self, index: u32) -> Result<Vec<V>, DatapathError> {
        let values = self
            .array
            .get(&index, 0)
            .map_err(|error| map_error(self.map, "BPF_MAP_LOOKUP_ELEM", error))?;
        Ok(values.iter().map(|value| value.0).collect())
    }

    /// Clears an entry on all CPUs. A packet that is counted at it meanwhile may be lost or bring the old value back,
    /// so clear only what no table has named for a grace period.
    ///
    /// # Errors
    ///
    /// bpf(2)'s; a position outside of the map.
    pub fn zero(&mut self, index: u32) -> Result<(), DatapathError> {
        let zeros = vec![Plain(V::default()); self.cpus];
        let values = zeros
            .try_into()
            .map_err(|source| self.error("BPF_MAP_UPDATE_ELEM", source))?;
        self.array
            .set(index, values, 0)
            .map_err(|error| map_error(self.map, "BPF_MAP_UPDATE_ELEM", error))
    }

    fn error(&self, call: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Map {
            map: self.map,
            call,
            source,
        }
    }
}

impl<V: Sum> PerCpu<V> {
    /// Sum of one entry.
    ///
    /// # Errors
    ///
    /// bpf(2)'s; a position outside of the map.
    pub fn sum(&self, index: u32) -> Result<V, DatapathError> {
        let mut sum = V::default();
        self.per_cpu(index)?.into_iter().for_each(|share| sum.add(share));
        Ok(sum)
    }

    /// Sums of the first `count` entries, or of as many as there are.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn sums(&self, count: u32) -> Result<Vec<V>, DatapathError> {
        self.shape().sums(self.data().fd().as_fd(), count)
    }

    /// The same array for another thread.
    ///
    /// # Errors
    ///
    /// When there is no further descriptor.
    pub(super) fn shares(&self) -> Result<Shares<V>, DatapathError> {
        let fd = self.data().fd().as_fd().try_clone_to_owned();
        Ok(Shares {
            shape: self.shape(),
            fd: fd.map_err(|source| self.shape().error("F_DUPFD_CLOEXEC", source))?,
            value: PhantomData,
        })
    }

    fn shape(&self) -> Shape {
        Shape {
            map: self.map,
            entries: self.entries(),
            cpus: self.cpus,
            words: self.words,
        }
    }
}

/// A per-CPU array that is only read. The map lives as long as this does.
pub(super) struct Shares<V> {
    shape: Shape,
    fd: OwnedFd,
    value: PhantomData<fn() -> V>,
}

impl<V: Sum> Shares<V> {
    /// As [`PerCpu::sums`].
    pub(super) fn sums(&self, count: u32) -> Result<Vec<V>, DatapathError> {
        self.shape.sums(self.fd.as_fd(), count)
    }
}

/// How the values of a per-CPU array lie.
#[derive(Clone, Copy, Debug)]
struct Shape {
    map: &'static str,
    entries: u32,
    cpus: usize,
    words: usize,
}

impl Shape {
    fn sums<V: Sum>(self, fd: BorrowedFd<'_>, count: u32) -> Result<Vec<V>, DatapathError> {
        let count = count.min(self.entries) as usize;
        let stride = self.words * self.cpus;
        let mut keys = vec![0_u32; count.min(BATCH)];
        let mut values = vec![0_u64; keys.len() * stride];
        let mut sums = Vec::with_capacity(count);
        while sums.len() < count {
            let wanted = keys.len().min(count - sums.len());
            let from = u32::try_from(sums.len()).unwrap_or(u32::MAX);
            let came = syscall::lookup_batch(fd, from, &mut keys[..wanted], &mut values, stride)
                .map_err(|source| self.error("BPF_MAP_LOOKUP_BATCH", source))?;
            if came == 0 {
                return Err(self.error("BPF_MAP_LOOKUP_BATCH", io::ErrorKind::UnexpectedEof.into()));
            }
            sums.extend(
                values
                    .chunks_exact(stride)
                    .take(came)
                    .map(|entry| self.sum_of::<V>(entry)),
            );
        }
        Ok(sums)
    }

    fn sum_of<V: Sum>(self, entry: &[u64]) -> V {
        let mut sum = V::default();
        for share in entry.chunks_exact(self.words) {
            // The chunk holds at least the value's bytes: `words` is its size rounded up.
            if let Ok((share, _)) = V::read_from_prefix(share.as_bytes()) {
                sum.add(share);
            }
        }
        sum
    }

    fn error(self, call: &'static str, source: io::Error) -> DatapathError {
        DatapathError::Map {
            map: self.map,
            call,
            source,
        }
    }
}

/// All counters of a loaded program.
pub struct Counters {
    /// Packets by verdict.
    pub verdicts: VerdictCounters,
    /// Traffic by VIP.
    pub vips: PerCpu<Traffic>,
    /// Traffic by backend; position 0 stays zero.
    pub backends: PerCpu<Traffic>,
    /// Token buckets by VIP.
    pub limits: PerCpu<LimitState>,
    /// Token buckets and sheds of the slow path, by verdict.
    pub slow: PerCpu<SlowState>,
    /// Flows that found no room in the flow table; one entry.
    pub flows: PerCpu<FlowCounts>,
    /// What the slow path sent to backends.
    pub passed: Arc<Passed>,
    /// The capture's token bucket, and samples that its rings had no room for; one entry.
    pub capture: PerCpu<CaptureState>,
}

/// Packets by verdict.
pub struct VerdictCounters(pub(crate) PerCpu<u64>);

impl VerdictCounters {
    /// Every verdict with its packets, in the order of the counters.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn read(&self) -> Result<Vec<(Verdict, u64)>, DatapathError> {
        let count = u32::try_from(Verdict::ALL.len()).unwrap_or(u32::MAX);
        Ok(Verdict::ALL.iter().copied().zip(self.0.sums(count)?).collect())
    }

    /// Packets of one verdict.
    ///
    /// # Errors
    ///
    /// bpf(2)'s.
    pub fn of(&self, verdict: Verdict) -> Result<u64, DatapathError> {
        self.0.sum(verdict as u32)
    }
}
