//! LB nodes and workers that a cluster tells what to do: real traffic, tables put by hand into the API server's double.

mod lab_support;

use std::{collections::BTreeSet, fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lab::{Proto, Server, Topology, require_root};
use lab_support::{Cluster, Daemon, NAMESPACE, assert_spread, count_servers, eventually, vip_v4, vip_v6};
use lb::control::{AcceptView, KubeView, Request};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn all_workers() -> Value {
    json!({"nodeSet": {"name": "workers"}})
}

/// A cluster, a worker agent on every worker, and an LB node's daemon that does not serve yet.
struct Bed {
    lb: Daemon,
    nodes: Vec<Daemon>,
    _servers: Vec<Server>,
    cluster: Cluster,
    topology: Topology,
}

const VIPS: [(Proto, u8); 4] = [(Proto::Tcp, 1), (Proto::Udp, 1), (Proto::Tcp, 2), (Proto::Tcp, 3)];

impl Bed {
    fn start(workers: u8, prepare: impl FnOnce(&Cluster)) -> Result<Self> {
        let topology = Topology::builder().workers(workers).build()?;
        let mut vips: Vec<(Proto, SocketAddr)> = VIPS.iter().map(|(proto, last)| (*proto, vip_v4(*last, 80))).collect();
        vips.push((Proto::Tcp, vip_v6(1, 80)));
        let servers = topology.serve(&vips)?;
        let cluster = Cluster::start(&topology)?;
        prepare(&cluster);
        let nodes = topology.workers().iter().map(|worker| cluster.spawn("node", worker));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        let lb = cluster.spawn("run", topology.lb(0))?;
        let mut bed = Self {
            lb,
            nodes,
            _servers: servers,
            cluster,
            topology,
        };
        bed.nodes.iter_mut().try_for_each(Daemon::ready)?;
        Ok(bed)
    }

    /// With the VIP .1 on all workers, served.
    fn serving(workers: u8) -> Result<Self> {
        let mut bed = Self::start(workers, |cluster| {
            cluster.put_table("shop.web", "203.0.113.1", 80, &all_workers());
        })?;
        bed.lb.ready()?;
        Ok(bed)
    }

    fn name(&self) -> &str {
        self.topology.lb(0).name()
    }

    fn kube(&self) -> Result<KubeView> {
        self.lb.status()?.kube.context("a cluster in the status")
    }

    /// Every request is answered.
    fn assert_served(&self, last: u8) -> Result<BTreeSet<String>> {
        let replies = self.topology.client().http_get(vip_v4(last, 80), 20)?;
        Ok(replies.into_iter().map(|reply| reply.server).collect())
    }

    fn is_served(&self, last: u8) -> Result<bool> {
        let client = self.topology.client().with_timeout(Duration::from_millis(300));
        Ok(client.try_http_get(vip_v4(last, 80), 1)?.iter().all(Result::is_ok))
    }

    fn wait_for_vips(&self, vips: usize) -> Result<()> {
        eventually(&format!("{vips} VIPs are in the maps"), || {
            Ok(self.lb.status()?.vips == vips)
        })?;
        Ok(())
    }

    /// Until the watch of tables does not stand any more.
    fn wait_until_away(&self) -> Result<()> {
        eventually("the API server is missed", || Ok(!self.kube()?.away.is_empty()))?;
        Ok(())
    }

    fn wait_until_connected(&self) -> Result<()> {
        eventually("the API server is heard again", || {
            Ok(self.kube()?.connected_s.is_some())
        })?;
        Ok(())
    }
}

#[test]
fn a_table_is_served_and_the_node_says_so() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::start(3, |_| ())?;
    bed.lb.ready()?;
    assert!(!bed.is_served(1)?, "the control: no table, no VIP");
    let mut spec = lab_support::table("203.0.113.1", 80);
    spec["addresses"] = json!([
        {"address": "203.0.113.1", "pool": "pool", "use": "LoadBalancer"},
        {"address": "2001:db8:f00d::1", "pool": "pool", "use": "LoadBalancer"},
    ]);
    let revision = bed.cluster.put("VipTable", "shop.web", spec);
    eventually("the LB node reports the table", || {
        Ok(bed.cluster.programmed(bed.name()) >= revision)
    })?;
    let client = bed.topology.client();
    let replies = client.http_get(vip_v4(1, 80), 300)?;
    let names: Vec<String> = bed
        .topology
        .workers()
        .iter()
        .map(|node| node.name().to_owned())
        .collect();
    let even: Vec<(&str, u32)> = names.iter().map(|name| (&**name, 1)).collect();
    assert_spread("to all workers", &count_servers(&replies), &even);
    assert_eq!(client.http_get(vip_v6(1, 80), 10)?.len(), 10);
    assert_eq!(client.udp_get(vip_v4(1, 80), 10)?.len(), 10);

    let lb_node = bed.cluster.lb_node(bed.name()).context("an LbNode")?;
    let programmed = &lb_node["status"]["programmed"];
    assert_eq!(programmed["vips"], json!(4), "{lb_node}");
    assert_eq!(programmed["failingCount"], json!(0));
    assert!(
        programmed["nodeSets"].as_str().is_some_and(|text| !text.is_empty()),
        "{lb_node}"
    );
    assert_eq!(bed.cluster.ready(bed.name()), "True Serves");
    let sources: Vec<&str> = lb_node["spec"]["tunnelSources"]
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let own = bed.topology.lb(0);
    for address in [format!("{}/32", own.addr_v4()), format!("{}/128", own.addr_v6())] {
        assert!(sources.contains(&&*address), "{address} in {sources:?}");
    }
    let lease = bed
        .cluster
        .server
        .read("leases", NAMESPACE, &format!("lb-{}", bed.name()))
        .context("a Lease")?;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], json!(40));
    assert_eq!(lease["spec"]["holderIdentity"], json!(bed.name()));
    let status = bed.kube()?;
    assert!(
        status.connected_s.is_some() && status.delay_p99_ms.is_some(),
        "{status:?}"
    );
    assert!(bed.lb.cli(&["status"])?.contains("connected for"));

    bed.cluster.delete_table("shop.web");
    bed.wait_for_vips(0)?;
    assert!(!bed.is_served(1)?);
    // Others would not know of it.
    let refused = bed
        .lb
        .cli(&["drain", "backend", "worker-1"])
        .err()
        .map(|error| format!("{error:#}"));
    let refused = refused.context("a drain that only this node knows of")?;
    assert!(
        refused.contains("--kube") && refused.contains("told by a cluster"),
        "{refused}"
    );
    Ok(())
}

