//! Schedulers and client affinity, from what is desired to where packets go: real plans, the real packet logic, no clock but ours.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod affinity;
mod bed;
mod counts;
mod turns;
