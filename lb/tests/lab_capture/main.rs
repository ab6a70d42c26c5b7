//! `vipline capture` on real traffic: what it says of packets, as tshark reads it, and that nobody notices when it comes and goes.

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod bed;
mod files;
#[path = "../lab_support/mod.rs"]
mod lab_support;
mod lives;
