//! Vipline's packet path: what both halves of the system agree on, and every decision that is taken per packet.
//!
//! This library never allocates, never logs, never reads a clock of its own and never panics. It is compiled twice: for the
//! kernel, where the bins `lb` and `decap` bind it to maps and helpers, and for the host, where tests and `vipline explain`
//! run the same instructions over ordinary memory ([`host`]).
//!
//! | module | what it is |
//! |---|---|
//! | [`abi`] | the layout of every map, shared with user space |
//! | [`verdict`] | what may be decided for a packet, and why: one counter each |
//! | [`machine`] | what the program needs from where it runs |
//! | [`link`] | Ethernet and VLAN tags |
//! | [`wire`] | offsets and constants of the headers read and written |
//! | [`hash`], [`checksum`], [`ranges`], [`limit`] | the arithmetic |
//! | [`mss`] | the MSS option of SYNs |
//! | [`flows`] | the flow table: where flows live while their slot is in transit |
//! | [`balance`] | the balancer: parse, match, slot, encapsulate |
//! | [`decap`] | the worker node's side |

#![cfg_attr(target_arch = "bpf", no_std)]
// The build scripts allow unstable features for this target anyway (`-Z build-std`); one `asm!` needs this one.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod balance;
pub mod checksum;
pub mod decap;
pub mod flows;
pub mod hash;
#[cfg(not(target_arch = "bpf"))]
pub mod host;
#[cfg(target_arch = "bpf")]
pub mod kernel;
pub mod limit;
pub mod link;
pub mod machine;
pub mod mss;
pub mod ranges;
pub mod verdict;
pub mod wire;
