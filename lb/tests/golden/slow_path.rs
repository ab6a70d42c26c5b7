//! The hook of the slow path: with a socket, its packets are redirected to it with the reason in front; without, they are a
//! counted drop and never passed.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::Result;
use xdp_prog::{abi::feature, limit, verdict::Verdict};

use crate::support::{
    bed::Bed,
    frames::{Packet, TCP, edited},
    kernel::{Action, Kernel},
    site::{CLIENT_V4, CLIENT_V6, LOOPBACK, VIP_V4, VIP_V6, Way, at},
    tables::Tables,
};

/// An AF_XDP socket with a receive ring and nothing more: enough to stand in `XSKS`, as no packet is sent to it in a test run.
pub(super) fn socket() -> Result<OwnedFd> {
    // include/uapi/linux/if_xdp.h
    const SOL_XDP: libc::c_int = 283;
    const XDP_RX_RING: libc::c_int = 2;
    // SAFETY: makes a descriptor and touches no memory.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let entries: u32 = 64;
    // SAFETY: the kernel reads four bytes of `entries`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_XDP,
            XDP_RX_RING,
            (&raw const entries).cast(),
            size_of::<u32>() as u32,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(socket)
}

fn tables() -> Tables {
    let mut tables = Tables::new(feature::SLOW_PATH);
    let unresolved = tables.backend(Way::v4(1).line_with(0, 0, [0, 0]));
    let resolved = tables.backend(Way::v4(2).line());
    tables.vip(VIP_V4, TCP, 80, &[unresolved]);
    tables.vip(VIP_V4, TCP, 81, &[]);
    tables.vip(VIP_V4, TCP, 82, &[resolved]);
    tables.address(VIP_V6, 0);
    tables
}

/// One packet for every verdict of the slow path.
fn slow() -> Vec<(Verdict, Vec<u8>)> {
    let v4 = |port| Packet::tcp(CLIENT_V4, &at(VIP_V4, port));
    let v6 = Packet::tcp(CLIENT_V6, &at(VIP_V6, 80));
    vec![
        (Verdict::SlowFragment, edited(&v4(80), |ip| ip[6] = 0x20)),
        (Verdict::SlowIpOptions, edited(&v4(80), |ip| ip[0] = 0x46)),
        (Verdict::SlowExtensionHeader, edited(&v6, |ip| ip[6] = 60)),
        (Verdict::SlowIcmp, edited(&v4(80), |ip| ip[9] = 1)),
        (Verdict::SlowIcmp, edited(&v6, |ip| ip[6] = 58)),
        (Verdict::SlowProtocol, edited(&v4(80), |ip| ip[9] = 132)),
        (Verdict::SlowUnservedPort, v4(9).frame()),
        (Verdict::SlowNoBackend, v4(81).frame()),
        (Verdict::SlowNextHop, v4(80).frame()),
        (Verdict::SlowTooBig, v4(82).ip_len(1481).frame()),
        (Verdict::SlowTooBig, v4(82).ip_len(9000).frame()),
    ]
}

#[test]
fn without_a_socket_every_slow_packet_is_a_counted_drop() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    for (reason, frame) in slow() {
        let left = bed.step(reason.reason(), &frame, Verdict::DropNoSlowPath, None)?;
        assert!(left.ends_with(&frame), "the packet itself is not touched");
    }
    Ok(())
}

#[test]
fn with_a_socket_it_gets_the_packet_and_the_reason_in_front() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let socket = socket()?;
    let mut bed = Bed::balancer(tables())?;
    let Kernel::Balancer(balancer) = &mut bed.kernel else {
        panic!("a balancer")
    };
    balancer.sockets.lock().unwrap().set(LOOPBACK, 0, socket.as_raw_fd())?;
    for (reason, frame) in slow() {
        let left = bed.step(reason.reason(), &frame, reason, None)?;
        let expected = [&(reason as u64).to_le_bytes(), &frame[..]].concat();
        assert_eq!(
            left, expected,
            "{reason:?}: the reason in eight bytes, then the packet as it came"
        );
    }
    // What is not slow does not go there.
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 82));
    assert_eq!(bed.kernel.run(&packet.frame())?.action, Action::Tx);
    Ok(())
}

