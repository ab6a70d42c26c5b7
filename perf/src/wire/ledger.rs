//! What came, told apart: new, twice, out of order; and how late. Never knows a flow, a socket or a clock.
//!
//! One ledger for each queue of the sink, added up at the end. Memory: a bit for each packet of a trial, 2 MiB for 10 s at 1.6 Mpps.

use hdrhistogram::Histogram;

use super::stamp::Stamp;

/// Longest latency that is told apart: a minute.
const MOST_NS: u64 = 60_000_000_000;
/// Most packets of one sender in a trial: 128 MiB of bits. Those beyond are counted and not told apart.
const MOST_SEQUENCE: u64 = 1 << 30;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ledger {
    senders: Vec<Seen>,
    /// Packets without a stamp that were ours to count.
    pub(crate) unstamped: u64,
    /// Packets that were not of this trial.
    pub(crate) foreign: u64,
    duplicates: u64,
    reordered: u64,
    beyond: u64,
    /// Frames of this trial that came, twice or not, and their lengths with the frame check sequence.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) latency_ns: Histogram<u64>,
}

/// Packets of one sender.
#[derive(Clone, Debug, Default)]
struct Seen {
    bits: Vec<u64>,
    /// One more than the highest.
    next: u64,
}

/// What the ledgers of a trial come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Packets that came, each once.
    pub(crate) received: u64,
    pub(crate) duplicates: u64,
    /// Came after one of the same sender and queue with a higher number (RFC 4737, section 3.3).
    pub(crate) reordered: u64,
}

impl Ledger {
    pub(crate) fn new(senders: usize) -> Self {
        Self {
            senders: vec![Seen::default(); senders],
            unstamped: 0,
            foreign: 0,
            duplicates: 0,
            reordered: 0,
            beyond: 0,
            frames: 0,
            bytes: 0,
            latency_ns: latencies(),
        }
    }

    pub(crate) fn note(&mut self, stamp: Stamp, now_ns: u64) {
        let Some(seen) = self.senders.get_mut(usize::from(stamp.sender)) else {
            self.foreign += 1;
            return;
        };
        if stamp.sequence >= MOST_SEQUENCE {
            self.beyond += 1;
            return;
        }
        let (word, bit) = ((stamp.sequence / 64) as usize, 1 << (stamp.sequence % 64));
        if word >= seen.bits.len() {
            seen.bits.resize((word + 1).next_power_of_two(), 0);
        }
        if seen.bits[word] & bit != 0 {
            self.duplicates += 1;
            return;
        }
        seen.bits[word] |= bit;
        if stamp.sequence < seen.next {
            self.reordered += 1;
        } else {
            seen.next = stamp.sequence + 1;
        }
        self.latency_ns
            .saturating_record(stamp.age_ns(now_ns).clamp(1, MOST_NS));
    }

    /// With what another queue saw: a packet that both have came twice.
    pub(crate) fn add(&mut self, other: &Self) {
        self.unstamped += other.unstamped;
        self.foreign += other.foreign;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.beyond += other.beyond;
        self.frames += other.frames;
        self.bytes += other.bytes;
        for (mine, theirs) in self.senders.iter_mut().zip(&other.senders) {
            if mine.bits.len() < theirs.bits.len() {
                mine.bits.resize(theirs.bits.len(), 0);
            }
            for (mine, theirs) in mine.bits.iter_mut().zip(&theirs.bits) {
                self.duplicates += u64::from((*mine & theirs).count_ones());
                *mine |= theirs;
            }
        }
        // Same bounds, so nothing is out of range.
        let _ = self.latency_ns.add(&other.latency_ns);
    }

    pub(crate) fn account(&self) -> Account {
        let told_apart: u64 = self
            .senders
            .iter()
            .flat_map(|seen| &seen.bits)
            .map(|word| u64::from(word.count_ones()))
            .sum();
        Account {
            received: told_apart + self.beyond + self.unstamped,
            duplicates: self.duplicates,
            reordered: self.reordered,
        }
    }
}

/// No latencies yet: 1 ns to a minute, to three digits.
pub(crate) fn latencies() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, MOST_NS, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constant bounds: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Account, Ledger};
    use crate::wire::stamp::Stamp;

    const STEP_NS: u64 = 1_000;

    fn stamp(sender: u8, sequence: u64) -> Stamp {
        Stamp {
            run_id: 1,
            sender,
            sequence,
            ns: sequence * STEP_NS,
        }
    }

    fn seen(sequences: impl IntoIterator<Item = u64>) -> Account {
        let mut ledger = Ledger::new(1);
        for sequence in sequences {
            ledger.note(stamp(0, sequence), sequence * STEP_NS + 1);
        }
        ledger.account()
    }

    #[test]
    fn a_clean_stream_is_all_there() {
        let account = seen(0..100_000);
        assert_eq!(
            (account.received, account.duplicates, account.reordered),
            (100_000, 0, 0)
        );
    }

    #[test]
    fn every_tenth_lost_is_a_tenth_lost() {
        let account = seen((0..100_000).filter(|sequence| sequence % 10 != 3));
        assert_eq!(
            (account.received, account.duplicates, account.reordered),
            (90_000, 0, 0)
        );
    }

    #[test]
    fn every_hundredth_twice_is_a_hundredth_twice_and_nothing_lost() {
        let account = seen((0..10_000).flat_map(|n| std::iter::repeat_n(n, if n % 100 == 0 { 2 } else { 1 })));
        assert_eq!(
            (account.received, account.duplicates, account.reordered),
            (10_000, 100, 0)
        );
    }

    #[test]
    fn pairs_swapped_are_half_of_them_out_of_order() {
        let account = seen((0..5_000).flat_map(|pair| [pair * 2 + 1, pair * 2]));
        assert_eq!(
            (account.received, account.duplicates, account.reordered),
            (10_000, 0, 5_000)
        );
    }

    #[test]
    fn a_delay_is_measured_as_that_delay() {
        let mut ledger = Ledger::new(1);
        for sequence in 0..10_000 {
            let delay = if sequence % 100 == 0 { 5_000_000 } else { 250_000 };
            ledger.note(stamp(0, sequence), sequence * STEP_NS + delay);
        }
        let of = |quantile| ledger.latency_ns.value_at_quantile(quantile) as f64;
        assert!((of(0.5) / 250_000.0 - 1.0).abs() < 0.002, "{}", of(0.5));
        assert!((of(0.98) / 250_000.0 - 1.0).abs() < 0.002, "{}", of(0.98));
        assert!((of(0.999) / 5_000_000.0 - 1.0).abs() < 0.002, "{}", of(0.999));
    }

    #[test]
    fn senders_and_queues_are_added_up_and_a_packet_that_two_queues_saw_came_twice() {
        let (mut one, mut other) = (Ledger::new(2), Ledger::new(2));
        for sequence in 0..1000 {
            one.note(stamp(0, sequence), u64::MAX);
            other.note(stamp(1, sequence), u64::MAX);
        }
        for sequence in 0..10 {
            other.note(stamp(0, sequence), u64::MAX);
        }
        // A sender that does not exist is not of this trial.
        other.note(stamp(2, 0), 0);
        one.add(&other);
        let account = one.account();
        assert_eq!(
            (account.received, account.duplicates, account.reordered),
            (2_000, 10, 0)
        );
        assert_eq!(one.foreign, 1);
    }
}
