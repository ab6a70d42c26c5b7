//! A number that no other node and no start before had: for jitter, and for hashes that nobody is to foresee. Never kept here.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// Another one each time.
pub(crate) fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}
