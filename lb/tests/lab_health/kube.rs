//! What a cluster asks for: a Service's `healthCheckNodePort`, and kube-proxy's own port.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use lab::{Proto, Server, Topology, require_root};
use lb::control::BackendView;
use serde_json::{Value, json};

use crate::{
    lab_support::{Cluster, Daemon, eventually, table, vip_v4},
    site::{PORT, Says},
};

/// Of two Services.
const VIPS: [u8; 2] = [1, 2];

struct Site {
    lb: Daemon,
    _nodes: Vec<Daemon>,
    _servers: Vec<Server>,
    says: Vec<Says>,
    cluster: Cluster,
    topology: Topology,
}

impl Site {
    /// The first Service asks workers at [`PORT`], the second asks for nothing.
    fn start() -> Result<Self> {
        let topology = Topology::builder().workers(3).build()?;
        let servers = topology.serve(&VIPS.map(|last| (Proto::Tcp, vip_v4(last, 80))))?;
        let says = topology.workers().iter().map(Says::start).collect::<Result<Vec<_>>>()?;
        let cluster = Cluster::start(&topology)?;
        let nodes = topology.workers().iter().map(|worker| cluster.spawn("node", worker));
        let mut nodes = nodes.collect::<Result<Vec<_>>>()?;
        let mut lb = cluster.spawn("run", topology.lb(0))?;
        nodes.iter_mut().try_for_each(Daemon::ready)?;
        lb.ready()?;
        let site = Self {
            lb,
            _nodes: nodes,
            _servers: servers,
            says,
            cluster,
            topology,
        };
        site.put(&json!({"servicePort": {"port": PORT}}))?;
        site.cluster.put("VipTable", "shop.plain", table("203.0.113.2", 80));
        eventually("both are served", || Ok(site.lb.status()?.vips == 4))?;
        Ok(site)
    }

    fn put(&self, check: &Value) -> Result<()> {
        let mut spec = table("203.0.113.1", 80);
        spec["healthCheck"] = check.clone();
        let revision = self.cluster.put("VipTable", "shop.local", spec);
        let name = self.topology.lb(0).name();
        eventually("the table is in the maps", || {
            Ok(self.cluster.programmed(name) >= revision)
        })?;
        Ok(())
    }

    /// The state of a worker's check at the port.
    fn state(&self, worker: usize) -> Result<String> {
        let backends: Vec<BackendView> = self.lb.backends()?;
        let name = self.topology.worker(worker).name();
        let backend = backends
            .iter()
            .find(|backend| backend.name.contains(name))
            .context("a backend")?;
        let mut checks = backend.checks.iter();
        let check = checks.find(|check| check.check.contains(&PORT.to_string()));
        Ok(check.map(|check| check.state.clone()).unwrap_or_default())
    }

    fn wait(&self, worker: usize, state: &str) -> Result<()> {
        eventually(&format!("{worker} is {state:?}"), || Ok(self.state(worker)? == state))
            .map(drop)
            .with_context(|| format!("{:?}", self.lb.status()))
    }

    /// Who serves new connections to a VIP.
    fn served(&self, last: u8) -> Result<BTreeSet<String>> {
        let client = self.topology.client().with_timeout(Duration::from_millis(700));
        let replies = client.http_get(vip_v4(last, 80), 60)?;
        Ok(replies.into_iter().map(|reply| reply.server).collect())
    }
}

#[test]
fn a_node_without_endpoints_of_a_service_gets_none_of_its_flows_and_a_set_is_never_emptied() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let site = Site::start()?;
    for worker in 0..3 {
        site.wait(worker, "healthy")?;
    }
    assert_eq!([site.served(1)?.len(), site.served(2)?.len()], [3, 3], "the control");

    // As kube-proxy answers where it has no ready endpoint.
    site.says[0].says(503);
    site.wait(0, "unhealthy")?;
    eventually("it has no new flows", || Ok(site.served(1)?.len() == 2))?;
    assert_eq!(site.served(2)?.len(), 3, "the other Service did not ask");

    // All endpoints terminate: the port is ignored, and what it said is forgotten.
    site.put(&json!({"servicePort": {"port": PORT, "ignored": true}}))?;
    site.wait(0, "")?;
    eventually("all serve", || Ok(site.served(1)?.len() == 3))?;

    // Every node says no: all are used.
    site.put(&json!({"servicePort": {"port": PORT}}))?;
    site.says.iter().for_each(|says| says.says(503));
    for worker in 0..3 {
        site.wait(worker, "unhealthy")?;
    }
    eventually("the probes are not believed", || {
        Ok(site.lb.status()?.health.context("health")?.vips_in_panic == 2)
    })?;
    eventually("all serve", || Ok(site.served(1)?.len() == 3))?;

    // The same of kube-proxy's own port, for all Services that ask for it.
    site.put(&json!({"kubeProxy": {"port": PORT}}))?;
    site.says[1].says(200);
    site.wait(1, "healthy")?;
    eventually("one serves", || Ok(site.served(1)?.len() == 1))?;
    Ok(())
}
