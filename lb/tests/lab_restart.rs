//! A restart, a kill, an upgrade and a changed file under load: no packet is lost and no connection breaks, because the data plane
//! outlives the daemon. The control does nothing; the twin pins nothing, and loses packets.

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{fs, net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use lab::{Load, LoadKind, LoadReport, Pace, Proto, Stream, StreamReport, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, PATIENCE, eventually, vip_v4};
use lb::datapath::holders;
use nix::sys::signal::Signal;
use xdp_prog::abi::ABI_VERSION;

/// Of datagrams; fewer come where the machine is busy.
const PACE: Pace = Pace {
    per_second: 100_000,
    under_way: 96,
};
/// How long nobody looks after the data plane.
const GAP: Duration = Duration::from_millis(300);

fn vip() -> SocketAddr {
    vip_v4(1, 80)
}

fn streamed() -> SocketAddr {
    vip_v4(2, 9000)
}

fn bed() -> Result<Bed> {
    Bed::start(Topology::builder().workers(3).build()?, |topology, lb| {
        LbFile::new(topology, lb).vips(&[(Proto::Tcp, vip()), (Proto::Udp, streamed())], "v4")
    })
}

/// What became of traffic while something happened.
#[derive(Debug)]
struct Outcome {
    stream: StreamReport,
    open: LoadReport,
    new: LoadReport,
}

/// Sends through both VIPs while `event` happens to the LB node's daemon.
fn under_load(what: &str, bed: &mut Bed, event: impl FnOnce(&mut Bed) -> Result<()>) -> Result<Outcome> {
    let client = bed.topology.client().with_timeout(Duration::from_secs(8));
    let open = Load::start(&client, vip(), LoadKind::KeepAlive, 8)?;
    let new = Load::start(&client, vip(), LoadKind::NewConnections, 2)?;
    open.wait_for(50, PATIENCE)?;
    let stream = Stream::start(&bed.topology, streamed(), PACE)?;
    sleep(Duration::from_millis(500));
    event(bed)?;
    sleep(Duration::from_millis(500));
    let outcome = Outcome {
        stream: stream.stop()?,
        open: {
            open.wait_for(50, PATIENCE)?;
            open.stop()?
        },
        new: new.stop()?,
    };
    println!(
        "{what}: {}; connections: {} requests on open ones, {} broken, {} moved; {} new ones, {} failed",
        outcome.stream, outcome.open.ok, outcome.open.failed, outcome.open.moved, outcome.new.ok, outcome.new.failed,
    );
    Ok(outcome)
}

fn assert_nothing_lost(what: &str, outcome: &Outcome) {
    assert!(outcome.stream.sent > 1_000, "{what}: {outcome:?}");
    assert_eq!(outcome.stream.arrived, outcome.stream.sent, "{what}: {outcome:?}");
    let Outcome { open, new, .. } = outcome;
    assert_eq!((open.failed, open.moved, new.failed), (0, 0, 0), "{what}: {outcome:?}");
}

/// The kernel's id of the program at the LB node's interface.
fn program(bed: &Bed) -> Result<u32> {
    let holders = bed.topology.lb(0).ns().run(|| Ok(holders("eth0")?))?;
    Ok(holders.first().context("a program")?.program_id)
}

/// Ends the daemon, leaves the data plane alone for a while, and starts it again.
fn restart(bed: &mut Bed, signal: Signal) -> Result<()> {
    restart_with(bed, signal, None)
}

/// As [`restart`], with another file that no daemon has seen before the start.
fn restart_with(bed: &mut Bed, signal: Signal, yaml: Option<&str>) -> Result<()> {
    bed.lbs[0].end(signal)?;
    yaml.map_or(Ok(()), |yaml| bed.lb().write(yaml))?;
    sleep(GAP);
    bed.lbs[0].start_again()
}

fn log_after(daemon: &Daemon, before: &str) -> Result<String> {
    Ok(daemon.log()?.strip_prefix(before).unwrap_or_default().to_owned())
}

#[test]
fn a_clean_restart_and_a_kill_lose_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    let control = under_load("control", &mut bed, |_| {
        sleep(GAP);
        Ok(())
    })?;
    assert_nothing_lost("the control", &control);

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let (before, log, counted) = (program(&bed)?, bed.lb().log()?, bed.lb().counted()?);
        let outcome = under_load(signal.as_str(), &mut bed, |bed| restart(bed, signal))?;
        assert_nothing_lost(signal.as_str(), &outcome);
        let log = log_after(bed.lb(), &log)?;
        assert!(
            log.contains("goes on with the maps of the process before writes=0"),
            "{log}"
        );
        assert_ne!(program(&bed)?, before, "the program is the new process's own");
        // Counters go on, over the time without a daemon as well.
        let grown = bed.lb().counted()?.of("forward tx") - counted.of("forward tx");
        assert!(grown >= outcome.stream.sent, "{grown} of {}", outcome.stream.sent);
        let vips = bed.lb().vips()?;
        let traffic = vips
            .iter()
            .find(|view| view.port == streamed().port())
            .context("the VIP")?;
        assert!(traffic.packets >= outcome.stream.sent, "{} packets", traffic.packets);
    }
    Ok(())
}

