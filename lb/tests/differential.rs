//! The loaded programs against the host build of the same logic: random and mutated packets, random tables. Verdict, bytes and
//! traffic agree, or the compiler, the verifier, the maps or the host's machine is not what we think.
//!
//! Never says what is right, only what is the same; the golden tests say what is right. The seed is printed;
//! `VIPLINE_TEST_SEED` sets it.

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use support::{
    bed::hex,
    chaos,
    kernel::{Action, Counts, Kernel, Ran},
    random::Random,
    site::LOOPBACK,
    tables::Tables,
};
use xdp_prog::{
    abi::feature,
    host::{Host, Outcome},
    verdict::{Fate, Verdict},
};

/// Packets of each test; the four tests together send 160,000.
const PACKETS: usize = 40_000;
/// Packets between new tables.
const PER_TABLES: usize = 4_000;

/// What the kernel should make of the host's outcome: there are no sockets here.
fn expected(features: u64, outcome: &Outcome) -> (Verdict, Action, Vec<u8>) {
    let verdict = outcome.verdict;
    let action = match verdict {
        Verdict::ForwardTx => Action::Tx,
        Verdict::ForwardRedirect => Action::Redirect,
        Verdict::ForwardLocal => Action::Pass,
        _ => match verdict.fate() {
            Fate::Pass => Action::Pass,
            Fate::Slow if features & feature::SLOW_PATH != 0 => {
                return (Verdict::DropNoSlowPath, Action::Drop, outcome.frame.clone());
            }
            Fate::Slow | Fate::Drop => Action::Drop,
            Fate::Forward => unreachable!("all three stand above"),
        },
    };
    (verdict, action, outcome.frame.clone())
}

/// Sends [`PACKETS`] frames through both builds.
fn compare(name: &str, seed: u64, features: u64, worker: bool) -> Result<BTreeMap<Verdict, u64>> {
    let mut random = Random::seeded(seed);
    let mut seen = BTreeMap::new();
    for first in (0..PACKETS).step_by(PER_TABLES) {
        let tables = chaos::tables(&mut random, features);
        let kernel = if worker {
            Kernel::worker(&tables)?
        } else {
            Kernel::balancer(&tables)?
        };
        let counts = compare_tables(name, &mut random, &tables, &kernel, first)?;
        for (verdict, packets) in counts.verdicts {
            *seen.entry(verdict).or_default() += packets;
        }
    }
    #[expect(clippy::print_stdout, reason = "what the mix reached, for whoever tunes it")]
    {
        println!("{name}: {seen:?}");
    }
    Ok(seen)
}

fn compare_tables(name: &str, random: &mut Random, tables: &Tables, kernel: &Kernel, first: usize) -> Result<Counts> {
    let frames = (first..first + PER_TABLES).map(|number| (number, chaos::frame(random)));
    compare_frames(name, tables, kernel, frames)
}

fn compare_frames(
    name: &str,
    tables: &Tables,
    kernel: &Kernel,
    frames: impl Iterator<Item = (usize, Vec<u8>)>,
) -> Result<Counts> {
    let features = tables.config.features;
    let mut host = Host::new(tables.view(), LOOPBACK);
    let mut counts = Counts::default();
    let mut before = kernel.verdicts()?;
    for (number, frame) in frames {
        // The host has one bucket for all VIPs: with a jiffy between packets none finds it empty that another one emptied.
        host.set_jiffies(number as u64 + 1);
        let outcome = if matches!(kernel, Kernel::Worker(_)) {
            host.unwrap_tunnel(&frame)
        } else {
            host.balance(&frame)
        };
        let Ran { action, frame: left } = kernel.run(&frame)?;
        let after = kernel.verdicts()?;
        let moved: Vec<Verdict> = before
            .iter()
            .zip(&after)
            .filter(|(was, is)| was.1 != is.1)
            .map(|(_, is)| is.0)
            .collect();
        before = after;
        let wanted = expected(features, &outcome);
        if (&moved[..], action, &left) != (&[wanted.0], wanted.1, &wanted.2) {
            panic!(
                "{name}, packet {number}: the loaded program says {moved:?} and {action:?}, the host build {:?}.\n\
                 The frame, {}\nleft the loaded program as {}\nand the host build as {}\n\
                 (add it to xdp-prog/tests/corpus once the cause is known)",
                outcome.verdict,
                hex(&frame),
                hex(&left),
                hex(&wanted.2),
            );
        }
        counts.verdict(wanted.0);
        if wanted.0.fate() == Fate::Forward {
            let choice = outcome.choice.expect("what was forwarded was chosen");
            counts.traffic(choice.vip.0, u32::from(choice.backend.0), ip_len(&frame));
        }
    }
    assert_eq!(kernel.counts()?, counts, "{name}: all counters");
    Ok(counts)
}

/// Length of the IP packet in a frame, by its own header.
fn ip_len(frame: &[u8]) -> u64 {
    let mut at = 12;
    while [[0x81, 0x00], [0x88, 0xa8]].contains(&[frame[at], frame[at + 1]]) {
        at += 4;
    }
    let ip = &frame[at + 2..];
    if [frame[at], frame[at + 1]] == [0x08, 0x00] {
        u64::from(u16::from_be_bytes([ip[2], ip[3]]))
    } else {
        u64::from(u16::from_be_bytes([ip[4], ip[5]])) + 40
    }
}

