//! What the golden, differential and broken-frame tests share. Never uses the packet path's own code to say what a frame should
//! look like: frames are built and read by etherparse and a few bytes of our own.
//!
//! | module | what it is |
//! |---|---|
//! | [`frames`] | packets as clients send them, and what they look like encapsulated |
//! | [`tables`] | one source of truth for the maps of both builds |
//! | [`kernel`] | the programs, loaded, with those tables |
//! | [`site`] | addresses, backends and VIPs that tests talk about |
//! | [`bed`] | one step: a frame through both builds, every counter compared |
//! | [`chaos`] | tables and frames by chance |
//! | [`random`] | numbers from a seed that is printed |
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod bed;
pub(crate) mod chaos;
pub(crate) mod frames;
pub(crate) mod kernel;
pub(crate) mod random;
pub(crate) mod site;
pub(crate) mod tables;
