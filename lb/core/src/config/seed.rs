//! The seed of the flow hash: a secret that all LB nodes of a group share.
//!
//! Never prints it, in no `Debug`, `Display` or error: who knows it can choose flows that all hit one backend.

use std::{fmt, path::PathBuf};

use thiserror::Error;

use super::{problem::Problem, read::At, read::Fields};

/// Hex digits of a seed.
pub const SEED_DIGITS: usize = 64;

/// 256 bits. `Debug` says nothing of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SeedKey([u64; 4]);

impl SeedKey {
    /// As [`xdp_prog::abi::Config::seed`] wants it: word 0 is the first sixteen digits as a number.
    pub const fn words(&self) -> [u64; 4] {
        self.0
    }
}

impl fmt::Debug for SeedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeedKey(…)")
    }
}

/// Where the seed comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seed {
    /// From the configuration file itself.
    Inline(SeedKey),
    /// From a file of its own, whose content goes through [`parse_seed`]. An absolute path.
    File(PathBuf),
    /// From the cluster's Secret, with `--kube` only.
    Cluster,
}

/// Why a text is not a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SeedError {
    /// Not as many characters as there must be.
    #[error("{length} characters where {SEED_DIGITS} hex digits make a seed; `openssl rand -hex 32` makes one")]
    Length {
        /// Characters, white space around them not counted.
        length: usize,
    },
    /// Not a hex digit.
    #[error("character {position} is not a hex digit; {SEED_DIGITS} hex digits make a seed")]
    Digit {
        /// Which character, from 1.
        position: usize,
    },
    /// So regular that nobody can have drawn it: fewer than eight different digits.
    #[error("too regular to be secret; `openssl rand -hex 32` makes a good one")]
    TooRegular,
}

/// Reads a seed: 64 hex digits, white space around them ignored.
///
/// # Errors
///
/// [`SeedError`]; none says what the digits are.
pub fn parse_seed(text: &str) -> Result<SeedKey, SeedError> {
    let digits = text.trim();
    if let Some(at) = digits.chars().position(|c| !c.is_ascii_hexdigit())
        && at < SEED_DIGITS
    {
        return Err(SeedError::Digit { position: at + 1 });
    }
    if digits.len() != SEED_DIGITS {
        return Err(SeedError::Length {
            length: digits.chars().count(),
        });
    }
    let mut words = [0_u64; 4];
    let mut used = 0_u16;
    for (at, digit) in digits.chars().filter_map(|c| c.to_digit(16)).enumerate() {
        if let Some(word) = words.get_mut(at / 16) {
            *word = *word << 4 | u64::from(digit);
        }
        used |= 1 << digit;
    }
    // 64 random digits have fewer than eight different ones about once in 10^18 draws.
    if used.count_ones() < 8 {
        Err(SeedError::TooRegular)
    } else {
        Ok(SeedKey(words))
    }
}

/// `seed` or `seed_file`.
pub(super) fn seed(fields: &mut Fields<'_>) -> Option<Seed> {
    match (fields.optional("seed"), fields.optional("seed_file")) {
        (Some(inline), None) => inline_seed(&inline),
        (None, Some(file)) => Some(Seed::File(super::absolute_path(&file)?)),
        (Some(_), Some(file)) => file.fail(Problem::SeedChoice { both: true }),
        (None, None) => fields.fail_at("seed", Problem::SeedChoice { both: false }),
    }
}

fn inline_seed(at: &At<'_>) -> Option<Seed> {
    match parse_seed(at.text()?) {
        Ok(key) => Some(Seed::Inline(key)),
        Err(error) => at.fail(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "00112233445566778899aabbccddeeff0123456789abcdefFEDCBA9876543210";

    #[test]
    fn words_are_sixteen_digits_each_in_the_order_of_the_text() {
        let key = parse_seed(&format!("  {DIGITS}\n")).unwrap();
        assert_eq!(
            key.words(),
            [
                0x0011_2233_4455_6677,
                0x8899_aabb_ccdd_eeff,
                0x0123_4567_89ab_cdef,
                0xfedc_ba98_7654_3210
            ]
        );
    }

    #[test]
    fn a_seed_is_never_printed() {
        let seed = Seed::Inline(parse_seed(DIGITS).unwrap());
        assert_eq!(format!("{seed:?}"), "Inline(SeedKey(…))");
    }

    #[test]
    fn what_is_no_seed_says_why_without_the_digits() {
        assert_eq!(parse_seed(""), Err(SeedError::Length { length: 0 }));
        assert_eq!(parse_seed(&DIGITS[1..]), Err(SeedError::Length { length: 63 }));
        assert_eq!(
            parse_seed(&DIGITS.replace('3', "g")),
            Err(SeedError::Digit { position: 7 })
        );
        assert_eq!(parse_seed(&"0".repeat(64)), Err(SeedError::TooRegular));
        assert_eq!(parse_seed(&"0123456".repeat(10)[..64]), Err(SeedError::TooRegular));
    }
}
