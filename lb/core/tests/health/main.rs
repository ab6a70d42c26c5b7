//! Health: from outcomes of probes to what the planner is told, as a source of desired states and a network would drive it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fsm;
mod monitor;
mod scale;
mod world;
