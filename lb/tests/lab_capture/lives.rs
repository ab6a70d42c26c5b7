//! Captures that begin, end and go on while everything else happens.

use std::{
    fs::{self},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::bed::{Capture, Traffic, bed, capinfos, eventually_within, is_on, is_over, tshark};
use crate::lab_support::{Bed, Daemon, LbFile, eventually, vip_v4, vipline};
use anyhow::{Context as _, Result};
use lab::{Load, LoadKind, Process, Proto, Topology, require_root};
use lb::{
    control::{CaptureEvent, CaptureOptions, CaptureStarted, Request, follow},
    datapath::holders,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

#[test]
fn traffic_does_not_notice_captures_that_begin_and_end() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    let traffic = Traffic::start(&bed)?;
    traffic.goes_on()?;
    traffic.assert_nothing_lost("the control: no capture")?;

    let features = bed.lb().status()?.features;
    let ns = bed.topology.lb(0).ns().clone();
    let program = || ns.run(|| Ok(holders("eth0")?[0].program_id));
    let traffic = Traffic::start(&bed)?;
    let counted = bed.lb().counted()?;
    let mut worst = Duration::ZERO;
    for _ in 0..5 {
        let plain = program()?;
        let start = Instant::now();
        let mut capture = Capture::start(bed.lb(), &["-o", "json"])?;
        worst = worst.max(start.elapsed());
        assert_ne!(program()?, plain, "another program is in place");
        traffic.goes_on()?;
        capture.stop()?;
        assert!(capture.samples()?.len() > 100);
        is_over(bed.lb(), &features)?;
        traffic.goes_on()?;
    }
    let now = bed.lb().counted()?;
    assert!(
        now.0.iter().all(|(verdict, count)| *count >= counted.of(verdict)),
        "counts go on"
    );
    println!("the longest start of a capture: {worst:?}");
    traffic.assert_nothing_lost("five captures")?;

    // The slow path: its sockets are put into each program before that takes over.
    let pings = |during: &dyn Fn() -> Result<()>| -> Result<u64> {
        let ns = bed.topology.client().ns().clone();
        let ping = thread::spawn(move || ns.sh("ping -n -q -i 0.02 -c 150 -W 1 203.0.113.1"));
        during()?;
        let said = ping.join().ok().context("a thread that does not panic")??;
        let received = said
            .split(" packets transmitted, ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        Ok(150 - received.context("a summary")?.parse::<u64>()?)
    };
    let nothing = pings(&|| Ok(()))?;
    let lost = pings(&|| (0..3).try_for_each(|_| Capture::start(bed.lb(), &["-o", "json"])?.stop()))?;
    println!("pings: {nothing} of 150 lost without a capture, {lost} over three captures");
    assert_eq!((nothing, lost), (0, 0), "the control, then three captures");

    // The twin: the same by taking the program away and starting the daemon again is seen to lose.
    let traffic = Traffic::start(&bed)?;
    for _ in 0..2 {
        bed.lbs[0].end(Signal::SIGTERM)?;
        bed.lbs[0].detach()?;
        bed.lbs[0].start_again()?;
        traffic.goes_on()?;
    }
    let lost = traffic.stop()?;
    println!("two restarts instead: {lost} lost");
    assert!(lost > 0);
    Ok(())
}

#[test]
fn a_client_that_is_killed_or_closes_its_pipe_ends_it_and_leaves_a_file_that_is_whole() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let lb = bed.lb();
    let features = lb.status()?.features;
    let client = bed.topology.client();
    let capture = Capture::start(lb, &["--verdict", "forward", "-w", "killed.pcapng"])?;
    client.http_get(vip_v4(1, 80), 20)?;
    let file = capture.path("killed.pcapng");
    eventually("something is in the file", || Ok(fs::metadata(&file)?.len() > 4096))?;
    capture.process.signal(Signal::SIGKILL)?;
    is_over(lb, &features)?;
    capinfos(&file)?;
    assert!(!tshark(&file, "frame", &["frame.number"])?.is_empty());

    // A reader that has enough.
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipline"));
    command
        .args(["capture", "--verdict", "forward", "--socket"])
        .arg(lb.socket());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start(command)?;
    eventually("the capture has begun", || is_on(lb))?;
    let mut reader = BufReader::new(process.child().stdout.take().context("a pipe")?);
    client.http_get(vip_v4(1, 80), 2)?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    assert!(line.contains("forward tx"), "{line}");
    drop(reader);
    eventually("it notices", || {
        client.http_get(vip_v4(1, 80), 1)?;
        Ok(process.ended()?.is_some())
    })?;
    assert_eq!(process.wait()?.code(), Some(0), "nobody listens: no failure");
    let mut err = String::new();
    process
        .child()
        .stderr
        .take()
        .context("a pipe")?
        .read_to_string(&mut err)?;
    // What nobody took any more may be told; nothing else is.
    assert!(err.is_empty() || err.contains(" LOST"), "{err}");
    is_over(lb, &features)?;

    // SIGTERM is as good as Ctrl-C.
    let mut capture = Capture::start(lb, &["-w", "term.pcapng"])?;
    client.http_get(vip_v4(1, 80), 5)?;
    capture.process.signal(Signal::SIGTERM)?;
    assert_eq!(capture.wait()?, Some(0));
    assert!(!is_on(lb)?, "it waits for the end");
    capinfos(&capture.path("term.pcapng"))?;
    Ok(())
}

#[test]
fn what_cannot_be_done_is_said_before_a_program_is_replaced() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let lb = bed.lb();
    let ns = bed.topology.lb(0).ns().clone();
    let program = || ns.run(|| Ok(holders("eth0")?[0].program_id));
    let plain = program()?;
    let socket = lb.socket();
    let socket = socket.to_str().context("UTF-8")?;
    let refused = |socket: &str, args: &[&str], why: &str| -> Result<()> {
        let output = vipline(&[&["capture", "--socket", socket][..], args].concat())?;
        let err = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{args:?}: {err}");
        assert!(err.contains(why), "{args:?}: no {why} in {err}");
        assert!(output.stdout.is_empty());
        Ok(())
    };
    refused(
        socket,
        &["-w", "/no/such/place/f.pcapng"],
        "cannot write to /no/such/place/f.pcapng",
    )?;
    refused(socket, &["--vip", "tcp://203.0.113.9:80"], "no VIP tcp 203.0.113.9:80")?;
    let node = bed.nodes[0].socket();
    refused(
        node.to_str().context("UTF-8")?,
        &[],
        "only an LB node's daemon captures",
    )?;
    // A refusal leaves files as they are.
    let directory = TempDir::new()?;
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    fs::write(&old, "precious")?;
    for file in [&old, &new] {
        refused(
            socket,
            &["--vip", "tcp://203.0.113.9:80", "-w", file.to_str().context("UTF-8")?],
            "no VIP",
        )?;
    }
    assert_eq!(fs::read_to_string(&old)?, "precious");
    assert!(!new.exists());
    assert_eq!(program()?, plain, "the program never changed");

    // One at a time.
    let mut first = Capture::start(lb, &["-o", "json"])?;
    refused(socket, &[], "a capture is running already")?;
    bed.topology.client().http_get(vip_v4(1, 80), 2)?;
    first.stop()?;
    assert!(!first.samples()?.is_empty(), "the first one is not harmed");
    Capture::start(lb, &[])?.stop()
}

