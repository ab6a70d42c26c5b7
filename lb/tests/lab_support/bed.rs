//! A whole product in a lab: servers and kube-proxy's rules, `vipline node` on the workers, `vipline run` on the LB nodes.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use lab::{Node, Proto, Reply, Server, Topology};
use nix::sys::signal::Signal;

use super::{Daemon, LbFile, NodeFile};

/// Everything at work. Fields drop in this order: daemons first, namespaces last.
pub(crate) struct Bed {
    /// `vipline run`, by LB node.
    pub(crate) lbs: Vec<Daemon>,
    /// `vipline node`, by worker.
    pub(crate) nodes: Vec<Daemon>,
    /// A server in every pod.
    pub(crate) servers: Vec<Server>,
    /// The file of each LB node, as started.
    pub(crate) files: Vec<LbFile>,
    /// Where it all is.
    pub(crate) topology: Topology,
}

impl Bed {
    /// Starts everything; each LB node gets the file that `file` makes for it, and every node with a pod serves the first one's VIPs
    /// (policy Local).
    pub(crate) fn start(topology: Topology, file: impl Fn(&Topology, &Node) -> LbFile) -> Result<Self> {
        let node_file = NodeFile::new(&topology);
        Self::start_with(topology, file, &node_file)
    }

    /// As [`Self::start`], with another file for the workers.
    pub(crate) fn start_with(
        topology: Topology,
        file: impl Fn(&Topology, &Node) -> LbFile,
        node_file: &NodeFile,
    ) -> Result<Self> {
        let files: Vec<LbFile> = topology.lbs().iter().map(|lb| file(&topology, lb)).collect();
        let vips: Vec<(Proto, SocketAddr)> = files[0].vips.iter().map(|vip| (vip.proto, vip.at)).collect();
        let servers = topology.serve(&vips)?;
        let spawn_node = |worker| Daemon::spawn("node", worker, |socket| node_file.yaml(socket));
        let nodes = topology.workers().iter().map(spawn_node).collect::<Result<Vec<_>>>()?;
        let spawn_lb = |(node, file): (&Node, &LbFile)| Daemon::spawn("run", node, |socket| file.yaml(socket));
        let lbs = topology
            .lbs()
            .iter()
            .zip(&files)
            .map(spawn_lb)
            .collect::<Result<Vec<_>>>()?;
        let mut bed = Self {
            lbs,
            nodes,
            servers,
            files,
            topology,
        };
        for daemon in bed.nodes.iter_mut().chain(&mut bed.lbs) {
            daemon.ready()?;
        }
        for lb in &bed.lbs {
            let status = lb.status()?;
            ensure!(
                status.backends_ready == status.backends,
                "not all backends can be reached:\n{}",
                lb.log()?
            );
        }
        Ok(bed)
    }

    /// The usual: some workers behind one LB node, VIPs on the set `v4`.
    pub(crate) fn simple(workers: u8, vips: &[(Proto, SocketAddr)]) -> Result<Self> {
        let topology = Topology::builder().workers(workers).build()?;
        Self::start(topology, |topology, lb| LbFile::new(topology, lb).vips(vips, "v4"))
    }

    /// Starts the LB nodes' daemons again with nothing pinned: the data plane ends with each.
    pub(crate) fn unpin(&mut self) -> Result<()> {
        for lb in &mut self.lbs {
            lb.end(Signal::SIGTERM)?;
            ensure!(lb.detach()?.status.success(), "vipline detach");
            lb.next_with(&["--no-pin"]);
            lb.start_again()?;
        }
        Ok(())
    }

    /// The first LB node's daemon.
    pub(crate) fn lb(&self) -> &Daemon {
        &self.lbs[0]
    }

    /// The first LB node's file, as started.
    pub(crate) fn file(&self) -> LbFile {
        self.files[0].clone()
    }
}

/// Who answered how often.
pub(crate) fn count_servers(replies: &[Reply]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for reply in replies {
        *counts.entry(reply.server.clone()).or_default() += 1;
    }
    counts
}

/// Asserts that answers are spread by weight, within five standard deviations of what random ports give: a right share fails once
/// in a million.
pub(crate) fn assert_spread(what: &str, counts: &BTreeMap<String, usize>, weights: &[(&str, u32)]) {
    let total: usize = counts.values().sum();
    let weight: u32 = weights.iter().map(|(_, weight)| weight).sum();
    for (name, own) in weights {
        let share = f64::from(*own) / f64::from(weight);
        let ideal = total as f64 * share;
        let sigma = (total as f64 * share * (1.0 - share)).sqrt();
        let count = counts.get(*name).copied().unwrap_or_default();
        assert!(
            (count as f64 - ideal).abs() <= 5.0 * sigma,
            "{what}: {name} answered {count} of {total}, ideal {ideal:.0} ± {sigma:.1}: {counts:?}"
        );
    }
    let known: Vec<_> = weights.iter().map(|(name, _)| *name).collect();
    assert!(
        counts.keys().all(|name| known.contains(&name.as_str())),
        "{what}: a stranger in {counts:?}"
    );
}
