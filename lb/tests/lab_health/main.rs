//! Probes of real backends by `vipline run`: servers that die, that answer something else, that flap, that are all gone; what becomes of
//! real flows then; a probe through the tunnel to the VIP itself; and what a cluster asks for.

#![allow(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod flows;
mod kube;
#[path = "../lab_support/mod.rs"]
mod lab_support;
mod site;
mod states;
mod too_few;
mod tunnel;
