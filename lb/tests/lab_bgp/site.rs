//! An LB node and the router of the bench that speak BGP.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use lab::{
    Node, Proto, Topology,
    routers::{Family, Neighbour, Route, Router, RouterConfig},
};
use lb::control::{BgpPeerView, BgpView, Request};
use tempfile::TempDir;

use super::lab_support::{Daemon, LbFile, eventually, vip_v4, vip_v6};

pub(crate) const OUR_ASN: u32 = 65_000;
pub(crate) const ROUTER_ASN: u32 = 4_200_000_001;
pub(crate) const PASSWORD: &str = "not-so-secret";

/// The VIPs of most tests: two IPv4 addresses and one IPv6 one.
pub(crate) fn vips() -> [(Proto, SocketAddr, &'static str); 3] {
    [
        (Proto::Tcp, vip_v4(1, 80), "v4"),
        (Proto::Tcp, vip_v4(2, 80), "v4"),
        (Proto::Tcp, vip_v6(1, 80), "v6"),
    ]
}

/// An LB node's file with these VIPs, and `bgp` with these lines.
pub(crate) fn file(topology: &Topology, lb: &Node, bgp: &str) -> LbFile {
    let mut file = LbFile::new(topology, lb);
    for (proto, at, set) in vips() {
        file = file.vips(&[(proto, at)], set);
    }
    file.more(bgp)
}

/// `bgp` of these peers.
pub(crate) fn bgp(more: &str, peers: &[String]) -> String {
    let peers: Vec<String> = peers.iter().map(|peer| format!("    - {{ {peer} }}\n")).collect();
    format!("bgp:\n  local_asn: {OUR_ASN}\n{more}  peers:\n{}", peers.concat())
}

/// A peer that is the router, at its end of the link to this LB node.
pub(crate) fn peer(name: &str, address: IpAddr, more: &str) -> String {
    format!("name: {name}, address: \"{address}\", asn: {ROUTER_ASN}, connect_retry_s: 1{more}")
}

/// The router's end of an LB node's link.
pub(crate) fn router_v4(lb: &Node) -> IpAddr {
    lb.eth0().gateway_v4.into()
}

pub(crate) fn router_v6(lb: &Node) -> IpAddr {
    lb.eth0().gateway_v6.into()
}

/// The router, with no neighbour yet.
pub(crate) fn router_config() -> RouterConfig {
    RouterConfig::new(ROUTER_ASN, [10, 99, 99, 99].into())
}

/// An LB node as the router's neighbour.
pub(crate) fn neighbour(lb: IpAddr) -> Neighbour {
    Neighbour::new(lb, OUR_ASN)
}

/// A password's file, in a directory that goes with the first of what is returned.
pub(crate) fn password_file(password: &str) -> Result<(TempDir, PathBuf)> {
    let directory = TempDir::with_prefix("vipline-bgp-")?;
    let path = directory.path().join("password");
    fs::write(&path, format!("{password}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok((directory, path))
}

pub(crate) fn view(lb: &Daemon) -> Result<BgpView> {
    lb.ask::<Option<BgpView>>(&Request::Bgp)?.context("BGP is configured")
}

pub(crate) fn peer_view(lb: &Daemon, name: &str) -> Result<BgpPeerView> {
    let peers = view(lb)?.peers;
    peers
        .into_iter()
        .find(|peer| peer.name == name)
        .with_context(|| format!("no peer {name}"))
}

/// Waits until a peer's session is up and the peer knows so many prefixes.
pub(crate) fn up(lb: &Daemon, name: &str, announced: usize) -> Result<()> {
    let done = eventually("the session is up", || {
        let peer = peer_view(lb, name)?;
        Ok(peer.up && peer.announced == announced)
    });
    done.map(drop).with_context(|| format!("{:?}", peer_view(lb, name)))
}

/// What the router has from a neighbour, by prefix, once that is exactly these prefixes.
pub(crate) fn learned(router: &Router, family: Family, from: IpAddr, prefixes: &[&str]) -> Result<Vec<Route>> {
    let mut last = Vec::new();
    let done = eventually("the router has exactly these prefixes", || {
        last = router
            .routes(family)?
            .into_iter()
            .filter(|route| route.from == Some(from))
            .collect();
        last.sort_by_key(|route| route.prefix);
        Ok(last
            .iter()
            .map(|route| route.prefix.to_string())
            .eq(prefixes.iter().map(|prefix| (*prefix).to_owned())))
    });
    done.with_context(|| format!("{prefixes:?} in {last:#?}"))?;
    Ok(last)
}
