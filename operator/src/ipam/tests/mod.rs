//! Tests of the whole room, by scenario.

mod cluster;
mod external;
mod families;
mod histories;
mod installations;
mod metallb;
mod pools;
mod requests;
mod sharing;
mod size;
mod world;
