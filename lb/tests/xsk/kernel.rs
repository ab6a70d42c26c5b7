//! Frames for this node's own kernel.

use std::{net::UdpSocket, time::Duration};

use anyhow::Result;
use etherparse::PacketBuilder;
use lb::xsk::Tally;
use xdp_prog::verdict::Verdict;

use crate::bed::{Bed, HEAD, Op, Plan, TO_XSK, WAIT, frame};

/// A UDP packet in an Ethernet frame.
fn datagram(source: [u8; 4], payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
        .ipv4(source, [203, 0, 113, 1], 64)
        .udp(4000, 53)
        .write(&mut packet, payload)?;
    Ok(packet)
}

#[test]
fn frames_for_this_node_reach_its_sockets_under_strict_reverse_path_filtering() -> Result<()> {
    if !lab::require_root()? {
        return Ok(());
    }
    let bed = Bed::new(Plan {
        tun: true,
        ..Plan::default()
    })?;
    let node = &bed.wiring.node;
    node.ip_batch("addr add 203.0.113.1/32 dev lo\naddr add 192.0.2.1/24 dev n0\nroute add default via 192.0.2.2\n")?;
    // The way back to the client is by n0, not by the device that the packet comes in by.
    node.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    let server = node.run(|| {
        let server = UdpSocket::bind("203.0.113.1:53")?;
        server.set_read_timeout(Some(WAIT))?;
        Ok(server)
    })?;
    let inner = datagram([198, 51, 100, 7], b"hello")?;
    let mut sent = frame(TO_XSK, Verdict::SlowIpOptions as u8, Op::Kernel, 1, HEAD);
    sent.extend(inner);
    bed.wires[0].send(&sent)?;
    let mut buffer = [0; 64];
    let (len, from) = server.recv_from(&mut buffer)?;
    assert_eq!(
        (&buffer[..len], from.to_string()),
        (&b"hello"[..], "198.51.100.7:4000".to_owned())
    );
    bed.until("counted", |workers| workers[0].tally(Tally::ToKernel) == 1)?;
    // The twin: with strict filtering on the device, too, the kernel drops the packet.
    node.sysctl("net/ipv4/conf/vipline0/rp_filter", "1")?;
    server.set_read_timeout(Some(Duration::from_millis(300)))?;
    bed.wires[0].send(&sent)?;
    assert!(server.recv_from(&mut buffer).is_err());
    Ok(())
}
