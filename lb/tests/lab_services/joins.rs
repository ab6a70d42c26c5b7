//! An LB node that joins in a transit: flows that began before it stay where they live, although the LB node that they come to has
//! never seen them; and the operator ends it when all LB nodes are silent.

#![allow(clippy::print_stdout, reason = "what was measured is shown with the test's output")]

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, anyhow};
use lab::{Conn, Topology, require_root};
use serde_json::{Value, json};

use crate::{
    HTTP, PROXY_DELAY, at,
    lab_support::{Daemon, NAMESPACE, eventually},
    site::{Pod, Site},
};

/// Connections of each age.
const OPEN: usize = 150;
/// Timeouts so short that a test can wait for them.
const SHORT: &str = "transit: { tcp_idle_timeout_s: 4, udp_idle_timeout_s: 2 }\n";

struct Bed {
    site: Site,
    vip: SocketAddr,
}

impl Bed {
    /// A Service on three workers, by the first of two LB nodes; the other is not there yet.
    fn start(lines: &str) -> Result<Self> {
        let topology = Topology::builder().lbs(2).workers(3).build()?;
        let site = Site::start_some(topology, PROXY_DELAY, true, 1, lines)?;
        let first = site.topology.lb(0);
        site.topology.route([203, 0, 113, 0].into(), 24, &[first])?;
        let vip = at(&site.serving("web", &HTTP, json!({}))?, 80)?;
        Ok(Self { site, vip })
    }

    fn open(&self) -> Result<Open> {
        let client = self.site.client();
        let mut open = Vec::new();
        for _ in 0..OPEN {
            let mut connection = client.connect(self.vip)?;
            let server = connection.get()?.server;
            open.push((connection, server));
        }
        Ok(open)
    }

    fn transit(&self) -> Value {
        let chunk = self.site.cluster.server.read("nodesets", NAMESPACE, "workers-0");
        chunk.unwrap_or_default()["spec"]["transit"].clone()
    }

    /// The third worker takes no new flows.
    fn exclude_one(&self) -> Result<()> {
        let label = json!({"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}});
        let merged = self.site.cluster.server.merge("nodes", "", "worker-3", "", label);
        merged.map_err(|failure| anyhow!("{failure:?}"))?;
        eventually("the transit is published", || Ok(self.transit().is_object()))?;
        eventually("the LB node has it", || {
            let backends = self.site.lbs[0].backends()?;
            Ok(backends.iter().any(|backend| backend.has_departed))
        })?;
        assert_eq!(self.transit()["departed"][0]["name"], "worker-3");
        Ok(())
    }

    /// The second LB node starts, and all flows come to it.
    fn move_over(&mut self, lines: &str) -> Result<()> {
        let second = self.site.topology.lb(1);
        let mut daemon: Daemon = self.site.cluster.spawn_lb(second, lines)?;
        daemon.ready()?;
        self.site.lbs.push(daemon);
        let second = self.site.topology.lb(1);
        self.site.topology.route([203, 0, 113, 0].into(), 24, &[second])
    }
}

/// How many are not answered by whom they were answered first; those that break are gone.
fn ask(open: &mut Open) -> usize {
    let before = open.len();
    open.retain_mut(|(connection, server)| connection.get().is_ok_and(|reply| reply.server == *server));
    before - open.len()
}

/// Connections, each with who answered first.
type Open = Vec<(Conn, String)>;

/// A bed in a transit, and connections of before and of after it began.
fn in_transit() -> Result<(Bed, Open, Open)> {
    let bed = Bed::start("")?;
    let old = bed.open()?;
    bed.exclude_one()?;
    let young = bed.open()?;
    Ok((bed, old, young))
}

#[test]
fn an_lb_node_that_joins_in_a_transit_keeps_the_connections_of_before() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (mut bed, mut old, mut young) = in_transit()?;
    assert_eq!(
        (ask(&mut old), ask(&mut young)),
        (0, 0),
        "the control: by the LB node that they have"
    );
    bed.move_over("")?;
    let broken = (ask(&mut old), ask(&mut young));
    println!("published: of {OPEN} old and {OPEN} young connections break {broken:?}");
    assert_eq!(broken.0, 0, "{}", bed.site.lbs[1].log()?);
    assert!(
        broken.1 < OPEN / 2,
        "young ones on moved slots, a third of them: {broken:?}"
    );
    Ok(())
}

/// The twin: nothing is published.
#[test]
fn without_what_is_published_they_break() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let (mut bed, mut old, mut young) = in_transit()?;
    let nothing = json!({"spec": {"transit": null}});
    let merged = bed
        .site
        .cluster
        .server
        .merge("nodesets", NAMESPACE, "workers-0", "", nothing);
    merged.map_err(|failure| anyhow!("{failure:?}"))?;
    assert_eq!(
        (ask(&mut old), ask(&mut young)),
        (0, 0),
        "the LB node that they have knows by itself"
    );
    bed.move_over("")?;
    let broken = (ask(&mut old), ask(&mut young));
    println!("nothing published: of {OPEN} old and {OPEN} young connections break {broken:?}");
    assert!(
        broken.0 > OPEN / 6,
        "a third lived at the worker that has left: {broken:?}"
    );
    assert!(bed.transit().is_null());
    Ok(())
}