#[test]
fn a_capture_goes_on_over_reloads_and_follows_its_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let lb = bed.lb();
    let features = lb.status()?.features;
    let client = bed.topology.client();
    let mut capture = Capture::start(lb, &["--vip", "udp://203.0.113.2:53", "-o", "json"])?;
    let grows = |capture: &Capture| -> Result<()> {
        let before = capture.samples()?.len();
        client.udp_get(vip_v4(2, 53), 3)?;
        client.udp_get(vip_v4(1, 80), 3)?;
        eventually("samples come", || Ok(capture.samples()?.len() >= before + 3))?;
        Ok(())
    };
    grows(&capture)?;
    // In the live tables: the VIP gets another index when it comes back behind others.
    let mut without = bed.file();
    without.vips.retain(|vip| vip.at != vip_v4(2, 53));
    lb.reload_lb(&without)?;
    let none = capture.samples()?.len();
    client.udp_get(vip_v4(1, 80), 5)?;
    let more = without.vips(&[(Proto::Udp, vip_v4(3, 53))], "v4");
    lb.reload_lb(&more)?;
    thread::sleep(Duration::from_millis(300));
    assert_eq!(capture.samples()?.len(), none, "nobody else is taken for it");
    lb.reload_lb(&more.vips(&[(Proto::Udp, vip_v4(2, 53))], "v4"))?;
    assert!(is_on(lb)?);
    grows(&capture)?;
    // Another program.
    lb.reload_lb(&bed.file().more("protection: { denied_sources: [192.0.2.0/24] }"))?;
    assert!(is_on(lb)?, "{:?}", lb.status()?.features);
    assert!(lb.status()?.features.contains(&"denied sources".to_owned()));
    grows(&capture)?;
    lb.reload_lb(&bed.file())?;
    grows(&capture)?;
    capture.stop()?;
    is_over(lb, &features)?;
    let samples = capture.samples()?;
    for sample in &samples {
        assert_eq!(sample.vip.as_deref(), Some("udp 203.0.113.2:53"), "{sample:?}");
        assert!(
            sample
                .backend
                .as_deref()
                .is_some_and(|name| name.starts_with("worker-"))
        );
    }
    Ok(())
}

