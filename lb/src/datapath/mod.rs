//! The kernel's edge: loading the XDP programs, attaching them, writing and reading their maps.
//!
//! Never decides what a table says: that is lb-core's, and comes here as a list of writes. The only room of this crate,
//! beside the AF_XDP one, that knows aya.
//!
//! | module | what it is |
//! |---|---|
//! | `load` | [`Balancer`], [`Decapsulator`]: the objects, loaded, with their maps |
//! | `pins`, `record` | [`Pins`]: what outlives the process, and [`Record`]: what it was made for |
//! | `program` | [`Program`]: attach, take over, [`ProgramFacts`] |
//! | `attach`, `hook`, `interface` | [`Attachment`] by link; who else is at an interface's hook |
//! | `mapped`, `slots` | [`Mapped`] arrays and [`SlotMemory`]: live maps, written by aligned 8-byte stores |
//! | `live` | [`LiveTables`]: the live maps for the packet logic in user space |
//! | `sockets`, `budgets` | [`Sockets`] of the slow path; what it takes, and what was shed |
//! | `samples` | [`Aim`] of a capture, and the [`SampleRing`]s by which samples come |
//! | `apply`, `forget` | a plan of map writes, carried out |
//! | `grace` | [`grace_period`]: no packet that is being handled now can see what was there before |
//! | `passed` | what the slow path sent to backends, and what earlier programs counted |
//! | `counters`, `memory`, `ports` | per-CPU [`Counters`], summed; what maps cost; the [`Ports`] to redirect to |
//! | `readings` | [`Readings`]: counters for another thread |
//! | `probe`, `clock` | [`TestRun`]: one frame through the program; how long a [`Jiffies`] is, and how many there have been |
//! | `sweep` | [`Sweep`]: records of flows that are over |
//! | `error`, `advice`, `verifier_log` | [`DatapathError`]: what failed, and what to do |
//!
//! **Invariant: nothing is left behind that [`Pins`] does not name.** Programs hang on link descriptors and maps on descriptors. What
//! is pinned stays, however the process ends, until it is taken away; what is not goes, however the process ends.

mod advice;
mod apply;
mod attach;
mod budgets;
mod clock;
mod counters;
mod error;
mod forget;
mod grace;
mod hook;
mod interface;
mod live;
mod load;
mod mapped;
mod memory;
mod passed;
mod pins;
mod plain;
mod ports;
mod probe;
mod program;
mod readings;
mod record;
mod samples;
mod slots;
mod sockets;
mod sweep;
mod syscall;
mod tcp_options;
mod verifier_log;

pub use advice::{Advice, Capability, Feature};
pub use apply::Applied;
pub use attach::{Attachment, Mode};
pub use clock::{Jiffies, jiffies_per_second};
pub use counters::{Counters, PerCpu, Sum, VerdictCounters};
pub use error::DatapathError;
pub use grace::grace_period;
pub use hook::{Holder, holders, refuse_if_taken};
pub use interface::Interface;
pub use lb_core::config::{AttachMode, Capacity};
pub use live::LiveTables;
pub use load::{Balancer, Decapsulator};
pub use mapped::Mapped;
pub use memory::MapMemory;
pub use passed::Passed;
pub use pins::{Generation, PinError, PinPlace, PinnedLink, Pins, Removed};
pub use plain::Plain;
pub use ports::Ports;
pub use probe::{Ingress, TestRun};
pub use program::{Program, ProgramFacts};
pub use readings::{Readings, unrecorded};
pub use record::Record;
pub use samples::{Aim, SampleRing};
pub use slots::SlotMemory;
pub use sockets::Sockets;
pub use sweep::Sweep;
pub use tcp_options::{MAX_TCP_MD5_KEY_BYTES, set_least_ttl, set_tcp_md5, set_ttl};
pub use verifier_log::VerifierTail;
