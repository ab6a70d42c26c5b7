//! What is forwarded on the slow path: unusual packets, fragments, packets too big and ICMP errors, over real tables.
//!
//! Properties run over numbered cases; the number is in every message and is all that a case is made of.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod affinity;
mod asking;
mod bed;
mod errors;
mod fragments;
mod never_panics;
mod too_big;
mod unusual;
