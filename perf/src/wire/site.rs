//! Where packets go: interfaces that the user named, or a path through namespaces made here. Never sends anything itself.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, XskMap},
    programs::{Xdp, XdpMode},
};
use lab::{End, Netns, Process, Veth};
use lb::{
    control::{self, Request, StatusView},
    xsk::{XskInterface, XskMode, XskPort, XskSettings},
};

use super::frames::Kind;
use crate::{prog::WRAPPER_OBJECT, vipline::vipline};

const TX: &str = "tx0";
const RX: &str = "rx0";
const FRONT: &str = "front";
const BACK: &str = "back";
const GENERATOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const FRONT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BACK_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const SINK_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
const BACKEND_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const BACKEND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for an outer IPv6 header, and for IPv6 itself, which wants 1,280.
const ROOM: usize = 86;
const LEAST_MTU: usize = 1600;

/// Of the lab's links.
fn mtu(largest: usize) -> u32 {
    (largest + ROOM).max(LEAST_MTU) as u32
}

/// How the ends are set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) queues: u32,
    pub(crate) zero_copy: bool,
    /// Frames of each queue, half of them for each way.
    pub(crate) ring: u32,
    /// The sink loses every so many-eth packet: for a test of the harness.
    pub(crate) drop_every: u64,
}

/// Open at both ends. Dropped in this order: the sockets first.
pub(crate) struct Site {
    pub(crate) senders: Vec<XskPort>,
    pub(crate) sinks: Vec<XskPort>,
    pub(crate) source_mac: [u8; 6],
    pub(crate) destination_mac: [u8; 6],
    pub(crate) zero_copy: bool,
    _sink: Ebpf,
    _daemon: Option<(Process, tempfile::TempDir)>,
    _namespaces: Vec<Netns>,
}

impl Site {
    /// A veth pair from the generator to the sink: what the harness itself can do here.
    pub(crate) fn direct(ends: Ends, largest: usize) -> Result<Self> {
        let (near, far) = (quiet("generator")?, quiet("sink")?);
        Veth::new(
            end(&near, TX, GENERATOR_MAC, None),
            end(&far, RX, SINK_MAC, None),
            mtu(largest),
            ends.queues,
        )?;
        let (sink, sinks) = far.run(|| sinks(RX, ends))?;
        let (senders, _) = near.run(|| senders(TX, ends))?;
        Ok(Self {
            senders,
            sinks,
            source_mac: GENERATOR_MAC,
            destination_mac: SINK_MAC,
            zero_copy: false,
            _sink: sink,
            _daemon: None,
            _namespaces: vec![near, far],
        })
    }

    /// Generator, LB node with the real daemon, sink: in by one interface, out by another.
    pub(crate) fn vipline(ends: Ends, largest: usize, targets: &[SocketAddr], kinds: &[Kind]) -> Result<Self> {
        let (near, node, far) = (quiet("generator")?, Netns::new("balancer")?, quiet("sink")?);
        let mtu = mtu(largest);
        Veth::new(
            end(&near, TX, GENERATOR_MAC, None),
            end(&node, FRONT, FRONT_MAC, Some((1, 1))),
            mtu,
            ends.queues,
        )?;
        Veth::new(
            end(&node, BACK, BACK_MAC, Some((2, 1))),
            end(&far, RX, SINK_MAC, None),
            mtu,
            ends.queues,
        )?;
        let lladdr = "lladdr 02:00:00:00:01:02 dev back nud permanent";
        node.ip_batch(&format!(
            "neigh replace {BACKEND_V4} {lladdr}\nneigh replace {BACKEND_V6} {lladdr}\n"
        ))?;
        let (sink, sinks) = far.run(|| sinks(RX, ends))?;
        let directory = tempfile::tempdir()?;
        let (config, socket) = (directory.path().join("lb.yaml"), directory.path().join("lb.sock"));
        let log = directory.path().join("log");
        fs::write(&config, file(&socket, targets, kinds))?;
        let mut command = node.command(&vipline()?);
        command.arg("run").arg("--no-pin").arg("--config").arg(&config);
        command.stderr(fs::File::create(&log)?);
        let daemon = Process::start(command)?;
        let start = Instant::now();
        let wanted = targets
            .iter()
            .map(SocketAddr::is_ipv4)
            .collect::<std::collections::BTreeSet<_>>();
        while !control::ask(&socket, &Request::Status)
            .is_ok_and(|status: StatusView| status.backends_ready >= wanted.len())
        {
            ensure!(
                start.elapsed() < PATIENCE,
                "the daemon did not start:\n{}",
                fs::read_to_string(&log)?
            );
            thread::sleep(Duration::from_millis(50));
        }
        let (senders, _) = near.run(|| senders(TX, ends))?;
        Ok(Self {
            senders,
            sinks,
            source_mac: GENERATOR_MAC,
            destination_mac: FRONT_MAC,
            zero_copy: false,
            _sink: sink,
            _daemon: Some((daemon, directory)),
            _namespaces: vec![near, node, far],
        })
    }

