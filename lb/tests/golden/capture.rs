//! Captures: what the settings ask for stands in the ring with verdict, VIP, backend and the frame as it left; nothing else does.

use std::ops::ControlFlow;

use anyhow::Result;
use lb::datapath::{Aim, Balancer, SampleRing};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use xdp_prog::{
    abi::{SampleHeader, feature, setting},
    limit::TOKEN,
    verdict::Verdict,
};

use crate::support::{
    bed::Bed,
    frames::{LB_MAC, Packet, ROUTER_MAC, TCP, framed_as},
    kernel::Kernel,
    site::{CLIENT_V4, LOOPBACK, VIP_V4, Way, at},
    tables::Tables,
};

/// Everything, with a rate that no test reaches.
const ALL: Aim = Aim {
    verdicts: u64::MAX,
    vip: None,
    one_in: 1,
    rate: 1_000_000,
    snaplen: 65_535,
};
const HZ: u32 = 1000;

/// VIP 1 with backend 1, VIP 2 without a backend.
fn tables(features: u64) -> Tables {
    let mut tables = Tables::new(features);
    let backend = tables.backend(Way::v4(1).line());
    tables.vip(VIP_V4, TCP, 80, &[backend]);
    tables.vip(VIP_V4, TCP, 81, &[]);
    tables
}

fn balancer(bed: &mut Bed) -> &mut Balancer {
    match &mut bed.kernel {
        Kernel::Balancer(balancer) => balancer,
        Kernel::Worker(_) => panic!("a balancer"),
    }
}

fn taken(rings: &mut [SampleRing]) -> Vec<(SampleHeader, Vec<u8>)> {
    let mut all = Vec::new();
    for ring in rings {
        ring.drain(|header, frame| {
            all.push((header, frame));
            ControlFlow::Continue(())
        });
    }
    all.sort_by_key(|(header, _)| header.time_ns);
    all
}

fn header(verdict: Verdict, vip: u64, backend: u64, original: &[u8], left: &[u8]) -> SampleHeader {
    SampleHeader {
        time_ns: 0,
        verdict: verdict as u64,
        vip,
        backend,
        ifindex: u64::from(LOOPBACK),
        queue: 0,
        original_len: original.len() as u64,
        len: left.len() as u64,
        captured_len: left.len() as u64,
    }
}

#[test]
fn samples_say_what_became_of_a_packet() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(feature::CAPTURE))?;
    let mut rings = balancer(&mut bed).open_rings()?;
    balancer(&mut bed).aim(&ALL, HZ)?;
    let none = SampleHeader::NONE;
    let mut expected = Vec::new();
    let forwarded = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80));
    let left = bed.forwards(&forwarded, 1, 1, &Way::v4(1))?;
    expected.push((header(Verdict::ForwardTx, 1, 1, &forwarded.frame(), &left), left));
    let no_backend = Packet::tcp(CLIENT_V4, &at(VIP_V4, 81)).frame();
    let unserved = Packet::tcp(CLIENT_V4, &at(VIP_V4, 82)).frame();
    let elsewhere = Packet::tcp(CLIENT_V4, "203.0.113.5:80").payload(1400).frame();
    let not_ip = framed_as(LB_MAC, ROUTER_MAC, &[], 0x88cc, &[1, 2, 3]);
    for (frame, verdict, vip, backend) in [
        (no_backend, Verdict::SlowNoBackend, 2, 0),
        (unserved, Verdict::SlowUnservedPort, none, none),
        (elsewhere, Verdict::PassNotVip, none, none),
        (not_ip, Verdict::PassNotIp, none, none),
    ] {
        bed.unchanged("sampled", &frame, verdict)?;
        expected.push((header(verdict, vip, backend, &frame, &frame), frame));
    }
    let mut samples = taken(&mut rings);
    assert!(
        samples.iter().all(|(header, _)| header.time_ns != 0),
        "each has its time"
    );
    samples.iter_mut().for_each(|(header, _)| header.time_ns = 0);
    assert_eq!(samples, expected);
    assert_eq!(balancer(&mut bed).counters.capture.sum(0)?.lost, 0);
    Ok(())
}