#[test]
fn policy_local_follows_the_weights_and_a_bad_table_fails_alone() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::serving(3)?;
    let [a, b, c] = [0, 1, 2].map(|index| bed.topology.worker(index).name());
    let local = |nodes: &[(&str, u16)]| {
        let node = |(name, weight): &(&str, u16)| json!({"name": name, "ipv4": weight});
        json!({"local": {"set": "workers", "tableSlots": 4096, "nodes": nodes.iter().map(node).collect::<Vec<_>>()}})
    };
    bed.cluster
        .put_table("shop.web", "203.0.113.1", 80, &local(&[(a, 3), (b, 1)]));
    let revision = bed
        .cluster
        .put_table("shop.other", "203.0.113.2", 80, &local(&[(c, 1), ("gone", 7)]));
    eventually("both are reported", || {
        Ok(bed.cluster.programmed(bed.name()) >= revision)
    })?;
    let replies = bed.topology.client().http_get(vip_v4(1, 80), 400)?;
    assert_spread("by weight", &count_servers(&replies), &[(a, 3), (b, 1)]);
    assert_eq!(bed.assert_served(2)?, BTreeSet::from([c.to_owned()]));

    // An address of a node; a VIP of another, older table.
    let worker = bed.topology.worker(0).addr_v4().to_string();
    bed.cluster.put_table("shop.other", &worker, 80, &all_workers());
    let revision = bed.cluster.put_table("shop.young", "203.0.113.1", 80, &all_workers());
    eventually("both fail", || Ok(bed.kube()?.failing_count == 2))?;
    eventually("and are told of", || Ok(bed.cluster.programmed(bed.name()) >= revision))?;
    let lb_node = bed.cluster.lb_node(bed.name()).context("an LbNode")?;
    let failing = lb_node["status"]["programmed"]["failing"]
        .as_array()
        .context("a list")?;
    let words: Vec<String> = failing
        .iter()
        .map(|table| format!("{}: {}", table["name"], table["why"]))
        .collect();
    assert_eq!(lb_node["status"]["programmed"]["failingCount"], json!(2));
    assert!(
        words[0].contains("shop.other") && words[0].contains("address of a node"),
        "{words:?}"
    );
    assert!(
        words[1].contains("shop.young") && words[1].contains("belongs to table shop.web"),
        "{words:?}"
    );
    assert_eq!(
        bed.assert_served(2)?,
        BTreeSet::from([c.to_owned()]),
        "its last good version stays"
    );
    assert_eq!(bed.assert_served(1)?, BTreeSet::from([a.to_owned(), b.to_owned()]));
    Ok(())
}

