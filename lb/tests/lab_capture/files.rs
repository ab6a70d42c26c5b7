//! What a capture says of packets.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::bed::{Capture, bed, capinfos, is_on, is_over, tshark};
use crate::lab_support::{eventually, vip_v4, vip_v6};
use anyhow::{Context as _, Result};
use lab::require_root;
use lb::control::SampleView;

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
