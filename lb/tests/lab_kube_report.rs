//! What an LB node says of itself in a cluster: how often, with whom it goes, and since when it knows what it knows.

mod lab_support;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use lab::{Topology, require_root};
use lab_support::{Cluster, NAMESPACE, PATIENCE, eventually};
use serde_json::json;

#[test]
fn an_lb_node_writes_of_itself_once_a_second_at_most() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let cluster = Cluster::start(&topology)?;
    let writes = cluster.server.writes();
    let _lb = cluster.spawn("run", topology.lb(0))?;
    let start = Instant::now();
    let (mut times, mut port) = (Vec::new(), 80);
    while times.len() < 6 && start.elapsed() < PATIENCE {
        // There is something new to say all the time.
        port += 1;
        cluster.put_table(
            "shop.web",
            "203.0.113.1",
            port,
            &json!({"nodeSet": {"name": "workers"}}),
        );
        for _ in 0..20 {
            let written = writes.of("*", "lbnodes", "*");
            while (times.len() as u64) < written {
                times.push(start.elapsed());
            }
            sleep(Duration::from_millis(5));
        }
    }
    assert!(times.len() >= 6, "the control: it says something: {times:?}");
    // Requests take their time on a busy machine.
    let soonest = times.windows(2).map(|pair| pair[1] - pair[0]).min();
    assert!(soonest > Some(Duration::from_millis(500)), "{times:?}");
    Ok(())
}

#[test]
fn an_lb_node_that_was_a_node_goes_with_it_and_one_outside_of_the_cluster_stays() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().lbs(2).workers(1).build()?;
    let cluster = Cluster::start(&topology)?;
    let (inside, outside) = (topology.lb(0), topology.lb(1));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": inside.name()}});
    let put = || {
        cluster
            .server
            .create(node.clone())
            .map_err(|failure| anyhow!("{failure:?}"))
    };
    put()?;
    let _lbs = [cluster.spawn("run", inside)?, cluster.spawn("run", outside)?];
    let object = |resource: &str, name: &str| {
        let name = if resource == "leases" {
            format!("lb-{name}")
        } else {
            name.to_owned()
        };
        cluster.server.read(resource, NAMESPACE, &name)
    };
    let kinds = ["lbnodes", "leases"];
    let owners = |name: &str| {
        let owner = |kind: &str| Some(object(kind, name)?["metadata"]["ownerReferences"][0]["uid"].clone());
        kinds.map(owner)
    };
    eventually("all have reported", || {
        let name = |node: &lab::Node| kinds.iter().all(|kind| object(kind, node.name()).is_some());
        Ok(name(inside) && name(outside))
    })?;
    let uid = |name: &str| Some(cluster.server.read("nodes", "", name)?["metadata"]["uid"].clone());
    assert_eq!(owners(inside.name()), [uid(inside.name()), uid(inside.name())]);
    assert_eq!(owners(outside.name()), [Some(json!(null)), Some(json!(null))]);

    let deleted = cluster.server.delete("nodes", "", inside.name());
    deleted.map_err(|failure| anyhow!("{failure:?}"))?;
    let is_gone = || kinds.iter().all(|kind| object(kind, inside.name()).is_none());
    eventually("both are gone", || Ok(is_gone()))?;
    // Its daemon lives, and renews a Lease every 10 s: what is written anew before it knows goes, too.
    sleep(Duration::from_secs(11));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        assert!(is_gone(), "it came back");
        sleep(Duration::from_millis(50));
    }
    assert!(
        kinds.iter().all(|kind| object(kind, outside.name()).is_some()),
        "the control"
    );

    put()?;
    eventually("it is back", || {
        Ok(!kinds.iter().any(|kind| object(kind, inside.name()).is_none()))
    })?;
    assert_eq!(owners(inside.name()), [uid(inside.name()), uid(inside.name())]);
    Ok(())
}

#[test]
fn ready_says_what_is_not_heard_of_and_since_when() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let cluster = Cluster::start(&topology)?;
    cluster.put_table("shop.web", "203.0.113.1", 80, &json!({"nodeSet": {"name": "workers"}}));
    let mut lb = cluster.spawn("run", topology.lb(0))?;
    lb.ready()?;
    let name = topology.lb(0).name();
    let message = || {
        let node = cluster.lb_node(name).unwrap_or_default();
        node["status"]["conditions"][0]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    const WELL: &str = "serves what it was told";
    eventually("it serves", || Ok(message() == WELL))?;
    let faults = cluster.server.faults();
    let before = jiff::Timestamp::now();
    faults.fail_always("*", "viptables", 403);
    faults.drop_watches();
    eventually("it says so", || {
        Ok(message().contains("; VipTables cannot be watched since "))
    })?;
    let text = message();
    assert!(text.starts_with(WELL) && text.contains("forbidden"), "{text}");
    let since = text.split("since ").nth(1).and_then(|rest| rest.split_once(": "));
    let since: jiff::Timestamp = since.context("a time")?.0.parse()?;
    let late = since.duration_since(before).as_secs();
    assert!((-1..20).contains(&late), "{late} s after it began: {text}");
    assert_eq!(cluster.ready(name), "True Serves");
    faults.clear();
    eventually("all is well", || Ok(message() == WELL))?;
    Ok(())
}
