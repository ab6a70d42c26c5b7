//! The kernel's edge, against the running kernel: the real objects, real maps, real interfaces in namespaces of the
//! test's own.

mod attach;
mod live;
mod load;
mod maps;
mod pins;
mod plan;
mod takeover;
mod vip;
