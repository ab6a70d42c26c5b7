//! What the generator writes into a packet so that the sink can account for it: which run, which sender, which packet, when.
//!
//! Never longer than what a 64-byte IPv4 UDP frame has room for. 16 bytes, network order:
//!
//! ```text
//!  0       4        5               10             16
//!  | run   | sender | sequence (40) | ns (48)      |
//! ```

/// Bytes of a stamp.
pub(crate) const STAMP_LEN: usize = 16;
/// 2^48 ns are 78 hours: no packet is that late.
const TIME_BITS: u64 = 48;
const SEQUENCE_MASK: u64 = (1 << 40) - 1;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// A number of the trial's own: what is left of an earlier one is not counted in this one.
    pub(crate) run_id: u32,
    pub(crate) sender: u8,
    /// From 0, of each sender.
    pub(crate) sequence: u64,
    /// CLOCK_MONOTONIC when it was written.
    pub(crate) ns: u64,
}

impl Stamp {
    pub(crate) fn to_bytes(self) -> [u8; STAMP_LEN] {
        let mut bytes = [0; STAMP_LEN];
        bytes[..4].copy_from_slice(&self.run_id.to_be_bytes());
        bytes[4] = self.sender;
        bytes[5..10].copy_from_slice(&self.sequence.to_be_bytes()[3..]);
        bytes[10..].copy_from_slice(&self.ns.to_be_bytes()[2..]);
        bytes
    }

    /// `None`: not of this run, or nothing of ours.
    pub(crate) fn read(bytes: &[u8], run_id: u32) -> Option<Self> {
        let bytes: &[u8; STAMP_LEN] = bytes.first_chunk()?;
        let word = u128::from_be_bytes(*bytes);
        let stamp = Self {
            run_id: (word >> 96) as u32,
            sender: (word >> 88) as u8,
            sequence: (word >> TIME_BITS) as u64 & SEQUENCE_MASK,
            ns: word as u64 & ((1 << TIME_BITS) - 1),
        };
        (stamp.run_id == run_id).then_some(stamp)
    }

    /// How long ago it was written; the clock's upper bits are not in the packet.
    pub(crate) fn age_ns(self, now_ns: u64) -> u64 {
        now_ns.wrapping_sub(self.ns) & ((1 << TIME_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Stamp;

    #[test]
    fn a_stamp_is_read_as_it_was_written_and_only_by_its_run() {
        let stamp = Stamp {
            run_id: 0xdead_beef,
            sender: 7,
            sequence: (1 << 40) - 2,
            ns: (1 << 48) - 3,
        };
        assert_eq!(Stamp::read(&stamp.to_bytes(), 0xdead_beef), Some(stamp));
        assert_eq!(Stamp::read(&stamp.to_bytes(), 0xdead_bee0), None);
        assert_eq!(Stamp::read(&stamp.to_bytes()[..15], 0xdead_beef), None);
    }

    #[test]
    fn an_age_survives_the_clock_growing_past_what_a_stamp_holds() {
        let stamp = Stamp {
            run_id: 1,
            sender: 0,
            sequence: 0,
            ns: (1 << 48) - 10,
        };
        assert_eq!(stamp.age_ns((5 << 48) + 90), 100);
    }
}