#[test]
fn with_nothing_pinned_a_restart_loses_packets() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // The twin: the same restart of a daemon whose data plane ends with it.
    let mut bed = bed()?;
    bed.unpin()?;
    assert_eq!(bed.lb().status()?.pinned, None);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let outcome = under_load("nothing pinned", &mut bed, |bed| restart(bed, signal))?;
        // All that may be under way is given up every 50 ms: that much in the gap alone.
        assert!(outcome.stream.lost() > 400, "{outcome:?}");
        assert_eq!((outcome.open.failed, outcome.open.moved), (0, 0), "{outcome:?}");
    }
    Ok(())
}

#[test]
fn a_start_with_another_file_loses_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    let limits = ", limits: { packets_per_second_per_cpu: 10000000, packets_burst: 10000000 }";
    let what = "a VIP more";
    let log = bed.lb().log()?;
    let more = "  - { address: 203.0.113.9, protocol: tcp, port: 81, backends: v4 }\n";
    let yaml = bed.file().yaml(&bed.lb().socket()) + more;
    let outcome = under_load(what, &mut bed, |bed| restart_with(bed, Signal::SIGTERM, Some(&yaml)))?;
    assert_nothing_lost(what, &outcome);
    let log = log_after(bed.lb(), &log)?;
    assert!(log.contains("goes on with the maps of the process before"), "{log}");
    assert_eq!(bed.lb().status()?.vips, 3);

    // What is fixed in the program, or in the maps: another program with maps of its own takes over.
    let mut file = bed.file();
    file.vips[0].options = limits.to_owned();
    let others = [
        ("a feature", file.clone(), "features change: +limits"),
        (
            "room in the maps",
            bed.file().more("capacity: { vips: 4000 }"),
            "`capacity` changes",
        ),
    ];
    for (what, file, why) in others {
        let (log, counted) = (bed.lb().log()?, bed.lb().counted()?);
        let yaml = file.yaml(&bed.lb().socket());
        let outcome = under_load(what, &mut bed, |bed| restart_with(bed, Signal::SIGKILL, Some(&yaml)))?;
        assert_nothing_lost(what, &outcome);
        let log = log_after(bed.lb(), &log)?;
        assert!(
            log.contains("new maps take the place of those of the process before") && log.contains(why),
            "{log}"
        );
        let grown = bed.lb().counted()?.of("forward tx") - counted.of("forward tx");
        assert!(grown >= outcome.stream.sent, "{grown} of {}", outcome.stream.sent);
        let generations = fs::read_dir(bed.lb().pins().join(format!("v{ABI_VERSION}")))?.count();
        assert_eq!(generations, 1, "the one before is gone");
    }

    // And a reload that does the same to a daemon that lives, which is then killed and goes on from that.
    let outcome = under_load("a reload, then a kill", &mut bed, |bed| {
        let mut file = bed.file();
        file.vips[1].options = limits.to_owned();
        bed.lb().reload_lb(&file)?;
        restart(bed, Signal::SIGKILL)
    })?;
    assert_nothing_lost("a reload, then a kill", &outcome);
    Ok(())
}

#[test]
fn maps_of_another_abi_are_replaced_without_a_packet_lost_and_loudly() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    for (abi, word) in [(ABI_VERSION + 1, "DOWNGRADE"), (ABI_VERSION - 1, "upgrade: an older")] {
        let log = bed.lb().log()?;
        let outcome = under_load(word, &mut bed, |bed| {
            bed.lbs[0].end(Signal::SIGTERM)?;
            let pins = bed.lb().pins();
            fs::rename(pins.join(format!("v{ABI_VERSION}")), pins.join(format!("v{abi}")))?;
            sleep(GAP);
            bed.lbs[0].start_again()
        })?;
        assert_nothing_lost(word, &outcome);
        let log = log_after(bed.lb(), &log)?;
        assert!(log.contains(word) && log.contains(&format!("map ABI {abi}")), "{log}");
        let pins = bed.lb().pins();
        eventually("the foreign maps go", || Ok(!pins.join(format!("v{abi}")).exists()))?;
    }
    Ok(())
}