#[test]
fn source_ranges_that_come_and_go_swap_the_program_once() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::serving(1)?;
    let swaps = || -> Result<usize> { Ok(bed.lb.log()?.matches("the program is replaced in place").count()) };
    let mut ranged = lab_support::table("203.0.113.1", 80);
    ranged["sourceRanges"] = json!(["192.0.2.1/32"]);
    for turn in 0..3 {
        let revision = bed.cluster.put("VipTable", "shop.web", ranged.clone());
        eventually("the ranges are in force", || {
            Ok(bed.cluster.programmed(bed.name()) >= revision)
        })?;
        assert!(!bed.is_served(1)?, "turn {turn}: a stranger");
        let revision = bed
            .cluster
            .put("VipTable", "shop.web", lab_support::table("203.0.113.1", 80));
        eventually("they are gone", || Ok(bed.cluster.programmed(bed.name()) >= revision))?;
        assert!(bed.is_served(1)?, "turn {turn}");
    }
    assert_eq!(swaps()?, 1);
    Ok(())
}

#[test]
fn an_api_server_that_is_away_or_refuses_changes_nothing() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::serving(2)?;
    let mut connection = bed.topology.client().connect(vip_v4(1, 80))?;
    connection.get()?;
    let revision = bed.lb.status()?.revision;
    let endpoint = bed.cluster.endpoint(bed.topology.lb(0));
    let faults = bed.cluster.server.faults();
    for what in ["away", "403", "404", "500"] {
        if what == "away" {
            endpoint.close();
        } else {
            faults.fail_always("*", "*", what.parse()?);
            faults.drop_watches();
        }
        bed.wait_until_away()?;
        connection.get()?;
        bed.assert_served(1)?;
        let kube = bed.kube()?;
        assert!(kube.connected_s.is_none(), "{what}: {kube:?}");
        assert_eq!(bed.lb.status()?.vips, 2, "{what}");
        if what == "away" {
            endpoint.reopen()?;
        } else {
            let why = &kube.away[0].why;
            let word = match what {
                "403" => "forbidden",
                "404" => "not found",
                _ => "500",
            };
            assert!(why.contains(word), "{what}: {why}");
            faults.clear();
        }
        bed.wait_until_connected()?;
        assert_eq!(bed.lb.status()?.revision, revision, "{what}: nothing was written");
    }
    connection.get()?;
    // And it still follows.
    bed.cluster.put_table("shop.more", "203.0.113.2", 80, &all_workers());
    bed.wait_for_vips(4)?;
    bed.assert_served(2)?;
    Ok(())
}

