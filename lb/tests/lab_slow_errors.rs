//! What the network says about a VIP's replies reaches the server that sent them, though it is addressed to the VIP.

mod lab_support;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, checksum::Sum16BitWords};
use lab::{KubeProxy, Policy, Proto, Topology, VipRule, require_root};
use lab_support::{Bed, Datagram, LbFile, Wire, vip_v4, vip_v6};

const VIPS: [fn() -> SocketAddr; 4] = [|| vip_v4(4, 80), || vip_v6(4, 80), || vip_v4(6, 80), || vip_v6(6, 80)];
/// Where the tests' own sockets are, in every pod.
const OWN: u16 = 9090;

fn bed(workers: u8, more: &str) -> Result<Bed> {
    let bed = Bed::start(Topology::builder().workers(workers).build()?, |topology, lb| {
        let on = |last: u8| {
            let vips = [(80, Proto::Tcp), (90, Proto::Udp)].into_iter();
            vips.flat_map(|(port, proto)| [(proto, vip_v4(last, port)), (proto, vip_v6(last.into(), port))])
                .collect::<Vec<_>>()
        };
        LbFile::new(topology, lb)
            .vips(&on(4), "v4")
            .vips(&on(6), "v6")
            .more(more)
    })?;
    for worker in bed.topology.workers() {
        let pod = worker.pod()?;
        let mut rules = Vec::new();
        for vip in VIPS.map(|vip| vip()) {
            let address: IpAddr = if vip.is_ipv4() {
                pod.addr_v4().into()
            } else {
                pod.addr_v6().into()
            };
            for (proto, port, target) in [(Proto::Tcp, 80, 8080), (Proto::Udp, 90, OWN)] {
                let (vip, target) = (SocketAddr::new(vip.ip(), port), SocketAddr::new(address, target));
                rules.push(VipRule { vip, proto, target });
            }
        }
        KubeProxy::install(worker, &rules, Policy::Local)?;
    }
    Ok(bed)
}

