//! Many backends, many routes, and how long a change takes.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use lab::require_root;
use lb_core::nexthop::NextHopView;

use super::bed::*;

#[test]
fn thousands_of_backends_behind_one_gateway_change_at_once() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    bed.lb
        .ip_batch("route add 198.18.0.0/15 via 10.0.0.2\nneigh add 10.0.1.2 lladdr 02:00:00:00:01:02 dev eth1\n")?;
    let addresses: Vec<_> = (0..10_000_u32)
        .map(|i| (i.to_string(), IpAddr::from((0xc612_0000 + i).to_be_bytes())))
        .collect();
    let backends = addresses.iter().map(|(name, address)| (id(name), *address)).collect();
    let mut followed = bed.start(&[])?;
    followed.driver.set_backends(backends);
    let all = |view: &NextHopView, mac| {
        view.next_hops.len() == 10_000 && (0..10_000).all(|i| is_via(view, &i.to_string(), mac))
    };
    report(
        "10,000 backends set, until all are resolved",
        followed.until("all", |view| all(view, GW_MACS[0]))?,
    );
    bed.ip("route replace 198.18.0.0/15 via 10.0.1.2")?;
    report(
        "10,000 backends, route moved",
        followed.until("all", |view| all(view, GW_MACS[1]))?,
    );
    bed.ip("route add 198.18.0.7/32 via 10.0.0.2")?;
    report(
        "10,000 backends, one moved",
        followed.until("one", |view| is_via(view, "7", GW_MACS[0]))?,
    );
    // A storm: more messages than the receive buffer takes.
    let storm: String = (0..30_000_u32)
        .map(|i| {
            format!(
                "route add {}/32 via 10.0.0.2\n",
                IpAddr::from((0x6440_0000 + i).to_be_bytes())
            )
        })
        .collect();
    for (part, lines) in storm.lines().collect::<Vec<_>>().chunks(1_500).enumerate() {
        bed.lb
            .ip_batch(&(lines.join("\n") + "\n"))
            .with_context(|| format!("part {part}"))?;
    }
    bed.ip("route replace 198.18.0.0/15 via 10.0.0.2")?;
    report(
        "the same after 30,000 routes",
        followed.until("all", |view| all(view, GW_MACS[0]))?,
    );
    Ok(())
}

#[test]
fn how_long_a_change_takes() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::new()?;
    route_gateways(&bed)?;
    let mut followed = bed.start(&[("v4", "192.0.2.1"), ("other", "10.0.1.2")])?;
    followed.until_via("other", GW_MACS[1])?;
    let mut times = Vec::new();
    for round in 0..100 {
        let to = (round + 1) % 2;
        // Not in step with the driver's gap between passes.
        std::thread::sleep(Duration::from_millis(11 + round % 7));
        bed.ip(&format!("route replace 192.0.2.0/24 via 10.0.{to}.2"))?;
        times.push(followed.until_via("v4", GW_MACS[usize::try_from(to)?])?);
    }
    times.sort_unstable();
    report("route moved, 100 times: median", times[50]);
    report("route moved, 100 times: 99th of 100", times[98]);
    report("route moved, 100 times: worst", times[99]);
    Ok(())
}
