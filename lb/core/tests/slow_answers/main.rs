//! What a VIP address says to those who ask: frames in, frames out, over real tables.
//!
//! Golden frames are in `golden/`; they were written by other code than the one under test, and tshark finds no fault
//! in them.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on has failed, and this one reads files (lb-core itself does not)"
)]

mod announce;
mod bed;
mod frames;
mod golden;
mod lengths;
mod never_panics;
mod refusals;
