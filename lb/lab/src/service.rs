//! The usual Service: a server in every pod, and kube-proxy's rules for some VIPs on every node that has one.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::{KubeProxy, Node, Policy, Proto, Server, Topology, VipRule};

/// The port that [`Topology::serve`]'s servers listen on.
const SERVER_PORT: u16 = 8080;

impl Topology {
    /// Starts a server in the pod of each worker (and of each LB node that has one), named after the node, and makes each node send
    /// these VIPs to its own pod (policy Local). The servers stop when they are dropped.
    ///
    /// # Errors
    ///
    /// Those of [`Server::start`] and [`KubeProxy::install`].
    pub fn serve(&self, vips: &[(Proto, SocketAddr)]) -> Result<Vec<Server>> {
        self.workers()
            .iter()
            .chain(self.lbs())
            .filter(|node| node.pod.is_some())
            .map(|node| {
                let rules = vips
                    .iter()
                    .map(|(proto, vip)| local_rule(node, *proto, *vip))
                    .collect::<Result<Vec<_>>>()?;
                KubeProxy::install(node, &rules, Policy::Local)?;
                Server::start(node.pod()?.ns(), node.name(), SERVER_PORT)
            })
            .collect()
    }
}

fn local_rule(node: &Node, proto: Proto, vip: SocketAddr) -> Result<VipRule> {
    let pod = node.pod()?;
    let address: IpAddr = match vip {
        SocketAddr::V4(_) => pod.addr_v4().into(),
        SocketAddr::V6(_) => pod.addr_v6().into(),
    };
    let target = SocketAddr::new(address, SERVER_PORT);
    Ok(VipRule { vip, proto, target })
}