/// A server's socket in the pod of each worker, for one family.
fn servers(bed: &Bed, vip: SocketAddr) -> Result<Vec<UdpSocket>> {
    let of = |worker: &lab::Node| {
        let pod = worker.pod()?;
        let address: IpAddr = if vip.is_ipv4() {
            pod.addr_v4().into()
        } else {
            pod.addr_v6().into()
        };
        pod.ns().run(|| {
            let socket = UdpSocket::bind((address, OWN))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    };
    bed.topology.workers().iter().map(of).collect()
}

/// The client's socket, and the server's that its first datagram came to, which is now connected to it.
fn pair(bed: &Bed, vip: SocketAddr) -> Result<(UdpSocket, UdpSocket)> {
    let servers = servers(bed, vip)?;
    let client = bed.topology.client();
    let own: IpAddr = if vip.is_ipv4() {
        client.addr_v4().into()
    } else {
        client.addr_v6().into()
    };
    let caller = client.ns().run(|| {
        let socket = UdpSocket::bind((own, 0))?;
        socket.connect((vip.ip(), 90))?;
        socket.send(b"hello")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(socket)
    })?;
    for _ in 0..200 {
        for server in &servers {
            let mut buffer = [0; 64];
            if let Ok((_, from)) = server.recv_from(&mut buffer) {
                let server = server.try_clone()?;
                server.set_nonblocking(false)?;
                server.set_read_timeout(Some(Duration::from_millis(500)))?;
                // A route out of the pod is looked up: in the pod.
                server.connect(from)?;
                return Ok((caller, server));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    anyhow::bail!("{vip}: no server got it")
}

fn error_of(server: &UdpSocket) -> ErrorKind {
    let mut buffer = [0; 64];
    server.recv(&mut buffer).expect_err("nobody sends anything").kind()
}

#[test]
fn a_client_that_has_closed_its_port_is_heard_by_the_server_that_replied() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let on = bed(3, "")?;
    for vip in VIPS {
        for _ in 0..4 {
            let (caller, server) = pair(&on, vip())?;
            server.send(b"hello")?;
            caller.recv(&mut [0; 64])?;
            drop(caller);
            server.send(b"are you there?")?;
            assert_eq!(
                error_of(&server),
                ErrorKind::ConnectionRefused,
                "{}: {:?}",
                vip(),
                on.lb().slow()?
            );
        }
    }
    assert_eq!(on.lb().slow()?.of("icmp_error/steered"), 16);
    // The twin.
    let off = bed(1, "slow_path: { enabled: false }")?;
    for vip in [vip_v4(4, 80), vip_v6(6, 80)] {
        let (caller, server) = pair(&off, vip)?;
        drop(caller);
        server.send(b"are you there?")?;
        assert_eq!(error_of(&server), ErrorKind::WouldBlock, "{vip}: it times out");
    }
    Ok(())
}

#[test]
fn servers_learn_the_mtu_of_the_way_to_their_client() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    for (more, heard) in [("", true), ("slow_path: { enabled: false }", false)] {
        let bed = bed(3, more)?;
        // Only the way from the router to the client is narrow: neither end knows.
        bed.topology
            .router()
            .ns()
            .ip(&["link", "set", "dev", "client", "mtu", "1400"])?;
        let client = bed
            .topology
            .client()
            .with_timeout(Duration::from_millis(if heard { 4000 } else { 700 }));
        for vip in VIPS {
            for _ in 0..if heard { 3 } else { 1 } {
                let outcome = client.download(vip(), 2_000_000);
                assert_eq!(
                    outcome.is_ok(),
                    heard,
                    "{more} {}: {outcome:?} {:?}",
                    vip(),
                    bed.lb().slow()?
                );
            }
        }
        let steered = bed.lb().slow()?.of("icmp_error/steered");
        println!("{more} {steered} steered");
        assert_eq!(steered > 0, heard);
    }
    Ok(())
}

/// An ICMP or ICMPv6 error from `router` about a packet that the VIP sent, of which it quotes `quote`.
fn error(router: IpAddr, vip: IpAddr, kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quote);
    match (router, vip) {
        (IpAddr::V4(router), IpAddr::V4(vip)) => {
            let sum = Sum16BitWords::new().add_slice(&message).ones_complement();
            message[2..4].copy_from_slice(&sum.to_ne_bytes());
            let len = u16::try_from(message.len()).expect("short");
            let mut header = Ipv4Header::new(len, 60, IpNumber::ICMP, router.octets(), vip.octets()).expect("short");
            header.header_checksum = header.calc_header_checksum();
            [header.to_bytes().as_slice(), &message].concat()
        }
        (IpAddr::V6(router), IpAddr::V6(vip)) => {
            let len = u16::try_from(message.len()).expect("short");
            let sum = Sum16BitWords::new()
                .add_16bytes(router.octets())
                .add_16bytes(vip.octets())
                .add_2bytes(len.to_be_bytes())
                .add_2bytes([0, 58])
                .add_slice(&message);
            message[2..4].copy_from_slice(&sum.ones_complement().to_ne_bytes());
            let header = Ipv6Header {
                payload_length: len,
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: 60,
                source: router.octets(),
                destination: vip.octets(),
                ..Ipv6Header::default()
            };
            [header.to_bytes().as_slice(), &message].concat()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("mixed families"),
    }
}

#[test]
fn errors_that_quote_as_little_as_they_may_find_their_server() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(3, "")?;
    let wire = Wire::to_lb(&bed)?;
    for vip in VIPS {
        let at = SocketAddr::new(vip().ip(), 90);
        let (router, header, unreachable): (IpAddr, _, _) = if at.is_ipv4() {
            ("198.18.0.1".parse()?, 20, (3, 3))
        } else {
            ("2001:2::1".parse()?, 40, (1, 4))
        };
        // Headers of IP and 8 bytes (RFC 792), some more, and all.
        for quoted in [header + 8, header + 20, header + 208] {
            for _ in 0..3 {
                let (caller, server) = pair(&bed, vip())?;
                server.send(b"hello")?;
                let reply = Datagram::new(at, caller.local_addr()?, &"r".repeat(200)).ip();
                let quote = reply.get(..quoted).context("a longer reply")?;
                wire.send(&error(router, at.ip(), unreachable.0, unreachable.1, quote))?;
                assert_eq!(
                    error_of(&server),
                    ErrorKind::ConnectionRefused,
                    "{at} {quoted}: {:?}",
                    bed.lb().slow()?
                );
            }
        }
        // Less than that, or about nobody's packet.
        let before = bed.lb().slow()?;
        let (caller, server) = pair(&bed, vip())?;
        let reply = Datagram::new(at, caller.local_addr()?, "reply").ip();
        wire.send(&error(
            router,
            at.ip(),
            unreachable.0,
            unreachable.1,
            &reply[..header + 2],
        ))?;
        let stranger: SocketAddr = if at.is_ipv4() {
            "192.0.2.1:90".parse()?
        } else {
            "[2001:db8::1]:90".parse()?
        };
        let reply = Datagram::new(stranger, caller.local_addr()?, "reply").ip();
        wire.send(&error(router, at.ip(), unreachable.0, unreachable.1, &reply))?;
        assert_eq!(error_of(&server), ErrorKind::WouldBlock, "{at}");
        let seen = bed.lb().slow()?.since(&before);
        let dropped: u64 = ["icmp_error/quote_unknown", "icmp_error/malformed"]
            .iter()
            .filter_map(|what| seen.get(*what))
            .sum();
        assert_eq!(dropped, 2, "{at}: {seen:?}");
    }
    Ok(())
}

#[test]
fn time_exceeded_arrives_in_the_pod() -> Result<()> {
    if !require_root()? {
        return Ok(());
    }
    let bed = bed(1, "")?;
    let wire = Wire::to_lb(&bed)?;
    let pod = bed.topology.worker(0).pod()?.ns();
    for vip in VIPS {
        let at = SocketAddr::new(vip().ip(), 90);
        let (caller, server) = pair(&bed, vip())?;
        server.send(b"hello")?;
        let capture = lab::Capture::start(pod, "eth0", "icmp or icmp6")?;
        let reply = Datagram::new(at, caller.local_addr()?, "reply").ip();
        let (router, kind): (IpAddr, u8) = if at.is_ipv4() {
            ("198.18.0.1".parse()?, 11)
        } else {
            ("2001:2::1".parse()?, 3)
        };
        wire.send(&error(router, at.ip(), kind, 0, &reply))?;
        std::thread::sleep(Duration::from_millis(200));
        let filter = if at.is_ipv4() {
            "icmp.type == 11 && icmp.checksum.status == 1"
        } else {
            "icmpv6.type == 3 && icmpv6.checksum.status == 1"
        };
        assert_eq!(capture.stop()?.count(filter)?, 1, "{at}");
    }
    Ok(())
}
