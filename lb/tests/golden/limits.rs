//! Packet and SYN limits: token buckets of each CPU, filled by jiffies. These tests stay on one CPU.

use std::time::{Duration, Instant};

use anyhow::Result;
use lb::datapath::jiffies_per_second;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use xdp_prog::{
    abi::{VipMeta, feature},
    verdict::Verdict,
};

use crate::support::{
    bed::Bed,
    frames::{ACK, Packet, SYN, TCP, UDP},
    kernel::{Action, Kernel},
    site::{CLIENT_V4, CLIENT_V6, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// One packet, in the unit of rates and bursts.
const TOKEN: u64 = 65_536;
/// A rate at which a bucket takes minutes to gain a token.
const NEVER: u64 = 1;

fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// VIP 1: TCP 80; VIP 2: UDP 53; VIP 3: TCP 80 of IPv6; all with options. VIP 4: TCP 81 without.
fn tables() -> Tables {
    let mut tables = Tables::new(feature::LIMITS);
    let backend = tables.backend(Way::v4(1).line());
    tables.vip_with(VIP_V4, TCP, 80, &[backend], VipMeta::OPTIONS);
    tables.vip_with(VIP_V4, UDP, 53, &[backend], VipMeta::OPTIONS);
    tables.vip_with(VIP_V6, TCP, 80, &[backend], VipMeta::OPTIONS);
    tables.vip(VIP_V4, TCP, 81, &[backend]);
    tables
}

fn packets(tables: &mut Tables, vip: usize, rate: u64, burst: u64) {
    (tables.options[vip].packet_rate, tables.options[vip].packet_burst) = (rate, burst);
}

fn syns(tables: &mut Tables, vip: usize, rate: u64, burst: u64) {
    (tables.options[vip].syn_rate, tables.options[vip].syn_burst) = (rate, burst);
}

fn tcp() -> Packet {
    Packet::tcp(CLIENT_V4, &at(VIP_V4, 80))
}

#[test]
fn a_vip_sends_its_burst_and_then_no_more() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    stay_on(0)?;
    let mut tables = tables();
    packets(&mut tables, 1, NEVER, 5 * TOKEN);
    packets(&mut tables, 3, NEVER, 2 * TOKEN + TOKEN / 2);
    let mut bed = Bed::balancer(tables)?;
    for _ in 0..5 {
        bed.forwards(&tcp(), 1, 1, &Way::v4(1))?;
    }
    for _ in 0..3 {
        bed.unchanged("over the limit", &tcp().frame(), Verdict::DropPacketLimit)?;
    }
    // Every VIP has buckets of its own, and half a token is none.
    let v6 = Packet::tcp(CLIENT_V6, &at(VIP_V6, 80));
    bed.forwards(&v6, 3, 1, &Way::v4(1))?;
    bed.forwards(&v6, 3, 1, &Way::v4(1))?;
    bed.unchanged("over the limit", &v6.frame(), Verdict::DropPacketLimit)?;
    // UDP has none set, and VIP 4 not even options.
    for _ in 0..20 {
        bed.forwards(&Packet::udp(CLIENT_V4, &at(VIP_V4, 53)), 2, 1, &Way::v4(1))?;
        bed.forwards(&Packet::tcp(CLIENT_V4, &at(VIP_V4, 81)), 4, 1, &Way::v4(1))?;
    }
    Ok(())
}

#[test]
fn a_burst_below_one_packet_sends_nothing() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    stay_on(0)?;
    let mut tables = tables();
    packets(&mut tables, 1, 1000 * TOKEN, TOKEN - 1);
    let mut bed = Bed::balancer(tables)?;
    bed.unchanged("no room for a token", &tcp().frame(), Verdict::DropPacketLimit)?;
    Ok(())
}

