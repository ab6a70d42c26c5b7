//! Daemons that wait for their cluster: alive to who asks, not ready, and they say what they wait for.

mod lab_support;

use anyhow::{Context as _, Result};
use lab::{Topology, require_root};
use lab_support::{Cluster, Daemon, METRICS, NAMESPACE, Scrape, eventually};
use lb::control::KubeView;
use serde_json::json;

/// What it waits for, in its own words.
fn waits(kube: &KubeView) -> Vec<&str> {
    kube.waiting.iter().map(|wait| &*wait.what).collect()
}

/// Before it serves: it says so, is alive to who asks, and not ready.
fn assert_waits(daemon: &Daemon, wait: &str) -> Result<()> {
    let status = daemon.status()?;
    assert!(!status.serving && status.interfaces.is_empty(), "{status:?}");
    let text = daemon.cli(&["status"])?;
    assert!(
        text.contains("NOT YET") && text.contains(&format!("WAITS for {wait}, for ")),
        "{text}"
    );
    assert!(daemon.cli(&["status", "--ready"]).is_err(), "{text}");
    let refused = daemon.cli(&["counters"]).expect_err("there is none").to_string();
    assert!(
        refused.contains("nothing is served yet") && refused.contains(wait),
        "{refused}"
    );
    Ok(())
}

#[test]
fn a_daemon_that_waits_for_the_cluster_says_what_for_and_since_when() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    const SETS: &str = "a complete NodeSet";
    let topology = Topology::builder().workers(1).build()?;
    let cluster = Cluster::start(&topology)?;
    let (to_lb, to_worker) = (cluster.endpoint(topology.lb(0)), cluster.endpoint(topology.worker(0)));
    to_lb.close();
    to_worker.close();
    let lines = format!("interfaces: [eth0]\nmetrics: {{ listen: {METRICS} }}\n");
    let mut lb = cluster.spawn_with("run", topology.lb(0), &lines)?;
    let mut node = cluster.spawn("node", topology.worker(0))?;
    let kube = |daemon: &Daemon| -> Result<KubeView> { daemon.status()?.kube.context("a cluster in the status") };
    for daemon in [&lb, &node] {
        eventually("it answers", || Ok(daemon.status().is_ok()))?;
        eventually("and misses the API server", || Ok(!kube(daemon)?.away.is_empty()))?;
        eventually("for some time", || Ok(kube(daemon)?.waiting[0].seconds > 0))?;
    }
    assert_eq!(waits(&kube(&lb)?), ["the first lists of VipTables and NodeSets", SETS]);
    assert_eq!(waits(&kube(&node)?), ["the TunnelConfig"]);
    assert_waits(&lb, SETS)?;
    assert_waits(&node, "the TunnelConfig")?;
    assert_eq!(lb.cli(&["kube", "accept"])?, "nothing is held\n");
    let shown = Scrape::of(topology.lb(0))?;
    let away = "vipline_kube_watch_away{resource=\"nodesets\"}";
    assert_eq!(
        (shown.value("vipline_serving"), shown.value(away)),
        (Some(0.0), Some(1.0))
    );
    assert_eq!(shown.value("vipline_vips"), None);
    let refused = node.cli(&["kube", "accept"]).expect_err("it holds nothing").to_string();
    assert!(refused.contains("only an LB node"), "{refused}");

    // The API server is heard, and has no NodeSet: that wait goes on as long as it does.
    let deleted = cluster.server.delete("nodesets", NAMESPACE, "workers-0");
    assert!(deleted.is_ok(), "{deleted:?}");
    let before = kube(&lb)?.waiting[1].seconds;
    to_lb.reopen()?;
    eventually("only the NodeSet is missing", || Ok(waits(&kube(&lb)?) == [SETS]))?;
    let view = kube(&lb)?;
    assert!(view.waiting[0].seconds >= before && before > 0, "{view:?}");
    assert_waits(&lb, SETS)?;

    cluster.put_workers(&topology, lab_support::FINGERPRINT);
    to_worker.reopen()?;
    for daemon in [&mut lb, &mut node] {
        daemon.ready()?;
        daemon.cli(&["status", "--ready"])?;
        let status = daemon.status()?;
        assert_eq!(waits(&status.kube.context("a cluster")?), [""; 0]);
        assert!(status.uptime_s >= before, "it counts from the daemon's start");
    }
    // From the watch's word to the maps.
    let changes = || -> Result<f64> {
        std::thread::sleep(lb::metrics::KEPT);
        let shown = Scrape::of(topology.lb(0))?;
        assert_eq!(shown.value("vipline_serving"), Some(1.0));
        Ok(shown
            .value("vipline_programming_delay_seconds_count")
            .unwrap_or_default())
    };
    let before = changes()?;
    let revision = cluster.put_table("shop.web", "203.0.113.1", 80, &json!({"nodeSet": {"name": "workers"}}));
    eventually("the table is in the maps", || {
        Ok(cluster.programmed(topology.lb(0).name()) >= revision)
    })?;
    assert_eq!(changes()?, before + 1.0);
    let shown = Scrape::of(topology.lb(0))?;
    let all = shown.value("vipline_programming_delay_seconds_bucket{le=\"+Inf\"}");
    assert_eq!(all, shown.value("vipline_programming_delay_seconds_count"));
    assert_eq!(Some(lb.status()?.kube.context("a cluster")?.changes as f64), all);
    Ok(())
}
