//! The slow path comes back with the daemon, and stays while the program is swapped.

mod lab_support;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lab::{Mtus, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, eventually, vip_v4, vip_v6};
use nix::sys::signal::Signal;

const VIPS: [fn() -> SocketAddr; 2] = [|| vip_v4(1, 80), || vip_v6(1, 80)];

fn bed() -> Result<Bed> {
    // Fragments fit the way to the worker, and replies the way back.
    let mtus = Mtus {
        client: 1500,
        lb: 1600,
        worker: 1540,
    };
    Bed::start(Topology::builder().workers(1).mtus(mtus).build()?, |topology, lb| {
        LbFile::new(topology, lb).vips(&VIPS.map(|vip| (Proto::Udp, vip())), "v4")
    })
}

/// A datagram in fragments, and a ping.
fn works(bed: &Bed) -> Result<bool> {
    let client = bed.topology.client().with_timeout(Duration::from_millis(300));
    for vip in VIPS {
        // The reply may be too large for the way back: the first one tells the pod.
        if client.udp_echo(vip(), 4000).is_err() && client.udp_echo(vip(), 4000).is_err() {
            return Ok(false);
        }
        let ping = format!("ping -n -c 1 -W 0.3 {}", vip().ip());
        if !client.ns().within(Duration::from_secs(1), &ping)?.ok {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn it_works_again_after_a_restart_and_after_a_kill() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    assert!(works(&bed)?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGKILL] {
        let traffic = AtomicBool::new(true);
        let client = bed.topology.client().with_timeout(Duration::from_millis(50));
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                while traffic.load(Ordering::Relaxed) {
                    let _ = client.udp_echo(vip_v4(1, 80), 4000);
                }
            });
            std::thread::sleep(Duration::from_millis(100));
            let ended = bed.lbs[0].end(signal);
            let again = ended.and_then(|_| bed.lbs[0].start_again());
            traffic.store(false, Ordering::Relaxed);
            again
        })?;
        let took = eventually("the slow path works again", || works(&bed))?;
        println!("{signal}: {took:?} after the daemon was ready");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    Ok(())
}

#[test]
fn a_reload_that_swaps_the_program_loses_no_slow_packet() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    assert!(works(&bed)?);
    let traffic = AtomicBool::new(true);
    let client = bed.topology.client().with_timeout(Duration::from_millis(500));
    let run = |vip: fn() -> SocketAddr| {
        let (mut ok, mut errors) = (0, Vec::new());
        while traffic.load(Ordering::Relaxed) {
            match client.udp_echo(vip(), 4000) {
                Ok(_) => ok += 1,
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        (ok, errors)
    };
    std::thread::scope(|scope| -> Result<()> {
        let run = &run;
        let loads: Vec<_> = VIPS.map(|vip| scope.spawn(move || run(vip))).into_iter().collect();
        let reloads = (0..6).try_for_each(|round| {
            std::thread::sleep(Duration::from_millis(100));
            let more = if round % 2 == 0 {
                "protection: { denied_sources: [192.0.2.0/24] }"
            } else {
                ""
            };
            bed.lb().reload_lb(&bed.file().more(more))
        });
        std::thread::sleep(Duration::from_millis(100));
        traffic.store(false, Ordering::Relaxed);
        reloads?;
        for load in loads {
            let (ok, errors) = load.join().expect("a load");
            println!("{ok} answered, lost: {errors:?}");
            assert!(ok > 50 && errors.is_empty(), "{ok} answered, lost: {errors:?}");
        }
        Ok(())
    })
}

#[test]
fn what_was_counted_stays_counted_when_programs_and_workers_are_replaced() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    assert!(works(&bed)?);
    let one = "slow_path: { limits: { fragment: { per_second: 1, burst: 1 } } }";
    bed.lb().reload_lb(&bed.file().more(one))?;
    let counted = || -> Result<(u64, u64)> {
        let slow = bed.lb().status()?.slow_path.context("no slow path")?;
        let shed = slow.shed_by_fast_path.iter().map(|(_, packets)| packets).sum();
        Ok((shed, slow.workers.iter().map(|worker| worker.received).sum()))
    };
    let client = bed.topology.client().with_timeout(Duration::from_millis(20));
    eventually("fragments are shed", || {
        let _ = client.udp_echo(vip_v4(1, 80), 4000);
        Ok(counted()?.0 > 5)
    })?;
    let mut before = counted()?;
    // Another program; another program and other workers; other workers.
    for more in [
        "protection: { denied_sources: [192.0.2.0/24] }",
        "slow_path: { frames_per_queue: 512 }",
        "slow_path: { frames_per_queue: 1024 }",
    ] {
        bed.lb().reload_lb(&bed.file().more(more))?;
        let after = counted()?;
        assert!(
            after.0 >= before.0 && after.1 >= before.1,
            "{more}: {before:?}, then {after:?}"
        );
        before = after;
        assert!(works(&bed)?, "{more}");
    }
    Ok(())
}

#[test]
fn it_can_be_turned_off_and_on() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    for _ in 0..2 {
        assert!(works(&bed)?);
        bed.lb().reload_lb(&bed.file().more("slow_path: { enabled: false }"))?;
        assert!(!works(&bed)? && bed.lb().status()?.slow_path.is_none());
        bed.topology.client().udp_get(vip_v4(1, 80), 5)?;
        bed.lb().reload_lb(&bed.file())?;
        eventually("the slow path works again", || works(&bed))?;
    }
    Ok(())
}