#[test]
fn only_packets_that_open_a_connection_count_as_syns() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    stay_on(0)?;
    let mut tables = tables();
    for vip in 1..=3 {
        syns(&mut tables, vip, NEVER, 2 * TOKEN);
    }
    let mut bed = Bed::balancer(tables)?;
    let way = Way::v4(1);
    for _ in 0..3 {
        for flags in [ACK, SYN | ACK, 0, 0x04, ACK | 0x01, ACK | 0x08] {
            bed.forwards(&tcp().flags(flags), 1, 1, &way)?;
        }
    }
    // SYN, and SYN with anything but ACK: FIN, PSH, URG.
    bed.forwards(&tcp().flags(SYN), 1, 1, &way)?;
    bed.forwards(&tcp().flags(SYN | 0x01), 1, 1, &way)?;
    for flags in [SYN, SYN | 0x08, SYN | 0x20] {
        bed.unchanged("a third SYN", &tcp().flags(flags).frame(), Verdict::DropSynLimit)?;
    }
    for flags in [ACK, SYN | ACK] {
        bed.forwards(&tcp().flags(flags), 1, 1, &way)?;
    }
    // UDP has no SYNs, whatever stands where TCP has its flags.
    for _ in 0..5 {
        bed.forwards(&Packet::udp(CLIENT_V4, &at(VIP_V4, 53)).payload(40), 2, 1, &way)?;
    }
    let v6 = Packet::tcp(CLIENT_V6, &at(VIP_V6, 80)).flags(SYN);
    bed.forwards(&v6, 3, 1, &way)?;
    bed.forwards(&v6, 3, 1, &way)?;
    bed.unchanged("a third SYN", &v6.frame(), Verdict::DropSynLimit)?;
    Ok(())
}

#[test]
fn a_packet_pays_the_packet_limit_before_the_syn_limit() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    stay_on(0)?;
    let mut tables = tables();
    packets(&mut tables, 1, NEVER, 3 * TOKEN);
    syns(&mut tables, 1, NEVER, TOKEN);
    let mut bed = Bed::balancer(tables)?;
    bed.forwards(&tcp().flags(SYN), 1, 1, &Way::v4(1))?;
    bed.unchanged("the second SYN", &tcp().flags(SYN).frame(), Verdict::DropSynLimit)?;
    bed.forwards(&tcp(), 1, 1, &Way::v4(1))?;
    bed.unchanged("the fourth packet", &tcp().flags(SYN).frame(), Verdict::DropPacketLimit)?;
    Ok(())
}

#[test]
fn every_cpu_has_buckets_of_its_own() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    if stay_on(1).is_err() {
        return Ok(()); // A machine of one CPU has nothing to tell apart.
    }
    let mut tables = tables();
    packets(&mut tables, 1, NEVER, 2 * TOKEN);
    let mut bed = Bed::balancer(tables)?;
    for cpu in [0, 1] {
        stay_on(cpu)?;
        bed.forwards(&tcp(), 1, 1, &Way::v4(1))?;
        bed.forwards(&tcp(), 1, 1, &Way::v4(1))?;
        bed.unchanged("the third packet", &tcp().frame(), Verdict::DropPacketLimit)?;
    }
    Ok(())
}

/// Sends until the limit drops one; returns how many were sent.
fn send_until_dropped(kernel: &Kernel, frame: &[u8]) -> Result<u64> {
    let mut sent = 0;
    while kernel.run(frame)?.action == Action::Tx {
        sent += 1;
        assert!(sent < 10_000_000, "nothing is ever dropped");
    }
    Ok(sent)
}

#[test]
fn buckets_fill_with_the_clock_up_to_the_burst() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    stay_on(0)?;
    let hz = jiffies_per_second()?;
    let mut tables = tables();
    let (per_jiffy, burst) = (3, 10_000);
    packets(&mut tables, 1, per_jiffy * TOKEN, burst * TOKEN);
    let kernel = Kernel::balancer(&tables)?;
    let frame = tcp().frame();
    let began = Instant::now();
    let mut total = send_until_dropped(&kernel, &frame)?;
    assert!(total >= burst, "a fresh bucket is full: {total}");
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        let after_silence = send_until_dropped(&kernel, &frame)?;
        // The clock may be a jiffy behind at either end.
        let least = u64::from(hz) / 10 * per_jiffy - 2 * per_jiffy;
        assert!(
            after_silence >= least,
            "{after_silence} packets after 100 ms, at least {least} were due at {hz} Hz"
        );
        total += after_silence;
    }
    let elapsed_jiffies = (began.elapsed().as_secs_f64() * f64::from(hz)).ceil() as u64 + 2;
    let most = burst + elapsed_jiffies * per_jiffy;
    assert!(
        total <= most,
        "{total} packets in {elapsed_jiffies} jiffies, at most {most} were due"
    );
    Ok(())
}