    /// Interfaces of the user's, in the namespace that this program runs in.
    pub(crate) fn named(ends: Ends, tx: &str, rx: &str, destination_mac: [u8; 6]) -> Result<Self> {
        let (sink, sinks) = sinks(rx, ends)?;
        let (senders, source_mac) = senders(tx, ends)?;
        Ok(Self {
            zero_copy: senders.iter().chain(&sinks).all(XskPort::is_zero_copy),
            senders,
            sinks,
            source_mac,
            destination_mac,
            _sink: sink,
            _daemon: None,
            _namespaces: Vec::new(),
        })
    }
}

/// No neighbour discovery of the kernel's own among what is counted.
fn quiet(name: &str) -> Result<Netns> {
    let ns = Netns::new(name)?;
    ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    Ok(ns)
}

/// `network`: 1, the front's; 2, the back's, which the backends are in.
fn end(ns: &Netns, name: &str, mac: [u8; 6], address: Option<(u8, u8)>) -> End {
    let back = |network: u8| network == 2;
    End {
        ns: ns.clone(),
        name: name.to_owned(),
        mac,
        v4: address.map(|(network, host)| {
            let part = if back(network) { [192, 0, 2] } else { [198, 51, 100] };
            (Ipv4Addr::new(part[0], part[1], part[2], host), 24)
        }),
        v6: address.map(|(network, host)| {
            let part = if back(network) { 0x51 } else { 0x50 };
            (Ipv6Addr::new(0x2001, 0xdb8, part, 0, 0, 0, 0, host.into()), 64)
        }),
    }
}

fn settings(ends: Ends) -> XskSettings {
    XskSettings {
        frames_per_queue: ends.ring,
        mode: if ends.zero_copy {
            XskMode::ZeroCopy
        } else {
            XskMode::Copy
        },
        ..XskSettings::default()
    }
}

fn senders(name: &str, ends: Ends) -> Result<(Vec<XskPort>, [u8; 6])> {
    let interface = XskInterface::find(name)?;
    let ports = (0..ends.queues.min(interface.tx_queues))
        .map(|queue| Ok(XskPort::open(&interface, queue, &settings(ends))?))
        .collect::<Result<_>>()?;
    Ok((ports, interface.mac))
}

/// A socket on every receive queue, whatever was asked for: which queue a packet comes by is not ours to choose.
fn sinks(name: &str, ends: Ends) -> Result<(Ebpf, Vec<XskPort>)> {
    let interface = XskInterface::find(name)?;
    let mut ebpf = EbpfLoader::new()
        .btf(None)
        .load(WRAPPER_OBJECT)
        .context("cannot load the sink's program (root is needed: CAP_BPF, CAP_NET_ADMIN)")?;
    let program: &mut Xdp = ebpf.program_mut("wire_sink").context("no wire_sink")?.try_into()?;
    program.load().context("load wire_sink")?;
    program.attach(name, XdpMode::Driver).with_context(|| {
        format!("attach the sink's program to {name} natively; another may be there: `ip link show {name}`")
    })?;
    let mut every: Array<_, u64> = Array::try_from(ebpf.map_mut("WIRE_DROP_EVERY").context("no WIRE_DROP_EVERY")?)?;
    every.set(0, ends.drop_every, 0)?;
    let mut map = XskMap::try_from(ebpf.map_mut("WIRE_XSKS").context("no WIRE_XSKS")?)?;
    let mut ports = Vec::new();
    for queue in 0..interface.rx_queues {
        let port = XskPort::open(&interface, queue, &settings(ends))?;
        map.set(queue, port.fd(), 0)
            .with_context(|| format!("queue {queue} of {name}"))?;
        ports.push(port);
    }
    Ok((ebpf, ports))
}

fn file(socket: &std::path::Path, targets: &[SocketAddr], kinds: &[Kind]) -> String {
    let mut text = format!(
        "interfaces: [{{ name: {FRONT}, mode: native }}, {{ name: {BACK}, mode: native }}]\nseed: '{}'\ncontrol_socket: {}\nvips:\n",
        "3f9a1c07d2e84b56a0c7f1e92d3b5846790ab1c2d3e4f5061728394a5b6c7d8e",
        socket.display()
    );
    let udp = kinds.iter().any(|kind| matches!(kind, Kind::Udp | Kind::Quic));
    let tcp = kinds.iter().any(|kind| matches!(kind, Kind::Tcp | Kind::Syn));
    for target in targets {
        let (name, backend) = match target.ip() {
            IpAddr::V4(_) => ("four", IpAddr::V4(BACKEND_V4)),
            IpAddr::V6(_) => ("six", IpAddr::V6(BACKEND_V6)),
        };
        for protocol in udp.then_some("udp").into_iter().chain(tcp.then_some("tcp")) {
            text += &format!(
                "  - {{ address: '{}', protocol: {protocol}, port: {}, backends: [{{ name: {name}, address: '{backend}' }}] }}\n",
                target.ip(),
                target.port()
            );
        }
    }
    text
}
