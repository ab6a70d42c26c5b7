//! Tests of the whole room, by scenario.

mod cluster;
mod histories;
mod metallb;
mod world;
