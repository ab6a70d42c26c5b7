//! Everything that Vipline's LB node decides, and nothing that does IO: no sockets, no maps, no clock.
//!
//! | module | what it decides |
//! |---|---|
//! | [`desired`] | the state that every source asks for and the planner reaches |

#![forbid(unsafe_code)]

pub mod desired;
