//! A network-namespace test bench: real packets between real namespaces, under the real kernel.
//!
//! The lab never touches the namespace it is started in, never names a namespace and never writes a file: namespaces
//! are anonymous and live exactly as long as something in this process holds them.
//!
//! **Invariant: nothing is left behind, however the process ends.** A namespace is held by file descriptors, threads and
//! sockets of this process; child processes carry `PDEATHSIG=SIGKILL`; XDP and tc programs hang on link descriptors. So
//! the kernel removes all of it on `drop`, on panic, on Ctrl-C and on SIGKILL alike: there is no signal handler and no
//! cleanup code to get wrong. (When the network goes before the connections in it do, the kernel retransmits into nothing
//! for a few seconds before it lets go.)
//!
//! ```no_run
//! use lab::{LinkKind, Proto, Topology};
//!
//! # fn main() -> anyhow::Result<()> {
//! if !lab::require_root()? {
//!     return Ok(());
//! }
//! let topology = Topology::builder().workers(3).build()?;
//! let vip = "203.0.113.1:80".parse()?;
//! let _servers = topology.serve(&[(Proto::Tcp, vip)])?;
//! let mut vipline = topology.lb(0).ns().command("target/debug/vipline");
//! vipline.args(["run", "--config", "vipline.yaml"]);
//! let _vipline = lab::Process::start(vipline)?;
//! // ... wait until it is ready ...
//! for reply in topology.client().http_get(vip, 1000)? {
//!     assert_eq!(reply.client_seen, reply.local_addr);
//! }
//! assert_eq!(topology.router().counters()?.from(LinkKind::Lb).replies.packets, 0);
//! # Ok(())
//! # }
//! ```
//!
//! - [`Netns`]: an anonymous namespace; run closures and commands in it.
//! - [`Veth`]: a pair of interfaces between two namespaces, with the offloads that break XDP turned off.
//! - [`Topology`]: client, router, LB nodes and workers, wired and routed.
//! - [`Server`], [`Client`], [`Load`]: real TCP and UDP at both ends.
//! - [`Stream`]: many datagrams a second, an exact count of those that arrive, and where others were seen last.
//! - [`Bpffs`]: a BPF file system that goes with the test.
//! - [`KubeProxy`]: what kube-proxy makes a worker do with a VIP.
//! - [`RawSocket`], [`Counters`]: what was on the wire, and which way it went.
//! - [`Capture`]: tcpdump, read back through tshark. [`Ended`]: how another tool ended that ran within a limit of time.
//! - [`routers`]: BIRD, FRR and GoBGP, started and asked.
//! - [`program`]: the test bed's own XDP and tc programs.

mod bpffs;
mod capture;
mod client;
mod conn;
mod counters;
mod files;
mod http;
mod kube_proxy;
mod load;
mod netns;
mod nft_counter;
mod node;
mod process;
pub mod program;
mod raw;
mod root;
pub mod routers;
mod run;
mod server;
mod service;
mod site;
mod socket;
mod stream;
mod tool;
mod topology;
mod veth;
mod wiring;

pub use bpffs::Bpffs;
pub use capture::{Capture, Captured};
pub use client::{Client, Reply};
pub use conn::Conn;
pub use counters::{Count, Counters, LinkCount, Traffic};
pub use files::raise_open_files;
pub use kube_proxy::{KubeProxy, Policy, Proto, ServiceRule, VipRule};
pub use load::{Load, LoadKind, LoadReport};
pub use netns::Netns;
pub use node::{Iface, LinkKind, Node, Pod, Router};
pub use process::Process;
pub use program::VlanTags;
pub use raw::RawSocket;
pub use root::require_root;
pub use run::output;
pub use server::Server;
pub use stream::{Pace, Passed, Stream, StreamReport};
pub use tool::Ended;
pub use topology::{MAX_LBS, MAX_WORKERS, Mtus, Topology, TopologyBuilder};
pub use veth::{End, Veth};
