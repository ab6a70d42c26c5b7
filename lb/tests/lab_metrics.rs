//! Metrics of a daemon at work: they agree with what it says elsewhere, and asking for them costs it nothing.

mod lab_support;

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::{Proto, Topology, require_root};
use lab_support::{Bed, LbFile, METRICS, Scrape, Vip, eventually, vip_v4};
use nix::sys::signal::Signal;

const VIP: &str = "address=\"203.0.113.1\",protocol=\"tcp\",port=\"80\"";

fn bed() -> Result<Bed> {
    let bed = Bed::simple(2, &[(Proto::Tcp, vip_v4(1, 80)), (Proto::Udp, vip_v4(1, 80))])?;
    bed.lb()
        .reload_lb(&bed.file().more(&format!("metrics: {{ listen: {METRICS} }}")))?;
    eventually("metrics are there", || Ok(Scrape::of(bed.topology.lb(0)).is_ok()))?;
    Ok(bed)
}

/// Once what was asked last is not given again.
fn scrape(bed: &Bed) -> Result<Scrape> {
    thread::sleep(lb::metrics::KEPT);
    Scrape::of(bed.topology.lb(0))
}

#[test]
fn metrics_say_what_the_other_commands_say_and_go_on_over_another_program_and_a_restart() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = bed()?;
    let before = scrape(&bed)?;
    assert_eq!(before.value("vipline_serving"), Some(1.0));
    assert_eq!(before.value("vipline_vips"), Some(2.0));
    assert_eq!(before.value("vipline_backends{state=\"resolved\"}"), Some(2.0));
    assert_eq!(before.value("vipline_config_stale"), Some(0.0));
    let (packets, bytes) = (
        format!("vipline_vip_packets_total{{{VIP}}}"),
        format!("vipline_vip_bytes_total{{{VIP}}}"),
    );
    assert_eq!(
        before.value(&packets),
        Some(0.0),
        "the control: nobody has asked anything"
    );
    bed.topology.client().http_get(vip_v4(1, 80), 40)?;
    let check = |bed: &Bed, what: &str| -> Result<f64> {
        let (shown, vips, backends) = (scrape(bed)?, bed.lb().vips()?, bed.lb().backends()?);
        let of_vips: u64 = vips.iter().map(|vip| vip.packets).sum();
        assert_eq!(shown.sum("vipline_vip_packets_total"), of_vips as f64, "{what}");
        let of_backends: u64 = backends.iter().map(|backend| backend.packets).sum();
        assert_eq!(shown.sum("vipline_backend_packets_total"), of_backends as f64, "{what}");
        let of_bytes: u64 = vips.iter().map(|vip| vip.bytes).sum();
        assert_eq!(shown.sum("vipline_vip_bytes_total"), of_bytes as f64, "{what}");
        assert!(shown.value(&bytes) > shown.value(&packets), "{what}");
        let forwarded = shown.value("vipline_packets_total{fate=\"forward\",reason=\"tx\"}");
        assert_eq!(forwarded, Some(bed.lb().counted()?.of("forward tx") as f64), "{what}");
        Ok(shown.value(&packets).unwrap_or_default())
    };
    let first = check(&bed, "after 40 requests")?;
    assert!(first >= 40.0 * 3.0, "{first}");

    // Another program, with maps of its own.
    let strict = "protection: { denied_sources: [192.0.2.0/24] }";
    let file = bed
        .file()
        .more(&format!("metrics: {{ listen: {METRICS} }}"))
        .more(strict);
    bed.lb().reload_lb(&file)?;
    assert!(bed.lb().log()?.contains("the program is replaced in place"));
    assert_eq!(
        check(&bed, "in another program")?,
        first,
        "nothing is lost, and nothing counted twice"
    );
    bed.topology.client().http_get(vip_v4(1, 80), 10)?;
    let second = check(&bed, "after 10 more")?;
    assert!(second > first);

    // Another process. What it finds is what was there, and what was counted while there was none.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let before = check(&bed, signal.as_str())?;
        bed.lbs[0].end(signal)?;
        assert!(Scrape::of(bed.topology.lb(0)).is_err(), "{signal}: nobody answers");
        bed.topology.client().http_get(vip_v4(1, 80), 10)?;
        bed.lbs[0].start_again()?;
        let after = check(&bed, signal.as_str())?;
        assert!(after >= before + 10.0 * 3.0, "{signal}: {after}, and {before} before");
    }

    // A file that is refused, and a good one again.
    let refused = bed.lb().reload("interfaces: []\n");
    assert!(refused.is_err());
    let stale = scrape(&bed)?;
    assert_eq!(stale.value("vipline_config_stale"), Some(1.0));
    let refused = stale.value("vipline_config_refused_seconds");
    assert!(refused >= stale.value("vipline_config_applied_seconds"), "{stale:?}");
    bed.lb().reload_lb(&file)?;
    assert_eq!(scrape(&bed)?.value("vipline_config_stale"), Some(0.0));

    // Without the key nothing listens.
    bed.lb().reload_lb(&bed.file())?;
    eventually("the port is closed", || Ok(Scrape::of(bed.topology.lb(0)).is_err()))?;
    assert_eq!(bed.lb().status()?.metrics, None);
    Ok(())
}

