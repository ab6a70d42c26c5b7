//! The flow-hash seed: whether it is there, and whether it is still the one that LB nodes hash with.
//!
//! Never makes one and never forgets one: the fingerprint that node sets pin decides.

/// How it stands with the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seed {
    /// Neither a Secret nor a pin: one is to be made.
    Missing,
    /// The Secret is there and is the one that is pinned, if any is.
    Present {
        /// First 16 hex digits of its SHA-256.
        fingerprint: String,
    },
    /// Pinned, and the Secret is gone: no new one is made; restore it from a backup.
    Lost {
        /// What node sets say.
        pinned: String,
    },
    /// Another than the pinned one: node sets keep the pin.
    Differs {
        /// What node sets say.
        pinned: String,
        /// The Secret's.
        found: String,
    },
    /// The Secret has no 64 hex digits under `seed`.
    Malformed {
        /// What node sets say.
        pinned: Option<String>,
    },
}