/// The mix must reach these, or the comparison proves less than it seems to. Chance decides, so each test has its floor well
/// below what the default seed reaches.
fn reaches(seen: &BTreeMap<Verdict, u64>, verdicts: &[Verdict]) {
    let missing: Vec<_> = verdicts.iter().filter(|verdict| !seen.contains_key(verdict)).collect();
    assert!(missing.is_empty(), "the mix never reached {missing:?}");
}

#[test]
fn the_plain_balancer_agrees_with_its_host_build() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let seen = compare("plain", 0x5eed_0001, 0, false)?;
    reaches(
        &seen,
        &[
            Verdict::ForwardTx,
            Verdict::ForwardLocal,
            Verdict::PassNotIp,
            Verdict::PassUnparsed,
            Verdict::PassNotVip,
            Verdict::PassOwnAddress,
            Verdict::SlowFragment,
            Verdict::SlowIpOptions,
            Verdict::SlowExtensionHeader,
            Verdict::SlowIcmp,
            Verdict::SlowProtocol,
            Verdict::SlowUnservedPort,
            Verdict::SlowNoBackend,
            Verdict::SlowNextHop,
            Verdict::SlowTooBig,
            Verdict::DropMalformed,
        ],
    );
    Ok(())
}

#[test]
fn the_balancer_with_everything_but_the_slow_path_agrees_with_its_host_build() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let seen = compare("everything", 0x5eed_0002, feature::ALL & !feature::SLOW_PATH, false)?;
    reaches(
        &seen,
        &[
            Verdict::ForwardTx,
            Verdict::ForwardRedirect,
            Verdict::ForwardLocal,
            Verdict::PassDecapsulated,
            Verdict::PassForeignTunnel,
            Verdict::DropMartian,
            Verdict::DropSourceIsVip,
            Verdict::DropSourceDenied,
            Verdict::DropSourceNotAllowed,
            Verdict::DropPacketLimit,
            Verdict::DropSynLimit,
            Verdict::DropTunnelNotVip,
            Verdict::DropTunnelSource,
            Verdict::DropTunnelMalformed,
            Verdict::DropTunnelTtl,
            Verdict::DropTunnelEcn,
        ],
    );
    Ok(())
}

#[test]
fn the_balancer_with_the_slow_path_agrees_with_its_host_build() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let features = feature::SLOW_PATH
        | feature::REDIRECT
        | feature::DROP_MARTIANS
        | feature::SOURCE_PREFIX
        | feature::CLAMP_MSS
        | feature::CAPTURE
        | feature::AFFINITY;
    let seen = compare("slow path", 0x5eed_0003, features, false)?;
    reaches(
        &seen,
        &[
            Verdict::ForwardTx,
            Verdict::ForwardRedirect,
            Verdict::DropMartian,
            Verdict::DropNoSlowPath,
        ],
    );
    Ok(())
}

#[test]
fn the_worker_nodes_program_agrees_with_its_host_build() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let seen = compare("worker", 0x5eed_0004, 0, true)?;
    reaches(
        &seen,
        &[
            Verdict::PassNotIp,
            Verdict::PassUnparsed,
            Verdict::PassNotTunnel,
            Verdict::PassDecapsulated,
            Verdict::PassForeignTunnel,
            Verdict::DropTunnelNotVip,
            Verdict::DropTunnelSource,
            Verdict::DropTunnelMalformed,
            Verdict::DropTunnelTtl,
            Verdict::DropTunnelEcn,
        ],
    );
    Ok(())
}

/// Frames that were trouble once, and all their parts, on tables by chance.
#[test]
fn the_corpus_is_the_same_to_both_builds() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../xdp-prog/tests/corpus");
    let mut corpus = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let text = std::fs::read_to_string(entry?.path())?;
        let rows = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains(':'));
        let bytes: Result<Vec<u8>, _> = rows
            .flat_map(str::split_whitespace)
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect();
        corpus.push(bytes?);
    }
    assert!(corpus.len() >= 10, "the corpus is there");
    let mut random = Random::seeded(0x5eed_0005);
    for (features, worker) in [
        (0, false),
        (feature::ALL & !feature::SLOW_PATH, false),
        (feature::ALL, false),
        (0, true),
    ] {
        let tables = chaos::tables(&mut random, features);
        let kernel = if worker {
            Kernel::worker(&tables)?
        } else {
            Kernel::balancer(&tables)?
        };
        let parts = corpus
            .iter()
            .flat_map(|frame| (14..=frame.len()).map(|len| frame[..len].to_vec()));
        compare_frames("corpus", &tables, &kernel, parts.enumerate())?;
    }
    Ok(())
}

/// The twin that must fail: where the two builds have different tables, the comparison sees it.
#[test]
#[should_panic(expected = "the loaded program says")]
fn tables_that_differ_are_noticed() {
    if !matches!(lab::require_root(), Ok(true)) {
        panic!("skipped as: the loaded program says nothing without root");
    }
    let mut random = Random::new(5);
    let tables = chaos::tables(&mut random, 0);
    let mut other = tables.clone();
    other.config.seed[1] ^= 1;
    let kernel = Kernel::balancer(&other).expect("the program loads");
    compare_tables("twin", &mut random, &tables, &kernel, 0).expect("it panics before");
}