#[test]
fn a_restart_without_an_api_server_serves_what_was_served() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let mut bed = Bed::serving(2)?;
    bed.cluster.put_table("shop.more", "203.0.113.2", 80, &all_workers());
    bed.wait_for_vips(4)?;
    let before = bed.lb.cli(&["explain", "tcp", "198.51.100.9:4000", "203.0.113.1:80"])?;
    for endpoint in bed.cluster.endpoints.values() {
        endpoint.close();
    }
    bed.lb.end(Signal::SIGTERM)?;
    bed.assert_served(1)?;
    assert!(bed.lb.detach()?.status.success());
    assert!(!bed.is_served(1)?, "the control: with nothing pinned nobody serves");
    bed.lb.start_again_unready()?;
    eventually("it serves from the cache", || {
        Ok(bed.lb.status().is_ok_and(|status| status.vips == 4))
    })?;
    let kube = bed.kube()?;
    assert!(kube.from_cache && kube.connected_s.is_none(), "{kube:?}");
    bed.assert_served(1)?;
    bed.assert_served(2)?;
    let after = bed.lb.cli(&["explain", "tcp", "198.51.100.9:4000", "203.0.113.1:80"])?;
    assert_eq!(after, before, "the seed is the same, too");
    // Workers, too.
    for node in &mut bed.nodes {
        node.end(Signal::SIGKILL)?;
        node.start_again()?;
    }
    bed.assert_served(1)?;

    // What changed meanwhile is learnt when it is back.
    bed.cluster.put_table("shop.third", "203.0.113.3", 80, &all_workers());
    for endpoint in bed.cluster.endpoints.values() {
        endpoint.reopen()?;
    }
    bed.wait_for_vips(6)?;
    // NodeSets are listed apart.
    eventually("nothing is from the cache", || Ok(!bed.kube()?.from_cache))?;
    bed.assert_served(3)?;

    // Killed, and a cache that is cut short: the API server says it all again.
    bed.lb.end(Signal::SIGKILL)?;
    fs::write(bed.lb.file("cache/kube.json"), "{\"shape\":1,")?;
    bed.lb.start_again()?;
    bed.wait_for_vips(6)?;
    assert!(bed.lb.log()?.contains("the cache is not used"));
    Ok(())
}

/// Takes the LB node's API server away, deletes all tables but the first, and lets it list anew.
fn lose_tables(bed: &Bed, names: &[&str]) -> Result<()> {
    let endpoint = bed.cluster.endpoint(bed.topology.lb(0));
    endpoint.close();
    bed.wait_until_away()?;
    names.iter().for_each(|name| bed.cluster.delete_table(name));
    bed.cluster.server.compact();
    Ok(endpoint.reopen()?)
}

#[test]
fn a_list_that_drops_over_half_is_held_until_it_is_accepted() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::serving(1)?;
    bed.cluster.put_table("shop.b", "203.0.113.2", 80, &all_workers());
    bed.cluster.put_table("shop.c", "203.0.113.3", 80, &all_workers());
    bed.wait_for_vips(6)?;
    lose_tables(&bed, &["shop.b", "shop.c"])?;
    eventually("it is held", || Ok(bed.kube()?.held.is_some()))?;
    eventually("and said", || Ok(bed.cluster.ready(bed.name()) == "False MassDropHeld"))?;
    for last in 1..=3 {
        bed.assert_served(last)?;
    }
    let held = bed.kube()?.held.context("held")?;
    assert_eq!((held.vips, held.of), (4, 6));
    // What is new applies all the same.
    let revision = bed.cluster.put_table("shop.d", "203.0.113.4", 80, &all_workers());
    eventually("the new table is reported", || {
        Ok(bed.cluster.programmed(bed.name()) >= revision)
    })?;
    bed.wait_for_vips(8)?;
    assert_eq!(bed.lb.cli(&["kube", "accept"])?, "4 VIPs go\n");
    bed.wait_for_vips(4)?;
    assert!(!bed.is_served(2)?);
    bed.assert_served(1)?;
    eventually("all is well", || Ok(bed.cluster.ready(bed.name()) == "True Serves"))?;
    let answer: AcceptView = bed.lb.ask(&Request::KubeAccept)?;
    assert_eq!(answer.vips, 0);
    // The twin: what drops less is believed at once.
    lose_tables(&bed, &["shop.d"])?;
    bed.wait_for_vips(2)?;
    assert_eq!(bed.kube()?.held, None);
    Ok(())
}

