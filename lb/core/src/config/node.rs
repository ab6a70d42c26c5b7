//! The worker agent's file: `vipline node --config FILE`; with `--kube`, what of it is this node's own.
//!
//! Never lists the node's own addresses: the daemon finds them.

use std::{collections::BTreeSet, path::PathBuf};

use ipnet::IpNet;

use super::{
    ConfigErrors, Interface, Warning, address, interface, problem::Problem, read::At, read::Fields, read_file,
    socket_path, tunnel,
};
use crate::desired::Tunnel;

/// Default of [`NodeConfig::control_socket`].
pub const DEFAULT_NODE_SOCKET: &str = "/run/vipline/node.sock";

/// What a worker node decapsulates, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Where tunnelled packets arrive. At least one, each once.
    pub interfaces: Vec<Interface>,
    /// Outer sources: the LB nodes. Not empty while [`Self::check_source`] is on.
    pub lb_sources: Vec<IpNet>,
    /// Inner destinations: networks that VIPs come from. Not empty while [`Self::check_destination`] or
    /// [`Self::blackhole_unclaimed`] is on; never a whole family.
    pub vip_prefixes: Vec<IpNet>,
    /// Inner sources that are dropped: node, pod and Service networks.
    pub denied_inner_sources: Vec<IpNet>,
    /// Decapsulate only what comes from [`Self::lb_sources`]. Off is said loudly.
    pub check_source: bool,
    /// Decapsulate only what goes to [`Self::vip_prefixes`]. Off is said loudly.
    pub check_destination: bool,
    /// What arrives through the tunnel for [`Self::vip_prefixes`] and nothing on the node claims dies there.
    pub blackhole_unclaimed: bool,
    /// Unix socket of the CLI. An absolute path.
    pub control_socket: PathBuf,
}

impl NodeConfig {
    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, in the order of the file.
    pub fn parse(yaml: &str) -> Result<Self, ConfigErrors> {
        read_file(yaml, |at| at.fields(|fields| node(fields)))
    }

    /// Reads the text of a file for `--kube`: this node's own settings. [`Self::lb_sources`] and [`Self::vip_prefixes`] come from the
    /// cluster and are empty. Without `interfaces`, [`Self::interfaces`] is empty: the daemon takes that of the default route.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    pub fn parse_kube(yaml: &str) -> Result<Self, ConfigErrors> {
        read_file(yaml, |at| at.fields(|fields| own_settings(fields)))
    }

    /// What [`Self::parse_kube`] makes of a file that says nothing.
    pub fn kube() -> Self {
        Self {
            interfaces: Vec::new(),
            lb_sources: Vec::new(),
            vip_prefixes: Vec::new(),
            denied_inner_sources: Vec::new(),
            check_source: true,
            check_destination: true,
            blackhole_unclaimed: true,
            control_socket: DEFAULT_NODE_SOCKET.into(),
        }
    }

    /// What the maps should say. A check that is off takes every network, so the program has no switches. `locals` is empty:
    /// the daemon fills it with this node's own addresses.
    pub fn tunnel(&self) -> Tunnel {
        let unless_all = |check, networks: &Vec<IpNet>| if check { networks.clone() } else { tunnel::everything() };
        Tunnel {
            sources: unless_all(self.check_source, &self.lb_sources),
            vip_prefixes: unless_all(self.check_destination, &self.vip_prefixes),
            locals: BTreeSet::new(),
            denied_inner_sources: self.denied_inner_sources.clone(),
        }
    }

    /// What is allowed and should be said loudly all the same.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = interface::warnings(&self.interfaces);
        warnings.extend((!self.check_source).then_some(Warning::SourceUnchecked));
        warnings.extend((!self.check_destination).then_some(Warning::DestinationUnchecked));
        warnings.extend((!self.blackhole_unclaimed).then_some(Warning::UnclaimedMayLoop));
        warnings
    }

    /// Keys that a live reload cannot change: the daemon keeps the old state and says to restart.
    pub fn differs_fixed(&self, new: &Self) -> Vec<&'static str> {
        let mut differs = Vec::new();
        differs.extend((self.interfaces != new.interfaces).then_some("interfaces"));
        differs.extend((self.control_socket != new.control_socket).then_some("control_socket"));
        differs
    }
}

