//! The one place where map ABI types meet aya.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Carries aya's `Pod` for the types of [`xdp_prog::abi`], which knows nothing of aya.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: `Pod` asks that the value can be made from and seen as bytes: `FromBytes` says that every pattern is a value,
// `IntoBytes` that there is no padding, `Immutable` that nothing changes behind a shared reference.
unsafe impl<T: FromBytes + IntoBytes + Immutable + Copy + 'static> aya::Pod for Plain<T> {}
