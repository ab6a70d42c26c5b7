//! vipline as a library: what the daemon, the benchmark and the tests share.
//!
//! | module | what it is |
//! |---|---|
//! | [`announce`] | making VIP addresses reachable |
//! | `chance` | numbers that no other node has |
//! | [`cli`] | the command line |
//! | [`daemon`] | `vipline run` and `vipline node` |
//! | [`control`] | the control socket between the two |
//! | [`source`] | where desired state comes from |
//! | [`health`] | probing backends |
//! | [`metrics`] | what Prometheus is shown |
//! | [`nexthop`] | routes and neighbours, by netlink |
//! | [`datapath`] | the XDP programs and their maps |
//! | [`xsk`] | AF_XDP sockets and their workers |

pub mod announce;
mod chance;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod health;
pub mod metrics;
pub mod nexthop;
pub mod source;
pub mod xsk;