#[test]
fn filters_and_snap_length_are_kept() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(feature::CAPTURE))?;
    let mut rings = balancer(&mut bed).open_rings()?;
    let frames = [80, 81, 82].map(|port| Packet::tcp(CLIENT_V4, &at(VIP_V4, port)).frame());
    let mut of = |aim: &Aim| -> Result<Vec<(u64, usize)>> {
        balancer(&mut bed).aim(aim, HZ)?;
        for frame in &frames {
            bed.kernel.run(frame)?;
        }
        let samples = taken(&mut rings);
        Ok(samples
            .into_iter()
            .map(|(header, frame)| (header.verdict, frame.len()))
            .collect())
    };
    let number = |verdict: Verdict| verdict as u64;
    let [tx, none, unserved] = [Verdict::ForwardTx, Verdict::SlowNoBackend, Verdict::SlowUnservedPort].map(number);
    // An IPv4 packet of 50 bytes in a frame, and with 20 bytes more once encapsulated.
    assert_eq!(of(&ALL)?, [(tx, 84), (none, 64), (unserved, 64)]);
    assert_eq!(of(&Aim { verdicts: 0, ..ALL })?, []);
    let verdicts = Aim::mask([Verdict::SlowNoBackend]);
    assert_eq!(of(&Aim { verdicts, ..ALL })?, [(none, 64)]);
    assert_eq!(of(&Aim { vip: Some(1), ..ALL })?, [(tx, 84)]);
    assert_eq!(of(&Aim { vip: Some(3), ..ALL })?, []);
    assert_eq!(of(&Aim { snaplen: 66, ..ALL })?, [(tx, 66), (none, 64), (unserved, 64)]);
    assert_eq!(of(&Aim { snaplen: 0, ..ALL })?, [(tx, 0), (none, 0), (unserved, 0)]);
    Ok(())
}

#[test]
fn sampling_and_the_rate_thin_them_out() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(feature::CAPTURE))?;
    let mut rings = balancer(&mut bed).open_rings()?;
    let frame = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)).frame();
    balancer(&mut bed).aim(&Aim { one_in: 8, ..ALL }, HZ)?;
    for _ in 0..400 {
        bed.kernel.run(&frame)?;
    }
    // 50 of 400, by chance: eight standard deviations either side.
    let samples = taken(&mut rings).len();
    assert!((1..=103).contains(&samples), "{samples} of 400");
    balancer(&mut bed).aim(&ALL, HZ)?;
    let settings = &balancer(&mut bed).settings;
    settings.store(setting::CAPTURE_RATE, 0, 0)?;
    settings.store(setting::CAPTURE_BURST, 0, 5 * TOKEN)?;
    on_one_cpu(|| (0..40).try_for_each(|_| bed.kernel.run(&frame).map(drop)))?;
    assert_eq!(taken(&mut rings).len(), 5, "the burst, and no more");
    Ok(())
}

/// Runs on the CPU that this thread is on: buckets are per CPU.
#[expect(clippy::unwrap_used, reason = "a test without its CPU has nothing to say")]
fn on_one_cpu<T>(work: impl FnOnce() -> T) -> T {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).unwrap();
    let mut one = CpuSet::new();
    one.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(this, &one).unwrap();
    let result = work();
    sched_setaffinity(this, &before).unwrap();
    result
}

/// The twin: without the feature the settings mean nothing.
#[test]
fn without_the_feature_nothing_is_sampled() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables(0))?;
    let mut rings = balancer(&mut bed).open_rings()?;
    balancer(&mut bed).aim(&ALL, HZ)?;
    bed.forwards(&Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)), 1, 1, &Way::v4(1))?;
    assert_eq!(taken(&mut rings), []);
    Ok(())
}