#[test]
fn a_flow_table_that_is_full_is_seen() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const RECORDS: usize = 1024;
    let bed = Bed::start(Topology::builder().workers(2).build()?, |topology, lb| {
        let mut file = LbFile::new(topology, lb)
            .more(&format!("metrics: {{ listen: {METRICS} }}"))
            .more(&format!("transit: {{ flow_records: {RECORDS} }}"));
        file.vips.push(Vip {
            options: ", scheduler: rr".to_owned(),
            ..Vip::new(Proto::Tcp, vip_v4(1, 80), "v4")
        });
        file
    })?;
    eventually("metrics are there", || Ok(Scrape::of(bed.topology.lb(0)).is_ok()))?;
    let of = |shown: &Scrape, kind: &str| shown.value(&format!("vipline_flows_unrecorded_total{{kind=\"{kind}\"}}"));
    let client = bed.topology.client();
    client.http_get(vip_v4(1, 80), RECORDS / 8)?;
    let before = scrape(&bed)?;
    assert_eq!(before.value("vipline_flow_table_capacity"), Some(RECORDS as f64));
    assert_eq!(
        before.sum("vipline_flows_unrecorded_total"),
        0.0,
        "the control: there is room"
    );
    // Records of connections that have ended stay for a while.
    client.http_get(vip_v4(1, 80), 2 * RECORDS)?;
    let shown = scrape(&bed)?;
    assert!(of(&shown, "scheduled") > Some(0.0), "{shown:?}");
    assert_eq!(of(&shown, "datagrams"), Some(0.0));
    let table = bed.lb().status()?.flow_table.context("flows are recorded")?;
    let unrecorded: u64 = table.unrecorded.iter().map(|(_, count)| count).sum();
    assert_eq!(shown.sum("vipline_flows_unrecorded_total"), unrecorded as f64);
    assert!(bed.lb().cli(&["status"])?.contains("NO ROOM for"));
    let counted = || -> Result<Option<f64>> { Ok(scrape(&bed)?.value("vipline_flow_table_records")) };
    let until = Instant::now() + Duration::from_secs(60);
    while counted()?.is_none_or(|records| records < 0.8 * RECORDS as f64) {
        assert!(
            Instant::now() < until,
            "the table is swept in half a minute: {:?}",
            counted()?
        );
    }
    assert!(counted()? <= Some(RECORDS as f64));
    Ok(())
}

#[test]
fn a_port_that_is_taken_keeps_nothing_from_being_served_and_is_tried_again() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::simple(1, &[(Proto::Tcp, vip_v4(1, 80))])?;
    let squatter = bed.topology.lb(0).ns().run(|| Ok(TcpListener::bind(METRICS)?))?;
    bed.lb()
        .reload_lb(&bed.file().more(&format!("metrics: {{ listen: {METRICS} }}")))?;
    let error = || -> Result<Option<String>> { Ok(bed.lb().status()?.metrics.and_then(|metrics| metrics.error)) };
    eventually("it is said", || Ok(error()?.is_some()))?;
    assert!(
        bed.lb()
            .cli(&["status"])?
            .contains("metrics    DOWN: cannot listen at 127.0.0.1:9430: ")
    );
    assert_eq!(bed.topology.client().http_get(vip_v4(1, 80), 5)?.len(), 5);
    drop(squatter);
    eventually("it is had", || Ok(error()?.is_none()))?;
    assert!(Scrape::of(bed.topology.lb(0)).is_ok());
    Ok(())
}

/// Scrapers without end, and more clients than there are places that say nothing: the daemon answers others as before, tables
/// change, and counters are read whole although they do.
#[test]
fn scrapes_do_not_disturb_the_loop() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed()?;
    let node = bed.topology.lb(0);
    let silent = node.ns().run(|| {
        let connect = || Ok(std::net::TcpStream::connect(METRICS)?);
        (0..6).map(|_| connect()).collect::<Result<Vec<_>>>()
    })?;
    let until = Instant::now() + Duration::from_secs(5);
    thread::scope(|scope| -> Result<()> {
        let scrapers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<u32> {
                    let mut scrapes = 0;
                    while Instant::now() < until {
                        let shown = Scrape::of(node)?;
                        assert!(matches!(shown.value("vipline_vips"), Some(1.0 | 2.0)), "{shown:?}");
                        scrapes += 1;
                    }
                    Ok(scrapes)
                })
            })
            .collect();
        let metrics = format!("metrics: {{ listen: {METRICS} }}");
        let mut fewer = bed.file().more(&metrics);
        fewer.vips.pop();
        let mut slowest = Duration::ZERO;
        while Instant::now() < until {
            for file in [&fewer, &bed.file().more(&metrics)] {
                bed.lb().reload_lb(file)?;
                let start = Instant::now();
                bed.lb().status()?;
                slowest = slowest.max(start.elapsed());
            }
            assert_eq!(bed.topology.client().http_get(vip_v4(1, 80), 2)?.len(), 2);
        }
        assert!(slowest < Duration::from_secs(2), "an answer took {slowest:?}");
        for scraper in scrapers {
            let scrapes = scraper.join().expect("a scraper that ends")?;
            assert!(scrapes > 0);
        }
        Ok(())
    })?;
    drop(silent);
    Ok(())
}
