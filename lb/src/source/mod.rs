//! Where desired state comes from: a file, for now. Never decides what to do with it.

pub mod file;
pub mod kube;
