//! The whole operator against the double of the API server.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod announcing;
mod birth;
mod election;
mod kill;
mod observer;
mod outage;
mod scale;
mod stage;
mod told;
mod tools;
