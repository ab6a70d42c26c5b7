//! Time to build lookup tables: `cargo run --release -p lb-core --example maglev_time`. A measurement, never a test.

#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it measures and prints")]

use std::{hint::black_box, sync::Arc, time::Instant};

use lb_core::{
    desired::{BackendId, Member},
    maglev,
};

fn main() {
    for (backends, slots) in [
        (1000, 65_536),
        (512, 65_536),
        (3, 65_536),
        (100, 8192),
        (10, 1024),
        (3, 256),
    ] {
        let members: Vec<Member> = (0..backends)
            .map(|index| Member {
                backend: BackendId(Arc::from(format!("node-{index:04}"))),
                weight: 1,
            })
            .collect();
        let mut times: Vec<_> = (0..300)
            .map(|_| {
                let begin = Instant::now();
                black_box(maglev::build(black_box(&members), slots));
                begin.elapsed()
            })
            .collect();
        times.sort();
        println!(
            "{slots:6} slots, {backends:4} backends: best {:?}, median {:?}",
            times[0],
            times[times.len() / 2]
        );
    }
}
