//! Who of a group of LB nodes answers for an address, whatever becomes of them and of the network between them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod group;
