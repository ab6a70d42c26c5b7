//! Packets to a backend whose next hop is not known wait for it and lose nothing; what waits in vain is told.

mod lab_support;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::{Capture, Proto, Topology, require_root};
use lab_support::{Bed, LbFile, eventually, vip_v4, vip_v6};
use lb::control::NextHopKind;

const BOTH: [Proto; 2] = [Proto::Tcp, Proto::Udp];
/// VIPs on the set `v4`: a neighbour of the LB node; and on the set `v6`.
const VIPS: [fn() -> SocketAddr; 4] = [|| vip_v4(4, 80), || vip_v6(4, 80), || vip_v4(6, 80), || vip_v6(6, 80)];

fn bed(more: &str) -> Result<Bed> {
    let topology = Topology::builder().workers(1).on_link().build()?;
    // The kernel asks once a second otherwise: as seldom as clients send their SYN again.
    for family in ["ipv4", "ipv6"] {
        let key = format!("net/{family}/neigh/eth0/retrans_time_ms");
        topology.lb(0).ns().sysctl(&key, "100")?;
    }
    Bed::start(topology, |topology, lb| {
        let on = |last: u8| {
            let both = [vip_v4(last, 80), vip_v6(last.into(), 80)].into_iter();
            both.flat_map(|vip| BOTH.map(|proto| (proto, vip))).collect::<Vec<_>>()
        };
        LbFile::new(topology, lb)
            .vips(&on(4), "v4")
            .vips(&on(6), "v6")
            .more(more)
    })
}

fn unresolved(bed: &Bed) -> Result<usize> {
    let backends = bed.lb().backends()?;
    Ok(backends
        .iter()
        .filter(|view| matches!(view.next_hop, NextHopKind::Unresolved { .. }))
        .count())
}

/// Takes the worker off the segment until the LB node has forgotten it.
fn lose(bed: &Bed) -> Result<()> {
    bed.topology.router().ns().ip(&["link", "set", "dev", "w1", "down"])?;
    let lb = bed.topology.lb(0).ns();
    eventually("the LB node forgets the worker", || {
        lb.sh("ip neigh flush dev eth0 to 10.40.0.11")?;
        lb.sh("ip neigh flush dev eth0 to fd00:40::11")?;
        Ok(unresolved(bed)? == 2)
    })?;
    Ok(())
}

/// Requests, all at the same time, that start while the worker is away and go on until it has been back for a while.
fn requests(bed: &Bed) -> Result<(usize, usize)> {
    const EACH: usize = 4;
    lose(bed)?;
    let client = bed.topology.client();
    std::thread::scope(|scope| {
        let threads: Vec<_> = VIPS
            .iter()
            .map(|vip| scope.spawn(move || client.try_udp_get(vip(), EACH)))
            .collect();
        std::thread::sleep(Duration::from_millis(400));
        bed.topology.router().ns().ip(&["link", "set", "dev", "w1", "up"])?;
        let (mut ok, mut lost) = (0, 0);
        for thread in threads {
            for outcome in thread.join().expect("a thread")? {
                match outcome {
                    Ok(_) => ok += 1,
                    Err(_) => lost += 1,
                }
            }
        }
        Ok((ok, lost))
    })
}

#[test]
fn requests_wait_until_the_next_hop_is_known_and_none_is_lost() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let all = 4 * VIPS.len();
    let bed = bed("")?;
    let before = bed.lb().slow()?;
    assert_eq!(requests(&bed)?, (all, 0), "{:?}\n{}", bed.lb().slow()?, bed.lb().log()?);
    let seen = bed.lb().slow()?.since(&before);
    println!("{seen:?}");
    assert_eq!(seen["next_hop/forwarded"], all as u64, "{seen:?}");
    // The twin: without the slow path what comes meanwhile is lost.
    bed.lb().reload_lb(&bed.file().more("slow_path: { enabled: false }"))?;
    let (_, lost) = requests(&bed)?;
    assert_eq!(lost, all);
    Ok(())
}

#[test]
fn a_connection_that_starts_meanwhile_is_opened_by_the_syn_that_waited() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("")?;
    lose(&bed)?;
    let client = bed.topology.client();
    std::thread::scope(|scope| {
        let request = scope.spawn(|| {
            let start = Instant::now();
            client.http_get(vip_v4(4, 80), 1).map(|_| start.elapsed())
        });
        std::thread::sleep(Duration::from_millis(200));
        bed.topology.router().ns().ip(&["link", "set", "dev", "w1", "up"])?;
        let took = request.join().expect("a thread")?;
        println!("answered {took:?} after the first SYN");
        // The SYN that waited went; the kernel asks for a neighbour once a second, so the client may have sent another by then.
        assert!(bed.lb().slow()?.of("next_hop/forwarded") >= 1);
        Ok(())
    })
}

#[test]
fn a_backend_that_is_not_there_is_host_unreachable() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // Without transit, or datagrams go on to who was there before.
    let bed = bed("slow_path: { hold: { timeout_ms: 500 } }\ntransit: { enabled: false }")?;
    let mut file = bed.file();
    *file.members("v4") = vec![("ghost".to_owned(), "10.40.0.222".parse::<IpAddr>()?, 100)];
    *file.members("v6") = vec![("ghost-v6".to_owned(), "fd00:40::222".parse::<IpAddr>()?, 100)];
    bed.lb().reload_lb(&file)?;
    let client = bed.topology.client().with_timeout(Duration::from_secs(3));
    let capture = Capture::start(client.ns(), "eth0", "icmp or icmp6")?;
    for vip in VIPS {
        let start = Instant::now();
        let error = format!("{:#}", client.connect(vip()).expect_err("nobody is there"));
        let took = start.elapsed();
        assert!(error.contains("No route to host"), "{}: {error} after {took:?}", vip());
        assert!(
            (Duration::from_millis(400)..Duration::from_secs(2)).contains(&took),
            "{took:?}"
        );
        let quick = bed.topology.client().with_timeout(Duration::from_millis(700));
        assert!(quick.udp_get(vip(), 1).is_err());
    }
    let captured = capture.stop()?;
    let v4 = "icmp.type == 3 && icmp.code == 1 && icmp.checksum.status == 1";
    let v6 = "icmpv6.type == 1 && icmpv6.code == 3 && icmpv6.checksum.status == 1";
    for (filter, transport) in [(v4, "tcp"), (v4, "udp"), (v6, "tcp"), (v6, "udp")] {
        assert!(
            captured.count(&format!("{filter} && {transport}"))? >= 2,
            "{filter} {transport}"
        );
    }
    Ok(())
}
