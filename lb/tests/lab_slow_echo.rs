//! Ping of VIP addresses: answered for every size while a backend can be reached, bounded, and not at all when none can.

mod lab_support;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::{Capture, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, eventually, vip_v4, vip_v6};

/// VIP addresses `.1` and `::1`, TCP, on all workers.
const VIPS: [fn() -> SocketAddr; 2] = [|| vip_v4(1, 80), || vip_v6(1, 80)];

fn bed(more: &str) -> Result<Bed> {
    let topology = Topology::builder().workers(1).on_link().build()?;
    Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb)
            .vips(&VIPS.map(|vip| (Proto::Tcp, vip())), "v4")
            .more(more)
    })
}

/// How many of `count` echo requests were answered, and right; one after the other, since `ping` gives the last of several only
/// twice the time that another took.
fn pong(bed: &Bed, address: IpAddr, count: u32, options: &str) -> Result<u32> {
    (0..count).map(|_| pongs(bed, address, 1, options)).sum()
}

/// As [`pong`], by one `ping`.
fn pongs(bed: &Bed, address: IpAddr, count: u32, options: &str) -> Result<u32> {
    let line = format!("ping -n -c {count} -W 1 {options} {address}");
    let said = bed.topology.client().ns().within(Duration::from_secs(10), &line)?.said;
    assert!(!said.contains("wrong") && !said.contains("DUP"), "{said}");
    let received = said.split(" received").next().and_then(|text| text.rsplit(' ').next());
    Ok(received
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{line}: {said}")))
}

#[test]
fn echo_requests_of_every_size_are_answered_with_what_they_carried() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let capture = Capture::start(bed.topology.client().ns(), "eth0", "icmp or icmp6")?;
    for vip in VIPS {
        for size in [0, 1, 3, 15, 16, 17, 56, 57, 1400, 1452] {
            let answered = pong(&bed, vip().ip(), 2, &format!("-s {size}"))?;
            assert_eq!(answered, 2, "{size} bytes to {}", vip());
        }
    }
    assert_eq!(pong(&bed, vip_v4(1, 80).ip(), 1, "-s 1472 -M do")?, 1);
    let captured = capture.stop()?;
    let replies = captured.fields(
        "icmp.type == 0 || icmpv6.type == 129",
        &["ip.src", "ipv6.src", "icmp.checksum.status", "icmpv6.checksum.status"],
    )?;
    assert_eq!(replies.len(), 41);
    for reply in replies {
        let from_vip = reply[0] == "203.0.113.1" || reply[1] == "2001:db8:f00d::1";
        assert!(from_vip && (reply[2] == "1" || reply[3] == "1"), "{reply:?}");
    }
    assert_eq!(bed.lb().slow()?.of("echo/echo_reply"), 41);
    // No worker has seen any of it.
    assert_eq!(bed.lb().counted()?.fate("forward"), 0);
    Ok(())
}

#[test]
fn echo_requests_in_fragments_are_answered() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    for vip in VIPS {
        for size in [1473, 4000, 20_000, 65_000] {
            let answered = pong(&bed, vip().ip(), 2, &format!("-s {size}"))?;
            assert_eq!(answered, 2, "{size} bytes to {}: {:?}", vip(), bed.lb().slow()?);
        }
    }
    Ok(())
}

#[test]
fn without_the_slow_path_nobody_answers() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("slow_path: { enabled: false }")?;
    for vip in VIPS {
        let before = bed.lb().counted()?;
        assert_eq!(pong(&bed, vip().ip(), 2, "")?, 0);
        let counted = bed.lb().counted()?;
        let dropped: u64 = ["slow icmp", "drop no_slow_path"]
            .iter()
            .map(|verdict| counted.of(verdict) - before.of(verdict))
            .sum();
        assert!(dropped >= 2, "{:?}", counted.since(&before));
        bed.topology.client().http_get(vip(), 5)?;
    }
    Ok(())
}

#[test]
fn a_flood_is_answered_up_to_what_one_source_gets() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    for vip in VIPS {
        let before = bed.lb().slow()?;
        let answered = pongs(&bed, vip().ip(), 80, "-q -f")?;
        let seen = bed.lb().slow()?.since(&before);
        assert!(
            answered >= 79 && seen["echo/echo_reply"] == 80,
            "within the share: {answered}, {seen:?}"
        );
        std::thread::sleep(Duration::from_secs(1));
        let (before, start) = (bed.lb().slow()?, Instant::now());
        let answered = pongs(&bed, vip().ip(), 400, "-q -i 0.0005 -l 3")?;
        let most = 100.0 * (1.0 + start.elapsed().as_secs_f64()) + 1.0;
        let seen = bed.lb().slow()?.since(&before);
        println!("{}: {answered} of 400 answered, {seen:?}", vip());
        assert!(f64::from(answered) <= most, "{answered} of at most {most}");
        assert!(answered >= 90 && seen["echo/over_source_limit"] > 100, "{seen:?}");
        bed.topology.client().http_get(vip(), 5)?;
    }
    Ok(())
}

#[test]
fn a_vip_address_is_silent_while_none_of_its_vips_has_a_backend_that_can_be_reached() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    let ghost: [(&'static str, IpAddr); 2] = [("ghost", "10.40.0.222".parse()?), ("ghost-v6", "fd00:40::222".parse()?)];
    let answers = |expected: bool| -> Result<()> {
        for vip in VIPS {
            let before = bed.lb().slow()?;
            let wanted = if expected { 2 } else { 0 };
            let answered = pong(&bed, vip().ip(), 2, "")?;
            let seen = bed.lb().slow()?.since(&before);
            assert_eq!(answered, wanted, "{}: {seen:?}", vip());
            let what = if expected { "echo/echo_reply" } else { "echo/unhealthy" };
            assert_eq!(seen.get(what), Some(&2), "{seen:?}");
        }
        Ok(())
    };
    answers(true)?;
    // Nobody has that address; then: nobody takes flows.
    for (name, address, weight) in [
        (ghost[0].0, ghost[0].1, 100),
        (ghost[1].0, ghost[1].1, 100),
        ("worker-1", bed.topology.worker(0).addr_v4().into(), 0),
    ] {
        let mut file = bed.file();
        *file.members("v4") = vec![(name.to_owned(), address, weight)];
        bed.lb().reload_lb(&file)?;
        answers(false)?;
        bed.lb().reload_lb(&bed.file())?;
        eventually(
            "the backend is back",
            || Ok(pong(&bed, vip_v4(1, 80).ip(), 1, "")? == 1),
        )?;
        answers(true)?;
    }
    Ok(())
}
