//! Golden tests: the loaded programs on frames that independent code built, with every counter compared after every step.
//!
//! Never asks the packet path's own code what a frame should look like; the host build is only asked to agree.
//!
//! | module | what it proves |
//! |---|---|
//! | [`encapsulation`] | four kinds of tunnel, TCP and UDP, VLAN tags, type of service, lengths and checksums |
//! | [`sources`] | the outer source: the node's address, or a prefix with flow entropy |
//! | [`ways`] | transmit, redirect, local, no next hop, no backend, too big, large and multi-buffer frames |
//! | [`untouched`] | what is not for a VIP, and what the fast path leaves to the slow path |
//! | [`broken`] | truncated frames, lengths that lie, header lengths and versions that cannot be |
//! | [`policy`] | martians, deny-list, source ranges |
//! | [`limits`] | packet and SYN limits |
//! | [`worker`] | decapsulation, on a worker node and on an LB node |
//! | [`roundtrip`] | what the balancer puts on, the worker node takes off |
//! | [`verdicts`] | every verdict is reached |

#[path = "../support/mod.rs"]
mod support;

mod broken;
mod encapsulation;
mod limits;
mod policy;
mod roundtrip;
mod sources;
mod untouched;
mod verdicts;
mod ways;
mod worker;
