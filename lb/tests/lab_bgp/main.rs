//! BGP with the routers of Debian: BIRD 2, FRR and GoBGP learn what a real LB node announces, and nothing else. With BIRD, real traffic
//! takes the way that BGP made.

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

#[path = "../lab_support/mod.rs"]
mod lab_support;

mod interop;
mod liveness;
mod scripted;
mod site;
mod traffic;
