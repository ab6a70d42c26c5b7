//! vipline as a library: what the daemon, the benchmark and the tests share.

pub mod datapath;
pub mod nexthop;
