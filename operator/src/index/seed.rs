//! The flow-hash seed: whether it is there, and whether it is still the one that LB nodes hash with.
//!
//! Never makes one, never keeps one, and never forgets one: only its fingerprint is kept, and the one that node sets pin decides.

use k8s_openapi::api::core::v1::Secret;
use operator_api::SEED_KEY;
use sha2::{Digest as _, Sha256};

/// Hex digits of a seed.
const SEED_DIGITS: usize = 64;
/// Bytes of the SHA-256 that make a fingerprint.
const FINGERPRINT_BYTES: usize = 8;

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

impl Seed {
    /// What node sets say, or shall say; `None`: there is nothing yet that they could.
    pub fn fingerprint(&self) -> Option<&str> {
        match self {
            Self::Present { fingerprint: pinned } | Self::Lost { pinned } | Self::Differs { pinned, .. } => {
                Some(pinned)
            }
            Self::Malformed { pinned } => pinned.as_deref(),
            Self::Missing => None,
        }
    }
}

/// What is known of the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Fingerprint(String),
    Malformed,
}

impl Found {
    pub(super) fn parse(secret: &Secret) -> Self {
        let seed = secret.data.as_ref().and_then(|data| data.get(SEED_KEY));
        // An answer that was made here and not read back may have it as text.
        let text = secret.string_data.as_ref().and_then(|data| data.get(SEED_KEY));
        let seed = seed
            .map(|bytes| bytes.0.as_slice())
            .or(text.map(String::as_bytes))
            .unwrap_or_default();
        match fingerprint(seed) {
            Some(fingerprint) => Self::Fingerprint(fingerprint),
            None => Self::Malformed,
        }
    }
}

/// First 16 hex digits of the SHA-256 of 64 hex digits as text; `None`: that is not what they are.
pub fn fingerprint(seed: &[u8]) -> Option<String> {
    if seed.len() != SEED_DIGITS || !seed.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let digest = Sha256::digest(seed);
    Some(
        digest
            .iter()
            .take(FINGERPRINT_BYTES)
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

/// How it stands, from the Secret and what node sets pin.
pub(super) fn seed(found: Option<&Found>, pinned: Option<&str>) -> Seed {
    match (found, pinned.map(str::to_owned)) {
        (None, None) => Seed::Missing,
        (None, Some(pinned)) => Seed::Lost { pinned },
        (Some(Found::Malformed), pinned) => Seed::Malformed { pinned },
        (Some(Found::Fingerprint(found)), Some(pinned)) if *found != pinned => Seed::Differs {
            pinned,
            found: found.clone(),
        },
        (Some(Found::Fingerprint(found)), Some(_) | None) => Seed::Present {
            fingerprint: found.clone(),
        },
    }
}
