//! Where desired state comes from: a file, or a cluster. Never decides what to do with it.

pub mod drains;
pub mod file;
pub mod kept;
pub mod kube;