#[test]
fn a_definition_that_is_deleted_takes_no_vip_along() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::serving(1)?;
    let put = || {
        bed.cluster.put_table("shop.web", "203.0.113.1", 80, &all_workers());
        for last in 2..=5 {
            let name = format!("shop.s{last}");
            bed.cluster
                .put_table(&name, &format!("203.0.113.{last}"), 80, &all_workers());
        }
    };
    put();
    bed.wait_for_vips(10)?;
    let server = &bed.cluster.server;
    let deleted = server.delete("customresourcedefinitions", "", "viptables.vipline.dev");
    deleted.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    eventually("it is held", || Ok(bed.kube()?.held.is_some()))?;
    eventually("and said", || Ok(bed.cluster.ready(bed.name()) == "False MassDropHeld"))?;
    std::thread::sleep(Duration::from_secs(2));
    for last in 1..=3 {
        bed.assert_served(last)?;
    }
    assert_eq!(bed.lb.status()?.vips, 10);
    let log = bed.lb.log()?;
    assert!(
        log.contains("ALARM: ") && log.contains(" of 10 VIPs are gone from the API server at once"),
        "{log}"
    );
    // Back in time, they go on as they were.
    for definition in operator_api::crds() {
        let definition = serde_json::to_value(definition)?;
        if definition["metadata"]["name"] == "viptables.vipline.dev" {
            eventually("the definition is there again", || {
                Ok(server.create(definition.clone()).is_ok())
            })?;
        }
    }
    eventually("it is established", || {
        let definition = server.read("customresourcedefinitions", "", "viptables.vipline.dev");
        Ok(definition.is_some_and(|definition| definition["status"]["conditions"].is_array()))
    })?;
    put();
    eventually("nothing is held any more", || Ok(bed.kube()?.held.is_none()))?;
    assert_eq!(bed.lb.status()?.vips, 10);
    Ok(())
}

#[test]
fn another_seed_than_the_pinned_one_is_refused() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let other = lab_support::SEED.replace('9', "8");
    let mut bed = Bed::start(1, |cluster| {
        cluster.put_table("shop.web", "203.0.113.1", 80, &all_workers());
        cluster.put_seed(&other).expect("a seed");
    })?;
    eventually("it waits", || Ok(bed.cluster.ready(bed.name()) == "False SeedRefused"))?;
    assert!(!bed.lb.status()?.serving, "nothing is served");
    bed.cluster.put_seed(lab_support::SEED)?;
    bed.lb.end(Signal::SIGTERM)?;
    bed.lb.start_again()?;
    bed.assert_served(1)?;
    // Another one later is an alarm, and the first stays.
    let deleted = bed.cluster.server.delete("nodesets", NAMESPACE, "workers-0");
    assert!(deleted.is_ok(), "{deleted:?}");
    bed.cluster.put_workers(&bed.topology, "0000000000000000");
    eventually("it is said", || Ok(bed.kube()?.seed_alarm.is_some()))?;
    eventually("to all", || Ok(bed.cluster.ready(bed.name()) == "False SeedRefused"))?;
    bed.assert_served(1)?;
    Ok(())
}

#[test]
fn the_file_is_read_again_and_what_comes_from_the_cluster_has_no_place_in_it() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::serving(1)?;
    let base = fs::read_to_string(bed.lb.config())?;
    let refused = bed.lb.reload(&format!("{base}vips: []\n"));
    let why = refused.expect_err("refused").to_string();
    assert!(why.contains("vips: has no place here with --kube"), "{why}");
    bed.assert_served(1)?;
    bed.lb.reload(&format!(
        "{base}protection: {{ denied_sources: [\"{}/32\"] }}\n",
        bed.topology.client().addr_v4()
    ))?;
    assert!(!bed.is_served(1)?, "the deny-list is in force");
    bed.lb.reload(&base)?;
    bed.assert_served(1)?;
    // The cluster's next word does not undo it.
    bed.cluster.put_table("shop.more", "203.0.113.2", 80, &all_workers());
    bed.wait_for_vips(4)?;
    bed.assert_served(2)?;
    Ok(())
}

#[test]
fn without_a_file_the_default_routes_interface_is_taken() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let topology = Topology::builder().workers(1).build()?;
    let cluster = Cluster::start(&topology)?;
    cluster.put_table("shop.web", "203.0.113.1", 80, &all_workers());
    let mut lb = cluster.spawn_with("run", topology.lb(0), "")?;
    lb.ready()?;
    let status = lb.status()?;
    let names: Vec<&str> = status.interfaces.iter().map(|interface| &*interface.name).collect();
    assert_eq!(names, ["eth0"]);
    Ok(())
}
