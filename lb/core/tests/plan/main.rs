//! The planner: what the maps say after a plan, that every prefix of a plan is safe, and that nothing leaks.
//!
//! | file | what |
//! |---|---|
//! | `world` | small random worlds: desired states and next hops |
//! | `meaning` | what an image means for every VIP, checked against the desired state |
//! | `reader` | a packet that reads the maps while they are written |
//! | `properties` | random histories |
//! | `adopt` | maps of an earlier process, also of interrupted plans |
//! | `lines` | the order in which words of backend lines change |
//! | `scenarios` | the orders that the design names, one by one |
//! | `transit` | flows that live while plans are carried out |
//! | `waits` | transit memory at its bound |
//! | `published` | LB nodes that start or join in a transit |
//! | `health` | flows of backends that fall ill, die and recover |

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod adopt;
mod health;
mod lines;
mod meaning;
mod properties;
mod reader;
mod scenarios;
mod transit;
mod world;
