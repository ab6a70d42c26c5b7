//! `vipline capture` on real traffic: what it says of packets, as tshark reads it, and that nobody notices when it comes and goes.

#![expect(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

mod lab_support;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{Load, LoadKind, Process, Proto, Topology, require_root};
use lab_support::{Bed, Daemon, LbFile, eventually, vip_v4, vip_v6, vipline};
use lb::{
    control::{CaptureEvent, CaptureOptions, CaptureStarted, Request, SampleView, follow},
    datapath::holders,
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// Two workers and one LB node; TCP and UDP on the first VIP of both families, UDP alone on a second one.
fn bed() -> Result<Bed> {
    let vips = [
        (Proto::Tcp, vip_v4(1, 80)),
        (Proto::Udp, vip_v4(1, 80)),
        (Proto::Tcp, vip_v6(1, 80)),
        (Proto::Udp, vip_v4(2, 53)),
    ];
    let topology = Topology::builder().workers(2).build()?;
    Bed::start(topology, |topology, lb| LbFile::new(topology, lb).vips(&vips, "v4"))
}

/// A capture under way, in the LB node's neighbourhood.
struct Capture {
    process: Process,
    directory: TempDir,
}

impl Capture {
    /// Starts one and waits until it samples; `args` are the command's, `out` and `err` get its output.
    fn start(lb: &Daemon, args: &[&str]) -> Result<Self> {
        let mut capture = Self::spawn(lb, args)?;
        eventually("the capture has begun", || {
            ensure!(capture.process.ended()?.is_none(), "it ended: {}", capture.err()?);
            is_on(lb)
        })?;
        Ok(capture)
    }

    fn spawn(lb: &Daemon, args: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("vipline-capture-")?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vipline"));
        command.arg("capture").args(args).arg("--socket").arg(lb.socket());
        command
            .current_dir(directory.path())
            .stdout(File::create(directory.path().join("out"))?)
            .stderr(File::create(directory.path().join("err"))?);
        Ok(Self {
            process: Process::start(command)?,
            directory,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn out(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("out"))?)
    }

    fn err(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("err"))?)
    }

    /// Waits for its end by itself; its exit code.
    fn wait(&mut self) -> Result<Option<i32>> {
        let mut status = None;
        eventually("the capture ends", || {
            status = self.process.ended()?;
            Ok(status.is_some())
        })?;
        Ok(status.and_then(|status| status.code()))
    }

    /// Ctrl-C, and that it ends well.
    fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        let code = self.wait()?;
        ensure!(code == Some(0), "exit code {code:?}: {}", self.err()?);
        Ok(())
    }

    /// Its samples, with `-o json`.
    fn samples(&self) -> Result<Vec<SampleView>> {
        let out = self.out()?;
        out.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

fn is_on(lb: &Daemon) -> Result<bool> {
    Ok(lb.status()?.features.contains(&"capture".to_owned()))
}

fn eventually_within(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Waits until the program that samples is gone.
fn is_over(lb: &Daemon, before: &[String]) -> Result<()> {
    let took = eventually("the program without capture is back", || Ok(!is_on(lb)?))?;
    println!("the capture was over after {took:?}");
    assert_eq!(lb.status()?.features, before, "the features are those before");
    Ok(())
}

/// Runs tshark on a file; its fields, one line a packet.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command
        .arg("-n")
        .arg("-r")
        .arg(file)
        .args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    // It warns that it runs as root.
    let output = command.stderr(Stdio::null()).output().context("tshark")?;
    ensure!(output.status.success(), "tshark {filter}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect())
}

/// What capinfos says of a file, which must be whole.
fn capinfos(file: &Path) -> Result<String> {
    let Output { status, stdout, stderr } = Command::new("capinfos").arg(file).output().context("capinfos")?;
    let (out, err) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.success() && err.is_empty(), "capinfos: {status}: {err}{out}");
    Ok(out)
}

#[test]
fn a_file_of_forwarded_packets_is_what_tshark_expects_and_says_why() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let lb = bed.lb();
    let features = lb.status()?.features;
    let mut capture = Capture::start(lb, &["--verdict", "forward", "-w", "f.pcapng"])?;
    let client = bed.topology.client();
    let before = lb.counted()?;
    let v4 = client.http_get(vip_v4(1, 80), 5)?;
    client.http_get(vip_v6(1, 80), 5)?;
    client.udp_get(vip_v4(2, 53), 5)?;
    let forwarded = lb.counted()?.fate("forward") - before.fate("forward");
    capture.stop()?;
    is_over(lb, &features)?;

    let file = capture.path("f.pcapng");
    let infos = capinfos(&file)?;
    for word in ["pcapng", "vipline", "Ethernet", "Name = eth0", "nanoseconds (9)"] {
        assert!(infos.contains(word), "no {word} in:\n{infos}");
    }
    let rows = tshark(
        &file,
        "frame",
        &[
            "frame.comment",
            "frame.protocols",
            "frame.interface_name",
            "frame.time_epoch",
            "ip.dst",
            "frame.len",
        ],
    )?;
    assert_eq!(rows.len() as u64, forwarded, "every packet that was forwarded");
    assert!(
        capture.err()?.contains(&format!("{forwarded} packets captured")),
        "{}",
        capture.err()?
    );
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs_f64();
    for row in &rows {
        let (comment, protocols) = (&row[0], &row[1]);
        assert!(comment.starts_with("verdict=forward reason=tx vip="), "{comment}");
        assert!(
            comment.contains("backend=worker-1") || comment.contains("backend=worker-2"),
            "{comment}"
        );
        assert!(
            protocols.starts_with("eth:ethertype:ip:ip:") || protocols.starts_with("eth:ethertype:ip:ipv6:"),
            "encapsulated: {protocols}"
        );
        assert_eq!(row[2], "eth0");
        let age = now - row[3].parse::<f64>()?;
        assert!((0.0..30.0).contains(&age), "{age} s ago");
        let received = comment.rsplit("received=").next().context("a length")?;
        assert_eq!(
            row[5].parse::<u32>()?,
            received.parse::<u32>()? + 20,
            "the outer header"
        );
    }
    // The backend of the comment is the outer destination, and it is who answered.
    for reply in &v4 {
        let filter = format!("frame.comment contains \"backend={}\"", reply.server);
        let worker = bed
            .topology
            .workers()
            .iter()
            .find(|worker| worker.name() == reply.server);
        let address = worker.context("a worker")?.addr_v4().to_string();
        let rows = tshark(&file, &filter, &["ip.dst"])?;
        assert!(!rows.is_empty());
        assert!(
            rows.iter().all(|row| row[0].split(',').next() == Some(&address)),
            "{rows:?}"
        );
    }
    let requests = tshark(&file, "http.request || tcp.flags.syn == 1", &["frame.number"])?;
    assert!(requests.len() >= 10, "inner packets are read, too");
    let outbound = tshark(&file, "frame.packet_flags_direction == 2", &["frame.number"])?;
    assert_eq!(outbound.len(), rows.len(), "they left");
    Ok(())
}

