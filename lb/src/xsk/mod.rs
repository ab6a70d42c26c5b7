//! AF_XDP: frames between the kernel's sockets and the slow path's packet logic. Never decides what becomes of a packet: that is
//! `lb_core::slow`'s, behind a [`Handler`].
//!
//! | module | what it is |
//! |---|---|
//! | `slow_path` | [`SlowPath`]: all workers, and who restarts them |
//! | `team` | a group of workers that share memory |
//! | `worker` | one worker: receive, handle, send, sleep |
//! | `handler` | [`Handler`]: what a worker does with packets |
//! | `rings`, `area` | a socket with its rings; the memory that frames lie in |
//! | `port` | [`XskPort`]: a queue for a generator or a sink |
//! | `registry` | how sockets get into the map that XDP redirects through |
//! | `interface` | [`XskInterface`]: queues and hardware address |
//! | `tun` | [`ToKernel`]: the way to this node's own kernel |
//! | `settings`, `status`, `error` | bounds and their cost; what workers count; what went wrong |
//! | `wake` | how a sleeping worker is woken |
//!
//! **Invariant: a frame has one owner.** It is with the kernel (for receiving or sending), in one worker's hands, in one inbox, or
//! free; see `area`.
//!
//! **Invariant: the fast path never depends on a worker.** A socket that closes leaves the map by itself, and a redirect without
//! a socket is a counted drop.

mod area;
mod error;
mod handler;
mod interface;
mod packet;
mod port;
mod registry;
mod rings;
mod settings;
mod slow_path;
mod status;
mod team;
mod tun;
mod wake;
mod worker;

pub use error::{XskAdvice, XskError};
pub use handler::{Handler, MakeHandler};
pub use interface::XskInterface;
pub use lb_core::config::XskMode;
pub use packet::{Family, FrameSender, NeighbourReceiver, SegmentReceiver};
pub use port::XskPort;
pub use registry::Register;
pub use settings::{BATCH, BusyPoll, EVENTS, INBOX_PACKETS, MAX_DESCRIPTORS, PACKET_HEADROOM, XskSettings};
pub use slow_path::SlowPath;
pub use status::{GroupStatus, Tally, WorkerStatus};
pub use tun::{TUN_NAME, ToKernel, Tun};
pub use worker::monotonic_ns;
