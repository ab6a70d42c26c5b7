//! A network-namespace test bench: real packets between real namespaces, under the real kernel.
//!
//! The lab never touches the namespace it is started in, never names a namespace and never writes a file: namespaces
//! are anonymous and live exactly as long as something in this process holds them.
//!
//! **Invariant: nothing is left behind, however the process ends.** A namespace is held by file descriptors, threads and
//! sockets of this process; child processes carry `PDEATHSIG=SIGKILL`; XDP and tc programs hang on link descriptors. So
//! the kernel removes all of it on `drop`, on panic, on Ctrl-C and on SIGKILL alike: there is no signal handler and no
//! cleanup code to get wrong.
//!
//! - [`Netns`]: an anonymous namespace; run closures and commands in it.
//! - [`Veth`]: a pair of interfaces between two namespaces, with the offloads that break XDP turned off.
//! - [`Topology`]: client, router, LB nodes and workers, wired and routed.
//! - [`Server`], [`Client`], [`Load`]: real TCP and UDP at both ends.
//! - [`KubeProxy`]: what kube-proxy makes a worker do with a VIP.
//! - [`RawSocket`], [`Counters`]: what was on the wire, and which way it went.
//! - [`program`]: the test bed's own XDP and tc programs.

mod client;
mod conn;
mod counters;
mod http;
mod kube_proxy;
mod load;
mod netns;
mod node;
mod process;
pub mod program;
mod raw;
mod root;
mod run;
mod server;
mod socket;
mod topology;
mod veth;
mod wiring;

pub use client::{Client, Reply};
pub use conn::Conn;
pub use counters::{Count, Counters, LinkCount, Traffic};
pub use kube_proxy::{KubeProxy, Policy, Proto, VipRule};
pub use load::{Load, LoadKind, LoadReport};
pub use netns::Netns;
pub use node::{Iface, LinkKind, Node, Pod, Router};
pub use process::Process;
pub use program::VlanTags;
pub use raw::RawSocket;
pub use root::require_root;
pub use run::output;
pub use server::Server;
pub use topology::{MAX_LBS, MAX_WORKERS, Mtus, Topology, TopologyBuilder};
pub use veth::{End, Veth};