#[test]
fn packets_are_chosen_by_verdict_by_reason_and_by_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let lb = bed.lb();
    let client = bed.topology.client();
    let impatient = client.with_timeout(Duration::from_millis(50));
    let source = "203.0.113.1".parse()?;
    let traffic = || -> Result<()> {
        client.http_get(vip_v4(1, 80), 3)?;
        client.http_get(vip_v6(1, 80), 3)?;
        client.udp_get(vip_v4(1, 80), 3)?;
        client.udp_get(vip_v4(2, 53), 3)?;
        // A port that nobody serves, and an address that is no VIP's: the router's question for the LB node's MAC passes, too.
        impatient.try_udp_get(vip_v4(1, 81), 3)?;
        drop(client.ping(source, 8));
        Ok(())
    };
    type Holds = fn(&SampleView) -> bool;
    let cases: [(&[&str], Holds); 7] = [
        (&["--verdict", "slow"], |sample| sample.verdict == "slow"),
        (&["--verdict", "pass,drop"], |sample| {
            sample.verdict == "pass" || sample.verdict == "drop"
        }),
        (&["--reason", "unserved_port"], |sample| {
            sample.reason == "unserved_port" && sample.flow.destination.as_deref() == Some("203.0.113.1:81")
        }),
        (&["--vip", "tcp://203.0.113.1:80"], |sample| {
            sample.vip.as_deref() == Some("tcp 203.0.113.1:80") && sample.flow.protocol == "tcp"
        }),
        (&["--vip", "udp 203.0.113.2:53", "--verdict", "forward"], |sample| {
            sample.vip.as_deref() == Some("udp 203.0.113.2:53")
                && sample.flow.destination.as_deref() == Some("203.0.113.2:53")
        }),
        (&["--vip", "2001:db8:f00d::1"], |sample| {
            sample
                .vip
                .as_deref()
                .is_none_or(|vip| vip == "tcp [2001:db8:f00d::1]:80")
        }),
        (&["--vip", "203.0.113.1"], |sample| {
            let flow = &sample.flow;
            let named = [&flow.source, &flow.destination];
            named
                .iter()
                .any(|at| at.as_deref().is_some_and(|at| at.starts_with("203.0.113.1")))
        }),
    ];
    for (args, holds) in cases {
        let mut capture = Capture::start(lb, &[args, &["-o", "json"]].concat())?;
        if args.contains(&"pass,drop") {
            // Something that passes.
            client
                .ns()
                .sh(&format!("ping -n -c 1 -w 2 {}", bed.topology.lb(0).addr_v4()))?;
        }
        traffic()?;
        eventually("something was captured", || Ok(!capture.out()?.is_empty()))?;
        capture.stop()?;
        let samples = capture.samples()?;
        assert!(!samples.is_empty(), "{args:?}");
        for sample in &samples {
            assert!(holds(sample), "{args:?}: {sample:?}");
        }
    }
    // By address: also what no VIP claimed.
    let mut capture = Capture::start(lb, &["--vip", "203.0.113.1", "-o", "json"])?;
    traffic()?;
    capture.stop()?;
    let samples = capture.samples()?;
    for (what, is) in [
        ("TCP", (|s| s.vip.as_deref() == Some("tcp 203.0.113.1:80")) as Holds),
        ("UDP", |s| s.vip.as_deref() == Some("udp 203.0.113.1:80")),
        ("unclaimed", |s| s.vip.is_none() && s.reason == "unserved_port"),
        ("echo requests", |s| s.flow.protocol == "icmp" && s.reason == "icmp"),
    ] {
        assert!(samples.iter().any(is), "{what} in {samples:#?}");
    }
    Ok(())
}

