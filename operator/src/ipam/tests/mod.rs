//! Tests of the whole room, by scenario.

mod metallb;
mod world;