fn node(fields: &mut Fields<'_>) -> Option<NodeConfig> {
    let interfaces = fields.required("interfaces").and_then(|at| interface::interfaces(&at));
    let check_source = fields.or("check_source", true, |at| at.bool());
    let check_destination = fields.or("check_destination", true, |at| at.bool());
    let blackhole_unclaimed = fields.or("blackhole_unclaimed", true, |at| at.bool());
    let lb_sources = unless_off(
        fields,
        "lb_sources",
        check_source,
        ("the LB nodes' addresses", "check_source"),
    );
    let vip_prefixes = unless_off(
        fields,
        "vip_prefixes",
        check_destination,
        ("the networks that VIPs come from", "check_destination"),
    );
    let denied_inner_sources = fields.or("denied_inner_sources", Vec::new(), |at| address::networks(&at));
    let control_socket = fields.or("control_socket", DEFAULT_NODE_SOCKET.into(), |at| socket_path(&at));

    let (blackhole_unclaimed, vip_prefixes) = (blackhole_unclaimed?, vip_prefixes?);
    if blackhole_unclaimed && vip_prefixes.is_empty() {
        return fields.fail_at("blackhole_unclaimed", Problem::BlackholeWithoutPrefixes);
    }
    Some(NodeConfig {
        interfaces: interfaces?,
        lb_sources: lb_sources?,
        vip_prefixes,
        denied_inner_sources: denied_inner_sources?,
        check_source: check_source?,
        check_destination: check_destination?,
        blackhole_unclaimed,
        control_socket: control_socket?,
    })
}

fn own_settings(fields: &mut Fields<'_>) -> Option<NodeConfig> {
    fields.refuse(&[("lb_sources", "TunnelConfig"), ("vip_prefixes", "TunnelConfig")]);
    let interfaces = fields.or("interfaces", Vec::new(), |at| interface::interfaces(&at));
    let check_source = fields.or("check_source", true, |at| at.bool());
    let check_destination = fields.or("check_destination", true, |at| at.bool());
    let blackhole_unclaimed = fields.or("blackhole_unclaimed", true, |at| at.bool());
    let denied_inner_sources = fields.or("denied_inner_sources", Vec::new(), |at| address::networks(&at));
    let control_socket = fields.or("control_socket", DEFAULT_NODE_SOCKET.into(), |at| socket_path(&at));
    Some(NodeConfig {
        interfaces: interfaces?,
        lb_sources: Vec::new(),
        vip_prefixes: Vec::new(),
        denied_inner_sources: denied_inner_sources?,
        check_source: check_source?,
        check_destination: check_destination?,
        blackhole_unclaimed: blackhole_unclaimed?,
        control_socket: control_socket?,
    })
}

/// A list of networks that may be missing only when its check is off.
fn unless_off(
    fields: &mut Fields<'_>,
    key: &'static str,
    check: Option<bool>,
    (what, switch): (&'static str, &'static str),
) -> Option<Vec<IpNet>> {
    let problem = || Problem::MissingUnlessOff { what, switch };
    // A switch with an error of its own counts as off, so that it is the only error.
    match (fields.optional(key), check.unwrap_or(false)) {
        (Some(at), check) => non_empty_if(&at, check, problem),
        (None, true) => fields.fail_at(key, problem()),
        (None, false) => Some(Vec::new()),
    }
}

fn non_empty_if(at: &At<'_>, check: bool, problem: impl FnOnce() -> Problem) -> Option<Vec<IpNet>> {
    let networks = address::networks_but_not_all(at, ", or turn the check off knowingly")?;
    if check && networks.is_empty() {
        at.fail(problem())
    } else {
        Some(networks)
    }
}
