//! Numbers from a seed, so that a failure can be run again.

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// From a number.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// From `VIPLINE_TEST_SEED` (decimal or 0x…), else from `default`; printed, so that a failure says how to repeat it.
    pub(crate) fn seeded(default: u64) -> Self {
        let asked = std::env::var("VIPLINE_TEST_SEED").ok();
        let seed = asked.map_or(default, |text| {
            let digits = text.trim();
            digits
                .strip_prefix("0x")
                .map_or_else(|| digits.parse(), |hex| u64::from_str_radix(hex, 16))
                .expect("VIPLINE_TEST_SEED is a number")
        });
        #[expect(clippy::print_stdout, reason = "the seed is what a failure is repeated with")]
        {
            println!("VIPLINE_TEST_SEED={seed:#x}");
        }
        Self::new(seed)
    }

    /// The next word.
    pub(crate) fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Fills with random bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
