//! Over a million random frames through the loaded programs: none makes them fault, and every one is counted once.
//!
//! Never looks at what a frame becomes, only that it becomes something that XDP has a word for.

mod support;

use anyhow::Result;
use support::{
    chaos,
    kernel::{Action, Kernel},
    random::Random,
};
use xdp_prog::abi::feature;

/// Frames through the balancer; half as many through the worker node's program.
const FRAMES: u64 = 800_000;

/// Frames with less and less sense: from ones that were packets once to noise behind the right ethertype, or behind anything.
fn broken(random: &mut Random, frame: &mut Vec<u8>, template: &[u8]) {
    frame.clear();
    match random.below(8) {
        // A packet with noise over a stretch of it.
        0..=3 => {
            frame.extend_from_slice(template);
            let from = random.below(frame.len());
            let to = (from + 1 + random.below(24)).min(frame.len());
            random.fill(&mut frame[from..to]);
        }
        // A packet cut short.
        4 => frame.extend_from_slice(&template[..14 + random.below(template.len() - 13)]),
        // The addresses of a VIP, and noise for the rest.
        5 | 6 => {
            frame.resize(14 + random.below(120), 0);
            random.fill(frame);
            let keep = frame.len().min(template.len()).min(54);
            let from = random.one_of(&[12, 26, 34]).min(keep);
            frame[from..keep].copy_from_slice(&template[from..keep]);
        }
        // Noise.
        _ => {
            frame.resize(14 + random.below(200), 0);
            random.fill(frame);
            let ethertype = random.one_of(&[0x0800_u16, 0x86dd, 0x8100, 0x88a8]);
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        }
    }
}

fn send(frames: u64, seed: u64, features: u64, worker: bool) -> Result<()> {
    let mut random = Random::seeded(seed);
    let tables = chaos::tables(&mut random, features);
    let kernel = if worker {
        Kernel::worker(&tables)?
    } else {
        Kernel::balancer(&tables)?
    };
    let templates: Vec<Vec<u8>> = (0..1_000).map(|_| chaos::frame(&mut random)).collect();
    let mut frame = Vec::new();
    let mut actions = [0_u64; 5];
    for _ in 0..frames {
        let template = random.below(templates.len());
        broken(&mut random, &mut frame, &templates[template]);
        actions[kernel.run(&frame)?.action as usize] += 1;
    }
    let counts = kernel.counts()?;
    assert_eq!(actions[Action::Aborted as usize], 0, "none faulted");
    assert_eq!(
        counts.packets(),
        frames,
        "every frame got exactly one verdict: {counts:?}"
    );
    assert!(counts.verdicts.len() >= 8, "the frames are not all alike: {counts:?}");
    Ok(())
}

#[test]
fn no_frame_makes_the_plain_balancer_fault() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    send(FRAMES / 2, 0xb0_0001, 0, false)
}

#[test]
fn no_frame_makes_the_balancer_with_everything_on_fault() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    send(FRAMES / 2, 0xb0_0002, feature::ALL, false)
}

#[test]
fn no_frame_makes_the_worker_nodes_program_fault() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    send(FRAMES / 2, 0xb0_0003, 0, true)
}
