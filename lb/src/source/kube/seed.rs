//! The flow hash's seed, from the Secret or from the cache.
//!
//! Never takes another seed while one is in use: every flow would move. Never prints one.

use std::{fmt, sync::Arc};

use lb_core::config::{SeedError, SeedKey, parse_seed};
use sha2::{Digest as _, Sha256};

/// Hex digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 16;

/// A seed and what it is known by. `Debug` says nothing of the digits.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSeed {
    digits: Arc<str>,
    key: SeedKey,
    /// First 16 hex digits of the SHA-256 of the 64 digits.
    pub fingerprint: Arc<str>,
}

impl ClusterSeed {
    /// Reads the Secret's text.
    ///
    /// # Errors
    ///
    /// [`SeedError`]; none says what the digits are.
    pub fn parse(text: &str) -> Result<Self, SeedError> {
        let digits = text.trim();
        let key = parse_seed(digits)?;
        let digest = Sha256::digest(digits.as_bytes());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            digits: digits.into(),
            key,
            fingerprint: hex.get(..FINGERPRINT_DIGITS).unwrap_or_default().into(),
        })
    }

    /// As the program wants it.
    pub fn key(&self) -> SeedKey {
        self.key
    }

    /// As the Secret has it: for the cache only.
    pub(super) fn digits(&self) -> &Arc<str> {
        &self.digits
    }
}

impl fmt::Debug for ClusterSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterSeed({})", self.fingerprint)
    }
}

/// Which seed is in use, and what of others was refused.
#[derive(Clone, Debug, Default)]
pub struct Seeds {
    in_use: Option<ClusterSeed>,
    /// Not in use yet: the Secret's, and the cache's.
    secret: Option<ClusterSeed>,
    cached: Option<ClusterSeed>,
    bad: Option<SeedError>,
}

impl Seeds {
    /// What a cache says.
    pub fn cached(seed: Option<ClusterSeed>) -> Self {
        Self {
            cached: seed,
            ..Self::default()
        }
    }

    /// What the Secret says now.
    pub fn heard(&mut self, text: &str) {
        match ClusterSeed::parse(text) {
            Ok(seed) => {
                self.secret = Some(seed);
                self.bad = None;
            }
            Err(error) => self.bad = Some(error),
        }
    }

    /// Takes a seed into use, if there is one that has the fingerprint that node sets pin; the same for good.
    pub fn settle(&mut self, pinned: &str) -> Option<&ClusterSeed> {
        if self.in_use.is_none() {
            let candidates = [&self.secret, &self.cached].into_iter().flatten();
            self.in_use = candidates
                .into_iter()
                .find(|seed| *seed.fingerprint == *pinned)
                .cloned();
        }
        self.in_use.as_ref()
    }

    /// The one in use.
    pub fn in_use(&self) -> Option<&ClusterSeed> {
        self.in_use.as_ref()
    }

    /// What is wrong with seeds, for people: the alarm.
    pub fn alarm(&self, pinned: Option<&str>) -> Option<String> {
        if let Some(error) = self.bad {
            return Some(format!("the Secret's seed cannot be used: {error}"));
        }
        let known = self.in_use.as_ref().or(self.secret.as_ref())?;
        let (mine, whose) = (
            &known.fingerprint,
            if self.in_use.is_some() {
                "in use"
            } else {
                "the Secret's"
            },
        );
        let goes_on = if self.in_use.is_some() {
            "; the one in use stays"
        } else {
            ""
        };
        let others = [
            (pinned, "node sets pin"),
            (self.secret.as_ref().map(|seed| &*seed.fingerprint), "the Secret has"),
        ];
        others.into_iter().find_map(|(other, who)| {
            let other = other.filter(|other| *other != &**mine)?;
            Some(format!("the seed {whose} is {mine}, and {who} {other}{goes_on}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{ClusterSeed, Seeds};

    const ONE: &str = "9f4c1b7e2a5d803611c7e9d2b4f60a8853fe27ad90b1c64e7d3a8f150c62e9b7";
    const OTHER: &str = "0f4c1b7e2a5d803611c7e9d2b4f60a8853fe27ad90b1c64e7d3a8f150c62e9b7";

    fn fingerprint(text: &str) -> String {
        ClusterSeed::parse(text).unwrap().fingerprint.to_string()
    }

    #[test]
    fn a_fingerprint_is_that_of_the_digits_as_text() {
        // printf %s "$ONE" | sha256sum
        assert_eq!(fingerprint(ONE), "a355bde1648196a5");
        assert_eq!(fingerprint(&format!(" {ONE}\n")), fingerprint(ONE));
        let debug = format!("{:?}", ClusterSeed::parse(ONE).unwrap());
        assert!(!debug.contains(&ONE[..8]), "{debug}");
    }

    #[test]
    fn only_the_pinned_seed_is_taken_and_then_no_other() {
        let mut seeds = Seeds::default();
        assert_eq!(seeds.settle(&fingerprint(ONE)), None);
        seeds.heard(OTHER);
        assert_eq!(seeds.settle(&fingerprint(ONE)), None);
        assert!(seeds.alarm(Some(&fingerprint(ONE))).unwrap().contains("node sets pin"));
        seeds.heard(ONE);
        assert_eq!(seeds.alarm(Some(&fingerprint(ONE))), None);
        assert_eq!(*seeds.settle(&fingerprint(ONE)).unwrap().fingerprint, *fingerprint(ONE));
        seeds.heard(OTHER);
        let alarm = seeds.alarm(Some(&fingerprint(ONE))).unwrap();
        assert!(alarm.contains("the Secret has") && alarm.contains("stays"), "{alarm}");
        assert_eq!(
            *seeds.settle(&fingerprint(OTHER)).unwrap().fingerprint,
            *fingerprint(ONE)
        );
        seeds.heard("nonsense");
        assert!(seeds.alarm(None).unwrap().contains("cannot be used"));
    }

    #[test]
    fn a_cached_seed_serves_while_node_sets_pin_it() {
        let cached = || Seeds::cached(ClusterSeed::parse(ONE).ok());
        assert!(cached().settle(&fingerprint(ONE)).is_some());
        assert!(cached().settle(&fingerprint(OTHER)).is_none());
    }
}
