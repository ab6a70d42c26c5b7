//! Sampled packets: what a capture asks of the program, and the rings by which samples come.
//!
//! Never decides who gets them, and never blocks: a ring that nobody empties is full, and what does not fit is counted by the
//! program.

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    maps::{
        MapData,
        perf::{PerfBufferError, PerfEvent, PerfEventArrayBuffer},
    },
    util::online_cpus,
};
use xdp_prog::{
    abi::{SampleHeader, map, setting},
    limit::TOKEN,
    verdict::Verdict,
};
use zerocopy::FromBytes as _;

use super::{Balancer, DatapathError};

/// Pages of a ring: 256 KiB per CPU, what the kernel lets anybody lock (`perf_event_mlock_kb`). Holds what a CPU saves up at
/// [`Aim::rate`] = 1,000 in frames of 2 KiB.
const RING_PAGES: usize = 64;
/// What a CPU may save up of its rate: a tenth of a second's worth.
const BURST_PER_SECOND: u64 = 10;

/// What is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aim {
    /// A bit per verdict number; 0: nothing.
    pub verdicts: u64,
    /// Only packets that the VIP with this index claimed.
    pub vip: Option<u32>,
    /// One in so many, by chance; 0 and 1: all.
    pub one_in: u32,
    /// Most per second and CPU; 0 is brought to 1, since it would ask for nothing.
    pub rate: u32,
    /// Most bytes of a frame.
    pub snaplen: u32,
}

impl Aim {
    /// The bits of `verdicts`.
    pub fn mask(verdicts: impl IntoIterator<Item = Verdict>) -> u64 {
        verdicts.into_iter().fold(0, |mask, verdict| mask | 1 << verdict as u64)
    }
}

/// The samples of one CPU. Dropping it takes the ring out of the program's reach.
pub struct SampleRing(PerfEventArrayBuffer<MapData>);

impl Balancer {
    /// Sets what is sampled, live: word by word, so that for a moment old and new filters mix. Means nothing to a program without
    /// [`xdp_prog::abi::feature::CAPTURE`]. `hz`: jiffies per second.
    ///
    /// # Errors
    ///
    /// Never: every setting has a place.
    pub fn aim(&self, aim: &Aim, hz: u32) -> Result<(), DatapathError> {
        let second = u64::from(aim.rate.max(1)) * TOKEN;
        let words = [
            (setting::CAPTURE_VIP, aim.vip.map_or(0, |index| u64::from(index) + 1)),
            (setting::CAPTURE_SAMPLE, u64::from(aim.one_in)),
            (setting::CAPTURE_RATE, (second / u64::from(hz.max(1))).max(1)),
            // 0 would be no limit.
            (setting::CAPTURE_BURST, (second / BURST_PER_SECOND).max(TOKEN)),
            (setting::CAPTURE_SNAPLEN, u64::from(aim.snaplen)),
            (setting::CAPTURE_VERDICTS, aim.verdicts),
        ];
        words
            .into_iter()
            .try_for_each(|(index, word)| self.settings.store(index, 0, word))
    }

    /// Samples nothing from now on, but for what is being decided at this moment.
    ///
    /// # Errors
    ///
    /// As [`Self::aim`].
    pub fn aim_at_nothing(&self) -> Result<(), DatapathError> {
        self.settings.store(setting::CAPTURE_VERDICTS, 0, 0)
    }

    /// A ring for every CPU that is online; those that come later sample nothing. 256 KiB each.
    ///
    /// # Errors
    ///
    /// perf_event_open(2)'s and mmap(2)'s.
    pub fn open_rings(&mut self) -> Result<Vec<SampleRing>, DatapathError> {
        let fail = |call, source| DatapathError::Map {
            map: map::SAMPLES,
            call,
            source,
        };
        let cpus = online_cpus().map_err(|(_, source)| fail("reading the CPUs that are online", source))?;
        let open = |cpu| {
            let ring = self.samples.open(cpu, Some(RING_PAGES));
            ring.map(SampleRing).map_err(|error| match error {
                PerfBufferError::OpenError { io_error } => fail("perf_event_open", io_error),
                PerfBufferError::MMapError { io_error } => fail("mmap", io_error),
                PerfBufferError::PerfEventEnableError { io_error } => fail("PERF_EVENT_IOC_ENABLE", io_error),
                other => fail("perf_event_open", io::Error::other(other)),
            })
        };
        cpus.into_iter().map(open).collect()
    }
}

impl SampleRing {
    /// Whether there is anything to take.
    pub fn is_readable(&self) -> bool {
        self.0.readable()
    }

    /// Takes samples, in the order in which they were made, until there are none or `take` breaks; a sample that it was given is
    /// taken. What cannot be a sample is passed over.
    pub fn drain(&mut self, mut take: impl FnMut(SampleHeader, Vec<u8>) -> ControlFlow<()>) {
        let done = self.0.try_fold((), |(), event| match event {
            PerfEvent::Sample { head, tail } => match parse(head, tail) {
                Some((header, frame)) => take(header, frame),
                None => ControlFlow::Continue(()),
            },
            // The program counts these itself.
            PerfEvent::Lost { count: _ } => ControlFlow::Continue(()),
        });
        match done {
            ControlFlow::Continue(()) | ControlFlow::Break(()) => {}
        }
    }
}

impl AsFd for SampleRing {
    /// Readable for poll(2) after a sample was made; once per sample, so look at [`Self::is_readable`] before waiting.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A record of the ring: header, bytes of the frame, padding.
fn parse(head: &[u8], tail: &[u8]) -> Option<(SampleHeader, Vec<u8>)> {
    let record = [head, tail].concat();
    let (header, frame) = SampleHeader::read_from_prefix(&record).ok()?;
    let captured = usize::try_from(header.captured_len).ok()?;
    Some((header, frame.get(..captured)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use xdp_prog::{abi::SampleHeader, verdict::Verdict};
    use zerocopy::IntoBytes as _;

    use super::{Aim, parse};

    #[test]
    fn a_sample_is_read_where_the_ring_wraps_and_padding_is_left() {
        let header = SampleHeader {
            verdict: 1,
            captured_len: 3,
            ..SampleHeader::default()
        };
        let record = [header.as_bytes(), &[1, 2, 3, 0, 0, 0, 0]].concat();
        for cut in 0..=record.len() {
            let (head, tail) = record.split_at(cut);
            assert_eq!(parse(head, tail), Some((header, vec![1, 2, 3])));
        }
        assert_eq!(parse(&record[..record.len() - 5], &[]), None, "cut short");
        assert_eq!(parse(&record[..20], &[]), None);
    }

    #[test]
    fn every_verdict_has_a_bit() {
        assert_eq!(Aim::mask([]), 0);
        assert_eq!(
            Aim::mask(Verdict::ALL.iter().copied()).count_ones() as usize,
            Verdict::ALL.len()
        );
        assert_eq!(Aim::mask([Verdict::ForwardRedirect]), 0b10);
    }
}
