//! The fuzz targets, as functions of bytes. Never knows which engine feeds it.
#![forbid(unsafe_code)]

pub mod targets;
