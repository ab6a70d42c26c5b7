//! What is off is dead code to the verifier, so each combination is a program of its own: each feature alone and all but each
//! one load, and do the main thing.

use anyhow::{Context as _, Result};
use xdp_prog::abi::feature;

use super::worker::with_tunnel;
use crate::support::{
    bed::Bed,
    frames::{Packet, TCP, UDP},
    kernel::Kernel,
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// Instructions that the verifier may walk through: two thirds of what it takes (`BPF_COMPLEXITY_LIMIT_INSNS`), since kernels differ.
const MOST_VERIFIED: u32 = 666_666;
const COUNT: u32 = feature::ALL.count_ones();

#[expect(clippy::print_stdout, reason = "what each combination costs the verifier")]
fn works_with(features: u64) -> Result<()> {
    let mut tables = with_tunnel(Tables::new(features));
    tables.ports = vec!["lo"];
    let ways = [Way::v4(1), Way::v6(2)];
    let mut sent = Vec::new();
    for way in ways {
        let backend = tables.backend(way.line());
        for (client, address) in [(CLIENT_V4, VIP_V4), (CLIENT_V6, VIP_V6)] {
            let port = 1000 + backend;
            let vip = tables.vip(address, TCP, port, &[backend]);
            sent.push((Packet::tcp(client, &at(address, port)), vip, backend, way));
            let vip = tables.vip(address, UDP, port, &[backend]);
            sent.push((Packet::udp(client, &at(address, port)), vip, backend, way));
        }
    }
    let mut bed = Bed::balancer(tables).with_context(|| format!("features {features:#x}"))?;
    if let Kernel::Balancer(balancer) = &bed.kernel {
        let walked = balancer.program.facts()?.verified_insns;
        println!("features {features:#x}: {walked} instructions verified");
        assert!(walked < MOST_VERIFIED, "features {features:#x}: {walked}");
    }
    for (packet, vip, backend, way) in sent {
        bed.forwards(&packet, vip, backend, &way)?;
    }
    Ok(())
}

#[test]
fn each_feature_alone_loads_and_forwards() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    works_with(0)?;
    (0..COUNT).try_for_each(|bit| works_with(1 << bit))
}

#[test]
fn all_but_one_feature_load_and_forward() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    works_with(feature::ALL)?;
    (0..COUNT).try_for_each(|bit| works_with(feature::ALL & !(1 << bit)))
}
