//! Configuration files as an operator would write them.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use lab::{Node, Proto, Topology};

/// The seed of all lab tests: what goes where is the same in every run, given the same ports.
pub(crate) const SEED: &str = "9f4c1b7e2a5d803611c7e9d2b4f60a8853fe27ad90b1c64e7d3a8f150c62e9b7";

/// A VIP, as `vips[…]` has it.
#[derive(Clone, Debug)]
pub(crate) struct Vip {
    /// TCP or UDP.
    pub(crate) proto: Proto,
    /// Address and port.
    pub(crate) at: SocketAddr,
    /// Name of its backend set.
    pub(crate) set: &'static str,
    /// More keys: `, limits: { … }`.
    pub(crate) options: String,
}

impl Vip {
    pub(crate) fn new(proto: Proto, at: SocketAddr, set: &'static str) -> Self {
        Self {
            proto,
            at,
            set,
            options: String::new(),
        }
    }
}

/// A backend: name, address, weight.
pub(crate) type Member = (String, IpAddr, u32);

/// An LB node's file.
#[derive(Clone, Debug, Default)]
pub(crate) struct LbFile {
    /// Each as the file has it: `eth0` or `{ name: eth0, mode: generic }`.
    pub(crate) interfaces: Vec<String>,
    /// Backend sets by name.
    pub(crate) sets: Vec<(&'static str, Vec<Member>)>,
    /// VIPs.
    pub(crate) vips: Vec<Vip>,
    /// Whatever else, as YAML lines.
    pub(crate) more: String,
}

impl LbFile {
    /// All interfaces of `node`; the sets `v4` and `v6` of all workers by their addresses of that family, weight 100. A backend's
    /// name is its node's, with `-v6` behind it in the set `v6`: a name has one address.
    pub(crate) fn new(topology: &Topology, node: &Node) -> Self {
        let workers = topology.workers();
        let v4 = workers
            .iter()
            .map(|node| (node.name().to_owned(), node.addr_v4().into(), 100));
        let v6 = workers
            .iter()
            .map(|node| (format!("{}-v6", node.name()), node.addr_v6().into(), 100));
        Self {
            interfaces: node.ifaces().iter().map(|iface| iface.name.clone()).collect(),
            sets: vec![("v4", v4.collect()), ("v6", v6.collect())],
            vips: Vec::new(),
            more: String::new(),
        }
    }

    /// With these VIPs, all on one set.
    pub(crate) fn vips(mut self, vips: &[(Proto, SocketAddr)], set: &'static str) -> Self {
        self.vips
            .extend(vips.iter().map(|(proto, at)| Vip::new(*proto, *at, set)));
        self
    }

    /// With these lines at the end.
    pub(crate) fn more(mut self, lines: &str) -> Self {
        self.more += lines;
        self.more += "\n";
        self
    }

    /// The members of a set.
    pub(crate) fn members(&mut self, set: &str) -> &mut Vec<Member> {
        let found = self.sets.iter_mut().find(|(name, _)| *name == set);
        &mut found.unwrap_or_else(|| panic!("no set {set}")).1
    }

    /// Gives a member of a set another weight.
    pub(crate) fn weight(&mut self, set: &str, name: &str, weight: u32) {
        let member = self.members(set).iter_mut().find(|member| member.0 == name);
        member.unwrap_or_else(|| panic!("no member {name} in {set}")).2 = weight;
    }

    /// The file's text. Sets that no VIP uses are left out: they would only be warned of.
    pub(crate) fn yaml(&self, socket: &Path) -> String {
        let mut text = format!("interfaces: [{}]\n", self.interfaces.join(", "));
        let _ = writeln!(text, "control_socket: {}", socket.display());
        if !self.more.contains("seed:") {
            let _ = writeln!(text, "seed: {SEED}");
        }
        text += "backend_sets:\n";
        for (name, members) in self
            .sets
            .iter()
            .filter(|(name, _)| self.vips.iter().any(|vip| vip.set == *name))
        {
            let _ = writeln!(text, "  {name}:\n    members:");
            for (name, address, weight) in members {
                let _ = writeln!(
                    text,
                    "      - {{ name: {name}, address: \"{address}\", weight: {weight} }}"
                );
            }
        }
        text += "vips:\n";
        for Vip {
            proto,
            at,
            set,
            options,
        } in &self.vips
        {
            let (address, port, proto) = (at.ip(), at.port(), word(*proto));
            let _ = writeln!(
                text,
                "  - {{ address: \"{address}\", protocol: {proto}, port: {port}, backends: {set}{options} }}"
            );
        }
        text + &self.more
    }
}

/// A worker node's file.
#[derive(Clone, Debug)]
pub(crate) struct NodeFile {
    /// Known LB nodes' outer sources.
    pub(crate) lb_sources: Vec<String>,
    /// VIP prefixes.
    pub(crate) vip_prefixes: Vec<String>,
    /// Whatever else, as YAML lines.
    pub(crate) more: String,
}

impl NodeFile {
    /// All addresses of all LB nodes, and the lab's VIP prefixes.
    pub(crate) fn new(topology: &Topology) -> Self {
        let interfaces = topology.lbs().iter().flat_map(Node::ifaces);
        Self {
            lb_sources: interfaces
                .flat_map(|iface| [iface.v4.to_string(), iface.v6.to_string()])
                .collect(),
            vip_prefixes: vec!["203.0.113.0/24".to_owned(), "2001:db8:f00d::/64".to_owned()],
            more: String::new(),
        }
    }

    /// With these lines at the end.
    pub(crate) fn more(mut self, lines: &str) -> Self {
        self.more += lines;
        self.more += "\n";
        self
    }

    /// The file's text.
    pub(crate) fn yaml(&self, socket: &Path) -> String {
        let quoted = |list: &[String]| {
            list.iter()
                .map(|item| format!("\"{item}\""))
                .collect::<Vec<_>>()
                .join(", ")
        };
        format!(
            "interfaces: [eth0]\ncontrol_socket: {}\nlb_sources: [{}]\nvip_prefixes: [{}]\n{}",
            socket.display(),
            quoted(&self.lb_sources),
            quoted(&self.vip_prefixes),
            self.more
        )
    }
}

/// As configuration and command line write it.
pub(crate) fn word(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}