#[test]
fn a_count_ends_it_and_one_in_n_and_a_rate_thin_it_out() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let lb = bed.lb();
    let features = lb.status()?.features;
    let client = bed.topology.client();

    let mut capture = Capture::start(lb, &["--verdict", "forward", "--count", "7"])?;
    client.http_get(vip_v4(1, 80), 10)?;
    assert_eq!(capture.wait()?, Some(0), "{}", capture.err()?);
    assert!(!is_on(lb)?, "it is over when the command is");
    assert_eq!(lb.status()?.features, features);
    let out = capture.out()?;
    assert_eq!(out.lines().count(), 7, "{out}");
    for line in out.lines() {
        for word in [
            " eth0 forward tx ",
            "vip tcp://203.0.113.1:80",
            "backend worker-",
            "tunnel ",
            " > 203.0.113.1:80",
        ] {
            assert!(line.contains(word), "no {word} in {line}");
        }
    }

    // One in ten of a few thousand.
    let mut capture = Capture::start(
        lb,
        &[
            "--vip",
            "udp://203.0.113.2:53",
            "--sample",
            "1-in-10",
            "--rate",
            "100000",
            "-o",
            "json",
        ],
    )?;
    client.udp_get(vip_v4(2, 53), 3000)?;
    capture.stop()?;
    let sampled = capture.samples()?.len();
    println!("one in ten: {sampled} of 3000");
    // Six standard deviations of 16.4.
    assert!((200..=400).contains(&sampled), "{sampled} of 3000");

    // Ten a second: a burst of one on each CPU, and what time adds.
    let start = Instant::now();
    let mut capture = Capture::start(lb, &["--vip", "udp://203.0.113.2:53", "--rate", "10", "-o", "json"])?;
    client.udp_get(vip_v4(2, 53), 3000)?;
    capture.stop()?;
    let cpus = thread::available_parallelism()?.get() as f64;
    let most = cpus * (1.0 + 10.0 * start.elapsed().as_secs_f64());
    let sampled = capture.samples()?.len();
    println!("ten a second: {sampled} of 3000, {most:.0} at most");
    assert!(sampled > 0 && sampled as f64 <= most, "{sampled}, {most} at most");

    // Less of each packet.
    let mut capture = Capture::start(
        lb,
        &[
            "--snaplen",
            "64",
            "--verdict",
            "forward",
            "-n",
            "3",
            "-w",
            "short.pcapng",
        ],
    )?;
    client.http_get(vip_v4(1, 80), 3)?;
    assert_eq!(capture.wait()?, Some(0));
    let rows = tshark(&capture.path("short.pcapng"), "frame", &["frame.cap_len", "frame.len"])?;
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert!(row[0] == "64" && row[1].parse::<u32>()? > 64, "{row:?}");
    }
    Ok(())
}

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

    // The twin: the same by starting the daemon again is seen to lose.
    let traffic = Traffic::start(&bed)?;
    for _ in 0..2 {
        bed.lbs[0].end(Signal::SIGTERM)?;
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
    assert_eq!(err, "");
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

/// Requests of every kind at the first VIP.
struct Traffic(Vec<(LoadKind, Load)>);

impl Traffic {
    fn start(bed: &Bed) -> Result<Self> {
        let client = bed.topology.client();
        let kinds = [
            LoadKind::NewConnections,
            LoadKind::KeepAlive,
            LoadKind::NewDatagramFlows,
            LoadKind::DatagramFlow,
        ];
        let start = |kind| Ok((kind, Load::start(client, vip_v4(1, 80), kind, 1)?));
        Ok(Self(kinds.into_iter().map(start).collect::<Result<_>>()?))
    }

    fn goes_on(&self) -> Result<()> {
        for (_, load) in &self.0 {
            load.wait_for(50, lab_support::PATIENCE)?;
        }
        Ok(())
    }

    /// Failed requests of all kinds.
    fn stop(self) -> Result<u64> {
        let mut failed = 0;
        for (_, load) in self.0 {
            failed += load.stop()?.failed;
        }
        Ok(failed)
    }

    fn assert_nothing_lost(self, what: &str) -> Result<()> {
        for (kind, load) in self.0 {
            let report = load.stop()?;
            println!("{what}: {kind:?}: {} answered", report.ok);
            assert_eq!(
                (report.failed, report.moved),
                (0, 0),
                "{what}: {kind:?}: {:?}",
                report.errors
            );
        }
        Ok(())
    }
}
