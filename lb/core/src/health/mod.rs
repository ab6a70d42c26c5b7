//! Which backends serve: what is probed and when, what the outcomes mean, and what that does to lookup tables.
//!
//! Never does IO and never reads a clock: [`Monitor`] says which probe is due ([`Launch`]) and is told what came of it
//! ([`Outcome`]), with the time. Never enters the construction of a table: [`Overlay`] says which members take no new flows, and
//! [`replaced`] which slots that concerns.
//!
//! | file | what it decides |
//! |---|---|
//! | `check` | what a probe is, how often it runs and how many outcomes count |
//! | `outcome` | what can come of one |
//! | `fsm` | from outcomes to a state, damped |
//! | `schedule` | which probe is due next, at a bounded rate |
//! | `monitor` | what is probed for a desired state, each thing once |
//! | `overlay` | from states to members that take no new flows; when too few are left, to none |
//! | `slots` | who gets the slots of those |
//! | `tunnel` | what a probe through the tunnel looks like, and its answer |
//! | `report` | what is shown |
//!
//! # Unhealthy is not dead
//!
//! A backend that answers, whatever it says, is a living host: connections through it may be living too (a Service whose last
//! endpoints terminate, a kube-proxy that is being replaced, a server that finishes what it has begun and listens no more). So only
//! *silence* leads to death: nothing at all came back for [`Timing::dead_after_ms`], or the kernel found that the neighbour does not
//! answer. Who answers any one of several checks is not silent. The rest is unhealthy, and keeps what it has.

mod check;
mod fsm;
mod monitor;
mod outcome;
mod overlay;
mod report;
mod schedule;
mod slots;
mod tunnel;

pub use check::{
    Check, Checks, DEFAULT_PANIC_PERCENT, HttpProbe, KUBE_TIMING, Probe, Statuses, TUNNEL_TIMING, Timing, WhenNone,
};
pub use fsm::{Change, FORGIVEN_AFTER, Fsm, MAX_STRIKES, State};
pub use monitor::{Launch, MAX_FLYING, MAX_TARGETS, Monitor, PROOF_HOLDS, SWEEP_EVERY, Ticket, VIP_SETTLES, Wanted};
pub use outcome::{Failure, Fault, Outcome};
pub use overlay::{Health, Overlay, Unfit};
pub use report::{CheckReport, Sums};
pub use schedule::{Due, MAX_PROBES_PER_SECOND, Schedule};
pub use slots::replaced;
pub use tunnel::{Answer, PROBE_PORTS, TunnelProbe};
