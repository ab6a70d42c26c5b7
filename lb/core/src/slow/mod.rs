//! The slow path: what becomes of the packets that the fast path leaves alone. Never does IO and never reads a clock: frames and
//! tables in, frames and events out, time as an argument.

mod bounds;
mod kind;

pub use bounds::{Budgets, FragmentBounds, HoldBounds};
pub use kind::Kind;