#[test]
fn the_operator_ends_a_transit_when_every_lb_node_is_silent() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::start(SHORT)?;
    let mut old = bed.open()?;
    bed.exclude_one()?;
    bed.move_over(SHORT)?;
    // By the second; the first is silent for longer than its timeout.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(ask(&mut old), 0);
    }
    let knows = |lb: &Daemon| -> Result<bool> { Ok(lb.backends()?.iter().any(|backend| backend.has_departed)) };
    assert!(bed.transit().is_object(), "one of the two is not silent");
    assert!(
        knows(&bed.site.lbs[0])? && knows(&bed.site.lbs[1])?,
        "none ends it by itself"
    );
    drop(old);
    eventually("the operator ends it", || Ok(bed.transit().is_null()))?;
    eventually("and both LB nodes", || {
        Ok(!knows(&bed.site.lbs[0])? && !knows(&bed.site.lbs[1])?)
    })?;
    let replies = bed.site.client().http_get(bed.vip, 20)?;
    assert_eq!(replies.len(), 20);
    Ok(())
}

#[test]
fn a_table_of_policy_local_is_in_transit_until_nobody_speaks_any_more() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start_some(Topology::builder().workers(2).build()?, PROXY_DELAY, true, 1, SHORT)?;
    let vip = at(
        &site.serving("web", &HTTP, json!({"externalTrafficPolicy": "Local"}))?,
        80,
    )?;
    let transit = || -> Value {
        let table = site.cluster.server.read("viptables", NAMESPACE, "shop.web");
        table.unwrap_or_default()["spec"]["backends"]["local"]["transit"].clone()
    };
    eventually("what began it is over", || Ok(transit().is_null()))?;
    let (mut connection, client) = (site.client().connect(vip)?, site.client());
    let server = connection.get()?.server;
    let stays = usize::from(server != site.worker(1).name());
    let writes = site.cluster.server.writes();
    writes.reset();
    site.set_pods("web", &HTTP, &[Pod::ready(site.worker(stays))])?;
    eventually("the transit is published", || {
        Ok(transit()["nodes"][0]["name"] == *server)
    })?;
    for _ in 0..8 {
        std::thread::sleep(Duration::from_secs(1));
        let still = connection.get()?.server;
        assert_eq!(
            (&still, transit().is_object()),
            (&server, true),
            "its connection speaks"
        );
    }
    let began = writes.of("*", "viptables", "*");
    assert!(
        (1..=2).contains(&began),
        "one for the slice of each family: {:?}",
        writes.all()
    );
    drop(connection);
    eventually("the operator ends it", || Ok(transit().is_null()))?;
    assert_eq!(
        writes.of("*", "viptables", "*"),
        began + 1,
        "the end is a write of its own"
    );
    assert_eq!(client.http_get(vip, 10)?.len(), 10);
    Ok(())
}