#[test]
fn a_budget_takes_its_burst_and_sheds_the_rest_by_reason() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let mut bed = Bed::balancer(tables())?;
    let Kernel::Balancer(balancer) = &bed.kernel else {
        panic!("a balancer")
    };
    // One packet for ever on each CPU; none at all.
    for cpu in 0..balancer.counters.slow.per_cpu(0)?.len() {
        assert_eq!(balancer.counters.slow.per_cpu(0)?[cpu].shed, 0);
    }
    balancer.set_budget(Verdict::SlowIcmp, 0, limit::TOKEN)?;
    balancer.set_budget(Verdict::SlowFragment, limit::TOKEN * 1000, limit::TOKEN - 1)?;
    let packet = Packet::tcp(CLIENT_V4, &at(VIP_V4, 80));
    let (fragment, icmp, options) = (
        edited(&packet, |ip| ip[6] = 0x20),
        edited(&packet, |ip| ip[9] = 1),
        edited(&packet, |ip| ip[0] = 0x46),
    );
    for _ in 0..5 {
        bed.unchanged("never taken", &fragment, Verdict::DropSlowBudget)?;
        bed.unchanged("without a limit", &options, Verdict::DropNoSlowPath)?;
    }
    let before = bed.kernel.verdicts()?;
    for _ in 0..200 {
        assert_eq!(bed.kernel.run(&icmp)?.action, Action::Drop);
    }
    let after = bed.kernel.verdicts()?;
    let more = |verdict: Verdict| after[verdict as usize].1 - before[verdict as usize].1;
    let (taken, shed) = (more(Verdict::DropNoSlowPath), more(Verdict::DropSlowBudget));
    let Kernel::Balancer(balancer) = &bed.kernel else {
        panic!("a balancer")
    };
    let cpus = balancer.counters.slow.per_cpu(0)?.len() as u64;
    assert!(
        taken >= 1 && taken <= cpus && taken + shed == 200,
        "{taken} taken, {shed} shed"
    );
    let sheds: Vec<_> = balancer
        .counters
        .shed()?
        .into_iter()
        .filter(|(_, shed)| *shed != 0)
        .collect();
    assert_eq!(sheds, [(Verdict::SlowFragment, 5), (Verdict::SlowIcmp, shed)]);
    // Without a limit again, live.
    balancer.set_budget(Verdict::SlowFragment, 0, 0)?;
    bed.recount()?;
    bed.unchanged("taken again", &fragment, Verdict::DropNoSlowPath)?;
    Ok(())
}

#[test]
fn a_socket_is_of_one_interface_and_one_queue() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let (mine, other) = (socket()?, socket()?);
    let mut bed = Bed::balancer(tables())?;
    let icmp = edited(&Packet::tcp(CLIENT_V4, &at(VIP_V4, 80)), |ip| ip[9] = 1);
    let with_reason = [&(Verdict::SlowIcmp as u64).to_le_bytes(), &icmp[..]].concat();
    let sockets = match &bed.kernel {
        Kernel::Balancer(balancer) => std::sync::Arc::clone(&balancer.sockets),
        Kernel::Worker(_) => panic!("a balancer"),
    };
    let sockets = || sockets.lock().expect("nobody panicked");
    for (ifindex, queue) in [(LOOPBACK + 1, 0), (LOOPBACK, 1), (0, LOOPBACK)] {
        sockets().set(ifindex, queue, other.as_raw_fd())?;
    }
    bed.unchanged("others have sockets", &icmp, Verdict::DropNoSlowPath)?;
    for _ in 0..2 {
        sockets().set(LOOPBACK, 0, mine.as_raw_fd())?;
        bed.becomes("this one has", &icmp, Verdict::SlowIcmp, None, &with_reason)?;
        // A worker that was restarted.
        sockets().set(LOOPBACK, 0, other.as_raw_fd())?;
        bed.becomes("another takes over", &icmp, Verdict::SlowIcmp, None, &with_reason)?;
        assert_eq!(sockets().queues().count(), 4);
        sockets().remove(LOOPBACK, 0)?;
        sockets().remove(LOOPBACK, 0)?;
        bed.unchanged("it is gone", &icmp, Verdict::DropNoSlowPath)?;
    }
    sockets().set(LOOPBACK, 0, mine.as_raw_fd())?;
    drop(mine);
    let left = bed.step("its socket is closed", &icmp, Verdict::DropNoSlowPath, None)?;
    assert!(left.ends_with(&icmp));
    Ok(())
}
