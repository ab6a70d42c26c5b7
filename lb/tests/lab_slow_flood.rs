//! A flood of slow-path packets sheds slow-path work; the fast path does not lose a packet by it.

mod lab_support;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::{LinkKind, Proto, Topology, require_root};
use lab_support::{Bed, Datagram, LbFile, Wire, eventually, fragment, vip_v4, vip_v6};

const VIPS: [fn() -> SocketAddr; 2] = [|| vip_v4(1, 80), || vip_v6(1, 80)];
/// Rates to try, in packets a second: the first that the control run carries is taken.
const RATES: [u64; 4] = [100_000, 60_000, 30_000, 10_000];
const TIME: Duration = Duration::from_millis(1500);
/// The flood, in packets a second: what a test machine of two cores can send beside all else.
const FLOOD: u64 = 200_000;
/// Far less than the flood, also where other work leaves this test little of the machine.
const LIMITS: &str = "slow_path: { limits: { fragment: { per_second: 500 }, reject: { per_second: 500 } } }";

fn bed(more: &str) -> Result<Bed> {
    let topology = Topology::builder().workers(1).queues(2).build()?;
    // What leaves the LB node for a worker or for the flood's sources has been counted when it dies here, so that the machine has
    // time for what is tested.
    topology.router().ns().nft(
        "table netdev sink {
            chain sink {
                type filter hook ingress device \"lb1\" priority 10; policy accept;
                ip protocol 4 drop
                ip daddr 198.18.0.0/15 drop
            }
        }
",
    )?;
    Bed::start(topology, |topology, lb| {
        LbFile::new(topology, lb)
            .vips(&VIPS.map(|vip| (Proto::Udp, vip())), "v4")
            .more(more)
    })
}

/// Frames of many flows to a VIP.
fn plain() -> Result<Vec<Vec<u8>>> {
    let source = |port| Ok::<_, anyhow::Error>(SocketAddr::new("198.18.0.1".parse()?, port));
    (1000..1064)
        .map(|port| Ok(Datagram::new(source(port)?, vip_v4(1, 80), "fast").ip()))
        .collect()
}

/// A kind of flood: fragments whose first never comes, of many sources; or datagrams to a closed port.
fn flood(fragments: bool) -> Result<Vec<Vec<u8>>> {
    (0..512_u16)
        .map(|number| {
            let source = SocketAddr::new([198, 19, (number >> 8) as u8, number as u8].into(), 4000);
            let port = if fragments { 80 } else { 81 };
            let ip = Datagram::new(source, vip_v4(1, port), &"f".repeat(64)).ip();
            Ok(if fragments {
                fragment(&ip, u32::from(number), 16, 24)
            } else {
                ip
            })
        })
        .collect()
}

/// Gives the calling thread precedence over the flood's and over other tests: its rate is to be kept.
fn go_first() -> Result<()> {
    let renice = format!("-n -15 -p {}", nix::unistd::gettid());
    lab::output(std::process::Command::new("renice").args(renice.split(' '))).map(drop)
}

/// Sends `rate` packets a second, evenly, until told to stop or until the time is over; how many.
fn pace(wire: &Wire, packets: &[Vec<u8>], rate: u64, time: Duration, stop: &AtomicBool) -> u64 {
    let (start, mut sent) = (Instant::now(), 0_u64);
    let mut packets = packets.iter().cycle();
    while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
        for packet in packets.by_ref().take(due.saturating_sub(sent).min(32) as usize) {
            sent += u64::from(wire.send(packet).is_ok());
        }
        std::hint::spin_loop();
    }
    sent
}

/// What a run came to.
struct Ran {
    /// Packets of the fast path.
    sent: u64,
    /// Of them, those that did not come to the router, encapsulated.
    lost: u64,
    /// Packets of the flood.
    flooded: u64,
}

impl Ran {
    fn describe(&self) -> String {
        let per_second = |count: u64| count as f64 / TIME.as_secs_f64();
        format!(
            "{} of {} lost at {:.0} packets a second, beside {:.0} of the flood",
            self.lost,
            self.sent,
            per_second(self.sent),
            per_second(self.flooded)
        )
    }
}

/// Packets of the fast path at a rate, beside a flood or without one.
fn run(bed: &Bed, rate: u64, against: Option<&[Vec<u8>]>) -> Result<Ran> {
    let (wire, noise) = (Wire::to_lb(bed)?, Wire::to_lb(bed)?);
    let (packets, stop) = (plain()?, AtomicBool::new(false));
    let arrived = || Ok::<_, anyhow::Error>(bed.topology.router().counters()?.from(LinkKind::Lb).tunnel.packets);
    let before = arrived()?;
    let (sent, flooded) = std::thread::scope(|scope| -> Result<_> {
        let flood = against.map(|against| scope.spawn(|| pace(&noise, against, FLOOD, 10 * TIME, &stop)));
        let paced = scope.spawn(|| {
            go_first()?;
            Ok(pace(&wire, &packets, rate, TIME, &AtomicBool::new(false)))
        });
        let sent: Result<u64> = paced.join().expect("the pacer");
        stop.store(true, Ordering::Relaxed);
        Ok((sent?, flood.map_or(0, |flood| flood.join().expect("the flood"))))
    })?;
    let mut last = 0;
    eventually("the counters stand still", || {
        std::thread::sleep(Duration::from_millis(20));
        let now = arrived()? - before;
        Ok(std::mem::replace(&mut last, now) == now)
    })?;
    let lost = sent.saturating_sub(last);
    Ok(Ran { sent, lost, flooded })
}

