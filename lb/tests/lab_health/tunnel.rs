//! A node that serves everything but what comes through the tunnel.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Proto, Topology, require_root};
use nix::sys::signal::Signal;

use crate::{
    lab_support::{Bed, LbFile, count_servers, eventually, vip_v4, vip_v6},
    site::{PORT, Says},
};

#[test]
fn a_node_that_does_not_decapsulate_is_found_through_the_tunnel_and_by_nothing_else() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(3).build()?;
    let says = topology.workers().iter().map(Says::start).collect::<Result<Vec<_>>>()?;
    let mut bed = Bed::start(topology, |topology, lb| {
        let health =
            format!("type: tcp, port: {PORT}, tunnel: true, interval_ms: 500, timeout_ms: 500, damping_ms: 500");
        LbFile::new(topology, lb)
            .vips(&[(Proto::Tcp, vip_v4(1, 80)), (Proto::Udp, vip_v4(1, 80))], "v4")
            .vips(&[(Proto::Tcp, vip_v6(1, 80))], "v6")
            .more(&format!("health: {{ {health} }}"))
    })?;
    // VIPs have to settle first: longer than one waits elsewhere.
    let states = |bed: &Bed, kind: &str| -> Result<Vec<(String, String)>> {
        let of = |backend: lb::control::BackendView| {
            let check = backend.checks.into_iter().find(|check| check.check.starts_with(kind));
            (backend.name, check.map(|check| check.state).unwrap_or_default())
        };
        Ok(bed.lb().backends()?.into_iter().map(of).collect())
    };
    let wait = |bed: &Bed, what: &str, holds: &dyn Fn(&(String, String)) -> bool| -> Result<()> {
        let start = Instant::now();
        while !states(bed, "tunnel")?.iter().all(holds) {
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "not {what}: {:?}, {:?}",
                states(bed, "tunnel")?,
                bed.lb().status()?.health
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    assert_eq!(
        states(&bed, "tunnel")?.len(),
        6,
        "three nodes, by address of either family"
    );
    wait(&bed, "all healthy", &|(_, state)| state == "healthy")?;

    // The agent of one node goes; the node itself is as well as before.
    bed.nodes[1].end(Signal::SIGTERM)?;
    let fell = |(name, state): &(String, String)| (state == "unhealthy") == name.starts_with("worker-2");
    wait(&bed, "worker-2 alone unhealthy", &fell)?;
    assert!(states(&bed, "tcp")?.iter().all(|(_, state)| state == "healthy"));
    let backend = bed.lb().backend("worker-2")?;
    let reason = backend.checks.iter().find_map(|check| check.reason.clone());
    assert_eq!(reason.as_deref(), Some("no answer from the VIP through the tunnel"));

    // Whoever comes is served by the others.
    eventually("new connections go to the others", || {
        let client = bed.topology.client().with_timeout(Duration::from_millis(300));
        Ok(client.try_http_get(vip_v4(1, 80), 20)?.iter().all(Result::is_ok))
    })?;
    let counts = count_servers(&bed.topology.client().http_get(vip_v4(1, 80), 100)?);
    assert_eq!(counts.len(), 2, "{counts:?}");

    bed.nodes[1].start_again()?;
    wait(&bed, "all healthy again", &|(_, state)| state == "healthy")?;
    // Every connection that a probe began was ended by it: what is left is what is under way.
    let open = |bed: &Bed| {
        bed.servers
            .iter()
            .map(lab::Server::connections)
            .max()
            .unwrap_or_default()
    };
    eventually("no connection is left behind", || Ok(open(&bed) <= 2))?;
    drop(says);
    Ok(())
}
