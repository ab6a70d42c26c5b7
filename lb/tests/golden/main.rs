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
//! | [`matching`] | the match table as packets meet it |
//! | [`policy`] | martians, deny-list, source ranges |
//! | [`limits`] | packet and SYN limits |
//! | [`slow_path`] | the hook: a socket gets the reason in front of the packet |
//! | [`neighbours`] | ARP and neighbour discovery for VIP addresses, more VLAN tags than two |
//! | [`mss`] | MSS clamping |
//! | [`affinity`] | client affinity |
//! | [`flows`] | nothing: what the next two have in common |
//! | [`transit`] | slots in transit, and the records of flows |
//! | [`schedulers`] | turns, open flows, clients that are remembered |
//! | [`capture`] | samples of packets |
//! | [`features`] | every feature alone, and all but each one |
//! | [`worker`] | decapsulation, on a worker node and on an LB node |
//! | [`tunnel_rules`] | what is not decapsulated |
//! | [`roundtrip`] | what the balancer puts on, the worker node takes off |
//! | [`verdicts`] | every verdict is reached |

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod broken;
mod capture;
mod encapsulation;
mod features;
mod flows;
mod limits;
mod matching;
mod mss;
mod neighbours;
mod policy;
mod roundtrip;
mod schedulers;
mod slow_path;
mod sources;
mod transit;
mod tunnel_rules;
mod untouched;
mod verdicts;
mod ways;
mod worker;