#[test]
fn a_client_that_takes_nothing_holds_nobody() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let lb = bed.lb();
    let features = lb.status()?.features;
    let client = bed.topology.client();
    let options = CaptureOptions {
        rate: 100_000,
        ..CaptureOptions::default()
    };
    let (started, mut stream) = follow::<CaptureStarted>(&lb.socket(), &Request::Capture { options })?;
    assert_eq!(started.interfaces, ["eth0"]);
    assert!(is_on(lb)?);
    // More than sockets and rings hold: about 800 B a sample.
    let load = Load::start(client, vip_v4(1, 80), LoadKind::NewConnections, 2)?;
    eventually_within(Duration::from_secs(60), "the daemon gives the client up", || {
        let asked = Instant::now();
        let is_on = is_on(lb)?;
        assert!(asked.elapsed() < Duration::from_secs(2), "others are answered");
        Ok(!is_on)
    })?;
    assert_eq!(load.stop()?.failed, 0, "and traffic goes on");
    assert_eq!(lb.status()?.features, features);
    assert!(lb.log()?.contains("took nothing for 30 s"), "{}", lb.log()?);
    // What was sent until then can still be had, and then how it ended.
    let end = loop {
        match stream.next_line::<CaptureEvent>()?.context("no end")? {
            CaptureEvent::Sample(_) => {}
            CaptureEvent::End(end) => break end,
        }
    };
    assert!(
        end.lost > 0 && end.error.is_some_and(|why| why.contains("took nothing")),
        "losses are told"
    );

    // One that is gone before its capture has begun.
    for _ in 0..5 {
        let mut socket = UnixStream::connect(lb.socket())?;
        let request = Request::Capture {
            options: CaptureOptions::default(),
        };
        writeln!(socket, "{}", serde_json::to_string(&request)?)?;
        drop(socket);
    }
    // The first and those that found it gone; others were refused.
    let count = |word| Ok::<_, anyhow::Error>(lb.log()?.matches(word).count());
    eventually("all of them are over", || {
        Ok(count("capture started")? > 1 && count("capture started")? == count("capture ended")?)
    })?;
    is_over(lb, &features)
}

#[test]
fn a_frame_that_leaves_by_another_interface_is_named_by_the_one_it_came_in_by_in_generic_mode_too() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for mode in ["native", "generic"] {
        let topology = Topology::builder().workers(1).two_interfaces().build()?;
        let bed = Bed::start(topology, |topology, lb| {
            let mut file = LbFile::new(topology, lb).vips(&[(Proto::Tcp, vip_v4(1, 80))], "v4");
            for interface in &mut file.interfaces {
                *interface = format!("{{ name: {interface}, mode: {mode} }}");
            }
            file
        })?;
        let mut capture = Capture::start(bed.lb(), &["--verdict", "forward", "-w", "f.pcapng"])?;
        bed.topology.client().http_get(vip_v4(1, 80), 3)?;
        capture.stop()?;
        let file = capture.path("f.pcapng");
        let infos = capinfos(&file)?;
        assert!(
            infos.contains("Name = eth0") && infos.contains("Name = eth1"),
            "{infos}"
        );
        let rows = tshark(
            &file,
            "frame",
            &["frame.interface_name", "frame.comment", "frame.protocols"],
        )?;
        assert!(rows.len() >= 9, "{mode}: {rows:?}");
        for row in rows {
            assert_eq!(row[0], "eth0", "{mode}");
            assert!(
                row[1].starts_with("verdict=forward reason=redirect "),
                "{mode}: {row:?}"
            );
            assert!(row[2].starts_with("eth:ethertype:ip:ip:tcp"), "{mode}: {row:?}");
        }
    }
    Ok(())
}

#[test]
fn the_capabilities_of_the_unit_are_enough() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/vipline-lb.service");
    let unit = fs::read_to_string(unit)?;
    assert!(unit.contains("SystemCallFilter=@system-service bpf perf_event_open"));
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line
        .context("capabilities")?
        .split_whitespace()
        .map(|name| name.trim_start_matches("CAP_"));
    let capabilities: Vec<_> = names.map(|name| format!("+{}", name.to_lowercase())).collect();

    let topology = Topology::builder().workers(1).build()?;
    // The slow path's frames need the unit's LimitMEMLOCK, which nobody here can raise.
    let file = LbFile::new(&topology, topology.lb(0)).vips(&[(Proto::Tcp, vip_v4(1, 80))], "v4");
    let file = file.more("slow_path: { enabled: false }");
    let yaml = |socket: &Path| file.yaml(socket);
    let mut lb = Daemon::spawn_with_capabilities("run", topology.lb(0), yaml, &capabilities.join(","))?;
    lb.ready()?;
    let impatient = topology.client().with_timeout(Duration::from_millis(50));
    let mut capture = Capture::start(&lb, &["--vip", "203.0.113.1", "-o", "json"])?;
    // Nobody serves; the question is seen.
    impatient.try_http_get(vip_v4(1, 80), 1)?;
    capture.stop()?;
    assert!(!capture.samples()?.is_empty());
    Ok(())
}