/// Whether a run lost nothing at its whole rate.
fn carried(ran: &Ran, rate: u64) -> bool {
    ran.lost == 0 && ran.sent as f64 > 0.95 * rate as f64 * TIME.as_secs_f64()
}

#[test]
fn the_fast_path_loses_nothing_under_a_flood_of_the_slow_path() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(LIMITS)?;
    let mut outcome = None;
    for rate in RATES {
        let control = run(&bed, rate, None)?;
        println!("{rate} packets a second without a flood: {}", control.describe());
        if !carried(&control, rate) {
            continue;
        }
        let mut all = true;
        for fragments in [true, false] {
            let before = bed.lb().slow()?;
            let ran = run(&bed, rate, Some(&flood(fragments)?))?;
            let seen = bed.lb().slow()?.since(&before);
            println!("{rate}, fragments {fragments}: {}, slow path {seen:?}", ran.describe());
            assert_eq!(ran.lost, 0, "{}", ran.describe());
            all &= carried(&ran, rate);
        }
        outcome = Some(rate);
        // Where two cores are too few for both, the sender does not keep its rate: a lower one is tried.
        if all {
            break;
        }
    }
    outcome.context("the machine carries none of the rates without loss")?;
    // What was shed is told, by kind.
    let status: serde_json::Value = bed.lb().cli_json(&["status"])?;
    let shed = &status["slow_path"]["shed_by_fast_path"];
    println!("shed: {shed}");
    for reason in ["fragment", "unserved_port"] {
        let shed = shed
            .as_array()
            .and_then(|shed| shed.iter().find(|entry| entry[0] == reason));
        assert!(
            shed.is_some_and(|entry| entry[1].as_u64() > Some(0)),
            "{reason}: {status}"
        );
    }
    // And the slow path is there as before.
    for vip in VIPS {
        eventually("ping is answered", || {
            let ping = format!("ping -n -c 1 -W 0.5 {}", vip().ip());
            Ok(bed.topology.client().ns().within(Duration::from_secs(1), &ping)?.ok)
        })?;
    }
    Ok(())
}

#[test]
fn without_budgets_all_of_a_flood_is_handed_over() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    // The twin: what is shed above, and costs next to nothing, is all work of the slow path here.
    let open = "slow_path: { limits: { fragment: { per_second: 10000000 } } }";
    for (more, sheds) in [(LIMITS, true), (open, false)] {
        let bed = bed(more)?;
        let ran = run(&bed, RATES[RATES.len() - 1], Some(&flood(true)?))?;
        let (mut handed, mut shed) = (0, 0);
        eventually("all of the flood is counted", || {
            let counted = bed.lb().counted()?;
            (handed, shed) = (counted.of("slow fragment"), counted.of("drop slow_budget"));
            Ok(handed + shed >= ran.flooded)
        })?;
        println!("{}: {handed} handed over, {shed} shed", ran.describe());
        assert_eq!(handed + shed, ran.flooded);
        assert_eq!(shed > 0, sheds, "{shed} of {}", ran.flooded);
    }
    Ok(())
}

#[test]
fn one_kind_of_flood_sheds_that_kind_only() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed("slow_path: { limits: { reject: { per_second: 50 }, fragment: { per_second: 50 } } }")?;
    for fragments in [true, false] {
        let flood = flood(fragments)?;
        let (noise, stop) = (Wire::to_lb(&bed)?, AtomicBool::new(false));
        std::thread::scope(|scope| -> Result<()> {
            scope.spawn(|| {
                for packet in flood.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let _ = noise.send(packet);
                }
            });
            let said = VIPS.map(|vip| {
                let ping = format!("ping -n -c 20 -i 0.02 -W 1 {}", vip().ip());
                bed.topology.client().ns().within(Duration::from_secs(5), &ping)
            });
            stop.store(true, Ordering::Relaxed);
            for said in said {
                let said = said?.said;
                assert!(said.contains(" 20 received"), "{said}");
            }
            Ok(())
        })?;
    }
    let slow = bed.lb().status()?.slow_path.context("no slow path")?;
    println!("{:?}", slow.shed_by_fast_path);
    for reason in ["fragment", "unserved_port"] {
        let shed = slow.shed_by_fast_path.iter().find(|(name, _)| name == reason);
        assert!(
            shed.is_some_and(|(_, count)| *count > 1000),
            "{reason}: {:?}",
            slow.shed_by_fast_path
        );
    }
    assert_eq!(slow.shed_by_fast_path.len(), 2, "{:?}", slow.shed_by_fast_path);
    // Reject and fragment: what the buckets bring in the time the test takes, and not more.
    for kind in slow
        .kinds
        .iter()
        .filter(|kind| ["reject", "fragment"].contains(&kind.kind.as_str()))
    {
        println!("{kind:?}");
        assert!(kind.answered + kind.forwarded <= 50 * 20, "{kind:?}");
    }
    Ok(())
}
