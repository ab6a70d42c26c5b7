//! Nodes that leave a cluster for good: until a deadline, or because the cluster does not have them any more.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::{Conn, Topology, require_root};
use lb::control::{DrainView, ProtocolName, Request};
use serde_json::{Value, json};

use crate::{
    HTTP, PROXY_DELAY, at,
    lab_support::{NAMESPACE, eventually, vipline},
    site::Site,
};

/// Connections.
const OPEN: usize = 120;
/// Far more than it takes to find that a host is silent: three probes of 2 s, and `dead_after`.
const LONG_SILENCE: Duration = Duration::from_secs(25);
/// No IPv4 packet comes in any more; ARP is answered.
const SILENT: &str = "table ip silent { chain in { type filter hook input priority -300; policy drop; }; }";

struct Bed {
    site: Site,
    vip: SocketAddr,
    kubeconfig: tempfile::NamedTempFile,
}

/// A connection, the backend that it goes by, and the server that it came to: of any node's pods.
struct Open {
    connection: Conn,
    backend: String,
    server: String,
}

impl Bed {
    fn start() -> Result<Self> {
        let site = Site::start(Topology::builder().workers(3).build()?, PROXY_DELAY)?;
        let vip = at(&site.serving("web", &HTTP, json!({}))?, 80)?;
        let kubeconfig = tempfile::NamedTempFile::new()?;
        std::fs::write(kubeconfig.path(), site.cluster.server.kubeconfig())?;
        Ok(Self { site, vip, kubeconfig })
    }

    fn open(&self) -> Result<Vec<Open>> {
        let client = self.site.client();
        let mut open = Vec::new();
        for _ in 0..OPEN {
            let mut connection = client.connect(self.vip)?;
            let server = connection.get()?.server;
            let told = self.site.lbs[0].explain(&Request::Explain {
                protocol: ProtocolName::Tcp,
                source: connection.local_addr(),
                destination: self.vip,
            })?;
            let backend = told.backend.context("no backend")?;
            open.push(Open {
                connection,
                backend,
                server,
            });
        }
        Ok(open)
    }

    fn drain(&self, node: &str, more: &[&str]) -> Result<()> {
        let kubeconfig = self.kubeconfig.path().display().to_string();
        let words = ["drain", "backend", node, "--kube", "--kubeconfig", &kubeconfig];
        let output = vipline(&[&words[..], more].concat())?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    fn leaving(&self) -> Value {
        let chunk = self.site.cluster.server.read("nodesets", NAMESPACE, "workers-0");
        chunk.unwrap_or_default()["spec"]["leaving"].clone()
    }

    /// Whether flows may live at a node that has left, as far as the LB node knows.
    fn keeps(&self, node: &str) -> Result<bool> {
        let name = format!("{node}/ipv4");
        let views: Vec<DrainView> = self.site.lbs[0].cli_json(&["drain", "list"])?;
        Ok(views.iter().any(|view| view.backend == name && !view.empty))
    }
}

/// By whom those went that are not answered as before; they are gone.
fn broken(open: &mut Vec<Open>) -> Vec<String> {
    let mut broken = Vec::new();
    open.retain_mut(|open| {
        let is_kept = open.connection.get().is_ok_and(|reply| reply.server == open.server);
        if !is_kept {
            broken.push(open.backend.clone());
        }
        is_kept
    });
    broken
}

fn by(open: &[Open], backend: &str) -> usize {
    open.iter().filter(|open| open.backend == backend).count()
}

#[test]
fn a_node_of_a_cluster_keeps_its_connections_until_the_deadline_and_no_other_loses_any() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start()?;
    let mut open = bed.open()?;
    let there = by(&open, "worker-3/ipv4");
    assert!(there > OPEN / 6, "{there}");
    // The control: without a deadline they stay.
    bed.drain("worker-3", &[])?;
    eventually("it has left", || bed.keeps("worker-3"))?;
    for _ in 0..4 {
        sleep(Duration::from_secs(2));
        assert_eq!(broken(&mut open), [""; 0]);
    }
    let begun = std::time::Instant::now();
    bed.drain("worker-3", &["--deadline", "8s"])?;
    eventually("the deadline is published", || {
        Ok(bed.leaving()[0]["deadline"].is_string())
    })?;
    assert_eq!(broken(&mut open), [""; 0]);
    let listed = bed.site.lbs[0].cli(&["drain", "list"])?;
    let line = listed.lines().find(|line| line.starts_with("worker-3/ipv4"));
    assert!(
        line.is_some_and(|line| line.contains("drained") && line.contains(" in ")),
        "{listed}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(7),
        "the machine is too slow for this test"
    );
    eventually("what lived there is given up", || Ok(!bed.keeps("worker-3")?))?;
    assert!(begun.elapsed() > Duration::from_secs(7), "not before");
    let lost = broken(&mut open);
    assert_eq!(lost, vec!["worker-3/ipv4"; there], "all of them and no other");
    // New ones go there again when the drain ends.
    bed.drain("worker-3", &["--undo"])?;
    eventually("it is back", || Ok(bed.leaving().is_null()))?;
    bed.site
        .wait_for_servers("web", bed.vip, &["worker-1", "worker-2", "worker-3"])
}

#[test]
fn a_node_that_the_cluster_does_not_have_any_more_keeps_its_connections_while_it_answers() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = Bed::start()?;
    let mut open = bed.open()?;
    // One node is deleted, another only excluded.
    let deleted = bed.site.cluster.server.delete("nodes", "", "worker-3");
    deleted.map_err(|failure| anyhow!("{failure:?}"))?;
    eventually("it is said to be gone", || Ok(bed.leaving()[0]["gone"] == true))?;
    bed.drain("worker-2", &[])?;
    eventually(
        "both have left",
        || Ok(bed.keeps("worker-3")? && bed.keeps("worker-2")?),
    )?;
    // The control: its machine runs on, whatever the API server says.
    let until = std::time::Instant::now() + LONG_SILENCE;
    while std::time::Instant::now() < until {
        sleep(Duration::from_secs(3));
        assert_eq!(broken(&mut open), [""; 0]);
    }
    assert!(bed.keeps("worker-3")?);
    // Neither answers anything from here on. Only of the deleted one nothing is waited for.
    for worker in [1, 2] {
        bed.site.worker(worker).ns().nft(SILENT)?;
    }
    sleep(LONG_SILENCE);
    eventually("the deleted node is dead", || Ok(!bed.keeps("worker-3")?))?;
    assert!(bed.keeps("worker-2")?, "it may answer again");
    open.retain(|open| open.backend == "worker-1/ipv4" && open.server == "worker-1");
    assert!(!open.is_empty());
    assert_eq!(broken(&mut open), [""; 0], "{}", bed.site.lbs[0].log()?);
    Ok(())
}
