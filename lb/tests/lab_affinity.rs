//! `affinity: client_ip` with real connections: a client has one server whatever its ports, other clients have others, and it can be
//! turned on and off while the VIP is used.

mod lab_support;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result};
use lab::{Proto, Topology, require_root};
use lab_support::{Bed, LbFile, Vip, vip_v4, vip_v6};
use lb::control::{Affinity, ProtocolName, Request};

/// Ports of the VIP addresses with affinity, and the one without.
const STICKY: [u16; 2] = [80, 443];
const PLAIN: u16 = 8080;
const OPTION: &str = ", affinity: client_ip";
/// Client addresses of each family, and connections of each to each VIP.
const CLIENTS: u8 = 16;
const FLOWS: u16 = 8;

struct Families {
    bed: Bed,
    clients: [Vec<IpAddr>; 2],
}

/// Four workers; on an address of each family two TCP ports and a UDP port with affinity and a TCP port without.
fn start() -> Result<Families> {
    let topology = Topology::builder().workers(4).build()?;
    let bed = Bed::start(topology, |topology, lb| {
        let mut file = LbFile::new(topology, lb);
        for (v6, set) in [(false, "v4"), (true, "v6")] {
            let sticky = |proto, port| Vip {
                options: OPTION.to_owned(),
                ..Vip::new(proto, vip(v6, port), set)
            };
            file.vips.extend(STICKY.map(|port| sticky(Proto::Tcp, port)));
            file.vips.push(sticky(Proto::Udp, STICKY[0]));
            file.vips.push(Vip::new(Proto::Tcp, vip(v6, PLAIN), set));
        }
        file
    })?;
    let client = bed.topology.client();
    let mut clients = [Vec::new(), Vec::new()];
    for number in 0..CLIENTS {
        let [a, b, c, _] = client.addr_v4().octets();
        let v4 = IpAddr::from([a, b, c, 100 + number]);
        let v6 = IpAddr::from((client.addr_v6().to_bits() & !0xffff | (0x100 + u128::from(number))).to_be_bytes());
        client.ns().ip(&["addr", "add", &format!("{v4}/24"), "dev", "eth0"])?;
        client
            .ns()
            .ip(&["addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"])?;
        clients[0].push(v4);
        clients[1].push(v6);
    }
    Ok(Families { bed, clients })
}

impl Families {
    /// Who answers one client, over these VIPs of its family; `explain` says the same of each flow.
    fn servers(&self, client: IpAddr, vips: &[(Proto, u16)]) -> Result<BTreeSet<String>> {
        let mut servers = BTreeSet::new();
        for (position, (proto, port)) in vips.iter().enumerate() {
            let vip = vip(client.is_ipv6(), *port);
            for flow in 0..FLOWS {
                // Never the same port twice, or the kernel holds it back for a minute.
                let from = SocketAddr::new(client, next_port() + position as u16 + flow * 16);
                let (reply, protocol) = match proto {
                    Proto::Tcp => (self.bed.topology.client().http_get_from(from, vip)?, ProtocolName::Tcp),
                    Proto::Udp => (self.bed.topology.client().udp_get_from(from, vip)?, ProtocolName::Udp),
                };
                let told = self.bed.lb().explain(&Request::Explain {
                    protocol,
                    source: from,
                    destination: vip,
                })?;
                let backend = told.backend.context("no backend")?;
                assert_eq!(backend.trim_end_matches("-v6"), reply.server, "explain of {from}");
                servers.insert(reply.server);
            }
        }
        Ok(servers)
    }

    /// The one server of each client of a family over these VIPs.
    fn one_each(&self, clients: &[IpAddr], vips: &[(Proto, u16)]) -> Result<Vec<String>> {
        let one = |client: &IpAddr| {
            let servers = self.servers(*client, vips)?;
            assert_eq!(servers.len(), 1, "{client} has one server: {servers:?}");
            servers.into_iter().next().context("a server")
        };
        clients.iter().map(one).collect()
    }

    /// Gives the VIPs of `port` this option and takes the file over.
    fn set_option(&self, port: u16, option: &str) -> Result<()> {
        let mut file = self.bed.file();
        for vip in file.vips.iter_mut().filter(|vip| vip.at.port() == port) {
            option.clone_into(&mut vip.options);
        }
        self.bed.lb().reload_lb(&file)
    }
}

fn vip(v6: bool, port: u16) -> SocketAddr {
    if v6 { vip_v6(1, port) } else { vip_v4(1, port) }
}

/// The first of a block of ports that no test of this process has had.
fn next_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(128, Ordering::Relaxed)
}

const ALL_STICKY: [(Proto, u16); 3] = [(Proto::Tcp, 80), (Proto::Tcp, 443), (Proto::Udp, 80)];

#[test]
fn a_client_has_one_server_whatever_its_ports_and_clients_are_spread() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let families = start()?;
    for clients in &families.clients {
        let servers = families.one_each(clients, &ALL_STICKY)?;
        let distinct: BTreeSet<&String> = servers.iter().collect();
        assert!(distinct.len() >= 3, "16 clients on four servers: {servers:?}");
        // The control: the same clients at the VIP beside it, on the same set.
        for client in &clients[..4] {
            let spread = families.servers(*client, &[(Proto::Tcp, PLAIN)])?;
            assert!(spread.len() >= 2, "{client} without affinity: {spread:?}");
        }
    }
    let lb = families.bed.lb();
    for vip in lb.vips()? {
        let wanted = if vip.port == PLAIN {
            Affinity::None
        } else {
            Affinity::ClientIp
        };
        assert_eq!(vip.affinity, wanted, "{vip:?}");
    }
    let table = lb.cli(&["vips"])?;
    assert_eq!(table.matches("client affinity").count(), 6, "{table}");
    let source = SocketAddr::new(families.clients[0][0], 1).to_string();
    let told = |port| lb.cli(&["explain", "tcp", &source, &vip_v4(1, port).to_string()]);
    assert!(told(80)?.contains("by the client's address alone"));
    assert!(!told(PLAIN)?.contains("by the client's address"));
    Ok(())
}

#[test]
fn affinity_is_turned_off_and_on_on_a_live_vip() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let families = start()?;
    let (lb, [clients, _]) = (families.bed.lb(), &families.clients);
    let clients = &clients[..6];
    let before = families.one_each(clients, &ALL_STICKY)?;

    // One VIP's option: a store, no other program.
    families.set_option(80, "")?;
    assert!(lb.status()?.features.contains(&"client affinity".to_owned()));
    assert!(!lb.log()?.contains("features change"), "{}", lb.log()?);
    for client in clients {
        let servers = families.servers(*client, &[(Proto::Tcp, 80)])?;
        assert!(servers.len() >= 2, "{client}, off: {servers:?}");
    }
    assert_eq!(
        families.one_each(clients, &[(Proto::Tcp, 443)])?,
        before,
        "the VIP beside it"
    );

    families.set_option(80, OPTION)?;
    assert_eq!(
        families.one_each(clients, &ALL_STICKY)?,
        before,
        "on again: where it was"
    );

    // The last use goes, and the feature with it.
    let mut file = families.bed.file();
    file.vips.iter_mut().for_each(|vip| vip.options.clear());
    lb.reload_lb(&file)?;
    assert!(!lb.status()?.features.contains(&"client affinity".to_owned()));
    assert!(lb.log()?.contains("features change: -client affinity"), "{}", lb.log()?);
    for client in clients {
        let servers = families.servers(*client, &[(Proto::Tcp, 443)])?;
        assert!(servers.len() >= 2, "{client}, without the feature: {servers:?}");
    }
    Ok(())
}
