//! BGP sessions against each other and against anything: what a peer understands of our bytes is read by a crate that did not frame
//! them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod model;
mod properties;
mod stories;
mod wire;
